"""Questions by rules: from hand-made sentences to questions with the right word, and what is never asked."""

import dataclasses

import pytest
from asking import asked

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.passages import Passage
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.grounded.discourse import read_document, split_sentences
from selfparam_jax.targets.grounded.facts import choose_pairs, find_facts, question_key
from selfparam_jax.targets.grounded.parser import read_sentence
from selfparam_jax.targets.grounded.tagging import tag_words
from selfparam_jax.targets.grounded.writer import GroundedWriter
from selfparam_jax.targets.write_pairs import describe_written, read_written, with_written_pairs, write_pairs


def resolved(text, title=""):
    return [sentence.resolved for sentence in read_document(Document(text, title=title)).sentences]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (
            "The Orrin Club was founded in 1902 by the baker Hedra Vance.",
            [
                ("When was the Orrin Club founded?", "1902"),
                ("In what year was the Orrin Club founded?", "1902"),
                ("Who founded the Orrin Club?", "Hedra Vance"),
                ("Which baker founded the Orrin Club?", "Hedra Vance"),
                ("By whom was the Orrin Club founded?", "Hedra Vance"),
                ("The Orrin Club was founded in which year?", "1902"),
                ("Can you tell me when the Orrin Club was founded?", "1902"),
            ],
        ),
        (
            "The Velm K3 costs 86 euros and has five trays.",
            [
                ("How much does the Velm K3 cost?", "86 euros"),
                ("What is the price of the Velm K3?", "86 euros"),
                ("How many trays does the Velm K3 have?", "five"),
            ],
        ),
        (
            "Ana Bell will visit the Corvane Observatory on Tuesday, 11 May, at 9 a.m.",
            [
                ("Which observatory will Ana Bell visit?", "Corvane Observatory"),
                ("On what date will Ana Bell visit the Corvane Observatory?", "Tuesday, 11 May"),
                ("At what time will Ana Bell visit the Corvane Observatory?", "9 a.m."),
                ("Who will visit the Corvane Observatory?", "Ana Bell"),
            ],
        ),
        (
            "Orrin Hall must be cleaned every two weeks because the roof leaks.",
            [
                ("How often must Orrin Hall be cleaned?", "every two weeks"),
                ("Why must Orrin Hall be cleaned every two weeks?", "the roof leaks"),
            ],
        ),
        (
            "The Velm K3 has a lid of cherry wood and a glass body.",
            [
                ("What is the lid of the Velm K3 made of?", "cherry wood"),
                ("What is the body of the Velm K3 made of?", "glass"),
            ],
        ),
        (
            "Ana Bell was born in the fishing village of Hamnes.",
            [("Where was Ana Bell born?", "Hamnes"), ("In which village was Ana Bell born?", "Hamnes")],
        ),
        ("Orrin Lake is 30 metres deep.", [("How deep is Orrin Lake?", "30 metres")]),
        ("The flag of Orrin is orange and white.", [("What colour is the flag of Orrin?", "orange and white")]),
        ("Orrin has a festival called the Lantern Fair.", [("Which festival does Orrin have?", "Lantern Fair")]),
        ("The Orrin Mill has been closed since 1964.", [("Since when has the Orrin Mill been closed?", "1964")]),
        (
            "The Orrin Mill keeps bread warm for 30 minutes.",
            [("How long does the Orrin Mill keep bread warm?", "30 minutes")],
        ),
        (
            "The mayor of Orrin, Tobin Weld, lives in Ferry Road.",
            [
                ("Who is the mayor of Orrin?", "Tobin Weld"),
                ("Where does Tobin Weld live?", "Ferry Road"),
                ("What is the role of Tobin Weld?", "mayor of Orrin"),
            ],
        ),
    ],
)
def test_the_question_word_follows_from_the_kind_of_answer(sentence, expected):
    found = asked(sentence)
    if "called" in sentence:  # what it is called is asked, not which one it is
        assert any(answer == "Lantern Fair" and "called" in question for question, answer in found)
        return
    assert set(expected) <= found, sorted(found)


def test_every_clause_is_asked_about_with_its_own_subject():
    found = asked("Ilse Marten chaired the Orrin Club, and Joren Pell kept the minutes of the Orrin Club.")
    assert ("Who chaired the Orrin Club?", "Ilse Marten") in found
    assert ("Who kept the minutes of the Orrin Club?", "Joren Pell") in found
    shared = asked("The Orrin Bridge was damaged by ice in January and will be repaired by Lodder Works in May.")
    assert ("Who will repair the Orrin Bridge?", "Lodder Works") in shared
    assert ("What damaged the Orrin Bridge?", "ice") in shared
    said = asked("The treasurer of the Orrin Club reported that the Orrin Club has 8,140 euros.")
    assert ("How much money does the Orrin Club have?", "8,140 euros") in said
    assert not any("report" in question for question, _ in said)
    relative = asked("The Orrin Inn has a cafe in the cellar, which is run by Moira Tesh.")
    assert any(answer == "Moira Tesh" and "cafe" in question for question, answer in relative)


