"""The work directory: which run it belongs to, and its running log of steps.

A run is its settings, the fingerprint of its base, and the contents of all its inputs: documents with their questions
and pairs, unrelated and general texts, a teacher that is another model, and the adapter that training starts from. A
directory made with others is refused with the names of what differs.
"""

import json
import os
import pathlib
from collections.abc import Collection, Sequence

from absl import logging

from selfparam_jax.data.documents import Document, digest_documents, digest_texts
from selfparam_jax.distributed.files import (
    DISK_ERRORS,
    StorageError,
    differences,
    disk_error,
    flatten,
    read_json,
    read_log,
    write_json,
    write_log,
)
from selfparam_jax.distributed.processes import is_main_process
from selfparam_jax.jobs.lock import OWN
from selfparam_jax.jobs.settings import check_names

LISTED = 8  # changed documents that a message names

PARTS = {"single": "contexts", "sequential": "sequences"}  # jobs with several models, and where these lie


def digest_inputs(documents: Sequence[Document], unrelated: Sequence[str], general: Sequence[str]) -> dict:
    """What the inputs of a run are, as config.json holds it: digests of their contents, documents by id, in order."""
    return {
        "documents": [[name, digest] for name, digest in digest_documents(documents).items()],
        "unrelated": digest_texts(unrelated),
        "general": digest_texts(general),
    }


