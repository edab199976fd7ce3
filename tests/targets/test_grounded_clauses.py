"""Questions that need the right cut: joined phrases, causes, names after roles, rows that record what happened."""

import pytest
from asking import asked

from selfparam_jax.data.documents import Document
from selfparam_jax.targets.grounded.facts import find_facts
from selfparam_jax.targets.grounded.tagging import tag_words


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        (
            "Orrin Hall may be used only before 9 am and after 6 pm.",
            "When may Orrin Hall be used?",
            "before 9 am and after 6 pm",
        ),
        ("Orrin Hall is closed in November and February.", "In which months is Orrin Hall closed?", None),
        (
            "The Orrin rent is £48 for a full plot and £27 for a half plot.",
            "How much is the Orrin rent for a half plot?",
            "£27",
        ),
        (
            "The Orrin boiler is covered for five years and everything else for two.",
            "How long is the Orrin boiler covered?",
            "five years",
        ),
        ("The Orrin code is changed in May and sent by text.", "How is the Orrin code sent?", "by text"),
        ("The Orrin Medal was delivered by post.", "How was the Orrin Medal delivered?", "by post"),
        (
            "Dates of the Orrin Fair are posted on the board next to the seed hut.",
            "Where are dates of the Orrin Fair posted?",
            "on the board next to the seed hut",
        ),
        ("Orrin Hall stands along the north hedge.", "Where does Orrin Hall stand?", "along the north hedge"),
        (
            "Each member of the Orrin Club gives two mornings to common work such as clearing ditches.",
            "What does each member of the Orrin Club give two mornings to?",
            "common work such as clearing ditches",
        ),
        ("The Orrin stove keeps a little heat.", "What does the Orrin stove keep?", "a little heat"),
        (
            "Refunds totalling €6,275 were paid to people who had been charged twice by Orrin Bank.",
            "What was the total of the refunds paid to people who had been charged twice by Orrin Bank?",
            "€6,275",
        ),
        (
            "On 12 July customers could not buy tickets in Orrin Hall for 3 hours and 10 minutes.",
            "How long could customers not buy tickets in Orrin Hall on 12 July?",
            "3 hours and 10 minutes",
        ),
    ],
)
def test_joined_phrases_and_what_belongs_to_a_noun_are_not_cut(sentence, question, answer):
    found = asked(sentence)
    assert (question, answer or "November and February") in found, sorted(found)


def test_places_of_a_subject_and_limits():
    text = "Queues at the Essel terminal reached the car park. A shed may be no larger than 2 metres by 1.8 metres."
    found = asked(text, "The Orrin Club")
    assert ("At the Orrin Club, at which terminal did queues reach the car park?", "Essel terminal") in found
    assert ("How large may a shed be at the Orrin Club?", "no larger than 2 metres by 1.8 metres") in found


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        (
            "Orrin Hall was locked since it rained in the morning.",
            "Why was Orrin Hall locked?",
            "it rained in the morning",
        ),
        ("Vinegar must not be used in Orrin, as it damages the seal.", None, "it damages the seal"),
        (
            "Ana Bell left Orrin, not for lack of money but because her mother had fallen ill.",
            "Why did Ana Bell leave Orrin?",
            "her mother had fallen ill",
        ),
        (
            "The Orrin disk filled up because the cleanup was off on 28 May, during the move to the new office.",
            "Why did the Orrin disk fill up?",
            "the cleanup was off on 28 May, during the move to the new office",
        ),
        (
            "Lock Orrin Hall behind you even if others are inside, since two clocks were stolen.",
            "Why should you lock Orrin Hall behind you even if others are inside?",
            "two clocks were stolen",
        ),
    ],
)
def test_causes_after_since_as_and_not_but(sentence, question, answer):
    found = {pair for pair in asked(sentence) if pair[1] == answer and pair[0].startswith("Why")}
    assert found and (question is None or (question, answer) in found), sorted(asked(sentence))


