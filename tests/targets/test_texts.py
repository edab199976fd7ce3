"""Texts that a model writes: what a reply says, which are used, what they answer, and how they fit into a row."""

import dataclasses

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Passage
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.targets.choose_pairs import agreeing_documents
from selfparam_jax.targets.config import GeneratorConfig, TargetConfig
from selfparam_jax.targets.filter_pairs import filter_pairs, pair_of, text_support
from selfparam_jax.targets.kinds import make_targets
from selfparam_jax.targets.parse_pairs import parse_text
from selfparam_jax.targets.replies import Reply
from selfparam_jax.targets.texts import TextPair, fits, topic_of, with_split_texts
from selfparam_jax.targets.write_pairs import asking_settings, read_written, with_written_pairs, write_pairs

MILL = Document(
    id="mill", title="Orrin Mill", text="The mill at Orrin was built in 1742 by Ana Bell. It has four wheels."
)


# --- replies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("The mill is old.\n\nIt has four wheels.", "The mill is old. It has four wheels."),
        ("- The mill is old\n* It has four wheels.\n3. Ana Bell built it!",
         "The mill is old. It has four wheels. Ana Bell built it!"),
        ("Here is a summary:\n\n# Summary\n**The mill**\nThe **mill** is old.\n---\nLet me know if you need more.",
         "The mill is old."),
        ("Summary: The mill is old.", "The mill is old."),
        ("<think>What is it?</think>The mill is old.", "The mill is old."),
        ("The mill is old.<|im_end|>\n<|im_start|>user Go on.", "The mill is old."),
        ("The mill is old.\nUser: And?", "The mill is old."),
        ("It took 3.5 years. 1742 was the year.", "It took 3.5 years. 1742 was the year."),
        ("磨坊很老。它有四个轮子。", "磨坊很老。它有四个轮子。"),
        ("...", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_reply_as_a_text(reply, text):
    assert parse_text(reply) == text


def test_a_text_that_was_cut_off_ends_with_its_last_whole_sentence():
    assert parse_text("The mill is old. It has four wheels. Ana Bell bu", False) == (
        "The mill is old. It has four wheels."
    )
    assert parse_text("- The mill is old.\n- It has", False) == "The mill is old."
    assert parse_text("- The mill is old.\n- It has wheels\n", False) == "The mill is old. It has wheels."
    assert parse_text("The mill", False) == ""
    assert parse_text("The mill is old<|im_end|>", False) == "The mill is old."


# --- which are used -------------------------------------------------------------------------------------


def test_support_counts_names_and_numbers_apart():
    true = "In 1742 the mill of Orrin, with four wheels, was built by Ana Bell."
    assert text_support(true, MILL.text) == 1
    # One of four names and numbers is not there, and one of eight words.
    wrong = true.replace("Bell", "Kern")
    assert text_support(wrong, MILL.text) == pytest.approx(3 / 4)
    assert text_support("It was grand. Wheels turned slowly and quietly there.", MILL.text) == pytest.approx(1 / 5)
    assert text_support("The mill was built in 1743.", MILL.text) == 0


def test_the_same_question_may_have_several_texts():
    record = {"prompt": "rewrite", "text": True, "question": "What is known?", "support": 1.0}
    said = [
        "Ana Bell built the mill in 1742.",
        "The mill at Orrin has four wheels.",
        "Ana Bell built the mill in 1742",
    ]
    records = [{**record, "answer": answer} for answer in said]
    kept, counts = filter_pairs(records, [], GeneratorConfig())
    assert [each["answer"] for each in kept] == said[:2] and counts["duplicate"] == 1
    assert filter_pairs(records, [TextPair("Who?", said[1])], GeneratorConfig())[0] == records[:1]
    # A pair that asks the same is another thing.
    assert filter_pairs(records, [QAPair("What is known?", said[1])], GeneratorConfig())[0] == records[:2]
    assert pair_of(records[0]) == TextPair("What is known?", said[0]) != QAPair("What is known?", said[0])
    low = [{**records[0], "support": 0.5}]
    assert filter_pairs(low, [], GeneratorConfig())[1]["unsupported"] == 1


def test_a_teacher_is_not_asked_whether_it_agrees_with_a_text():
    text = TextPair("What is known about Orrin Mill?", "Ana Bell built it.")
    document = Document("x", id="a", qa_pairs=(text, QAPair("Who?", "Ana Bell")))
    asked = []

    def ask(documents):
        asked.extend(question.question for document in documents for question in document.questions)
        return [[{"answer": "Ana", "f1": 0.5} for _ in document.questions] for document in documents]

    (made,) = agreeing_documents([document], "rewrite", 1.0, ask)
    assert made.qa_pairs == (QAPair("Who?", "Ana"), text) and asked == ["Who?"]


# --- what they answer -----------------------------------------------------------------------------------


def test_what_a_document_is_about():
    assert topic_of(MILL) == "Orrin Mill"
    assert topic_of(Document("The Orrin Rowing Club was founded in 1921. The Orrin Rowing Club has a jetty.")) == (
        "the Orrin Rowing Club"
    )
    assert topic_of(Document("It rains.")) == ""
    passage = {"title": "Manual", "source": "m", "source_title": "Manual"}
    assert topic_of(Passage("Manual > Care > The tank\n\nDescale it.", id="m#2", **passage)) == "The tank (Manual)"
    assert topic_of(Passage("Descale it.\n\nManual > x", id="m#2", **passage)) == "Manual, part 2"
    group = Passage("Manual > Care\n\nx", id="m#2+5", parts=("m#2", "m#5"), **passage)
    assert topic_of(group) == "Manual, part 2 and 5"


class Scripted:
    """A writer whose replies say which instruction they follow."""

    name, concurrency, fingerprint = "scripted", 1, ""

    def __init__(self, plan="Draw the mill."):
        self.asked, self._plan = [], plan

    def write(self, instructions, counts, seed):
        self.asked.append((instructions, counts, seed))
        return [
            [self._reply(text, n) for n in range(count)] for text, count in zip(instructions, counts, strict=True)
        ]

    def _reply(self, text, n):
        if text.startswith("PLAN"):
            return Reply(self._plan, True)
        if text.startswith("PAIRS"):
            return Reply(f"Question: Who built number {n}?\nAnswer: Ana Bell", True)
        return Reply(f"The mill has {['one', 'two', 'three', 'four'][n]} wheels. Ana Bell built it in 1742", n < 2)


PROMPTS = """
[pairs]
weight = 1.0
answer_shape = "short"
instruction = "PAIRS {count}\\n{context}\\n\\nNot these:\\n{earlier}"

[told]
weight = 2.0
answer_shape = "sentence"
optional = true
ask = ["Tell of {title}.", "What about {title}?", "Describe {title}."]
instruction = "TELL\\n{context}"

[planned]
weight = 1.0
answer_shape = "sentence"
optional = true
ask = ["Teach me {title}."]
plan = "PLAN\\n{context}"
instruction = "DO {plan}\\n{context}"
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "prompts.toml"
    path.write_text(PROMPTS)
    return GeneratorConfig(
        generator="local",
        form="chat",
        rounds=1,
        replies=4,
        prompts=str(path),
        kinds=("all",),
        duplicate_threshold=100,
    )


def test_texts_are_written_beside_pairs(config, tmp_path):
    writer, path = Scripted(), tmp_path / "pairs.jsonl"
    (made,) = write_pairs([MILL], writer, config, path)
    assert made.qa_pairs == (
        QAPair("Who built number 0?", "Ana Bell"),
        TextPair("Tell of Orrin Mill.", "The mill has one wheels. Ana Bell built it in 1742."),
        TextPair("What about Orrin Mill?", "The mill has two wheels. Ana Bell built it in 1742."),
    ), "the planned one says the same as another"
    (plans, counts, seed), (asks, numbers, other) = writer.asked
    assert (plans, counts) == ([f"PLAN\n{MILL.text}"], [1]) and seed != other
    assert asks[-1] == f"DO Draw the mill.\n{MILL.text}" and numbers == [1, 2, 1]
    lines = files.read_lines(path)
    assert [line.get("text") for line in lines[1:-1]] == [None, True, True, True]
    assert lines[-1]["kinds"]["planned"] == {"replies": 1, "without_pair": 0, "pairs": 1}
    assert with_written_pairs([MILL], read_written(path), config) == [made]
    assert asking_settings(config, "scripted", False)["kinds"] == ["pairs", "told", "planned"]


def test_a_text_may_name_the_title(config, tmp_path, monkeypatch):
    monkeypatch.setattr(Scripted, "_reply", lambda self, text, n: Reply("It is the deep Sorrel Tarn.", True))
    write_pairs([Document("It is deep.", title="Sorrel Tarn")], Scripted(), config, tmp_path / "pairs.jsonl")
    (support,) = {line["support"] for line in files.read_lines(tmp_path / "pairs.jsonl") if line.get("text")}
    assert support == 1


def test_texts_take_turns_at_their_questions_and_are_told_to_no_prompt(config, tmp_path):
    config = GeneratorConfig(**{**vars(config), "rounds": 2, "least_support": 0.0})
    writer = Scripted()
    write_pairs([MILL], writer, config, tmp_path / "pairs.jsonl")
    lines = files.read_lines(tmp_path / "pairs.jsonl")
    asked = [line["question"] for line in lines if line.get("prompt") == "told"]
    assert asked == ["Tell of Orrin Mill.", "What about Orrin Mill?", "Describe Orrin Mill.", "Tell of Orrin Mill."]
    told = writer.asked[-1][0][0]
    assert "Not these:\n- Who built number 0?" in told and "Tell of" not in told


def test_another_model_of_the_same_name_does_not_go_on_with_a_file(config, tmp_path):
    path, writer = tmp_path / "pairs.jsonl", Scripted()
    writer.fingerprint = "a" * 64
    write_pairs([MILL], writer, config, path)
    assert files.read_lines(path)[-1]["writer"] == "a" * 64
    before = path.read_bytes()
    config, other = dataclasses.replace(config, rounds=2), Scripted()
    other.fingerprint = "b" * 64
    with pytest.raises(
        ValueError, match=r"another model of the same name: got .* bbbbbbbbbbbb, expected aaaaaaaaaaaa;"
    ):
        write_pairs([MILL], other, config, path)
    assert path.read_bytes() == before
    write_pairs([MILL], writer, config, path)
    assert sum("kinds" in line for line in files.read_lines(path)) == 2


def test_without_a_plan_nothing_is_asked(config, tmp_path):
    writer, path = Scripted(plan="..."), tmp_path / "pairs.jsonl"
    write_pairs([MILL], writer, config, path)
    assert not any(text.startswith("DO") for texts, *_ in writer.asked for text in texts)
    assert files.read_lines(path)[-1]["kinds"]["planned"] == {"replies": 1, "without_pair": 1, "pairs": 0}


def test_a_document_of_which_nothing_says_what_it_is_about_has_pairs_alone(config, tmp_path, caplog):
    config, writer = GeneratorConfig(**{**vars(config), "least_support": 0.0}), Scripted()
    (made,) = write_pairs([Document("It rains.", id="rain")], writer, config, tmp_path / "pairs.jsonl")
    assert {type(pair) for pair in made.qa_pairs} == {QAPair} and len(writer.asked) == 1
    assert "document 'rain': no title says what it is about" in caplog.text


# --- in a row -------------------------------------------------------------------------------------------

SENTENCES = ["The mill is old.", "It has four wheels.", "Ana Bell built it.", "Its roof is red."]


def test_a_text_is_read_in_parts_that_end_where_sentences_end(caplog):
    prompt = Prompt("plain", tiny.tokenizer())
    long = "Its " + "very " * 20 + "long name is Orrin."
    text = TextPair("Tell of it.", " ".join([*SENTENCES[:2], long, *SENTENCES[2:]]))
    pair = QAPair("A pair that is too long?", "x" * 300)
    document = Document("x", id="a", qa_pairs=(pair, text, TextPair("Short?", "Yes, it is.")))
    caplog.set_level("INFO")
    (made,) = with_split_texts([document], prompt, 96)
    first, *parts, last = made.qa_pairs
    assert (first, last) == (pair, TextPair("Short?", "Yes, it is."))
    assert " ".join(part.answer for part in parts) == " ".join(SENTENCES)
    assert [part.question for part in parts] == [f"Tell of it. (part {n} of {len(parts)})" for n in (1, 2)]
    assert all(isinstance(part, TextPair) and fits(part, prompt, 96) for part in parts)
    assert "1 written texts, read in 2 parts; 1 of their sentences are longer than a row" in caplog.text
    assert with_split_texts([made], prompt, 96) == [made]
    # What is left fits: it is one text.
    one = TextPair("Tell of it.", f"{SENTENCES[0]} {long}")
    (made,) = with_split_texts([Document("x", qa_pairs=(one,))], prompt, 96)
    assert made.qa_pairs == (TextPair("Tell of it.", SENTENCES[0]),)
    (made,) = with_split_texts([Document("x", qa_pairs=(TextPair("Tell of it.", long),))], prompt, 96)
    assert made.qa_pairs == ()


def test_a_conversation_asks_for_a_text_as_it_stands():
    """A text has many sentences, so nobody asks for it "in one sentence"."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = tiny.CHAT_TEMPLATE
    prompt = Prompt("plain", tokenizer)
    texts = tuple(
        TextPair(f"Tell of mill {n}.", "The mill has four wheels, and Ana Bell built it.") for n in range(7)
    )
    document = Document("The mill.", qa_pairs=texts)
    config = TargetConfig(formats="chat", unrelated_per_epoch=0, contrast_per_epoch=0, chat_per_epoch=0)
    made = make_targets([document], prompt, config, seed=0, epochs=1, seq_len=2000)
    asked = sorted(asked for sentence in made for asked, _ in sentence.record["turns"])
    assert asked == [pair.question for pair in texts]
