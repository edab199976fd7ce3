"""Noun phrases in a list of words, and what kind of thing a noun phrase is."""

import dataclasses
import re
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.words import Word

MONEY = WORDS["money"]
DURATIONS = WORDS["durations"]
TIMES = (DURATIONS | WORDS["times"]) - {"second", "seconds"}
MEASURES = WORDS["measures"]
ROLES = WORDS["roles"]
# Nouns at which something can be, so that "at the X" answers "where".
PLACES = WORDS["places"]
ORGANISATIONS = WORDS["organisations"]
TITLES = ("Dr", "Dr.", "Mr", "Mr.", "Mrs", "Mrs.", "Ms", "Ms.", "Prof", "Prof.", "Professor", "Sir")
_YEAR = re.compile(r"1\d{3}|20\d\d|21\d\d")
_ORDINAL = re.compile(r"\d{1,2}(?:st|nd|rd|th)")
_CLOCK = re.compile(r"\d{1,2}:\d\d")


@dataclasses.dataclass(frozen=True)
class NounPhrase:
    """A noun phrase, with what is joined to it by "of".

    Attributes:
      words: all of it.
      head: index of the head noun in `words`.
      core: how many of the words come before the first preposition.
      joined: whether it is several phrases joined by "and", "or".
    """

    words: tuple[Word, ...]
    head: int
    core: int
    joined: bool = False

    @property
    def text(self) -> str:
        """As it stands in the sentence."""
        return text_of(self.words)

    @property
    def noun(self) -> str:
        """The head noun in lower case."""
        return self.words[self.head].low

    @property
    def determiner(self) -> str:
        """The article, possessive or the like that it begins with, in lower case; "" if there is none."""
        first = self.words[0]
        return first.low if first.tag in ("DT", "PRP$", "PDT") or first.low in w.DETERMINERS else ""

    @property
    def plural(self) -> bool:
        """Whether a verb after it is in the plural."""
        head = self.words[self.head]
        return self.joined or head.tag == "NNS" or head.low in ("they", "we", "you", "people", "these", "those")

    @property
    def name(self) -> tuple[Word, ...]:
        """The name in its core: the last run of words of a name, with "of" or "and" between them."""
        core = self.words[: self.core]
        end = len(core)
        while end and core[end - 1].tag != "NNP":
            end -= 1
        begin = end
        while begin and (
            core[begin - 1].tag == "NNP"
            or (
                begin < end
                and core[begin - 1].low == "and"
                and begin > 1
                and core[begin - 2].tag == "NNP"
                and not self.joined
            )
        ):
            begin -= 1
        return core[begin:end]

    @property
    def has_name(self) -> bool:
        """Whether it names something, months and days apart."""
        return any(word.tag == "NNP" and word.text not in w.MONTHS + w.DAYS for word in self.words)

    @property
    def is_name(self) -> bool:
        """Whether its core is a name and nothing else but an article."""
        core = [word for word in self.words[: self.core] if word.tag not in ("DT",)]
        return (
            bool(core)
            and all(word.tag in ("NNP", "CD", "POS") or word.low in ("and", "of", "&") for word in core)
            and self.has_name
            and core[0].tag == "NNP"
            and core[-1].tag != "POS"
        )

    @property
    def number(self) -> int | None:
        """Index of the number that counts its head ("23 members"); None if there is none."""
        for n, word in enumerate(self.words[: self.core]):
            if (
                word.tag == "CD"
                and n < self.head
                and not _YEAR.fullmatch(word.text)
                and self.words[self.head].tag in ("NNS", "NN")
            ):
                return n
            if word.tag not in ("DT", "CD", "RB", "IN", "TO", "JJS", "JJR", "PRP$"):
                return None
        return None

    @property
    def pronoun(self) -> bool:
        """Whether it is a pronoun, or begins with a possessive one."""
        if self.joined and self.words[0].tag == "NNP":
            return False  # "Ana Volk and her team"
        return any(
            word.low in w.PRONOUNS | w.POSSESSIVES
            or (word.low in ("this", "that", "these", "those") and word.tag == "PRP")
            for word in self.words
        ) or self.text.lower() in ("this", "that", "these", "those", "both", "all", "one", "others", "another")

    def named_person(self) -> "NounPhrase | None":
        """The name in "her friend Ana Volk"; None for anything else."""
        name = self.name
        role = self.words[self.core - len(name) - 1].low if 1 < len(name) < self.core else ""
        if role not in ROLES or self.joined or name[-1] is not self.words[-1]:
            return None
        return NounPhrase(name, len(name) - 1, len(name))

    def kind(self, people: frozenset[str] = frozenset()) -> str:
        """What it is: "date", "time", "duration", "money", "measure", "count", "person", "place" or "thing".

        Args:
          people: words of the names of persons.
        """
        words = self.words
        core = words[: self.core]
        lows = [word.low for word in core]
        if any(low in MONEY or low[0] in "$€£" or w.PENCE.fullmatch(low) for low in lows) and any(
            word.tag == "CD" for word in core
        ):
            return "money"
        if any(word.text in w.MONTHS and (word.text != "May" or True) for word in words if word.tag == "NNP"):
            return "date"
        if any(word.text.rstrip("s") in w.DAYS for word in core if word.tag in ("NNP", "NNPS")):
            return "date"
        if any(_CLOCK.fullmatch(low) for low in lows) or {
            "a.m.",
            "p.m.",
            "am",
            "pm",
            "noon",
            "midnight",
            "o'clock",
        } & set(lows):
            return "time"
        if _ORDINAL.fullmatch(self.words[self.head].text):
            return "date"  # "by the 20th of the month"
        if all(word.tag == "CD" for word in core) and any(_YEAR.fullmatch(low) for low in lows):
            return "date"
        if self.number is not None:
            if self.noun in DURATIONS:
                return "duration"
            return "measure" if self.noun in MEASURES and self.number == self.head - 1 else "count"
        if self.noun in TIMES:
            return "date"
        if self.noun in ROLES or (self.has_name and any(low in ROLES for low in lows[:-1])):
            return "person"
        owned = any(word.tag == "POS" for word in core)  # "Ada's work" is no person
        if self.is_name or (self.name and not owned):
            return self._kind_of_name(people)
        if all(word.tag == "CD" for word in core):
            return "number"
        return "place" if self.noun in PLACES else "thing"

    def _kind_of_name(self, people: frozenset[str]) -> str:
        name = [word.text for word in self.name if word.text not in TITLES]
        if 0 < len(name) < len(self.name) and self.name[0].text in TITLES:
            return "person"
        last = self.words[self.head].low
        type_word = type_noun(self)
        if type_word:
            last = type_word.split()[-1]
            person = last in ROLES or (name and all(part in people for part in name))
            return "person" if person else "place" if last in PLACES else "thing"
        if last in ORGANISATIONS:
            return "organisation"
        if last in PLACES:
            return "place"
        return "person" if name and all(part in people for part in name) else "thing"


