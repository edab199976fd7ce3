"""Answers to held-out questions: decoded, scored, averaged, and stored by document and question."""

import dataclasses
import types

import pytest

from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.passages import Passage
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation import questions as asking
from selfparam_jax.evaluation.metrics import METRICS, bootstrap_interval
from selfparam_jax.evaluation.questions import (
    answer_questions,
    answer_records,
    kinds_of,
    match_answers,
    of_kind,
    predictions,
    score_answer,
    short_answer,
    summarize,
    text_for,
)
from selfparam_jax.inference import prefix
from selfparam_jax.inference.decoding import generate
from selfparam_jax.models.decoder import Decoder

# --- means and intervals ------------------------------------------------------------------------------


def answers(*f1, other=0.0):
    return [{"f1": value, "em": other, "contains": 1.0 - other, "f1_paper": value / 2} for value in f1]


def test_summarize_averages_questions_then_contexts():
    found = summarize([answers(1.0, 0.0, 0.5, 0.5), answers(0.2, other=1.0), []])
    assert found.pop("f1_ci95") == bootstrap_interval([[1.0, 0.0, 0.5, 0.5], [0.2]])
    expected = {"f1": (0.5 + 0.2) / 2, "em": 0.5, "contains": 0.5, "f1_paper": 0.175}
    assert found == pytest.approx(expected)  # 0.44 would be the mean over all questions
    assert summarize([[], []]) is None
    assert summarize([]) is None


# --- from ids to an answer ----------------------------------------------------------------------------

WORDS = {0: "", 1: " the", 2: " town", 3: ".\n", 4: "\n", 5: " Question", 6: " x", 7: "</s>"}
STUB = types.SimpleNamespace(
    stop_ids=(0, 3, 4),
    end_ids=(0,),
    _end_texts=(),
    decode=lambda ids: "".join(WORDS[i] for i in ids),
    reply=lambda ids: Prompt.reply(STUB, ids),
)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 4, 5, 6], "the town"),
        ([1, 2, 3, 5], "the town."),  # the line break is inside a token
        ([2, 0, 5], "town"),  # end of text
        ([1, 2], "the town"),  # never stops
        ([4, 2], ""),
        ([], ""),
    ],
)
def test_short_answer(ids, expected):
    assert short_answer(STUB, ids) == expected


def test_paper_decoding_is_ten_tokens_and_knows_no_line_break():
    assert asking.PAPER_TOKENS == 10
    found = score_answer(STUB, [2, 4, 5] + [6] * 10, ["town", "x"])
    assert found["answer"] == "town"
    assert (found["f1"], found["em"], found["contains"]) == (1.0, 1.0, 1.0)
    assert found["paper"] == "town\n Question" + " x" * 7
    assert found["f1_paper"] == pytest.approx(0.2)  # 9 words, one of them right
    # Nothing after the end of the text is an answer.
    assert score_answer(STUB, [2, 0] + [6] * 10, ["town"])["paper"] == "town"
    assert score_answer(STUB, [2] * 9 + [0] + [6] * 5, ["town"])["paper"] == " ".join(["town"] * 9)


# --- answering ----------------------------------------------------------------------------------------

CONTEXTS = [
    Document(
        id="a",
        title="",
        text="The ant and the inn.",
        questions=(
            Question("Who?", ("the ant", "ant")),
            Question("Where is the hand?", ("the inn",)),
            Question("12?", ("12",)),
        ),
    ),
    Document(id="none", title="", text="Nothing is asked."),
    Document(id="b", title="", text="In the land of 12.", questions=(Question("What land is in the?", ("12",)),)),
]


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_answers_equal_one_by_one(tiny_model, with_context, batch_size):
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    found = answer_questions(model, variables, prompt, CONTEXTS, with_context, batch_size)
    assert [len(group) for group in found] == [3, 0, 1]
    for context, group in zip(CONTEXTS, found, strict=True):
        prefix = prompt.context_prefix(context.text) if with_context else prompt.start_ids
        for question, answer in zip(context.questions, group, strict=True):
            # Without stops: all 24 tokens, whatever the others do.
            asked = prompt.question(question.question)
            (ids,) = generate(model, variables, prefix, [asked], 24)
            assert answer == score_answer(prompt, ids, question.answers) | {"tokens": len(prefix) + len(asked)}
            assert answer["paper"]
    flat = [answer["paper"] for group in found for answer in group]
    assert len(set(flat)) == 4


def test_a_context_is_read_once_for_all_its_questions(tiny_model, monkeypatch):
    """And what all contexts begin with once for all: counted in tokens that go through the model."""
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    read, read_piece = [], prefix.read_piece

    def counted(model, variables, cache, input_ids, length, at):
        read.extend(input_ids[0, :length].tolist())
        return read_piece(model, variables, cache, input_ids, length, at)

    monkeypatch.setattr(prefix, "read_piece", counted)
    begun = "The hand in the land and the ant. " * 4
    contexts = [dataclasses.replace(each, text=begun + each.text) for each in CONTEXTS]
    answer_questions(model, variables, prompt, contexts, with_context=True)
    texts = [tuple(prompt.context_prefix(each.text)) for each in contexts if each.questions]
    shared = prefix.common_length(texts)
    assert shared >= prefix.LEAST_SHARED
    assert sorted(read) == sorted([*texts[0][:shared], *texts[0][shared:], *texts[1][shared:]])


