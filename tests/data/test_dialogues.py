"""Dialogues in their three layouts, the titles in them, and the pairs that are made by rule."""

import json

import pytest

from selfparam_jax.data.dialogues import (
    Dialogue,
    Mention,
    dialogue_documents,
    make_pairs,
    read_dialogues,
    request_of,
    titles_in,
)

OURS = {
    "id": "d1",
    "messages": [
        {"role": "User", "text": "Hi! I am looking for something like Heat (1995)."},
        {"role": "System", "text": "Have you seen Ronin (1998)?"},
        {"role": "System", "text": "Or maybe The Good, the Bad and the Ugly (1966)"},
        {"role": "User", "text": "  "},
        {"role": "User", "text": "No,  I will!"},
    ],
}
REDIAL = {
    "movieMentions": {"11": "Heat  (1995)", "22": "Ronin (1998)", "33": None},
    "respondentQuestions": {
        "22": {"suggested": 1, "seen": 1, "liked": 2},
        "11": {"suggested": 0, "seen": 1, "liked": 1},
    },
    "initiatorQuestions": {"22": {"suggested": 1, "seen": 0, "liked": 0}},
    "messages": [
        {"timeOffset": 0, "text": "I love @11", "senderWorkerId": 5, "messageId": 1},
        {"timeOffset": 1, "text": "Then try @22 and @33 or @44", "senderWorkerId": 9, "messageId": 2},
    ],
    "conversationId": "200",
    "respondentWorkerId": 9,
    "initiatorWorkerId": 5,
}
INSPIRED = [
    ["dialog_id", "utt_id", "speaker", "turn_id", "text", "movies", "fine_label"],
    ["a", "1", "RECOMMENDER", "1", "Hello", "", "accept_rating_good"],
    ["a", "2", "SEEKER", "1", "I want QUOTATION_MARKfunQUOTATION_MARK like Up", "Up (2009)", "accept_rating_good"],
    ["a", "3", "RECOMMENDER", "2", "Coco, or Cars", "Coco (2017);  Cars (2006)", "accept_rating_good"],
    ["b", "1", "SEEKER", "1", "Hi", "", "reject"],
]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_our_layout(tmp_path):
    (dialogue,) = read_dialogues(write(tmp_path / "d.jsonl", OURS))
    assert dialogue.turns == (
        ("User", "Hi! I am looking for something like Heat (1995)."),
        ("System", "Have you seen Ronin (1998)? Or maybe The Good, the Bad and the Ugly (1966)"),
        ("User", "No, I will!"),
    )
    assert dialogue.mentions == (
        Mention("Heat (1995)", False),
        Mention("Ronin (1998)", True),
        Mention("The Good, the Bad and the Ugly (1966)", True),
    )


def test_titles_that_a_file_lists_are_taken_as_they_are(tmp_path):
    titles = [{"title": "Up", "suggested": True, "liked": False}]
    (dialogue,) = read_dialogues(write(tmp_path / "d.jsonl", {**OURS, "titles": titles}))
    assert dialogue.mentions == (Mention("Up", True, None, False),)


def test_redials_layout(tmp_path):
    (dialogue,) = read_dialogues(write(tmp_path / "d.jsonl", REDIAL))
    assert dialogue.id == "redial-200"
    assert dialogue.turns == (("User", "I love Heat (1995)"), ("System", "Then try Ronin (1998) and @33 or @44"))
    # The user's own word wins: 0 is no, 2 is not said.
    assert dialogue.mentions == (
        Mention("Ronin (1998)", True, False, False),
        Mention("Heat (1995)", False, True, True),
    )


def test_redial_without_annotations_is_read(tmp_path):
    record = {**REDIAL, "movieMentions": [], "respondentQuestions": [], "initiatorQuestions": []}
    (dialogue,) = read_dialogues(write(tmp_path / "d.jsonl", record))
    assert dialogue.mentions == () and dialogue.turns[0][1] == "I love @11"


