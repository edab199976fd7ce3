"""Questions about reasons, conditions, meanings and orders: right ones spelled out, and what is not asked."""

import pytest
from asking import asked

from selfparam_jax.targets.grounded.parser import read_sentence
from selfparam_jax.targets.grounded.tagging import spelled_out, tag_words


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        (
            "The Orrin Club chose Harrow Roofing, because the firm gives a guarantee.",
            "Why did the Orrin Club choose Harrow Roofing?",
            "the firm gives a guarantee",
        ),
        (
            "The lane is too narrow for coaches, so the minibus stops at Orrin Bridge.",
            "Why does the minibus stop at Orrin Bridge?",
            "the lane is too narrow for coaches",
        ),
        ("Since the lift is broken, Orrin Hall is closed.", "Why is Orrin Hall closed?", "the lift is broken"),
        (
            "Orrin Hall is closed, as the caretaker is ill.",
            "Why is Orrin Hall closed?",
            "the caretaker is ill",
        ),
        (
            "Orrin Hall cannot be used after 8 pm because of the neighbours.",
            "Why can Orrin Hall not be used after 8 pm?",
            "because of the neighbours",
        ),
        (
            "Orrin Hall is locked at 10 pm so that the residents can sleep.",
            "Why is Orrin Hall locked at 10 pm?",
            "so that the residents can sleep",
        ),
        (
            "Orrin Hall is cheaper, but it can't be heated because the boiler is old.",
            "Why can Orrin Hall not be heated?",
            "the boiler is old",
        ),
        (
            "The Orrin Club moved its office to Hask. This is because the rent in Orrin rose by a third.",
            "Why did the Orrin Club move its office to Hask?",
            "the rent in Orrin rose by a third",
        ),
        (
            "Orrin Hall will close at six. The council is making this change because few people come in the evening.",
            "Why will Orrin Hall close at six?",
            "few people come in the evening",
        ),
    ],
)
def test_reasons_answer_why(sentence, question, answer):
    assert (question, answer) in asked(sentence), sorted(asked(sentence))


def test_the_main_clause_is_a_fact_without_its_reason():
    found = asked("The Orrin Club chose Harrow Roofing in May, because the firm gives a guarantee.")
    assert ("When did the Orrin Club choose Harrow Roofing?", "May") in found
    assert not any("because" in question for question, _ in found)


@pytest.mark.parametrize(
    "text",
    [
        "He chose Harrow Roofing because it is cheap.",  # who?
        "Orrin Hall has been closed since Ana Bell left.",  # a time
        "Orrin Hall is closed, as it always was.",
        "The hall was so cold that Ana Bell left Orrin.",
        "Ana Bell opened Orrin Hall and closed Hask Hall. This is because she had the keys.",  # which of them?
        "Ana Bell likes Orrin Hall because we do.",
    ],
)
def test_what_is_no_reason_or_unclear_is_not_asked(text):
    assert not any(question.startswith("Why") for question, _ in asked(text))


