"""What hangs on a clause or a noun: adverbial and relative clauses, appositions, participles."""

import dataclasses
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause, Phrase, spaced
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import ROLES, NounPhrase, noun_phrase, text_of
from selfparam_jax.targets.grounded.verb_groups import VerbGroup, verb_group
from selfparam_jax.targets.grounded.words import Word

LOCATING = WORDS["locating"] | {"next to"}
_SAYING = WORDS["saying"]
# What an adverbial clause begins with.
OPENERS = w.SUBORDINATORS | {"before", "after", "until", "since", "once", "as"}
_SURE_OPENERS = ("because", "unless", "although", "whereas")  # whatever follows them
# Nouns that give what follows them as a number or code of what stands before: "the pouch, part number VP-117".
_LABELS = frozenset(("number", "extension", "telephone", "phone", "code", "model", "part"))
_ABOUT = ("for", "about", "with")
_LEADING = WORDS["leading"]


class Stop(Exception):
    """The words do not fit a pattern."""


def _says_where(phrase: NounPhrase) -> bool:
    kind = phrase.kind()
    return kind in ("place", "organisation") or (kind == "thing" and phrase.has_name)


def _at_place(last: Phrase, phrase: Phrase) -> bool:
    """Whether a phrase says where the place, or the thing that is spoken of, in the one before it is."""
    if (
        last.kind != "pp"
        or phrase.preposition not in LOCATING
        or not (_says_where(phrase.phrase) or phrase.preposition == "next to")
    ):
        return False
    if last.preposition in ("in", "on", "at") and phrase.preposition not in ("in", "on", "at", "between"):
        return True  # "in the tin near the door"
    about = last.preposition in _ABOUT and last.phrase.kind() == "thing"
    return about or last.phrase.kind() == "place" or (phrase.preposition == "next to" and last.preposition == "on")


def _leads(last: Phrase, phrase: Phrase) -> bool:
    """Whether "to ..." belongs to a noun: "the move to the new office", "a scholarship to the institute"."""
    sure = last.kind == "pp" or last.phrase.noun in ("scholarship", "visit", "trip", "alternative", "exception")
    goes_on = last.kind == "np" and phrase.preposition in LOCATING and any(word.tag == "TO" for word in last.words)
    return last.phrase.noun in _LEADING and sure and (phrase.preposition == "to" or goes_on)


