import numpy as np
import pytest

from selfparam_jax.data.packing import (
    NO_SLOT,
    Piece,
    Rows,
    check_sizes,
    fill_rate,
    fill_rows,
    first_fit_decreasing,
    loss_positions,
)
from selfparam_jax.models.masks import PADDING

PIECES = [
    Piece((5, 6), 0, (0,), (0.5,), (0.25,), (7,)),
    Piece((1, 2, 3, 4), 0, (0, 2), (1.0, 2.0), (0.0, 3.0), (3, 4)),
    Piece((8, 9, 8), 11, (1,), (1.5,), (0.0,), (9,)),
]


def piece(length, losses=0, first=0):
    """A piece with the first `losses` positions carrying loss."""
    slots, ones, zeros = tuple(range(losses)), (1.0,) * losses, (0.0,) * losses
    return Piece(tuple(range(10, 10 + length)), first, slots, ones, zeros, slots)


def first_fit_by_looking_at_every_row(lengths, seq_len):
    """The textbook's: every piece, longest first, looks at all rows in order."""
    rows, room = [], np.zeros(len(lengths), np.int64)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # stable
        fits = np.flatnonzero(room[: len(rows)] >= lengths[i])
        if fits.size == 0:
            rows.append([])
            room[len(rows) - 1] = seq_len
        row = fits[0] if fits.size else len(rows) - 1
        rows[row].append(i)
        room[row] -= lengths[i]
    return rows


def random_pieces(rng, seq_len, count):
    """Pieces of any length, each loss with a slot of its own; the last token of a piece predicts nothing."""
    pieces, slot = [], 0
    for _ in range(count):
        ids = tuple(rng.integers(1, 1000, rng.integers(1, seq_len + 1)).tolist())
        losses = int(rng.integers(0, len(ids)))
        predictors = tuple(sorted(rng.choice(len(ids) - 1, losses, replace=False).tolist())) if losses else ()
        weights, supervision = (tuple((0.5 * rng.integers(0, 5, losses)).tolist()) for _ in range(2))
        slots = tuple(range(slot, slot + losses))
        pieces.append(Piece(ids, int(rng.integers(0, 9)), predictors, weights, supervision, slots))
        slot += losses
    return pieces


def assert_is_a_partition(rows, lengths, seq_len):
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))  # each exactly once
    assert all(rows)
    assert max(sum(lengths[i] for i in row) for row in rows) <= seq_len


# first_fit_decreasing


def test_first_fit_takes_the_first_row_with_room():
    lengths = [5, 4, 3, 2, 2]
    assert first_fit_decreasing(lengths, 8) == [[0, 2], [1, 3, 4]]
    assert first_fit_decreasing(lengths[::-1], 8) == [[4, 2], [3, 0, 1]]
    # 2 fits both rows, and the second exactly: the first still takes it.
    assert first_fit_decreasing([6, 5, 2], 8) == [[0, 2], [1]]
    assert first_fit_decreasing([5, 6, 2, 2], 8) == [[1, 2], [0, 3]]


def test_exact_fits():
    assert first_fit_decreasing([4, 4], 8) == [[0, 1]]
    assert first_fit_decreasing([4, 4], 7) == [[0], [1]]
    assert first_fit_decreasing([8, 1, 8, 7], 8) == [[0], [2], [3, 1]]


def test_equal_lengths_keep_their_order():
    lengths = [2, 3, 2, 3, 2, 3]
    assert first_fit_decreasing(lengths, 3) == [[1], [3], [5], [0], [2], [4]]
    assert first_fit_decreasing(lengths, 6) == [[1, 3], [5, 0], [2, 4]]
    assert first_fit_decreasing([1] * 40, 16) == [list(range(16)), list(range(16, 32)), list(range(32, 40))]


def test_one_per_row():
    assert first_fit_decreasing([1, 2, 1, 8], 8, one_per_row=True) == [[3], [1], [0], [2]]


@pytest.mark.parametrize("one_per_row", [False, True])
def test_no_pieces_need_no_rows(one_per_row):
    assert first_fit_decreasing([], 4, one_per_row) == []


