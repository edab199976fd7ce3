"""From what a user names (work directories, their checkpoints, composed adapters, models) to loaded models.

A work directory is one of job `batch`, one injection of job `single` (WORKDIR/contexts/000), or one sequence of job
`sequential` (WORKDIR/sequences/000). WORKDIR@STEP is a checkpoint of it; of a sequence, the model after STEP
injections. A folder with an adapter.json is an adapter that was composed from a ledger's entries, one with an
adapter_config.json an adapter in PEFT's layout, ours or another's. Everything else is a model, as `load_model` takes
it.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from selfparam_jax.checkpoints import peft
from selfparam_jax.checkpoints.export import check_weights
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.compare.answers import NAMED
from selfparam_jax.compare.candidates import Candidate, ModelSet, adapter_candidate, check_count, model_candidate
from selfparam_jax.distributed import files
from selfparam_jax.jobs.settings import Settings, read_settings
from selfparam_jax.jobs.workdir import PARTS, check_whole, find_record, read_results
from selfparam_jax.models.lora import compose_lora
from selfparam_jax.reports.tables import counted
from selfparam_jax.sequential.ledger import Ledger, read_composed
from selfparam_jax.training.checkpoints import Checkpoints

ASKED = ("context", "question", "answers")  # of a line of predictions.jsonl


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A work directory, as far as a comparison needs it.

    Attributes:
      directory: where the checkpoints or the ledger lie.
      step: the checkpoint's step; of a ledger, the number of injections.
      settings: those in its config.json.
      fingerprint: of the base that it was made from.
      predictions: answers of the injected model at this step, records as in `compare.answers`; None if they were
        not kept.
      note: which answers are missing among these; "" if none is.
    """

    directory: pathlib.Path
    step: int
    settings: Settings
    fingerprint: str
    predictions: list[dict] | None
    note: str = ""


def load_model_set(
    sources: Sequence[str], base_source: str | None = None, unfinished: bool = False
) -> tuple[ModelSet, str]:
    """Loads everything that is compared; what can be checked without a model is checked first.

    The dtype, the prompt format and the number of questions asked at once are the first work directory's. Without one
    they are the defaults of all jobs, and the prompt format is "plain".

    Args:
      sources: names of the candidates, as the module describes them.
      base_source: the model that deltas are measured from; None means that of the first work directory.
      unfinished: whether models whose training has not ended may be compared, with a warning.

    Returns:
      the models, and the path of the general text of the first work directory that has one, or "".

    Raises:
      ValueError, OSError: a source is neither a work directory with a checkpoint nor a model, appears twice, stands
        on another base or has another architecture; or there is no base.
    """
    check_count(len(sources))
    twice = sorted({source for source in sources if sources.count(source) > 1})
    if twice:
        raise ValueError(f"got {twice[0]!r} twice, expected different models; name each once")
    saved = {source: None if is_adapter(source) else find_run(source, unfinished) for source in sources}
    runs = [run for run in saved.values() if run]
    if not runs and base_source is None:
        raise ValueError("got no work directory and no base, expected one of them; give --base=MODEL")
    first = runs[0].settings if runs else Settings(prompt="plain")
    general = next((run.settings.eval.general for run in runs if run.settings.eval.general), "")
    dtype = jnp.dtype(first.dtype)
    load = functools.cache(functools.partial(load_model, dtype=dtype, date=first.date))
    base = load(base_source if base_source is not None else first.model)

    def candidate(source: str, run: SavedRun | None) -> Candidate:
        if is_adapter(source):
            return saved_candidate(source, base, source)
        return run_candidate(source, base, run) if run else model_candidate(source, base, _load_model(source, load))

    candidates = [candidate(source, run) for source, run in saved.items()]
    return ModelSet(base, dtype, first.prompt, first.eval.batch_size, candidates), general


def _load_model(source: str, load) -> Model:
    try:
        check_weights(source)
        return load(source)
    except ValueError as error:
        raise ValueError(f"{source!r} is no work directory, and as a model: {error}") from error


# --- work directories ---------------------------------------------------------------------------------


