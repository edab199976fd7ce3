"""Questions from tables, labels and lists of persons; headings and Markdown marks; where completions are cut."""

import re

import pytest
from asking import asked

from selfparam_jax.data.documents import Document
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.grounded.discourse import split_sentences
from selfparam_jax.targets.grounded.facts import completion_pairs, find_facts
from selfparam_jax.targets.grounded.lines import plain
from selfparam_jax.targets.grounded.writer import GroundedWriter

MANUAL = """# Velmora K3 manual

The **Velmora K3** is a steam cleaner made by Halden Works. It heats up in `90 seconds`.

| Property | Value |
| --- | --- |
| Tank capacity | 4.2 litres |
| **Weight** | 3.8 kg |
| Cable length (m) | 6 |
| Dishwasher safe | no |
| Colours | red, black |
| Included accessories | brush, belt |
| Serial number | - |

## Spare parts

Part | Price | Order number
:----|------:|-------------
Filter | 12 euros | VK-311
Hand nozzle | 9.50 euros | VK-402

## More

- Noise level: 62 dB
- **Warranty:** 3 years
Supply voltage: 230 V

```
| no | table |
```
"""
MINUTES = """Minutes of the Harrow Rowing Club

Date: 12 April 2033
Present: Odile Brannigan (chair), Marek Sutterby (treasurer), Tobias Quill
Apologies: Ines Varga (boat keeper), Per Holm (by phone)

Finances
Marek Sutterby reported that the club has 8,140 euros.

2. New boat

The club bought a boat for 900 euros.

**Any other business**

Next spring
-----------
The club will meet in May.
"""


def completed(text):
    return [(pair.question.partition(" go on: ")[2], pair.answer) for _, pair in completion_pairs(find_facts(text))]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the tank capacity of the Velmora K3?", "4.2 litres"),
        ("The tank capacity of the Velmora K3 is what?", "4.2 litres"),
        ("What is the weight of the Velmora K3?", "3.8 kg"),
        ("How heavy is the Velmora K3?", "3.8 kg"),
        ("What is the cable length of the Velmora K3 in m?", "6"),
        ("What are the colours of the Velmora K3?", "red, black"),
        ("What is the price of the filter for the Velmora K3?", "12 euros"),
        ("What is the order number of the hand nozzle for the Velmora K3?", "VK-402"),
        ("What are the included accessories of the Velmora K3?", "brush, belt"),
        ("What is the noise level of the Velmora K3?", "62 dB"),
        ("What is the warranty of the Velmora K3?", "3 years"),
        ("What is the supply voltage of the Velmora K3?", "230 V"),
        ('What is given under "dishwasher safe" for the Velmora K3?', "no"),
    ],
)
def test_rows_of_tables_and_labels_with_values_are_asked_about(question, answer):
    assert (question, answer) in asked(MANUAL)


def test_an_empty_cell_says_nothing_and_no_question_or_completion_holds_marks():
    summary, lines = GroundedWriter(GeneratorConfig()).write_about(Document(MANUAL))
    assert summary["uncovered"] == ["Serial number: -"]
    assert not any("no | table" in str(line) or "serial number" in line["question"] for line in lines)
    assert not any(re.search(r"[|`#]|\*\*|---", line["question"] + line["answer"]) for line in lines)
    assert not any(line["prompt"] == "grounded.completion" for line in lines)
    held = [line for line in lines if line.get("held_out")]
    assert held and all(sum(line["sentence"] == other["sentence"] for line in lines) > 1 for other in held)


@pytest.mark.parametrize("title", ["Velm K3 User Manual", "Velm K3 – Instructions", "Velm K3: Quick Start Guide"])
def test_a_manual_is_about_its_product(title):
    text = "| Specification | Value |\n|---|---|\n| Power | 2200 W |\n"
    assert ("What is the power of the Velm K3?", "2200 W") in asked(text, title)
    assert ("What is the power of the Velm K3?", "2200 W") in asked(f"{title}\n\nData\n\n{text}")


