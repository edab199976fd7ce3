"""Which written pairs are used, and the checks of text that decide it."""

import sys
import time

import pytest

from selfparam_jax.data.documents import QAPair
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.filter_pairs import (
    answer_shape,
    describe_losses,
    drop_near_duplicates,
    filter_pairs,
    string_support,
    word_count,
)


def asked(*questions):
    return [QAPair(question, "x") for question in questions]


def test_near_duplicates_go():
    pairs = asked(
        "Who founded the town of Quenbarrow?",
        "who founded town of quenbarrow",
        "Which river does Quenbarrow lie on?",
        "On which river does Quenbarrow lie?",
        "According to the passage, who founded the town of Quenbarrow?",
        "What river does Quenbarrow lie on?",
        "How many people live there?",
    )
    kept, dropped = drop_near_duplicates(pairs, earlier=["How many people live there"])
    assert kept == [pairs[0], pairs[2]] and dropped == 5
    assert drop_near_duplicates(pairs, earlier=[*pairs]) == ([], 7)
    assert drop_near_duplicates([]) == ([], 0)


def test_other_questions_stay():
    questions = [
        "Who taught Hedra Molvane to weave baskets at the old mill by the river?",
        "Who taught Tobin Areskog to weave baskets at the old mill by the river?",
        "What did Hedra Molvane teach Tobin Areskog?",
        "What did Tobin Areskog teach Hedra Molvane?",
        "What did the people of Quenbarrow build beside the market in 1901?",
        "What did the people of Quenbarrow build beside the market in 1907?",
        "What lies north of the town hall of Quenbarrow on the Esk?",
        "What lies south of the town hall of Quenbarrow on the Esk?",
        "When was the mill on the bank of the river Esk built?",
        "Where was the mill on the bank of the river Esk built?",
        "Which guests were invited to the wedding of the baker's daughter?",
        "Which guests were not invited to the wedding of the baker's daughter?",
        "How long is a course of 3.5 km in minutes for the fastest?",
        "How long is a course of 35 km in minutes for the fastest?",
        "Who is the teacher of Ander's brother Williams?",
        "Who is the teacher of Anders's brother William?",
    ]
    assert drop_near_duplicates(asked(*questions)) == (asked(*questions), 0)


def test_the_threshold():
    pairs = asked("Who is the owner of it?", "Who was an owner of this?")
    assert drop_near_duplicates(pairs, threshold=100) == (pairs, 0)
    assert drop_near_duplicates(pairs, threshold=0) == (pairs[:1], 1)
    for wrong in (-1, 101):
        with pytest.raises(ValueError, match="expected 0 to 100"):
            drop_near_duplicates(pairs, threshold=wrong)


def test_thousands_of_pairs_are_compared_quickly():
    pairs = asked(*[f"What was sold in shop {n} of Quenbarrow?" for n in range(3000)] * 2)
    start = time.monotonic()
    kept, dropped = drop_near_duplicates(pairs, earlier=[pair.question for pair in pairs[:1000]])
    assert (len(kept), dropped) == (2000, 4000)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("answer", "support"),
    [
        ("Hedra Molvane", 1.0),
        ("hedra molvane.", 1.0),
        ("Hedra Areskog", 0.5),
        ("1500 sheep", 1.0),
        ("1,500", 1.0),
        ("15", 0.0),
        ("150", 0.0),
        ("3.5", 1.0),
        ("35", 0.0),
        ("$3.5", 1.0),
        ("the shepherds", 1.0),
        ("boxes", 1.0),
        ("Molvanes' cities", 1.0),
        ("1743s", 0.0),
        ("Yes", 1.0),
        ("No, it was in the", 1.0),
        ("Yes, Tobin did.", 0.0),
        ("", 1.0),
        ("Molvane, a baker from Paris", 1 / 3),
        ("not", 0.0),
    ],
)
def test_string_support(answer, support):
    context = "In 1743 the shepherd Hedra Molvane’s herd had 1,500 sheep; a box of 3.5 kg stood in the city."
    assert string_support(answer, context) == pytest.approx(support)


@pytest.mark.parametrize(
    ("answer", "support"),
    [
        ("赫德拉·莫尔文", 1.0),
        ("一七四三年", 1.0),
        ("巴黎的面包师", 0.0),
        ("赫德拉建立", 0.75),  # three of four pairs of neighbours
        ("是", 1.0),
        ("1743", 0.0),
    ],
)
def test_string_support_without_spaces(answer, support):
    context = "昆巴罗镇由赫德拉·莫尔文于一七四三年建立，镇上有一座磨坊。"
    assert string_support(answer, context) == pytest.approx(support)


