"""The clauses of a sentence: subject, verb group and what follows them.

Only plain patterns are read: joined clauses ("A did this, and B did that"; "A did this and did that"), relative
clauses, "that" after a verb of saying, adverbial clauses, appositions, orders. What does not fit is left out and said
so: no question is made from a sentence that was not understood.
"""

import dataclasses
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import (
    DURATIONS,
    TIMES,
    NounPhrase,
    VerbGroup,
    noun_phrase,
    text_of,
    verb_group,
)
from selfparam_jax.targets.grounded.words import Word


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One part of a clause beside subject and verb.

    Attributes:
      kind: "np" (noun phrase), "pp" (with a preposition), "adj", "adv", "inf" ("to ..."), "sub" ("because ...").
      words: all of it.
      phrase: its noun phrase, for "np" and "pp".
      preposition: of a "pp", in lower case; the conjunction of a "sub".
    """

    kind: str
    words: tuple[Word, ...]
    phrase: NounPhrase | None = None
    preposition: str = ""

    @property
    def text(self) -> str:
        """As it stands in the sentence."""
        return text_of(self.words)


@dataclasses.dataclass(frozen=True)
class Clause:
    """A clause with a verb.

    Attributes:
      subject: None for an order, and for "there is".
      tail: what belongs to the subject after its noun phrase ("for adults" in "the fee for adults").
      verb: the verb group.
      rest: complements and adverbials, in order; those in front of the subject last.
      order: whether it is an order ("Press the button").
      there: whether it says that there is something.
      source: "main", "relative", "apposition" or "label".
    """

    subject: NounPhrase | None
    tail: tuple[Phrase, ...]
    verb: VerbGroup
    rest: tuple[Phrase, ...]
    order: bool = False
    there: bool = False
    source: str = "main"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found in a sentence: its clauses, and whether all its words belong to one."""

    clauses: tuple[Clause, ...]
    complete: bool


_SAYING = WORDS["saying"]
_NO_PLACE = frozenset(("there", "here"))


def read_sentence(words: Sequence[Word]) -> Reading:
    """Reads a sentence; words in brackets are left out of its clauses."""
    words, complete = _without_brackets(list(words))
    while words and words[-1].text in (".", "!", "?", '"', "”"):
        if words[-1].text == "?":
            return Reading((), False)
        words = words[:-1]
    words = [word for word in words if word.text not in ('"', "“", "”", "‘")]
    clauses: list[Clause] = []
    begin = 0
    for n in range(len(words) + 1):
        if n == len(words) or words[n].text in (";", ":", "–", "—"):
            part = words[begin:n]
            if part:
                found = _Parser(part).read()
                clauses += found.clauses
                complete &= found.complete
            begin = n + 1
    return Reading(tuple(clauses), complete)


def _without_brackets(words: list[Word]) -> tuple[list[Word], bool]:
    kept, depth, complete = [], 0, True
    for word in words:
        if word.text in "([":
            depth, complete = depth + 1, False
        elif word.text in ")]":
            depth = max(depth - 1, 0)
        elif not depth:
            kept.append(word)
    return kept, complete


_LOCATING = WORDS["locating"]


# What an adverbial clause begins with.
_OPENERS = w.SUBORDINATORS | {"before", "after", "until", "since", "once", "as"}
_ABOUT = ("for", "about", "with")


def _says_where(phrase: NounPhrase) -> bool:
    kind = phrase.kind()
    return kind in ("place", "organisation") or (kind == "thing" and phrase.has_name)


