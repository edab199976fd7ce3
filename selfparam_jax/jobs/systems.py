"""The systems of a job: prepared for its documents, asked, and what that took; each resumes where it stopped.

answers/NAME.jsonl             a system's answers, by document and question
systems/NAME/measured.json     its own settings, seconds, cost, drift and health
systems/NAME/...               its work: an index, checkpoints
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from selfparam_jax.baselines.registry import SYSTEMS, system_name
from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import group_passages
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import questions
from selfparam_jax.evaluation.drift import NOT_MEASURED
from selfparam_jax.evaluation.health import answer_health, is_ruined
from selfparam_jax.evaluation.systems import Setup, SystemEntry
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.evaluation import INJECTED, Answers, chosen_pairs, count_questions
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.passages import join_answers
from selfparam_jax.jobs.progress import open_hooks
from selfparam_jax.reports.tables import counted


def system_names(job: Job) -> list[str]:
    """The systems that a job asks, in the order of reports."""
    asked = {*map(system_name, job.settings.systems), INJECTED}
    return [name for name in SYSTEMS if name in asked]


def missing_systems(job: Job, results: dict) -> list[str]:
    """The systems that a finished job is asked for now and that its results do not have.

    Raises:
      ValueError: one was measured with other settings of its own.
    """
    if job.settings.job == "recommend":
        return []
    known = {system["name"] for system in results["systems"]}
    return [name for name in system_names(job) if name not in known or not _is_measured(job, name)]


def measure_systems(job: Job) -> dict[str, Answers]:
    """Answers of the systems that need no training; each is kept in answers/NAME.jsonl, its cost in systems/NAME."""
    return _measure_all(job, lambda entry: not (entry.trained or entry.needs_injection or entry.needs_adapters))


def measure_trained(job: Job, adapter_of: Callable[[int], dict]) -> dict[str, Answers]:
    """Answers of the systems that are trained, and of those that need the job's own adapter.

    Args:
      job: what was injected.
      adapter_of: gives the job's adapter for each group of documents that are injected together, by its number.

    Returns:
      answers by system.
    """
    return _measure_all(job, lambda entry: entry.trained or entry.needs_injection, adapter_of)


def measure_with_adapters(job: Job, adapters: Callable[[int], dict]) -> dict[str, Answers]:
    """Answers of the systems that need an adapter for each document; `adapters` gives it by the place."""
    return _measure_all(job, lambda entry: entry.needs_adapters, adapters)


def _measure_all(
    job: Job, chosen: Callable[[SystemEntry], bool], adapters: Callable[[int], dict] | None = None
) -> dict[str, Answers]:
    entries = (SYSTEMS[name] for name in system_names(job) if name != INJECTED)
    found = {entry.name: _measure(job, entry, adapters) for entry in entries if chosen(entry)}
    return {name: answers for name, answers in found.items() if answers is not None}


MEASURED = ("options", "groups")


def measured_path(workdir: pathlib.Path, name: str) -> pathlib.Path:
    """The record of what a system took: a list with an entry for each group of documents that it was prepared for."""
    return workdir / "systems" / name / "measured.json"


def read_measured(workdir: pathlib.Path, name: str) -> dict | None:
    """What a system took, over all groups of documents that it was prepared for; None where nothing was measured."""
    path = measured_path(workdir, name)
    return join_measured(_read_groups(path)["groups"]) if path.exists() else None


def _read_groups(path: pathlib.Path) -> dict:
    record = files.read_json(path, keys=MEASURED)
    if not (
        isinstance(record["groups"], list)
        and record["groups"]
        and all(isinstance(each, dict) for each in record["groups"])
    ):
        raise ValueError(f"{path}: got no list of objects as 'groups'; remove the file, and it is measured again")
    return record


def join_measured(groups: Sequence[dict]) -> dict:
    """The records of several groups as one: seconds are added, costs, drift and health are means."""
    if why := next((group["unavailable"] for group in groups if "unavailable" in group), None):
        return {"unavailable": why}
    joined = {name: _sum([group[name] for group in groups]) for name in ("prepare_s", "answer_s", "questions")}
    for name in ("cost", "drift", "health"):
        joined[name] = mean_numbers([group[name] for group in groups])
    joined["groups"] = len(groups)
    joined["collapsed"] = sum(is_ruined(group["drift"]) for group in groups)
    if steps := [group["healthy"] for group in groups if group.get("healthy")]:
        joined["healthy"] = steps
    return joined


def _sum(values: Sequence[float | None]) -> float | None:
    return None if None in values else sum(values)


def mean_numbers(entries: Sequence[dict]) -> dict:
    """The mean of every number of several records; None where one of them has none."""
    return {
        name: None if None in (values := [entry[name] for entry in entries]) else float(np.mean(values))
        for name in entries[0]
    }


def _measure(job: Job, entry: SystemEntry, adapters: Callable[[int], dict] | None) -> Answers | None:
    """A system's answers; None if it cannot be asked with this model."""
    path, record = job.workdir / "answers" / f"{entry.name}.jsonl", measured_path(job.workdir, entry.name)
    if _is_measured(job, entry.name) and path.exists():
        try:
            return questions.match_answers(job.documents, files.read_lines(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}; remove the file, and the questions are asked again") from error
    answers: Answers = [[] for _ in job.documents]
    groups = []
    for number, places in enumerate(_groups(job, entry)):
        folder = record.parent / f"{number:03d}" if len(places) < len(job.documents) else record.parent
        documents = [job.documents[place] for place in places]
        setup = system_setup(job, entry, folder)
        if entry.needs_injection:
            setup = dataclasses.replace(setup, lora=adapters(number))
        if entry.needs_adapters:
            setup = dataclasses.replace(setup, adapters=adapters)
        found, group = _ask(job, entry, documents, setup)
        groups.append(group)
        if found is None:
            break
        for place, answered in zip(places, found, strict=True):
            answers[place] = answered
    if "unavailable" in groups[-1]:
        logging.warning("%s is left out: %s", entry.name, groups[-1]["unavailable"])
        write_measured(job, entry.name, groups[-1:])
        return None
    joined = join_answers(job.documents, answers)
    if scores := questions.summarize(joined):
        logging.info("%s: F1 %.3f over %s", entry.name, scores["f1"], counted(len(joined), "document"))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, questions.answer_records(job.documents, answers), sealed=True)
    write_measured(job, entry.name, groups)
    return answers


