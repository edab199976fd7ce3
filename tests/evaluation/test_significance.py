"""Paired tests of two recommenders, by hand."""

import numpy as np
import pytest

from selfparam_jax.evaluation.recommendation import COLUMNS, Rows, Turn
from selfparam_jax.evaluation.significance import bootstrap_difference, compare_rows, mcnemar


def test_mcnemar_by_hand():
    first, second = [1, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1, 0]
    # Five targets only one of them hit, split 4 to 1: p = 2 * (1 + 5) / 32.
    assert mcnemar(first, second) == {"only_first": 4, "only_second": 1, "p": pytest.approx(0.375)}
    assert mcnemar(second, first)["p"] == pytest.approx(0.375)
    assert mcnemar([1, 0], [1, 0]) == {"only_first": 0, "only_second": 0, "p": 1.0}
    assert mcnemar([1] * 10, [0] * 10)["p"] == pytest.approx(2 / 1024)
    assert mcnemar([1, 0], [0, 1])["p"] == 1.0  # not more than 1
    assert 0 <= mcnemar([1] * 3000, [0] * 3000)["p"] < 1e-300


def test_the_bootstrap_by_hand():
    same = bootstrap_difference(np.ones(5), np.ones(5), list("abcde"))
    assert same == {"difference": 0.0, "ci95": [0.0, 0.0]}
    shifted = bootstrap_difference(np.zeros(4), np.full(4, 0.25), list("aabb"))
    assert shifted == {"difference": 0.25, "ci95": [0.25, 0.25]}
    assert bootstrap_difference(np.zeros(0), np.zeros(0), []) == {"difference": None, "ci95": None}


def test_the_bootstrap_draws_whole_dialogues():
    first, second = np.zeros(100), np.tile([0.0, 1.0], 50)
    apart = bootstrap_difference(first, second, [str(n) for n in range(100)])
    together = bootstrap_difference(first, second, ["a" if value else "b" for value in second])
    assert apart["difference"] == together["difference"] == 0.5
    assert apart["ci95"] == pytest.approx([0.4, 0.6], abs=0.02)  # 0.5 +- 1.96 * 0.05
    assert together["ci95"] == [0.0, 1.0]


def test_rows_are_compared_by_condition():
    turns = [Turn(("a",), frozenset(), "1"), Turn(("b",), frozenset({"b"}), "2")]
    none, all_ = np.zeros((2, len(COLUMNS))), np.ones((2, len(COLUMNS)))
    first = Rows(np.array([0, 1]), np.array([False, True]), none)
    second = Rows(np.array([0, 1]), np.array([False, True]), all_)
    found = compare_rows(first, second, turns)
    assert found["all"]["recall@5"]["difference"] == 1.0
    assert found["recommendation"]["recall@1"]["mcnemar"] == {"only_first": 0, "only_second": 1, "p": 1.0}
    assert "mcnemar" not in found["all"]["ndcg@5"]
    with pytest.raises(ValueError, match="different turns"):
        compare_rows(first, Rows(np.array([0, 2]), np.array([False, True]), all_), turns)