def test_what_two_do_is_not_asked_of_one_and_what_people_do_is_no_order():
    text = "Visitors bring things and mend them. Orrin Hall was built by Ana Bell, a baker, and her brother Piet Orr."
    found = asked(text, "The Orrin Club")
    assert not any(
        answer in ("Ana Bell", "Piet Orr") and question.startswith("Who built") for question, answer in found
    )
    assert ("What do visitors mend at the Orrin Club?", "things") in found
    assert not any("should you mend" in question for question, _ in found)


def test_even_if_is_no_condition():
    found = asked("Lock the gate behind you even if others are still inside.", "The Orrin Club")
    assert found
    assert not any("do if others" in question or answer.startswith(("if", "even")) for question, answer in found)
    assert not any(answer.endswith("even") for _, answer in found)


def test_since_after_a_perfect_is_a_time():
    assert not any(q.startswith("Why") for q, _ in asked("Orrin Hall has been closed since Ana Bell left."))
    assert not any(q.startswith("Why") for q, _ in asked("Orrin Hall is closed, as they said."))


PROFILE = """Ana Bell was born in Kettrick Bay. With her friend Tobias Vane, a schoolteacher, she surveyed 23
kilometres of caves. At nineteen she won a scholarship to the Orrin Institute. The map, drawn by
hand on linen, is kept at the Averill Museum. She married late, in 2001, to the boatbuilder Emil
Hart. When younger cavers asked her for advice, she told them to count their steps. The medal was
sent to a house that belonged to Hadrian Voss, who left the town in March.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Where was Ana Bell born?", "Kettrick Bay"),
        ("With whom did Ana Bell survey 23 kilometres of caves?", "Tobias Vane"),
        ("How many kilometres of caves did Ana Bell survey?", "23 kilometres"),
        ("What is the occupation of Tobias Vane?", "schoolteacher"),
        ("What did Ana Bell win?", "scholarship to the Orrin Institute"),
        ("At what age did Ana Bell win a scholarship to the Orrin Institute?", "nineteen"),
        ("For Ana Bell, where is the map kept?", "Averill Museum"),
        ("Who did Ana Bell marry?", "Emil Hart"),
        ("When did Ana Bell marry the boatbuilder Emil Hart?", "2001"),
        ("What did Ana Bell tell the younger cavers to do?", "count their steps"),
        ("When did Hadrian Voss leave the town?", "March"),
    ],
)
def test_a_profile_with_people_beside_its_own(question, answer):
    found = asked(PROFILE, "Profile: Ana Bell")
    assert (question, answer) in found, sorted(pair for pair in found if pair[1] == answer)


def test_what_a_question_asks_for_is_not_repeated_by_its_answer():
    found = asked("The north jetty will be fixed by Lodder. Fruit trees need care.", "The Orrin Club")
    found |= asked(PROFILE, "Profile: Ana Bell")
    assert not any(question.startswith(("Which jetty", "Which trees", "In which bay")) for question, _ in found)
    assert ("Which museum is it?", "Averill Museum") not in found
    assert any("at which museum" in question for question, _ in found)  # a real name


RULES = """A shed needs written consent from the site manager, Fenella Grosvik. Complaints are made in writing to the
secretary, Ruprecht Adeyle, who replies within 14 days. You can appeal to the committee, which meets at the Drover's
Rest every other Tuesday. If payments fail again, stop the sale, then look for the cause.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("who is the site manager", "Fenella Grosvik"),
        ("to whom are complaints made in writing", "Ruprecht Adeyle"),
        ("who does a shed need written consent from", "Fenella Grosvik"),
        ("how are complaints made", "in writing"),
        ("where does the committee meet", "Drover's Rest"),
        ("what should you do if payments fail again", "stop the sale, then look for the cause"),
        ("what should you look for if payments fail again", "cause"),
    ],
)
def test_rules_name_who_answers_for_something(question, answer):
    found = asked(RULES, "Orrin Allotment Society: site rules")
    start = question[:1].upper() + question[1:]
    whole = (f"At the Orrin Allotment Society, {question}?", f"{start} at the Orrin Allotment Society?")
    assert any((each, answer) in found for each in whole), sorted(pair for pair in found if pair[1] == answer)


