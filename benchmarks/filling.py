"""How many positions a step computes per token it needs: padded rows, rows in buckets of lengths, packed rows.

    python -m benchmarks.filling

Counts only, on the sentences of all example documents; nothing is trained. Buckets are powers of two, each a program
of its own, and their rows are taken to be full batches (in truth the last of every bucket is not).
"""

from absl import app

from benchmarks.workload import example_contexts, make_sentences, plan_of, train_config
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.data.prompts import Prompt

DOCUMENTS, ROWS, LENGTH = 16, 4, 288
LEAST_BUCKET = 16


def bucket(length: int) -> int:
    """The smallest power of two, from LEAST_BUCKET on, that holds so many tokens."""
    return max(LEAST_BUCKET, 1 << (length - 1).bit_length())


def count(lengths: list[int], packed: float) -> list[tuple[str, float, int]]:
    """Way, positions per token and compiled programs.

    Args:
      lengths: of the sentences, in tokens.
      packed: share of packed rows that holds a token.
    """
    tokens, longest = sum(lengths), max(lengths)
    buckets = [bucket(length) for length in lengths]
    return [
        ("a sentence a row, padded to the longest", len(lengths) * longest / tokens, 1),
        ("a sentence a row, in buckets", sum(buckets) / tokens, len(set(buckets))),
        (f"packed into rows of {LENGTH}", 1 / packed, 1),
    ]


def main(argv: list[str]) -> None:
    """Prints a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    prompt = Prompt("plain", load_model(DEFAULT_MODEL).tokenizer)
    sentences = make_sentences(example_contexts(DOCUMENTS), prompt)
    plan = plan_of(sentences, prompt, train_config(1, ROWS, LENGTH))
    lengths = [len(prompt.start_ids) + len(sentence.ids) for sentence in sentences]
    print(f"{len(lengths)} sentences of {min(lengths)} to {max(lengths)} tokens\n")
    print("| rows | positions per token | programs |")
    print("| --- | --- | --- |")
    for way, positions, programs in count(lengths, plan.fill):
        print(f"| {way} | {positions:.2f} | {programs} |")


if __name__ == "__main__":
    app.run(main)
