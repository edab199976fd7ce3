"""Pairs written by a model: units, the file that grows, and which documents need them."""

import dataclasses
import json
import re
import threading
import time

import numpy as np
import pytest

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.distributed import files
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.filter_pairs import filter_pairs
from selfparam_jax.targets.replies import Reply
from selfparam_jax.targets.write_pairs import (
    by_digest,
    choose,
    needs_writing,
    read_written,
    text_digest,
    unfinished_unit,
    warn_of_unfinished,
    with_written_pairs,
    write_pairs,
)

CONTEXTS = [
    Document(
        id="mill",
        title="Mill",
        text="The mill at Orrin was built in 1742 by Ana Bell. It has four wheels.",
        questions=(),
        qa_pairs=(),
    ),
    Document(
        id="lake",
        title="Lake",
        text="Lake Sorrel is 30 metres deep. Its water is green in May.",
        questions=(),
        qa_pairs=(),
    ),
]
PROMPTS = """
[facts]
weight = 2.0
answer_shape = "short"
instruction = "FACTS {count}\\n{context}\\n\\nNot these:\\n{earlier}"

[other]
weight = 1.0
answer_shape = "short"
instruction = "OTHER {count}\\n{context}"

[again]
weight = 1.0
answer_shape = "short"
instruction = "AGAIN {count}\\n{context}\\n{pairs}"
"""


class Scripted:
    """A writer that numbers its questions and remembers what it was asked; it can fail at one instruction."""

    name, concurrency, fingerprint = "scripted", 1, ""

    def __init__(self, fail_at=None):
        self.asked, self._fail_at = [], fail_at

    def write(self, instructions, counts, seed):
        if len(self.asked) == self._fail_at:
            raise RuntimeError("killed")
        self.asked.append((instructions, counts, seed))
        draw = np.random.default_rng(seed)
        return [
            [self._reply(instruction, draw) for _ in range(count)]
            for instruction, count in zip(instructions, counts, strict=True)
        ]

    def _reply(self, instruction, draw):
        words = draw.permutation(list("abcdefghijklmnopqrstuvwxyz"))[:5]
        fact = "1742" if "Orrin" in instruction else "30 metres"
        return Reply(f"Question: What about {' '.join(words)}?\nAnswer: {fact}", True)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text(PROMPTS)
    return GeneratorConfig(
        generator="local", form="chat", pairs_per_context=100, rounds=2, replies=4, prompts=str(path)
    )


def questions(contexts):
    return [[pair.question for pair in context.qa_pairs] for context in contexts]


def test_rounds_kinds_and_what_they_are_told(config, tmp_path):
    writer = Scripted()
    found = write_pairs(CONTEXTS, writer, config, tmp_path / "pairs.jsonl")
    # The first round has nothing to build on; the second has, and is told what there is.
    shares = [
        [(text.split()[0], count) for text, count in zip(texts, counts, strict=True)]
        for texts, counts, _ in writer.asked
    ]
    assert shares == [[("FACTS", 3), ("OTHER", 1)]] * 2 + [[("FACTS", 2), ("OTHER", 1), ("AGAIN", 1)]] * 2
    assert "Not these" not in writer.asked[0][0][0]
    told = writer.asked[2][0][0]
    assert sum(question in told for question in questions(found)[0]) == 4, "the four pairs of the first round"
    assert "Lake Sorrel" not in told
    assert "Answer: 1742" in writer.asked[2][0][2]
    assert len({seed for *_, seed in writer.asked}) == 4
    assert [len(context.qa_pairs) for context in found] == [8, 8]
    assert {pair.answer for pair in found[0].qa_pairs} == {"1742"}
    lines = files.read_lines(tmp_path / "pairs.jsonl")
    assert sum("support" in line for line in lines) == 16 and all(line.get("support", 1) == 1 for line in lines)
    units = [line["kinds"] for line in lines if "kinds" in line]
    assert [sum(kind["pairs"] for kind in unit.values()) for unit in units] == [4, 4, 4, 4]
    assert list(units[2]) == ["facts", "other", "again"]


