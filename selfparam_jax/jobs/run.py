"""A job, from a configuration to a work directory.

    documents -> targets -> teacher states -> training -> evaluation -> merged model -> report

Every phase leaves its result in a file, or in a checkpoint; the same command resumes where it stopped.
"""

import dataclasses
import pathlib
import time

import jax
from absl import logging
from ml_collections import ConfigDict

from selfparam_jax.checkpoints.export import check_saved
from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import group_passages
from selfparam_jax.distributed.watchdog import Watchdog
from selfparam_jax.inference.decoding import answering
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.batch import run_batch
from selfparam_jax.jobs.inputs import Job, bind_job, prepare, start_backend
from selfparam_jax.jobs.lock import WorkdirLock
from selfparam_jax.jobs.recommend import run_recommend
from selfparam_jax.jobs.sequential import run_sequential
from selfparam_jax.jobs.settings import SELF, read_settings
from selfparam_jax.jobs.single import run_single
from selfparam_jax.jobs.synthesis import check_learnable, draw_unrelated, two_step_documents, write_missing_pairs
from selfparam_jax.jobs.systems import missing_systems
from selfparam_jax.jobs.tracking import check_trackers, track_results
from selfparam_jax.jobs.workdir import check_own, read_results, stopped_words, storage_trouble
from selfparam_jax.reports.tables import counted
from selfparam_jax.training.inject import Interrupted

RUNS = {"batch": run_batch, "single": run_single, "sequential": run_sequential, "recommend": run_recommend}


def run_job(config: ConfigDict, workdir: str | pathlib.Path) -> dict:
    """Runs the configured job in a work directory, resuming where an earlier run of it stopped.

    Returns:
      the content of results.json.

    Raises:
      ValueError, OSError: input that cannot be used, or a directory that another job works in; nothing was written.
      jobs.workdir.StorageError: the work directory is gone, or its disk is full or broken.
      training.inject.Interrupted, training.trainer.NotFiniteError: training stopped; what was done is saved.
    """
    began = time.perf_counter()
    check_trackers(read_settings(config))
    compilations = start_backend(config.compilation_cache)
    if jax.process_count() == 1:  # else another may be making it just now
        check_own(pathlib.Path(workdir))
    with WorkdirLock(workdir) as lock:
        with announced("reading and checking all input, loading the model"):
            job = prepare(config, workdir)
        if lock.acquire():  # `prepare` has made the directory; another job may have, at the same time
            bind_job(job, config)
        try:
            with answering(job.model.name):
                results = _run(job, began)
        except Interrupted:
            raise
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(stopped_words(job.workdir)) from stop
        except Exception as error:
            if trouble := storage_trouble(job.workdir, error):
                raise trouble from error
            raise
    logging.info(
        "%s compiled or read from the cache (%d of them) in %.0f s",
        counted(compilations.programs, "program"), compilations.from_cache, compilations.seconds,
    )  # fmt: skip
    return results


def _run(job: Job, began: float) -> dict:
    """Runs a job in its work directory; returns the content of results.json."""
    finished = job.workdir / "results.json"
    # Before anything is trained that ends with it.
    merged = job.workdir / "merged"
    check_saved(merged, f"delete {merged} and {finished}, and run the job again: nothing is trained again")
    if finished.exists():
        results = read_results(job.workdir)
        if not (missing := missing_systems(job, results)):
            logging.info("%s is complete; nothing to do", job.workdir)
            return results
        logging.info("%s is complete but for %s", job.workdir, ", ".join(missing))
    logging.info("%s: %s, model %s", job.settings.job, counted(len(job.documents), "document"), job.model.name)
    job = with_written_texts(job)
    check_learnable(job.documents, job.settings.job, job.recipe)
    with Watchdog(job.workdir, job.settings.mesh.stall_limit_s):
        results = RUNS[job.settings.job](job, began)
    track_results(job, results)
    return results


def _with_groups(job: Job, documents: list[Document]) -> list[Document]:
    """The documents with those that are read together for questions that need two of them, in each sequence."""
    if not job.recipe.targets.two_step_pairs:
        return documents
    sources = group_passages(documents)
    length = {"single": 1, "sequential": job.settings.sequential.length}.get(job.settings.job, len(sources))
    made, groups = [], []
    for begin in range(0, len(sources), length):
        together = [each for source in sources[begin : begin + length] for each in source.passages]
        found = two_step_documents(together, job.recipe, job.model, job.prompt)
        made, groups = made + found[: len(together)], groups + found[len(together) :]
    return made + groups


def with_written_texts(job: Job) -> Job:
    """The job with all that is written for it: pairs, and unrelated text."""
    recipe, settings = job.recipe, job.settings
    writes_into_file = recipe.generator.file and recipe.targets.generator != "auto"  # "auto" only reads it
    path = pathlib.Path(recipe.generator.file) if writes_into_file else job.workdir / "pairs.jsonl"
    documents = write_missing_pairs(job.documents, recipe, path, job.model, job.prompt, job.teacher)
    if job.teacher is not None:
        job.teacher.let_go()
    job = dataclasses.replace(job, documents=_with_groups(job, documents))
    if settings.unrelated == SELF and recipe.targets.unrelated_per_epoch:
        path, size = job.workdir / "unrelated.jsonl", settings.eval.batch_size
        texts = draw_unrelated(job.model, job.prompt, recipe, settings.texts_wanted, path, size)
        job = dataclasses.replace(job, unrelated=texts)
    return job
