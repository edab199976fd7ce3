"""Job `batch`: all documents into one set of weights, then all their questions."""

import pathlib
import time
from collections.abc import Sequence

from selfparam_jax.checkpoints.export import merge_for_export, save_model
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.systems import NO_COST
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.evaluation import INJECTED, chosen_pairs, evaluate_injected
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.progress import open_hooks
from selfparam_jax.jobs.reach import job_reach
from selfparam_jax.jobs.results import tokens_per_second, write_results
from selfparam_jax.jobs.systems import (
    measure_systems,
    measure_trained,
    measured_group,
    read_measured,
    write_measured,
)
from selfparam_jax.jobs.tracking import job_tracking
from selfparam_jax.training.inject import ContinualState, Injection, inject


def inject_documents(job: Job, documents: Sequence[Document], directory: pathlib.Path, label: str = "") -> Injection:
    """Chooses the pairs of some documents and writes these into the untouched base, or into the job's adapter.

    Args:
      job: recipe, model and unrelated texts.
      documents: all go into one adapter.
      directory: keeps the injection's work.
      label: of the progress bar.

    Returns:
      the injection.

    Raises:
      training.inject.Interrupted: a stop was requested; the last step is saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    chosen = chosen_pairs(job, documents, directory)
    with open_hooks(directory, label, tracking=job_tracking(job, documents)) as hooks:
        continual = ContinualState(start=job.start)
        return inject(job.model, chosen, job.recipe, job.unrelated, directory, continual, hooks, job.teacher)


def run_batch(job: Job, began: float) -> dict:
    """Runs the job; `began` is when, by `time.perf_counter`. Returns the content of results.json."""
    loaded = time.perf_counter()
    answers = measure_systems(job)
    bounded = time.perf_counter()
    done = inject_documents(job, job.documents, job.workdir)
    evaluating = time.perf_counter()
    answers["injected"], drift, seconds = evaluate_injected(job, job.documents, done.lora)
    if done.resumed_from < done.steps or read_measured(job.workdir, INJECTED) is None:  # else it says nothing new
        trained_s = done.teacher_s + done.train_s
        write_measured(job, INJECTED, [measured_group(answers["injected"], trained_s, seconds, NO_COST, drift)])
    reach = job_reach(job, done.lora, answers)
    evaluated = time.perf_counter()
    answers |= measure_trained(job, lambda _: done.lora)
    compared = time.perf_counter()
    if dtype := job.settings.export_dtype:
        with announced(f"merging the adapter into {job.workdir / 'merged'}"):
            merged = merge_for_export(job.model, [(done.lora, job.recipe.lora.scale)])
            save_model(merged, job.model, job.workdir / "merged", dtype)
    timing = {
        "load_s": loaded - began,
        "bounds_s": bounded - loaded,
        "teacher_s": done.teacher_s,
        "train_s": done.train_s,
        "evaluate_s": evaluated - evaluating,
        "compare_s": compared - evaluated,
        "sentence_tokens_per_s": tokens_per_second(done.train_s, done.sentence_tokens),
    }
    extra = {"resumed_from": done.resumed_from} if done.resumed_from else {}
    extra |= {"reach": reach} if reach else {}
    return write_results(job, began, answers, drift, timing, {"steps": done.steps, "fill": done.fill}, extra)
