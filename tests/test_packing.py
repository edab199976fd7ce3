import numpy as np
import pytest

from selfparam_jax.model import PADDING
from selfparam_jax.packing import Piece, Rows, concatenate, fill_rows, first_fit_decreasing


def piece(length, losses=0, first=0):
    """A piece with the first `losses` positions carrying loss."""
    slots, ones, zeros = tuple(range(losses)), (1.0,) * losses, (0.0,) * losses
    return Piece(tuple(range(10, 10 + length)), first, slots, ones, zeros, slots)


def test_by_hand():
    pieces = [
        Piece((5, 6), 0, (0,), (0.5,), (0.25,), (7,)),
        Piece((1, 2, 3, 4), 0, (0, 2), (1.0, 2.0), (0.0, 3.0), (3, 4)),
        Piece((8, 9, 8), 11, (1,), (1.5,), (0.0,), (9,)),
    ]
    assignment = first_fit_decreasing(pieces, 6, 3)
    assert assignment == [[1, 0], [2]]
    rows = fill_rows(pieces, assignment, 6, 3)
    assert rows.input_ids.tolist() == [[1, 2, 3, 4, 5, 6], [8, 9, 8, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 0, 1], [11, 12, 13, 0, 0, 0]]
    assert rows.segments.tolist() == [[1, 1, 1, 1, 2, 2], [1, 1, 1, PADDING, PADDING, PADDING]]
    assert rows.index.tolist() == [[0, 2, 4], [1, 0, 0]]
    assert rows.weights.tolist() == [[1.0, 2.0, 0.5], [1.5, 0.0, 0.0]]
    assert rows.supervision.tolist() == [[0.0, 3.0, 0.25], [0.0, 0.0, 0.0]]
    assert rows.slots.tolist() == [[3, 4, 7], [9, 0, 0]]
    assert {name: value.dtype.name for name, value in vars(rows).items()} == {
        "input_ids": "int32",
        "positions": "int32",
        "segments": "int32",
        "index": "int32",
        "weights": "float32",
        "supervision": "float32",
        "slots": "int32",
    }
    assert rows.fill == 9 / 12


def test_an_empty_assignment_is_a_row_of_padding():
    rows = fill_rows([piece(2, 1)], [[], [0]], 4, 2)
    assert rows.segments.tolist() == [[PADDING] * 4, [1, 1, PADDING, PADDING]]
    assert rows.weights.tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert fill_rows([], [], 4, 2).input_ids.shape == (0, 4)
    assert first_fit_decreasing([], 4, 2) == []


def test_first_fit_takes_the_first_row_with_room():
    lengths = [5, 4, 3, 2, 2]
    assert first_fit_decreasing([piece(n) for n in lengths], 8, 0) == [[0, 2], [1, 3, 4]]
    assert first_fit_decreasing([piece(n) for n in reversed(lengths)], 8, 0) == [[4, 2], [3, 0, 1]]


def test_loss_positions_are_a_capacity_too():
    pieces = [piece(3, 2), piece(3, 2), piece(3, 1)]
    assert first_fit_decreasing(pieces, 9, 9) == [[0, 1, 2]]
    assert first_fit_decreasing(pieces, 9, 3) == [[0, 2], [1]]


def test_exact_fits():
    assert first_fit_decreasing([piece(4, 2), piece(4, 2)], 8, 4) == [[0, 1]]
    assert first_fit_decreasing([piece(4, 2), piece(4, 2)], 7, 4) == [[0], [1]]
    assert first_fit_decreasing([piece(4, 2), piece(4, 2)], 8, 3) == [[0], [1]]


def test_equal_lengths_keep_their_order():
    pieces = [piece(2), piece(3), piece(2), piece(3), piece(2), piece(3)]
    assert first_fit_decreasing(pieces, 3, 0) == [[1], [3], [5], [0], [2], [4]]
    assert first_fit_decreasing(pieces, 6, 0) == [[1, 3], [5, 0], [2, 4]]


def test_one_per_row():
    pieces = [piece(1), piece(2), piece(1)]
    assert first_fit_decreasing(pieces, 8, 8, one_per_row=True) == [[1], [0], [2]]


@pytest.mark.parametrize(
    ("long", "message"),
    [
        (
            piece(9, 2),
            "a sentence has 9 tokens, 2 of them with loss, but a row holds 8 and 4; raise train.row_length",
        ),
        (piece(8, 5), "a sentence has 8 tokens, 5 of them with loss, but a row holds 8 and 4"),
    ],
)
def test_too_long_is_refused(long, message):
    for one_per_row in (False, True):
        with pytest.raises(ValueError, match=message):
            first_fit_decreasing([piece(2), long], 8, 4, one_per_row)
    first_fit_decreasing([piece(8, 4)], 8, 4)


@pytest.mark.parametrize("seed", range(25))
def test_random_pieces(seed):
    rng = np.random.default_rng(seed)
    row_length, loss_length = int(rng.integers(4, 40)), int(rng.integers(2, 30))
    pieces, slot = [], 0
    for _ in range(rng.integers(1, 60)):
        ids = tuple(rng.integers(1, 1000, rng.integers(1, row_length + 1)).tolist())
        losses = int(rng.integers(0, min(loss_length, len(ids)) + 1))
        predictors = tuple(sorted(rng.choice(len(ids), losses, replace=False).tolist()))
        weights = tuple((0.5 * rng.integers(1, 5, losses)).tolist())
        slots = tuple(range(slot, slot + losses))
        pieces.append(Piece(ids, int(rng.integers(0, 9)), predictors, weights, weights, slots))
        slot += losses
    assignment = first_fit_decreasing(pieces, row_length, loss_length)
    assert sorted(i for row in assignment for i in row) == list(range(len(pieces)))  # each exactly once
    rows = fill_rows(pieces, assignment, row_length, loss_length)
    assert rows.input_ids.shape == (len(assignment), row_length)
    assert rows.index.shape == (len(assignment), loss_length)
    tokens = sum(len(p.ids) for p in pieces)
    assert rows.fill == pytest.approx(tokens / rows.input_ids.size)

    for r, members in enumerate(assignment):
        assert sum(len(pieces[i].ids) for i in members) <= row_length
        assert sum(len(pieces[i].predictors) for i in members) <= loss_length
        for segment, i in enumerate(members, start=1):
            mine = rows.segments[r] == segment
            assert rows.input_ids[r, mine].tolist() == list(pieces[i].ids)
            first = pieces[i].first_position
            assert rows.positions[r, mine].tolist() == list(range(first, first + len(pieces[i].ids)))
        assert set(rows.segments[r]) <= {PADDING, *range(1, len(members) + 1)}

    # Every slot comes back once, with the token it stands at and its weight.
    used = rows.weights > 0
    found = {
        int(s): (int(rows.input_ids[r, i]), float(w))
        for r in range(len(assignment))
        for s, i, w in zip(rows.slots[r][used[r]], rows.index[r][used[r]], rows.weights[r][used[r]], strict=True)
    }
    expected = {s: (p.ids[i], w) for p in pieces for s, i, w in zip(p.slots, p.predictors, p.weights, strict=True)}
    assert used.sum() == slot
    assert found == expected


def test_take_and_concatenate():
    pieces = [piece(4, 2), piece(3, 1), piece(2, 1)]
    whole = fill_rows(pieces, [[0], [1], [2]], 4, 2)
    picked = whole.take([2, 0])
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(picked, name), value[[2, 0]])
    again = concatenate([whole.take(slice(0, 1)), whole.take(slice(1, 3))])
    assert isinstance(again, Rows)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(again, name), value)
        assert getattr(again, name).dtype == value.dtype
