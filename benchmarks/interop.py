"""An injected model answers the same wherever its files are served: questions asked greedily of every reader.

    python -m benchmarks.interop WORKDIR [--contexts=examples] [--out=interop.json]

WORKDIR is of a finished job `batch`. Its model is exported as hf (float32), peft and gguf (float16), and the held-out
questions of --contexts, by default the packaged documents, are asked in the job's prompt format of

- ours, with the adapter beside the base;
- transformers, with the merged model; transformers and PEFT, with the adapter;
- our server (`selfparam serve`), over HTTP;
- ours and llama.cpp, with the f16 file (llama.cpp only where llama-cpp-python is installed).

All compute in float32; weights of the GGUF file are rounded to float16. Prints a Markdown table, and for every answer
that is not ours word for word the first token that differs, how far its logit is below that of our token, and how far
the reader's logits are from ours on all questions where both still read the same text. A difference is put down to
rounding if the margin is at most twice that distance.
"""

import contextlib
import dataclasses
import importlib.util
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data import corpora
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.questions import SHORT_TOKENS, short_answer
from selfparam_jax.inference.decoding import generate
from selfparam_jax.jobs.ask import read_adapter
from selfparam_jax.jobs.export import export_workdir
from selfparam_jax.jobs.inputs import Job, example_documents, reopen
from selfparam_jax.models.decoder import apply_head, output_head

CONTEXTS = flags.DEFINE_string("contexts", "examples", "Documents with questions, as a configuration's `contexts`.")
OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).")

EXPORTS = {"hf": "float32", "peft": None, "gguf": "float16"}
ROWS = 4  # whose logits over the vocabulary are held at a time
# Of ids (a prompt): the new ids, and the logits before each of them, or None where the reader does not tell.
Reader = Callable[[list[int]], tuple[list[int], list[np.ndarray] | None]]


@dataclasses.dataclass(frozen=True)
class Asked:
    """The questions, and how ours answers them.

    Attributes:
      prompt: the format.
      prompts: ids of each prompt.
      made: new ids of each answer.
      logits: before each of these, float32 [new ids, V].
    """

    prompt: Prompt
    prompts: list[list[int]]
    made: list[list[int]]
    logits: list[np.ndarray]

    def answer(self, ids: Sequence[int]) -> str:
        """The text of an answer."""
        return short_answer(self.prompt, ids)


# --- the readers ----------------------------------------------------------------------------------------


def ask_ours(model: Model, prompt: Prompt, questions: Sequence[str], lora: dict | None, scale: float) -> Asked:
    """Our own answers.

    Args:
      model: the base, or a merged model.
      prompt: the format.
      questions: in plain words.
      lora: an adapter; None for none.
      scale: of the adapter.

    Returns:
      prompts, answers and logits.
    """
    variables = {"params": model.params} | ({} if lora is None else {"lora": lora})
    decoder = model.decoder(**({} if lora is None else {"lora_scale": scale}))
    rows = [list(prompt.question(question)) for question in questions]
    made = generate(decoder, variables, prompt.start_ids, rows, SHORT_TOKENS, prompt.stop_ids)
    prompts = [[*prompt.start_ids, *row] for row in rows]
    width = max(len(row) + SHORT_TOKENS for row in prompts)
    head = output_head(model.params, model.config)

    @jax.jit
    def read(variables, ids, at):
        positions = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None], ids.shape)
        hidden, _ = decoder.apply(variables, ids, positions, jnp.ones_like(ids))
        return apply_head(jnp.take_along_axis(hidden, at[:, :, None], axis=1), head)

    logits: list[np.ndarray] = []
    for first in range(0, len(prompts), ROWS):
        part = list(zip(prompts, made, strict=True))[first : first + ROWS]
        ids = np.zeros((ROWS, width), np.int32)
        for n, (before, after) in enumerate(part):
            ids[n, : len(before) + len(after)] = [*before, *after]
        at = np.zeros((ROWS, SHORT_TOKENS), np.int32)
        for n, (before, _) in enumerate(part):
            at[n] = np.arange(SHORT_TOKENS) + len(before) - 1
        found = np.asarray(read(variables, ids, at), np.float32)
        logits += [found[n, : len(after)] for n, (_, after) in enumerate(part)]
    return Asked(prompt, prompts, made, logits)