_AREAS = frozenset(("village", "town", "city", "island", "county", "district", "port", "province", "region", "state"))


def place_of(phrase: NounPhrase) -> tuple[Word, ...]:
    """The name in "the village of Hamnes"; () for anything else."""
    rest = phrase.words[phrase.core :]
    named = len(rest) > 1 and rest[0].low == "of" and all(word.tag == "NNP" for word in rest[1:])
    return rest[1:] if named and phrase.noun in _AREAS and not phrase.name else ()


def type_noun(phrase: NounPhrase) -> str:
    """What a named thing is.

    The noun before its name ("comet" in "the comet Asko"), or the name's last word if that is a common noun of places
    and organisations ("Club"); "" if neither is there.
    """
    name = phrase.name
    if not name:
        return phrase.noun if place_of(phrase) else ""
    core = phrase.words[: phrase.core]
    at = core.index(name[0])
    if at and core[at - 1].tag == "NN" and core[-1] is name[-1]:
        return core[at - 1].low
    after = core[core.index(name[-1]) + 1 :]
    if after:
        return " ".join(word.low for word in after) if all(word.tag == "NN" for word in after) else ""
    last = name[-1].low
    if len(name) == 1:  # "the University of Lund Bay"
        return last if len(phrase.words) > phrase.core and last in PLACES | _TYPES | {"abbey"} else ""
    return last if last in PLACES | _TYPES else ""


_TYPES = WORDS["types"]


def text_of(words: Sequence[Word]) -> str:
    """The words with the spaces that the sentence has between them."""
    parts = []
    for n, word in enumerate(words):
        if (n and word.begin > words[n - 1].end) or (n and word.begin < words[n - 1].end):
            parts.append(" ")
        parts.append(word.text)
    return "".join(parts)


_BEFORE_HEAD = ("JJ", "JJR", "JJS", "VBN", "VBG", "CD", "NN", "NNS", "NNP", "NNPS")
_HEAD = ("NN", "NNS", "NNP", "NNPS", "CD")
_QUANTIFIERS = (
    *("up to", "at least", "at most", "more than", "less than", "fewer than", "over", "about", "around", "nearly"),
    *("almost", "only", "just", "exactly", "approximately", "roughly", "under", "all", "half"),
)


