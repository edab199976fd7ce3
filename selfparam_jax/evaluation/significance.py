"""Whether two recommenders differ: paired tests on the rows of the same targets."""

import math
from collections.abc import Sequence

import numpy as np

from selfparam_jax.evaluation.recommendation import COLUMNS, CONDITIONS, CUTOFFS, Rows, Turn

SAMPLES = 2000


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict:
    """The exact McNemar test of paired hits.

    Args:
      first, second: whether each target was hit [N].

    Returns:
      "only_first" and "only_second", how many targets only one of them hit, and "p": the two-sided probability of a
      split at least as uneven if both are as likely.
    """
    hit = np.asarray(first, bool), np.asarray(second, bool)
    only = [int(np.sum(one & ~other)) for one, other in (hit, hit[::-1])]
    total, fewer = sum(only), min(only)
    tail = sum(math.comb(total, n) for n in range(fewer + 1))
    return {"only_first": only[0], "only_second": only[1], "p": min(1.0, 2 * tail / 2**total)}


def bootstrap_difference(
    first: np.ndarray, second: np.ndarray, groups: Sequence[str], seed: int = 0, samples: int = SAMPLES
) -> dict:
    """Difference of two means, second less first, with a paired bootstrap over groups.

    Args:
      first, second: scores of the same targets [N].
      groups: the dialogue of each target; whole dialogues are drawn, as their targets depend on one another.
      seed: of the draws.
      samples: how many.

    Returns:
      "difference", and "ci95", the 2.5 and 97.5 percentiles of it over the samples.
    """
    if not len(first):
        return {"difference": None, "ci95": None}
    change = np.asarray(second, float) - np.asarray(first, float)
    members, place = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(place, change, len(members))
    sizes = np.bincount(place, minlength=len(members))
    drawn = np.random.default_rng(seed).multinomial(len(members), np.full(len(members), 1 / len(members)), samples)
    means = (drawn @ sums) / (drawn @ sizes)
    return {
        "difference": float(change.mean()),
        "ci95": [float(bound) for bound in np.percentile(means, [2.5, 97.5])],
    }


def compare_rows(first: Rows, second: Rows, turns: Sequence[Turn]) -> dict:
    """Both tests for every condition and column.

    Args:
      first, second: of the same turns.
      turns: all turns of the records.

    Returns:
      {condition: {column: {"difference", "ci95"}}}; recall also has "mcnemar".

    Raises:
      ValueError: the rows are of different turns.
    """
    if not np.array_equal(first.turn, second.turn):
        raise ValueError("the two files answer different turns, expected the same; score replies to the same records")
    found: dict = {}
    for condition in CONDITIONS:
        one, other = first.of(condition), second.of(condition)
        groups = [turns[index].dialogue_id for index in one.turn]
        entries = {}
        for place, name in enumerate(COLUMNS):
            pair = one.values[:, place], other.values[:, place]
            entries[name] = bootstrap_difference(*pair, groups)
            if name in [f"recall@{k}" for k in CUTOFFS]:
                entries[name]["mcnemar"] = mcnemar(*pair)
        found[condition] = entries
    return found
