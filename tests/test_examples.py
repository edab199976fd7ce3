"""The example files keep their promise: what is asked was never trained on, and files share nothing."""

import pathlib
import string
from collections import Counter

import pytest

from selfparam_jax.contexts import load_contexts, load_texts

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
FILES = ("documents.jsonl", "development.jsonl")
QUESTIONS, MIN_PAIRS, WORDS, RUN = 8, 60, range(120, 201), 8
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”–—…")


def _words(text):
    return text.lower().translate(_NO_PUNCTUATION).split()


def _normal(text):
    return " ".join(_words(text))


@pytest.fixture(scope="module")
def contexts():
    return [context for name in FILES for context in load_contexts(EXAMPLES / name)]


@pytest.mark.parametrize("name", FILES)
def test_enough_records(name):
    assert len(load_contexts(EXAMPLES / name)) >= 6


def test_ids_and_texts_are_different_across_both_files(contexts):
    assert len(contexts) >= 12
    for values in ([c.id for c in contexts], [_normal(c.context) for c in contexts]):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_contexts_have_120_to_200_words(contexts):
    lengths = {context.id: len(context.context.split()) for context in contexts}
    assert {name: length for name, length in lengths.items() if length not in WORDS} == {}


def test_each_has_exactly_eight_held_out_questions(contexts):
    counts = {context.id: len({_normal(q.question) for q in context.questions}) for context in contexts}
    assert {name: count for name, count in counts.items() if count != QUESTIONS} == {}
    assert all(len(context.questions) == QUESTIONS for context in contexts)


def test_each_has_sixty_different_training_pairs(contexts):
    counts = {context.id: len(context.qa_pairs) for context in contexts}
    assert {name: count for name, count in counts.items() if count < MIN_PAIRS} == {}
    repeated = []
    for context in contexts:
        seen = Counter(_normal(pair.question) for pair in context.qa_pairs)
        repeated += [(context.id, question) for question, count in seen.items() if count > 1]
    assert repeated == []


def test_no_held_out_question_is_trained_on_in_any_word_order(contexts):
    # Across all files: a question of one document must not be trained on under another either.
    trained = {tuple(sorted(_words(pair.question))) for context in contexts for pair in context.qa_pairs}
    asked = [(context.id, question.question) for context in contexts for question in context.questions]
    assert [item for item in asked if tuple(sorted(_words(item[1]))) in trained] == []


def test_the_gold_answer_stands_in_the_context(contexts):
    wrong = []
    for context in contexts:
        golds = [question.answers[0] for question in context.questions]
        wrong += [(context.id, gold) for gold in golds if gold.lower() not in context.context.lower()]
    assert wrong == []


def test_general_texts_for_training_and_evaluation_share_nothing():
    train, evaluation = (load_texts(EXAMPLES / f"general_{name}.jsonl") for name in ("train", "eval"))
    assert len(train) >= 180 and len(evaluation) >= 50
    for texts in (train, evaluation):
        assert len({_normal(text) for text in texts}) == len(texts)
    # Shorter texts than a run would otherwise slip through the second check.
    assert {_normal(text) for text in train} & {_normal(text) for text in evaluation} == set()
    assert _runs(train) & _runs(evaluation) == set()


def _runs(texts):
    split = [_words(text) for text in texts]
    return {tuple(words[start : start + RUN]) for words in split for start in range(len(words) - RUN + 1)}