def test_indices_are_plain_integers():
    for one_per_row in (False, True):
        rows = first_fit_decreasing(np.array([3, 1]), 4, one_per_row)
        assert {type(i) for row in rows for i in row} == {int}


@pytest.mark.parametrize("one_per_row", [False, True])
@pytest.mark.parametrize("lengths", [[9], [2, 9, 8], [9, 2, 1]])
def test_a_piece_longer_than_a_row_is_refused(lengths, one_per_row):
    message = r"a sentence has 9 tokens .* but a row holds 8; raise train.seq_len or shorten the sentence"
    with pytest.raises(ValueError, match=message):
        first_fit_decreasing(lengths, 8, one_per_row)
    assert len(first_fit_decreasing(lengths, 9, one_per_row)) >= 1


@pytest.mark.parametrize("seed", range(60))
def test_packing_equals_plain_first_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    seq_len = int(rng.integers(1, 60))
    longest = int(rng.integers(1, seq_len + 1))
    lengths = rng.integers(1, longest + 1, rng.integers(1, 200)).tolist()
    rows = first_fit_decreasing(lengths, seq_len)
    assert rows == first_fit_by_looking_at_every_row(lengths, seq_len)
    assert_is_a_partition(rows, lengths, seq_len)

    # Another order: other pieces, but the same lengths in every row.
    order = rng.permutation(len(lengths))
    shuffled = [lengths[i] for i in order]
    again = first_fit_decreasing(shuffled, seq_len)
    assert [[shuffled[i] for i in row] for row in again] == [[lengths[i] for i in row] for row in rows]


def test_another_order_mixes_the_rows():
    lengths = [3, 3, 3, 3, 2, 2, 2, 2]
    order = [3, 1, 0, 2, 6, 4, 7, 5]
    rows = first_fit_decreasing(lengths, 5)
    again = [[order[i] for i in row] for row in first_fit_decreasing([lengths[i] for i in order], 5)]
    assert rows == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert again == [[3, 6], [1, 4], [0, 7], [2, 5]]


@pytest.mark.parametrize(("longest", "seq_len"), [(128, 1024), (1024, 1024), (24, 2048)])
def test_twenty_thousand_pieces(longest, seq_len):
    lengths = np.random.default_rng(0).integers(1, longest + 1, 20_000).tolist()
    rows = first_fit_decreasing(lengths, seq_len)
    assert_is_a_partition(rows, lengths, seq_len)
    # No piece would have fitted a row before its own, and so no two rows could be one.
    smallest = np.array([min(lengths[i] for i in row) for row in rows])
    room = np.array([seq_len - sum(lengths[i] for i in row) for row in rows])
    smallest_after = np.minimum.accumulate(smallest[::-1])[::-1][1:]
    assert np.all(smallest_after > room[:-1])
    assert len(rows) <= 1.02 * sum(lengths) / seq_len + 1
    assert rows == first_fit_by_looking_at_every_row(lengths, seq_len)


# fill_rows


def test_rows_by_hand():
    assignment = first_fit_decreasing([len(p.ids) for p in PIECES], 6)
    assert assignment == [[1, 0], [2]]
    rows = fill_rows(PIECES, assignment, 6)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [8, 9, 8, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1], [11, 12, 13, 0, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, PADDING, PADDING, PADDING]]
    assert rows.weights.tolist() == [[1.0, 0.0, 2.0, 0.0, 0.5, 0.0], [0.0, 1.5, 0.0, 0.0, 0.0, 0.0]]
    assert rows.supervision.tolist() == [[0.0, 0.0, 3.0, 0.0, 0.25, 0.0], [0.0] * 6]
    no = NO_SLOT
    assert rows.slots.tolist() == [[3, no, 4, no, 7, no], [no, 9, no, no, no, no]]
    assert {name: value.dtype.name for name, value in vars(rows).items()} == {
        "input_ids": "int32",
        "positions": "int32",
        "segments": "int32",
        "weights": "float32",
        "supervision": "float32",
        "slots": "int32",
    }


