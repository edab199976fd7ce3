"""Scores of an answer against gold answers, and intervals of their means. Pure functions of strings and numbers."""

import collections
import re
import string
from collections.abc import Callable, Sequence

import numpy as np

from selfparam_jax.data.scripts import is_unspaced, segment

BOOTSTRAP_DRAWS = 1_000_000  # numbers in memory at once


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, gold: str) -> float:
    """SQuAD's token F1 of normalised texts; two empty texts agree."""
    predicted, wanted = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((collections.Counter(predicted) & collections.Counter(wanted)).values())
    return 2.0 * common / (len(predicted) + len(wanted))


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if the normalised texts are equal."""
    return float(normalize(prediction) == normalize(gold))


def contains(prediction: str, gold: str) -> float:
    """1.0 if the normalised gold answer stands in the prediction as whole words."""
    return float(f" {normalize(gold)} " in f" {normalize(prediction)} ")


def character_f1(prediction: str, gold: str) -> float:
    """F1 as CMRC and MLQA compute it: each character of a script without spaces is a token, and each other word."""
    predicted, wanted = segment(prediction), segment(gold)
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((collections.Counter(predicted) & collections.Counter(wanted)).values())
    return 2.0 * common / (len(predicted) + len(wanted))


def character_match(prediction: str, gold: str) -> float:
    """1.0 if both have the same characters, punctuation and spaces apart."""
    return float(segment(prediction) == segment(gold))


def best(metric: Callable[[str, str], float], prediction: str, golds: Sequence[str]) -> float:
    """The metric against the gold answer that suits it best."""
    return max(metric(prediction, gold) for gold in golds)


def bootstrap_interval(groups: Sequence[Sequence[float]], seed: int = 0, samples: int = 2000) -> list[float]:
    """95 % percentile interval of the mean of group means, resampling contexts and, in each, questions."""
    rng = np.random.default_rng(seed)
    sizes = np.array([len(group) for group in groups])
    values = np.concatenate([np.asarray(group, np.float64) for group in groups])
    first = np.cumsum(sizes) - sizes
    longest = int(sizes.max())
    means = np.empty(samples)
    part = max(1, BOOTSTRAP_DRAWS // (len(sizes) * longest))  # samples drawn at once
    for start in range(0, samples, part):
        count = min(part, samples - start)
        chosen = rng.integers(len(sizes), size=(count, len(sizes), 1))
        draws = rng.random((count, len(sizes), longest))
        scores = values[first[chosen] + (draws * sizes[chosen]).astype(np.int64)]
        # Every group draws as many questions as the longest has; a shorter one uses only its first draws.
        taken = np.arange(longest) < sizes[chosen]
        means[start : start + count] = (np.where(taken, scores, 0.0).sum(-1) / sizes[chosen[..., 0]]).mean(-1)
    return [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


# Scores of one answer, by name: metric(prediction, gold) -> 0 to 1.
METRICS: dict[str, Callable[[str, str], float]] = {"f1": token_f1, "em": exact_match, "contains": contains}
# Scores that an answer has besides, where its gold answers are in a script without spaces: SQuAD's own take a whole
# sentence of it for one word.
UNSPACED_METRICS: dict[str, Callable[[str, str], float]] = {"char_f1": character_f1, "char_em": character_match}


def metrics_for(golds: Sequence[str]) -> dict[str, Callable[[str, str], float]]:
    """The metrics of a question with these gold answers."""
    return METRICS | (UNSPACED_METRICS if any(map(is_unspaced, golds)) else {})
