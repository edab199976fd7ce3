"""Dated documents: which pairs are out of date, how questions name their date, and what sentences are made."""

import datetime

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.targets import dates
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.formats.forms import chat_answer
from selfparam_jax.targets.kinds import make_targets

DAY = datetime.date(2026, 5, 3)


def document(name, date, *pairs, text="Text."):
    metadata = {"date": date} if date else {}
    return Document(text, id=name, qa_pairs=tuple(QAPair(*pair) for pair in pairs), metadata=metadata)


HEAD = "Who is the head of the Pell Club?"
OLD = document(
    "old", "2031-01-10", (HEAD, "Ana Volk"), ("By whom is the Pell Club headed?", "Ana Volk"),
    ("Which office at the Pell Club has Ana Volk?", "head"), ("How many members has the Pell Club?", "12"),
    ("In which year was the Pell Club founded?", "1988"), ("Who founded the Pell Club?", "Ana Volk"),
)  # fmt: skip
NEW = document(
    "new", "20 May 2032", ("who is head of Pell Club", "Bo Lind"), ("How many members has the Pell Club?", "12"),
    ("Who founded the Pell Club?", "Ana Volk"),
)  # fmt: skip


@pytest.mark.parametrize(
    "text", ["2026-05-03", "2026-05-03 14:22", "3 May 2026", "May 3, 2026", "2026-05-03T10:00:00Z"]
)
def test_dates_are_read(text):
    assert dates.date_of(document("a", text)) == DAY


def test_a_date_that_cannot_be_read_is_refused():
    assert dates.date_of(document("a", "")) is None
    with pytest.raises(ValueError, match="document 'a': got the date '03/05/26' in its metadata, expected a day"):
        dates.date_of(document("a", "03/05/26"))


@pytest.mark.parametrize(
    ("question", "turn", "expected"),
    [
        ("Who chairs the club?", 0, "As of 3 May 2026, who chairs the club?"),
        ("Who chairs the club?", 1, "Who chairs the club as of 3 May 2026?"),
        ("Ostwin has how many people?", 2, "As of 3 May 2026, Ostwin has how many people?"),
        ("The club was founded", 1, "As of 3 May 2026, the club was founded"),
    ],
)
def test_a_question_names_its_date_and_can_be_told_from_it(question, turn, expected):
    assert dates.date_question(question, DAY, turn) == expected
    assert dates.split_date(expected) == ("3 May 2026", question)
    assert dates.split_date(question) == ("", question)


def test_out_of_date_is_what_a_later_document_answers_differently():
    """With the same fact in other words and from the other side; not what is still true, or said nowhere else."""
    for documents in ([OLD, NEW], [NEW, OLD]):
        stale = dates.superseded(documents)
        assert stale["new"] == frozenset()
        assert stale["old"] == frozenset(OLD.qa_pairs[:3])


def test_a_value_that_comes_back_is_not_out_of_date():
    third = document("third", "2033-01-01", (HEAD, "Ana Volk"))
    stale = dates.superseded([OLD, NEW, third])
    assert stale["old"] == frozenset() and stale["new"] == {NEW.qa_pairs[0]}


def test_documents_of_one_day_and_without_a_date_do_not_supersede():
    others = [document("same", "2031-01-10", (HEAD, "Bo Lind")), document("none", "", (HEAD, "Cy Moor"))]
    assert dates.superseded([OLD, *others]) == {"old": frozenset(), "same": frozenset()}


def test_documents_are_ordered_by_date():
    none = document("none", "")
    assert [each.id for each in dates.in_order([NEW, none, OLD])] == ["none", "old", "new"]


def asked(document):
    return [pair.question for pair in document.qa_pairs]


def test_each_pair_is_dated_and_only_the_latest_is_asked_without_a_date():
    named = ("Who was the head as of 1 May 2030?", "Cy Moor")
    old, none = dates.date_pairs(
        [document("old", "2031-01-10", (HEAD, "Ana Volk"), named), document("n", "", (HEAD, "x"))]
    )
    first = "As of 10 January 2031, who is the head of the Pell Club?"
    assert asked(old) == [HEAD, first, named[0]]  # which names its date already
    assert asked(none) == [HEAD]
    old, new = dates.date_pairs([OLD, NEW])
    assert first in asked(old) and HEAD not in asked(old) and OLD.qa_pairs[4].question in asked(old)
    assert len(old.qa_pairs) == 6 + 3 and len(new.qa_pairs) == 3 * 2
    assert {pair.answer for pair in old.qa_pairs if pair.question == first} == {"Ana Volk"}


def test_what_was_injected_before_counts():
    """Whichever comes first."""
    (old,) = dates.date_pairs([OLD], earlier=[NEW])
    assert HEAD not in asked(old)
    (new,) = dates.date_pairs([NEW], earlier=[OLD])
    assert len(new.qa_pairs) == 6
    (again,) = dates.date_pairs([OLD], earlier=[OLD])
    assert HEAD in asked(again)


def test_the_sentences_that_are_made():
    prompt = Prompt("plain", tiny.tokenizer())
    config = TargetConfig(dated=True, unrelated_per_epoch=0, qa_per_context=2)

    def made(room, **changes):
        sentences = make_targets([OLD, NEW], prompt, config, seed=0, epochs=1, seq_len=room, **changes)
        return [(each.record["context"], dates.split_date(each.record["question"])) for each in sentences]

    found = made(512)
    assert found == [
        ("old", ("10 January 2031", HEAD)),
        ("old", ("10 January 2031", "By whom is the Pell Club headed?")),
        ("new", ("", NEW.qa_pairs[0].question)),
        ("new", ("20 May 2032", "Who is head of Pell Club")),
        ("new", ("", NEW.qa_pairs[1].question)),
        ("new", ("20 May 2032", NEW.qa_pairs[1].question)),
    ]
    longest = max(len(prompt.question(pair.question) + prompt.answer(pair.answer)) for pair in NEW.qa_pairs[:2])
    kept = made(longest + len(prompt.start_ids))  # no dated pair is as short
    assert kept == [("new", ("", pair.question)) for pair in NEW.qa_pairs[:2]]


def test_nothing_changes_without_the_switch():
    prompt = Prompt("plain", tiny.tokenizer())
    config = TargetConfig(unrelated_per_epoch=0)
    sentences = make_targets([OLD, NEW], prompt, config, seed=0, epochs=1, seq_len=512)
    assert [each.record["question"] for each in sentences] == asked(OLD) + asked(NEW)


def test_a_conversation_says_the_date():
    text = "The Pell Club is led by Ana Volk. It has a head."
    pair = QAPair("As of 3 May 2026, who founded the Pell Club?", "Ana Volk")
    assert chat_answer(pair, document("a", "", text=text), ["Ana Volk founded the club."], 0) == (
        "As of 3 May 2026, Ana Volk founded the Pell Club."
    )
    pair = QAPair("What is the head of the Pell Club called as of 3 May 2026?", "Ana Volk")
    assert chat_answer(pair, document("a", "", text=text), [], 0).startswith("As of 3 May 2026, the head")
