"""What follows a verb, up to the next clause: objects, phrases with a preposition, adverbs, what hangs on it."""

import dataclasses

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.attached import OPENERS, Attached, Stop
from selfparam_jax.targets.grounded.clauses import Clause, Phrase
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import DURATIONS, TIMES, NounPhrase, noun_phrase
from selfparam_jax.targets.grounded.verb_groups import VerbGroup, verb_group
from selfparam_jax.targets.grounded.words import Word

_SAYING = WORDS["saying"]
# Verbs after whose object it is said how that is or becomes.
_LEAVING = ("keep", "leave", "have", "get", "make", "find")
_ASKING = ("ask", "tell", "remind", "advise")
# Words before "of" and "to" that make one preposition with it.
_DOUBLE = ("out", "because", "instead", "up", "close", "next", "due", "according", "opposite", "ahead", "prior")
_PARTICLES = ("off", "out", "up", "down", "away", "back", "on", "over", "in")
_RELATIVE_TAGS = ("WDT", "WP", "WRB", "IN", "DT", "WP$")
_LATER = ("early", "late", "later", "ago")

# Where the next part begins, and whether the clause is over; None where the words are no such part.
_Step = tuple[int, bool] | None


class Complements(Attached):
    """The part of the parser that reads what follows a verb."""

    total: Word | None
    said: bool

    def _rest(self, at: int, end: int, verb: VerbGroup) -> tuple[tuple[Phrase, ...], int]:
        """What follows a verb, up to the next clause, and where that begins."""
        rest: list[Phrase] = []
        n, over = at, False
        while n < end and not over:
            n, over = self._part(rest, n, end, verb)
        return tuple(rest), n

    def _part(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> tuple[int, bool]:
        word = self.words[n]
        if word.text == ",":
            return self._after_comma(rest, n, end)
        if word.tag == "CC":
            return self._after_and(rest, n, end, verb)
        for reader in (self._clause_part, self._preposition_part, self._joined_part, self._adverb_part,
                       self._noun_part):  # fmt: skip
            step = reader(rest, n, end, verb)
            if step is not None:
                return step
        raise Stop

    def _after_comma(self, rest: list[Phrase], n: int, end: int) -> tuple[int, bool]:
        nxt = self._at(n + 1)
        if nxt is None:
            return n + 1, True
        if nxt.low in ("which", "who"):
            if rest and rest[-1].kind in ("reason", "sub"):
                self.complete = False  # about something in there
                return end, True
            return self._relative_of_last(rest, n, end)[1], True
        if nxt.low == "where":
            return self._where(rest, n, end)[1], True
        if nxt.low == "of" and (third := self._at(n + 2)) is not None and third.low in ("which", "whom"):
            self.complete = False
            return end, True
        if nxt.low == "such" and self._exemplifies(n + 1):
            self.complete = False  # "fruit, such as apples": examples
            return next((k for k in range(n + 1, end) if self.words[k].text == ","), end), False
        if nxt.low == "not" and (but := self._but_after_not(n + 1, end)):
            self.complete = False
            return but + 1, False
        if (nxt.low == "so" or nxt.low in OPENERS) and self._begins_subordinate(n + 1):
            phrase, n = self._subordinate(n + 1, end, stops_at_comma=True)
            rest.append(phrase)
            return n, False
        if nxt.low in ("and", "but", "or", "so", "then", "yet"):
            return n + 1, True
        if nxt.tag == "VBG":
            self.complete = False
            return end, True
        if nxt.low == "as":
            self.complete = False  # "as it always has been"
            return next((k for k in range(n + 1, end) if self.words[k].text == ","), end), False
        if nxt.tag in ("IN", "TO") and (found := self._preposition(n + 1)) is not None:
            self._add_later(rest, n, found[0])
            return found[1], False
        if self._opens_clause(n + 1) or verb_group(self.words, n + 1) is not None:
            return n + 1, True
        return self._second_name(rest, n, end)

    def _add_later(self, rest: list[Phrase], comma: int, phrase: Phrase) -> None:
        """A phrase after a comma: "because it was switched off on 28 May, during the move" belongs to the reason."""
        if rest and rest[-1].kind == "reason" and phrase.kind == "pp":
            whole = (*rest[-1].words, self.words[comma], *phrase.words)
            rest[-1] = dataclasses.replace(rest[-1], words=whole)
            self.inside = phrase
        else:
            rest.append(phrase)

    def _but_after_not(self, n: int, end: int) -> int:
        """Where "but" stands in "not for lack of ability but because ..."; 0 if it does not."""
        stop = next((k for k in range(n, end) if self.words[k].text == ","), end)
        but = next((k for k in range(n, stop) if self.words[k].low == "but"), 0)
        opens = but and (self._begins_subordinate(but + 1) or self.words[min(but + 1, end - 1)].tag in ("IN", "TO"))
        return but if opens else 0

    def _second_name(self, rest: list[Phrase], n: int, end: int) -> tuple[int, bool]:
        """A noun phrase after a comma: what the one before is; else words that add little."""
        found = noun_phrase(self.words, n + 1)
        held = rest[-1] if rest and rest[-1].phrase is not None else None
        if held is None and rest and rest[-1].kind == "reason" and self.inside is not None:
            held = self.inside
        listed = found is not None and found[0].joined and any(word.text == "," for word in found[0].words)
        if listed and rest and held is rest[-1]:
            rest.pop()  # "by Ana Volk, a baker, and her brother": one of two is no answer
            self.complete = False
            return found[1], False
        if found and held is not None and self._ends(found[1], end):
            before = [held] if held is not rest[-1] else rest
            named = self._apposition(before, found[0])
            if held is rest[-1] and named is not None:
                rest[-1] = self._with_name(held, found[0])
            n = found[1] + (self._at(found[1]) is not None and self.words[found[1]].text == ",")
            if held is rest[-1] and self._names_another(n):
                rest.pop()
                self.complete = False
                return end, True
            if named is not None and (nxt := self._at(n)) is not None and nxt.low in ("who", "which"):
                extra: list[Clause] = []  # "the owner, a Mrs Quill, who wants 340 pounds"
                self._relative(named, (), n, end, extra)
                self.clauses += extra
                return end, True
            return n, False
        # "46 in total", "three days early": words after a comma that add little
        following = [each.low for each in self.words[n + 2 : n + 4]]
        nxt = self.words[n + 1]
        if nxt.tag == "CD" and (following == ["in", "total"] or following[:1] == ["altogether"]):
            self.total = nxt
        else:
            self.complete = False
        while n + 1 < end and self.words[n + 1].text != ",":
            n += 1
        return n + 1, False

    def _names_another(self, n: int) -> bool:
        """Whether "and" with a noun phrase, and no other clause, follows."""
        word = self._at(n)
        if word is None or word.low not in ("and", "or") or self._opens_clause(n + 1):
            return False
        return noun_phrase(self.words, n + 1) is not None

    def _after_and(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> tuple[int, bool]:
        word, nxt = self.words[n], self._at(n + 1)
        opens = self._opens_clause(n + 1) or verb_group(self.words, n + 1) is not None
        if opens or (nxt is not None and nxt.tag in ("VBN", "VB", "VBD")):
            return n + 1, True
        if nxt is not None and nxt.tag in ("IN", "TO") and (found := self._preposition(n + 1)) is not None:
            if joined := _joined(rest[-1] if rest else None, word, found[0]):
                rest[-1] = joined
            else:
                rest.append(Phrase("adv", (word, *found[0].words)))
            return found[1], False
        # "and" before what cannot be joined: another clause with a front ("and in 2025 she ...")
        if self._front_then_clause(n + 1, end):
            return n + 1, True
        if self._left_out(rest, n + 1, end, verb):
            return end, True
        raise Stop

    def _left_out(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> bool:
        """ "is 48 pounds for a full plot and 27 for a half plot": a clause whose subject and verb are left out."""
        first = noun_phrase(self.words, n, joins=False)
        if first is not None and (other := self._at(first[1])) is not None and other.low == "else":
            first = first[0], first[1] + 1
        second = self._preposition(first[1]) if first is not None and first[1] < end else None
        if second is None or second[0].kind != "pp" or (second[1] < end and self.words[second[1]].text != ","):
            return False
        shape = [(phrase.kind, phrase.preposition) for phrase in rest]
        self.complete &= second[1] == end
        if shape == [("np", ""), ("pp", second[0].preposition)] and self.subject is not None:
            if rest[0].phrase.kind() != first[0].kind():
                return False
            again = (Phrase("np", first[0].words, first[0]), second[0])
            self.clauses.append(Clause(*self.subject, verb, again))
            return True
        # "is covered for five years and everything else for two": of another subject, which is not asked about
        self.complete = False
        return shape[-1:] == [("pp", second[0].preposition)]

    def _clause_part(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> _Step:
        """What begins a clause: "so", "that", "if", "who", "to"."""
        word, nxt = self.words[n], self._at(n + 1)
        if word.low in ("so", "then") and self._opens_clause(n + 1):
            return n + 1, True
        if verb.lemma == "mean" and not rest and self._opens_clause(n + (word.low == "that")):
            rest.append(Phrase("that", tuple(self.words[n + (word.low == "that") : end])))
            return end, True
        if word.low == "that" and verb.lemma in _SAYING and self._opens_clause(n + 1):
            # What is said counts; that it was said does not.
            self._clauses(n + 1, end)
            self.said = True
            return end, True
        if word.low == "such" and self._exemplifies(n) and rest:
            stop = next((k for k in range(n, end) if self.words[k].text == ","), end)
            rest[-1] = dataclasses.replace(rest[-1], words=(*rest[-1].words, *self.words[n:stop]))
            return stop, False  # "common work such as clearing ditches"
        if self._begins_subordinate(n) or (word.low == "even" and self._begins_subordinate(n + 1)):
            phrase, n = self._subordinate(n, end, stops_at_comma=True)
            rest.append(phrase)
            return n, False
        if word.low in ("who", "which", "that", "where", "whose") and word.tag in _RELATIVE_TAGS:
            if not rest or rest[-1].phrase is None or word.low == "whose":
                raise Stop
            stop = next((k for k in range(n, end) if self.words[k].text == ","), end)
            if verb.lemma in _ASKING:  # "Ask people who need a lift to ring Dorrit"
                stop = next((k for k in range(n, stop) if self.words[k].tag == "TO"), stop)
            rest[-1] = dataclasses.replace(rest[-1], words=(*rest[-1].words, *self.words[n:stop]))
            return stop, False
        if word.tag == "TO" and nxt is not None and nxt.tag == "VB":
            stop = self._infinitive_end(n, end)
            lasting = [k for k in range(n + 2, stop - 2) if self.words[k].low == "for" and self._lasts(k, stop)]
            stop = lasting[0] if lasting else stop  # "leave it to cool for 40 minutes"
            rest.append(Phrase("inf", tuple(self.words[n:stop])))
            return stop, False
        return None

    def _preposition_part(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> _Step:
        """ "in the hall", "after opening it"."""
        word, nxt = self.words[n], self._at(n + 1)
        if word.tag in ("IN", "TO") and (found := self._preposition(n)) is not None:
            if self.inside is not None and rest and rest[-1].kind == "reason":  # "during the move to the new office"
                rest[-1] = dataclasses.replace(rest[-1], words=(*rest[-1].words, *found[0].words))
                self.inside = found[0]
            else:
                rest.append(found[0])
            return found[1], False
        if word.low in ("after", "before", "without", "by", "while") and self._doing(n + 1):
            stop = next((k for k in range(n, end) if self.words[k].text == ","), end)
            rest.append(Phrase("sub", tuple(self.words[n:stop]), preposition=word.low))
            return stop, False
        if word.tag == "IN" and nxt is not None and nxt.tag == "RB":
            stop = n + 2
            while stop < end and self.words[stop].tag == "RB":
                stop += 1
            rest.append(Phrase("adv", tuple(self.words[n:stop])))
            return stop, False
        return None

    def _joined_part(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> _Step:
        """Participles and the like that belong to the noun phrase before them."""
        word, nxt = self.words[n], self._at(n + 1)
        leaving = verb.lemma in _LEAVING and word.low not in ("called", "named")
        if leaving and word.tag in ("VBN", "JJ") and rest and rest[-1].kind == "np":
            rest.append(Phrase("adj", (word,)))  # "keep the lid shut"
            return n + 1, False
        still = word.low == "still" and nxt is not None and nxt.tag == "VBN"
        held = bool(rest) and rest[-1].kind in ("np", "pp") and rest[-1].phrase is not None
        if (word.tag in ("VBN", "VBG") or still) and held:
            return self._participle(rest, n + still, end, verb), False
        return None

    def _adverb_part(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> _Step:
        word = self.words[n]
        if word.tag == "IN" and word.low in _PARTICLES:
            rest.append(Phrase("adv", (word,)))
            return n + 1, False
        adverb = word.low in w.ADVERBS and word.tag not in ("DT", "CD")
        if word.tag not in ("RB", "RBR", "RBS", "RP", "EX") and not adverb:
            return None
        found = noun_phrase(self.words, n + 1, joins=False) if word.low in ("once", "twice") else None
        stop = found[1] if found and found[0].noun in TIMES else n + 1
        rest.append(Phrase("adv", tuple(self.words[n:stop])))
        return stop, False

    def _noun_part(self, rest: list[Phrase], n: int, end: int, verb: VerbGroup) -> _Step:
        word = self.words[n]
        found = noun_phrase(self.words, n)
        if found is not None and found[0].noun in DURATIONS and self._from_then(found[1]):
            stop = next((k for k in range(n, end) if self.words[k].text == ","), end)
            rest.append(Phrase("sub", tuple(self.words[n:stop]), preposition="after"))
            return stop, False  # "six weeks after opening it"
        if found is not None:
            stop = self._length_end(found[0], found[1], bool(rest))
            rest.append(Phrase("np", tuple(self.words[n:stop]), found[0]))
            return stop, False
        if word.low == "no" and [each.tag for each in self.words[n + 1 : n + 3]] == ["JJR", "IN"]:
            stop = next((k for k in range(n, end) if self.words[k].text == "," or self.words[k].tag == "CC"), end)
            rest.append(Phrase("adj", tuple(self.words[n:stop])))
            return stop, False  # "no larger than 2 metres"
        if word.tag in ("JJ", "JJR", "JJS", "VBN"):
            stop = n + 1
            while stop < end and (self.words[stop].tag == "JJ" or self._and_adjective(stop, end)):
                stop += 1
            if self.words[stop - 1].low in w.ADVERBS | {"hot", "cold", "heavy", "high", "late", "small", "large"}:
                stop = self._measured_end(n, stop)
            rest.append(Phrase("adj", tuple(self.words[n:stop])))
            return stop, False
        return None

    def _measured_end(self, n: int, stop: int) -> int:
        """ "too hot to touch" is one part."""
        following = self.words[stop : stop + 2]
        too = n and self.words[n - 1].low == "too"
        return stop + 2 if too and [word.tag for word in following] == ["TO", "VB"] else stop

    def _and_adjective(self, n: int, end: int) -> bool:
        joined = self.words[n].tag == "CC" and n + 1 < end and self.words[n + 1].tag == "JJ"
        return joined and noun_phrase(self.words, n + 1) is None

    def _length_end(self, phrase: NounPhrase, stop: int, after_another: bool) -> int:
        """Where "three days later", "two weeks in advance" end."""
        timed = phrase.noun in DURATIONS and after_another
        if phrase.noun != "times" and not timed:
            return stop
        ahead = [word.low for word in self.words[stop : stop + 2]]
        if ahead[:1] and ahead[0] in _LATER:
            return stop + 1
        return stop + 2 if ahead == ["in", "advance"] else stop

    def _exemplifies(self, n: int) -> bool:
        """Whether "such as" stands at a word."""
        return self.words[n].low == "such" and (nxt := self._at(n + 1)) is not None and nxt.low == "as"

    def _front_then_clause(self, at: int, end: int) -> bool:
        try:
            _, n = self._front(at, end)
        except Stop:
            return False
        return n > at and self._opens_clause(n)

    def _ends(self, n: int, end: int) -> bool:
        return n >= end or self.words[n].text == ","

    def _preposition(self, at: int) -> tuple[Phrase, int] | None:
        """A preposition and its noun phrase; "from A to B" is one phrase."""
        n = at
        word, following = self.words[n], self._at(n + 1)
        double = following is not None and following.low in ("of", "to") and word.low in _DOUBLE
        joining = word.low in w.SUBORDINATORS and not (following is not None and following.low == "of")
        if (word.tag not in ("IN", "TO") and not double) or joining:
            return None
        n += 1 + double
        prep_end = n
        found = noun_phrase(self.words, n)
        if found is None:
            word = self._at(n)
            if word is not None and word.tag in ("JJ", "JJS", "RBS"):  # "in total", "at least"
                return Phrase("adv", tuple(self.words[at : n + 1])), n + 1
            return None
        phrase, n = found
        preposition = " ".join(each.low for each in self.words[at:prep_end])
        following = self._at(n)
        until = preposition == "from" and following is not None and following.low in ("to", "until", "till")
        if until and (second := noun_phrase(self.words, n + 1)):
            taken = tuple(self.words[prep_end : second[1]])
            head = n + 1 - prep_end + second[0].head
            phrase, n = NounPhrase(taken, head, len(taken)), second[1]
        return Phrase("pp", tuple(self.words[at:n]), phrase, preposition), n


def _joined(first: Phrase | None, word: Word, second: Phrase) -> Phrase | None:
    """ "before 9 am and after 6 pm" as one phrase; None where the two do not say the same kind of thing."""
    if first is None or first.kind != "pp" or second.kind != "pp" or _rough(first) != _rough(second):
        return None
    inner = (*first.phrase.words, word, *second.words)
    whole = NounPhrase(inner, first.phrase.head, first.phrase.core, joined=True)
    return dataclasses.replace(first, words=(*first.words, word, *second.words), phrase=whole, double=True)


def _rough(phrase: Phrase) -> str:
    kind = phrase.phrase.kind()
    return "when" if kind in ("date", "time") else "where" if kind in ("place", "organisation") else kind
