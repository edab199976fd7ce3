"""Ends processes that wait in vain for another one, and names that one."""

import os
import pathlib
import socket
import threading
import time
from collections.abc import Callable

from absl import logging

from selfparam_jax.distributed.processes import is_distributed, process_count, process_index

BEAT_S = 1.0  # seconds between two touches of a process's file


class Watchdog:
    """Names the missing process where all others would otherwise hang, or end with a network error.

    Every process keeps a file with the number of pieces of work it has finished (`progressed`); a thread touches the
    file while the process lives. The thread ends the process if nothing was finished for `limit_s` seconds (0: never)
    and names the processes that are behind. If the block fails, the processes that no longer live are named. Use as a
    context manager around what all processes do in step; for a single process it does nothing.
    """

    def __init__(self, directory: pathlib.Path, limit_s: float, end: Callable[[int], None] = os._exit):
        self._directory, self._limit, self._end = directory / "processes", limit_s, end
        self._stop, self._pieces, self._when = threading.Event(), 0, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if is_distributed():
            self._directory.mkdir(parents=True, exist_ok=True)
            self._write()
            _watchdogs.append(self)
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind, error, _) -> None:
        failed = is_distributed() and kind is not None and not issubclass(kind, KeyboardInterrupt)
        if failed and (silent := self.silent()):
            logging.error("%s: no sign of life; its log says why", ", ".join(silent))
        self._stop.set()
        if self in _watchdogs:
            _watchdogs.remove(self)

    def progressed(self) -> None:
        """Counts one more finished piece of work."""
        self._pieces, self._when = self._pieces + 1, time.monotonic()
        self._write()

    def _write(self) -> None:
        self._file(process_index()).write_text(f"{self._pieces} {socket.gethostname()}")

    def _file(self, index: int) -> pathlib.Path:
        return self._directory / f"{index}"

    def _watch(self) -> None:
        while not self._stop.wait(BEAT_S):
            try:
                os.utime(self._file(process_index()))
            except OSError as error:  # the directory is gone; whatever the job writes next says so
                logging.error("%s", error)
                return
            if self._limit and time.monotonic() - self._when > self._limit:
                logging.error("%s", self.complaint())
                self._end(1)
                return

    def silent(self) -> list[str]:
        """The other processes that no longer touch their file; takes three beats to find out."""
        others = [
            index for index in range(process_count()) if index != process_index() and self._file(index).exists()
        ]
        before = {index: self._file(index).stat().st_mtime_ns for index in others}
        time.sleep(3 * BEAT_S)
        return [self._named(index) for index in others if self._file(index).stat().st_mtime_ns == before[index]]

    def _found(self, index: int) -> tuple[int, str]:
        """(pieces of work, host) from a process's file."""
        path = self._file(index)
        pieces, _, host = path.read_text().partition(" ") if path.exists() else ("0", "", "")
        return int(pieces or 0), host or "an unknown host"

    def _named(self, index: int) -> str:
        return f"process {index} on {self._found(index)[1]}"

    def complaint(self) -> str:
        """What to tell the user: which processes have finished the least."""
        pieces = {index: self._found(index)[0] for index in range(process_count())}
        least = min(pieces.values())
        behind = [self._named(index) for index, done in pieces.items() if done == least]
        return (
            f"process {process_index()}: nothing was finished for {self._limit:.0f} s after {self._pieces} pieces of "
            f"work (steps, readings, answers); behind (after {least}): {', '.join(behind)}. Look at their logs; the "
            "same command resumes from the last checkpoint"
        )


_watchdogs: list[Watchdog] = []


def progressed() -> None:
    """Counts a finished piece of work that all processes do together: a step, a reading, a batch of answers."""
    for watchdog in _watchdogs:
        watchdog.progressed()
