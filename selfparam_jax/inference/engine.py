"""Requests of many askers, decoded by one thread in batches of those that wait together.

A batch is of one variant. Batches that run at the same time take turns, a few tokens each, so a long answer holds up
nobody. What comes in while a batch runs is the next batch.
"""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

from selfparam_jax.inference.batches import Batch, Continuation, Variant
from selfparam_jax.inference.prefix import ReadTexts

GATHER_S = 0.005  # how long the first of several requests waits for the others


class Busy(Exception):
    """As many rows wait as may wait."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """What an asker is told.

    Attributes:
      tokens: new token ids; the last may be a stop.
      done: whether these are the last.
      error: why there is nothing more to come; None if all is well.
    """

    tokens: tuple[int, ...] = ()
    done: bool = False
    error: Exception | None = None


Listener = Callable[[Piece], None]


class Row:
    """One continuation on its way; `cancel` ends it."""

    def __init__(self, variant: Variant, wanted: Continuation, listener: Listener):
        self.variant, self.wanted = variant, wanted
        self._listener, self._ended, self.cancelled = listener, False, False

    def cancel(self) -> None:
        """Makes no more tokens; the listener hears nothing more."""
        self.cancelled = True

    def tell(self, piece: Piece) -> None:
        """Passes a piece on, up to the last one."""
        if self.cancelled or self._ended:
            return
        self._ended = piece.done
        self._listener(piece)


class Engine:
    """Decodes rows in a thread of its own, from `submit` on. Use it in a `with`."""

    def __init__(self, most_rows: int = 8, most_waiting: int = 64, most_held: int = 4):
        """Starts the thread.

        Args:
          most_rows: decoded at the same time, over all variants; at least 1.
          most_waiting: rows that may wait for the others.
          most_held: prompts whose keys and values are kept, for others with the same document; 0 keeps none.

        Raises:
          ValueError: a number is too small.
        """
        for name, value, least in (
            ("most_rows", most_rows, 1),
            ("most_waiting", most_waiting, 1),
            ("most_held", most_held, 0),
        ):
            if value < least:
                raise ValueError(f"{name} = {value}, expected at least {least}")
        self._texts = ReadTexts(most_held)
        self._most_rows, self._most_waiting = most_rows, most_waiting
        self._waiting: list[Row] = []
        self._running: list[tuple[Batch, list[Row]]] = []
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread; rows that are not done hear an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def submit(self, variant: Variant, wanted: list[Continuation], listeners: list[Listener]) -> list[Row]:
        """Adds continuations of one request; the listeners are called from the engine's thread.

        Raises:
          Busy: too many wait; none is added.
        """
        rows = [Row(variant, each, listener) for each, listener in zip(wanted, listeners, strict=True)]
        with self._changed:
            if self._closed:
                raise Busy("the server is ending")
            self._waiting = [row for row in self._waiting if not row.cancelled]
            if self._waiting and len(self._waiting) + len(rows) > self._most_waiting:
                raise Busy(f"{len(self._waiting)} answers wait already, at most {self._most_waiting} may; try again")
            self._waiting += rows
            self._changed.notify()
        return rows

    def stream(self, variant: Variant, wanted: Continuation) -> Iterator[tuple[tuple[int, ...], bool]]:
        """The tokens of one continuation as they are made, and whether they are the last; closing it ends the work.

        Raises:
          Exception: what went wrong.
        """
        pieces: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        (row,) = self.submit(variant, [wanted], [pieces.put])
        try:
            while True:
                piece = pieces.get()
                if piece.error:
                    raise piece.error
                yield piece.tokens, piece.done
                if piece.done:
                    return
        finally:
            row.cancel()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                idle = not self._running
            if idle:
                time.sleep(GATHER_S)
            for group in self._take():
                self._begin(group)
            if self._closed:
                self._fail(
                    [row for _, rows in self._running for row in rows] + self._waiting, Busy("the server ended")
                )
                return
            for batch, rows in self._running:
                self._advance(batch, rows)
            self._running = [(batch, rows) for batch, rows in self._running if not all(batch.done)]

    def _take(self) -> list[list[Row]]:
        """The waiting rows that there is room for, first come first served, grouped by variant."""
        with self._changed:
            free = self._most_rows - sum(batch.size for batch, _ in self._running)
            waiting = [row for row in self._waiting if not row.cancelled]
            taken, self._waiting = waiting[:free], waiting[free:]
        groups: dict[int, list[Row]] = {}
        for row in taken:
            groups.setdefault(id(row.variant), []).append(row)
        return list(groups.values())

    def _begin(self, rows: list[Row]) -> None:
        try:
            self._running.append((Batch(rows[0].variant, [row.wanted for row in rows], self._texts), rows))
        except Exception as error:  # the askers', or the device's memory: told to those who asked
            self._fail(rows, error)

    def _advance(self, batch: Batch, rows: list[Row]) -> None:
        for number, row in enumerate(rows):
            if row.cancelled and not batch.done[number]:
                batch.end(number)
        if all(batch.done):
            return
        before = list(batch.done)
        try:
            made = batch.advance()
        except Exception as error:
            self._fail(rows, error)
            for number in range(batch.size):
                batch.end(number)
            return
        for number, (row, tokens) in enumerate(zip(rows, made, strict=True)):
            if not before[number]:
                row.tell(Piece(tuple(tokens), batch.done[number]))

    def _fail(self, rows: list[Row], error: Exception) -> None:
        if not isinstance(error, ValueError | Busy):
            logging.error("decoding failed", exc_info=error)
        for row in rows:
            row.tell(Piece(done=True, error=error))
