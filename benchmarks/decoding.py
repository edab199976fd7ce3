"""Greedy decoding of the default model: new tokens per second, beside transformers on the same weights.

    python -m benchmarks.decoding --out=decoding.json [--batches=1,8,32] [--new_tokens=64] [--repeats=3]

Needs torch. The model is written once as a Hugging Face directory in float32; for every batch size three
processes read it: this project, transformers in float32 and transformers in bfloat16. Each makes one call
to warm up, then they take turns, one call at a time while the others sleep, so that whatever else the
machine does meets all three alike. A call is `generate` from token ids to token ids, prompts read included;
loading is not, and compilation is stated on its own. Prints a Markdown table and writes JSON.

On cores that others use too, run it with OMP_WAIT_POLICY=passive, which the processes inherit: torch's threads
otherwise spin while they wait for one another.
"""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import app, flags

from benchmarks.workload import write_model
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files
from selfparam_jax.models.rounding import PRECISIONS

BATCHES = flags.DEFINE_list("batches", ["1", "8", "32"], "Rows decoded together.")
NEW_TOKENS = flags.DEFINE_integer(
    "new_tokens", 64, "Tokens made per row; nothing stops a row earlier.", lower_bound=1
)
REPEATS = flags.DEFINE_integer("repeats", 3, "Measured calls per process.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).")
MATMUL = flags.DEFINE_enum("matmul_precision", "float32", PRECISIONS, "Ours: config.matmul_precision.")
CHILD = flags.DEFINE_enum("child", None, ["ours", "transformers_f32", "transformers_bf16"], "Set by the driver only.")
DIRECTORY = flags.DEFINE_string("directory", None, "The exported model; set by the driver only.")

SYSTEMS = ("ours", "transformers_f32", "transformers_bf16")
DTYPES = {"transformers_f32": "float32", "transformers_bf16": "bfloat16"}
PROMPT_TOKENS = (24, 32)  # shortest and longest, the beginning-of-text token not counted


# --- the processes that are measured ------------------------------------------------------------------


def make_prompts(tokenizer, count: int) -> list[list[int]]:
    """Different pieces of the example documents, PROMPT_TOKENS long."""
    lines = resource("examples", "development.jsonl").read_text(encoding="utf-8").splitlines()
    ids = tokenizer.encode(" ".join(json.loads(line)["context"] for line in lines), add_special_tokens=False)
    lengths = np.random.default_rng(0).integers(PROMPT_TOKENS[0], PROMPT_TOKENS[1] + 1, count)
    starts = np.linspace(0, len(ids) - PROMPT_TOKENS[1], count).astype(int)
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def our_generate(
    directory: str, batch: int, new_tokens: int, precision: str = "float32"
) -> Callable[[], list[list[int]]]:
    """One call of this project's `generate`; the shared prefix is the beginning-of-text token alone.

    Args:
      directory: of the model.
      batch: prompts that are continued together.
      new_tokens: of each.
      precision: of products with the weights.

    Returns:
      what makes the tokens of every prompt.
    """
    from selfparam_jax.inference.decoding import generate

    base = load_model(directory, matmul_precision=precision)
    model, variables = base.decoder(), base.variables
    prompts = make_prompts(base.tokenizer, batch)
    prefix = [base.tokenizer.bos_token_id]
    return lambda: generate(model, variables, prefix, prompts, new_tokens, batch_size=batch)