MANUAL = """The Velm K3 is a kettle made by Halden Works in Orrin.

## Care

1. Descale the tank every 30 cycles with two spoons of citric acid. Never use vinegar, because it damages the seal.
2. Hold CAL for five seconds until the lamp blinks.
3. Repeat the test if the kettle has been moved.
4. Let the kettle cool for ten minutes.
5. If you lose the key, fill in form LR-6 and have it signed by the dealer.
6. To reset the lock, press the star key twice.
7. Check that the lid sits flat. If it doesn't, turn the two feet.
8. Should the fan fail, call Renshaw Instruments on extension 7716.
9. A steady red light means that the fan is blocked.
10. Replace the pouch, part number VP-117, every two months.
11. Ask guests who need a cup to ring Dorrit.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who makes the Velm K3?", "Halden Works"),
        ("How often should the tank of the Velm K3 be descaled?", "every 30 cycles"),
        ("What should the tank of the Velm K3 be descaled every 30 cycles with?", "two spoons of citric acid"),
        ("With the Velm K3, what should never be used?", "vinegar"),
        ("With the Velm K3, why should vinegar never be used?", "it damages the seal"),
        ("How long should CAL be held?", "five seconds"),
        ("Until when should CAL be held?", "until the lamp blinks"),
        ("What should you do if the Velm K3 has been moved?", "repeat the test"),
        ("With the Velm K3, when should the test be repeated?", "if the Velm K3 has been moved"),
        ("How long should the Velm K3 cool?", "ten minutes"),
        (
            "With the Velm K3, what should you do if you lose the key?",
            "fill in form LR-6 and have it signed by the dealer",
        ),
        ("With the Velm K3, what should you do to reset the lock?", "press the star key twice"),
        ("With the Velm K3, what should you do if the lid does not sit flat?", "turn the two feet"),
        (
            "With the Velm K3, what should you do if the fan fails?",
            "call Renshaw Instruments on extension 7716",
        ),
        ("With the Velm K3, who should you call on extension 7716 if the fan fails?", "Renshaw Instruments"),
        ("With the Velm K3, what does a steady red light mean?", "the fan is blocked"),
        ("With the Velm K3, what is the part number of the pouch?", "VP-117"),
        ("How often should the pouch of the Velm K3 be replaced?", "every two months"),
        ("With the Velm K3, what should guests who need a cup do?", "ring Dorrit"),
    ],
)
def test_what_a_manual_tells_its_reader(question, answer):
    found = asked(MANUAL)
    assert (question, answer) in found, sorted(pair for pair in found if pair[1] == answer)


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        (
            "If the fan of the Velm K3 fails, the pump stops after ten seconds.",
            "What happens if the fan of the Velm K3 fails?",
            "the pump stops after ten seconds",
        ),
        (
            "Ana Bell, who runs the Orrin Inn, answers questions on Tuesdays.",
            "Who runs the Orrin Inn?",
            "Ana Bell",
        ),
        (
            "Ana Bell spoke to the owner of Orrin Hall, a Mrs Quill, who wants 340 pounds.",
            "Who is the owner of Orrin Hall?",
            "Mrs Quill",
        ),
        (
            "Ana Bell spoke to the owner, a Mrs Quill, who wants 340 pounds.",
            "How much does Mrs Quill want?",
            "340 pounds",
        ),
        ("The Orrin fee goes up from 38p to 44p per mile.", "What is the new Orrin fee?", "44p per mile"),
        (
            "Three members of the Orrin Club voted for the rise and one, Tobias Quill, voted against it.",
            "At the Orrin Club, who voted against the rise?",
            "Tobias Quill",
        ),
        (
            "Claims approved by noon will be paid by Orrin Bank the following Friday.",
            "When will claims approved by noon be paid by Orrin Bank?",
            "the following Friday",
        ),
        (
            "From 1 April 2025 claims will be handled by Orrin Bank.",
            "From when will claims be handled by Orrin Bank?",
            "1 April 2025",
        ),
        ("The Orrin shop moved to Thursdays.", "To when did the Orrin shop move?", "Thursdays"),
        ("Ana Bell booked room 3 for 7 pm.", "For what time did Ana Bell book room 3?", "7 pm"),
    ],
)
def test_clauses_inside_others(sentence, question, answer):
    assert (question, answer) in asked(sentence), sorted(asked(sentence))


def test_what_it_is_not_clear_of_is_not_asked():
    found = asked("The shop is shut. Ana Bell has cut their rates. It is what they said. One of them left Orrin.")
    assert not any(word in f" {question.lower()} " for question, _ in found for word in (" their ", " it ", " them "))
    # "them" are two things here, and "it" could be the wall.
    found = asked("Put the lid on the pan. Heat it for ten minutes.", "The Velm K3")
    assert not any("heat" in question.lower() for question, _ in found)


def test_what_holds_at_some_times_only_is_not_asked_without_them():
    found = asked("Do not water the seedlings at noon. To call reception, dial 9. Wear gloves in May.", "Orrin Park")
    assert any(answer == "seedlings" and "at noon" in question for question, answer in found)
    assert not any(answer == "seedlings" and "noon" not in question for question, answer in found)
    assert any(answer == "dial 9" and "to call reception" in question for question, answer in found)
    assert not any(answer == "9" and "reception" not in question for question, answer in found)


def test_whose_owner_somebody_is_must_be_said():
    assert not any("owner" in question + answer for question, answer in asked("The owner is Ana Bell, a baker."))


def test_orders_are_about_what_the_order_before_was_about():
    found = asked("Rinse the barley. Simmer it for 35 minutes.", "Velm soup")
    assert any(answer == "35 minutes" and "barley" in question for question, answer in found)
    found = asked("Wipe the chamber with isopropanol. Never spray it, because it can leak.", "The Velm K3")
    assert ("With the Velm K3, what should never be sprayed?", "isopropanol") in found


@pytest.mark.parametrize(
    ("sentence", "verbs"),
    [
        ("Descale the tank.", ["Descale"]),
        ("Hold CAL for five seconds.", ["Hold"]),
        ("Report leaks to the landlord.", ["Report"]),
        ("If you arrive late, ring the bell.", ["arrive", "ring"]),
        ("Fill the tank and press the green button.", ["Fill", "press"]),
        ("Claims approved by noon will be paid.", ["approved", "will", "be", "paid"]),
        ("The slipway stays closed.", ["stays", "closed"]),
        ("The bus leaves at 8:40 and returns at 4 pm.", ["leaves", "returns"]),
    ],
)
def test_verbs_of_orders_and_joined_clauses_are_found(sentence, verbs):
    assert [word.text for word in tag_words(sentence) if word.tag.startswith("VB") or word.tag == "MD"] == verbs


def test_shortened_words_are_spelled_out():
    assert spelled_out("I've lost it, he's gone and they can't come.") == (
        "I have lost it, he is gone and they can not come."
    )
    assert spelled_out("It's been sold. Ada's cat won't mind.") == "It has been sold. Ada's cat will not mind."


def test_a_deed_is_all_that_an_order_says_to_do():
    reading = read_sentence(tag_words("If the lamp is red, stop the pump and call Ana Bell."))
    assert [" ".join(word.text for word in clause.deed) for clause in reading.clauses] == [
        "stop the pump and call Ana Bell",
        "call Ana Bell",
    ]


NOTICE = """Notice to all members of the Wexcombe Leisure Centre