def find_run(source: str, unfinished: bool = False) -> SavedRun | None:
    """The run that a work directory or WORKDIR@STEP names; None if the source is not one of ours.

    Args:
      source: as the module describes it.
      unfinished: whether the newest checkpoint of a training that has not ended may be taken, with a warning. One
        that is named by its step always may.

    Raises:
      ValueError: one of ours that has no such checkpoint, has not ended, was made by an earlier version, or is the
        work directory of a job that has several models.
    """
    path, step = pathlib.Path(source), None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+)", source)):
        path, step = pathlib.Path(match[1]), int(match[2])
    workdir, record = path.resolve(), find_record(path)
    if record is None and workdir.parent.name in PARTS.values():
        workdir = workdir.parent.parent
        record = find_record(workdir)
    elif record is not None and (job := record["config"].get("job")) in PARTS:
        raise ValueError(
            f"{path} is of job {job!r}, which has several models; give one, such as {path}/{PARTS[job]}/000"
        )
    if record is None:
        if step is not None:
            raise ValueError(f"{source}: {path} is not a work directory (no config.json of a job); correct the path")
        return None
    steps = _steps(path)
    if not steps:
        raise ValueError(f"{path} has no complete checkpoint or injection yet, expected one; run the job first")
    if step not in (None, *steps):
        raise ValueError(f"{source}: got step {step}, expected one of {steps}, the checkpoints that were kept")
    settings = read_settings(record["config"])
    if step is None:
        what = "injection" if (path / "ledger").is_dir() else "step"
        check_whole(path, *_progress(workdir, path, settings), what, unfinished)
    last, step = step in (None, steps[-1]), steps[-1] if step is None else step
    # A finished run has the answers of its last step; a sequence has those of every step.
    kept = last or (path / "ledger").is_dir()
    predictions, note = _predictions(workdir, path.resolve(), step) if kept else (None, "")
    return SavedRun(path, step, settings, record["base_fingerprint"], predictions, note)


