"""A student in 4 bits: taught by itself, and by the model that it was rounded from.

    python -m benchmarks.other_teacher --out=DIR
    python -m benchmarks.other_teacher --out=DIR --quick

The student's weights are those of a model rounded to 4 bits, group by group to the nearest (embedding and norms
stay). The same documents are written into it with itself as teacher, and with the whole model (`teacher.model`).
Every job has a directory of its own under `--out`; a finished job is not run again, an unfinished one resumes. The
table grows with every job: other_teacher.json and other_teacher.md.
"""

import pathlib

import jax.numpy as jnp
from absl import flags, logging
from ml_collections import ConfigDict
from selfparam_jax.configs import batch

from benchmarks.rows import measure_rows, run
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.export import save_model
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.jobs.run import run_job
from selfparam_jax.models.parameters import parameter_table, parameter_tree, tree_leaves

OUT = flags.DEFINE_string("out", None, "Directory for the student, the jobs and the results.", required=True)
MODEL = flags.DEFINE_string("model", DEFAULT_MODEL, "The whole model: what a configuration's `model` may be.")
ONLY = flags.DEFINE_list("only", [], "Only these jobs (names of the first column, before the colon).")
QUICK = flags.DEFINE_bool("quick", False, "Fewer pairs and epochs, for a first look.")
CONTEXTS = flags.DEFINE_string("contexts", "examples:2", "The documents.")

GROUP, LEVELS = 32, 7  # inputs that share a scale; whole numbers from -7 to 7 need 4 bits
# Name, what it is, whether the student is in 4 bits, whether the whole model teaches.
JOBS = {
    "own": ("a student in 4 bits, its own teacher", True, False),
    "other": ("a student in 4 bits, taught by the whole model", True, True),
    "whole": ("the whole model, its own teacher", False, False),
}


def round_to_4_bits(kernel: jnp.ndarray, group: int = GROUP) -> jnp.ndarray:
    """A kernel [..., D, F] with every group of inputs of an output rounded to 15 evenly spaced values around 0.

    Raises:
      ValueError: D is no multiple of the group.
    """
    inputs, outputs = kernel.shape[-2:]
    if inputs % group:
        raise ValueError(f"a kernel of {inputs} inputs has no whole groups of {group}; choose a divisor")
    parts = kernel.astype(jnp.float32).reshape(*kernel.shape[:-2], inputs // group, group, outputs)
    largest = jnp.max(jnp.abs(parts), axis=-2, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / LEVELS
    return (jnp.round(parts / scale) * scale).reshape(kernel.shape).astype(kernel.dtype)


def write_student(directory: pathlib.Path) -> None:
    """The model in 4 bits as a directory in Hugging Face's layout, if it is not there."""
    if directory.exists():
        return
    model = load_model(MODEL.value)
    leaves = tree_leaves(model.params)
    for entry in parameter_table(model.config):
        if entry.is_kernel:
            leaves[entry.path] = round_to_4_bits(leaves[entry.path])
    save_model(parameter_tree(leaves), model, directory, "float32")


def config_of(name: str) -> ConfigDict:
    """The configuration of a job."""
    _, rounded, taught = JOBS[name]
    config = batch.get_config("reading")
    config.contexts, config.export_dtype, config.eval.reach = CONTEXTS.value, "", "none"
    config.model = str(pathlib.Path(OUT.value) / "student") if rounded else MODEL.value
    config.teacher.model = MODEL.value if taught else ""
    if QUICK.value:
        config.train.epochs, config.targets.qa_per_context, config.targets.unrelated_per_epoch = 4, 24, 4
    return config


def measure(name: str) -> dict:
    """Runs one job, or reads what it gave before; returns its line of the table."""
    out = pathlib.Path(OUT.value)
    write_student(out / "student")
    logging.info("%s: %s", name, JOBS[name][0])
    results = run_job(config_of(name), out / name)
    scores, drift = results["scores"], results["drift"]
    return {
        "name": name,
        "what": JOBS[name][0],
        **{system: scores[system]["f1"] for system in ("base_q", "base_cq", "injected")},
        **{key: drift[key] for key in ("perplexity_before", "perplexity_after", "kl")},
        "steps": results["steps"],
        "teacher_s": results["timing"]["teacher_s"],
        "train_s": results["timing"]["train_s"],
    }


def table_of(rows: list[dict]) -> str:
    """The rows as Markdown; drift is from the student's own base."""
    lines = [
        "| job | F1: base, question only | base, with the document | injected | perplexity of general text: before | "
        "after | KL from the base | steps | teacher | training |",
        "| --- " * 10 + "|",
    ]
    for row in rows:
        f1 = " | ".join(f"{row[system]:.3f}" for system in ("base_q", "base_cq", "injected"))
        drift = f"{row['perplexity_before']:.2f} | {row['perplexity_after']:.2f} | {row['kl']:.4f}"
        times = f"{row['steps']} | {row['teacher_s']:.0f} s | {row['train_s']:.0f} s"
        lines.append(f"| {row['name']}: {row['what']} | {f1} | {drift} | {times} |")
    return "\n".join(lines) + "\n"


def measure_all() -> None:
    """Runs what is missing, and writes the table after each."""
    measure_rows(
        f"{OUT.value}/other_teacher", JOBS, ONLY.value, measure, table_of, contexts=CONTEXTS.value, quick=QUICK.value
    )


if __name__ == "__main__":
    run(measure_all)
