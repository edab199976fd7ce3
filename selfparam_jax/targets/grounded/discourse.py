"""A document's sentences with their references resolved: what it is about, who is in it, whom "she" means.

A question must say whom it is about, since no text stands beside it. So "She joined in 2019" is read as "Salla
Winther joined in 2019", "the club" as "the Orrin Rowing Club", where the sentences before leave one candidate.
"""

import dataclasses
import re
from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Reading
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.lines import LABEL, REMARKS, Line, Listed, Mail, is_naming, names_in, split_lines
from selfparam_jax.targets.grounded.mails import mail_name
from selfparam_jax.targets.grounded.parser import read_sentence
from selfparam_jax.targets.grounded.records import Event, Task, event_sentence
from selfparam_jax.targets.grounded.resolver import Resolver
from selfparam_jax.targets.grounded.restoring import (
    explained,
    plain_condition,
    whole_sentence,
    with_condition,
    with_object,
)
from selfparam_jax.targets.grounded.speakers import carried, is_talk, named, talk_name, with_speakers
from selfparam_jax.targets.grounded.tagging import spelled_out, tag_words
from selfparam_jax.targets.grounded.topics import (
    MANUAL,
    Topic,
    find_people,
    find_topic,
    names_inside,
    report_name,
)
from selfparam_jax.targets.grounded.words import Word


@dataclasses.dataclass(frozen=True)
class ReadSentence:
    """A sentence of a document.

    Attributes:
      text: as it stands there.
      resolved: with names in place of pronouns.
      reading: its clauses.
      heading: the heading that it stands under, "" without one.
      listed: what it says without a verb: a row of a table, an entry of a list.
      row: whether it is a row of a table.
      question: the question that stands above it and that it answers.
      you: whom orders in it are for; "" if that is not clear.
      mail: the header of an e-mail that begins with it.
      clear: whether it says whom and what it is about.
      event: what a row records, with a time.
      task: what is to be done, and by whom.
    """

    text: str
    resolved: str
    reading: Reading
    heading: str = ""
    listed: tuple[Listed, ...] = ()
    row: bool = False
    question: str = ""
    you: str = "you"
    mail: Mail | None = None
    clear: bool = True
    event: Event | None = None
    task: Task | None = None


@dataclasses.dataclass(frozen=True)
class Discourse:
    """A document, read.

    Attributes:
      topic: what it is about.
      people: words of the names of persons.
      sentences: in order.
    """

    topic: Topic
    people: frozenset[str]
    sentences: tuple[ReadSentence, ...]


def read_document(document: Document) -> Discourse:
    """Splits a document into sentences, finds what it is about, resolves references and reads the clauses."""
    lines = with_speakers(split_lines(document.text))
    speakers = {line.speaker for line in lines if line.speaker}
    names = names_inside([line.text for line in lines if not line.row])
    names |= {part for speaker in speakers for part in speaker.split()}
    heads = [document.title, *(text for line in lines[:1] for text in (line.first, line.text))]
    minutes = any(head.lower().startswith("minutes") for head in heads)
    spoken = [_said(line, names, minutes) for line in lines]
    tagged = [tag_words(text, names) for text in spoken]
    # What a document is about, and who is in it, its sentences say, not its tables.
    prose = [words for words, line in zip(tagged, lines, strict=True) if words and not line.row] or tagged
    people = find_people(prose) | {name for line in lines for name in names_in(line)} | speakers
    people |= {match[1] for line, said in zip(lines, spoken, strict=True) if (match := _DOER.match(line.text)) and
               said.startswith(f"{match[1]} will ")}  # fmt: skip
    topic = _topic_of(document, lines, prose, people, names)
    sentences = _read_lines(lines, spoken, topic, people, names)
    return Discourse(topic, frozenset(part for person in people for part in person.split()), tuple(sentences))


def _read_lines(
    lines: Sequence[Line], spoken: Sequence[str], topic: Topic, people: frozenset[str], names: frozenset[str]
) -> list[ReadSentence]:
    """The sentences, with references to those before them resolved, and their clauses."""
    resolver = Resolver(topic, people)
    known = names | {part for person in people for part in person.split()}
    made: list[ReadSentence] = []
    for n, (line, said) in enumerate(zip(lines, spoken, strict=True)):
        silent = (line.row and not line.event) or line.listed or line.header or line.task
        said = _of_document(said, line, topic)
        if silent or not said or is_naming(line.text):
            made.append(_without_clauses(line, clear=bool(said) and not line.header))
            continue
        if n and line.heading != lines[n - 1].heading:
            resolver.forget()
        before = made[-1] if made else None
        last = before if made and lines[n - 1].speaker == line.speaker else None
        if last is not None:
            said = with_object(with_condition(said, last.resolved), last.reading, names)
        words = tag_words(said, names)
        private = line.chat or bool(line.heard)  # whom "she" and "it" stand for, only the two know
        if private:
            said = carried(said, words, before.resolved if before is not None else "", last is not None)
            resolved = _CALLED.sub(r"the \1 \2", said)
            resolved = resolved[:1].upper() + resolved[1:]
        else:
            resolved = resolver.resolve(said, words)
        reading = read_sentence(_as_nouns(tag_words(resolved, known), topic))
        if _QUOTED.match(resolved):
            reading = Reading((), False)  # who "I" and "we" are in what somebody said, only the whole text tells
        reason = explained(reading, last.reading) if last is not None else ()
        reading = dataclasses.replace(reading, clauses=(*reading.clauses, *reason))
        if not private:
            resolver.note(reading)
        you = line.heard or ("" if line.chat else "you")
        made.append(ReadSentence(line.text, resolved, reading, line.heading, row=line.row, question=line.question,
                                 you=you, event=line.event))  # fmt: skip
    return made


