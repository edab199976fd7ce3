"""A question and its short answer as a sentence, by rule: "Who founded X?" and "Y" become "Y founded X."

In a conversation a model answers in sentences, so that is what it learns there. The rules cover common forms of
English questions. A question that none of them fits gives no sentence: better none than a wrong one.
"""

import dataclasses
import re
from collections.abc import Sequence

from selfparam_jax.data.documents import QAPair
from selfparam_jax.targets.formats.verbs import BASE, FINITE, PARTICIPLES, past, present

FRAME = "The answer is"


@dataclasses.dataclass(frozen=True)
class StatedPair(QAPair):
    """A pair with the sentence that says its answer in a conversation; "" where none is known."""

    said: str = ""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_BE = ("is", "are", "was", "were")
_DO = ("do", "does", "did")
_HAVE = ("has", "have", "had")
_MODAL = ("will", "would", "can", "could", "must", "may", "might", "should")
_AUX = (*_BE, *_DO, *_HAVE, *_MODAL)
_ARTICLES = ("a", "an", "the")
_DETERMINERS = (*_ARTICLES, "its", "his", "her", "their", "this", "that", "these", "those", "one", "each", "every")
_PREPOSITIONS = (
    "about", "across", "after", "against", "along", "among", "around", "as", "at", "before", "behind", "below",
    "beside", "between", "by", "during", "for", "from", "in", "inside", "into", "near", "of", "off", "on",
    "onto", "outside", "over", "since", "through", "to", "toward", "towards", "under", "until", "with",
    "within", "without",
)  # fmt: skip
_POSSESSIVES = ("its", "his", "her", "their", "my", "our", "your")
_LOCATIVE = ("in", "at", "on", "to", "from", "near", "behind", "inside", "under", "into", "beside", "by", "across")
_WHEN = ("today", "now", "currently", "nowadays")
_NAMED_BY = {"colour", "colours", "color", "colors", "name", "title"}  # "the colour dark red"
_MEASURES = {"length", "height", "weight", "age", "price", "width", "depth", "size", "score", "amount", "sum"}
_LONG = {"long", "tall", "high", "wide", "deep", "old", "thick"}
_UNITS = _words("metre meter foot feet inch inches yard mile kilometre kilometer centimetre cm m km")
_UNITS |= {f"{unit}s" for unit in _UNITS} | {"year", "years", "months", "days"}
_ADVERBS = ("first", "last", "now", "also", "always", "originally", "usually", "finally", "still")
_AFTER_NOUN = {*_AUX, *_PREPOSITIONS, *FINITE, *PARTICIPLES} | _words("and or that which who when because so but if")
DATES = _words("january february march april may june july august september october november december")
DATES |= _words("monday tuesday wednesday thursday friday saturday sunday")
_DATE = "|".join(sorted(DATES))
_UNASKED = {*_AUX, *_DETERMINERS, *_PREPOSITIONS} | _words(
    "who whom what which when where how many much name called did does"
)
_OTHER_SPEAKER = re.compile(r"\b(I|me|my|mine|we|us|our|ours|you|your|yours)\b", re.IGNORECASE)


def statement(question: str, answer: str, text: str = "") -> str | None:
    """A sentence that says what a question and its answer say together; None where no rule fits.

    Args:
      question: one question in English.
      answer: its short answer, a name, a number, a few words.
      text: the document; it says which article or preposition the answer goes with.

    Returns:
      the sentence with its full stop; it contains the answer.
    """
    question = " ".join(question.split())
    answer = " ".join(answer.split()).rstrip(".")
    if not answer or question.count("?") != 1 or not question.endswith("?") or re.search(r"[.!;:\"]", question):
        return None
    words = question[:-1].split()
    if len(words) < 3 or len(answer.split()) > 8:
        return None
    found = _initial(words, _Answer(answer, text)) if _asks(words) else _in_place(words, _Answer(answer, text))
    if not found or answer.lower() not in found.lower():
        return None
    return found[0].upper() + found[1:] + "."


def plain_statement(answer: str, text: str = "") -> str:
    """A sentence with an answer that suits every question: "The answer is a paper mill."."""
    return f"{FRAME} {_Answer(' '.join(answer.split()).rstrip('.'), text).phrase}."


