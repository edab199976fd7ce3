"""A target sentence: which of its tokens carry loss, and where their hidden states are stored."""

import numpy as np
import pytest

from selfparam_jax.targets.sentences import Reading, Sentence, context_groups, first_slots


def sentence(context, *weights, supervision=()):
    return Sentence("qa", context, (5,) * len(weights), weights, None, {}, supervision)


def test_loss_tokens_carry_kl_or_supervision_or_both():
    assert sentence(0, 0.0, 1.0, 0.5, 0.0).loss_tokens == [1, 2]
    assert sentence(0, 0.0, 1.0, 0.0, 0.0, supervision=(0.0, 0.5, 0.0, 0.5)).loss_tokens == [1, 3]
    assert sentence(0, 0.0, supervision=(0.0,)).loss_tokens == []


def test_groups_and_slots_by_hand():
    made = [
        sentence(1, 1.0, 1.0),
        sentence(None, 0.0, 0.5, 0.5),
        sentence(0, 1.0),
        sentence(2, 0.0),  # no loss: it is in no group and has no slots
        sentence(1, 0.0, 2.0),
        sentence(0, 0.0, 0.0, supervision=(0.0, 1.0)),
        sentence(1, 0.0, 0.0),
        sentence(None, 1.0),
        sentence(1, 1.0, 1.0, 1.0),
    ]
    groups = context_groups(made)
    assert groups == {1: [0, 4, 8], None: [1, 7], 0: [2, 5]}
    assert list(groups) == [1, None, 0]
    first = first_slots(made)
    assert first.dtype == np.int64
    with_loss = [0, 1, 2, 4, 5, 7, 8]
    assert first[with_loss].tolist() == [0, 6, 9, 2, 10, 8, 3]
    assert first_slots([]).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_slots_of_a_context_are_contiguous_and_no_slot_is_shared(seed):
    rng = np.random.default_rng(seed)
    made = [
        sentence([None, 0, 1, 2][rng.integers(4)], *(0.5 * rng.integers(0, 3, rng.integers(1, 6))).tolist())
        for _ in range(60)
    ]
    first, groups = first_slots(made), context_groups(made)
    assert sorted(i for members in groups.values() for i in members) == [
        i for i, s in enumerate(made) if s.loss_tokens
    ]
    assert any(not s.loss_tokens for s in made)
    slot = 0
    for context, members in groups.items():
        assert members == sorted(members)
        for i in members:
            assert made[i].context == context
            assert first[i] == slot
            slot += len(made[i].loss_tokens)
    assert slot == sum(len(s.loss_tokens) for s in made)


def test_the_teacher_may_read_another_form_of_the_same_tokens():
    ids, weights = (5, 6, 7, 2), (0.0, 1.0, 1.0, 0.0)
    made = Sentence(
        "qa", 0, ids, weights, None, {}, (0.0, 0.5, 0.5, 0.5), None, (1,), Reading((9, 6, 7, 3), (1, 2, 3))
    )
    assert (made.taught_ids, made.taught_tokens, made.start_ids((8, 8))) == ((9, 6, 7, 3), (1, 2, 3), (1,))
    assert made.loss_tokens == [1, 2, 3], "the last has no KL loss: there the teacher may read another token"
    same = Sentence("qa", 0, ids, weights, None, {})
    assert (same.taught_ids, same.taught_tokens, same.start_ids((8, 8))) == (ids, [1, 2], (8, 8))
    with pytest.raises(ValueError, match=r"student's tokens are \[6, 7\], the teacher's \[6, 4\]"):
        Sentence("qa", 0, ids, weights, None, {}, (), None, None, Reading((9, 6, 4), (1, 2)))
    with pytest.raises(ValueError):  # one too few
        Sentence("qa", 0, ids, weights, None, {}, (), None, None, Reading((9, 6, 7), (1,)))