def _steps(path: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that can be read; for a ledger, the numbers of injections."""
    if (path / "ledger").is_dir():
        return list(range(1, len(Ledger.open(path / "ledger").active()) + 1))
    saved = path / "checkpoints"
    if not saved.is_dir():
        return []
    with Checkpoints(saved) as checkpoints:
        return checkpoints.steps()


def _progress(workdir: pathlib.Path, path: pathlib.Path, settings: Settings) -> tuple[int, int]:
    """How many steps or injections there are, and are to be; the latter is 0 where it is not known."""
    if (path / "ledger").is_dir():
        done = len(Ledger.open(path / "ledger").entries())
        return done, done if (workdir / "results.json").exists() else settings.sequential.length
    with Checkpoints(path / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        return step, checkpoints.read_record(step).get("steps", 0)


def _predictions(workdir: pathlib.Path, path: pathlib.Path, step: int) -> tuple[list[dict] | None, str]:
    """The candidate's answers of a finished job, for one of its models, and a note if some are missing.

    Args:
      workdir: of the job.
      path: of the model: the work directory, or an injection or a sequence in it.
      step: of a sequence, the number of injections.
    """
    if not (workdir / "results.json").exists():
        return None, ""
    records, results = files.read_lines(workdir / "predictions.jsonl"), read_results(workdir)
    system = next(each["name"] for each in results["systems"] if each["role"] == "candidate")
    for number, record in enumerate(records, start=1):
        if lacks := [name for name in ASKED if name not in record]:
            raise ValueError(
                f"{workdir / 'predictions.jsonl'}, line {number}: got no {lacks[0]!r}, expected a question with its "
                "answers; remove results.json and run the job again: nothing is trained again"
            )
    given = {_question_of(record): record[system] for record in records if system in record}
    lines, total = dict.fromkeys(map(_question_of, records)), results.get("num_questions", len(records))
    lost = [question for question in lines if question not in given]
    if path != workdir:
        given = _own_answers(path, step)
        lost, total = [question for question in given if question not in lines], len(given)
    found = [
        {**{name: record[name] for name in ASKED}, "answer": given[_question_of(record)]}
        for record in records
        if _question_of(record) in given
    ]
    return found or None, _missing(workdir, lost, len(found), total)


def _missing(workdir: pathlib.Path, lost: Sequence[tuple[str, str]], found: int, total: int) -> str:
    """What to say of answers that a job gave, and that its predictions.jsonl lacks; "" if there is none.

    Args:
      workdir: of the job.
      lost: questions without an answer, as far as they are known; lines that are gone do not tell theirs.
      found, total: how many have their answer, and how many were asked.
    """
    if found >= total:
        return ""
    names = [f"{question!r} ({context})" for context, question in lost[:NAMED]]
    gone = total - found - len(lost)
    names += [f"{len(lost) - NAMED} more"] if len(lost) > NAMED else []
    names += [f"{counted(gone, 'line')} missing at its end"] if gone > 0 else []
    missing = f"{total - found} of {total} questions ({', '.join(names)})"
    return (
        f"{workdir / 'predictions.jsonl'} has no answer to {missing}, so scores are of the others; remove "
        "results.json and run the job again: nothing is trained again"
    )


def _question_of(record: dict) -> tuple[str, str]:
    return record["context"], record["question"]


def _own_answers(path: pathlib.Path, step: int) -> dict[tuple[str, str], dict]:
    """Answers of one injection, or after `step` injections of a sequence, by document and question.

    There are none of a sequence from which an injection was taken out: its model is another one now.
    """
    if path.parent.name == PARTS["single"]:
        evaluation = path / "injected.json"
    else:
        evaluation = path / "evaluations" / f"{step:03d}.json"
        ledger = Ledger.open(path / "ledger")
        if len(ledger.active()) < len(ledger.entries()):
            return {}
    answers = files.read_json(evaluation, keys=("answers",))["answers"] if evaluation.exists() else []
    return {_question_of(answer): answer for answer in answers}


def run_candidate(name: str, base: Model, run: SavedRun) -> Candidate:
    """The base with the adapter of a checkpoint or the adapters of a ledger.

    Raises:
      ValueError: the run was made from another base.
    """
    if run.fingerprint != base.fingerprint:
        raise ValueError(
            f"{name} was made from {run.settings.model!r} with fingerprint {run.fingerprint[:12]}, but the base is "
            f"{base.name!r} with {base.fingerprint[:12]}; compare runs of one base"
        )
    notes = (run.note,) if run.note else ()
    if (run.directory / "ledger").is_dir():
        ledger = Ledger.open(run.directory / "ledger", base.fingerprint)
        adapters = ledger.adapters([entry.id for entry in ledger.active()[: run.step]])
        made = adapter_candidate(name, base, compose_lora(adapters), 1.0, run.predictions)
        return dataclasses.replace(made, notes=notes)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    with Checkpoints(run.directory / "checkpoints") as checkpoints:
        lora = checkpoints.read_adapter(run.step, device)
    made = adapter_candidate(name, base, lora, run.settings.lora.scale, run.predictions)
    return dataclasses.replace(made, notes=notes)


def is_adapter(source: str) -> bool:
    """Whether a path is the folder of an adapter: composed from a ledger, or in PEFT's layout."""
    return (pathlib.Path(source) / peft.CONFIG).is_file() or read_composed(source) is not None


def saved_candidate(name: str, base: Model, directory: str) -> Candidate:
    """The base with the adapter in a folder (`is_adapter`).

    Raises:
      ValueError: it is damaged, no plain LoRA, or belongs to another base.
    """
    if found := read_composed(directory):
        return _composed_candidate(name, base, *found)
    lora, scale, _ = peft.load_adapter(directory, base)
    return adapter_candidate(name, base, lora, scale)


def _composed_candidate(name: str, base: Model, record: dict, lora: dict) -> Candidate:
    """The base with a composed adapter.

    Args:
      name: what to call it.
      base: the model below the adapter.
      record: the content of its adapter.json (`ledger.read_composed`).
      lora: its adapter tree.

    Returns:
      the candidate.

    Raises:
      ValueError: it was composed on another base.
    """
    if record["base_fingerprint"] != base.fingerprint:
        raise ValueError(
            f"{name} stands on a base with fingerprint {record['base_fingerprint'][:12]}, but the base is "
            f"{base.name!r} with {base.fingerprint[:12]}; compare adapters of one base, or give --base=MODEL"
        )
    return adapter_candidate(name, base, lora, record["scale"])