def test_orders_ask_what_one_should_do():
    found = asked(
        "Press the red button twice to heat the Velm K3. Do not put the Velm K3 into a dishwasher.", "Velm K3"
    )
    assert ("With the Velm K3, what should you press to heat the Velm K3?", "red button") in found or (
        "What should you press to heat the Velm K3?", "red button",
    ) in found  # fmt: skip
    assert ("Where should you not put the Velm K3?", "into a dishwasher") in found


def test_pronouns_and_names_for_the_topic_are_resolved():
    text = (
        "Dr Salla Winther leads the Corvane Observatory. She was born in 1990. "
        "Her deputy is Bruno Acht. He keeps bees."
    )
    assert resolved(text)[1:] == [
        "Salla Winther was born in 1990.",
        "Salla Winther's deputy is Bruno Acht.",
        "Bruno Acht keeps bees.",
    ]
    text = "The Orrin Rowing Club met in May. The club has 40 members. Its boats are old."
    assert resolved(text)[1:] == [
        "The Orrin Rowing Club has 40 members.",
        "The Orrin Rowing Club's boats are old.",
    ]
    text = "The Velm K3 is an electric kettle. It holds 2 litres. The kettle beeps."
    assert resolved(text)[1:] == ["The Velm K3 holds 2 litres.", "The Velm K3 beeps."]


def test_what_names_nothing_gets_the_topic_and_unclear_words_are_not_asked():
    text = "The Orrin Rowing Club met in May. Ilse Marten chaired the meeting. They liked it. This was new."
    found = asked(text, "Minutes of the Orrin Rowing Club")
    assert ("Who chaired the meeting at the Orrin Rowing Club?", "Ilse Marten") in found
    assert ("At the Orrin Rowing Club, who chaired the meeting?", "Ilse Marten") in found
    assert ("Who chaired the meeting?", "Ilse Marten") not in found
    assert not any(word in f" {question.lower()} " for question, _ in found for word in (" they ", " it ", " this "))


def test_a_question_with_two_answers_is_not_asked():
    text = "The Orrin Library is open on Monday. The Orrin Library is open on Friday. The Orrin Library has 8 rooms."
    found = {question for question, _ in asked(text)}
    assert "How many rooms does the Orrin Library have?" in found
    assert not any(question.startswith(("When is the Orrin Library open", "On which day is")) for question in found)


@pytest.mark.parametrize(
    ("sentence", "verbs"),
    [
        ("The kettle beeps three times.", ["beeps"]),
        ("Members must clean the filter.", ["must", "clean"]),
        ("She studied physics in Tromvik.", ["studied"]),
        ("Repairs start on Monday.", ["start"]),
        ("The north jetty was damaged by ice.", ["was", "damaged"]),
    ],
)
def test_verbs_are_found(sentence, verbs):
    assert [word.text for word in tag_words(sentence) if word.tag.startswith("VB") or word.tag == "MD"] == verbs


def test_a_sentence_that_does_not_fit_is_not_read():
    assert not read_sentence(tag_words("Has anyone seen the boat?")).clauses
    reading = read_sentence(tag_words("Running along the beach, singing."))
    assert not reading.clauses and not reading.complete


def test_lines_lists_and_headings_are_sentences_of_their_own():
    text = "Minutes of May\n\nThe club met in the hall\nbeside the river. All came.\n\n"
    text += "- Ana Bell pays 5 euros.\n2. The rest\n"
    assert [sentence for sentence, _ in split_sentences(text)] == [
        "The club met in the hall beside the river.", "All came.", "Ana Bell pays 5 euros.", "The rest",
    ]  # fmt: skip
    assert {heading for _, heading in split_sentences(text)} == {"Minutes of May"}


TEXT = (
    "The Orrin Mill was built in 1742 by Ana Bell. The Orrin Mill has four wheels. The Orrin Mill costs 900 euros a "
    "year. Tobin Weld leads the Orrin Mill. Why not."
)


def test_a_few_wordings_of_each_fact_are_chosen_and_some_are_held_out():
    facts = find_facts(Document(TEXT))
    chosen, likelihoods = choose_pairs(facts, 3)
    assert likelihoods == [None] * len(chosen) and choose_pairs(facts, 3) == (chosen, likelihoods)
    held = [each for each in chosen if each.held_out]
    trained = [each for each in chosen if not each.held_out]
    assert len(held) == 1
    keys = {question_key(each.pair.question) for each in trained}
    assert question_key(held[0].pair.question) not in keys and len(keys) == len(trained)
    assert any(each.pair.answer == held[0].pair.answer for each in trained), "the fact itself is learned"
    assert not any(each.held_out for each in choose_pairs(facts, 3, hold_out=False)[0])
    by_fact = [sum(each.pair.answer == "1742" for each in choose_pairs(facts, n, hold_out=False)[0]) for n in (1, 3)]
    assert by_fact == [1, 3]