def test_the_context_matters(tiny_model):
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    with_it, without = (answer_questions(model, variables, prompt, CONTEXTS, flag) for flag in (True, False))
    assert with_it != without


# --- questions that need several documents --------------------------------------------------------------


def dated(name, date, text, *questions):
    return Document(text, name.upper(), name, questions, metadata={"date": date} if date else {})


NEEDS = Question("12?", ("12",), "latest", ("late", "early"))
DATED = [
    dated("late", "2032-02-01", "The inn is 12.", Question("Who?", ("ant",)), NEEDS, Question("Where?", ("inn",))),
    dated("early", "2031-03-01", "The inn is old.", Question("12?", ("ant",), "as_of", ("early",))),
    dated("none", "", "The hand."),
]
TOGETHER = "EARLY, 1 March 2031\nThe inn is old.\n\nLATE, 1 February 2032\nThe inn is 12."


def test_what_stands_before_a_question():
    late, early, _ = DATED
    assert text_for(late.questions[0], late, DATED) == late.text
    assert text_for(NEEDS, late, DATED) == TOGETHER
    assert text_for(early.questions[0], late, DATED) == early.text
    assert text_for(Question("Q?", ("x",), "", ("late", "none")), late, DATED).startswith(
        "NONE\nThe hand.\n\nLATE, 1"
    )
    parts = [Passage(f"Part {n}.", id=f"long#{n}", source="long", parts=("a",) * (n == 3)) for n in (1, 2, 3)]
    both = Question("Q?", ("x",), "", ("long",))
    assert text_for(both, late, [*parts, late]) == "Part 1.\n\nPart 2."
    with pytest.raises(
        ValueError, match="document 'late': the question '12\\?' needs the document 'early', which is not"
    ):
        text_for(NEEDS, late, DATED[:1])


def test_all_documents_that_a_question_needs_are_read(tiny_model):
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    found = answer_questions(model, variables, prompt, DATED, with_context=True)
    texts = [[DATED[0].text, TOGETHER, DATED[0].text], [DATED[1].text], []]
    for document, group, before in zip(DATED, found, texts, strict=True):
        for question, answer, text in zip(document.questions, group, before, strict=True):
            prefix, asked = prompt.context_prefix(text), prompt.question(question.question)
            (ids,) = generate(model, variables, prefix, [asked], 24)
            assert answer == score_answer(prompt, ids, question.answers) | {"tokens": len(prefix) + len(asked)}


def test_answers_by_kind():
    assert kinds_of(DATED) == ["latest", "as_of"]
    answers = [[{"answer": name} for name in names] for names in ("abc", "d", "")]
    assert of_kind(DATED, answers, "latest") == [[{"answer": "b"}], [], []]
    records = predictions(DATED, {"injected": answers})
    assert [record.get("kind") for record in records] == [None, "latest", None, "as_of"]


# --- stored by document and question -------------------------------------------------------------------

ASKED = [
    Document("Text a.", id="a", questions=(Question("Who?", ("Ana",)), Question("When?", ("1742",)))),
    Document("Text b.", id="b", questions=(Question("Who?", ("Bo",)),), metadata={"source": "b.html"}),
]


def said(*texts):
    return [{"answer": text, "f1": 0.5} for text in texts]


def test_answers_are_found_by_document_and_question():
    given = [said("x", "y"), said("z")]
    records = answer_records(ASKED, given)
    assert [(record["context"], record["question"], record["answer"]) for record in records] == [
        ("a", "Who?", "x"), ("a", "When?", "y"), ("b", "Who?", "z"),
    ]  # fmt: skip
    assert match_answers(ASKED, records) == match_answers(ASKED, records[::-1]) == given
    assert match_answers(ASKED[::-1], records) == given[::-1]
    with pytest.raises(ValueError, match=r"no answer is recorded to 'When\?' about 'a'"):
        match_answers(ASKED, [records[0], records[2]])


def test_a_question_asked_twice_has_two_records():
    """With another gold answer each, so that their scores differ."""
    twice = [Document("Text.", id="a", questions=(Question("Who?", ("Ana",)), Question("Who?", ("Bo",))))]
    given = [[{"answer": "Bo", "f1": 0.0}, {"answer": "Bo", "f1": 1.0}]]
    assert match_answers(twice, answer_records(twice, given)) == given


def test_predictions_name_document_and_question_and_keep_metadata():
    found = predictions(ASKED, {"base_q": [said("x", "y"), said("z")], "injected": [said("1", "2"), said("3")]})
    assert found[1] == {
        "context": "a", "question": "When?", "answers": ["1742"],
        "base_q": said("y")[0], "injected": said("2")[0],
    }  # fmt: skip
    assert [line.get("metadata") for line in found] == [None, None, {"source": "b.html"}]


def test_every_metric_is_a_score_of_an_answer():
    found = score_answer(STUB, [2, 0], ["town"])
    assert set(found) == {"answer", "paper", "f1_paper", *METRICS}


def test_answers_in_a_script_without_spaces_have_their_own_scores():
    one = score_answer(STUB, [], ["巴黎"])
    assert one["char_f1"] == one["f1"] == 0.0
    english = score_answer(STUB, [1, 2], ["town"])
    assert "char_f1" not in english
    whole = summarize([[english], [{**one, "char_f1": 0.5}]])
    assert whole["char_f1"] == 0.5 and "char_f1" not in summarize([[english]])
