"""Documents of different dates: which of the values of a fact is the latest, and questions that name their date.

    10 January 2031   How many members does the board have?   five
    20 May 2032       How many members does the board have?   seven

Without a date, a question asks for the latest value, so the older pair is trained in dated wordings only ("As of
10 January 2031, how many members does the board have?"), and the newer one in both. A document's date is the "date"
of its metadata. A pair is out of date where a later document has the same question (case, punctuation and articles
do not count) with another answer; with it, in the same document, go the same fact asked in other words (the same
answer and the same names) and from the other side.
"""

import dataclasses
import datetime
import re
from collections.abc import Sequence

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import source_id
from selfparam_jax.data.scripts import segment

# How a question names its date; pairs take turns.
WORDINGS = ("As of {date}, {question}", "{question} as of {date}?")
_DAY = r"\d{1,2} [A-Z][a-z]+ \d{4}"
_BEFORE, _AFTER = re.compile(rf"As of ({_DAY}), (.+)", re.S), re.compile(rf"(.+) as of ({_DAY})\?", re.S)
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_MONTHS += ("November", "December")
_FORMATS = ("%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y")
_ARTICLES = frozenset(["a", "an", "the"])
# Words that begin a question or a statement without being names.
_OPENINGS = """
    a an the as at after before by during for from in into of on since through to under until with without
    who whom whose what which when where why how is are was were do does did has have had can could may must
    will would should name tell it its he she his her they their there this that these those one every each all
    some no anyone whoever
"""


def date_of(document: Document) -> datetime.date | None:
    """The day that a document's metadata names under "date"; None where it names none.

    Raises:
      ValueError: it cannot be read.
    """
    value = document.metadata.get("date")
    if value in (None, ""):
        return None
    text = str(value).strip()
    try:
        return datetime.datetime.fromisoformat(text).date()
    except ValueError:
        pass
    for form in _FORMATS:
        try:
            return datetime.datetime.strptime(text, form).date()
        except ValueError:
            continue
    raise ValueError(
        f"document {document.id!r}: got the date {text!r:.40} in its metadata, expected a day such as 2026-05-03 or "
        "3 May 2026; correct it"
    )


def in_words(day: datetime.date) -> str:
    """A day as sentences name it: 3 May 2026."""
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def in_order(documents: Sequence[Document]) -> list[Document]:
    """Documents in the order of their dates; those without one come first, as they were."""
    return sorted(documents, key=lambda document: date_of(document) or datetime.date.min)


def date_question(question: str, day: datetime.date, turn: int = 0) -> str:
    """A question that names its date, in one of the wordings by turns."""
    wording = WORDINGS[turn % len(WORDINGS)]
    if not question.endswith("?"):  # nothing can stand behind it
        wording = WORDINGS[0]
    asked = lower_opening(question) if wording.endswith("{question}") else question.removesuffix("?")
    return wording.replace("{date}", in_words(day)).replace("{question}", asked)


def split_date(question: str) -> tuple[str, str]:
    """What `date_question` put together: the date in words, "" for none, and the question.

    Where the date stood first, the question begins with a capital again only if it is a question word's.
    """
    if found := _BEFORE.fullmatch(question):
        return found[1], found[2][:1].upper() + found[2][1:]
    if found := _AFTER.fullmatch(question):
        return found[2], found[1] + "?"
    return "", question


def lower_opening(text: str) -> str:
    """A sentence as it is written after a comma: in lower case at first, unless it begins with a name."""
    first = re.match(r"\w+", text)
    return text[0].lower() + text[1:] if first and first[0].lower() in _OPENINGS.split() else text


def superseded(documents: Sequence[Document]) -> dict[str, frozenset[QAPair]]:
    """The pairs that are out of date, by document.

    Args:
      documents: all that are known; those without a date are left alone.

    Returns:
      by the id of each dated document its pairs to which a later document gives another answer.

    Raises:
      ValueError: a date cannot be read.
    """
    days = {document.id: date_of(document) for document in documents}
    latest: dict[str, tuple[datetime.date, set[str]]] = {}
    for document in documents:
        if (day := days[document.id]) is None:
            continue
        for pair in document.qa_pairs:
            known, answers = latest.get(plain(pair.question), (day, set()))
            if day >= known:
                latest[plain(pair.question)] = (day, (answers if day == known else set()) | {plain(pair.answer)})
    found = {}
    for document in documents:
        if (day := days[document.id]) is not None:
            found[document.id] = _out_of_date(document, day, latest)
    return found


def _out_of_date(
    document: Document, day: datetime.date, latest: dict[str, tuple[datetime.date, set[str]]]
) -> frozenset[QAPair]:
    stale, others = [], []
    for pair in document.qa_pairs:
        known, answers = latest[plain(pair.question)]
        if plain(pair.answer) not in answers:
            stale.append(pair)
        elif known == day:  # else a later document says the same
            others.append(pair)
    return frozenset(stale) | {pair for pair in others if any(_same_fact(pair, each) for each in stale)}


def _same_fact(pair: QAPair, stale: QAPair) -> bool:
    """Whether a pair asks for the fact of another pair of its document in other words, or from the other side."""
    if plain(pair.answer) == plain(stale.answer):
        return _names(pair.question) == _names(stale.question)
    return _holds(pair.question, stale.answer) and _holds(stale.question, pair.answer)


def plain(text: str) -> str:
    """The words of a text in lower case, without punctuation and articles."""
    return " ".join(unit for unit in segment(text) if unit not in _ARTICLES)


def _holds(text: str, part: str) -> bool:
    return f" {plain(part)} " in f" {plain(text)} "


def _names(question: str) -> frozenset[str]:
    """The words of a question with a capital or a digit, but for the first."""
    _, *words = question.split() or [""]
    return frozenset(plain(word) for word in words if word[:1].isupper() or word[:1].isdigit())


def date_pairs(documents: Sequence[Document], earlier: Sequence[Document] = ()) -> list[Document]:
    """The documents with each pair as it is to be trained: dated, and also undated unless it is out of date.

    Args:
      documents: with their pairs.
      earlier: further documents that are known, with their pairs; they may be older or newer.

    Returns:
      the documents in the same order; those without a date have the pairs that they had.

    Raises:
      ValueError: a date cannot be read.
    """
    own = {source_id(document) for document in documents}
    stale = superseded([*(each for each in earlier if source_id(each) not in own), *documents])
    made = []
    for document in documents:
        if (day := date_of(document)) is not None:
            pairs: list[QAPair] = []
            for turn, pair in enumerate(document.qa_pairs):
                pairs += [] if pair in stale[document.id] else [pair]
                if not split_date(pair.question)[0]:  # else it names a date already
                    pairs.append(QAPair(date_question(pair.question, day, turn), pair.answer))
            document = dataclasses.replace(document, qa_pairs=tuple(pairs))
        made.append(document)
    return made