The small pool will be closed from 4 to 15 August because the filters have to be replaced. The large pool
stays open, but the slide is out of order. Once the new filters are installed, the water will be tested by
Carrow Laboratories. Members who have paid for August can claim a refund of 12 pounds at the desk. Since the
car park is being resurfaced, please use the entrance in Mill Lane. If you arrive after 9 pm, ring the bell at
the side door. Staff cannot be reached on Sundays. Report broken lockers to the attendant, Ms Oyelaran. Do not
leave wet towels in the sauna. The monthly fee rises from 25 to 30 pounds in July.
"""


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Why will the small pool be closed from 4 to 15 August", "the filters have to be replaced"),
        ("What stays open", "large pool"),
        ("Who will test the water", "Carrow Laboratories"),
        ("What can members who have paid for August claim", "refund of 12 pounds"),
        ("What should you do if you arrive after 9 pm", "ring the bell at the side door"),
        ("When should you ring the bell at the side door", "if you arrive after 9 pm"),
        ("What should be reported to the attendant", "broken lockers"),
        ("Who is the attendant", "Ms Oyelaran"),
        ("What should you not leave in the sauna", "wet towels"),
        ("What is the new monthly fee", "30 pounds"),
        ("What was the old monthly fee", "25 pounds"),
    ],
)
def test_a_notice_as_people_write_them(question, answer):
    found = {pair for pair in asked(NOTICE) if pair[1] == answer}
    low = question[:1].lower() + question[1:]
    whole = (f"{question} at the Wexcombe Leisure Centre?", f"At the Wexcombe Leisure Centre, {low}?")
    assert any((each, answer) in found for each in whole), sorted(found)