def _joined_places(rest: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    """ "in the boathouse at Welland Lock" is one place."""
    made: list[Phrase] = []
    for phrase in rest:
        last = made[-1] if made else None
        if (
            last is not None and last.kind == phrase.kind == "pp" and phrase.preposition in _LOCATING
            and last.words[-1].end < phrase.words[0].begin < last.words[-1].end + 3
            and not last.phrase.joined
            and (last.phrase.kind() == "place" or (last.preposition in _ABOUT and last.phrase.kind() == "thing"))
            and _says_where(phrase.phrase)
        ):  # fmt: skip
            old = last.phrase
            whole = NounPhrase((*old.words, *phrase.words), old.head, old.core)
            made[-1] = dataclasses.replace(last, words=(*last.words, *phrase.words), phrase=whole)
        else:
            made.append(phrase)
    return tuple(made)


class _Stop(Exception):
    """The words do not fit a pattern."""


class _Parser:
    """Reads a part of a sentence from left to right."""

    def __init__(self, words: Sequence[Word]):
        self.words = list(words)
        self.clauses: list[Clause] = []
        self.complete = True
        self.total: Word | None = None  # how many a subject is, said after a comma
        self.said = False  # the clause that is being read only says that another is so

    def read(self) -> Reading:
        try:
            self._clauses(0, len(self.words))
        except _Stop:
            self.complete = False
        return Reading(tuple(self.clauses), self.complete)

    def _at(self, n: int) -> Word | None:
        return self.words[n] if n < len(self.words) else None

    def _clauses(self, at: int, end: int) -> None:
        subject: tuple[NounPhrase, tuple[Phrase, ...]] | None = None
        while at < end:
            word = self.words[at]
            if word.text == "," or word.low in (
                "and",
                "but",
                "or",
                "so",
                "then",
                "yet",
                "please",
                "however",
                "therefore",
            ):
                at += 1
                continue
            at, subject = self._clause(at, end, subject)

    def _clause(self, at: int, end: int, previous) -> tuple[int, tuple | None]:
        """Reads one clause; a verb at its beginning shares the subject of the one before, or is an order."""
        last = self.clauses[-1] if self.clauses else None
        if previous is not None and last is not None and self._shares(at, last):
            verb, n = self._shared_verb(at, last)
            rest, n = self._rest(n, end, verb)
            self._add(Clause(previous[0], previous[1], verb, rest, last.order))
            return n, previous
        if last is not None and last.order and self.words[at].tag == "VB":
            return self._order(at, end, ())
        front, n = self._front(at, end)
        word = self._at(n)
        if word is None:
            raise _Stop
        if word.tag == "EX" or (
            word.low == "there" and (nxt := self._at(n + 1)) is not None and nxt.low in w.BE | w.MODALS
        ):
            found = verb_group(self.words, n + 1)
            if found is None:
                raise _Stop
            rest, n = self._rest(found[1], end, found[0])
            self._add(Clause(None, (), found[0], (*rest, *front), there=True))
            return n, None
        if word.tag == "VB" or word.low in ("never", "always") or (word.low == "do" and word.tag == "VBP"):
            return self._order(n, end, front)
        found = noun_phrase(self.words, n)
        if found is None:
            raise _Stop
        subject, n = found
        subject, tail, n, extra = self._subject(subject, n, end)
        group = verb_group(self.words, n)
        if group is None:
            raise _Stop
        verb, n = group
        if verb.words[verb.main].tag == "VB" and verb.aux is None and not subject.plural:
            raise _Stop
        self.total = None
        rest, n = self._rest(n, end, verb)
        self._add(Clause(subject, tail, verb, (*rest, *front)))
        if self.total is not None and subject.words[subject.head].tag == "NNS":
            # "All houses are affected, 46 in total": 46 houses are.
            counted = NounPhrase((self.total, *subject.words[subject.head :]), 1, subject.core - subject.head + 1)
            self.clauses.append(Clause(counted, tail, verb, (*rest, *front), source="apposition"))
        self.clauses += extra
        return n, (subject, tail)

    def _order(self, at: int, end: int, front: tuple[Phrase, ...]) -> tuple[int, tuple | None]:
        group = verb_group(self.words, at)
        if group is not None and group[0].lemma == "let":
            return self._letting(group[1], end, front)
        if group is None or group[0].lemma == "make":
            raise _Stop
        verb, n = group
        if verb.words[0].low in w.DO and verb.words[-1].tag != "VB":
            raise _Stop
        rest, n = self._rest(n, end, verb)
        self._add(Clause(None, (), verb, (*rest, *front), order=True))
        return n, None

    def _letting(self, at: int, end: int, front: tuple[Phrase, ...]) -> tuple[int, tuple | None]:
        """ "Let the cold tap run for five minutes": the cold tap should run for five minutes."""
        found = noun_phrase(self.words, at, joins=False)
        if found is None or found[1] >= end or self.words[found[1]].tag not in ("VB", "NN", "JJ", "VBP"):
            raise _Stop
        subject, n = found
        if not w.may_be(self.words[n].low, "VB"):
            raise _Stop
        should = Word("should", "MD", self.words[n].begin, self.words[n].begin)
        verb = VerbGroup((should, dataclasses.replace(self.words[n], tag="VB")), 0, 1)
        rest, n = self._rest(n + 1, end, verb)
        self._add(Clause(subject, (), verb, (*rest, *front)))
        return n, None

    def _add(self, clause: Clause) -> None:
        clause = dataclasses.replace(clause, rest=self._resolved(_joined_places(clause.rest)))
        if self.said:
            self.said = False
        else:
            self.clauses.append(clause)

    def _resolved(self, rest: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
        """ "borrow ten books and keep them": them is the books of the clause before."""
        last = self.clauses[-1] if self.clauses else None
        made = []
        for phrase in rest:
            if phrase.kind == "np" and phrase.text.lower() in ("them", "it") and last is not None:
                several = phrase.text.lower() == "them"
                found = [each.phrase for each in last.rest if each.phrase is not None and not each.phrase.pronoun
                         and each.phrase.words[each.phrase.head].tag == ("NNS" if several else "NN")
                         and each.phrase.kind() in ("thing", "count", "place")]  # fmt: skip
                if len(found) == 1:
                    head = found[0].words[found[0].head]
                    the = Word("the", "DT", head.begin - 1, head.begin - 1)
                    words = (the, head)
                    phrase = Phrase("np", words, NounPhrase(words, 1, 2))
            made.append(phrase)
        return tuple(made)

    def _shares(self, at: int, last: Clause) -> bool:
        word = self.words[at]
        if word.tag in ("VBD", "VBZ", "MD") or (
            word.tag == "VBP" and last.subject is not None and (last.subject.plural or last.verb.words[0].tag == "MD")
        ):
            return True
        if word.tag == "RB" and (nxt := self._at(at + 1)) is not None and nxt.is_verb:
            return True
        return bool(last.verb.aux is not None and word.tag in ("VBN", "VB"))

    def _shared_verb(self, at: int, last: Clause) -> tuple[VerbGroup, int]:
        """A verb with the subject of the clause before it, and with its auxiliaries where it has none of its own."""
        word = self.words[at]
        before = last.verb.words[: last.verb.main]
        bare = before and before[-1].tag == "MD" and word.tag in ("VB", "VBP")
        if bare or (before and word.tag == "VBN" and last.verb.passive):
            tag = "VB" if bare else "VBN"
            fixed = [*before, dataclasses.replace(word, tag=tag), *self.words[at + 1 :]]
            made = verb_group(fixed, 0)
            if made is None:
                raise _Stop
            return made[0], at + made[1] - len(before)
        made = verb_group(self.words, at)
        if made is None:
            raise _Stop
        return made

    def _front(self, at: int, end: int) -> tuple[tuple[Phrase, ...], int]:
        """Adverbials before the subject."""
        front: list[Phrase] = []
        n = at
        while n < end:
            word = self.words[n]
            if word.text == ",":
                n += 1
                continue
            if word.low in ("never", "always") and (nxt := self._at(n + 1)) is not None and nxt.tag == "VB":
                break  # an order
            if word.low in _OPENERS and self._opens_clause(n + 1):
                phrase, n = self._subordinate(n, end, stops_at_comma=True)
                front.append(phrase)
                continue
            if word.low in ("about", "around", "over", "under", "up") and noun_phrase(self.words, n) is not None:
                break  # "About 12,000 visitors come"
            if word.tag in ("IN", "TO") and word.low not in w.SUBORDINATORS:
                found = self._preposition(n)
                if found is None:
                    raise _Stop
                front.append(found[0])
                n = found[1]
                continue
            if (
                word.low in ("once", "twice")
                and (found := noun_phrase(self.words, n + 1, joins=False))
                and found[0].noun in TIMES
            ):
                front.append(Phrase("adv", tuple(self.words[n : found[1]])))
                n = found[1]
                continue
            if word.tag == "RB" or (word.low in w.ADVERBS - _NO_PLACE - {"once", "twice"} and word.tag != "DT"):
                if word.low not in (
                    "also",
                    "however",
                    "therefore",
                    "moreover",
                    "furthermore",
                    "then",
                    "finally",
                    "meanwhile",
                    "afterwards",
                    "still",
                    "now",
                ):
                    front.append(Phrase("adv", (word,)))
                n += 1
                continue
            found = noun_phrase(self.words, n, joins=False)
            if found and found[0].kind() == "date" and verb_group(self.words, found[1]) is None and found[1] < end:
                front.append(Phrase("np", found[0].words, found[0]))
                n = found[1]
                continue
            break
        return tuple(front), n

    def _opens_clause(self, at: int) -> bool:
        """Whether a noun phrase and a verb group begin here."""
        found = noun_phrase(self.words, at)
        if found is None:
            return False
        n = found[1]
        if (word := self._at(n)) is not None and word.low == "there":
            n += 1
        while (word := self._at(n)) is not None and word.tag in ("IN",):
            inner = self._preposition(n)
            if inner is None:
                return False
            n = inner[1]
        return verb_group(self.words, n) is not None

    def _subordinate(self, at: int, end: int, stops_at_comma: bool = False) -> tuple[Phrase, int]:
        n = at + 1
        while n < end and not (self.words[n].text == "," and stops_at_comma):
            n += 1
        taken = tuple(self.words[at:n])
        return Phrase("sub", taken, preposition=taken[0].low), n

    def _preposition(self, at: int) -> tuple[Phrase, int] | None:
        """A preposition and its noun phrase; "from A to B" is one phrase."""
        n = at
        word = self.words[n]
        if word.tag not in ("IN", "TO"):
            return None
        n += 1
        # "out of", "instead of", "next to", "up to": of two words.
        if (
            (nxt := self._at(n)) is not None
            and nxt.low in ("of", "to")
            and word.low in ("out", "because", "instead", "up", "close", "next", "due", "according")
        ):
            n += 1
        prep_end = n
        found = noun_phrase(self.words, n)
        if found is None:
            word = self._at(n)
            if word is not None and word.tag in ("JJ", "JJS", "RBS"):  # "in total", "at least"
                taken = tuple(self.words[at : n + 1])
                return Phrase("adv", taken), n + 1
            return None
        phrase, n = found
        preposition = " ".join(each.low for each in self.words[at:prep_end])
        following = self._at(n)
        if (
            preposition == "from"
            and following is not None
            and following.low in ("to", "until", "till")
            and (second := noun_phrase(self.words, n + 1))
        ):
            taken = tuple(self.words[prep_end : second[1]])
            phrase = NounPhrase(taken, len(taken) - 1 if second[0].words[-1].tag == "CD" else phrase.head, len(taken))
            head = n + 1 - prep_end + second[0].head
            phrase, n = NounPhrase(taken, head, len(taken)), second[1]
        return Phrase("pp", tuple(self.words[at:n]), phrase, preposition), n

    def _subject(
        self, subject: NounPhrase, n: int, end: int
    ) -> tuple[NounPhrase, tuple[Phrase, ...], int, list[Clause]]:
        """What belongs to the subject before its verb: phrases, an apposition, a relative clause."""
        tail: list[Phrase] = []
        extra: list[Clause] = []
        while n < end and verb_group(self.words, n) is None:
            word = self.words[n]
            if word.tag in ("IN", "TO") and (found := self._preposition(n)) is not None and found[0].kind == "pp":
                tail.append(found[0])
                n = found[1]
            elif word.tag == "VBN" or word.tag == "VBG" or (word.tag == "JJ" and tail == []):
                # "a festival called the Lantern Fair", "houses built from slate": to be part of the subject's words
                stop = n + 1
                while stop < end and verb_group(self.words, stop) is None:
                    stop += 1
                if stop >= end or stop - n > 8:
                    raise _Stop
                tail.append(Phrase("adj", tuple(self.words[n:stop])))
                n = stop
            elif word.text == ",":
                n = self._inserted(subject, tail, n, end, extra)
                if extra and extra[-1].source == "apposition" and extra[-1].subject is not subject:
                    subject, tail = extra[-1].subject, []
            elif word.low == "there":
                n += 1
            elif word.low in ("who", "which", "that", "where"):
                stop = self._relative_end(n, end)
                tail.append(Phrase("adj", tuple(self.words[n:stop])))
                n = stop
            else:
                raise _Stop
        if n >= end:
            raise _Stop
        return subject, tuple(tail), n, extra

    def _relative_end(self, at: int, end: int) -> int:
        """Where a relative clause without commas ends: before the next verb with a tense after its own."""
        group, n = None, at + 1
        while n < end and group is None:
            group = verb_group(self.words, n)
            n += 1
        if group is None:
            raise _Stop
        n = group[1]
        while n < end and not self.words[n].is_verb:
            n += 1
        if n >= end:
            raise _Stop
        return n

    def _inserted(self, subject: NounPhrase, tail, n: int, end: int, extra: list[Clause]) -> int:
        """Between two commas after a subject: an apposition or a relative clause."""
        stop = n + 1
        while stop < end and self.words[stop].text != ",":
            stop += 1
        if stop >= end:
            raise _Stop
        inner = self.words[n + 1 : stop]
        if inner and inner[0].low in ("who", "which"):
            self._relative(subject, tuple(tail), n + 1, stop, extra)
            return stop + 1
        if inner and inner[0].low in ("where", "whose", "whom"):
            self.complete = False
            return stop + 1
        found = noun_phrase(inner, 0)
        if found is None:
            raise _Stop
        other, k = found
        other_tail: list[Phrase] = []
        parser = _Parser(inner)
        while k < len(inner):
            more = parser._preposition(k)
            if more is None or more[0].kind != "pp":
                raise _Stop
            other_tail.append(more[0])
            k = more[1]
        is_ = VerbGroup((Word("is", "VBZ", subject.words[-1].end, subject.words[-1].end + 2),), 0, 0)
        if other.is_name and not subject.is_name:
            # "The treasurer, Ana Volk, reported": Ana Volk is the treasurer.
            extra.append(Clause(other, (), is_, (Phrase("np", subject.words, subject), *tail), source="apposition"))
        else:
            # A copy, so that the caller keeps its subject.
            same = dataclasses.replace(subject)
            extra.append(Clause(same, (), is_, (Phrase("np", other.words, other), *other_tail), source="apposition"))
            return _Marked.keep(extra, subject, stop + 1)
        return stop + 1

    def _relative(self, subject: NounPhrase, tail, at: int, end: int, extra: list[Clause]) -> None:
        """A clause about a noun phrase: "who ...", "which ..."."""
        inner = _Parser(self.words[at + 1 : end])
        group = verb_group(inner.words, 0)
        if group is None:
            self.complete = False
            return
        verb, n = group
        try:
            rest, n = inner._rest(n, len(inner.words), verb)
            clauses = [Clause(subject, tuple(tail), verb, rest, source="relative")]
            if n < len(inner.words):
                inner.clauses = list(clauses)
                inner._clauses_after(n, (subject, tuple(tail)))
                clauses = inner.clauses
            else:
                clauses += inner.clauses
            extra += clauses
            self.complete &= inner.complete
        except _Stop:
            self.complete = False

    def _clauses_after(self, at: int, subject) -> None:
        end = len(self.words)
        while at < end:
            if self.words[at].text == "," or self.words[at].low in ("and", "but", "or"):
                at += 1
                continue
            at, subject = self._clause(at, end, subject)

    def _rest(self, at: int, end: int, verb: VerbGroup) -> tuple[tuple[Phrase, ...], int]:
        """What follows a verb, up to the next clause."""
        rest: list[Phrase] = []
        n = at
        while n < end:
            word = self.words[n]
            if word.text == ",":
                nxt = self._at(n + 1)
                if nxt is None:
                    n += 1
                    break
                if nxt.low in ("which", "who"):
                    return self._relative_of_last(rest, n, end)
                if nxt.low == "where":
                    return self._where(rest, n, end)
                if nxt.low == "of" and (third := self._at(n + 2)) is not None and third.low in ("which", "whom"):
                    self.complete = False
                    return tuple(rest), end
                if nxt.low in ("and", "but", "or", "so", "then", "yet") or nxt.tag in ("VBG",):
                    if nxt.tag == "VBG":
                        self.complete = False
                        return tuple(rest), end
                    return tuple(rest), n + 1
                if nxt.low in w.SUBORDINATORS | {"until", "before", "after"} and self._opens_clause(n + 2):
                    phrase, n = self._subordinate(n + 1, end, stops_at_comma=True)
                    rest.append(phrase)
                    continue
                if nxt.tag in ("IN", "TO") and (found := self._preposition(n + 1)) is not None:
                    rest.append(found[0])
                    n = found[1]
                    continue
                if self._opens_clause(n + 1) or verb_group(self.words, n + 1) is not None:
                    return tuple(rest), n + 1
                found = noun_phrase(self.words, n + 1)
                if found and rest and rest[-1].phrase is not None and self._ends(found[1], end):
                    self._apposition(rest[-1].phrase, found[0], n + 1, found[1])
                    n = found[1] + (self._at(found[1]) is not None and self.words[found[1]].text == ",")
                    continue
                # "46 in total", "three days early": words after a comma that add little
                following = [each.low for each in self.words[n + 2 : n + 4]]
                if nxt.tag == "CD" and (following == ["in", "total"] or following[:1] == ["altogether"]):
                    self.total = nxt
                else:
                    self.complete = False
                while n + 1 < end and self.words[n + 1].text != ",":
                    n += 1
                n += 1
                continue
            if word.tag == "CC":
                if (
                    self._opens_clause(n + 1)
                    or verb_group(self.words, n + 1) is not None
                    or (self._at(n + 1) is not None and self.words[n + 1].tag in ("VBN", "VB", "VBD"))
                ):
                    return tuple(rest), n + 1
                if (
                    (nxt := self._at(n + 1)) is not None
                    and nxt.tag in ("IN", "TO")
                    and (found := self._preposition(n + 1)) is not None
                ):
                    joined = Phrase("adv", (word, *found[0].words))
                    rest.append(joined)
                    n = found[1]
                    continue
                # "and" before what cannot be joined: another clause with a front ("and in 2025 she ...")
                if self._front_then_clause(n + 1, end):
                    return tuple(rest), n + 1
                raise _Stop
            if word.low in ("so", "then") and self._opens_clause(n + 1):
                return tuple(rest), n + 1
            if word.low in ("that",) and (verb.lemma in _SAYING) and self._opens_clause(n + 1):
                # What is said counts; that it was said does not.
                self._clauses(n + 1, end)
                self.said = True
                return tuple(rest), end
            if word.low in w.SUBORDINATORS | {"before", "after", "until", "since", "as"} and self._opens_clause(
                n + 1
            ):
                phrase, n = self._subordinate(n, end, stops_at_comma=True)
                rest.append(phrase)
                continue
            if word.low in ("who", "which", "that", "where", "whose") and word.tag in (
                "WDT",
                "WP",
                "WRB",
                "IN",
                "DT",
                "WP$",
            ):
                if rest and rest[-1].phrase is not None and word.low != "whose":
                    taken = tuple(self.words[n:end])
                    stop = next((k for k in range(n, end) if self.words[k].text == ","), end)
                    taken = tuple(self.words[n:stop])
                    old = rest[-1]
                    rest[-1] = dataclasses.replace(old, words=(*old.words, *taken))
                    n = stop
                    continue
                raise _Stop
            if word.tag == "TO" and (nxt := self._at(n + 1)) is not None and nxt.tag == "VB":
                stop = self._infinitive_end(n, end)
                rest.append(Phrase("inf", tuple(self.words[n:stop])))
                n = stop
                continue
            if word.tag in ("IN", "TO") and (found := self._preposition(n)) is not None:
                rest.append(found[0])
                n = found[1]
                continue
            if word.tag == "IN" and (nxt := self._at(n + 1)) is not None and nxt.tag == "RB":
                stop = n + 2
                while stop < end and self.words[stop].tag == "RB":
                    stop += 1
                rest.append(Phrase("adv", tuple(self.words[n:stop])))
                n = stop
                continue
            if word.tag in ("VBN", "VBG") and rest and rest[-1].phrase is not None and rest[-1].kind in ("np", "pp"):
                n = self._participle(rest, n, end)
                continue
            if word.tag == "IN" and word.low in ("off", "out", "up", "down", "away", "back", "on", "over", "in"):
                rest.append(Phrase("adv", (word,)))
                n += 1
                continue
            if word.tag in ("RB", "RBR", "RBS", "RP", "EX") or (
                word.low in w.ADVERBS and word.tag not in ("DT", "CD")
            ):
                if (
                    word.low in ("once", "twice")
                    and (found := noun_phrase(self.words, n + 1, joins=False))
                    and found[0].noun in TIMES
                ):
                    rest.append(Phrase("adv", tuple(self.words[n : found[1]])))
                    n = found[1]
                    continue
                rest.append(Phrase("adv", (word,)))
                n += 1
                continue
            found = noun_phrase(self.words, n)
            if found is not None:
                phrase, stop = found
                kind = "np"
                if phrase.noun == "times" or (
                    phrase.noun in DURATIONS
                    and (nxt := self._at(stop)) is not None
                    and nxt.low in ("early", "late", "later", "ago", "before", "in")
                    and rest
                ):
                    if (nxt := self._at(stop)) is not None and nxt.low in ("early", "late", "later", "ago"):
                        stop += 1
                    if (
                        (nxt := self._at(stop)) is not None
                        and nxt.low == "in"
                        and (third := self._at(stop + 1)) is not None
                        and third.low == "advance"
                    ):
                        stop += 2
                rest.append(Phrase(kind, tuple(self.words[n:stop]), phrase))
                n = stop
                continue
            if word.tag in ("JJ", "JJR", "JJS", "VBN"):
                stop = n + 1
                while stop < end and (
                    self.words[stop].tag in ("JJ",)
                    or (
                        self.words[stop].tag == "CC"
                        and stop + 1 < end
                        and self.words[stop + 1].tag == "JJ"
                        and noun_phrase(self.words, stop + 1) is None
                    )
                ):
                    stop += 1
                rest.append(Phrase("adj", tuple(self.words[n:stop])))
                n = stop
                continue
            if word.tag == "VBG":
                raise _Stop
            raise _Stop
        return tuple(rest), n

    def _participle(self, rest: list[Phrase], at: int, end: int) -> int:
        """ "a festival called the Lantern Fair", "a prize given by the town": joined to the noun phrase before it."""
        stop = at + 1
        while (
            stop < end
            and self.words[stop].text != ","
            and not (
                self.words[stop].tag == "CC"
                and (self._opens_clause(stop + 1) or verb_group(self.words, stop + 1) is not None)
            )
        ):
            stop += 1
        holder = rest[-1]
        if self.words[at].low in ("called", "named") and (found := noun_phrase(self.words, at + 1)) is not None:
            begin = self.words[at].begin
            called = (Word("is", "VBZ", begin, begin), dataclasses.replace(self.words[at], tag="VBN"))
            name = Phrase("np", found[0].words, found[0])
            self.clauses.append(Clause(holder.phrase, (), VerbGroup(called, 0, 1), (name,), source="apposition"))
        rest[-1] = dataclasses.replace(holder, words=(*holder.words, *self.words[at:stop]))
        return stop

    def _front_then_clause(self, at: int, end: int) -> bool:
        try:
            _, n = self._front(at, end)
        except _Stop:
            return False
        return n > at and self._opens_clause(n)

    def _ends(self, n: int, end: int) -> bool:
        return n >= end or self.words[n].text == ","

    def _apposition(self, first: NounPhrase, second: NounPhrase, begin: int, stop: int) -> None:
        is_ = VerbGroup((Word("is", "VBZ", first.words[-1].end, first.words[-1].end + 2),), 0, 0)
        if first.kind() in ("date", "time", "money", "measure") or second.kind() in (
            "date",
            "time",
            "money",
            "measure",
            "count",
            "duration",
            "number",
        ):
            self.complete = False
            return
        if second.is_name and not first.is_name:
            first, second = second, first
        self.clauses.append(Clause(first, (), is_, (Phrase("np", second.words, second),), source="apposition"))

    def _relative_of_last(self, rest: list[Phrase], n: int, end: int) -> tuple[tuple[Phrase, ...], int]:
        """ ", which ...": about the last noun phrase."""
        holders = [phrase for phrase in rest if phrase.phrase is not None]
        verb = verb_group(self.words, n + 2)
        if verb is not None and (first := next((each for each in verb[0].words if each.is_verb), None)) is not None:
            # "a catalogue for schools, which is": what agrees with the verb.
            if first.tag == "VBZ" or first.low == "was":
                holders = [phrase for phrase in holders if not phrase.phrase.plural]
            elif first.tag == "VBP" or first.low == "were":
                holders = [phrase for phrase in holders if phrase.phrase.plural]
        # "a cafe in the cellar, which ...": the place or time after a thing is seldom meant.
        while (
            len(holders) > 1 and holders[-1].kind == "pp" and holders[-1].phrase.kind() in ("place", "date", "time")
        ):
            holders.pop()
        holder = holders[-1].phrase if holders else None
        if holder is None or holder.kind() in ("date", "time"):
            self.complete = False
            return tuple(rest), end
        extra: list[Clause] = []
        self._relative(holder, (), n + 1, end, extra)
        self.clauses += extra
        return tuple(rest), end

    def _where(self, rest: list[Phrase], n: int, end: int) -> tuple[tuple[Phrase, ...], int]:
        """ ", where she ...": a clause of its own at the place named last."""
        place = next((phrase for phrase in reversed(rest) if phrase.kind == "pp"), None)
        inner = _Parser(self.words[n + 2 : end])
        found = inner.read()
        self.complete &= found.complete
        if place is not None and place.preposition not in _LOCATING:  # "from Dorne Prints, where he worked"
            begin = place.words[0].begin
            at = (Word("at", "IN", begin, begin), *place.phrase.words)
            place = Phrase("pp", at, place.phrase, "at")
        if place is not None:
            self.clauses += [dataclasses.replace(clause, rest=(*clause.rest, place)) for clause in found.clauses[:1]]
        return tuple(rest), end

    def _infinitive_end(self, at: int, end: int) -> int:
        n = at
        while (
            n < end
            and self.words[n].text != ","
            and not (self.words[n].low in ("so", "but", "because", "when", "if") and n > at)
        ):
            if self.words[n].tag == "CC" and (
                self._opens_clause(n + 1) or (self._at(n + 1) is not None and self.words[n + 1].is_verb)
            ):
                break
            n += 1
        return n


class _Marked:
    """Keeps a subject after an apposition that describes it."""

    @staticmethod
    def keep(extra: list[Clause], subject: NounPhrase, stop: int) -> int:
        extra[-1] = dataclasses.replace(extra[-1], subject=subject)
        return stop
