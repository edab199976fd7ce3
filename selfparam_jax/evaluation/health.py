"""Signs that training has ruined a model: its perplexity on general text, and what its answers look like."""

import collections
import math
from collections.abc import Sequence

REPEATS = 3  # a run of words that an answer says this often in a row is repeated output

RUINED = 2.0  # times the base's perplexity on general text


def is_ruined(drift: dict) -> bool:
    """Whether the perplexity is over RUINED times the base's; no if it was not measured."""
    before, after = drift["perplexity_before"], drift["perplexity_after"]
    return before is not None and (after is None or not math.isfinite(after) or after > RUINED * before)


def answer_health(answers: Sequence[str]) -> dict:
    """Shares of some answers that are empty, that repeat themselves, and that all are the same.

    Args:
      answers: to different questions.

    Returns:
      {"empty", "repeated", "same"}: "same" is the share of the most frequent answer that is not empty; None without
      answers.
    """
    if not answers:
        return {"empty": None, "repeated": None, "same": None}
    counts = collections.Counter(answer for answer in answers if answer.strip())
    return {
        "empty": sum(not answer.strip() for answer in answers) / len(answers),
        "repeated": sum(map(repeats, answers)) / len(answers),
        "same": max(counts.values(), default=0) / len(answers),
    }


def repeats(text: str) -> bool:
    """Whether a text says the same one to eight words REPEATS times in a row."""
    words = text.split()
    for size in range(1, 9):
        for begin in range(len(words) - REPEATS * size + 1):
            run = words[begin : begin + size]
            if all(words[begin + n * size : begin + (n + 1) * size] == run for n in range(1, REPEATS)):
                return True
    return False
