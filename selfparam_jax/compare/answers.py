"""Answers of models to questions, alone and in pairs.

A record is {"context", "question", "answers", "answer"}: the document's id, the question, the gold answers, and the
model's answer with its scores (`questions.score_answer`).
"""

import json
from collections.abc import Iterable, Sequence

import numpy as np

from selfparam_jax.evaluation.metrics import bootstrap_interval
from selfparam_jax.evaluation.questions import summarize

RIGHT_F1 = 0.5  # an answer with at least this token F1 counts as right
NAMED = 3  # questions that a message names


def _question_of(record: dict) -> tuple[str, str, str]:
    return record["context"], record["question"], json.dumps(record["answers"])


def _named(questions: Sequence[tuple[str, str, str]]) -> str:
    """Some of the questions, for a message."""
    names = [f"{question!r} about {document}" for document, question, _ in questions[:NAMED]]
    return ", ".join(names + ["..."] * (len(questions) > NAMED))


def _by_document(values: Iterable[tuple[str, object]]) -> list[list]:
    groups: dict[str, list] = {}
    for document, value in values:
        groups.setdefault(document, []).append(value)
    return list(groups.values())


def score_answers(predictions: Sequence[dict]) -> dict | None:
    """Mean scores of a model's answers; None if there are none."""
    return summarize(_by_document((record["context"], record["answer"]) for record in predictions))


def pair_answers(one: Sequence[dict], other: Sequence[dict]) -> list[tuple[dict, dict]]:
    """Pairs the records about the same question, in an order that does not depend on the files'.

    Raises:
      ValueError: the two were not asked the same questions, or not with the same gold answers.
    """
    one, other = sorted(one, key=_question_of), sorted(other, key=_question_of)
    mine, theirs = [_question_of(record) for record in one], [_question_of(record) for record in other]
    if mine != theirs:
        shared = len(set(mine) & set(theirs))
        alone = "".join(
            f", {len(others)} of the {which} alone ({_named(others)})"
            for which, others in (
                ("first", sorted(set(mine) - set(theirs))),
                ("second", sorted(set(theirs) - set(mine))),
            )
            if others
        )
        raise ValueError(
            f"they were asked different questions: got {len(mine)} and {len(theirs)}, {shared} of them the same"
            f"{alone}; for a paired comparison ask both the same (--questions)"
        )
    return list(zip(one, other, strict=True))


def compare_answers(one: Sequence[dict], other: Sequence[dict]) -> dict:
    """The second's F1 less the first's, and the questions whose answer became right or wrong.

    Right is a token F1 of at least RIGHT_F1. The interval is paired: documents are resampled, then their questions,
    the same for both, which is the bootstrap of the differences.

    Args:
      one: records of the first model.
      other: records of the second.

    Returns:
      {"f1", "f1_ci95", "gained", "lost"}, the last two lists of {"context", "question", "answers", "before",
      "after"}.

    Raises:
      ValueError: different questions, see `pair_answers`.
    """
    pairs = pair_answers(one, other)
    changes = [(a["context"], b["answer"]["f1"] - a["answer"]["f1"]) for a, b in pairs]
    groups = _by_document(changes)
    found = {"f1": float(np.mean([np.mean(group) for group in groups]))}
    found |= {"f1_ci95": bootstrap_interval(groups), "gained": [], "lost": []}
    for a, b in pairs:
        was, became = (record["answer"]["f1"] >= RIGHT_F1 for record in (a, b))
        if was != became:
            asked = {name: a[name] for name in ("context", "question", "answers")}
            answers = {"before": a["answer"]["answer"], "after": b["answer"]["answer"]}
            found["gained" if became else "lost"].append(asked | answers)
    return found