def test_positions_restart_or_continue_with_every_piece():
    rows = fill_rows([piece(3, first=20), piece(2), piece(2, first=7)], [[0, 1, 2]], 8)
    assert rows.positions.tolist() == [[20, 21, 22, 0, 1, 7, 8, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 2, 2, 3, 3, PADDING]]


def test_an_empty_assignment_is_a_row_of_padding():
    rows = fill_rows([piece(2, 1)], [[], [0], []], 4)
    for empty in (0, 2):
        assert rows.segments[empty].tolist() == [PADDING] * 4
        assert rows.slots[empty].tolist() == [NO_SLOT] * 4
        for values in (rows.input_ids, rows.positions, rows.weights, rows.supervision):
            assert values[empty].tolist() == [0] * 4
    assert rows.segments[1].tolist() == [1, 1, PADDING, PADDING]
    assert rows.slots[1].tolist() == [0, NO_SLOT, NO_SLOT, NO_SLOT]
    for values in vars(fill_rows([], [], 4)).values():
        assert values.shape == (0, 4)


# loss_positions


def test_loss_positions_of_two_groups_by_hand():
    no = NO_SLOT
    pieces = [*PIECES, Piece((7, 3), 0, (), (), (), ()), Piece((4, 2, 6), 0, (0, 1), (0.0, 4.0), (0.0, 5.0), (2, 0))]
    # Group 0: a row of padding, then a full row; group 1: a piece with and one without loss, then the last.
    rows = fill_rows(pieces, [[], [1, 0], [2, 3], [4]], 6)
    found = loss_positions(rows, groups=2)
    assert found.used.tolist() == [3, 3]
    # Row 1 of a group begins at 6. A weight of zero does not make a position unused.
    assert found.index.tolist() == [[6, 8, 10] + [0] * 9, [1, 6, 7] + [0] * 9]
    assert found.targets.tolist() == [[2, 4, 6] + [0] * 9, [8, 2, 6] + [0] * 9]
    assert found.weights.tolist() == [[1.0, 2.0, 0.5] + [0.0] * 9, [1.5, 0.0, 4.0] + [0.0] * 9]
    assert found.supervision.tolist() == [[0.0, 3.0, 0.25] + [0.0] * 9, [0.0, 0.0, 5.0] + [0.0] * 9]
    assert found.slots.tolist() == [[3, 4, 7] + [no] * 9, [9, 2, 0] + [no] * 9]
    assert {name: value.dtype.name for name, value in vars(found).items()} == {
        "used": "int32",
        "index": "int32",
        "targets": "int32",
        "weights": "float32",
        "supervision": "float32",
        "slots": "int32",
    }


def test_loss_positions_of_one_group_by_hand():
    found = loss_positions(fill_rows(PIECES, [[1, 0], [2]], 6))
    assert found.used.tolist() == [4]
    assert found.index.tolist() == [[0, 2, 4, 7] + [0] * 8]
    assert found.targets.tolist() == [[2, 4, 6, 8] + [0] * 8]
    assert found.weights.tolist() == [[1.0, 2.0, 0.5, 1.5] + [0.0] * 8]
    assert found.slots.tolist() == [[3, 4, 7, 9] + [NO_SLOT] * 8]