def document_sentence(question: str, answer: str, sentences: Sequence[str]) -> str | None:
    """The sentence of a document that answers a question, or None.

    It contains the answer as a word and more of the question's words than any other; one that a person says of
    themselves ("I", "my") is not taken.

    Args:
      question, answer: of a pair.
      sentences: of the document.

    Returns:
      the sentence, its white space as single spaces.
    """
    wanted = _content(question) - _content(answer)
    best, most = None, 0.0
    for sentence in sentences:
        sentence = " ".join(sentence.split())
        if not contains_words(sentence, answer) or _OTHER_SPEAKER.search(sentence) or sentence[-1:] not in ".!":
            continue
        said = _content(sentence)
        share = len(wanted & said) / max(len(wanted), 1)
        if share > most and not any(word.isdigit() for word in wanted - said):
            best, most = sentence, share
    return best if most >= 0.5 else None


def contains_words(text: str, answer: str) -> bool:
    """Whether an answer stands in a text as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def _content(text: str) -> set[str]:
    """The words of a text that carry meaning, by their first five letters."""
    words = re.findall(r"\w+", text.lower())
    return {word[:5] for word in words if word not in _UNASKED}


class _Answer:
    """A short answer with what the document puts before it."""

    def __init__(self, answer: str, text: str):
        self.bare, self._text = answer, " ".join(text.split())

    @property
    def phrase(self) -> str:
        """The answer with the article that it has in the document."""
        if self.bare.split()[0].lower() in _DETERMINERS:
            return self.bare
        around = re.findall(
            rf"(\w*)\W{{0,2}}(?<!\w){re.escape(self.bare)}(?!\w)(.?) ?(\w*)", self._text, re.IGNORECASE
        )
        # "a handball tournament" says nothing about "handball".
        whole = [before.lower() for before, mark, after in around if mark != " " or after.lower() in _AFTER_NOUN]
        articles = [word for word in whole if word in (*_ARTICLES, *_POSSESSIVES)]
        if articles and 2 * len(articles) >= len(whole):
            given = [word for word in articles if word in ("a", "an")]
            return f"{given[0] if len(given) == len(articles) else 'the'} {self.bare}"
        described = re.search(rf"\b(a|an|the) [a-z]+ {re.escape(self.bare)}(?!\w)", self._text)
        if described and self.bare.islower() and not self.plural:  # "an electric fruit dryer"
            return f"{'the' if described[1] == 'the' else 'an' if self.bare[0] in 'aeiou' else 'a'} {self.bare}"
        return self.bare

    @property
    def plural(self) -> bool:
        last = self.bare.split()[-1]
        return self.bare[0].islower() and last.endswith("s") and not last.endswith("ss")

    def after_noun(self, noun: Sequence[str]) -> str:
        """The answer in the place of "which river": "the river Ostrel" where the document calls it so."""
        last = noun[-1].lower() if noun else ""
        if last in _NAMED_BY:
            return f"the {last} {self.bare}"
        for between in (" ", " of ", " called ", " named "):
            if last and re.search(rf"\b{re.escape(last + between + self.bare)}(?!\w)", self._text, re.IGNORECASE):
                return f"the {last}{between}{self.bare}"
        return self.phrase

    def place(self, moving: bool) -> str | None:
        """Where it is, with the document's preposition: "in the harbour of Lindesk"; "to" only if something moves."""
        first = self.bare.split()[0].lower()
        if first in _LOCATIVE:
            return self.bare
        middle = (
            r"(?:(?:the|a|an|its|his|her|town|city|village|island|port|harbour|shipyard|street|forest|of|called) )*"
        )
        pattern = rf"\b({'|'.join(_LOCATIVE)}) ({middle}){re.escape(self.bare)}(?!\w)"
        found = re.search(pattern, self._text, re.IGNORECASE)
        if not found or (found[1].lower() in ("to", "from", "into", "across") and not moving):
            return None
        return f"{found[1].lower()} {found[2]}{self.bare}"

    def time(self) -> str | None:
        """When it is: "in 1743", "in April", "on 14 October"; None if it is no date."""
        bare = self.bare.lower()
        if bare.split()[0] in ("in", "on", "at", "every", "after", "before", "during"):
            return self.bare
        if re.fullmatch(r"\d{4}", bare) or re.fullmatch(rf"(?:(?:{_DATE})(?: \d{{4}})?)", bare):
            return f"{'on' if bare.endswith('day') else 'in'} {self.bare}"
        if re.fullmatch(rf"\d{{1,2}} (?:{_DATE})(?: \d{{4}})?|(?:{_DATE}) \d{{1,2}}(?:, \d{{4}})?", bare):
            return f"on {self.bare}"
        return None


def _lower(words: Sequence[str]) -> list[str]:
    return [word.lower().strip(",") for word in words]


