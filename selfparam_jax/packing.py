"""Sentences into fixed token rows: segment ids, restarting positions, and where the loss looks.

A *piece* is one sentence as one reader reads it. Rows have one shape for the whole job, so there is one
compilation; a piece that does not fit is an error, never cut.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfparam_jax.model import PADDING


@dataclasses.dataclass(frozen=True)
class Piece:
    """One sentence in a row.

    Attributes:
      ids: token ids.
      first_position: position of ids[0] (0, or the prefix length for a reader that continues one).
      predictors: indices into ids of the positions whose next token carries loss.
      weights: weight of the KL at each predictor.
      supervision: weight of the next-token loss at each predictor.
      slots: for each predictor, the row of the hidden-state store that belongs to it.
    """

    ids: tuple[int, ...]
    first_position: int
    predictors: tuple[int, ...]
    weights: tuple[float, ...]
    supervision: tuple[float, ...]
    slots: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Packed rows.

    Attributes:
      input_ids, positions, segments: int32 [B, T].
      index: int32 [B, M], positions within the row whose next token carries loss (0 where unused).
      weights, supervision: float32 [B, M], 0 where unused.
      slots: int32 [B, M], rows of the hidden-state store (0 where unused).
    """

    input_ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    index: np.ndarray
    weights: np.ndarray
    supervision: np.ndarray
    slots: np.ndarray

    def take(self, rows) -> "Rows":
        return Rows(**{name: value[rows] for name, value in vars(self).items()})

    @property
    def fill(self) -> float:
        """Share of the positions that hold a token."""
        return float(np.mean(self.segments != PADDING))


def check_sizes(pieces: Sequence[Piece], row_length: int, loss_length: int) -> None:
    """Raises ValueError if a piece is longer than a row, or has more loss positions than one."""
    for piece in pieces:
        if len(piece.ids) > row_length or len(piece.predictors) > loss_length:
            raise ValueError(
                f"a sentence has {len(piece.ids)} tokens, {len(piece.predictors)} of them with loss, but a row holds "
                f"{row_length} and {loss_length}; raise train.row_length or train.loss_length, or shorten it"
            )


def first_fit_decreasing(
    pieces: Sequence[Piece], row_length: int, loss_length: int, one_per_row: bool = False
) -> list[list[int]]:
    """Indices of pieces per row; neither tokens nor loss positions of a row exceed its capacity.

    Pieces of equal length keep the order in which they are given, so shuffling the input mixes the rows.

    Raises:
      ValueError: a piece is longer than a row.
    """
    check_sizes(pieces, row_length, loss_length)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for i in sorted(range(len(pieces)), key=lambda i: -len(pieces[i].ids)):
        tokens, losses = len(pieces[i].ids), len(pieces[i].predictors)
        fits = (r for r, (t, m) in enumerate(room) if tokens <= t and losses <= m)
        row = None if one_per_row else next(fits, None)
        if row is None:
            rows.append([])
            room.append((row_length, loss_length))
            row = len(rows) - 1
        rows[row].append(i)
        room[row] = (room[row][0] - tokens, room[row][1] - losses)
    return rows


def fill_rows(
    pieces: Sequence[Piece], assignment: Sequence[Sequence[int]], row_length: int, loss_length: int
) -> Rows:
    """Writes pieces into rows [len(assignment), row_length]; empty assignments give rows of padding."""
    count = len(assignment)
    tokens = {name: np.zeros((count, row_length), np.int32) for name in ("input_ids", "positions", "segments")}
    tokens["segments"][:] = PADDING
    index = np.zeros((count, loss_length), np.int32)
    weights, supervision = np.zeros((2, count, loss_length), np.float32)
    slots = np.zeros((count, loss_length), np.int32)
    for row, members in enumerate(assignment):
        start = used = 0
        for segment, i in enumerate(members, start=1):
            piece = pieces[i]
            span = slice(start, start + len(piece.ids))
            tokens["input_ids"][row, span] = piece.ids
            tokens["positions"][row, span] = piece.first_position + np.arange(len(piece.ids))
            tokens["segments"][row, span] = segment
            losses = slice(used, used + len(piece.predictors))
            index[row, losses] = start + np.asarray(piece.predictors, np.int32)
            weights[row, losses] = piece.weights
            supervision[row, losses] = piece.supervision
            slots[row, losses] = piece.slots
            start, used = span.stop, losses.stop
    return Rows(**tokens, index=index, weights=weights, supervision=supervision, slots=slots)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Rows of several packings, one after another."""
    names = [field.name for field in dataclasses.fields(Rows)]
    return Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