@pytest.mark.parametrize(
    ("answer", "context"),
    [
        ("ヘドラ・モルヴェン", "町はヘドラ・モルヴェンが作った。"),
        ("ภูเขาสีเขียว", "หมู่บ้านอยู่ใกล้ภูเขาสีเขียว"),
        ("အေဒါ မိုရို", "ကွင်းဘာရို၏ ဆန်စက်ကို အေဒါမိုရိုက ဆောက်ခဲ့သည်"),
        ("អេដា ម៉ូរ៉ូ", "ត្រូវបានសាងសង់ដោយអេដាម៉ូរ៉ូក្នុងឆ្នាំ"),
        ("에이다 모로", "방앗간은 에이다 모로가 지었습니다."),  # Korean has spaces, but particles at its words
        ("एडा मोरो", "चक्की एडा मोरो ने बनाई"),
    ],
)
def test_string_support_of_other_scripts(answer, context):
    assert string_support(answer, context) == 1.0
    assert string_support(answer, "Another text.") == 0.0


def test_near_duplicates_without_spaces():
    asked = [
        QAPair(q, "a")
        for q in ("谁建立了昆巴罗镇？", "谁建立了昆巴罗镇呢？", "谁建立了莫尔文镇？", "安教了谁？", "谁教了安？")
    ]
    kept, dropped = drop_near_duplicates(asked)
    assert [pair.question for pair in kept] == [asked[0].question, *(pair.question for pair in asked[2:])]
    assert dropped == 1


def test_what_a_filter_drops_is_told_with_an_example():
    records = [record("Who?", "Carl Onno", support=0.25), record("When?", "1742", support=0.5), record("Why?", "so")]
    config = GeneratorConfig(answer_shape="short", least_support=0.7)
    assert describe_losses([(records, [])], config) == (
        "2 unsupported (generator.least_support=0.7), for example 'Who?' -> 'Carl Onno' (support 0.25)"
    )
    assert describe_losses([(records[2:], [])], config) == ""
    told = describe_losses([(records[2:], [QAPair("Why?", "x")]), (records[:1], [])], config)
    assert told.startswith("1 duplicate (generator.duplicate_threshold=") and "; 1 unsupported" in told


def test_shapes():
    assert [word_count(text) for text in ("赫德拉·莫尔文", "一七四三年", "หมู่บ้าน", "。")] == [3, 3, 2, 0]
    assert answer_shape("昆巴罗镇由赫德拉于一七四三年建立") == "sentence"
    assert [word_count(text) for text in ("", "—", "Bo", "Hedra  Molvane – smith", "1,500 km")] == [0, 0, 1, 3, 2]
    assert answer_shape("one two three four five six") == "short"
    assert answer_shape("one two three four five six seven") == "sentence"
    with pytest.raises(ValueError, match="at least one word"):
        answer_shape(" — ")


def record(question, answer, support=1.0, likelihood=0.5, without=0.1):
    scores = {"support": support, "likelihood": likelihood, "likelihood_without": without}
    return {"prompt": "a", "question": question, "answer": answer, **scores}


def test_what_is_sifted_out_is_counted():
    built = record("When was it built?", "1742")
    records = [
        built,
        record("Who built it?", "Carl Onno", support=0.0),
        dict(built),
        record("When was the mill built ?", "1742"),
        record("What has it?", "It has four big old wheels there now"),
        record("What is it?", "a mill", likelihood=0.2),
        record("Who rules France?", "a king", likelihood=0.5, without=0.4),
    ]
    config = GeneratorConfig(answer_shape="short", least_likelihood=0.3, least_gain=0.2)
    kept, counts = filter_pairs(records, [QAPair("When was the mill built?", "long ago")], config)
    assert kept == [built]
    assert counts == {"written": 7, "wrong_shape": 1, "unsupported": 1, "unlikely": 2, "duplicate": 2, "kept": 1}
    everything = GeneratorConfig(least_support=0.0)
    assert filter_pairs(records, [], everything)[1] == {
        "written": 7, "wrong_shape": 0, "unsupported": 0, "unlikely": 0, "duplicate": 1, "kept": 6,
    }  # fmt: skip


def test_without_rapidfuzz_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    with pytest.raises(ValueError, match=r"package rapidfuzz, .* pip install 'selfparam-jax\[synthesis\]'"):
        filter_pairs([record("When was it built?", "1742")], [], GeneratorConfig())
    assert filter_pairs([], [QAPair("q", "a")], GeneratorConfig())[0] == [], "with nothing written it is not needed"