def test_a_wording_does_not_differ_in_the_place_of_the_topic_only():
    facts = find_facts(Document(RULES, title="Orrin Allotment Society: site rules")).facts
    for fact in facts:
        questions = [draft.question for draft in fact.drafts]
        assert len(questions) == len(set(questions))
        fronted = [q for q in questions if q.startswith(("For the Orrin", "Regarding"))]
        assert not fronted or len(questions) <= 4


REPORT = """# Incident report: Hask booking outage, 12 July 2024

**Author:** Ana Bell
**Status:** closed

| Time | Event |
|---|---|
| 07:15 | Night operator Jorund Tesk restarts the web server; no effect |
| 07:40 | Ana Bell is paged |
| 08:25 | Full disk found on the server |
| 10:02 | Booking restored and checked |

## Actions

1. Send warnings to the phone instead of a mailbox. Owner: Jorund Tesk, due 26 July.
2. Double the disk to 800 GB. Owner: Ana Bell.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who is the author of the incident report on the Hask booking outage?", "Ana Bell"),
        ("At what time is Ana Bell paged?", "07:40"),
        ("In the incident report on the Hask booking outage, when was a full disk found on the server?", "08:25"),
        ("In the incident report on the Hask booking outage, at what time was booking restored?", "10:02"),
        (
            "In the incident report on the Hask booking outage, what happened at 08:25?",
            "full disk found on the server",
        ),
        ("Who is responsible for doubling the disk to 800 GB?", "Ana Bell"),
        ("By when should Jorund Tesk send warnings to the phone instead of a mailbox?", "26 July"),
    ],
)
def test_a_report_records_what_happened_and_who_is_to_do_what(question, answer):
    found = asked(REPORT)
    whole = {question, f"In the incident report on the Hask booking outage, {question[:1].lower()}{question[1:]}"}
    assert any((each, answer) in found for each in whole), sorted(pair for pair in found if pair[1] == answer)


def test_tables_of_actions_and_heads_of_documents():
    table = "| Action | Owner | Due |\n|---|---|---|\n| Order the hose | Tom Reave | 3 May |\n"
    found = asked(table, "The Orrin Club")
    assert any(answer == "Tom Reave" and "should order the hose" in question for question, answer in found)
    assert ("By when should Tom Reave order the hose?", "3 May") in found
    # Of what is Ana Bell the author? Not of the club.
    assert not asked("Author: Ana Bell\n\nOrrin is closed.\n", "The Orrin Club: opening hours") & {
        ("Who is the author at the Orrin Club?", "Ana Bell")
    }


FAQ = """## Velm Duo: frequently asked questions

**Which temperatures can I choose?**
Three: 65 °C for white tea, 80 °C for green tea and a full boil.

**Who can help?**
Our helpline is run by Bettany Sorrel and her team. If the base becomes too hot to touch, unplug it and contact us.

**Where is it sold?**
The red one is sold through our shop in Vellenby.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("With the Velm Duo, which temperature is for green tea?", "80 °C"),
        ("With the Velm Duo, who runs the helpline?", "Bettany Sorrel and her team"),
        (
            "With the Velm Duo, what should you do if the base becomes too hot to touch?",
            "unplug it and contact us",
        ),
    ],
)
def test_frequent_questions_above_their_answers(question, answer):
    found = asked(FAQ)
    assert (question, answer) in found, sorted(found)
    assert not any("one" in f"{q} {a}".lower().split() for q, a in found)


@pytest.mark.parametrize(
    ("sentence", "tags"),
    [
        ("Staff sold paper tickets from a box.", {"sold": "VBD", "tickets": "NNS"}),
        ("The map showed that the caves fed the wells.", {"fed": "VBD"}),
        ("In a dry spell the chair can forbid hoses.", {"spell": "NN"}),
        ("Beehives are placed along the north hedge.", {"north": "JJ", "hedge": "NN"}),
        ("Ana refused to travel to the fair.", {"travel": "VB"}),
        ("Unplug it and contact us.", {"contact": "VB"}),
        ("The code is changed and sent by text.", {"sent": "VBN"}),
        ("Send it to the phone instead of a mailbox.", {"instead": "IN"}),
    ],
)
def test_words_are_tagged_by_those_around_them(sentence, tags):
    found = {word.text: word.tag for word in tag_words(sentence)}
    assert {text: found[text] for text in tags} == tags