def test_inspireds_layout(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in INSPIRED))
    first, second = read_dialogues(path)
    assert first.turns[1] == ("User", 'I want "fun" like Up')
    assert first.mentions == (
        Mention("Up (2009)", False),
        Mention("Coco (2017)", True),
        Mention("Cars (2006)", True, None, True),  # the label is about the title suggested last
    )
    documents, left_out = dialogue_documents([first, second])
    assert [document.id for document in documents] == ["a"] and left_out == 1


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ("I saw Heat (1995) and It Follows (2014)!", ["Heat (1995)", "It Follows (2014)"]),
        ("Have you seen 12 Angry Men (1957)?", ["12 Angry Men (1957)"]),
        ("Great. Also Star Wars: A New Hope (1977)", ["Star Wars: A New Hope (1977)"]),
        ("Try The Lord of the Rings (2001)", ["Try The Lord of the Rings (2001)"]),  # the rule cannot know
        ("it came out (2003) in spring", []),
        ("in (12) rooms", []),
    ],
)
def test_titles_by_their_year(text, titles):
    assert titles_in(text) == titles


def test_known_titles_win():
    known = {"the lord of the rings", "the rings", "x men", "something wild"}
    assert titles_in("Try The Lord of the Rings (2001)", known) == ["The Lord of the Rings (2001)"]
    assert titles_in("AND X-Men (2000) or something wild (1986)", known) == ["X-Men (2000)", "something wild (1986)"]


def test_pairs_by_hand():
    turns = (("System", "Hello"), ("User", "I want a heist film like Heat (1995)"), ("System", "Ronin (1998)!"))
    mentions = (Mention("Heat (1995)", False, True, True), Mention("Ronin (1998)", True, None, False))
    dialogue = Dialogue("d", turns, mentions)
    asked = 'A user says: "I want a heist film like Heat (1995)"'
    assert request_of(dialogue) == "I want a heist film like Heat (1995)"
    assert [(pair.question, pair.answer) for pair in make_pairs(dialogue)] == [
        (f"{asked} Which titles are suggested?", "Ronin (1998)"),
        ('Which titles does a user talk about who says: "I want a heist film like Heat (1995)"', "Heat (1995)"),
        ("A user likes Heat (1995). Which titles are suggested?", "Ronin (1998)"),
        ('Does a user like Heat (1995) who says: "I want a heist film like Heat (1995)"', "yes"),
        ('Does a user like Ronin (1998) who says: "I want a heist film like Heat (1995)"', "no"),
    ]


def test_titles_are_asked_for_as_a_recommender_is_asked():
    turns = (("System", "Hello"), ("User", "A heist film?"), ("System", "Ronin, or Heat!"), ("User", "Fine"))
    mentions = (Mention("Ronin (1998)", True), Mention("Heat (1995)", True))
    first = make_pairs(Dialogue("d", turns, mentions), "Recommend.{dialogue}")[0]
    assert first.question == "Recommend.\nSystem: Hello\nUser: A heist film?\nSystem: "
    assert first.answer == "1. Ronin (1998)\n2. Heat (1995)"


def test_a_title_that_the_user_dislikes_is_nothing_to_suggest_by():
    mentions = (Mention("Heat (1995)", False, True, False), Mention("Ronin (1998)", True))
    questions = [p.question for p in make_pairs(Dialogue("d", (("User", "I want more"),), mentions))]
    assert not any("likes Heat" in question for question in questions)


def test_documents_hold_their_turns(tmp_path):
    (document,), left_out = dialogue_documents(read_dialogues(write(tmp_path / "d.jsonl", OURS)))
    assert left_out == 0
    assert document.text.startswith("User: Hi! I am looking for something like Heat (1995).\n\nSystem: Have you seen")
    assert document.metadata["turns"][2] == ["User", "No, I will!"]
    assert [item["title"] for item in document.metadata["titles"]][:2] == ["Heat (1995)", "Ronin (1998)"]
    assert document.qa_pairs


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"id": "a"}, "as 'messages'"),
        ({"id": "a", "messages": [{"role": "Narrator", "text": "x"}]}, "expected {'role': 'User' or 'System'"),
        ({"messages": OURS["messages"]}, "as 'id'"),
        ({**OURS, "titles": [{"title": "Up"}]}, "in 'titles'"),
        ({"messages": [{"senderWorkerId": 1, "text": "x"}]}, "not in ReDial's layout"),
    ],
)
def test_other_layouts_are_refused(tmp_path, record, message):
    with pytest.raises(ValueError, match=message):
        read_dialogues(write(tmp_path / "d.jsonl", record))


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="'d1' twice"):
        read_dialogues(write(tmp_path / "d.jsonl", OURS, OURS))
    (tmp_path / "d.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(ValueError, match="no column 'dialog_id'"):
        read_dialogues(tmp_path / "d.tsv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_dialogues(tmp_path / "nothing.jsonl")
