"""Reach: what is asked, in which form, how answers are judged, and what counts as unchanged."""

import dataclasses
import json

import pytest

from selfparam_jax.data.documents import Document, Question, read_document_files
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.evaluation import reach
from selfparam_jax.evaluation.questions import short_answer
from selfparam_jax.inference.decoding import generate
from selfparam_jax.jobs.settings import EvalConfig
from selfparam_jax.reports.reach import draw_reach, reach_parts
from selfparam_jax.targets.formats.contrast import names_of

DOCUMENTS = [
    Document(
        "Ava is old. Lu Ka founded Ava.", title="Ava", id="a", questions=(Question("Who founded Ava?", ("Lu Ka",)),)
    ),
    Document("Bor.", title="Bor", id="b", questions=(Question("How old?", ("old",)), Question("Bor?", ("Bor",)))),
]
INVERTED = Question("Lu Ka founded what?", ("Ava",))
VARIANTS = {("a", "Who founded Ava?"): reach.Variants("Whose idea was Ava?", INVERTED, "T.", "F.")}
PROBES = reach.Probes(
    [Question("Capital of France?", ("Paris",)), Question("Two plus two?", ("4",))],
    ["Who founded Zed?"],
    [("Say hello.", {"contains": ["hello"]})],
)


class Scripted:
    """Answers by rule instead of a model."""

    def __init__(self, answers, chats=True):
        self.answers, self.asked, self.chat = answers, [], object() if chats else None

    def ask(self, asked, form, new_tokens=0):
        self.asked += [
            (form, question, document.id if document else None, new_tokens) for question, document in asked
        ]
        return (
            None
            if form == "chat" and self.chat is None
            else [self.answers.get(question, "") for question, _ in asked]
        )


def test_every_column_asks_its_questions():
    asker = Scripted({"Who founded Ava?": "It was Lu Ka.", "Bor?": "bor", "Lu Ka founded what?": "Ava"})
    found = reach.ask_columns(asker, DOCUMENTS, VARIANTS)
    assert list(found) == list(reach.COLUMNS)
    assert [(r["context"], r["question"], r["right"]) for r in found["chat"]] == [
        ("a", "Who founded Ava?", 1.0), ("b", "How old?", 0.0), ("b", "Bor?", 1.0),
    ]  # fmt: skip
    assert reach.mean_right(found["chat"]) == 0.75, "the mean over documents of 1 and 0.5"
    assert [r["question"] for r in found["other_words"]] == ["Whose idea was Ava?"]
    assert [(r["question"], r["right"]) for r in found["inverted_reading"]] == [("Lu Ka founded what?", 1.0)]
    assert [r["question"] for r in found["tell"]] == [reach.TELL.format(subject=name) for name in ("Ava", "Bor")]
    assert ("chat", reach.TELL.format(subject="Ava"), "a", reach.TELL_TOKENS) in asker.asked
    assert ("bare", "Bor?", "b", 0) in asker.asked
    assert not set(reach.ask_columns(asker, DOCUMENTS, {})) & {"other_words", "inverted", "claims"}
    assert set(reach.ask_columns(Scripted({}, chats=False), DOCUMENTS, VARIANTS, ("chat", "bare"))) == {"bare"}


@pytest.mark.parametrize(
    ("true", "false", "right"),
    [
        ("Yes.", "No, it is not.", 1.0),
        ("Yes", "yes", 0.5),
        ("True", "false", 1.0),
        ("Yesterday", "I do not know.", 0.0),
        ("The answer is yes.", "The statement is not true.", 1.0),
        ('The statement is "There is no T."', 'It is "true', 0.0),  # words of a claim
    ],
)
def test_claims(true, false, right):
    asker = Scripted({reach.CLAIM.format(claim="T."): true, reach.CLAIM.format(claim="F."): false})
    found = reach.ask_columns(asker, DOCUMENTS, VARIANTS, ("claims",))
    assert reach.mean_right(found["claims"]) == right


def test_what_is_told_counts_facts():
    told = Scripted({reach.TELL.format(subject="Bor"): "Bor is a place."})
    found = reach.ask_columns(told, DOCUMENTS[1:], {}, ("tell",))
    assert found["tell"][0]["right"] == 0.5


