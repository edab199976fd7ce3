"""Sentences into fixed token rows: segment ids, restarting positions, and where the loss looks.

A *piece* is one sentence as one reader reads it. Rows have one shape for the whole job, so there is one
compilation; a piece that does not fit is an error, never cut.
"""

import dataclasses
import heapq
from collections.abc import Sequence

import numpy as np

from selfparam_jax.models.masks import PADDING

NO_SLOT = -1  # a position whose next token carries no loss


@dataclasses.dataclass(frozen=True)
class Piece:
    """One sentence in a row.

    Attributes:
      ids: token ids.
      first_position: position of ids[0] (0, or the prefix length for a reader that continues one).
      predictors: indices into ids of the positions whose next token, also of this piece, carries loss.
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
    """Packed rows; all arrays are [B, T].

    Attributes:
      input_ids, positions, segments: int32.
      weights, supervision: float32, of the token that follows; 0 where it carries no loss.
      slots: int32, row of the hidden-state store of the token that follows; NO_SLOT where it carries no loss.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    weights: np.ndarray
    supervision: np.ndarray
    slots: np.ndarray

    def take(self, rows) -> "Rows":
        return Rows(**{name: value[rows] for name, value in vars(self).items()})


@dataclasses.dataclass(frozen=True)
class LossPositions:
    """Where the loss looks in some rows, group by group, the positions in use first.

    Attributes:
      used: int32 [S], positions in use.
      index: int32 [S, N], position within the group's rows laid end to end (0 where unused).
      targets: int32 [S, N], the token that follows.
      weights, supervision: float32 [S, N], 0 where unused.
      slots: int32 [S, N], NO_SLOT where unused.
    """

    used: np.ndarray
    index: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    supervision: np.ndarray
    slots: np.ndarray


def check_sizes(lengths: Sequence[int], seq_len: int) -> None:
    """Raises ValueError if a piece is longer than a row."""
    longest = max(lengths, default=0)
    if longest > seq_len:
        raise ValueError(
            f"a sentence has {longest} tokens (what the prompt format puts before it included), but a row holds "
            f"{seq_len}; raise train.seq_len or shorten the sentence"
        )


def first_fit_decreasing(lengths: Sequence[int], seq_len: int, one_per_row: bool = False) -> list[list[int]]:
    """Indices of pieces per row, by first-fit-decreasing: longest first, each into the first row with room.

    Pieces of equal length keep the order in which they are given, so shuffling the input mixes the rows. The
    number of rows depends on the lengths alone, not on their order.

    Raises:
      ValueError: a piece is longer than a row.
    """
    check_sizes(lengths, seq_len)
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    if one_per_row:
        return [[int(i)] for i in order]
    rows: list[list[int]] = []
    # For every amount of room, the rows that have it, ascending: the first row that fits is found by looking
    # at the head of each amount, however many rows there are.
    with_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    none = np.iinfo(np.int64).max
    first = np.full(seq_len + 1, none, np.int64)
    for i in order:
        length = int(lengths[i])
        room = length + int(np.argmin(first[length:]))
        row = int(first[room])
        if row == none:
            row, room = len(rows), seq_len
            rows.append([])
        else:
            heapq.heappop(with_room[room])
            first[room] = with_room[room][0] if with_room[room] else none
        rows[row].append(int(i))
        room -= length
        heapq.heappush(with_room[room], row)
        first[room] = with_room[room][0]
    return rows


def fill_rows(pieces: Sequence[Piece], assignment: Sequence[Sequence[int]], seq_len: int) -> Rows:
    """Writes pieces into rows [len(assignment), seq_len]; empty assignments give rows of padding."""
    shape = (len(assignment), seq_len)
    input_ids, positions = np.zeros((2, *shape), np.int32)
    segments, slots = np.full(shape, PADDING, np.int32), np.full(shape, NO_SLOT, np.int32)
    weights, supervision = np.zeros((2, *shape), np.float32)
    for row, members in enumerate(assignment):
        start = 0
        for segment, i in enumerate(members, start=1):
            piece = pieces[i]
            span = slice(start, start + len(piece.ids))
            input_ids[row, span] = piece.ids
            positions[row, span] = piece.first_position + np.arange(len(piece.ids))
            segments[row, span] = segment
            at = start + np.asarray(piece.predictors, np.int64)
            weights[row, at], supervision[row, at], slots[row, at] = piece.weights, piece.supervision, piece.slots
            start = span.stop
    return Rows(input_ids, positions, segments, weights, supervision, slots)


def loss_positions(rows: Rows, groups: int = 1) -> LossPositions:
    """Collects the positions that carry loss from each of `groups` equal groups of rows.

    There is room for all positions of a group, N = B / S * T, so the shape does not depend on the rows.
    """
    count, length = rows.input_ids.shape
    if count % groups:
        raise ValueError(f"{count} rows cannot be split into {groups} equal groups; use a multiple of {groups}")
    shape = (groups, count // groups * length)
    slots = rows.slots.reshape(shape)
    # A token's target stands one to the right; a row's last position is never a predictor of anything.
    following = np.roll(rows.input_ids, -1, axis=1).reshape(shape)
    # Positions in use first, in order.
    index = np.argsort(slots == NO_SLOT, axis=1, kind="stable").astype(np.int32)
    used = np.sum(slots != NO_SLOT, axis=1).astype(np.int32)
    unused = np.arange(shape[1])[None] >= used[:, None]

    def collect(values):
        return np.take_along_axis(values.reshape(shape), index, axis=1)

    found = {"weights": collect(rows.weights), "supervision": collect(rows.supervision), "slots": collect(slots)}
    targets = np.where(unused, 0, collect(following))
    return LossPositions(used=used, index=np.where(unused, 0, index), targets=targets, **found)


def fill_rate(lengths: Sequence[int], rows: int, seq_len: int) -> float:
    """Share of the positions of `rows` rows that hold a token."""
    return float(np.sum(lengths) / max(rows * seq_len, 1))
