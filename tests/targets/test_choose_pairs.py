"""Which pairs are trained on: their shape, and what the teacher answers itself, asked for once."""

import dataclasses
import subprocess
import sys

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.files import read_lines
from selfparam_jax.targets.choose_pairs import agreeing_documents, choose_pairs, fits, fitting_pairs
from selfparam_jax.targets.config import GeneratorConfig, TargetConfig
from selfparam_jax.targets.kinds import make_targets
from selfparam_jax.targets.write_pairs import needs_writing, with_written_pairs

CONTEXTS = [
    Document(
        id="mill",
        title="",
        text="Text.",
        questions=(Question("Held out?", ("no",)),),
        qa_pairs=(QAPair("When?", "1742"), QAPair("Who?", "Ana B")),
    ),
    Document(id="bare", title="", text="Text.", questions=(), qa_pairs=()),
    Document(
        id="lake",
        title="",
        text="Text.",
        questions=(),
        qa_pairs=(QAPair("How deep?", "30 metres"), QAPair("Why?", "rain")),
    ),
]
TEACHER = {"When?": ("1742", 1.0), "Who?": ("Ana", 0.667), "How deep?": ("very", 0.0), "Why?": ("", 0.0)}


class Asked:
    """A teacher that remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, contexts):
        self.calls.append([[(q.question, q.answers) for q in context.questions] for context in contexts])
        return [
            [dict(zip(("answer", "f1"), TEACHER[q.question], strict=True)) for q in context.questions]
            for context in contexts
        ]


@pytest.mark.parametrize(
    ("mode", "least", "expected"),
    [
        ("keep", 1.0, [["When?/1742"], [], []]),
        ("keep", 0.6, [["When?/1742", "Who?/Ana B"], [], []]),
        ("keep", 0.0, [["When?/1742", "Who?/Ana B"], [], ["How deep?/30 metres", "Why?/rain"]]),
        ("rewrite", 1.0, [["When?/1742", "Who?/Ana"], [], ["How deep?/very"]]),
    ],
)
def test_what_the_teacher_agrees_with(tmp_path, mode, least, expected):
    ask = Asked()
    found = agreeing_documents(CONTEXTS, mode, least, ask, tmp_path / "answers.jsonl")
    assert [[f"{p.question}/{p.answer}" for p in context.qa_pairs] for context in found] == expected
    assert [context.questions for context in found] == [context.questions for context in CONTEXTS]
    assert ask.calls == [
        [[("When?", ("1742",)), ("Who?", ("Ana B",))], [], [("How deep?", ("30 metres",)), ("Why?", ("rain",))]]
    ], "the pairs are asked, the held-out questions are not"


def test_the_teacher_is_asked_once_per_set_of_pairs(tmp_path):
    ask, path = Asked(), tmp_path / "answers.jsonl"
    first = agreeing_documents(CONTEXTS, "keep", 0.6, ask, path)
    assert agreeing_documents(CONTEXTS, "keep", 0.6, ask, path) == first
    assert len(ask.calls) == 1 and [line["teacher"] for line in read_lines(path)] == ["1742", "Ana", "very", ""]
    agreeing_documents(CONTEXTS[:1], "keep", 0.6, ask, path)
    more = dataclasses.replace(CONTEXTS[0], qa_pairs=(QAPair("When?", "1742"), QAPair("Why?", "it rained")))
    agreeing_documents([more], "keep", 0.6, ask, path)
    assert ask.calls[1:] == [[[("Why?", ("it rained",))]]], "what is known is not asked again"
    assert len(read_lines(path)) == 5


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match="agreement 'maybe', expected 'keep' or 'rewrite'"):
        agreeing_documents(CONTEXTS, "maybe", 1.0, Asked(), tmp_path / "answers.jsonl")


def test_without_a_file_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ask = Asked()
    first = agreeing_documents(CONTEXTS, "keep", 0.6, ask)
    assert agreeing_documents(CONTEXTS, "keep", 0.6, ask) == first
    assert len(ask.calls) == 2 and list(tmp_path.iterdir()) == []


# --- all choices together -------------------------------------------------------------------------------

PAIRS = (
    QAPair("When?", "1742"),
    QAPair("Why was it built there?", "It was built there because the river turns."),
    QAPair("Who?", "Ana Bell"),
)
DOCUMENTS = [Document(id="mill", text="Text.", qa_pairs=PAIRS), Document(id="bare", text="Text.")]


@pytest.fixture
def prompt():
    return Prompt("plain", tiny.tokenizer())


def used(documents):
    return [[f"{pair.question} {pair.answer}" for pair in document.qa_pairs] for document in documents]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("any", [0, 1, 2]), ("short", [0, 2]), ("sentence", [1])],
)
def test_pairs_of_a_shape(prompt, tmp_path, shape, expected):
    found = choose_pairs(DOCUMENTS, prompt, TargetConfig(answer_shape=shape), 128, path=tmp_path / "answers.jsonl")
    assert [document.qa_pairs for document in found] == [tuple(PAIRS[n] for n in expected), ()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("keep", ["When? 1742"]), ("rewrite", ["When? 1742", "Who? Ana"])],
)
def test_pairs_as_the_teacher_agrees(prompt, tmp_path, mode, expected):
    asked = []
    answers = {"When?": ("1742", 1.0), "Why was it built there?": ("", 0.0), "Who?": ("Ana", 0.67)}

    def ask(documents):
        asked.append([document.id for document in documents])
        names = ("answer", "f1")
        return [
            [dict(zip(names, answers[q.question], strict=True)) for q in document.questions] for document in documents
        ]

    config, path = TargetConfig(agreement=mode), tmp_path / "teacher_answers.jsonl"
    assert used(choose_pairs(DOCUMENTS, prompt, config, 128, ask, path)) == [expected, []]
    assert asked == [["mill", "bare"]]
    assert len(read_lines(path)) == 3
    assert used(choose_pairs(DOCUMENTS, prompt, config, 128, ask, path)) == [expected, []]
    assert len(asked) == 1
    with pytest.raises(ValueError, match=f"targets.agreement = '{mode}' without a teacher"):
        choose_pairs(DOCUMENTS, prompt, config, 128)


def test_a_rewritten_pair_that_fits_no_row_is_left_out(prompt):
    long = [[{"answer": "x" * 200, "f1": 0.0}, {"answer": "ok", "f1": 0.0}, {"answer": "no", "f1": 0.0}], []]
    found = choose_pairs(DOCUMENTS, prompt, TargetConfig(agreement="rewrite"), 128, lambda _: long)
    assert used(found)[0] == ["Why was it built there? ok", "Who? no"]


def test_a_pair_may_fill_a_row_exactly(prompt):
    pair = PAIRS[1]
    length = len(prompt.start_ids) + len(prompt.question(pair.question) + prompt.answer(pair.answer))
    assert fits(pair, prompt, length) and not fits(pair, prompt, length - 1)
    assert pair in fitting_pairs(DOCUMENTS[0], prompt, length).qa_pairs
    assert pair not in fitting_pairs(DOCUMENTS[0], prompt, length - 1).qa_pairs


def test_pairs_of_the_documents_need_no_extra_package(prompt, monkeypatch):
    for package in ("openai", "tenacity", "rapidfuzz", "json_repair"):
        monkeypatch.setitem(sys.modules, package, None)
    found = choose_pairs(DOCUMENTS, prompt, TargetConfig(answer_shape="short"), 128)
    assert needs_writing(found[:1], GeneratorConfig()) == []
    assert with_written_pairs(found, {}, GeneratorConfig()) == found
    made = make_targets(found, prompt, TargetConfig(unrelated_per_epoch=0), seed=0, epochs=1, seq_len=128)
    assert [sentence.kind for sentence in made] == ["qa", "qa"]


def test_importing_all_of_it_imports_no_extra_package():
    extras = ("openai", "tenacity", "rapidfuzz", "json_repair")
    modules = ("kinds", "choose_pairs", "write_pairs", "writers", "endpoint", "self_sampling")
    code = (
        "import sys\n" + "".join(f"import selfparam_jax.targets.{name}\n" for name in modules)
        + f"print([name for name in {extras} if name in sys.modules])"
    )  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stderr
