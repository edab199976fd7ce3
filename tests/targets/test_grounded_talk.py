"""Questions from e-mails, memos, chats, lists of questions and lists of things: who "I" is, who sent what."""

import pytest
from asking import asked

from selfparam_jax.data.documents import Document
from selfparam_jax.data.readers.chats import read_transcript
from selfparam_jax.targets.grounded.discourse import read_document
from selfparam_jax.targets.grounded.facts import completion_pairs, find_facts

MEMO = """**MEMO**

**To:** All staff
**From:** Odalys Penhurrow, Head of Finance
**Date:** 3 March 2025
**Subject:** Changes to travel claims

Claims at Brindlow Castings will be paid by Orrin Bank. We are making this change because many claims had no receipts.
I will answer questions on Monday.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who sent the memo about changes to travel claims at Brindlow Castings?", "Odalys Penhurrow"),
        (
            "When did Odalys Penhurrow send the memo about changes to travel claims at Brindlow Castings?",
            "3 March 2025",
        ),
        ("What is the role of Odalys Penhurrow at Brindlow Castings?", "Head of Finance"),
        (
            "To whom was the memo about changes to travel claims at Brindlow Castings sent by Odalys Penhurrow on "
            "3 March 2025?",
            "all staff",
        ),
        ("What was the memo about that Odalys Penhurrow sent on 3 March 2025?", "changes to travel claims"),
        ("Why will claims at Brindlow Castings be paid by Orrin Bank?", "many claims had no receipts"),
        ("Who will answer questions at Brindlow Castings?", "Odalys Penhurrow"),
    ],
)
def test_a_memo_has_a_sender_a_day_and_a_subject(question, answer):
    found = asked(MEMO, "Memo: travel claims at Brindlow Castings")
    assert (question, answer) in found, sorted(pair for pair in found if pair[1] == answer)


MAILS = """From: Gwenda Marl <gwenda@example.org>
To: Isidro Fall
Date: Tue, 6 May 2025, 19:42
Subject: Boiler in flat 12

Hi Isidro,

I've ordered a new boiler from Tindall Heating. My nephew Leander will bring the keys, and you know the rest.
Please open the cellar on Friday.

---

From: Isidro Fall
To: Gwenda Marl
Date: 8 May 2025
Subject: Re: Boiler in flat 12

I'll do that. I met the tenant, a Mrs Quill.
"""


def test_i_and_you_of_an_email_are_who_wrote_and_who_reads():
    found = asked(MAILS)
    thing = 'the e-mail with the subject "Boiler in flat 12"'
    assert (f"Who sent {thing} to Isidro Fall?", "Gwenda Marl") in found
    assert (f"When did Isidro Fall send {thing} to Gwenda Marl?", "8 May 2025") in found
    assert (f"Who sent {thing}?", "Gwenda Marl") not in found, "both sent one"
    assert ("What has Gwenda Marl ordered from Tindall Heating?", "new boiler") in found
    assert ("What should Isidro Fall open on Friday?", "cellar") in found
    assert ("When should Isidro Fall open the cellar?", "Friday") in found
    assert ("Who did Isidro Fall meet?", "tenant") in found
    assert not any(" I " in f" {question} {answer} " or "nephew" in question for question, answer in found)


CHAT = """Tamsin: hey Kelvo, can you help me on Sunday?
Kelvo: yes! do you have a van
Tamsin: I've hired one from Puddock Vans, £62 a day. I'm picking it up on Saturday because they're closed on Sundays
Kelvo: smart. does it have a lift?
Tamsin: it does, but you should wear gloves
Kelvo: ok. My brother Radomir will come at 9:15
Tamsin: great. bring your strap to the yard. a tuner called Wilhelmet Crake is booked for the 14th of October
Kelvo: we could ask her
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who has hired a van from Puddock Vans?", "Tamsin"),
        ("What has Tamsin hired a van from?", "Puddock Vans"),
        ("When is Tamsin picking the van up?", "Saturday"),
        ("Why is Tamsin picking the van up on Saturday?", "Puddock Vans are closed on Sundays"),
        ("What should Kelvo bring to the yard?", "Kelvo's strap"),
        (
            "For when is the tuner Wilhelmet Crake booked?",
            "the 14th of October",
        ),
        ("At what time will Kelvo's brother Radomir come?", "9:15"),
    ],
)
def test_who_speaks_in_a_chat_is_who_i_is(question, answer):
    for text in (CHAT, read_transcript(CHAT)[0].text):
        found = asked(text)
        known = {(q.removeprefix("In the chat between Tamsin and Kelvo, "), a) for q, a in found}
        wanted = question.removeprefix("In the chat between Tamsin and Kelvo, ")
        wanted = wanted[:1].lower() + wanted[1:] if (wanted, answer) not in known else wanted
        assert (wanted, answer) in known, sorted(pair for pair in found if pair[1] == answer)


