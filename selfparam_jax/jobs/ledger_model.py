"""The model that the ledger of a sequential job stands for: what an undo would change in it, and its export."""

import contextlib
import pathlib

from selfparam_jax.jobs.export import export_workdir
from selfparam_jax.jobs.inputs import Job, reopen
from selfparam_jax.jobs.lock import WorkdirLock
from selfparam_jax.jobs.sequential import sequence_setup, sequences_of
from selfparam_jax.sequential.ledger import Ledger
from selfparam_jax.sequential.sequence import DocumentSequence, compare_choices


def reopen_sequence(ledger: Ledger) -> tuple[Job, DocumentSequence]:
    """The job that a ledger belongs to, and its sequence.

    Raises:
      ValueError: it belongs to none.
    """
    directory = ledger.directory.resolve().parent
    job = reopen(directory.parents[1])
    sequences = {sequence.directory.resolve(): sequence for sequence in sequences_of(job)}
    if directory not in sequences:
        raise ValueError(f"{directory} is no sequence of {job.workdir}; give the directory of a sequential job")
    return job, sequences[directory]


def measure_undo(ledger: Ledger, entry_id: str) -> dict:
    """What would be forgotten, and what would stay, without an entry of a sequential job's ledger.

    Returns:
      `sequence.compare_choices` of the active entries with and without it, and "undone": the document's id.
    """
    entry, active = ledger.find(entry_id), [each.id for each in ledger.active()]
    job, sequence = reopen_sequence(ledger)
    after = [each for each in active if each != entry.id]
    return {"undone": entry.name, **compare_choices(sequence_setup(job), sequence, active, after)}


def export_ledger(ledger: Ledger, out: str | pathlib.Path, form: str = "hf", dtype: str | None = None) -> dict:
    """Writes base and all active entries, as `export_workdir` does.

    Args:
      ledger: of a sequence.
      out: a new directory.
      form: of `export.FORMATS`.
      dtype: of the weights; None as `export_workdir` has it.

    Returns:
      what the round trip found.

    Raises:
      ValueError: there is something at `out`, an entry was changed, is missing or out of order, no entry is active,
        or the files do not give the model back.
    """
    if pathlib.Path(out).exists():
        raise ValueError(f"{out} is there already; give a new directory")
    if problems := ledger.verify():
        raise ValueError(
            f"{ledger.directory} is not as it was written: {problems[0]} ({len(problems)} problems; `selfparam "
            "ledger WORKDIR verify` lists them); restore it from a copy, or give the command of a stopped job again"
        )
    return export_workdir(ledger.directory, form, out, dtype)


def lock_job(ledger: Ledger) -> contextlib.AbstractContextManager:
    """The lock of the work directory that a ledger belongs to; nothing if it belongs to none."""
    directory = ledger.directory.resolve()
    workdir = directory.parents[min(2, len(directory.parents) - 1)]
    return WorkdirLock(workdir) if (workdir / "config.json").exists() else contextlib.nullcontext()


def exported_before(ledger: Ledger) -> pathlib.Path | None:
    """The model that the job exported when it ended; None if it did not."""
    merged = ledger.directory.resolve().parents[2] / "merged"
    return merged if merged.exists() else None
