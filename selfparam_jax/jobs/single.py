"""Job `single`: each document on its own, from the untouched base; mean and spread over documents."""

import pathlib
import time
from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import group_passages
from selfparam_jax.distributed import files
from selfparam_jax.distributed.mesh import replicated
from selfparam_jax.evaluation import questions
from selfparam_jax.evaluation.systems import NO_COST
from selfparam_jax.jobs.batch import inject_documents
from selfparam_jax.jobs.evaluation import INJECTED, evaluate_injected
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.passages import join_answers
from selfparam_jax.jobs.results import tokens_per_second, write_results
from selfparam_jax.jobs.systems import (
    mean_numbers,
    measure_systems,
    measure_trained,
    measure_with_adapters,
    measured_group,
    write_measured,
)
from selfparam_jax.jobs.workdir import check_whole
from selfparam_jax.training.checkpoints import Checkpoints


def injection_directory(workdir: pathlib.Path, index: int) -> pathlib.Path:
    """Where the job works on one document."""
    return workdir / "contexts" / f"{index:03d}"


def read_adapter(job: Job, directory: pathlib.Path, unfinished: bool = False) -> dict:
    """The newest adapter of a directory that `inject` worked in.

    Args:
      job: whose directory it is.
      directory: of the job, or of one of its injections.
      unfinished: whether one whose training has not ended may be taken, with a warning.

    Raises:
      ValueError: there is no complete checkpoint yet, or the training has not ended.
    """
    if not (directory / "checkpoints").exists():
        raise ValueError(
            f"{directory} has no checkpoints: nothing was trained yet, or they were deleted; run the job"
        )
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise ValueError(f"{directory / 'checkpoints'} has no complete checkpoint yet; run the job first")
        check_whole(directory, step, checkpoints.read_record(step).get("steps", 0), "step", unfinished)
        return checkpoints.read_adapter(step, replicated(job.model.mesh))


# What injected.json holds.
PART = ("measured", "answers", "drift", "teacher_s", "train_s", "evaluate_s", "sentence_tokens", "steps", "fill")


def run_single(job: Job, began: float) -> dict:
    """Runs the job; `began` is when, by `time.perf_counter`. Returns the content of results.json."""
    loaded = time.perf_counter()
    answers = measure_systems(job)
    bounded = time.perf_counter()
    totals = {"teacher_s": 0.0, "train_s": 0.0, "evaluate_s": 0.0}
    tokens = steps = 0
    injected, drifts, fills, groups = [], [], [], []
    documents = group_passages(job.documents)
    directories = [injection_directory(job.workdir, index) for index in range(len(documents))]
    for index, (document, directory) in enumerate(zip(documents, directories, strict=True)):
        finished = directory / "injected.json"
        if finished.exists():
            part = files.read_json(finished, keys=PART)
        else:
            part = inject_single(job, document.passages, directory, f"{index + 1}/{len(documents)} {document.id}")
            files.write_json(finished, part, sealed=True)
        injected += questions.match_answers(document.passages, part["answers"])
        drifts.append(part["drift"])
        fills.append(part["fill"])
        groups.append(part["measured"])
        totals = {name: totals[name] + part[name] for name in totals}
        tokens, steps = tokens + part["sentence_tokens"], steps + part["steps"]
    gather_lines(job.workdir, [document.id for document in documents], directories)
    began_asking = time.perf_counter()
    write_measured(job, INJECTED, groups)
    answers |= measure_with_adapters(job, lambda place: read_adapter(job, directories[place]))
    totals["evaluate_s"] += time.perf_counter() - began_asking
    began_comparing = time.perf_counter()
    answers |= measure_trained(job, lambda number: read_adapter(job, directories[number]))
    totals["compare_s"] = time.perf_counter() - began_comparing
    timing = {
        "load_s": loaded - began,
        "bounds_s": bounded - loaded,
        **totals,
        "sentence_tokens_per_s": tokens_per_second(totals["train_s"], tokens),
    }
    joined = join_answers(job.documents, injected)
    f1 = [questions.summarize([group])["f1"] for group in joined if group]
    spread = {}
    if f1:
        spread = {"f1_mean": np.mean(f1), "f1_std": np.std(f1), "f1_min": min(f1), "f1_max": max(f1)}
    extra = {"spread": {name: float(value) for name, value in spread.items()}}
    training = {"steps": steps, "fill": float(np.mean(fills))}
    return write_results(job, began, {**answers, "injected": injected}, mean_numbers(drifts), timing, training, extra)


def inject_single(job: Job, documents: Sequence[Document], directory: pathlib.Path, label: str) -> dict:
    """Trains and asks one document from the untouched base.

    Args:
      job: recipe, model and unrelated texts.
      documents: the one to inject, or the passages of it.
      directory: keeps the injection's work.
      label: of the progress bar.

    Returns:
      what injected.json holds: "answers" by document and question, "drift", "measured", seconds, tokens and steps.
    """
    done = inject_documents(job, documents, directory, label)
    began = time.perf_counter()
    answers, drift, seconds = evaluate_injected(job, documents, done.lora)
    return {
        "measured": measured_group(answers, done.teacher_s + done.train_s, seconds, NO_COST, drift),
        "answers": questions.answer_records(documents, answers),
        "drift": drift,
        "teacher_s": done.teacher_s,
        "train_s": done.train_s,
        "evaluate_s": time.perf_counter() - began,
        "sentence_tokens": done.sentence_tokens,
        "steps": done.steps,
        "fill": done.fill,
    }


def gather_lines(workdir: pathlib.Path, ids: Sequence[str], directories: Sequence[pathlib.Path]) -> None:
    """The work directory's targets.jsonl and metrics.jsonl: those of all injections, one document after another."""
    for name in ("targets.jsonl", "metrics.jsonl"):
        lines = []
        for document, directory in zip(ids, directories, strict=True):
            for record in files.read_log(directory / name):
                lines.append({**record, "context": record.get("context", document)})
        files.write_log(workdir / name, lines)