def their_generate(directory: str, batch: int, new_tokens: int, dtype: str) -> Callable[[], list[list[int]]]:
    """One call of transformers' `generate` on the same rows, padded on the left as it wants them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None  # no stop
    rows = [[tokenizer.bos_token_id, *prompt] for prompt in make_prompts(tokenizer, batch)]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    options = {"do_sample": False, "use_cache": True, "max_new_tokens": new_tokens}

    def call():
        with torch.inference_mode():
            made = model.generate(ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
        return made[:, width:].tolist()

    return call


def run_child(system: str, directory: str, batch: int, new_tokens: int) -> None:
    """Answers every line on standard input with one call: a line of JSON with its seconds and its tokens."""
    if system == "ours":
        call = our_generate(directory, batch, new_tokens, MATMUL.value)
    else:
        call = their_generate(directory, batch, new_tokens, DTYPES[system])
    for _ in sys.stdin:
        began = time.perf_counter()
        tokens = call()
        print(json.dumps({"seconds": time.perf_counter() - began, "tokens": tokens}), flush=True)


# --- the driver ---------------------------------------------------------------------------------------


def start(system: str, directory: Path, batch: int) -> subprocess.Popen:
    """A process of this file that waits for lines."""
    command = [sys.executable, "-m", "benchmarks.decoding", f"--child={system}", f"--directory={directory}"]
    command += [f"--matmul_precision={MATMUL.value}", f"--batches={batch}", f"--new_tokens={NEW_TOKENS.value}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen) -> dict:
    """One call of a process: {"seconds", "tokens"}; RuntimeError if it has died."""
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{' '.join(process.args)} ended with exit code {process.wait()}; its error stands above")
    return json.loads(line)


def equal_share(ours: list[list[int]], theirs: list[list[int]]) -> float:
    """The share of positions that hold the same token."""
    return float(np.mean(np.asarray(ours) == np.asarray(theirs)))


def measure(directory: Path, batch: int) -> dict:
    """The three systems at one batch size, in turns."""
    made = batch * NEW_TOKENS.value
    seconds: dict[str, list[float]] = {system: [] for system in SYSTEMS}
    first = {}
    with contextlib.ExitStack() as stack:
        processes = {}
        for system in SYSTEMS:
            processes[system] = stack.enter_context(start(system, directory, batch))
            first[system] = ask(processes[system])
        for _ in range(REPEATS.value):
            for system, process in processes.items():
                seconds[system].append(ask(process)["seconds"])
    result = {f"{system}_tokens_per_s": made / statistics.median(seconds[system]) for system in SYSTEMS}
    ours, f32, bf16 = (result[f"{system}_tokens_per_s"] for system in SYSTEMS)
    return {
        **result,
        "ratio_f32": ours / f32,
        "ratio_best": ours / max(f32, bf16),
        "ours_compile_s": first["ours"]["seconds"] - statistics.median(seconds["ours"]),
        "equal_tokens_f32": equal_share(first["ours"]["tokens"], first["transformers_f32"]["tokens"]),
        "equal_tokens_bf16": equal_share(first["ours"]["tokens"], first["transformers_bf16"]["tokens"]),
        "seconds": seconds,
    }


def main(_) -> None:
    """Measures every batch size; as a child, one system."""
    if CHILD.value:
        run_child(CHILD.value, DIRECTORY.value, int(BATCHES.value[0]), NEW_TOKENS.value)
        return
    if not OUT.value:
        raise app.UsageError("--out is needed: where the results go")
    columns = ("ours", "transformers f32", "transformers bf16", "/ f32", "/ best", "compile s", "equal to f32")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        write_model(Path(temporary), load_model(DEFAULT_MODEL))
        print("| batch | " + " | ".join(columns) + " |\n" + "| --- " * (len(columns) + 1) + "|", flush=True)
        for batch in map(int, BATCHES.value):
            results[str(batch)] = found = measure(Path(temporary), batch)
            speeds = " | ".join(f"{found[f'{system}_tokens_per_s']:.1f}" for system in SYSTEMS)
            ratios = f"{found['ratio_f32']:.2f} | {found['ratio_best']:.2f} | {found['ours_compile_s']:.1f}"
            print(f"| {batch} | {speeds} | {ratios} | {found['equal_tokens_f32']:.3f} |", flush=True)
            settings = {"new_tokens": NEW_TOKENS.value, "repeats": REPEATS.value, "prompt_tokens": PROMPT_TOKENS}
            files.write_json(OUT.value, {**settings, "batch": results})


if __name__ == "__main__":
    app.run(main)