def bind_workdir(
    workdir: pathlib.Path, config: dict, fingerprint: str, inputs: dict, free: Collection[str] = ()
) -> None:
    """Makes the work directory, or checks that it belongs to the same run.

    Args:
      workdir: the directory.
      config: all settings, nested.
      fingerprint: of the base model.
      inputs: of `digest_inputs`.
      free: names of settings ("endpoint.budget") that may differ from those the directory was made with.

    Raises:
      ValueError: it belongs to other settings, another base or other inputs (what differs is listed), or it is a
        directory with other things in it.
    """
    path = workdir / "config.json"
    record = {"config": config, "base_fingerprint": fingerprint, "inputs": inputs}
    record = json.loads(json.dumps(record))
    if path.exists():
        _check_same(workdir, read_workdir(workdir), record, free)
        return
    check_free(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def check_own(workdir: pathlib.Path) -> None:
    """Raises ValueError, before a lock is put there, for a directory that is not a job's and not empty."""
    if os.path.isfile(workdir / "config.json"):  # these do not mind a name that is too long
        read_workdir(workdir)
    elif os.path.isdir(workdir):
        check_free(workdir)


def check_free(workdir: pathlib.Path) -> None:
    """Raises ValueError for a directory with other things in it."""
    if workdir.exists() and any(found.name not in OWN for found in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no config.json of ours; choose another directory")


def check_bound(
    workdir: pathlib.Path, config: dict, documents: Sequence[Document], free: Collection[str] = ()
) -> None:
    """Checks, without writing, that a run could have the work directory, as far as that is known without its model.

    Args:
      workdir, config, free: as in `bind_workdir`.
      documents: as the run reads them.

    Raises:
      ValueError: it belongs to other settings or documents, or has other things in it.
    """
    if not (workdir / "config.json").exists():
        check_free(workdir)
        return
    found = read_workdir(workdir)
    inputs = found["inputs"] | {"documents": digest_inputs(documents, (), ())["documents"]}
    _check_same(workdir, found, json.loads(json.dumps(found | {"config": config, "inputs": inputs})), free)


def read_workdir(workdir: str | os.PathLike) -> dict:
    """The content of a work directory's config.json: "config", "base_fingerprint", "inputs".

    Raises:
      ValueError: it is no work directory, or one that an earlier version made.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        raise ValueError(f"{workdir} is not a work directory (no config.json); give the directory of a job")
    record = read_json(path, advice="restore it from a copy, or run the job again in another directory")
    if not isinstance(record.get("config"), dict) or not isinstance(record.get("base_fingerprint"), str):
        raise ValueError(f"{path} is not a job's; give the directory of a job")
    try:
        check_names(flatten(record["config"]))
    except ValueError as error:
        raise ValueError(
            f"{workdir} was made by an earlier version ({error}); run the job again in another directory"
        ) from error
    if not isinstance(record.get("inputs"), dict):
        raise ValueError(
            f"{workdir} was made by an earlier version, which did not record its inputs; run the job again in "
            "another directory"
        )
    size = record["inputs"].get("batch_size", 1)
    if type(size) is not int or size < 1:
        raise ValueError(
            f"{path}: got the batch size {size!r}, expected a whole number of at least 1; restore it from a copy, or "
            "run the job again in another directory"
        )
    return record


def read_results(workdir: str | os.PathLike) -> dict:
    """The content of a finished job's results.json.

    Raises:
      FileNotFoundError: the job has not ended.
      ValueError: the file is damaged.
    """
    return read_json(pathlib.Path(workdir) / "results.json", keys=("job", "systems", "scores", "steps"))


def find_record(path: str | os.PathLike) -> dict | None:
    """What `read_workdir` gives; None for a path that is no work directory (a model has a config.json, too).

    Raises:
      ValueError: an earlier version made it.
    """
    try:
        record = read_json(pathlib.Path(path) / "config.json")
    except (OSError, ValueError):
        return None
    return read_workdir(path) if isinstance(record, dict) and "base_fingerprint" in record else None


def split_part(path: str | os.PathLike) -> tuple[pathlib.Path, str | None]:
    """A work directory, and the injection or sequence in it that a path names: WORKDIR/sequences/000 is "000"."""
    whole = pathlib.Path(path).resolve()
    return (whole.parent.parent, whole.name) if whole.parent.name in PARTS.values() else (pathlib.Path(path), None)


def _check_same(workdir: pathlib.Path, found: dict, wanted: dict, free: Collection[str]) -> None:
    old, new = flatten(found["config"]), flatten(wanted["config"])
    new |= {name: old[name] for name in free if name in old}
    different = differences(old, new)
    if different:
        raise ValueError(
            f"{workdir} belongs to a run with another configuration:\n" + "\n".join(different) + "\n"
            "Choose another directory, or repeat the run with its own configuration"
        )
    if found["base_fingerprint"] != wanted["base_fingerprint"]:
        raise ValueError(
            f"{workdir} was made with another base model under the same name (fingerprint "
            f"{found['base_fingerprint'][:12]} there, {wanted['base_fingerprint'][:12]} now); "
            "choose another directory"
        )
    if not {"documents", "unrelated", "general"} <= found["inputs"].keys():
        raise ValueError(
            f"{workdir / 'config.json'} does not say which inputs the run has; restore it from a copy, or run the "
            "job again in another directory"
        )
    changed = changed_inputs(found["inputs"], wanted["inputs"])
    if changed:
        raise ValueError(
            f"{workdir} belongs to a run with other inputs:\n" + "\n".join(f"  {line}" for line in changed) + "\n"
            "Choose another directory for these inputs, or restore the earlier ones"
        )


def changed_inputs(old: dict, new: dict) -> list[str]:
    """A line for everything that two records of `digest_inputs` do not share."""
    before, after = dict(old["documents"]), dict(new["documents"])
    lines = []
    for name in [*before, *(name for name in after if name not in before)]:
        if name not in after:
            lines.append(f"document {name!r} is gone")
        elif name not in before:
            lines.append(f"document {name!r} is new")
        elif before[name] != after[name]:
            lines.append(f"document {name!r} has changed (its text, questions or pairs)")
    if len(lines) > LISTED:
        lines = [*lines[:LISTED], f"and {len(lines) - LISTED} more documents"]
    if not lines and list(before) != list(after):
        lines.append("the documents are in another order")
    for name in ("unrelated", "general"):
        if old[name] != new[name]:
            lines.append(f"the {name} texts have changed")
    if old.get("adapter") != new.get("adapter"):
        lines.append("the adapter that training starts from has changed")
    if old.get("teacher") != new.get("teacher"):
        lines.append("the teacher (teacher.model) has changed: its weights, or how they are held")
    return lines


def last_checkpoint(workdir: str | os.PathLike) -> int | None:
    """The step of the newest checkpoint in a work directory, of whichever injection; None if there is none yet."""
    found = [path for path in pathlib.Path(workdir).rglob("checkpoints/*") if path.name.isdigit()]
    return int(max(found, key=lambda path: path.stat().st_mtime_ns).name) if found else None


def stopped_words(workdir: str | os.PathLike) -> str:
    """What to say when a job was stopped at once, at whatever it was doing."""
    step = last_checkpoint(workdir)
    if step is not None:
        return f"stopped; the same command resumes from the last checkpoint, step {step}"
    return (
        "stopped before the first checkpoint; the same command keeps what was finished (answers, written pairs, what "
        "the teacher read) and begins training at its first step"
    )


def check_finished(workdir: str | os.PathLike) -> None:
    """Raises ValueError for a work directory whose job has not ended, and says how to resume it."""
    folder = pathlib.Path(workdir)
    if (folder / "results.json").exists() or not (folder / "config.json").exists():
        return
    read_workdir(folder)
    step = last_checkpoint(folder)
    state = "no checkpoint yet" if step is None else f"last checkpoint: step {step}"
    raise ValueError(
        f"{workdir} is not finished ({state}); give the command that began it again, with the same "
        "directory: it resumes, and writes the report at its end"
    )


def check_whole(source: str | os.PathLike, done: int, total: int, what: str, unfinished: bool) -> None:
    """Refuses, or says, that what is taken is not the result of a finished training.

    Args:
      source: the directory, as a message names it.
      done: how many steps or injections there are.
      total: how many there are to be; 0 where that is not known.
      what: "step" or "injection".
      unfinished: whether it may be taken as it is, with a warning.

    Raises:
      ValueError: it is not finished and may not be taken.
    """
    if 0 < total <= done:
        return
    state = f"{what} {done} of {total}" if total else f"{what} {done}"
    if not unfinished:
        raise ValueError(
            f"{source} is not finished ({state}); give the command that began it again, or --unfinished to take it "
            "as it is"
        )
    logging.warning("%s is not finished (%s): it is taken as it is", source, state)


def refuse_remade(workdir: pathlib.Path) -> None:
    """Raises FileNotFoundError for a work directory that was removed, and made again by what was written since.

    `storage_trouble` says what it means.
    """
    if not (workdir / "config.json").exists():
        raise FileNotFoundError(f"{workdir / 'config.json'}: no such file")


def storage_trouble(workdir: str | os.PathLike, error: BaseException) -> StorageError | None:
    """What became of a work directory's disk while a job was running, if that is why the job failed."""
    folder = pathlib.Path(workdir)
    if not (folder / "config.json").exists():
        what = "no longer has its config.json" if folder.exists() else "is gone"
        return StorageError(
            f"{folder} {what}: it was removed or moved while the job was running, or its disk is no longer there; "
            "bring it back and give the same command again, or begin in another directory"
        )
    if found := disk_error(error):
        number, place = found
        return StorageError(
            f"{place or folder}: {DISK_ERRORS[number]}; what was written before is whole: give the same command "
            "again when that is mended, and it resumes"
        )
    return None


class MetricsLog:
    """metrics.jsonl, a line per step; opened again at step s it keeps the lines up to s and continues after them.

    Damaged lines are left out: a log never stops a job from resuming.
    """

    def __init__(self, path: pathlib.Path, first: int):
        kept = [line for line in read_log(path) if isinstance(line.get("step"), int) and line["step"] <= first]
        write_log(path, kept)
        self._file = (path if is_main_process() else pathlib.Path(os.devnull)).open("a", encoding="utf-8")

    def write(self, record: dict) -> None:
        """Appends one line; readable at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
