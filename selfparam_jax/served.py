"""The model that the ledger of a sequential job stands for: what an undo would change in it, and its export."""

import pathlib

from selfparam_jax import jobs, sequential
from selfparam_jax.export import export_merged
from selfparam_jax.injection import Run
from selfparam_jax.ledger import Ledger


def reopen_course(ledger: Ledger) -> tuple[Run, sequential.Course]:
    """The run that a ledger belongs to, and its sequence.

    Raises:
      ValueError: it belongs to none.
    """
    sequence = ledger.directory.resolve().parent
    run = jobs.reopen(sequence.parents[1])
    courses = {course.directory.resolve(): course for course in sequential.courses_of(run)}
    if sequence not in courses:
        raise ValueError(f"{sequence} is no sequence of {run.workdir}; give the --workdir of a sequential job")
    return run, courses[sequence]


def measure_undo(ledger: Ledger, entry_id: str) -> dict:
    """What would be forgotten, and what would stay, without an entry of a sequential job's ledger.

    Returns:
      `sequential.compare_choices` of the active entries with and without it, and "undone": the context's name.
    """
    entry, active = ledger.find(entry_id), [each.id for each in ledger.active()]
    run, course = reopen_course(ledger)
    after = [each for each in active if each != entry.id]
    return {"undone": entry.name, **sequential.compare_choices(run, course, active, after)}


def export_ledger(ledger: Ledger, out: str) -> None:
    """Base and all active entries, merged, as a Hugging Face directory.

    Raises:
      ValueError: there is something at `out`.
    """
    if pathlib.Path(out).exists():
        raise ValueError(f"{out} is there already; give a new directory")
    run, _ = reopen_course(ledger)
    export_merged(run, ledger.adapters(), pathlib.Path(out))


def exported_before(ledger: Ledger) -> pathlib.Path | None:
    """The model that the job exported when it ended; None if it did not."""
    merged = ledger.directory.resolve().parents[2] / "merged"
    return merged if merged.exists() else None
