"""Several processes (hosts) that run one program in lockstep: how they start, wait for each other and end.

Every process runs the same code on the same input. The main process writes the files. All of them wait for each other
before and after each file, so that none looks for it while it is being written. The work directory must be on storage
that all of them see.
"""

import contextlib
import os
import pathlib
import socket
import sys
import tempfile
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
      mode: "auto" joins if the environment or the arguments name other processes, "on" always, "off" never.
      coordinator: host:port of the first process; "" where the environment has it (TPU, Slurm, Open MPI).
      count: number of processes; 0 where the environment has it.
      index: number of this process, from 0; -1 where the environment has it.
      heartbeat_s: seconds of silence after which a process counts as dead and all others end.

    Raises:
      ValueError: an argument is out of range, or the processes did not find each other.
    """
    global _index, _count
    if mode not in MODES:
        raise ValueError(f"distributed = {mode!r}, expected one of {', '.join(MODES)}")
    explicit = (bool(coordinator), count > 0, index >= 0)
    if any(explicit) and not all(explicit):
        raise ValueError(
            f"coordinator_address = {coordinator!r}, process_count = {count}, process_index = {index}: expected all "
            "three or none (they then come from the environment)"
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
            f"the processes did not find each other: {str(error).splitlines()[0]}{found}. Start all of them within "
            "five minutes, with --coordinator_address, --process_count and --process_index where the environment "
            "does not have them, or with --distributed=off for a single process"
        ) from error
    _index, _count = jax.process_index(), jax.process_count()
    if _index:
        logging.set_verbosity(logging.WARNING)
    logging.info("process %d of %d on %s", _index, _count, socket.gethostname())


def is_main_process() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return _index == 0


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return _count > 1


def process_index() -> int:
    """The number of this process, from 0, known without asking for a device."""
    return _index


def process_count() -> int:
    """How many processes there are, known without asking for a device."""
    return _count


def barrier(name: str) -> None:
    """Waits until every process is here; does nothing for a single one."""
    if _count > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def written_by_main_process(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Where this process writes what belongs at `path`: there if it is the main one, else to a temporary place.

    All processes wait for each other before it, so that none that still looks for the old file sees the new one, and
    after it.
    """
    path = pathlib.Path(path)
    barrier(f"before {path.name}")
    if is_main_process():
        yield path
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield pathlib.Path(scratch) / path.name
    barrier(f"after {path.name}")


def check_shared(directory: pathlib.Path) -> None:
    """Raises ValueError, on all processes, if one does not see what the main process writes into a directory."""
    if _count == 1:
        return
    directory = directory.absolute()
    mark = directory.with_name(f".{directory.name}.shared")
    if is_main_process():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier("shared")
    seen = np.asarray(multihost_utils.process_allgather(np.asarray(mark.exists())))
    if is_main_process():
        mark.unlink()
    if not seen.all():
        blind = ", ".join(str(index) for index in np.flatnonzero(~seen))
        raise ValueError(
            f"process {blind} of {_count} does not see {directory} as the main process does; choose a directory on "
            "storage that all hosts share"
        )


def preempted(step: int) -> bool:
    """Whether all processes should save and stop after this step, because one of them received SIGTERM.

    Every process must call this after every step; the answer is the same for all.
    """
    return bool(multihost_utils.reached_preemption_sync_point(step))


def end(code: int) -> NoReturn:
    """Ends this process. One of several does not wait for the others, which may be waiting for it."""
    if _count == 1:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