def noun_phrase(words: Sequence[Word], at: int, joins: bool = True) -> tuple[NounPhrase, int] | None:
    """The noun phrase that begins at a word, and where it ends; None if there is none.

    Args:
      words: of the sentence.
      at: where to begin.
      joins: whether phrases after "and" are taken in.
    """
    first = _simple(words, at)
    if first is None:
        return None
    phrase, end = first
    if joins:
        return _join(words, at, phrase, end)
    return phrase, end


def _join(words: Sequence[Word], at: int, phrase: NounPhrase, end: int) -> tuple[NounPhrase, int]:
    """Takes in "A, B and C": only where no verb follows that would make the last one a subject."""
    k, last, several = end, None, False
    while k < len(words) and (words[k].low in ("and", "or", "&") or words[k].text == ","):
        comma = words[k].text == ","
        start = k + 1
        if comma and start < len(words) and words[start].low in ("and", "or"):
            start, comma = start + 1, False
        following = _simple(words, start)
        if following is None:
            break
        other, stop = following
        if other.text.lower() == "one" and stop < len(words) and words[stop].text == ",":
            break  # "for the rise and one, Tobias Quill, ..."
        if phrase.kind() in ("date", "time") and other.kind() not in ("date", "time", "number"):
            break  # "at 8:40 and returns"
        if _measures(phrase, other) or _measures(other, phrase):
            break  # "48 pounds for a full plot and 27 for a half plot", "five years and everything else for two"
        if not comma:
            nxt = words[stop] if stop < len(words) else None
            own_verb = nxt is not None and (
                nxt.is_verb or (nxt.tag == "RB" and stop + 1 < len(words) and words[stop + 1].is_verb)
            )
            # "and Otto Breck is": a clause of its own, unless the first is not yet a subject of anything.
            if own_verb and not (last is None and _is_subject_position(words, at)):
                break
            last, several = stop, True
            if several:
                break
        elif other.words[0].tag != phrase.words[0].tag and not (other.has_name and phrase.has_name):
            break
        k = stop
    if last is None:
        return phrase, end
    taken = tuple(words[at:last])
    return NounPhrase(taken, phrase.head, len(taken), joined=True), last


def _measures(phrase: NounPhrase, other: NounPhrase) -> bool:
    """Whether one is an amount or a time, and the other is none."""
    amounts = ("money", "measure", "duration")
    return phrase.kind() in amounts and other.kind() not in (*amounts, "number")


def _is_subject_position(words: Sequence[Word], at: int) -> bool:
    return not any(word.is_verb or word.tag in ("VB",) for word in words[:at])