def test_no_loss_at_all():
    found = loss_positions(fill_rows([piece(3), piece(6)], [[0], [1], [], []], 6), groups=4)
    assert found.used.tolist() == [0] * 4
    for name in ("index", "targets", "weights", "supervision"):
        assert getattr(found, name).tolist() == [[0] * 6] * 4
    assert found.slots.tolist() == [[NO_SLOT] * 6] * 4


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_shape_does_not_depend_on_the_pieces(groups):
    few = fill_rows([piece(2, 1)], [[0], [], [], []], 6)
    many = fill_rows([piece(6, 5)] * 4, [[0], [1], [2], [3]], 6)
    for rows in (few, many):
        found = loss_positions(rows, groups)
        assert found.used.shape == (groups,)
        for name in ("index", "targets", "weights", "supervision", "slots"):
            assert getattr(found, name).shape == (groups, 24 // groups)
    assert loss_positions(few, groups).used.tolist() == [1] + [0] * (groups - 1)
    assert loss_positions(many, groups).used.tolist() == [20 // groups] * groups


@pytest.mark.parametrize("seed", range(25))
def test_random_pieces_come_back(seed):
    rng = np.random.default_rng(seed)
    seq_len, groups = int(rng.integers(4, 40)), int(rng.integers(1, 4))
    pieces = random_pieces(rng, seq_len, rng.integers(1, 60))
    lengths = [len(p.ids) for p in pieces]
    assignment = first_fit_decreasing(lengths, seq_len)
    assignment += [[]] * (-len(assignment) % groups)
    rows = fill_rows(pieces, assignment, seq_len)
    assert rows.input_ids.shape == (len(assignment), seq_len)
    assert np.mean(rows.segments != PADDING) == pytest.approx(fill_rate(lengths, len(assignment), seq_len))
    for r, members in enumerate(assignment):
        for segment, i in enumerate(members, start=1):
            mine = rows.segments[r] == segment
            assert rows.input_ids[r, mine].tolist() == list(pieces[i].ids)
            first = pieces[i].first_position
            assert rows.positions[r, mine].tolist() == list(range(first, first + len(pieces[i].ids)))
        assert set(rows.segments[r].tolist()) <= {PADDING, *range(1, len(members) + 1)}

    # Group by group the slots stand in the order of the rows, each with its token, the next one and its weights.
    found = loss_positions(rows, groups)
    by_group = np.split(np.arange(len(assignment)), groups)
    for g, members in enumerate(by_group):
        expected = [
            (p.slots[k], p.ids[at], p.ids[at + 1], p.weights[k], p.supervision[k])
            for r in members
            for p in (pieces[i] for i in assignment[r])
            for k, at in enumerate(p.predictors)
        ]
        n = found.used[g]
        index = found.index[g, :n]
        assert np.all(np.diff(index) > 0)
        columns = (
            found.slots[g, :n],
            rows.input_ids[members].ravel()[index],
            found.targets[g, :n],
            found.weights[g, :n],
            found.supervision[g, :n],
        )
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == expected
        assert np.all(found.slots[g, n:] == NO_SLOT)
        for name in ("index", "targets", "weights", "supervision"):
            assert not getattr(found, name)[g, n:].any()
    assert found.used.sum() == sum(len(p.slots) for p in pieces)


# The rest


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [([2, 0], [2, 0]), ([1, 1, 0], [1, 1, 0]), (slice(1, 3), [1, 2]), (np.array([0]), [0]), (slice(0, 0), [])],
)
def test_take(chosen, expected):
    whole = fill_rows(PIECES, [[0], [1], [2]], 4)
    picked = whole.take(chosen)
    assert isinstance(picked, Rows)
    for name, before in vars(whole).items():
        value = getattr(picked, name)
        assert value.tolist() == [before[i].tolist() for i in expected]
        assert value.dtype == before.dtype
        assert value.shape == (len(expected), 4)


def test_fill_rate_by_hand():
    assert fill_rate([4, 2, 3], 2, 6) == 0.75
    assert fill_rate([6, 6], 2, 6) == 1.0
    assert fill_rate([3], 4, 6) == 0.125
    assert fill_rate([], 2, 6) == 0.0
    assert fill_rate([], 0, 6) == 0.0  # no rows: nothing is filled, and nothing is divided by zero
    assert type(fill_rate(np.array([1]), 1, 3)) is float


def test_check_sizes():
    check_sizes([], 8)
    check_sizes([8, 1, 8], 8)
    with pytest.raises(ValueError, match=r"a sentence has 12 tokens .* but a row holds 8; raise train.seq_len"):
        check_sizes([3, 9, 12, 10, 8], 8)
    with pytest.raises(ValueError, match="a sentence has 9 tokens"):
        check_sizes((9,), 8)
