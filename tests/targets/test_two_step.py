"""Questions that need two documents, made by rule from the pairs of both."""

import dataclasses

import pytest

from selfparam_jax.data.documents import Document, QAPair, Question, read_document_files
from selfparam_jax.data.passages import Passage, group_passages
from selfparam_jax.data.resources import resource
from selfparam_jax.targets.formats.forms import chat_answer
from selfparam_jax.targets.formats.statements import StatedPair
from selfparam_jax.targets.two_step import describe, with_two_step_pairs

MAKER = Document(
    "Ane Lusk designed the ship Tern.", "Ane Lusk", "maker",
    qa_pairs=(QAPair("Which ship did Ane Lusk design?", "Tern"), QAPair("Who is old?", "Ane Lusk")),
)  # fmt: skip
SHIP = Document(
    "The Tern was launched in 1974. Its captain is Bo Re. Ane Lusk designed it.", "Tern", "ship",
    questions=(Question("What is the length of the ship that Ane Lusk designed?", ("9 metres",)),),
    qa_pairs=(
        QAPair("When was the Tern launched?", "1974"), QAPair("The Tern has what captain?", "Bo Re"),
        QAPair("Who is the Tern's captain?", "Bo Re"), QAPair("Who designed the Tern?", "Ane Lusk"),
        QAPair("What is the length of the Tern?", "9 metres"), QAPair("Which ship did Ane Lusk design?", "Tern"),
    ),
)  # fmt: skip
WAY = "the ship that Ane Lusk designed"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Which ship did Ane Lusk design?", WAY),
        ("What is the name of the ship that Ane Lusk designed?", WAY),
        ("Ane Lusk is the designer of which ship?", "the ship that Ane Lusk is the designer of"),
        ("Which old ship belongs to Ane Lusk?", "the old ship that belongs to Ane Lusk"),
        ("Who guards Ane Lusk?", "the person who guards Ane Lusk"),
        ("What is the pride of Ane Lusk?", "the pride of Ane Lusk"),
        ("On which ship does Ane Lusk live?", "the ship that Ane Lusk lives on"),
        ("Which ship was launched in 1974?", None),  # names no title
        ("Where does Ane Lusk live?", None),  # says no kind
        ("Is it the Tern that Ane Lusk designed?", None),
    ],
)
def test_a_pair_describes_its_answer(question, expected):
    assert describe(QAPair(question, "Tern"), MAKER, "The Tern") == expected
    assert describe(QAPair(question, "Bo Re"), MAKER, "Tern") is None


def test_a_birthplace_is_described():
    pair = QAPair("In which village was Ane Lusk born?", "Om")
    assert describe(pair, MAKER, "Om") == "the village that Ane Lusk was born in"


def test_questions_of_two_documents():
    """Not the possessive, what says its own answer, what is asked in the end, and what does not name the title."""
    for documents in ([MAKER, SHIP], [SHIP, MAKER]):
        *same, group = with_two_step_pairs(documents, 9)
        assert same == documents
        assert group.qa_pairs == (
            StatedPair(f"When was {WAY} launched?", "1974", f"{WAY[0].upper()}{WAY[1:]} was launched in 1974."),
            StatedPair(f"{WAY[0].upper()}{WAY[1:]} has what captain?", "Bo Re", group.qa_pairs[1].said),
        )
        assert group.text == f"{MAKER.text}\n\n{SHIP.text}" and group.parts == ("maker", "ship")
        assert group.source == documents[1].id, "the one that comes later"
        sources = group_passages([*documents, group])
        assert [source.id for source in sources] == [each.id for each in documents]
        assert sources[1].passages == (documents[1], group)


def test_as_many_as_are_wanted_and_fit():
    assert [pair.answer for pair in with_two_step_pairs([MAKER, SHIP], 1)[2].qa_pairs] == ["1974"]
    fitting = with_two_step_pairs(
        [MAKER, SHIP], 9, lambda group, pair: pair.answer == "Bo Re" and "Ane" in group.text
    )
    assert [pair.answer for pair in fitting[2].qa_pairs] == ["Bo Re"]
    assert with_two_step_pairs([MAKER, SHIP], 9, lambda *_: False) == [MAKER, SHIP]


def test_passages_of_one_document_and_documents_without_a_title_make_none():
    parts = [Passage(d.text, d.title, d.id, qa_pairs=d.qa_pairs, source="one") for d in (MAKER, SHIP)]
    assert with_two_step_pairs(parts, 9) == parts
    untitled = [MAKER, dataclasses.replace(SHIP, title="")]
    assert with_two_step_pairs(untitled, 9) == untitled


def test_what_is_out_of_date_is_not_part_of_one():
    old = dataclasses.replace(MAKER, metadata={"date": "2031-01-01"})
    new = Document("New.", "Other", "new", qa_pairs=(QAPair(MAKER.qa_pairs[0].question, "Gull"),))
    assert len(with_two_step_pairs([old, SHIP, new], 9)) == 4
    newer = dataclasses.replace(new, metadata={"date": "2032-01-01"})
    assert len(with_two_step_pairs([old, SHIP, newer], 9)) == 3


def test_a_conversation_says_the_sentence_that_is_known():
    *_, group = with_two_step_pairs([MAKER, SHIP], 9)
    assert chat_answer(group.qa_pairs[0], group, [], 0) == "The ship that Ane Lusk designed was launched in 1974."
    assert chat_answer(StatedPair("When was it launched?", "1974"), group, [], 0) == "The answer is 1974."


def test_the_examples():
    """Every two documents of which one names the other; no held-out question."""
    documents = read_document_files(resource("examples", "two_documents.jsonl"))
    groups = with_two_step_pairs(documents, 100)[len(documents) :]
    needed = {q.documents for document in documents for q in document.questions if q.documents}
    assert {group.parts for group in groups} == needed
    assert sum(len(group.qa_pairs) for group in groups) > 120
    asked = {q.question for document in documents for q in document.questions}
    for group in groups:
        for pair in group.qa_pairs:
            assert pair.question not in asked and pair.question[0].isupper() and pair.question.count("?") == 1