def _simple(words: Sequence[Word], at: int) -> tuple[NounPhrase, int] | None:
    n = at
    size = len(words)
    if n >= size:
        return None
    if words[n].tag == "PRP" or (
        words[n].low in ("this", "these", "those", "that") and n + 1 < size and words[n + 1].is_verb
    ):
        return NounPhrase((words[n],), 0, 1), n + 1
    if words[n].tag == "EX":
        return None
    if words[n].low in ("a", "one") and n + 1 < size and words[n + 1].text in TITLES:
        return _simple(words, n + 1)  # "a Mrs Quill"
    if found := _share(words, n):
        return found
    for text in _QUANTIFIERS:
        parts = text.split()
        ahead = [word.low for word in words[n : n + len(parts)]]
        nxt = words[n + len(parts)] if n + len(parts) < size else None
        if (
            ahead == parts
            and nxt is not None
            and (nxt.tag == "CD" or (text in ("all", "half") and nxt.tag in ("DT", "PRP$", "NNS")))
        ):
            n += len(parts)
            break
    if n < size and (
        words[n].tag in ("DT", "PRP$", "PDT") or words[n].low in ("each", "every", "no", "several", "many", "some")
    ):
        n += 1
        if n < size and words[n].tag in ("RB", "RBS") and n + 1 < size and words[n + 1].tag in ("JJ", "VBN"):
            n += 1
    start = n
    while n < size:
        word = words[n]
        if n > start and _ends_time(words, at, n):
            break
        if word.low == "such" and n + 1 < size and words[n + 1].low == "as":
            break  # "common work such as clearing ditches"
        if n > start + 1 and _YEAR.fullmatch(words[n - 1].text) and words[n - 2].text in w.MONTHS:
            break  # "From 1 April 2025 claims will be ..."
        if word.tag in _BEFORE_HEAD or (word.tag == "VBD" and n == at == 0):
            if word.tag in ("VBN", "VBG") and n > start and words[n - 1].tag in ("NN", "NNS", "NNP"):
                break  # "festival called"
            if (
                word.tag == "VBG"
                and n == start
                and n == at
                and not (n + 1 < size and words[n + 1].tag in ("NN", "NNS"))
            ):
                break
            n += 1
        elif (
            word.text == "," and n > start and words[n - 1].tag == "JJ" and n + 1 < size and words[n + 1].tag == "JJ"
        ) or (word.text == "," and _date_goes_on(words, n)):
            n += 1
        elif word.tag == "POS" and n > start:
            n += 1
            start = n
        elif (
            word.tag == "RB"
            and n > start
            and n + 1 < size
            and words[n + 1].tag in ("JJ", "VBN")
            and words[n - 1].tag in ("JJ", "CD")
        ) or (
            word.low in ("and", "&")
            and n > start
            and words[n - 1].tag == "NNP"
            and n + 1 < size
            and words[n + 1].text in ("Sons", "Co", "Partners", "Daughters", "Brothers", "Sister")
        ):
            n += 1
        else:
            break
    while n > start and words[n - 1].tag not in _HEAD:
        if words[n - 1].tag == "JJ" and n - 1 == start and start > at and words[n - 1].low in ("following",):
            break
        n -= 1
    if n <= start:
        return None
    head = n - 1
    # "room 214", "bus 7": the noun is the head; "4 March 2031" is a date.
    if (
        words[head].tag == "CD"
        and head > start
        and words[head - 1].tag == "NN"
        and words[head].low not in ("a.m.", "p.m.")
    ):
        head -= 1
    core = n - at
    end = n
    if (
        end + 1 < size
        and words[end].tag == "DT"
        and words[end].low in ("a", "an", "per", "every", "each")
        and words[end + 1].low in TIMES | {"person", "head", "page", "piece"}
        and any(word.tag == "CD" for word in words[at:end])
    ):
        end += 2  # "12 euros a year"
    if end + 1 < size and words[end].low == "per" and words[end + 1].tag == "NN":
        end += 2
    if (
        end + 1 < size
        and words[end].low == "to"
        and words[end + 1].tag == words[end - 1].tag == "CD"
        and end - 2 >= at
        and words[end - 2].tag == "NNS"
    ):
        end += 2  # "steps 5 to 8"
    core_end = end - at
    while end < size and words[end].low == "of" and not (end + 1 < size and words[end + 1].low in ("which", "whom")):
        inner = _simple(words, end + 1)
        if inner is None:
            break
        end = inner[1]
    return NounPhrase(tuple(words[at:end]), head - at, max(core, core_end)), end


_SHARES = frozenset(("half", "third", "quarter", "fifth", "tenth"))


def _share(words: Sequence[Word], at: int) -> tuple[NounPhrase, int] | None:
    """ "nearly a third of the claims": a share after a quantifier; its noun is what it is a share of."""
    n = at + (words[at].low in ("nearly", "almost", "about", "over", "roughly", "around"))
    if n == at or n + 3 >= len(words) or words[n].low not in ("a", "one") or words[n + 1].low not in _SHARES:
        return None
    inner = _simple(words, n + 3) if words[n + 2].low == "of" else None
    if inner is None:
        return None
    return NounPhrase(tuple(words[at : inner[1]]), n + 3 - at + inner[0].head, inner[1] - at), inner[1]


def _ends_time(words: Sequence[Word], at: int, n: int) -> bool:
    """Whether a date or time ends before a word, and a name or another noun begins with it."""
    word, last = words[n], words[n - 1]
    timed = _ends_date(last) or (last.tag in ("NN", "NNS") and last.low in TIMES)
    if timed and word.tag == "NNP" and word.text not in w.MONTHS + w.DAYS:
        return True  # "In 2025 Winther discovered"
    if last.tag == "CD" and word.tag == "NNP" and last.low in w.NUMBER_WORDS and word.text not in w.MONTHS:
        return True  # "At nineteen Winther won"
    day = last.text in w.MONTHS and n - at > 1 and words[n - 2].tag == "CD" and words[at].tag != "DT"
    return day and word.tag in ("NN", "NNS")  # "On 12 July customers could not buy tickets"


def _ends_date(word: Word) -> bool:
    return bool(_YEAR.fullmatch(word.text)) or word.text in w.DAYS or word.text in w.MONTHS


def _date_goes_on(words: Sequence[Word], comma: int) -> bool:
    """Whether a comma stands inside a date: "Tuesday, 11 May", "March 4, 2031"."""
    before, after = words[comma - 1] if comma else None, words[comma + 1 : comma + 3]
    if before is None or not after:
        return False
    if before.text in w.DAYS:
        return after[0].text in w.MONTHS or (after[0].tag == "CD" and len(after) > 1 and after[1].text in w.MONTHS)
    return (
        before.tag == "CD"
        and comma > 1
        and words[comma - 2].text in w.MONTHS
        and bool(_YEAR.fullmatch(after[0].text))
    )