def _asks(words: Sequence[str]) -> bool:
    """Whether a question begins with its question word, or with a preposition before it."""
    low = _lower(words)
    heads = ("who", "whom", "what", "which", "when", "where", "how")
    return low[0] in heads or (low[0] in _PREPOSITIONS and low[1] in ("whom", "what", "which", "how"))


def _join(*parts: str | Sequence[str]) -> str:
    """Words and texts as one text."""
    return " ".join(part if isinstance(part, str) else " ".join(part) for part in parts if part)


# --- "Quenbarrow was founded in which year?" --------------------------------------------------------------


def _in_place(words: list[str], answer: _Answer) -> str | None:
    low = _lower(words)
    if low[0] in _PREPOSITIONS and any(word.endswith(",") for word in words[:-2]):
        # "In Quenbarrow, what employs the most people?"
        comma = next(n for n, word in enumerate(words) if word.endswith(","))
        rest = words[comma + 1 :]
        if rest and rest[0].lower() in ("who", "what", "which", "how") and len(rest) > 2:
            found = _initial(rest, answer)
            if not found:
                return None
            return f"{' '.join(words[: comma + 1])} {found}"
    places = [n for n, word in enumerate(low) if word in ("which", "what", "whom", "how", "where", "who", "when")]
    if len(places) != 1:
        return None
    at = places[0]
    before, noun = words[:at], words[at + 1 :]
    if low[at] == "how" and noun and low[at + 1] in ("many", "much"):
        rest = noun[1:]
        if rest and answer.bare.lower().endswith(rest[0].lower()):
            rest = rest[1:]
        return _join(before, answer.bare, rest)
    if low[at] in ("whom", "who"):
        return None if noun else _join(before, answer.phrase)
    if low[at] not in ("which", "what") or len(noun) > 3:
        return None
    if any(word.lower() in (*_AUX, *_PREPOSITIONS) or word.lower() in FINITE for word in noun):
        return None
    if noun and noun[-1].lower() in _MEASURES and low[at - 1] in ("has", "have", "had"):
        return _join(before, f"a {noun[-1].lower()} of", answer.bare)
    return _join(before, answer.after_noun(noun))


# --- "In which year was Quenbarrow founded?" --------------------------------------------------------------


def _initial(words: list[str], answer: _Answer) -> str | None:
    low = _lower(words)
    preposition = words[0].lower() if low[0] in _PREPOSITIONS else ""
    if preposition:
        words, low = words[1:], low[1:]
    head, rest = low[0], words[1:]
    if head == "how":
        return _how(rest, answer, preposition)
    least = 1 if head == "which" else 0
    verb = next((n for n, word in enumerate(_lower(rest)) if n >= least and (word in _AUX or word in FINITE)), None)
    if verb is None:
        return None
    if rest[verb].lower() not in _AUX and any(
        word in _DO for word in _lower(rest)
    ):  # "Which lost work did she find?"
        verb = next(n for n, word in enumerate(_lower(rest)) if word in _DO)
    noun, auxiliary, after = rest[:verb], rest[verb].lower(), rest[verb + 1 :]
    if any(word.endswith(("'s", "s'", "’s")) for word in noun) or not after:
        return None
    if head in ("who", "whom", "when", "where") and noun:
        return None
    if head == "what" and not noun and preposition:
        noun = []
    if head in ("when", "where"):
        return _when_where(head, auxiliary, after, answer)
    subject = _subject(noun, answer)
    if auxiliary not in _AUX:  # "Who founded Quenbarrow?"
        return None if preposition or head == "whom" else _join(subject, rest[verb], after)
    if preposition:
        spoken = answer.after_noun(noun)
        return _inverted(auxiliary, after, f"{preposition} {spoken}")
    if auxiliary in _BE:
        return _be(head, noun, auxiliary, after, answer)
    if auxiliary in _DO:
        return _cleft(head, noun, auxiliary, after, answer)
    first = after[0].lower()
    if auxiliary in _HAVE:
        inverted = first not in ("a", "an", *PARTICIPLES) and _split(after, PARTICIPLES) is not None
    else:
        inverted = first not in BASE and first != "be"
    auxiliary = "have" if auxiliary == "has" and answer.plural else auxiliary
    return _cleft(head, noun, auxiliary, after, answer) if inverted else _join(subject, auxiliary, after)