@pytest.mark.parametrize("whole_lines", [0, 1])
@pytest.mark.parametrize("fail_at", [0, 1, 2, 3])
def test_a_killed_run_goes_on_and_asks_nothing_twice(config, tmp_path, fail_at, whole_lines):
    whole, path = Scripted(), tmp_path / "pairs.jsonl"
    expected = write_pairs(CONTEXTS, whole, config, tmp_path / "whole.jsonl")
    first, second = Scripted(fail_at), Scripted()
    with pytest.raises(RuntimeError, match="killed"):
        write_pairs(CONTEXTS, first, config, path)
    with path.open("a") as file:  # what a kill in the middle of a write leaves
        pair = {"context": "mill", "digest": "x", "prompt": "facts", "round": 0, "question": "Q?"}
        file.write((json.dumps(pair) + "\n") * whole_lines)
        file.write('{"context": "mi')
    finished = {line["digest"] for line in files.read_lines(path) if "kinds" in line}
    assert read_written(path).keys() == finished, "half a unit is not read"
    assert write_pairs(CONTEXTS, second, config, path) == expected
    assert first.asked + second.asked == whole.asked
    without_time = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in files.read_lines(each)]
        for each in (path, tmp_path / "whole.jsonl")
    ]
    assert without_time[0] == without_time[1]
    third = Scripted()
    assert write_pairs(CONTEXTS, third, config, path) == expected
    assert third.asked == []


def test_enough_is_enough_and_every_kind_has_its_share(config, tmp_path):
    writer = Scripted()
    few = dataclasses.replace(config, pairs_per_context=2, rounds=5)
    found = write_pairs(CONTEXTS, writer, few, tmp_path / "pairs.jsonl")
    assert len(writer.asked) == 2, "one round was enough"
    assert [len(context.qa_pairs) for context in found] == [2, 2]
    records = [
        {"prompt": kind, "question": f"{kind}{n}", "answer": "x"}
        for kind, m in (("a", 3), ("b", 1))
        for n in range(m)
    ]
    assert [pair.question for pair in choose(records, 3)] == ["a0", "b0", "a1"]
    assert [pair.question for pair in choose(records, 9)] == ["a0", "b0", "a1", "a2"]


def test_given_pairs_stay_first_and_are_not_repeated(config, tmp_path):
    one_kind = dataclasses.replace(config, kinds=("facts",))
    made = write_pairs(CONTEXTS[:1], Scripted(), one_kind, tmp_path / "one.jsonl")[0].qa_pairs
    given = (made[1], QAPair("How many wheels has the mill?", "four"))
    context = dataclasses.replace(CONTEXTS[0], qa_pairs=given)
    found = write_pairs([context], Scripted(), one_kind, tmp_path / "two.jsonl")[0].qa_pairs
    assert found[:2] == given
    assert len(set(found)) == len(found)
    lines = [line for line in files.read_lines(tmp_path / "two.jsonl") if "support" in line]
    assert filter_pairs(lines, given, one_kind)[1]["duplicate"] == 1


def test_a_prompt_names_only_the_newest_pairs(config, tmp_path):
    given = tuple(QAPair(f"What is number {n}?", str(n)) for n in range(100, 140))
    writer = Scripted()
    write_pairs([dataclasses.replace(CONTEXTS[0], qa_pairs=given)], writer, config, tmp_path / "pairs.jsonl")
    for text in writer.asked[0][0][::2]:  # the kinds that are told questions, and pairs
        assert [pair.question in text for pair in given] == [False] * 24 + [True] * 16


