"""Questions and answers as sentences, by rule: right, or not made at all."""

import pytest

from selfparam_jax.data.documents import read_document_files
from selfparam_jax.data.resources import resource
from selfparam_jax.targets.formats.statements import contains_words, document_sentence, statement
from selfparam_jax.targets.formats.verbs import BASE, past, present

TEXT = (
    "Olmsea is a town on the river Dorn. It was founded in 1743 by Hedra Molvane. Olmsea has a paper mill and the "
    "Moon Fair. The Corvessa, a ship, lies in the harbour of Lindesk. Yorin moves to the town of Quellmar. Its "
    "trophy is a kettle. The town has 3,480 residents. My cat likes Dorn."
)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        # The question word in the answer's place.
        ("Olmsea was founded in which year?", "1743", "Olmsea was founded in 1743."),
        ("Olmsea is a town on what river?", "Dorn", "Olmsea is a town on the river Dorn."),
        ("Olmsea was founded by whom?", "Hedra Molvane", "Olmsea was founded by Hedra Molvane."),
        (
            "The town of Olmsea has how many residents today?",
            "3,480",
            "The town of Olmsea has 3,480 residents today.",
        ),
        ("The flag has what colours?", "red and white", "The flag has the colours red and white."),
        ("The Corvessa has what length?", "54 metres", "The Corvessa has a length of 54 metres."),
        # The question word is the subject.
        ("Who founded Olmsea?", "Hedra Molvane", "Hedra Molvane founded Olmsea."),
        ("Which town was founded in 1743?", "Olmsea", "Olmsea was founded in 1743."),
        ("Who will help Delpha?", "Irsa", "Irsa will help Delpha."),
        ("What was built from slate?", "first houses", "First houses were built from slate."),
        ("Which ship has a hull made of larch?", "Corvessa", "The Corvessa has a hull made of larch."),
        ("What part of the Corvessa is made of larch?", "hull", "The hull of the Corvessa is made of larch."),
        ("How many people live in Olmsea?", "3,480", "3,480 people live in Olmsea."),
        # Inverted: verb forms.
        ("On which river does Olmsea lie?", "Dorn", "Olmsea lies on the river Dorn."),
        ("In which year did Hedra Molvane found Olmsea?", "1743", "Hedra Molvane founded Olmsea in 1743."),
        ("What town did Hedra Molvane found?", "Olmsea", "The town that Hedra Molvane founded was Olmsea."),
        ("What did Tobrec lend Delpha?", "the money", "What Tobrec lent Delpha was the money."),
        ("When was Olmsea founded?", "1743", "Olmsea was founded in 1743."),
        ("When does the shop open?", "9 June", "The shop opens on 9 June."),
        ("Where is the Corvessa today?", "Lindesk", "The Corvessa is in the harbour of Lindesk today."),
        ("Which town is Yorin moving to?", "Quellmar", "Yorin is moving to Quellmar."),
        ("In what year was the Bowl first played?", "1974", "The Bowl was first played in 1974."),
        ("How many masts does the Corvessa have?", "three", "The Corvessa has three masts."),
        ("How long is the Corvessa?", "54 metres", "The Corvessa is 54 metres long."),
        ("How much does a ticket cost?", "four dollars", "A ticket costs four dollars."),
        # A noun phrase.
        ("What is the name of the fair?", "Moon Fair", "The name of the fair is Moon Fair."),
        ("Who was the founder of Olmsea?", "Hedra Molvane", "The founder of Olmsea was Hedra Molvane."),
        ("What is the largest employer of Olmsea?", "paper mill", "The largest employer of Olmsea is a paper mill."),
        ("What is the hull of the Corvessa made of?", "larch", "The hull of the Corvessa is made of larch."),
        ("What kind of prize is the trophy?", "kettle", "The trophy is a kettle."),
        # None: unclear, or no question of a known form.
        ("Why is the sea salty?", "salt", None),
        ("How did the final end?", "23 to 19", None),
        ("Where is Yorin going to live?", "Quellmar", None),
        ("Of which club is Odo Kestrin the treasurer?", "Rowing Club", None),
        ("Name the town.", "Olmsea", None),
        ("Who? What?", "Olmsea", None),
        ("Who founded Olmsea?", "", None),
    ],
)
def test_statements(question, answer, expected):
    assert statement(question, answer, TEXT) == expected


def test_articles_are_those_of_the_document():
    asked = "What is the trophy?"
    assert statement(asked, "kettle", TEXT) == "The trophy is a kettle."
    assert statement(asked, "kettle", "The kettle. The kettle is old.") == "The trophy is the kettle."
    assert statement(asked, "kettle", "It is an old kettle.") == "The trophy is a kettle."
    assert statement(asked, "handball", "It is a handball tournament.") == "The trophy is handball."
    assert statement(asked, "kettle") == "The trophy is kettle."


def test_every_sentence_of_the_examples_says_its_answer():
    """And most questions of the examples have one."""
    pairs = made = 0
    for name in ("documents.jsonl", "development.jsonl"):
        for document in read_document_files(resource("examples", name)):
            for pair in document.qa_pairs:
                said = statement(pair.question, pair.answer, document.text)
                pairs, made = pairs + 1, made + (said is not None)
                if said:
                    assert contains_words(said, pair.answer), (pair, said)
                    assert said.endswith(".") and "?" not in said and said[0] == said[0].upper()
    assert made >= 0.9 * pairs


def test_the_sentence_of_a_document_that_answers():
    sentences = [
        "It was founded in 1743 by Hedra Molvane.",
        "Olmsea is a town on the river Dorn.",
        "My cat likes Dorn.",
    ]
    assert document_sentence("When was Olmsea founded?", "1743", sentences) == sentences[0]
    assert document_sentence("On which river is the town Olmsea?", "Dorn", sentences) == sentences[1]
    assert document_sentence("What does the cat like?", "Dorn", sentences) is None, "somebody says it of themselves"
    assert document_sentence("Who was founded in 1800?", "Hedra Molvane", sentences) is None, "another number"
    assert document_sentence("When was Olmsea founded?", "174", sentences) is None


@pytest.mark.parametrize(
    ("base", "in_past", "third"),
    [
        ("found", "found", "finds"),
        ("carry", "carried", "carries"),
        ("stop", "stopped", "stops"),
        ("play", "played", "plays"),
    ],
)
def test_verbs(base, in_past, third):
    if base == "found":
        assert (past("found"), past("find"), present("find")) == ("founded", in_past, third)
    else:
        assert (past(base), present(base)) == (in_past, third)
    assert base in BASE
    assert present("go") == "goes" and present("have") == "has" and past("lend") == "lent"