def _subject(noun: Sequence[str], answer: _Answer) -> str:
    """The answer with what its noun is told apart by: `part of the ship` and `hull` as "the hull of the ship"."""
    at = next((n for n, word in enumerate(_lower(noun)) if word in _PREPOSITIONS), None)
    if at is None or _lower(noun)[at - 1 : at + 1] in (["kind", "of"], ["sort", "of"], ["type", "of"]):
        return answer.phrase
    if answer.bare[0].isupper():
        return answer.phrase
    return _join("" if answer.bare.split()[0].lower() in _DETERMINERS else "the", answer.bare, noun[at:])


_BEFORE_NOUN = ("to", "and", "not", "first", "new", "old")  # after these a word that may be a verb is none
_BEFORE_PARTICIPLE = ("new", "old", "best", "most", "least", "and")


def _split(after: Sequence[str], verbs: frozenset[str]) -> int | None:
    """Where the verb of `subject verb ...` stands; None if no word, or if the subject is unclear."""
    low = _lower(after)
    for n in range(1, len(low)):
        previous = low[n - 1]
        if low[n] in verbs and previous not in (*_DETERMINERS, *_PREPOSITIONS, *_BEFORE_NOUN):
            return n
    return None


def _be_split(after: Sequence[str]) -> int | None:
    """Where the participle of `subject participle ...` stands."""
    low = _lower(after)
    for n in range(1, len(low)):
        if (low[n] not in PARTICIPLES and low[n] not in _GERUNDS) or not after[n][0].islower():
            continue
        adverb = n > 1 and low[n - 1] in _ADVERBS and low[n - 2] not in _DETERMINERS
        if adverb or low[n - 1] not in (*_DETERMINERS, *_PREPOSITIONS, *_ADVERBS, *_BEFORE_PARTICIPLE):
            return n - adverb
    return None


_MOVES = ("go", "move", "moving", "sail", "sailing", "travel", "travelling", "come", "from", "return", "taken")
_GERUNDS = _words("""
    going moving building leaving sailing travelling traveling working living making helping opening selling buying
    paying taking staying coming playing planning holding visiting writing running using painting carrying
""")


def _inverted(auxiliary: str, after: list[str], end: str, at_verb: bool = False) -> str | None:
    """`did S found Q` and `in 1743` as "S founded Q in 1743"; the end right after the verb if `at_verb`."""
    if auxiliary in _BE:
        at = _be_split(after)
        if at is None:
            moved = [after[-1]] if after[-1].lower() in _WHEN else []
            subject = after[:-1] if moved else after
            return _join(subject, auxiliary, end, moved) if _is_name(subject) else None
        return _join(after[:at], auxiliary, after[at:], end)
    if auxiliary in _DO:
        at = _split(after, BASE)
        if at is None:
            return None
        base = after[at].lower()
        verb = {"did": past, "does": present, "do": str}[auxiliary](base)
        parts = (end, after[at + 1 :]) if at_verb else (after[at + 1 :], end)
        return _join(after[:at], verb, *parts)
    at = _split(after, PARTICIPLES if auxiliary in _HAVE else BASE | {"be"})
    if at is None:
        return None
    parts = (end, after[at + 1 :]) if at_verb else (after[at + 1 :], end)
    return _join(after[:at], auxiliary, after[at], *parts)


def _is_name(words: Sequence[str]) -> bool:
    """Whether words are one noun phrase that begins with an article or a name and has no verb."""
    low = _lower(words)
    if not words or not (low[0] in _DETERMINERS or words[0][0].isupper()):
        return False
    inner = any(low[n] in _DETERMINERS and low[n - 1] not in (*_PREPOSITIONS, "and") for n in range(1, len(low)))
    return not inner and not any(word in _AUX for word in low)


def _when_where(head: str, auxiliary: str, after: list[str], answer: _Answer) -> str | None:
    low = _lower(after)
    moving = any(word in _MOVES for word in low) or low[-1] == "going"
    end = answer.time() if head == "when" else answer.place(moving)
    if end is None or auxiliary not in _AUX:
        return None
    return _inverted(auxiliary, after, end)


