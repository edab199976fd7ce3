"""What a long document costs: time per token and memory, from 1,000 to 100,000 tokens.

    python -m benchmarks.long_documents --out=long.json [--tokens=1000,3000,10000,30000,100000] [--repeats=2]

A document of made-up sentences under headings is cut into passages, with pairs from its sentences. The teacher reads
every passage with its pairs, and a student is trained for an epoch. All of it is a job's code with a tiny random
model, so that what is measured is the handling of the document, not the model. Each size is a process of its own,
which first does a short document, so that programs are compiled before the clock starts. Times are processor time (of
all threads), medians of the repeats; memory is the most that the process held in all, and how much more that is than
after the short document.
"""

import json
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).")
TOKENS = flags.DEFINE_list("tokens", ["1000", "3000", "10000", "30000", "100000"], "Sizes of the document.")
REPEATS = flags.DEFINE_integer("repeats", 2, "Processes for every size.", lower_bound=1)
ONE = flags.DEFINE_integer("one", 0, "Internal: measure this size and print it.")
PASSAGE, PAIRS = 256, 3


def make_document(tokens: int):
    """A document of about as many tokens (bytes, for the tiny model), with pairs about its sentences."""
    from selfparam_jax.data.documents import Document, QAPair

    draw, parts, pairs, size, number = random.Random(0), [], [], 0, 0
    while size < tokens:
        number += 1
        sentences = []
        for n in range(4):
            name, year = f"Town{number}x{n}", draw.randint(1000, 1999)
            sentences.append(f"{name} was founded in {year}.")
            if n < PAIRS:
                pairs.append(QAPair(f"When was {name} founded?", str(year)))
        parts.append(f"## Part {number}\n\n{' '.join(sentences)}")
        size += len(parts[-1]) + 2
    return Document("\n\n".join(parts), title="Towns", id=f"towns-{tokens}", qa_pairs=tuple(pairs))


def tiny_model():
    """A random model of two layers that reads bytes."""
    import jax
    import jax.numpy as jnp
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from selfparam_jax.checkpoints.model import Model
    from selfparam_jax.models.decoder import param_shapes
    from selfparam_jax.models.registry import model_config_from_hf

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: n for n, letter in enumerate([*letters, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    hf_config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024,
    )  # fmt: skip
    config = model_config_from_hf(hf_config)
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    params = jax.tree.map(
        lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape, jnp.float32), param_shapes(config)
    )
    return Model("tiny", config, params, fast, hf_config, "tiny")


def measure(tokens: int) -> dict:
    """Seconds and bytes of memory for one size; "wall_s" is what the injection took by the clock."""
    from benchmarks.memory import peak_memory
    from selfparam_jax.data.passages import split_documents, token_counter
    from selfparam_jax.targets.config import TargetConfig
    from selfparam_jax.training.inject import inject
    from selfparam_jax.training.recipe import Recipe

    model = tiny_model()
    targets = TargetConfig(generator="none", unrelated_per_epoch=0)
    recipe = Recipe(prompt="plain", passage_tokens=PASSAGE, targets=targets, epochs=1, batch_size=8, seq_len=128)
    count = token_counter(model.tokenizer)

    def run(size: int) -> dict:
        document = make_document(size)
        began = time.process_time()
        passages = split_documents([document], PASSAGE, count)
        cut = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            done = inject(model, passages, recipe, directory=pathlib.Path(folder))
        return {
            "tokens": count([document.text])[0],
            "passages": len(passages),
            "pairs": len(document.qa_pairs),
            "steps": done.steps,
            "cut_s": cut - began,
            "inject_s": time.process_time() - cut,
            "wall_s": done.teacher_s + done.train_s,
        }

    run(2000)
    before = peak_memory()
    return {**run(tokens), "peak": peak_memory(), "peak_above": peak_memory() - before}


def main(argv: list[str]) -> None:
    """Measures every size in processes of their own, and prints a table."""
    del argv
    if ONE.value:
        print(json.dumps(measure(ONE.value)))
        return
    results = []
    for tokens in map(int, TOKENS.value):
        runs = []
        for _ in range(REPEATS.value):
            command = [sys.executable, "-m", "benchmarks.long_documents", f"--one={tokens}"]
            runs.append(
                json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
            )
        results.append({name: statistics.median(run[name] for run in runs) for name in runs[0]})
        print(table_row(results[-1]), flush=True)
    if OUT.value:
        pathlib.Path(OUT.value).write_text(json.dumps(results, indent=1), encoding="utf-8")


def table_row(result: dict) -> str:
    """A size's line of the table in RESULTS.md: ms per 1,000 tokens of the document, and MB."""
    each = [f"{1e6 * result[name] / result['tokens']:.1f}" for name in ("cut_s", "inject_s", "wall_s")]
    numbers = [f"{result[name]:,.0f}" for name in ("tokens", "passages", "pairs", "steps")]
    memory = [f"{result[name] / 1e6:,.0f} MB" for name in ("peak", "peak_above")]
    return "| " + " | ".join([*numbers, *each, *memory]) + " |"


if __name__ == "__main__":
    app.run(main)
