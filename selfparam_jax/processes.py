"""Several processes (hosts) that run one program in lockstep: their start, their meeting points, what one does alone.

Every process runs the same code on the same input. The first writes the files; all meet before and after each, so
that none looks for a file while it is being written. The work directory must be on storage that all of them see.
"""

import contextlib
import os
import pathlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

MODES = ("auto", "on", "off")
# Set by launchers that start several processes: a variable and whether its value means more than one.
_CLUSTERS: dict[str, Callable[[str], bool]] = {
    "SLURM_STEP_NUM_TASKS": lambda value: int(value) > 1,
    "OMPI_COMM_WORLD_SIZE": lambda value: int(value) > 1,
    "TPU_WORKER_HOSTNAMES": lambda value: "," in value,
    "TPU_PROCESS_ADDRESSES": lambda value: "," in value,
    "MEGASCALE_NUM_SLICES": lambda value: int(value) > 1,
    "JAX_COORDINATOR_ADDRESS": bool,
}
_index, _count = 0, 1


def start(mode: str = "auto", coordinator: str = "", count: int = 0, index: int = -1, heartbeat_s: int = 100) -> None:
    """Joins the other processes; must be called before JAX is asked for a device.

    Args:
      mode: "auto" starts if the environment or the arguments name others, "on" always, "off" never.
      coordinator: host:port of the first process; "" where the environment says it (TPU, Slurm, Open MPI).
      count, index: how many processes there are, and which this is; 0 and -1 where the environment says it.
      heartbeat_s: a process that is silent for so long is dead, and ends all others.

    Raises:
      ValueError: an argument is not possible, or the processes did not meet.
    """
    global _index, _count
    if mode not in MODES:
        raise ValueError(f"distributed = {mode!r}, expected one of {', '.join(MODES)}")
    explicit = (bool(coordinator), count > 0, index >= 0)
    if any(explicit) and not all(explicit):
        raise ValueError(
            f"coordinator_address = {coordinator!r}, process_count = {count}, process_index = {index}: expected all "
            "three or none (the environment then says it)"
        )
    named = [name for name, many in _CLUSTERS.items() if os.environ.get(name) and many(os.environ[name])]
    if mode == "off" or (mode == "auto" and not coordinator and not named):
        return
    given = {"coordinator_address": coordinator, "num_processes": count, "process_id": index} if coordinator else {}
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=heartbeat_s)
    except (RuntimeError, ValueError) as error:
        found = f"; set in the environment: {', '.join(named)}" if named else ""
        raise ValueError(
            f"the processes did not meet: {str(error).splitlines()[0]}{found}. Start all of them within five "
            "minutes, with --coordinator_address, --process_count and --process_index where the environment does not "
            "say them, or with --distributed=off for a single one"
        ) from error
    _index, _count = jax.process_index(), jax.process_count()
    if _index:
        logging.set_verbosity(logging.WARNING)
    logging.info("process %d of %d on %s", _index, _count, socket.gethostname())


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return _index == 0


def several() -> bool:
    """Whether there are others."""
    return _count > 1