def _be(head: str, noun: list[str], auxiliary: str, after: list[str], answer: _Answer) -> str | None:
    low = _lower(after)
    at = _be_split(after)
    clause = any(word in ("who", "which", "that", "where", "when") for word in low)
    if low[0] in PARTICIPLES or (low[0].endswith("ing") and low[0] in _GERUNDS):  # "What was built from grey slate?"
        verb = {"is": "are", "was": "were"}.get(auxiliary, auxiliary) if answer.plural else auxiliary
        return _join(_subject(noun, answer), verb, after)
    if low[0] in _PREPOSITIONS or low[0] == "there":
        if noun:
            return None if low[0] == "there" else _join("the", noun, after, auxiliary, answer.bare)
        return _join(answer.phrase, auxiliary, after) if head == "who" else None
    if at is not None and not clause and at < len(after):
        if after[-1].lower() in _PREPOSITIONS or (low[at] in ("called", "named") and at == len(after) - 1):
            named = answer.phrase if low[at] not in ("called", "named") else answer.bare
            return _join(after[:at], auxiliary, after[at:], named)
        if low[at] == "made" and low[at + 1 : at + 2] == ["of"]:
            return _join(after[:at], auxiliary, "made of", answer.bare, after[at + 2 :])
        if not noun and head in ("who", "what"):
            return _join(after, auxiliary, answer.phrase) if _is_name(after) else None
        return None
    if noun:
        if noun[-1].lower() in _NAMED_BY:
            return _join(after, auxiliary, answer.bare)
        if noun[0].lower() in ("kind", "sort", "type"):
            return _join(after, auxiliary, answer.phrase)
        verb = {"is": "are", "was": "were"}.get(auxiliary, auxiliary) if answer.plural else auxiliary
        return _join(_subject(noun, answer), verb, after)
    moved = [after[-1]] if low[-1] in _WHEN else []
    subject = after[:-1] if moved else after
    if low[0] in _DETERMINERS or after[0][0].isupper():
        value = answer.bare if low[:2] == ["the", "name"] else answer.phrase
        return _join(subject, auxiliary, value, moved)
    return _join(answer.phrase, auxiliary, after) if head == "who" else None


def _cleft(head: str, noun: list[str], auxiliary: str, after: list[str], answer: _Answer) -> str | None:
    """`Which ship did S design` as "The ship that S designed is A"."""
    inner = _inverted(auxiliary, after, "")
    first = answer.bare.split()[0].lower()
    if inner is None or first in FINITE or (first in PARTICIPLES and " " in answer.bare):
        return None
    be = "was" if auxiliary == "did" else "is"
    if noun and (noun[-1].endswith("s") and not noun[-1].endswith("ss")):
        be = {"was": "were", "is": "are"}[be]
    if noun:
        return _join("the", noun, "that", inner, be, answer.phrase)
    if head == "what":
        return _join("what", inner, be, answer.phrase)
    return _join("the person whom" if head in ("who", "whom") else "what", inner, be, answer.phrase)


def _how(rest: list[str], answer: _Answer, preposition: str) -> str | None:
    low = _lower(rest)
    if low[0] == "many":
        verb = next(
            (n for n, word in enumerate(low) if n > 0 and (word in _AUX or word in FINITE or word in BASE)), 0
        )
        noun, after = rest[1:verb], rest[verb + 1 :]
        if verb < 2 or not after:
            return None
        counted = _counted(answer.bare, noun)
        if preposition:
            return _inverted(low[verb], after, f"{preposition} {counted}") if low[verb] in _AUX else None
        if low[verb] not in _AUX:
            return _join(counted, rest[verb:])
        if low[verb] in _BE:
            if _lower(after)[0] in (*_PREPOSITIONS, *PARTICIPLES, "present"):
                return _join(counted, rest[verb:])
            return None
        if low[verb] in _MODAL and _lower(after)[0] in BASE:
            return _join(counted, rest[verb:])
        return _inverted(low[verb], after, counted, at_verb=True)
    if low[0] == "much":
        if len(low) > 2 and low[1] in _AUX:
            return _inverted(low[1], rest[2:], answer.bare, at_verb=True)
        if len(low) > 3 and low[1] in ("money", "rent") and low[2] in _AUX:
            return _inverted(low[2], rest[3:], answer.bare, at_verb=True)
        return None
    if len(low) < 3:
        return None
    if low[1] in _DO and low[0] in ("long", "far", "often"):
        return _inverted(low[1], rest[2:], answer.bare, at_verb=True)
    if low[1] not in _BE or low[0] in ("did",):
        return None
    after = rest[2:]
    if not _is_name(after):
        return None
    if low[0] in _LONG and answer.bare.split()[-1].lower() in _UNITS:
        return _join(after, low[1], answer.bare, low[0])
    if low[0] == "expensive":
        return _join("the price of", after, low[1], answer.bare)
    return _join(after, low[1], answer.bare)


def _counted(number: str, noun: Sequence[str]) -> str:
    """`three` and `masts` as "three masts"; "four dollars" stays."""
    if noun and number.lower().split()[-1] == noun[-1].lower():
        return number
    return _join(number, noun)
