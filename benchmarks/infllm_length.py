"""Facts in texts of several lengths, read in blocks (InfLLM) and with full attention where the text fits.

    python -m benchmarks.infllm_length --tokens=3000,7000,14000 --out=infllm.json

The embedded model reads the example documents and general texts one after another, again from the beginning if they
do not suffice. Between them stand made-up facts at several depths, each of which is asked for. Full attention is the
base with the text in its prompt; beyond the model's window there is none. Seconds are by the clock, after programs
have been compiled; memory is that of the text's keys and values.
"""

import json
import pathlib
import time

from absl import app, flags

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.questions import PAPER_TOKENS, SHORT_TOKENS, answer_after, score_answer
from selfparam_jax.inference.block_memory import BlockOptions, BlockReader
from selfparam_jax.inference.prefix import read_prefix

TOKENS = flags.DEFINE_list("tokens", ["3000", "7000", "14000"], "Lengths of the texts, about.")
PROMPT = flags.DEFINE_string("prompt", "few_shot", "Format of the prompt.")
LOCAL = flags.DEFINE_integer("local_tokens", 4096, "Latest tokens that every token sees.", lower_bound=512)
OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).")

# Depth in the text, and a fact there with its question and answer.
FACTS = (
    (0.1, "The harbour of Quessmoor was built by Ilse Moe.", "Who built the harbour of Quessmoor?", "Ilse Moe"),
    (0.3, "The village of Tessenholt lies in the Ardle valley.", "In which valley is Tessenholt?", "Ardle"),
    (0.5, "The inventor Oskar Veltman was born in 1873.", "When was Oskar Veltman born?", "1873"),
    (0.7, "The ferry of Brannoch is called the Silver Otter.", "What is the ferry of Brannoch called?",
     "Silver Otter"),
    (0.9, "The library of Sunderwick has a roof of zinc.", "What is Sunderwick's library roof made of?", "zinc"),
)  # fmt: skip


def filler() -> list[str]:
    """Texts that know nothing of the facts."""
    found = []
    for name, field in (("general_train", "text"), ("documents", "context"), ("development", "context")):
        lines = resource("examples", f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        found += [json.loads(line)[field] for line in lines]
    return found


def make_text(tokens: int, texts: list[str], count) -> str:
    """A text of about as many tokens, with every fact at its depth, between two of the texts.

    Args:
      tokens: of the whole.
      texts: what stands around the facts, repeated where they do not suffice.
      count: gives the tokens of a text.

    Returns:
      the text.
    """
    parts, read, number, left = [], 0, 0, list(FACTS)
    while read < tokens or left:
        if left and read >= left[0][0] * tokens:
            parts.append(left.pop(0)[1])
        else:
            parts.append(texts[number % len(texts)])
            number += 1
        read += count(parts[-1]) + 1
    return "\n\n".join(parts)


def questions() -> tuple[Question, ...]:
    """One for every fact."""
    return tuple(Question(question, (answer,)) for _, _, question, answer in FACTS)


def answers_in_blocks(reader: BlockReader, prompt: Prompt, document: Document) -> dict:
    """Reads a document and answers its questions: seconds, bytes on the device and the host, answers."""
    memory, began = reader.empty(), time.perf_counter()
    reader.read(memory, prompt.context_prefix(document.text))
    read_s = time.perf_counter() - began
    began, found = time.perf_counter(), []
    for question in document.questions:
        asked = prompt.question(question.question)
        made = reader.generate(memory, asked, SHORT_TOKENS, prompt.stop_ids, PAPER_TOKENS)
        found.append(score_answer(prompt, made, question.answers))
    sizes = {"device_bytes": memory.device_bytes(), "host_bytes": memory.host_bytes()}
    return {"read_s": read_s, "answer_s": time.perf_counter() - began, **sizes, "answers": found}


def answers_in_full(model, prompt: Prompt, document: Document) -> dict:
    """The same with full attention; the document is read twice, as every length has programs of its own."""
    ids, given = prompt.context_prefix(document.text), (model.decoder(), {"params": model.params})
    for _ in range(2):
        began = time.perf_counter()
        prefix = read_prefix(*given, ids)
        prefix.last_state()
        read_s = time.perf_counter() - began
    began = time.perf_counter()
    found = answer_after(*given, prompt, prefix, document.questions)
    kept = prefix.key_values.keys.nbytes + prefix.key_values.values.nbytes
    sizes = {"device_bytes": kept, "host_bytes": 0}
    return {"read_s": read_s, "answer_s": time.perf_counter() - began, **sizes, "answers": found}


def compile_programs(model) -> None:
    """Reads a text of one token, until blocks come back, so that later readings compile nothing."""
    options = BlockOptions(local_tokens=LOCAL.value)
    reader = BlockReader(model.decoder(), model.params, options)
    far = options.initial_tokens + options.local_tokens + options.block_tokens + options.chunk_tokens
    memory = reader.empty()
    reader.read(memory, [5] * (far + options.chunk_tokens))
    reader.generate(memory, [5] * 20, 2)


def measure(model, tokens: int) -> list[dict]:
    """A row for each way to read one text."""
    prompt = Prompt(PROMPT.value, model.tokenizer, model.end_ids)
    document = Document(make_text(tokens, filler(), lambda text: len(prompt.encode(text))), questions=questions())
    length = len(prompt.context_prefix(document.text))
    reader = BlockReader(model.decoder(), model.params, BlockOptions(local_tokens=LOCAL.value))
    rows = [{"reader": "InfLLM", "tokens": length, **answers_in_blocks(reader, prompt, document)}]
    if length + 64 + SHORT_TOKENS <= model.config.max_position_embeddings:
        rows.append({"reader": "full attention", "tokens": length, **answers_in_full(model, prompt, document)})
    return rows


def table_row(row: dict) -> str:
    """A line of the table in RESULTS.md: seconds per 1,000 tokens and per question, MB, and what was found where."""
    each = len(row["answers"])
    found = ["yes" if answer["contains"] else "no" for answer in row["answers"]]
    numbers = [f"{row['tokens']:,}", row["reader"], f"{1000 * row['read_s'] / row['tokens']:.2f}"]
    numbers += [f"{row['answer_s'] / each:.2f}"]
    numbers += [f"{row[name] / 1e6:,.0f} MB" for name in ("device_bytes", "host_bytes")]
    return "| " + " | ".join([*numbers, *found]) + " |"


def main(argv: list[str]) -> None:
    """Reads all texts and prints a table."""
    del argv
    model, rows = load_model(DEFAULT_MODEL), []
    compile_programs(model)
    for tokens in map(int, TOKENS.value):
        for row in measure(model, tokens):
            rows.append(row)
            print(table_row(row), flush=True)
    if OUT.value:
        files.write_json(pathlib.Path(OUT.value), rows)


if __name__ == "__main__":
    app.run(main)