def meet(name: str) -> None:
    """Waits until every process is here; does nothing for a single one."""
    if _count > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def written_by_first(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Where this process writes what belongs at `path`: there if it is the first, else where it is thrown away.

    All processes meet before, so none that still looks for the old file sees the new one, and after.
    """
    path = pathlib.Path(path)
    meet(f"before {path.name}")
    if is_first():
        yield path
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield pathlib.Path(scratch) / path.name
    meet(f"after {path.name}")


def check_shared(directory: pathlib.Path) -> None:
    """Raises ValueError, on all processes, if one does not see what the first writes into a directory."""
    if _count == 1:
        return
    directory = directory.absolute()
    mark = directory.with_name(f".{directory.name}.shared")
    if is_first():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    meet("shared")
    seen = np.asarray(multihost_utils.process_allgather(np.asarray(mark.exists())))
    if is_first():
        mark.unlink()
    if not seen.all():
        blind = ", ".join(str(index) for index in np.flatnonzero(~seen))
        raise ValueError(
            f"process {blind} of {_count} does not see {directory} as the first process does; choose a --workdir on "
            "storage that all hosts share"
        )


def preempted(step: int) -> bool:
    """Whether all processes are to save and stop after this step, because one of them was told to end (SIGTERM).

    Every process must ask after every step; the answer is the same for all.
    """
    return bool(multihost_utils.reached_preemption_sync_point(step))


def end(code: int) -> NoReturn:
    """Ends this process. One of several does not wait for the others, who may be waiting for it."""
    if _count == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


BEAT_S = 1.0  # how often a process says that it lives


class Watchdog:
    """Says who is missing where otherwise all would wait for ever, or end with an error of the network.

    Every process keeps a file with the number of pieces of work that it has finished (`progressed`), which a thread
    touches while it lives. The thread ends the process if none was finished for `limit_s` (0: never), naming who is
    behind; and where the block fails, those are named who live no more. Use as a context manager around what all
    processes do in step.
    """

    def __init__(self, directory: pathlib.Path, limit_s: float, end: Callable[[int], None] = os._exit):
        self._directory, self._limit, self._end = directory / "processes", limit_s, end
        self._stop, self._pieces, self._when = threading.Event(), 0, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if _count > 1:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._write()
            _watchdogs.append(self)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, error, _) -> None:
        failed = _count > 1 and kind is not None and not issubclass(kind, KeyboardInterrupt)
        if failed and (silent := self.silent()):
            logging.error("%s: no sign of life; its log says why", ", ".join(silent))
        self._stop.set()
        if self in _watchdogs:
            _watchdogs.remove(self)

    def progressed(self) -> None:
        """One more piece of work is done."""
        self._pieces, self._when = self._pieces + 1, time.monotonic()
        self._write()

    def _write(self) -> None:
        self._file(_index).write_text(f"{self._pieces} {socket.gethostname()}")

    def _file(self, index: int) -> pathlib.Path:
        return self._directory / f"{index}"

    def _watch(self) -> None:
        while not self._stop.wait(BEAT_S):
            os.utime(self._file(_index))
            if self._limit and time.monotonic() - self._when > self._limit:
                logging.error("%s", self.complaint())
                self._end(1)
                return

    def silent(self) -> list[str]:
        """The other processes that do not touch their file any more; takes three beats to find out."""
        others = [index for index in range(_count) if index != _index and self._file(index).exists()]
        before = {index: self._file(index).stat().st_mtime_ns for index in others}
        time.sleep(3 * BEAT_S)
        return [self._named(index) for index in others if self._file(index).stat().st_mtime_ns == before[index]]

    def _found(self, index: int) -> tuple[int, str]:
        """(pieces of work, host) as a process's file says."""
        path = self._file(index)
        pieces, _, host = path.read_text().partition(" ") if path.exists() else ("0", "", "")
        return int(pieces or 0), host or "a host unknown"

    def _named(self, index: int) -> str:
        return f"process {index} on {self._found(index)[1]}"

    def complaint(self) -> str:
        """Which processes have done least."""
        pieces = {index: self._found(index)[0] for index in range(_count)}
        least = min(pieces.values())
        behind = [self._named(index) for index, done in pieces.items() if done == least]
        return (
            f"process {_index}: nothing was finished for {self._limit:.0f} s after {self._pieces} pieces of work "
            f"(steps, readings, answers); behind (after {least}): {', '.join(behind)}. Look at their logs; the same "
            "command goes on from the last checkpoint"
        )


_watchdogs: list[Watchdog] = []


def progressed() -> None:
    """A piece of work that all processes do in step is done: a training step, a reading, a batch of answers."""
    for watchdog in _watchdogs:
        watchdog.progressed()