def _without_clauses(line: Line, clear: bool) -> ReadSentence:
    nothing = Reading((), True)
    return ReadSentence(
        line.text, line.text, nothing, line.heading, line.listed, line.row, mail=line.mail, clear=clear,
        task=line.task,
    )  # fmt: skip


def _of_document(said: str, line: Line, topic: Topic) -> str:
    """ "Author: Ana Volk" speaks of the document, which a question must name; "" where it has no name."""
    match = LABEL.match(line.text)
    label = match[1].lower() if match else ""
    if label not in _OF_DOCUMENT or line.row or line.chat:
        return said
    if topic.kind != "talk":
        return ""
    return re.sub(rf"^The {label} ", f"The {label} of {topic.name} ", said)


def _said(line: Line, names: frozenset[str], minutes: bool) -> str:
    """A line as a sentence that can be read; "" where a speaker's words leave open who is meant."""
    if line.event:
        return event_sentence(line.event)
    if line.row or line.listed or line.header:
        return line.text
    if line.chat:
        return named(line)
    text = _said_of_label(line.text, tag_words(line.text, names), minutes) or line.text
    if line.speaker:
        text = named(dataclasses.replace(line, text=text))
    return plain_condition(whole_sentence(spelled_out(text), names), names)


def _topic_of(
    document: Document, lines: Sequence[Line], prose, people: frozenset[str], names: frozenset[str]
) -> Topic:
    if is_talk(lines):
        return Topic(talk_name(lines), "talk")
    subject = next((line.mail.subject for line in lines if line.mail is not None), "")
    first = next((line.first for line in lines), "")
    title = document.title.replace("_", " ") or (subject if not first or first.isupper() else first)
    if first and first != title and not re.search(r"\s[A-Z]", title):
        title = f"{title}: {first}"  # a title that names nothing
    if report := report_name(title):
        return Topic(report, "talk")
    title = MANUAL.sub("", title)
    topic = find_topic(title, prose, people, names)
    if topic.name not in title and any(topic.name in names_in(line) for line in lines):
        return Topic()  # somebody who was there, and is not what the minutes are about
    mail = next((line.mail for line in lines if line.mail is not None), None)
    if mail is not None and (not topic.name or topic.name in people or topic.bare not in title):
        # The person who wrote, or a name in the text, is not what an e-mail is about.
        return Topic(mail_name(mail, Topic()), "talk") if mail.subject else Topic()
    return topic


def _as_nouns(words: Sequence[Word], topic: Topic) -> list[Word]:
    """The words with what the topic is called as nouns ("a water still")."""
    made = list(words)
    for n, word in enumerate(words):
        if n and word.low in topic.nouns and not word.is_verb and words[n - 1].tag in ("DT", "NN", "JJ"):
            made[n] = dataclasses.replace(word, tag="NN")
    return made


_OF_DOCUMENT = WORDS["of_document"]
_QUOTED = re.compile(r"[\"“][^\"”]*[,.!?][\"”] ")
_CALLED = re.compile(r"(?i:\ban?) ([a-z]+(?:er|or|ist|man|woman)) (?:called|named) ((?:[A-Z][\w'’-]+ ?){2,3})\b")


def split_sentences(text: str) -> list[tuple[str, str]]:
    """The sentences of a text, each with the heading that it stands under ("" without one)."""
    return [(line.text, line.heading) for line in split_lines(text)]


_DOER = re.compile(r"([A-Z][\w'’-]+(?: [A-Z][\w'’-]+){1,2}): ")


def _said_of_label(text: str, words: Sequence[Word], minutes: bool) -> str:
    """ "Chair: Ana Volk" as a sentence, "The chair is Ana Volk."; "" for anything else."""
    match = LABEL.match(text)
    if not match or any(word.is_verb for word in words) or is_naming(text) or not tag_words(match[2]):
        return ""
    label, value = match[1].lower(), match[2].rstrip(".")
    beginning = tag_words(value)[:1]
    if not beginning:
        return ""
    first = beginning[0]
    if _DOER.match(text) and not w.is_known(match[1].split()[-1]):
        # "Tom Reave: order the hose", of a list of what is to be done.
        return f"{match[1]} will {value}." if first.tag == "VB" and value[:1].islower() else ""
    if minutes and label == "date":
        day = re.sub(r", (?=\d\d?[:.]\d\d$)", " at ", value)
        return f"The meeting took place on {day}."
    if minutes and label in ("place", "venue", "location") and value.startswith("the "):
        return f"The meeting took place at {value}."
    if label in ("minutes", "notes"):
        return f"{value} took the {label}."
    if label in REMARKS:
        return ""
    parts = [word for word in words if word.end <= match.end(1)]
    last = parts[-1]
    noun = last.tag != "NNS" and "NOUN" in w.forms(last.low)
    if not noun or any(word.tag not in ("NN", "JJ", "IN", "DT") for word in parts[:-1]):
        return ""
    if not any(month in value for month in w.MONTHS) and ", " in value:
        value = value[: value.index(", ")]
    return f"The {label} is {value}."
