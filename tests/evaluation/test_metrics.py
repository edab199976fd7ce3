"""Scores of an answer by hand, and the interval of their mean."""

import numpy as np
import pytest

from selfparam_jax.evaluation import metrics
from selfparam_jax.evaluation.metrics import (
    METRICS,
    UNSPACED_METRICS,
    best,
    bootstrap_interval,
    character_f1,
    character_match,
    contains,
    exact_match,
    metrics_for,
    normalize,
    token_f1,
)

# --- scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick, brown\tfox!", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("Theatre and another", "theatre and another"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("it's 3.5 %", "its 35"),
        ("well-known", "wellknown"),
        ("the", ""),
        (" \n", ""),
        ("A. The", ""),  # punctuation goes before articles
        ("Süd, 12 €", "süd 12 €"),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "em", "contained"),
    [
        ("The village of Pelsin.", "village of Pelsin", 1.0, 1.0, 1.0),
        ("in the village of Pelsin", "Pelsin", 2 * (1 / 4) * 1 / (1 / 4 + 1), 0.0, 1.0),
        ("green", "red", 0.0, 0.0, 0.0),
        ("one two two three", "two two two", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3), 0.0, 0.0),
        ("two", "two two", 2 * 1 * 0.5 / 1.5, 0.0, 0.0),
        ("b a c", "c b", 1.0, 0.0, 0.0),  # `a` is an article; F1 knows no order
        ("", "green", 0.0, 0.0, 0.0),
        ("green", "", 0.0, 0.0, 0.0),
        ("the", "", 1.0, 1.0, 1.0),
        ("1981, in June", "198", 0.0, 0.0, 0.0),  # whole words
        ("held in June 1981", "June, 1981", 2 * 0.5 / 1.5, 0.0, 1.0),
    ],
)
def test_scores(prediction, gold, f1, em, contained):
    assert token_f1(prediction, gold) == pytest.approx(f1)
    assert token_f1(gold, prediction) == pytest.approx(f1)
    assert exact_match(prediction, gold) == em
    assert contains(prediction, gold) == contained


def test_best_over_golds():
    assert best(exact_match, "green", ["red", "Green."]) == 1.0
    assert best(token_f1, "dark green", ["red", "green"]) == pytest.approx(2 / 3)
    assert best(token_f1, "blue", ["red", "green"]) == 0.0


def test_bootstrap_interval():
    groups = [list(np.random.default_rng(n).random(3 + n)) for n in range(6)]
    low, high = bootstrap_interval(groups)
    assert low < np.mean([np.mean(group) for group in groups]) < high
    assert bootstrap_interval(groups) == [low, high]
    assert bootstrap_interval(groups, seed=1) != [low, high]
    assert bootstrap_interval([[0.25] * 3, [0.25]]) == [0.25, 0.25]


def test_bootstrap_interval_resamples_contexts_and_questions():
    # Two contexts, 0 and 1: the mean is 0, 0.5 or 1, the outer ones with probability 1/4 each.
    assert bootstrap_interval([[0.0, 0.0], [1.0, 1.0]]) == [0.0, 1.0]
    # One context: only its questions can vary. 100 of them at 1/2: a standard error of 0.05.
    low, high = bootstrap_interval([[0.0, 1.0] * 50])
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)


def test_bootstrap_interval_of_groups_of_unequal_size(monkeypatch):
    """Against the definition, drawn one by one; and drawn in many parts."""
    rng = np.random.default_rng(3)
    groups = [rng.random(size) for size in (1, 7, 2, 4)]
    means = []
    for _ in range(4000):
        chosen = [groups[place] for place in rng.integers(4, size=4)]
        means.append(np.mean([rng.choice(group, len(group)).mean() for group in chosen]))
    expected = pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)
    assert bootstrap_interval(groups, samples=4000) == expected
    monkeypatch.setattr(metrics, "BOOTSTRAP_DRAWS", 60)
    assert bootstrap_interval(groups, samples=4000) == expected


def test_the_registry_of_metrics():
    assert {name: metric("the town of Om", "Om") for name, metric in METRICS.items()} == {
        "f1": pytest.approx(0.5),
        "em": 0.0,
        "contains": 1.0,
    }


# --- scripts without spaces ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "gold", "f1"),
    [
        ("巴黎。", "巴黎", 1.0),
        ("在巴黎", "巴黎", 0.8),
        ("北京", "巴黎", 0.0),
        ("iPhone 手机", "iphone手机", 1.0),  # a Latin word is one token
        ("ปารีส", "ปารีส", 1.0),
        ("ปา", "ปารีส", 2 * 2 / (2 + 4)),  # a vowel sign belongs to its letter
        ("東京タワー", "東京", 2 * 2 / (5 + 2)),
        ("", "巴黎", 0.0),
        ("。", "", 1.0),
    ],
)
def test_character_f1(prediction, gold, f1):
    assert character_f1(prediction, gold) == pytest.approx(f1)
    assert character_match(prediction, gold) == float(f1 == 1.0)


def test_metrics_are_chosen_by_the_script_of_the_gold_answers():
    assert metrics_for(["the town", "Om"]) == METRICS
    assert metrics_for(["1743"]) == METRICS
    assert metrics_for(["1743年"]) == METRICS | UNSPACED_METRICS  # digits are of no script
    for golds in (["巴黎"], ["Paris", "パリ"], ["ปารีส"], ["在 1743 年建立"]):
        assert metrics_for(golds) == METRICS | UNSPACED_METRICS