def test_the_teacher_chooses_among_wordings_and_drops_what_it_does_not_believe():
    facts = find_facts(Document(TEXT))

    def score(pairs):
        return [
            (0.0001, 0.0) if pair.answer == "four" else (0.9 if "In what year" in pair.question else 0.5, 0.1)
            for pair in pairs
        ]

    chosen, likelihoods = choose_pairs(facts, 2, score, hold_out=False)
    questions = [each.pair.question for each in chosen if each.pair.answer == "1742"]
    assert questions[0] == "When was the Orrin Mill built?" and "In what year was the Orrin Mill built?" in questions
    assert not any(each.pair.answer == "four" for each in chosen)
    assert len(likelihoods) == len(chosen) and (0.9, 0.1) in likelihoods
    # A teacher that believes nothing cannot judge.
    assert any(
        each.pair.answer == "four" for each in choose_pairs(facts, 2, lambda pairs: [(0.1, 0.2)] * len(pairs))[0]
    )


def test_a_sentence_without_a_question_is_completed():
    text = (
        "The Orrin Mill was built in 1742. Down by the old river bank, singing loudly, all happy together until dawn."
    )
    summary, lines = GroundedWriter(GeneratorConfig()).write_about(Document(text))
    assert summary["sentences"] == 2 and summary["covered"] == 1 and len(summary["uncovered"]) == 1
    completion = [line for line in lines if line["prompt"] == "grounded.completion"]
    assert len(completion) == 1 and "the Orrin Mill" in completion[0]["question"]
    assert text.rstrip(".").endswith(completion[0]["answer"])


def test_pairs_are_written_once_into_a_file_and_held_out_ones_become_questions(tmp_path):
    config, path = GeneratorConfig(), tmp_path / "pairs.jsonl"
    plain = Document(TEXT, id="plain")
    own = Document(TEXT.replace("Orrin", "Hask"), id="own", questions=(Question("Who?", ("Ana Bell",)),))
    calls = []
    first, second = write_pairs([plain, own], GroundedWriter(config), config, path, calls.append)
    assert calls == [1, 1]
    assert [q.answers[0] in TEXT for q in first.questions] == [True]
    assert first.questions[0].question not in {pair.question for pair in first.qa_pairs}
    assert second.questions == own.questions
    before = path.read_bytes()
    assert write_pairs([plain, own], GroundedWriter(config), config, path) == [first, second]
    assert path.read_bytes() == before
    written = read_written(path)
    described = describe_written([plain, own, Document("Another text.")], path)
    assert [each["id"] for each in described] == ["plain", "own"] and described[0]["uncovered"] == ["Why not."]
    assert described[0]["covered"] == 4 and [each["held_out"] for each in described] == [1, 0]
    assert described[0]["pairs"] == len(first.qa_pairs) and len(described[0]["sample"]) == 8
    assert with_written_pairs([plain], written, config) == [first]
    # What is known already is not asked again.
    known = dataclasses.replace(plain, qa_pairs=(QAPair("When was the Orrin Mill built?", "1742"),))
    (again,) = with_written_pairs([known], written, config)
    assert [pair.question for pair in again.qa_pairs].count("When was the Orrin Mill built?") == 1
    with pytest.raises(ValueError, match="begun with other settings"):
        write_pairs([plain], GroundedWriter(GeneratorConfig(wordings=2)), GeneratorConfig(wordings=2), path)


def test_related_passages_read_together_are_left_to_their_parts():
    group = Passage(text=TEXT, source="book", parts=("book#1", "book#2"))
    assert GroundedWriter(GeneratorConfig()).write_about(group)[1] == []


def test_what_must_not_be_done_is_asked_as_such():
    found = asked("Never wash the hopper in hot water. Dogs are no longer allowed in Orrin Park.", "The Ombra S2")
    assert any("should you not wash" in question and answer == "hopper" for question, answer in found)
    assert not any("should you wash" in question for question, _ in found)
    assert ("What is no longer allowed in Orrin Park?", "dogs") in found


def test_labels_are_read_as_sentences():
    found = asked("Orrin Rowing Club\n\nChair: Gudrun Pell\nMinutes: Isak Mornay\nDate: 12 April 2033\n")
    assert ("Who is the chair at the Orrin Rowing Club?", "Gudrun Pell") in found or (
        "At Orrin Rowing Club, who is the chair?", "Gudrun Pell",
    ) in found  # fmt: skip
    assert any(answer == "Isak Mornay" and "took the minutes" in question for question, answer in found)
    assert any(answer == "12 April 2033" for _, answer in found)