def _is_measured(job: Job, name: str) -> bool:
    """Whether a system has been measured; one that could not be asked is tried again with other settings.

    Raises:
      ValueError: it was measured with other settings of its own.
    """
    path = measured_path(job.workdir, name)
    if not path.exists():
        return False
    record, options = _read_groups(path), _options_record(job, name)
    if record["options"] == options:
        return True
    if "unavailable" in record["groups"][0]:
        return False
    changes = "\n".join(files.differences(record["options"] or {}, options or {}))
    raise ValueError(
        f"{path.parent} was measured with other settings baselines.{name}:\n{changes}\nRemove that folder to "
        "measure it again, choose another directory, or restore the settings"
    )


def _groups(job: Job, entry: SystemEntry) -> list[list[int]]:
    """Which documents (their places) a system is prepared for together: what the job injects together."""
    sources = group_passages(job.documents)
    # Bounds read each question's own document; an adapter bank is of all documents.
    if entry.role != "baseline" or entry.needs_adapters or job.settings.job not in ("single", "sequential"):
        return [list(range(len(job.documents)))]
    length = 1 if job.settings.job == "single" else job.settings.sequential.length
    together = [sources[begin : begin + length] for begin in range(0, len(sources), length)]
    return [[place for source in group for place in source.places] for group in together]


def options_of(job: Job, name: str) -> object:
    """The own settings of a system; None if it has none."""
    return getattr(job.settings.baselines, name, None)


def _options_record(job: Job, name: str) -> dict | None:
    options = options_of(job, name)
    return None if options is None else dataclasses.asdict(options)


def system_setup(job: Job, entry: SystemEntry, folder: pathlib.Path | None) -> Setup:
    """What a system of a job is made from; `folder` keeps its work."""
    return Setup(
        job.model,
        job.prompt,
        job.settings.eval.batch_size,
        lora_scale=job.recipe.lora.scale,
        options=options_of(job, entry.name),
        recipe=job.recipe,
        unrelated=job.unrelated,
        teacher=job.teacher,
        general=job.general_text if job.general and entry.trained else None,
        directory=folder,
        open_hooks=open_hooks,
    )


def _ask(job: Job, entry: SystemEntry, documents: list[Document], setup: Setup) -> tuple[Answers | None, dict]:
    """A system's answers about some documents, and what it took; None for the answers if it cannot be asked."""
    if why := entry.unavailable(setup):
        return None, {"unavailable": why}
    if entry.trained:  # on the pairs that the job trains on
        setup.directory.mkdir(parents=True, exist_ok=True)
        documents = chosen_pairs(job, documents, setup.directory)
    system = entry.make(setup)
    with announced(f"{entry.name}: preparing {counted(len(documents), 'document')}"):
        began = time.perf_counter()
        system.prepare(documents)
    prepared = time.perf_counter()
    with announced(f"{entry.name}: answering {counted(count_questions(documents), 'question')}"):
        answers = system.answer(documents)
    answered = time.perf_counter()
    drift = system.drift(job.general_text) if job.general else NOT_MEASURED
    # A system that is trained may have been stopped and resumed, and looks at its own health in between.
    took = system.train_s if entry.trained else prepared - began + system.earlier_s
    group = measured_group(answers, took, answered - prepared, system.cost(), drift)
    if (healthy := system.healthy()) is not None:
        step, model = healthy
        then = questions.summarize(join_answers(documents, model.answer(documents)))
        group["healthy"] = {"step": step, "f1": then and then["f1"], "drift": model.drift(job.general_text)}
    return answers, group


def measured_group(answers: Answers, prepare_s: float, answer_s: float | None, cost: dict, drift: dict) -> dict:
    """What answering questions about some documents took.

    Args:
      answers: per document and question.
      prepare_s, answer_s: seconds of reading, indexing or training, and of answering; None where not measured.
      cost: of `System.cost`.
      drift: of `System.drift`.

    Returns:
      an entry of measured.json.
    """
    flat = [answer for group in answers for answer in group]
    return {
        "prepare_s": prepare_s,
        "answer_s": answer_s,
        "questions": len(flat),
        "cost": cost,
        "drift": {name: drift[name] for name in NOT_MEASURED},
        "health": answer_health([answer["answer"] for answer in flat]),
    }


def write_measured(job: Job, name: str, groups: Sequence[dict]) -> None:
    """Keeps what a system took (`measured_group`), also that of the job's own injections."""
    path = measured_path(job.workdir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"options": _options_record(job, name), "groups": list(groups)}, sealed=True)
