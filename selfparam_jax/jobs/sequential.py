"""Job `sequential`: one document after the other into the same weights, all questions after each."""

import dataclasses
import functools
import time

import numpy as np
from absl import logging

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.checkpoints.export import merge_for_export, save_model
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import questions
from selfparam_jax.evaluation.systems import NO_COST, SystemEntry
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.evaluation import INJECTED, Answers, chosen_pairs
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.progress import open_hooks
from selfparam_jax.jobs.results import tokens_per_second, write_results
from selfparam_jax.jobs.single import gather_lines
from selfparam_jax.jobs.systems import (
    mean_numbers,
    measure_systems,
    measured_group,
    measured_path,
    system_names,
    system_setup,
    write_measured,
)
from selfparam_jax.jobs.tracking import job_tracking
from selfparam_jax.reports import sequence as sequence_report
from selfparam_jax.reports.tables import counted
from selfparam_jax.sequential import sequence as sequences
from selfparam_jax.sequential.summary import summarize_sequences


def sequence_setup(job: Job) -> sequences.SequenceSetup:
    """What all injections of the job share."""
    return sequences.SequenceSetup(
        job.model,
        job.recipe,
        job.settings.sequential,
        job.unrelated,
        job.general,
        job.settings.eval.batch_size,
        job.record,
        functools.partial(open_hooks, tracking=job_tracking(job, job.documents)),
        job.teacher,
    )


def sequences_of(job: Job) -> list[sequences.DocumentSequence]:
    """The job's documents cut into sequences."""
    return sequences.split_documents(job.documents, job.settings.sequential, job.workdir / "sequences")


def run_sequential(job: Job, began: float) -> dict:
    """Runs the job; `began` is when, by `time.perf_counter`. Returns the content of results.json."""
    loaded = time.perf_counter()
    answers = measure_systems(job)
    bounded = time.perf_counter()
    setup, cut = sequence_setup(job), sequences_of(job)
    done = []
    for sequence in cut:
        done.append(sequences.run_sequence(setup, sequence))
        sequence_report.write_report(job.workdir, summarize_sequences(done))
    directories = [each.injection_directory(i) for each in cut for i in range(len(each.sources))]
    gather_lines(job.workdir, [source.id for each in cut for source in each.sources], directories)
    notes = [note for sequence in done for note in sequence["notes"]]
    names = ("teacher_s", "train_s", "steps", "sentence_tokens")
    totals = {name: sum(note[name] for note in notes) for name in names}
    timing = {
        "load_s": loaded - began,
        "bounds_s": bounded - loaded,
        "teacher_s": totals["teacher_s"],
        "train_s": totals["train_s"],
        "evaluate_s": sum(row["seconds"] for sequence in done for row in sequence["rows"]),
        "injection_s": float(np.mean([note["seconds"] for note in notes])),
        "sentence_tokens_per_s": tokens_per_second(totals["train_s"], totals["sentence_tokens"]),
    }
    if (dtype := job.settings.export_dtype) and len(cut) == 1:
        with announced(f"merging all adapters into {job.workdir / 'merged'}"):
            merged = merge_for_export(job.model, cut[0].ledger(job.model).adapters())
            save_model(merged, job.model, job.workdir / "merged", dtype)
    injected = []
    for sequence, found in zip(cut, done, strict=True):
        injected += questions.match_answers(sequence.documents, found["rows"][-1]["answers"])
    drift = mean_numbers([sequence["rows"][-1]["drift"] for sequence in done])
    training = {"steps": totals["steps"], "fill": float(np.mean([note["fill"] for note in notes]))}
    extra = {"sequential": summarize_sequences(done)}
    write_measured(
        job,
        INJECTED,
        [measured_group(injected, totals["teacher_s"] + totals["train_s"], None, NO_COST, drift)],
    )
    began_comparing = time.perf_counter()
    for entry in (SYSTEMS[name] for name in system_names(job)):
        if entry.trained:
            answers[entry.name], summary = measure_sequences(job, setup, cut, entry)
            extra.setdefault("sequential_systems", {})[entry.name] = summary
    timing["compare_s"] = time.perf_counter() - began_comparing
    return write_results(job, began, {**answers, INJECTED: injected}, drift, timing, training, extra)


def measure_sequences(
    job: Job, setup: sequences.SequenceSetup, cut: list[sequences.DocumentSequence], entry: SystemEntry
) -> tuple[Answers, dict]:
    """Trains a system on one document after another, as the job injects them, and asks all questions after each.

    Args:
      job: whose documents they are.
      setup: what all evaluations share.
      cut: the sequences.
      entry: a system whose training gives an adapter; each is merged before the next is trained.

    Returns:
      its answers at the end, per document and question, and `summary.summarize_sequences` of its matrices.
    """
    answers, done, groups = [], [], []
    for sequence in cut:
        rows, notes = _system_sequence(job, setup, sequence, entry)
        done.append({"rows": rows, "entries": [], "notes": notes})
        found = questions.match_answers(sequence.documents, rows[-1]["answers"])
        answers += found
        groups.append(measured_group(found, sum(note["seconds"] for note in notes), None, NO_COST, rows[-1]["drift"]))
    write_measured(job, entry.name, groups)
    return answers, summarize_sequences(done)


def _system_sequence(
    job: Job, setup: sequences.SequenceSetup, sequence: sequences.DocumentSequence, entry: SystemEntry
) -> tuple[list[dict], list[dict]]:
    """Evaluations after each number of documents, and the seconds of each training; finished ones are read."""
    folder = measured_path(job.workdir, entry.name).parent / f"{sequence.number:03d}"
    rows, notes, growing = [], [], sequences.GrowingModel(setup.base)
    for done in range(len(sequence.sources) + 1):
        if done:
            directory = folder / f"{done - 1:03d}"
            now = dataclasses.replace(growing.model(), fingerprint=f"{setup.base.fingerprint}+{entry.name}{done - 1}")
            system = entry.make(dataclasses.replace(system_setup(job, entry, directory), model=now, general=None))
            directory.mkdir(parents=True, exist_ok=True)
            system.prepare(chosen_pairs(job, sequence.sources[done - 1].passages, directory))
            growing.add_adapter(system.lora, system.recipe.lora.scale)
            notes.append({"seconds": system.train_s})
        path = folder / "evaluations" / f"{done:03d}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, sequences.evaluate_model(setup, growing.model(), sequence.documents), sealed=True)
        rows.append(files.read_json(path, keys=("answers", "drift")))
        logging.info("%s, after %d of %s", entry.name, done, counted(len(sequence.sources), "document"))
    return rows, notes