def test_you_and_we_of_a_chat_are_left_alone():
    found = {(question.removeprefix("Can you tell me "), answer) for question, answer in asked(CHAT)}
    assert not any(
        word in f" {question.lower()}" for question, _ in found for word in (" you ", " we ", " her ", " i ")
    )
    assert not any("gloves" in question or answer == "gloves" for question, answer in found)
    read = read_document(Document(CHAT))
    assert read.topic.name == "the chat between Tamsin and Kelvo" and len(read.sentences) > 8
    assert not any(
        "you " in pair.question or "we " in pair.question for _, pair in completion_pairs(find_facts(Document(CHAT)))
    )


def test_who_will_come_to_what_a_letter_is_about():
    text = (
        "From: Gwenda Marl\nTo: Isidro Fall\nSubject: Orrin Street reunion\n\nHi,\n\nMy nephew Leander will play.\n"
    )
    assert ("For Orrin Street reunion, who will play?", "Leander") in asked(text) or (
        "For the Orrin Street reunion, who will play?", "Leander",
    ) in asked(text)  # fmt: skip


def test_three_speakers_leave_open_whom_an_order_is_for():
    text = "Maren: I booked room 3 at Hask Hall\nIvo: bring the drum\nPetra: I fear it is wet\n" * 2
    found = asked(text)
    assert ("Where did Maren book room 3?", "Hask Hall") in found
    assert not any("drum" in question + answer for question, answer in found)


FAQ = """# Questions about the Ferndale Library

## How long can I keep a book?

You can keep a book for three weeks. After that it costs 20 cents a day.

**Where can I park?**

There is a car park behind the town hall.

Q: How much is a card?
A: A card costs two euros.

## What are your hours?

We are open from 9 to 6.

## Is it warm?

Yes.
"""


def test_a_question_of_the_document_is_asked_with_the_answer_below_it():
    found = asked(FAQ)
    assert ("How long can I keep a book at the Ferndale Library?", "You can keep a book for three weeks") in found
    assert ("Where can I park at the Ferndale Library?", "There is a car park behind the town hall") in found
    assert ("How much is a card at the Ferndale Library?", "A card costs two euros") in found
    assert ("How long can you keep a book at the Ferndale Library?", "three weeks") in found
    assert not any("your" in question or "warm" in question for question, _ in found)


LISTS = """# Cleaning the Morvane T3

Orrin Laboratory
Version 5, issued 9 September 2024 by Ilsabet Throve

## You will need

* the 50 g weight (in the blue tin, drawer 3)
* lint-free wipes
* gloves

## Action points

- Tom Reave: order the hose by Friday
"""


def test_lists_of_things_and_deeds():
    found = asked(LISTS)
    assert any(answer == "Ilsabet Throve" and "who issued version 5" in question for question, answer in found)
    assert ("Where is the 50 g weight for the Morvane T3 kept?", "in the blue tin, drawer 3") in found
    assert ("What will you need for the Morvane T3?", "the 50 g weight, lint-free wipes, gloves") in found
    assert any(answer == "Tom Reave" and "who will order the hose" in question for question, answer in found)


def test_what_somebody_said_is_no_word_of_the_writers():
    found = asked('"We had no choice," said the mayor of Orrin, Edda Quist.', "Minutes of the Orrin Club")
    assert not any("choice" in question + answer for question, answer in found)


def test_minutes_say_when_and_where_the_meeting_was():
    found = asked("Minutes of the Orrin Club\n\nDate: 9 May 2031, 19:30. Place: the hall in Ferry Road.\n")
    assert ("On what date did the meeting take place at the Orrin Club?", "9 May 2031") in found
    assert ("At the Orrin Club, where did the meeting take place?", "at the hall in Ferry Road") in found