def torch_reader(directory: Path, base: Path | None, stops: Sequence[int]) -> Reader:
    """transformers on a merged model, or PEFT on an adapter and the directory of its base."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base or directory, dtype=torch.float32, local_files_only=True)
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, directory)
    model.eval()

    def read(ids: list[int]) -> tuple[list[int], list[np.ndarray]]:
        made, logits, cache, step = [], [], None, torch.tensor([ids])
        with torch.no_grad():
            while len(made) < SHORT_TOKENS and not (made and made[-1] in stops):
                found = model(input_ids=step, past_key_values=cache, use_cache=True)
                cache, last = found.past_key_values, found.logits[0, -1]
                logits.append(last.float().numpy())
                made.append(int(last.argmax()))
                step = torch.tensor([[made[-1]]])
        return made, logits

    return read


def llama_cpp_reader(path: Path, stops: Sequence[int]) -> Reader:
    """llama.cpp on a file."""
    import llama_cpp

    model = llama_cpp.Llama(str(path), n_ctx=1024, logits_all=True, verbose=False)

    def read(ids: list[int]) -> tuple[list[int], list[np.ndarray]]:
        model.reset()
        made, logits, step = [], [], ids
        while len(made) < SHORT_TOKENS and not (made and made[-1] in stops):
            model.eval(step)
            logits.append(np.array(model.scores[model.n_tokens - 1], np.float32))
            made.append(int(logits[-1].argmax()))
            step = [made[-1]]
        return made, logits

    return read


@contextlib.contextmanager
def server_reader(workdir: str, prompt: Prompt) -> Iterator[Reader]:
    """Our server on a work directory, asked over HTTP; it gives text, which is made ids again."""
    from selfparam_jax.inference.engine import Engine
    from selfparam_jax.inference.guard import listen, make_server
    from selfparam_jax.inference.openai_requests import Limits
    from selfparam_jax.inference.server import Service, make_app
    from selfparam_jax.jobs.served import ServedModels, open_source

    with Engine() as engine, listen("127.0.0.1", 0, None) as bound:
        server = make_server(make_app(Service(engine, ServedModels(open_source(workdir)), Limits())))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/v1/completions"

        def read(ids: list[int]) -> tuple[list[int], None]:
            body = {"model": "injected", "prompt": ids, "max_tokens": SHORT_TOKENS, "temperature": 0, "stop": ["\n"]}
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(address, json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request) as reply:
                return list(prompt.text(json.load(reply)["choices"][0]["text"])), None

        try:
            yield read
        finally:
            server.should_exit = True
            thread.join()


# --- the comparison -------------------------------------------------------------------------------------


def compare(asked: Asked, questions: Sequence[str], answers: list[tuple[list[int], list[np.ndarray] | None]]) -> dict:
    """A reader's answers beside ours.

    Args:
      asked: ours.
      questions: in plain words.
      answers: of the reader, as `Reader` gives them.

    Returns:
      "questions", "same" (answers that are ours word for word), "logits" (the largest difference of the logits of our
      ten likeliest tokens where both read the same text; None where the reader tells none) and "differences":
      question, ours, theirs, margin of our token over theirs in our logits, and whether rounding explains it.
    """
    distance, different = None if any(logits is None for _, logits in answers) else 0.0, []
    for number, (ids, logits) in enumerate(answers):
        ours = asked.made[number]
        shared = next((n for n, pair in enumerate(zip(ours, ids, strict=False)) if pair[0] != pair[1]), None)
        for step in range(min(len(ours), len(ids)) if shared is None else shared + 1):
            if logits is not None:
                likeliest = np.argsort(asked.logits[number][step])[-10:]
                gap = np.abs(asked.logits[number][step][likeliest] - logits[step][likeliest]).max()
                distance = max(distance, float(gap))
        texts = asked.answer(ours), asked.answer(ids)
        if texts[0] != texts[1]:
            at = 0 if shared is None else shared
            scores = asked.logits[number][at]
            margin = float(scores[ours[at]] - scores[ids[at]]) if at < len(ids) else None
            different.append({"question": questions[number], "ours": texts[0], "theirs": texts[1], "margin": margin})
    for each in different:
        known = distance is not None and each["margin"] is not None
        each["rounding"] = bool(known and each["margin"] <= 2 * distance)
    same = len(answers) - len(different)
    return {"questions": len(answers), "same": same, "logits": distance, "differences": different}


def run(workdir: str, contexts: str, folder: Path, tell: Callable[[str, dict], None]) -> dict:
    """Exports a work directory's model and asks every reader.

    Args:
      workdir: of a finished job `batch`.
      contexts: documents with questions, as a configuration's `contexts`.
      folder: for the exports.
      tell: called with each reader's name and what was found.

    Returns:
      by reader what `compare` found, or {"not_asked": why}.

    Raises:
      ValueError: not the work directory of a finished job `batch`, or documents without questions.
    """
    job = reopen(workdir)
    if job.settings.job != "batch":
        raise ValueError(f"{workdir} is of job {job.settings.job!r}, expected 'batch'")
    source, limit = example_documents(contexts)
    questions = [each.question for document in corpora.read_documents(source, limit) for each in document.questions]
    if not questions:
        raise ValueError(f"{contexts} has no questions, expected documents with some")
    scale, stops = job.recipe.lora.scale, job.prompt.stop_ids
    asked = ask_ours(job.model, job.prompt, questions, read_adapter(job, job.workdir), scale)
    for form, dtype in EXPORTS.items():
        export_workdir(workdir, form, folder / form, dtype)
    (gguf,) = (folder / "gguf").glob("*.gguf")
    found: dict[str, dict] = {}

    def note(name: str, result: dict) -> None:
        found[name] = result
        tell(name, result)

    def ask(name: str, reader: Reader) -> None:
        note(name, compare(asked, questions, [reader(list(ids)) for ids in asked.prompts]))

    if importlib.util.find_spec("torch") and importlib.util.find_spec("peft"):
        ask("transformers, merged", torch_reader(folder / "hf", None, stops))
        ask("transformers + PEFT", torch_reader(folder / "peft", base_directory(job, folder / "base"), stops))
    else:
        note("transformers", {"not_asked": "torch or peft is not installed"})
    if importlib.util.find_spec("fastapi") and importlib.util.find_spec("uvicorn"):
        with server_reader(workdir, job.prompt) as reader:
            ask("selfparam serve", reader)
    else:
        note("selfparam serve", {"not_asked": "fastapi or uvicorn is not installed"})
    rounded = ask_ours(load_model(gguf), job.prompt, questions, None, 1.0)
    note("ours, f16 file", compare(asked, questions, list(zip(rounded.made, rounded.logits, strict=True))))
    if importlib.util.find_spec("llama_cpp"):
        llama = llama_cpp_reader(gguf, stops)
        theirs = [llama(list(ids)) for ids in asked.prompts]
        note("llama.cpp, f16 file", compare(asked, questions, theirs))
        note("llama.cpp, against ours on the same file", compare(rounded, questions, theirs))
    else:
        note("llama.cpp", {"not_asked": "llama-cpp-python is not installed"})
    return found


def base_directory(job: Job, folder: Path) -> Path:
    """A directory of the base that transformers can read: its own, or one that is written."""
    if job.model.files:
        return Path(job.model.files)
    from selfparam_jax.checkpoints.export import save_model

    return save_model(job.model.params, job.model, folder, "float32")


def table_row(name: str, each: dict) -> str:
    """A reader's line of the Markdown table."""
    if "not_asked" in each:
        return f"| {name} | not asked: {each['not_asked']} | | |"
    distance = "" if each["logits"] is None else f"{each['logits']:.1e}"
    told = "; ".join(map(_difference, each["differences"]))
    return f"| {name} | {each['same']} of {each['questions']} | {distance} | {told} |"


def _difference(one: dict) -> str:
    margin = "unknown" if one["margin"] is None else f"{one['margin']:.1e}"
    return f"{one['ours']!r} / {one['theirs']!r} (margin {margin}{', rounding' if one['rounding'] else ''})"


def main(argv: list[str]) -> None:
    """Prints the table, a line as soon as it is known."""
    if len(argv) != 2:
        raise app.UsageError("got no WORKDIR, expected that of a finished job `batch`")
    print("| reader | same answers | largest difference of logits | differences |\n| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        found = run(argv[1], CONTEXTS.value, Path(folder), lambda *row: print(table_row(*row), flush=True))
    if OUT.value:
        files.write_json(Path(OUT.value), found)


if __name__ == "__main__":
    app.run(main)