def test_wider_tables_give_each_column_of_each_row():
    text = "| Month | Rain | Days |\n|---|---|---|\n| May | 80 mm | 12 |\n| June | 95 mm | 14 |\n"
    found = asked(text, "Quenbarrow")
    assert ("What is the rain of June for Quenbarrow?", "95 mm") in found
    assert ("What are the days of May for Quenbarrow?", "12") in found
    # Names of their own need no more.
    people = asked("| Walk | Length | Stops |\n|---|---|---|\n| Tarn Ridge | 8 km | 3 |\n", "Quenbarrow")
    assert ("What is the length of Tarn Ridge?", "8 km") in people
    steps = asked("| Setting | Speed |\n|---|---|\n| 1 | 300 rpm |\n", "Velm K3")
    assert ("What is the speed of setting 1 for the Velm K3?", "300 rpm") in steps
    linked = asked("| Property | Value |\n|---|---|\n| Time to heat up | 40 s |\n", "Velm K3")
    assert ("For the Velm K3, what is the time to heat up?", "40 s") in linked
    compared = asked("| Feature | Velm K3 | Velm K5 |\n|---|---|---|\n| Weight | 3 kg | 5 kg |\n")
    assert ("What is the weight of Velm K5?", "5 kg") in compared and ("How heavy is Velm K3?", "3 kg") in compared
    people = asked("| Name | Role |\n|---|---|\n| Ana Bell | Treasurer |\n", "The Orrin Rowing Club")
    assert any(answer == "Ana Bell" and "the treasurer" in question for question, answer in people)
    # Rows without a header, as at the beginning of a passage: nothing says what the columns are.
    assert not asked("| May | 80 mm | 12 |\n| June | 95 mm | 14 |\n", "Quenbarrow")
    assert completed(Document("| a b c d e f | 80 mm | 12 |\n| and so on for ever and ever | 95 mm | 14 |\n")) == []


def test_roles_in_brackets_are_asked_from_both_sides():
    found = asked(MINUTES)
    expected = [("chair", "Odile Brannigan"), ("treasurer", "Marek Sutterby"), ("boat keeper", "Ines Varga")]
    for role, person in expected:
        assert (f"Who is the {role} at the Harrow Rowing Club?", person) in found
        assert (f"Who was the {role} at the Harrow Rowing Club?", person) in found
        assert (f"What is the role of {person} at the Harrow Rowing Club?", role) in found
    assert not any("phone" in question + answer or "the present is" in question for question, answer in found)
    everybody = "Odile Brannigan, Marek Sutterby and Tobias Quill"
    assert ("Who was present at the meeting of the Harrow Rowing Club?", everybody) in found
    listed = asked("# Minutes of the Orrin Club\n\n## Present\n\n- Ana Bell (cellar keeper)\n- Tobin Weld\n")
    assert ("Who is the cellar keeper at the Orrin Club?", "Ana Bell") in listed
    assert ("Who was present at the meeting of the Orrin Club?", "Ana Bell and Tobin Weld") in listed
    nobody = asked("**Present:** Ana Bell (chair), Tobin Weld\n\nTobin Weld asked for offers. Tobin Weld left.\n")
    assert ("Who is the chair?", "Ana Bell") in nobody
    # What is no person has no role.
    assert not any("who" in question.lower() for question, _ in asked("- Velm Ombra (kettle)\n- Velm Atto (mill)\n"))
    acting = asked("Orrin Club\n\nDirector: Ana Bell (acting)\nSeat: Orrin\n")
    assert any(answer == "Ana Bell" and "director" in question for question, answer in acting)
    twice = asked("Minutes of the Orrin Club\n\nPresent: Ana Bell (member), Tobin Weld (member)\n")
    assert ("What is the role of Ana Bell at the Orrin Club?", "member") in twice
    assert not any(question.startswith("Who is the member") for question, _ in twice)


def test_headings_are_no_sentences():
    found = split_sentences(MINUTES)
    assert [sentence for sentence, _ in found] == [
        "Date: 12 April 2033",
        "Present: Odile Brannigan (chair), Marek Sutterby (treasurer), Tobias Quill",
        "Apologies: Ines Varga (boat keeper), Per Holm (by phone)",
        "Marek Sutterby reported that the club has 8,140 euros.",
        "The club bought a boat for 900 euros.",
        "The club will meet in May.",
    ]
    assert [heading for _, heading in found[3:]] == ["Finances", "New boat", "Next spring"]
    # Entries of a list and wrapped lines are no headings.
    text = "Bring:\n\n1. A rope\n2. Two oars\n\nThe club of Harrow met with the club of\nOrrin in May.\n"
    assert [sentence for sentence, _ in split_sentences(text)][-3:] == [
        "A rope", "Two oars", "The club of Harrow met with the club of Orrin in May.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("the **Velm** `K3` is *new*", "the Velm K3 is new"),
        ("see [the shop](https://a.example) now", "see the shop now"),
        ("5 * 3 * 2, 5*3*2 and snake_case_name", "5 * 3 * 2, 5*3*2 and snake_case_name"),
        ("press <Enter> twice", "press <Enter> twice"),
    ],
)
def test_marks_are_left_out_of_sentences(marked, expected):
    assert plain(marked) == expected


@pytest.mark.parametrize(
    ("sentence", "end"),
    [
        (
            "Down there for the plan, never against, and one, Tobias Quill, quite alone.",
            "one, Tobias Quill, quite alone",
        ),
        ("Never without all of this and with two heaped spoons of citric acid.", "of citric acid"),
        ("Always up and down along the old Bank of Orrin singing loudly.", "Bank of Orrin singing loudly"),
    ],
)
def test_completions_are_cut_where_both_sides_stay_whole(sentence, end):
    assert [answer for _, answer in completed(Document(sentence))] == [end]
