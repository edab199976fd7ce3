"""Remedies for forgetting, alone and together: what each keeps, and what it costs.

    python -m benchmarks.remedies --contexts=FILE --out=DIR [--length=6] [--sequences=1] [--only=NAME,NAME]

`--contexts` has training pairs and held-out questions. Every remedy is one job of `configs/sequential.py:published`,
changed by it alone, in a directory of its own under `--out`; what is finished is not run again. The table grows with
every remedy: remedies.json and remedies.md.
"""

import pathlib
import shutil

import numpy as np
from absl import flags, logging
from selfparam_jax.configs import sequential as published

from benchmarks.rows import measure_rows, run
from selfparam_jax.jobs.inputs import prepare
from selfparam_jax.jobs.run import run_job

CONTEXTS = flags.DEFINE_string("contexts", None, "JSONL file of contexts with qa_pairs and questions.", required=True)
OUT = flags.DEFINE_string("out", None, "Directory for the jobs and the results.", required=True)
LENGTH = flags.DEFINE_integer("length", 6, "Contexts per sequence.", lower_bound=2)
SEQUENCES = flags.DEFINE_integer("sequences", 1, "Sequences of other contexts.", lower_bound=1)
ONLY = flags.DEFINE_list("only", [], "Only these remedies (names of the first column, before the colon).")
PAIRS = flags.DEFINE_integer("pairs", 32, "Training pairs per context.", lower_bound=1)
MODEL = flags.DEFINE_string("model", "", "Another model than the embedded one.")
PROMPT = flags.DEFINE_string("prompt", "", "Another prompt format than the default.")

REPLAY = {"sequential.replay_pairs": 16, "sequential.replay_per_epoch": 48}
OWN_TEXT = {"targets.unrelated_context": False}
SMALL_STEPS = {"train.learning_rate": 2e-3}
ORIGINAL = {"sequential.teacher": "original"}
MORE_TEXT = {"targets.unrelated_per_epoch": 24}
REMEDIES = {
    "nothing": ("as published", {}),
    "text": ("stay what you were on unrelated text, read without context", OWN_TEXT),
    "more-text": ("the same, twice as much text", OWN_TEXT | MORE_TEXT),
    "small-steps": ("half the learning rate", SMALL_STEPS),
    "original": ("the untouched model teaches", ORIGINAL),
    "replay": ("16 pairs of every context kept, 48 of all kept ones an epoch", REPLAY),
    "self_generated": (
        "48 pairs an epoch that the model says without any document",
        {"sequential.self_generated_per_epoch": 48},
    ),
    "orthogonal": ("adapters orthogonal to what earlier ones read", {"sequential.orthogonal": True}),
    "together": (
        "text, more-text, small-steps, original, replay (configs/sequential.py)",
        OWN_TEXT | MORE_TEXT | SMALL_STEPS | ORIGINAL | REPLAY,
    ),
    "without-storage": (
        "text, more-text, small-steps, original, self_generated",
        OWN_TEXT | MORE_TEXT | SMALL_STEPS | ORIGINAL | {"sequential.self_generated_per_epoch": 48},
    ),
}


def config_of(changes: dict):
    """The job of a remedy."""
    config = published.get_config("published")
    config.update_from_flattened_dict(
        {
            "contexts": CONTEXTS.value,
            "sequential.length": LENGTH.value,
            "sequential.sequences": SEQUENCES.value,
            "targets.qa_per_context": PAIRS.value,
            "targets.long_pairs": "skip",
            "train.epochs": 4,
            "train.seq_len": 144,
            "eval.batch_size": 32,
            "export_dtype": "",
            "model": MODEL.value or config.model,
            "prompt": PROMPT.value or config.prompt,
            **changes,
        }
    )
    return config


def bytes_kept(directory: pathlib.Path) -> float:
    """Bytes per context that later injections need of the earlier ones, besides the adapters."""
    kept = [file.stat().st_size for file in directory.glob("sequences/*/injections/*/replay/*")]
    return sum(kept) / (LENGTH.value * SEQUENCES.value)


def measure(name: str) -> dict:
    """One remedy's job, and its row of the table."""
    label, changes = REMEDIES[name]
    directory, answers = pathlib.Path(OUT.value) / name, pathlib.Path(OUT.value) / "answers"
    config = config_of(changes)
    logging.info("remedy %s: %s", name, label)
    prepare(config, directory)
    if answers.exists():  # the untouched model answers the same in every job
        shutil.copytree(answers, directory / answers.name, dirs_exist_ok=True)
    results = run_job(config, directory)
    found = results["sequential"]
    shutil.copytree(directory / answers.name, answers, dirs_exist_ok=True)
    f1, likelihood = found["f1"], found["log_likelihood"]
    perplexity = np.asarray(found["perplexity_after"], np.float64)
    return {
        "name": name,
        "label": label,
        **{f"f1_{key}": f1[key] for key in ("just_injected", "final", "retention")},
        **{f"likelihood_{key}": likelihood[key] for key in ("before", "just_injected", "final")},
        "perplexity": float(np.mean(perplexity[:, -1] / perplexity[:, 0]) - 1),
        "seconds": float(np.median(found["seconds"])),
        "steps": results["steps"] / (LENGTH.value * SEQUENCES.value),
        "bytes": bytes_kept(directory),
    }


def table_of(rows: list[dict]) -> str:
    """The rows as Markdown; time and steps are relative to the first."""
    lines = [
        "| remedy | F1 just injected | F1 in the end | kept | log-likelihood before, just injected, in the end | "
        "perplexity | steps of an injection | its time | kept on disk per context |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        kept = "" if row["f1_retention"] is None else f"{row['f1_retention']:.2f}"
        likelihood = ", ".join(f"{row[f'likelihood_{key}']:.2f}" for key in ("before", "just_injected", "final"))
        lines.append(
            f"| {row['name']}: {row['label']} | {row['f1_just_injected']:.3f} | {row['f1_final']:.3f} | {kept} | "
            f"{likelihood} | {row['perplexity']:+.1%} | {row['steps'] / rows[0]['steps']:.2f} | "
            f"{row['seconds'] / rows[0]['seconds']:.2f} | {row['bytes'] / 1e6:.1f} MB |"
        )
    return "\n".join(lines) + "\n"


def measure_all() -> None:
    """Runs what is missing, and writes the table after each."""
    path, sizes = f"{OUT.value}/remedies", {"length": LENGTH.value, "sequences": SEQUENCES.value}
    measure_rows(path, REMEDIES, ONLY.value, measure, table_of, **sizes)


if __name__ == "__main__":
    run(measure_all)