def joined_places(rest: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    """ "in the boathouse at Welland Lock" is one place."""
    made: list[Phrase] = []
    for phrase in rest:
        last = made[-1] if made else None
        if (
            last is not None and phrase.kind == "pp" and last.kind in ("np", "pp")
            and last.words[-1].end < phrase.words[0].begin < last.words[-1].end + 3
            and not last.phrase.joined
            and (_at_place(last, phrase) or _leads(last, phrase))
        ):  # fmt: skip
            old = last.phrase
            whole = NounPhrase((*old.words, *phrase.words), old.head, old.core)
            made[-1] = dataclasses.replace(last, words=(*last.words, *phrase.words), phrase=whole)
        else:
            made.append(phrase)
    return tuple(made)


class Attached:
    """The part of the parser that reads them."""

    words: list[Word]
    clauses: list[Clause]
    complete: bool
    subject: tuple[NounPhrase, tuple[Phrase, ...]] | None
    inside: Phrase | None  # the last phrase of a reason

    def _subordinate(self, at: int, end: int, stops_at_comma: bool = False) -> tuple[Phrase, int]:
        n, verb = at + 1, False
        while n < end and not (self.words[n].text == "," and stops_at_comma and verb):
            verb |= self.words[n].is_verb
            n += 1
        comma = next((k for k in range(at, end) if self.words[k].text == ","), end)
        if stops_at_comma and n == end and comma < end and (not verb or at == 0):
            n = comma  # a verb that was not found
        taken = tuple(self.words[at:n])
        if taken[0].low == "even":  # "even if others are inside": no condition
            return Phrase("sub", taken, preposition=f"even {taken[1].low}"), n
        if taken[0].low == "so":
            return Phrase("reason", taken, preposition="so that"), n
        if taken[0].low == "because" or (taken[0].low in ("since", "as") and self._gives_cause(at)):
            return Phrase("reason", taken[1:], preposition="because"), n
        return Phrase("sub", taken, preposition=taken[0].low), n

    def _begins_subordinate(self, at: int) -> bool:
        """Whether "if ...", "because ...", "so that ..." begins at a word."""
        word, following = self._at(at), self._at(at + 1)
        if word is None or following is None or following.low == "of":
            return False
        if word.low == "as" and following.low == "soon":
            return True
        if word.low in _SURE_OPENERS or (word.low == "so" and following.low == "that"):
            return True
        if word.low == "as":
            return self._gives_cause(at) or self._at(at - 1).text != ","
        return word.low in OPENERS - {"so"} and self._opens_clause(at + 1)

    def _gives_cause(self, at: int) -> bool:
        """Whether "since ..." and "as ..." say why, and not since when, or how."""
        end = next((n for n in range(at, len(self.words)) if n > at and self.words[n].text == ","), len(self.words))
        verb = next((n for n in range(at, end) if self.words[n].is_verb), None)
        if verb is None or not self._opens_clause(at + 1):
            return False
        apart = not at or self.words[at - 1].text == ","
        low = self.words[verb].low
        if self.words[at].low == "since":
            if self.words[verb].tag != "VBD":
                return apart
            # "has been closed since she left" says since when; "stayed at home since it rained" says why.
            before = [word for word in self.words[:at] if word.is_verb or word.tag == "VB"]
            perfect = any(word.low in w.HAVE for word in self.words[:at])
            return bool(before) and not perfect and (apart or before[0].tag == "VBD")
        if not apart:
            return False
        subject = noun_phrase(self.words, at + 1)[0]
        if not subject.pronoun:
            return low in ("is", "are", "has", "have", "can", "will")
        # "as it damages the seal", but not "as it always was", "as they said"
        following = self._at(verb + 1)
        acts = low not in w.BE | w.HAVE | w.DO and w.verb_lemma(low) not in _SAYING
        return acts and following is not None and following.tag in ("DT", "PRP$", "NN", "NNS", "CD", "JJ")

    def _doing(self, at: int) -> bool:
        """Whether "adding the juice" begins at a word, and no other clause follows it."""
        word = self._at(at)
        stop = next((k for k in range(at, len(self.words)) if self.words[k].text == ","), len(self.words))
        return word is not None and word.tag == "VBG" and not any(other.is_verb for other in self.words[at:stop])

    def _from_then(self, at: int) -> bool:
        """Whether "after opening it" or "before the start" follows a length of time."""
        word = self._at(at)
        return word is not None and word.low in ("after", "before") and self._at(at + 1) is not None

    def _lasts(self, at: int, stop: int) -> bool:
        """Whether "for 40 minutes" stands from a word to the end."""
        found = noun_phrase(self.words, at + 1)
        return found is not None and found[1] == stop and found[0].kind() == "duration"

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
                    raise Stop
                tail.append(Phrase("adj", tuple(self.words[n:stop])))
                n = stop
            elif word.text == ",":
                n = self._inserted(subject, tail, n, end, extra)
                if extra and extra[-1].source == "apposition" and extra[-1].subject is not subject:
                    subject, tail = extra[-1].subject, []
            elif word.low == "there":
                n += 1
            elif word.tag == "TO" and (nxt := self._at(n + 1)) is not None and nxt.tag == "VB":
                stop = n + 2  # "plans to resume quarrying"
                while stop < end and not self.words[stop].is_verb and self.words[stop].text != ",":
                    stop += 1
                tail.append(Phrase("adj", tuple(self.words[n:stop])))
                n = stop
            elif word.low in ("who", "which", "that", "where"):
                stop = self._relative_end(n, end)
                tail.append(Phrase("adj", tuple(self.words[n:stop])))
                n = stop
            else:
                raise Stop
        if n >= end:
            raise Stop
        return subject, tuple(tail), n, extra

    def _relative_end(self, at: int, end: int) -> int:
        """Where a relative clause without commas ends: before the next verb with a tense after its own."""
        group, n = None, at + 1
        while n < end and group is None:
            group = verb_group(self.words, n)
            n += 1
        if group is None:
            raise Stop
        n = group[1]
        while n < end and not self.words[n].is_verb:
            n += 1
        if n >= end:
            raise Stop
        return n

    def _inserted(self, subject: NounPhrase, tail, n: int, end: int, extra: list[Clause]) -> int:
        """Between two commas after a subject: an apposition or a relative clause."""
        stop = n + 1
        while stop < end and self.words[stop].text != ",":
            stop += 1
        if stop >= end:
            raise Stop
        inner = self.words[n + 1 : stop]
        if inner and inner[0].tag in ("VBN", "IN"):
            self.complete = False  # "the map, drawn by hand, is kept"; "the chamber, at 214 metres, is"
            return stop + 1
        if inner and inner[0].low in ("who", "which"):
            self._relative(subject, tuple(tail), n + 1, stop, extra)
            return stop + 1
        if inner and inner[0].low in ("where", "whose", "whom"):
            self.complete = False
            return stop + 1
        found = noun_phrase(inner, 0)
        if found is None:
            raise Stop
        other, k = found
        other_tail: list[Phrase] = []
        parser = type(self)(inner)
        while k < len(inner):
            more = parser._preposition(k)
            if more is None or more[0].kind != "pp":
                raise Stop
            other_tail.append(more[0])
            k = more[1]
        is_ = VerbGroup((Word("is", "VBZ", subject.words[-1].end, subject.words[-1].end + 2),), 0, 0)
        if other.is_name and subject.kind() == "number":
            # "one, Ana Volk, voted against it": Ana Volk did; she is not "one".
            extra.append(Clause(other, (), is_, (), source="apposition"))
        elif other.is_name and not subject.is_name:
            # "The treasurer, Ana Volk, reported": Ana Volk is the treasurer.
            extra.append(Clause(other, (), is_, (Phrase("np", subject.words, subject), *tail), source="apposition"))
        else:
            # A copy, so that the caller keeps its subject.
            same = dataclasses.replace(subject)
            extra.append(Clause(same, (), is_, (Phrase("np", other.words, other), *other_tail), source="apposition"))
            extra[-1] = dataclasses.replace(extra[-1], subject=subject)
        return stop + 1

    def _relative(self, subject: NounPhrase, tail, at: int, end: int, extra: list[Clause]) -> None:
        """A clause about a noun phrase: "who ...", "which ..."."""
        inner = type(self)(self.words[at + 1 : end])
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
        except Stop:
            self.complete = False

    def _clauses_after(self, at: int, subject) -> None:
        end = len(self.words)
        while at < end:
            if self.words[at].text == "," or self.words[at].low in ("and", "but", "or"):
                at += 1
                continue
            at, subject = self._clause(at, end, subject)

    def _participle(self, rest: list[Phrase], at: int, end: int, verb: VerbGroup) -> int:
        """ "a festival called the Lantern Fair", "a prize given by the town": joined to the noun phrase before it."""
        stop = at + 1
        while (
            stop < end
            and self.words[stop].text != ","
            and not self._begins_subordinate(stop)
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
        following = self.words[at + 1].low if at + 1 < stop else ""
        if verb.copula and len(rest) == 1 and following == "by" and self.subject is not None:
            self._done_by(at, stop)
        rest[-1] = dataclasses.replace(holder, words=(*holder.words, *self.words[at:stop]))
        return stop

    def _done_by(self, at: int, stop: int) -> None:
        """ "The Velm K3 is a kettle made by Halden Works": the Velm K3 is made by Halden Works."""
        begin = self.words[at].begin
        is_ = Word("is", "VBZ", begin, begin)
        verb = VerbGroup((is_, self.words[at]), 0, 1)
        inner = type(self)(self.words[at + 1 : stop])
        try:
            rest, n = inner._rest(0, len(inner.words), verb)
        except Stop:
            return
        if n == len(inner.words) and not inner.clauses and not self.subject[0].plural:
            self.clauses.append(Clause(*self.subject, verb, joined_places(rest), source="relative"))

    def _apposition(self, rest: Sequence[Phrase], second: NounPhrase) -> NounPhrase | None:
        """Two noun phrases with a comma between them are one thing; returns the one that names it."""
        first = rest[-1].phrase
        is_ = VerbGroup((Word("is", "VBZ", first.words[-1].end, first.words[-1].end + 2),), 0, 0)
        if second.noun in _LABELS or second.words[0].low in _LABELS:
            self._labelled(rest, second, is_)
            return None
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
            return None
        if second.is_name and not first.is_name:
            first, second = second, first
        if not second.pronoun:
            told = Phrase("np", second.words, second)
            self.clauses.append(Clause(first, (), is_, (told,), source="apposition"))
        return first

    def _with_name(self, held: Phrase, second: NounPhrase) -> Phrase:
        """ "to the secretary, Ruprecht Adeyle" as "to the secretary Ruprecht Adeyle", so that the name answers."""
        first = held.phrase
        person = first.noun in ROLES and first.determiner in ("the", "his", "her") and not first.has_name
        if (
            not person
            or not second.is_name
            or len(held.words) > len(first.words) + 1
            or first.core < len(first.words)
        ):
            return held
        words = (*first.words, *second.words)
        phrase = NounPhrase(words, len(words) - 1, len(words))
        before = held.words[: len(held.words) - len(first.words)]
        return dataclasses.replace(held, words=(*before, *words), phrase=phrase)

    def _labelled(self, rest: Sequence[Phrase], second: NounPhrase, is_: VerbGroup) -> None:
        """ "the pouch, part number VP-117": the part number of the pouch is VP-117."""
        begin = next(
            (n for n, word in enumerate(second.words) if any(map(str.isdigit, word.text))), len(second.words)
        )
        label, value = second.words[:begin], second.words[begin:]
        holder = rest[-1].phrase
        if len(rest) > 1 and rest[-1].preposition in LOCATING and rest[-2].phrase is not None:
            before = rest[-2].phrase
            holder = NounPhrase((*before.words, *rest[-1].words), before.head, before.core)
        if not value or not label or not any(map(str.isdigit, text_of(value))) or holder.pronoun:
            self.complete = False
            return
        label = (*label, Word("number", "NN", 0, 0)) if label[-1].low in ("telephone", "phone") else label
        begin = holder.words[0].begin
        words = (Word("the", "DT", begin, begin), *(dataclasses.replace(word, tag="NN") for word in label))
        of = Phrase("pp", spaced((Word("of", "IN", begin, begin), *holder.words)), holder, "of")
        told = NounPhrase(value, len(value) - 1, len(value))
        subject = NounPhrase(spaced(words), len(words) - 1, len(words))
        self.clauses.append(Clause(subject, (of,), is_, (Phrase("label", value, told),), source="label"))

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
        while len(holders) > 1 and holders[-1].kind == "pp" and (
            holders[-1].phrase.kind() in ("date", "time") or holders[-1].preposition in LOCATING
            or (holders[-1].phrase.kind() == "place" and holders[-1].preposition not in ("from", "to", "into"))
        ):  # fmt: skip
            holders.pop()
        holder = holders[-1].phrase if holders else None
        if self.words[n + 1].low == "who" and (named := self._name_before(rest, n)) is not None:
            holder = named
        if holder is None or holder.kind() in ("date", "time"):
            self.complete = False
            return tuple(rest), end
        extra: list[Clause] = []
        self._relative(holder, (), n + 1, end, extra)
        self.clauses += extra
        return tuple(rest), end

    def _name_before(self, rest: list[Phrase], comma: int) -> NounPhrase | None:
        """The name at the end of a relative clause: "a mailbox that belonged to Ana Volk, who left"."""
        begin = comma
        while begin and self.words[begin - 1].tag == "NNP":
            begin -= 1
        last = rest[-1] if rest else None
        inside = last is not None and last.phrase is not None and last.words[-1] is not last.phrase.words[-1]
        if not inside or comma - begin < 2:
            return None
        return NounPhrase(tuple(self.words[begin:comma]), comma - begin - 1, comma - begin)

    def _where(self, rest: list[Phrase], n: int, end: int) -> tuple[tuple[Phrase, ...], int]:
        """ ", where she ...": a clause of its own at the place named last."""
        place = next((phrase for phrase in reversed(rest) if phrase.kind == "pp"), None)
        inner = type(self)(self.words[n + 2 : end])
        found = inner.read()
        self.complete &= found.complete
        if place is not None and place.preposition not in LOCATING:  # "from Dorne Prints, where he worked"
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
