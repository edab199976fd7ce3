"""One job at a time in a work directory, and one at a file of pairs: a lock, and a note on who holds it.

The operating system's lock (`filelock`) ends with the process that holds it, so a job that was killed leaves nothing
behind that has to be removed. On a disk that several machines share, a lock may not be seen by the others: there the
holder's note counts, which it touches while it lives.
"""

import contextlib
import json
import os
import pathlib
import socket
import threading
import time

import filelock
from absl import logging

from selfparam_jax.distributed.files import DISK_ERRORS, StorageError, read_json, refuse_folder, replacing_own
from selfparam_jax.distributed.mesh import all_agree
from selfparam_jax.distributed.processes import is_main_process, process_count

LOCK, HOLDER = ".lock", ".lock.json"
OWN = (LOCK, HOLDER)  # a directory with these alone is empty
BEAT_S = 5.0  # from one touch of the note to the next
DEAD_S = 60.0  # of silence, after which a holder on another machine is taken for dead


class _Lock:
    """A lock on what one job may write. Of several processes the main one holds it, and all are refused together.

    As a context manager it locks where the folder is there already; `acquire` locks once it was made since.
    """

    def __init__(self, target: pathlib.Path, lock: pathlib.Path, holder: pathlib.Path, kind: str):
        """Args:
        target: what is locked.
        lock, holder: the files of the lock and of the note, in one folder.
        kind: of target: "directory" or "file".
        """
        self._target, self._path, self._note, self._kind = target, lock, holder, kind
        # Not for each thread: a job may be run in one that is not the one that opened it.
        self._lock = filelock.FileLock(lock, timeout=0, thread_local=False)
        self._held, self._stop = False, threading.Event()

    def __enter__(self) -> "_Lock":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def acquire(self) -> bool:
        """Locks if the folder is there; all processes must call this. Returns whether it was locked just now.

        Raises:
          ValueError: another job holds it, which is named, or it cannot be written; on all processes.
          StorageError: its disk is full or broken.
        """
        if self._held:
            return False
        problem, there, broken = "", True, False
        if is_main_process():
            folder = self._path.parent
            try:
                problem = refuse_folder(folder)
                there = not problem and folder.is_dir()
                problem = problem or (self._try() if there else "")
            except OSError as error:
                self._lock.release()
                broken = error.errno in DISK_ERRORS
                reason = DISK_ERRORS[error.errno] if broken else error
                problem = f"{self._target} cannot be locked ({reason}); choose a {self._kind} that can be written"
        # What the main process has found is what all of them go on with: they work in lockstep.
        allowed, taken = all_agree([not problem, there])
        if not allowed:
            problem = problem or f"{self._target} is in use; the log of the main process says by whom"
            raise StorageError(problem) if broken else ValueError(problem)
        self._held = bool(taken)
        return self._held

    def _try(self) -> str:
        """Takes the lock; returns why it cannot be taken, or ""."""
        try:
            self._lock.acquire()
        except filelock.Timeout:
            return self._in_use()
        holder = self._holder()
        if holder.get("host") not in (None, socket.gethostname()) and self._silence_s() < DEAD_S:
            self._lock.release()  # this disk does not carry locks from one machine to another
            return self._in_use()
        if holder:
            logging.info("%s: %s ended without a word; its lock is taken over", self._target, _named(holder))
        note = {"pid": os.getpid(), "host": socket.gethostname(), "processes": process_count(), "since": time.time()}
        with replacing_own(self._note) as temporary:
            temporary.write_text(json.dumps(note) + "\n", encoding="utf-8")
        threading.Thread(target=self._beat, daemon=True).start()
        return ""

    def release(self) -> None:
        """Lets go, if it is held."""
        if not self._held:
            return
        self._stop.set()
        self._held = False
        if not is_main_process():
            return
        with contextlib.suppress(OSError):  # of a directory that is gone
            self._note.unlink()
        self._lock.release()

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                os.utime(self._note)
            except OSError:  # the directory is gone: whatever the job writes next says so
                return

    def _holder(self) -> dict:
        """The note of who holds it, or held it last; {} if there is none that can be read."""
        try:
            return read_json(self._note)
        except (OSError, ValueError):
            return {}

    def _silence_s(self) -> float:
        """Seconds since the note was touched, by the clock of the disk: those of two machines may differ."""
        probe = self._note.with_name(f"{self._note.name}.{os.getpid()}")
        try:
            probe.touch()
            return probe.stat().st_mtime - self._note.stat().st_mtime
        except FileNotFoundError:
            return float("inf")
        finally:
            probe.unlink(missing_ok=True)

    def _in_use(self) -> str:
        holder, silent = self._holder(), self._silence_s()
        said = f"{self._target} is in use by {_named(holder)}"
        if silent < DEAD_S:
            return f"{said}; wait for its end or stop it, or choose another {self._kind}"
        seen = "" if silent == float("inf") else f", which has given no sign of life for {silent:.0f} s"
        return f"{said}{seen}; if that process is gone, remove {self._path}"


class WorkdirLock(_Lock):
    """The lock of a work directory."""

    def __init__(self, workdir: str | os.PathLike):
        workdir = pathlib.Path(workdir)
        super().__init__(workdir, workdir / LOCK, workdir / HOLDER, "directory")


class PairsLock(_Lock):
    """The lock of a file of pairs, and of the replies beside it; hidden files next to it."""

    def __init__(self, path: str | os.PathLike):
        path = pathlib.Path(path)
        lock, holder = (path.parent / f".{path.name}{ending}" for ending in OWN)
        super().__init__(path, lock, holder, "file")


def _named(holder: dict) -> str:
    if not holder:
        return "another job"
    since = holder.get("since")
    began = time.strftime(", since %Y-%m-%d %H:%M", time.localtime(since)) if isinstance(since, int | float) else ""
    of_many = f", of {holder['processes']} processes" if holder.get("processes", 1) != 1 else ""
    return f"another job (process {holder.get('pid')} on {holder.get('host')}{of_many}{began})"
