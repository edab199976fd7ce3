"""The example files: held-out questions are not among the training pairs, and files share nothing."""

import string
from collections import Counter

import pytest

from selfparam_jax.data.documents import load_texts, read_document_files
from selfparam_jax.data.resources import resource
from selfparam_jax.targets.dates import date_of, in_words, superseded

EXAMPLES = resource("examples")
FILES = ("documents.jsonl", "development.jsonl")
QUESTIONS, MIN_PAIRS, WORDS, RUN = 8, 60, range(120, 201), 8
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”–—…")


def _words(text):
    return text.lower().translate(_NO_PUNCTUATION).split()


def _normal(text):
    return " ".join(_words(text))


@pytest.fixture(scope="module")
def documents():
    return [document for name in FILES for document in read_document_files(EXAMPLES / name)]


@pytest.mark.parametrize("name", FILES)
def test_enough_records(name):
    assert len(read_document_files(EXAMPLES / name)) >= 6


def test_ids_and_texts_are_different_across_both_files(documents):
    assert len(documents) >= 12
    for values in ([c.id for c in documents], [_normal(c.text) for c in documents]):
        assert [value for value, count in Counter(values).items() if count > 1] == []


def test_documents_have_120_to_200_words(documents):
    lengths = {document.id: len(document.text.split()) for document in documents}
    assert {name: length for name, length in lengths.items() if length not in WORDS} == {}


def test_each_has_exactly_eight_held_out_questions(documents):
    counts = {document.id: len({_normal(q.question) for q in document.questions}) for document in documents}
    assert {name: count for name, count in counts.items() if count != QUESTIONS} == {}
    assert all(len(document.questions) == QUESTIONS for document in documents)


def test_each_has_sixty_different_training_pairs(documents):
    counts = {document.id: len(document.qa_pairs) for document in documents}
    assert {name: count for name, count in counts.items() if count < MIN_PAIRS} == {}
    repeated = []
    for document in documents:
        seen = Counter(_normal(pair.question) for pair in document.qa_pairs)
        repeated += [(document.id, question) for question, count in seen.items() if count > 1]
    assert repeated == []


def test_no_held_out_question_is_trained_on_in_any_word_order(documents):
    # Across all files: a question of one document must not be trained on under another either.
    trained = {tuple(sorted(_words(pair.question))) for document in documents for pair in document.qa_pairs}
    asked = [(document.id, question.question) for document in documents for question in document.questions]
    assert [item for item in asked if tuple(sorted(_words(item[1]))) in trained] == []


def test_the_gold_answer_is_in_the_document(documents):
    wrong = []
    for document in documents:
        golds = [question.answers[0] for question in document.questions]
        wrong += [(document.id, gold) for gold in golds if gold.lower() not in document.text.lower()]
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


# --- questions that need several documents ---------------------------------------------------------------


def _several(name):
    """The documents of a file by id, and each question with the id of its document."""
    documents = read_document_files(EXAMPLES / f"{name}.jsonl")
    asked = [(document.id, question) for document in documents for question in document.questions]
    return {document.id: document for document in documents}, asked


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("two_documents", {"one_document": 16, "two_documents": 24}),
        ("over_time", {"latest": 8, "as_of": 8, "changed": 8}),
    ],
)
def test_questions_of_several_documents(name, kinds):
    documents, asked = _several(name)
    assert len(documents) == 8
    assert Counter(question.kind for _, question in asked) == kinds
    trained = {tuple(sorted(_words(pair.question))) for d in documents.values() for pair in d.qa_pairs}
    for home, question in asked:
        assert tuple(sorted(_words(question.question))) not in trained, question
        assert home in (question.documents or (home,)) and set(question.documents) <= set(documents), question
        texts = " ".join(_normal(documents[each].text) for each in question.documents or (home,))
        assert f" {_normal(question.answers[0])} " in f" {texts} ", question
    for document in documents.values():
        for pair in document.qa_pairs:
            said = f" {_normal(f'{document.title} {document.text}')} "
            assert f" {_normal(pair.answer)} " in said, pair


def test_a_question_of_two_documents_needs_both():
    """Its answer stands in the second alone, and never beside what the question begins from."""
    documents, asked = _several("two_documents")
    for home, question in asked:
        if question.kind != "two_documents":
            continue
        first, second = question.documents
        assert home == second
        (subject,) = [name for name in SUBJECTS[first] if name in question.question]
        gold = _normal(question.answers[0])
        for document in documents.values():
            text = f" {_normal(f'{document.title} {document.text}')} "
            assert not (f" {_normal(subject)} " in text and f" {gold} " in text), (document.id, question)
            pairs = [_normal(f"{pair.question} {pair.answer}") for pair in document.qa_pairs]
            assert not [pair for pair in pairs if _normal(subject) in pair and f" {gold} " in f" {pair} "], question


# What the questions about each first document begin from.
SUBJECTS = {
    "maro-telvik": ["Maro Telvik"],
    "village-of-ostwin": ["Ostwin"],
    "pale-curlew": ["Pale Curlew"],
    "lunna-feld": ["Lunna Feld"],
}


def test_values_change_over_time():
    """A document's date is in its text, and what a question calls the latest is said by the last of its documents."""
    documents, asked = _several("over_time")
    days = {name: date_of(document) for name, document in documents.items()}
    assert list(days) == sorted(days, key=days.get)
    assert [name for name in days if in_words(days[name]) not in documents[name].text] == []
    stale = superseded(list(documents.values()))
    changed = {name: len(pairs) for name, pairs in stale.items()}
    assert changed == {
        "statutes-2031": 15, "prices-2031": 12, "staff-2031": 12, "projects-2031": 15, "prices-2032": 0,
        "statutes-2032": 0, "staff-2032": 3, "projects-2033": 0,
    }  # fmt: skip
    for _, question in asked:
        needed = list(question.documents)
        assert needed == sorted(needed, key=days.get) and len(needed) > 1, question
        having = [
            name for name in needed if f" {_normal(question.answers[0])} " in f" {_normal(documents[name].text)} "
        ]
        if question.kind == "latest":
            assert having[-1] == needed[-1], question