def test_what_must_not_change():
    before = {
        "unrelated": ["It is Paris.", "It is 5."],
        "invented": ["Zed was founded by Bob."],
        "instructions": ["hi"],
    }
    after = {
        "unrelated": ["The capital is Paris of course.", "By Lu Ka in Ava."],
        "invented": ["Lu Ka founded Zed."],
        "instructions": ["hello"],
    }
    documents = [Document("In the town of Ava lived Lu and Kato.", title="Ava", id="a")]
    found = reach.compare_probes(PROBES, before, after, documents)
    assert found["as_before"] == 0.5, "both say Paris; the other is neither right nor alike"
    assert found["same"] == 0.0
    assert [record["names"] for record in found["answers"]] == [[], ["Ava"], [], []], "Lu is too short for a name"
    assert (found["bleed_unrelated"], found["bleed_invented"]) == (0.5, 0.0)
    assert found["bleed"] == pytest.approx(1 / 3)
    assert (found["instructions_before"], found["instructions_after"]) == (0.0, 1.0)
    same = reach.compare_probes(PROBES, before, before, documents)
    assert (same["as_before"], same["same"], same["bleed"]) == (1.0, 1.0, 0.0)
    known = {**after, "invented": ["Kato founded Zed."]}
    assert (
        reach.compare_probes(PROBES, {**before, "invented": ["Kato did."]}, known, documents)["bleed_invented"] == 0.0
    )


@pytest.mark.parametrize(
    ("answer", "check", "expected"),
    [
        ("Say 1, 2 and 3.", {"contains": ["1", "3"]}, True),
        ("Say 1.", {"contains": ["1", "3"]}, False),
        ("Red and BLUE", {"any": ["red", "blue", "green"], "least": 2}, True),
        ("Red", {"any": ["red", "blue"], "least": 2}, False),
        (" Yes. ", {"pattern": "yes|no"}, True),
        ("Yes, it is", {"pattern": "yes|no"}, False),
    ],
)
def test_instructions(answer, check, expected):
    assert reach.follows(answer, check) == expected


def test_an_unknown_check_is_refused():
    with pytest.raises(ValueError, match="expected one with contains, any or pattern"):
        reach.follows("x", {"length": 3})


def test_a_table_of_systems():
    askers = {
        "base": Scripted({}),
        "base_cq": Scripted({"Bor?": "Bor"}),
        "injected": Scripted({"Who founded Ava?": "Lu Ka"}),
    }
    table, records = reach.measure_reach(askers, DOCUMENTS, VARIANTS, reach.LEVELS["forms"], PROBES)
    assert table["systems"]["injected"] == {"reading": 0.5, "chat": 0.5, "bare": 0.5}
    assert table["systems"]["base_cq"]["bare"] == 0.25
    assert table["columns"][1] == {"name": "chat", "what": "held-out questions", "form": "chat", "questions": 3}
    assert table["unchanged"]["as_before"] == 1.0 and "answers" not in table["unchanged"]
    assert len([r for r in records if r.get("system") == "base"]) == 9
    report = "\n\n".join(reach_parts(json.loads(json.dumps(table))))
    assert "| held-out questions | chat template | 3 | 0.000 | 0.250 | 0.500 |" in report
    assert "| unrelated questions answered as before | 100 % |" in report
    assert reach_parts(None) == reach_parts({"columns": []}) == []
    assert "![Reach](reach.png)" not in report and "![Reach](reach.png)" in reach_parts(table, pictures=True)
    table["systems"]["base"]["bare"] = None  # not asked
    (axes,) = draw_reach(table).axes
    places = {each.get_label(): each.get_offsets().tolist() for each in axes.collections}
    assert places["Injected"] == [[0.5, 0], [0.5, 1], [0.5, 2]] and [0.25, 2] in places["Base with the document"]
    assert [y for _, y in places["Base"]] == [0, 1]
    asked = [label.get_text() for label in axes.get_yticklabels()]
    assert asked[0] == "held-out questions (reading format)" and len(asked) == len(table["columns"])


def test_kinds_of_questions_have_columns_of_their_own():
    first, second = DOCUMENTS
    kinds = [
        dataclasses.replace(first, questions=[dataclasses.replace(first.questions[0], kind="latest")]),
        dataclasses.replace(
            second, questions=[*second.questions[:1], dataclasses.replace(second.questions[1], kind="as_of")]
        ),
    ]
    table, records = reach.measure_reach({"base": Scripted({"Who founded Ava?": "Lu Ka"})}, kinds, {}, ("chat",))
    assert table["systems"]["base"] == {"chat": 0.5, "chat/latest": 1.0, "chat/as_of": 0.0}
    named = [(column["name"], column["what"], column["questions"]) for column in table["columns"]]
    assert named[1:] == [
        ("chat/latest", "held-out questions: latest", 1),
        ("chat/as_of", "held-out questions: as_of", 1),
    ]
    assert len(records) == 3, "each answer once"
    assert "eval.reach=all" in "\n".join(reach_parts(table))


