"""Bars and lines that say how far a job is.

On a terminal progress is a bar. Elsewhere it is a line of the log now and then.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

from absl import logging
from tqdm import tqdm

from selfparam_jax.distributed.processes import is_main_process

PATIENCE_S = 3.0  # what takes longer is announced
LINE_S = 30.0  # from one line about the same work to the next


class Announcement:
    """Lines about work that has no steps: one when it takes more than a few seconds, then every LINE_S seconds."""

    def __init__(self, what: str):
        """Starts to wait; `what` is what is being done: "compiling the training step"."""
        self._what, self._began, self._done = what, time.perf_counter(), threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        wait = PATIENCE_S
        while not self._done.wait(wait):
            if self._told:
                say("%s: %.0f s so far", self._what, self._seconds())
            else:
                say("%s ...", self._what)
            self._told, wait = True, LINE_S

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def end(self) -> None:
        """The work is over, or failed; further calls do nothing."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        if self._told:
            say("%s took %.0f s", self._what, self._seconds())


@contextlib.contextmanager
def announced(what: str) -> Iterator[None]:
    """Says what is being done within it, if it takes more than a few seconds."""
    announcement = Announcement(what)
    try:
        yield
    finally:
        announcement.end()


def say(message: str, *values: object) -> None:
    """Writes a line of the log above the bars that are shown."""
    with tqdm.external_write_mode(sys.stderr):
        logging.info(message, *values)


class Lines:
    """Progress where there is no terminal: lines of the log, LINE_S seconds apart; used as `tqdm` is.

    Attributes:
      n: how much is done.
    """

    def __init__(self, total: int, desc: str, unit: str, initial: int = 0):
        """Args:
        total: how much there is to do.
        desc: what is done.
        unit: of what is counted, in the singular.
        initial: what was done before.
        """
        self.n, self._total, self._desc, self._unit, self._initial = initial, total, desc, unit, initial
        self._began = self._last = time.perf_counter()
        self._postfix = ""

    def update(self, count: int = 1) -> None:
        """Counts what was just done."""
        self.n += count
        now = time.perf_counter()
        if now - self._last >= LINE_S and self.n > self._initial:
            self._last, per_unit = now, (now - self._began) / (self.n - self._initial)
            left = f"about {per_unit * (self._total - self.n):.0f} s left"
            logging.info("%s: %d of %d %ss, %s%s", self._desc, self.n, self._total, self._unit, left, self._postfix)

    def set_postfix(self, values: dict[str, str], refresh: bool = True) -> None:
        """What the next line says besides."""
        self._postfix = "".join(f", {name} {value}" for name, value in values.items())

    def close(self) -> None:
        """Nothing more is done."""


def open_bar(total: int, label: str, unit: str, visible: bool = True, **options: object) -> tqdm | Lines:
    """A bar on a terminal; lines of the log where that is shown and is no terminal.

    Args:
      total: how much there is to do.
      label: what is done.
      unit: of what is counted, in the singular.
      visible: whether anything is shown; never by others than the main process.
      **options: of tqdm: initial, leave.

    Returns:
      an object with `update`, `set_postfix`, `close` and `n`.
    """
    visible = visible and is_main_process()
    if visible and logging.level_info() and not sys.stderr.isatty():
        return Lines(total, label, unit, options.get("initial", 0))
    return tqdm(total=total, desc=label, unit=unit, disable=not visible, **options)
