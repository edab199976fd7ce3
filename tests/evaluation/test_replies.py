"""Replies: both layouts of their files, and the lines that are read from them, worked by hand."""

import json

import pytest

from selfparam_jax.evaluation.replies import Reply, benchmark_lines, read_replies, repeats, strict_lines


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def published(index, content, **more):
    return {"index": index, "resp": {"choices": [{"message": {"role": "assistant", "content": content}}]}, **more}


def test_both_layouts(tmp_path):
    path = write(
        tmp_path / "r.jsonl",
        published(1, "1. Heat", prompt=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
        {"index": 0, "content": "1. Jaws", "prompt": "p"},
        published(2, "", prompt=["x", "y"]),
    )
    assert read_replies(path) == [Reply(0, "1. Jaws", "p"), Reply(1, "1. Heat", "b"), Reply(2, "", "y")]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "got no reply"),
        ([{"content": "a"}], "reply 1: got index None"),
        ([{"index": True, "content": "a"}], "got index True"),
        ([{"index": 0, "content": "a"}, {"index": 0, "content": "b"}], "reply 2: got index 0 twice"),
        ([{"index": 0, "resp": "API Failed"}], "the request failed"),
        ([{"index": 0, "resp": {"choices": []}}], "expected {'choices'"),
        ([{"index": 0}], "expected {'choices'"),
        ([{"index": 0, "content": None}], "got None as content"),
        ([{"index": 0, "content": "a", "prompt": 3}], "got 3 as prompt"),
    ],
)
def test_other_layouts_are_refused(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        read_replies(write(tmp_path / "r.jsonl", *records))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_replies(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("1. Heat\n2. Jaws", ["Heat", "Jaws"]),
        ("Sure!\n1. Heat (1995)\n2. Jaws (1975) ", ["Heat", "Jaws"]),
        ("Heat, Jaws, Up", ["Heat", "Jaws", "Up"]),  # no "1.": commas are line ends
        ("1) Heat\n2) Jaws", ["Heat", "Jaws"]),  # numbered otherwise
        ("1、Heat\n2 - Jaws\n3.– Up", ["Heat", "Jaws", "Up"]),
        ("1. Heat\n\n2.   The   Big\tChill\n", ["Heat", "", "The Big Chill", ""]),  # empty lines stay
        ("I liked Rocky 1.\nAssistant: 1. Heat", ["", "Assistant: 1. Heat"]),  # "1." in the prompt: cut there
        ("11. Heat\n12. Jaws", ["Heat", "Jaws"]),  # "1." inside "11.": cut there too
        ("1. 12 Angry Men\n2. 300", ["Angry Men", "300"]),  # the first title's own number is taken for numbering
        ("12 Angry Men, 300", ["Angry Men", ""]),
        ("1. Good, Bad, Ugly", ["Good, Bad, Ugly"]),  # commas stay where there is a "1."
        ("", [""]),
        ("1. Alien (a (very) old one)", ["Alien (a old one)"]),
        ("- Heat\n- Jaws", ["- Heat", "- Jaws"]),
    ],
)
def test_lines_as_the_benchmark_reads_them(content, lines):
    assert benchmark_lines(content) == lines


@pytest.mark.parametrize(
    ("reply", "titles", "is_list"),
    [
        (Reply(0, "1. Heat\n2. Jaws"), ["Heat", "Jaws"], True),
        (Reply(0, "Seen Rocky 1.\n1. Heat\n2. Jaws", "Seen Rocky 1."), ["Heat", "Jaws"], True),
        (Reply(0, "user\nask\nassistant\n1. Heat\n2. Jaws", "ask"), ["Heat", "Jaws"], True),
        (Reply(0, "[INST] ask [/INST] Heat, Jaws", "ask"), ["Heat", "Jaws"], True),
        (Reply(0, 'Here you are:\n- *Heat* (1995)\n- "Jaws"\n'), ["Heat", "Jaws"], True),
        (Reply(0, "1. 12 Angry Men\n2. 300\n3. 21 - Blackjack"), ["12 Angry Men", "300", "21 - Blackjack"], True),
        (Reply(0, "Good, Bad, Ugly\nHeat"), ["Good, Bad, Ugly", "Heat"], True),
        (Reply(0, ""), [], False),
        (Reply(0, "I do not know any film."), ["I do not know any film."], False),
        (Reply(0, "word " * 20 + "\n" + "word " * 20), ["word " * 19 + "word"] * 2, False),
    ],
)
def test_strict_lines(reply, titles, is_list):
    assert strict_lines(reply) == (titles, is_list)


def test_strict_lines_cut_behind_the_dialogue_if_the_prompt_is_unknown():
    dialogue = "\nUser: I saw Rocky 1. It was good\nSystem: "
    assert strict_lines(Reply(0, f"Recommend.{dialogue}\n1. Heat\n2. Jaws"), dialogue) == (["Heat", "Jaws"], True)


def test_repeats():
    assert repeats([]) == 0
    assert repeats(["Heat", "Jaws"]) == 0
    assert repeats(["Heat", "heat", "Jaws", "Jaws"]) == 0.5