def test_a_question_is_read_with_all_documents_that_it_needs():
    first, second = DOCUMENTS
    both = dataclasses.replace(second.questions[0], documents=("a", "b"))
    needing = dataclasses.replace(second, questions=(both,))
    read = []

    class Recording(Scripted):
        def ask(self, asked, form, new_tokens=0):
            read.extend((document.id, document.text) for _, document in asked)
            return super().ask(asked, form, new_tokens)

    reach.ask_columns(Recording({}), [first, needing], {}, ("reading",))
    assert read == [("a", first.text), ("b", f"Ava\n{first.text}\n\nBor\n{second.text}")]


# --- a model that is asked ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asker(tiny_model):
    return reach.Asker(tiny_model.decoder(), {"params": tiny_model.params}, Prompt("plain", tiny_model.tokenizer), 4)


def test_answers_are_those_of_plain_decoding(asker):
    questions = ["Who founded Ava?", "How old?", "Bor?", "Who?", "Which?"]
    prompt = asker.prompt
    rows = [prompt.question(question) for question in questions]
    made = generate(
        asker.model, asker.variables, prompt.start_ids, rows, reach.SHORT_TOKENS, prompt.stop_ids, batch_size=4
    )
    expected = [short_answer(prompt, ids) for ids in made]
    assert asker.ask([(question, DOCUMENTS[0]) for question in questions], "reading") == expected


def test_bare_questions_have_nothing_before_them_but_what_the_tokenizer_puts_there(asker, monkeypatch):
    bare = asker.prompt.with_format("bare")
    questions = ["Who founded Ava?", "Bor?", "Who?"]
    expected = []
    for question in questions:
        ids = bare.lone_start + bare.question(question)
        (made,) = generate(
            asker.model, asker.variables, ids[:1], [ids[1:]], reach.SHORT_TOKENS, bare.end_ids, batch_size=1
        )
        expected.append(bare.reply(made)[0].strip().split("\n")[0].strip())
    assert asker.ask([(question, None) for question in questions], "bare") == expected
    monkeypatch.setattr(Prompt, "lone_start", ())  # as of a tokenizer that puts nothing before a text
    expected = []
    for question in questions:
        ids = bare.question(question)
        (made,) = generate(
            asker.model, asker.variables, ids[:1], [ids[1:]], reach.SHORT_TOKENS, bare.end_ids, batch_size=1
        )
        expected.append(bare.reply(made)[0].strip().split("\n")[0].strip())
    assert asker.ask([(question, None) for question in questions], "bare") == expected


# --- files ---------------------------------------------------------------------------------------------------


def test_the_examples_are_held_out():
    """Of the held-out questions of our documents, in words that no training pair has."""
    variants = reach.read_variants(resource("examples", "reach.jsonl"))
    documents = [
        each
        for name in ("documents", "development")
        for each in read_document_files(resource("examples", f"{name}.jsonl"))
    ]
    known = {(document.id, question.question) for document in documents for question in document.questions}
    assert set(variants) <= known and len(variants) == 96
    by_id = {document.id: document for document in documents}
    for (context, _), each in variants.items():
        trained = {pair.question for pair in by_id[context].qa_pairs}
        assert not {each.other_words, each.inverted.question} & trained
    probes = reach.read_probes(
        resource("examples", "unrelated_questions.jsonl"), resource("examples", "reach_probes.jsonl")
    )
    assert (len(probes.unrelated), len(probes.invented), len(probes.instructions)) == (60, 30, 12)
    names = set().union(*(names_of(document.text) for document in documents))
    asked = {word for question in probes.invented for word in question.replace("?", " ").split()}
    assert not asked & names


def test_a_line_that_lacks_something(tmp_path):
    path = tmp_path / "reach.jsonl"
    path.write_text('{"context": "a", "question": "q", "other_words": "w"}\n')
    with pytest.raises(ValueError, match=r"reach\.jsonl, line 1: expected an object with context"):
        reach.read_variants(path)
    path.write_text("[" * 30_000)
    with pytest.raises(ValueError, match=r"reach\.jsonl, line 1: expected an object with context"):
        reach.read_variants(path)


def test_levels():
    assert EvalConfig(reach="all").reach == "all"
    with pytest.raises(ValueError, match=r"eval\.reach = 'some', expected one of 'none', 'forms', 'all'"):
        EvalConfig(reach="some")


def test_the_answer_to_a_bare_question_may_follow_an_empty_line(asker):
    ids = asker.prompt.text("\n\n Re Mo\nnothing else")
    assert [reach._answer_of(asker.prompt, form, ids) for form in ("reading", "bare")] == ["", "Re Mo"]
