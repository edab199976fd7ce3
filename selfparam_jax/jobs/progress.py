"""What a job shows, writes and heeds while an injection runs: progress, metrics.jsonl, trackers, requests to stop."""

import contextlib
import itertools
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator

from absl import logging
from tqdm import tqdm

from selfparam_jax.distributed.processes import is_distributed, is_main_process, preempted
from selfparam_jax.distributed.watchdog import progressed
from selfparam_jax.jobs.bars import Announcement, Lines, open_bar
from selfparam_jax.jobs.tracking import Series, Tracking
from selfparam_jax.jobs.workdir import MetricsLog
from selfparam_jax.training.inject import Hooks


@contextlib.contextmanager
def deferred_stop(first: int):
    """Within it, Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once.

    Several processes stop together when one of them gets a SIGTERM; JAX listens for it. Signals reach the main thread
    alone: in another one nothing is heeded.

    Args:
      first: steps done before. The function that this gives must be called once after every further step.
    """
    if is_distributed():
        steps = itertools.count(first + 1)
        yield lambda: preempted(next(steps))
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def on_signal(number, _):
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.warning("stopping after this step and saving; Ctrl-C again stops at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class ProgressLog:
    """Progress bars and the log of steps of one injection."""

    def __init__(self, label: str = "", path: pathlib.Path | None = None, visible: bool = True):
        """Args:
        label: stands before the bar of training; "" is "train".
        path: of metrics.jsonl; None keeps no log.
        visible: whether bars are shown.
        """
        self._visible = visible and is_main_process()
        self._label, self._path, self._log = label or "train", path, None
        self._bars: list[tqdm | Lines] = []
        self._teacher: tqdm | Lines | None = None
        self._announcement: Announcement | None = None
        self._train_s, self._tokens = 0.0, 0

    def on_teacher(self, done: int, total: int) -> None:
        """Moves the teacher's bar to `done` of `total` sentences; it opens at the first call."""
        if self._teacher is None:
            self._teacher = self._open_bar(total, "teacher", "sentence", leave=False)
            self._announce("compiling the teacher's programs, and reading its first document")
        if done:
            self._end_announcement()
        self._teacher.update(done - self._teacher.n)
        if done == total:
            self._teacher.close()

    def on_start(self, first: int, steps: int) -> None:
        """Opens the log and the bar of training."""
        if self._path is not None:
            self._log = MetricsLog(self._path, first)
        self._bar = self._open_bar(steps, self._label, "step", initial=first)
        self._announce("compiling the training step, once for all steps")

    def on_step(self, record: dict) -> None:
        """Writes the record of a step and moves the bar."""
        progressed()
        self._end_announcement()
        if self._log is not None:
            self._log.write(record)
        self._train_s += record["seconds"]
        self._tokens += record["sentence_tokens"]
        speed = f"{self._tokens / max(self._train_s, 1e-9):.0f}"
        self._bar.set_postfix({"loss": f"{record['loss']:.3f}", "sentence tokens/s": speed}, refresh=False)
        self._bar.update()

    def _open_bar(self, total: int, label: str, unit: str, **options) -> tqdm | Lines:
        self._bars.append(open_bar(total, label, unit, self._visible, **options))
        return self._bars[-1]

    def _announce(self, what: str) -> None:
        if self._visible:
            self._announcement = Announcement(what)

    def _end_announcement(self) -> None:
        if self._announcement:
            self._announcement.end()

    def close(self) -> None:
        """Ends the bars and closes the log."""
        self._end_announcement()
        for bar in self._bars:
            bar.close()
        if self._log is not None:
            self._log.close()


@contextlib.contextmanager
def open_hooks(
    directory: pathlib.Path | None = None,
    label: str = "",
    visible: bool = True,
    on_step: Callable[[dict], None] | None = None,
    signals: bool = True,
    tracking: Tracking | None = None,
) -> Iterator[Hooks]:
    """The hooks of one injection: bars, metrics.jsonl in its directory, trackers, and stops by signals.

    Args:
      directory: of the injection; None keeps no log.
      label: of the bar of training.
      visible: whether bars are shown.
      on_step: also called with every step's record.
      signals: whether Ctrl-C and SIGTERM end training after a step; a library leaves signals to the program.
      tracking: what trackers are told besides; needs a directory.

    Returns:
      a context manager that gives the hooks.
    """
    path = None if directory is None else directory / "metrics.jsonl"
    tracking = tracking or Tracking()
    series = Series(tracking, directory)
    with contextlib.closing(ProgressLog(label, path, visible)) as log, contextlib.closing(series):

        def before_steps(first: int, steps: int) -> None:
            series.start(first)
            log.on_start(first, steps)

        def after_step(record: dict) -> None:
            log.on_step(record)
            series.log_step(record)
            if on_step:
                on_step(record)

        stop = {"stop_requested": deferred_stop} if signals else {}
        yield Hooks(
            log.on_teacher,
            before_steps,
            after_step,
            **stop,
            sample_every=tracking.sample_every,
            on_sample=series.log_sample,
        )