def test_a_changed_document_is_asked_about_anew(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(CONTEXTS, Scripted(), config, path)
    changed = dataclasses.replace(CONTEXTS[0], text=CONTEXTS[0].text.replace("four", "five"))
    writer = Scripted()
    write_pairs([changed, CONTEXTS[1]], writer, config, path)
    assert writer.asked and all("five wheels" in text for texts, *_ in writer.asked for text in texts)


def test_other_settings_are_refused_by_name(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(CONTEXTS, Scripted(), config, path)
    with pytest.raises(ValueError, match=r"other settings:\n  temperature: 0.7 there, 0.9 now"):
        write_pairs(CONTEXTS, Scripted(), dataclasses.replace(config, temperature=0.9), path)
    other = tmp_path / "others.toml"
    other.write_text(PROMPTS.replace("FACTS", "TRUTHS"))
    with pytest.raises(ValueError, match="instructions"):
        write_pairs(CONTEXTS, Scripted(), dataclasses.replace(config, prompts=str(other)), path)


def test_other_thresholds_ask_nothing_anew(config, tmp_path):
    """The file holds every pair with its scores: choosing others of them costs nothing."""
    path = tmp_path / "pairs.jsonl"
    score = lambda context, pairs: [(n / 10, 0.05) for n in range(len(pairs))]  # noqa: E731
    every = write_pairs(CONTEXTS, Scripted(), config, path, score=score)
    second = Scripted()
    likely = dataclasses.replace(config, least_likelihood=0.2)
    found = write_pairs(CONTEXTS, second, likely, path, score=score)
    assert second.asked == [] and [len(context.qa_pairs) for context in every] == [8, 8]
    lines = [line for line in files.read_lines(path) if "support" in line]
    assert [line["likelihood"] for line in lines] == [0.0, 0.1, 0.2, 0.3] * 4
    assert {line["likelihood_without"] for line in lines} == {0.05}
    wanted = [
        {line["question"] for line in lines if line["likelihood"] >= 0.2 and line["context"] == c.id}
        for c in CONTEXTS
    ]
    assert [set(names) for names in questions(found)] == wanted
    with pytest.raises(ValueError, match="teacher_scores: True there, False now"):
        write_pairs(CONTEXTS, Scripted(), config, path)


COMPLETIONS = """
[next]
form = "completion"
weight = 2.0
answer_shape = "short"
begin = ["Question: A", "Question: B", "Question: C"]
instruction = "NEXT\\n{context}"

[again]
form = "completion"
weight = 1.0
answer_shape = "short"
begin = ["Question:"]
told = 1
taken = 1
instruction = "AGAIN {pairs}"

[spoken]
weight = 9.0
answer_shape = "short"
instruction = "SPOKEN {context} {count}"
"""


class Continuing(Scripted):
    """Goes on with a text: two pairs a reply, the first with the words that its beginning asks for."""

    def _reply(self, instruction, draw):
        words = super()._reply(instruction, draw).text.removeprefix("Question: What")
        return Reply(f"{words}\nSo it goes on:\nQuestion: And {draw.integers(10**6)}?\nAnswer: four", True)


def test_completions_begin_in_turn_and_build_on_other_pairs(config, tmp_path):
    path = tmp_path / "completions.toml"
    path.write_text(COMPLETIONS)
    writer = Continuing()
    config = dataclasses.replace(config, form="completion", prompts=str(path), replies=3)
    found = write_pairs(CONTEXTS[:1], writer, config, tmp_path / "pairs.jsonl")
    texts = [texts for texts, _, _ in writer.asked]
    passage = f"NEXT\n{CONTEXTS[0].text}\nQuestion: "
    assert texts[0] == [passage + letter for letter in "ABC"], "nothing to build on yet"
    assert texts[1][:2] == [passage + "C", passage + "A"], "the beginnings go on, one round after the other"
    told = texts[1][2].splitlines()
    assert len(texts[1]) == 3 and told[0].startswith("AGAIN Question: ") and told[2] == "Question:"
    lines = [line for line in files.read_lines(tmp_path / "pairs.jsonl") if "support" in line]
    assert told[0].removeprefix("AGAIN Question: ") in [line["question"] for line in lines if line["round"] == 0]
    assert [line["prompt"] for line in lines] == ["next"] * 10 + ["again"], (
        "two of a reply, but one where one is taken"
    )
    assert [line["question"].split()[0] for line in lines[::2]] == ["A", "B", "C", "C", "A", "about"]
    assert {line["answer"] for line in lines} == {"1742", "30 metres", "four"}, "an answer is one line"
    assert len(found[0].qa_pairs) == 10, "what was made of another pair has no support here"


def test_every_reply_builds_on_another_pair(config, tmp_path):
    path = tmp_path / "completions.toml"
    path.write_text(COMPLETIONS)
    writer = Continuing()
    config = dataclasses.replace(config, form="completion", prompts=str(path), replies=9)
    write_pairs(CONTEXTS[:1], writer, config, tmp_path / "pairs.jsonl")
    told = [text for text in writer.asked[1][0] if text.startswith("AGAIN")]
    assert len(told) == len(set(told)) == 3


class Parallel(Scripted):
    """Waits until two contexts are worked on at the same time; can fail for one of them."""

    concurrency = 2

    def __init__(self, fail_for="nothing"):
        super().__init__()
        self._both, self._fail_for = threading.Barrier(2, timeout=20), fail_for

    def write(self, instructions, counts, seed):
        self._both.wait()
        if self._fail_for in instructions[0]:
            raise RuntimeError("refused")
        return super().write(instructions, counts, seed)


def test_several_contexts_at_a_time_give_what_one_after_the_other_gives(config, tmp_path):
    expected = write_pairs(CONTEXTS, Scripted(), config, tmp_path / "one.jsonl")
    ticks = []
    assert write_pairs(CONTEXTS, Parallel(), config, tmp_path / "two.jsonl", ticks.append) == expected
    assert ticks == [1] * 4


def test_what_the_other_contexts_gave_is_kept_when_one_fails(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    expected = write_pairs(CONTEXTS, Scripted(), config, tmp_path / "whole.jsonl")
    with pytest.raises(RuntimeError, match="refused"):
        write_pairs(CONTEXTS, Parallel("Sorrel"), config, path)
    second = Scripted()
    assert write_pairs(CONTEXTS, second, config, path) == expected
    assert len(second.asked) == 3, "the first round of the mill was not asked for again"


def test_an_unknown_kind_is_refused(config, tmp_path):
    with pytest.raises(
        ValueError, match=r"kinds = \['fact'\] with form 'chat', expected 'all' or some of facts, other, again"
    ):
        write_pairs(CONTEXTS, Scripted(), dataclasses.replace(config, kinds=("fact",)), tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match="form 'completion', expected a file of prompts with a kind of this form"):
        write_pairs(CONTEXTS, Scripted(), dataclasses.replace(config, form="completion"), tmp_path / "pairs.jsonl")


class Failing(Scripted):
    """Two at a time; the first to be asked fails, and the second ends after it."""

    concurrency = 2

    def __init__(self):
        super().__init__()
        self._failed, self._lock = threading.Event(), threading.Lock()

    def write(self, instructions, counts, seed):
        with self._lock:
            self.asked.append(instructions)
            first = len(self.asked) == 1
        if first:
            self._failed.set()
            raise RuntimeError("refused")
        self._failed.wait(20)
        time.sleep(0.2)  # the failure is noticed meanwhile
        return [
            [self._reply(text, np.random.default_rng(seed))] * count
            for text, count in zip(instructions, counts, strict=True)
        ]


def test_after_a_failure_no_other_context_is_begun(config, tmp_path):
    writer = Failing()
    contexts = [Document(id=str(n), title="", text=f"Orrin number {n} was built in 1742.") for n in range(9)]
    with pytest.raises(RuntimeError, match="refused"):
        write_pairs(contexts, writer, config, tmp_path / "pairs.jsonl")
    assert len(writer.asked) <= 3


# --- the file -------------------------------------------------------------------------------------------


def test_a_file_without_its_final_line_break_keeps_its_last_unit(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    expected = write_pairs(CONTEXTS, Scripted(), config, path)
    whole = path.read_bytes()
    path.write_bytes(whole.removesuffix(b"\n"))
    assert with_written_pairs(CONTEXTS, read_written(path), config) == expected
    again = Scripted()
    assert write_pairs(CONTEXTS, again, config, path) == expected
    assert again.asked == [] and path.read_bytes() == whole


@pytest.mark.parametrize(
    ("whole", "piece", "told"),
    [
        (4, 40, "the last unit, about 'lake', was not finished (4 whole lines of it)"),
        (4, 0, "the last unit, about 'lake', was not finished (4 whole lines of it)"),
        (0, 40, "the last unit, about 'lake', was not finished (0 whole lines of it)"),
        (0, 9, "the last unit was not finished (0 whole lines of it)"),
    ],
)
def test_a_last_unit_that_was_not_finished_is_named(config, tmp_path, caplog, whole, piece, told):
    path = tmp_path / "pairs.jsonl"
    write_pairs(CONTEXTS, Scripted(), dataclasses.replace(config, rounds=1), path)
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 11 and '"lake"' in lines[6] and unfinished_unit(path) == ""
    path.write_text("".join(lines[: 6 + whole]) + lines[6 + whole][:piece])
    assert unfinished_unit(path) == f"{path}, line 7: {told}"
    warn_of_unfinished(path)
    assert f"line 7: {told}; it is not used (the command" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"my notes", b"my notes\n", b'{"id": "a", "context": "x"}', b'{"id": "a", "context": "x"}\n{"id": "b"}\n',
     b'{"settings": 5}', b'{"settings"', b"\xff\xfe", b"[1]\n", b"\n", b'{"settings": {}}\n{"text": "x"}\n'],
)  # fmt: skip
def test_another_file_is_refused_and_left_alone(config, tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    for use in (lambda: write_pairs(CONTEXTS, Scripted(), config, path), lambda: read_written(path)):
        with pytest.raises(ValueError) as caught:
            use()
        assert "notes.txt" in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == content and list(tmp_path.glob("*.txt")) == [path]


def test_an_empty_file_is_begun(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.touch()
    write_pairs(CONTEXTS, Scripted(), config, path)
    assert len(read_written(path)) == 2


def test_a_lone_surrogate_in_a_pairs_file_is_named(config, tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_pairs(CONTEXTS, Scripted(), config, path)
    text = path.read_text()
    path.write_text(text.replace('"answer": "1742"', '"answer": "\\ud800"', 1))
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: got half of a character"):
        read_written(path)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("answer", 5, "got 5 as 'answer', expected text"),
        ("answer", " ", "got ' ' as 'answer', expected text"),
        ("question", None, "got None as 'question', expected text"),
        ("prompt", 7, "got 7 as 'prompt', expected text"),
        ("support", "y", "got 'y' as 'support', expected a number"),
        ("likelihood", "high", "got 'high' as 'likelihood', expected a number"),
    ],
)
def test_an_edited_line_of_another_type_is_named(config, tmp_path, name, value, words):
    path = tmp_path / "pairs.jsonl"
    write_pairs(CONTEXTS, Scripted(), config, path)
    settings, first, *others = map(json.loads, path.read_text().splitlines())
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (settings, {**first, name: value}, *others)))
    with pytest.raises(ValueError, match=rf"pairs\.jsonl, line 2: {re.escape(words)}"):
        read_written(path)


def test_files_of_earlier_versions_are_found_again():
    """The digest is written in every pairs file and decides what is drawn: it never changes."""
    document = Document("The mill at Orrin was built in 1742 by Ana Bell. It has four wheels.", title="T", id="mill")
    assert text_digest(document) == "a1a6a2bf97d2b6be"
    more = dataclasses.replace(document, id="x", title="", qa_pairs=(QAPair("q", "a"),), metadata={"a": 1})
    assert text_digest(more) == text_digest(document)
    line = {"digest": text_digest(document), "round": 0, "question": "q"}
    assert by_digest([line, {**line, "kinds": {}}]) == {text_digest(document): [line]}


@pytest.mark.parametrize(
    ("generator", "weight", "expected"),
    [
        ("none", 1.0, []),
        ("auto", 1.0, ["lake"]),
        ("local", 1.0, ["mill", "lake"]),
        ("endpoint", 1.0, ["mill", "lake"]),
        ("auto", 0.0, []),
        ("local", 0.0, []),
    ],
)
def test_about_which_documents_pairs_are_written(generator, weight, expected):
    documents = [dataclasses.replace(CONTEXTS[0], qa_pairs=(QAPair("q", "a"),)), CONTEXTS[1]]
    config = GeneratorConfig(generator=generator, form="chat")
    assert [document.id for document in needs_writing(documents, config, weight)] == expected
