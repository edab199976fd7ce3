"""The clauses of a sentence: subject, verb group and what follows them.

Only plain patterns are read: joined clauses ("A did this, and B did that"; "A did this and did that"), relative
clauses, "that" after a verb of saying, adverbial clauses, appositions, orders. What does not fit is left out and said
so: no question is made from a sentence that was not understood.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.attached import Stop, joined_places
from selfparam_jax.targets.grounded.clauses import Clause, Phrase, Reading, spaced
from selfparam_jax.targets.grounded.complements import Complements
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import TIMES, NounPhrase, noun_phrase
from selfparam_jax.targets.grounded.verb_groups import VerbGroup, verb_group
from selfparam_jax.targets.grounded.words import Word

_SAYING = WORDS["saying"]
_NO_PLACE = frozenset(("there", "here"))
# Verbs after whose object it is said how that is or becomes.
_LEAVING = ("keep", "leave", "have", "get", "make", "find")
_ASKING = ("ask", "tell", "remind", "advise")


def read_sentence(words: Sequence[Word]) -> Reading:
    """Reads a sentence; words in brackets are left out of its clauses."""
    words, complete = _without_brackets(list(words))
    while words and words[-1].text in (".", "!", "?", '"', "”"):
        if words[-1].text == "?":
            return Reading((), False)
        words = words[:-1]
    words = [word for word in words if word.text not in ('"', "“", "”", "‘")]
    words = [
        word for n, word in enumerate(words) if not (word.low.endswith(("self", "selves")) and _is_noun(words, n))
    ]
    clauses: list[Clause] = []
    for part, reason in _parts(words):
        found = _Parser(part).read()
        read = list(found.clauses)
        if reason and read and read[0].source == "main":
            why = Phrase("reason", tuple(reason), preposition="because")
            read[0] = dataclasses.replace(read[0], rest=(*read[0].rest, why))
        clauses += read
        complete &= found.complete
    return Reading(tuple(clauses), complete)


def _parts(words: Sequence[Word]) -> Iterator[tuple[Sequence[Word], Sequence[Word]]]:
    """The parts of a sentence that are read on their own, each with the one before if that is its reason ("so")."""
    begin, reason = 0, ()
    for n in range(len(words) + 1):
        if n < len(words) and words[n].text not in (";", ":", "–", "—") and not _draws_conclusion(words, n):
            continue
        part = words[begin:n]
        if part and part[-1].text == ",":
            part = part[:-1]
        if part:
            yield part, reason
        concludes = n < len(words) and words[n].low == "so"
        contrast = next((k for k, word in enumerate(part) if word.low == "but"), -1)
        reason = part[contrast + 1 :] if concludes else ()
        begin = n + 1


def _draws_conclusion(words: Sequence[Word], n: int) -> bool:
    """Whether "so" begins what follows from the words before it, and is not that of "so that", "so much"."""
    if words[n].low != "so" or n < 3 or n + 2 >= len(words) or words[n + 1].low == "that":
        return False
    if words[n - 1].low in w.BE | w.DO | {"and", "say", "says", "think", "hope"}:
        return False
    parser = _Parser(words)
    following = words[n + 1]
    return following.low in ("please", "never", "do") or following.tag == "VB" or parser._opens_clause(n + 1)


def _is_noun(words: Sequence[Word], n: int) -> bool:
    """Whether a noun stands before a word ("the weight itself is sent")."""
    return n > 0 and words[n - 1].tag in ("NN", "NNS", "NNP") and n + 1 < len(words) and words[n + 1].is_verb


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


class _Parser(Complements):
    """Reads a part of a sentence from left to right."""

    def __init__(self, words: Sequence[Word]):
        self.words = list(words)
        self.clauses: list[Clause] = []
        self.complete = True
        self.subject: tuple[NounPhrase, tuple[Phrase, ...]] | None = None  # of the clause that is being read
        self.total: Word | None = None  # how many a subject is, said after a comma
        self.inside: Phrase | None = None  # the last phrase of a reason
        self.said = False  # the clause that is being read only says that another is so

    def read(self) -> Reading:
        try:
            self._clauses(0, len(self.words))
        except Stop:
            self.complete = False
        return Reading(tuple(self._with_deeds()), self.complete)

    def _with_deeds(self) -> Iterator[Clause]:
        """The clauses; each order with what is to be done."""
        for n, clause in enumerate(self.clauses):
            if not clause.order:
                yield clause
                continue
            begin, end = clause.verb.words[0].begin, _deed_end(clause)
            for other in self.clauses[n + 1 :]:
                after = [phrase for phrase in self.clauses[n].rest if _conditional(phrase)]
                if not other.order or any(phrase.words[0].begin > begin for phrase in after):
                    break
                end = _deed_end(other)
            deed = tuple(word for word in self.words if begin <= word.begin < end)
            yield dataclasses.replace(clause, deed=deed)

    def _at(self, n: int) -> Word | None:
        return self.words[n] if n < len(self.words) else None

    def _clauses(self, at: int, end: int) -> None:
        subject: tuple[NounPhrase, tuple[Phrase, ...]] | None = None
        while at < end:
            word = self.words[at]
            if word.text == "," or word.low in ("and", "but", "or", "so", "then", "yet", "however", "therefore"):
                at += 1
                continue
            if word.low == "please":  # nobody's deed but the reader's
                at, subject = at + 1, None
                continue
            at, subject = self._clause(at, end, subject)

    def _clause(self, at: int, end: int, previous) -> tuple[int, tuple | None]:
        """Reads one clause; a verb at its beginning shares the subject of the one before, or is an order."""
        last = self.clauses[-1] if self.clauses else None
        if previous is not None and last is not None and self._shares(at, last):
            verb, n = self._shared_verb(at, last)
            rest, n = self._rest(n, end, verb)
            timed = all(phrase.kind == "pp" and phrase.phrase.kind() in ("date", "time") for phrase in rest)
            told = timed and verb.passive and last.verb.passive
            if not last.rest and told and self.clauses[-1] is last:  # "was restored and checked at 10:02"
                self.clauses[-1] = dataclasses.replace(last, rest=self._resolved(joined_places(rest)))
            self._add(Clause(previous[0], previous[1], verb, rest, last.order))
            return n, previous
        if last is not None and last.order and (self.words[at].tag == "VB" or self.words[at].low == "have"):
            return self._joined_order(at, end, last)
        front, n = self._front(at, end)
        word = self._at(n)
        if word is not None and word.low == "please":
            n += 1
            word = self._at(n)
        if word is None:
            raise Stop
        if word.tag == "EX" or (
            word.low == "there" and (nxt := self._at(n + 1)) is not None and nxt.low in w.BE | w.MODALS
        ):
            found = verb_group(self.words, n + 1)
            if found is None:
                raise Stop
            rest, n = self._rest(found[1], end, found[0])
            self._add(Clause(None, (), found[0], (*rest, *front), there=True))
            return n, None
        if word.tag == "VB" or word.low in ("never", "always") or (word.low == "do" and word.tag == "VBP"):
            return self._order(n, end, front)
        found = noun_phrase(self.words, n)
        if found is None:
            raise Stop
        subject, n = found
        subject, tail, n, extra = self._subject(subject, n, end)
        if subject.text.lower() == "it" and self._stands_for_subject(previous, last):
            subject, tail = previous
        group = verb_group(self.words, n)
        if group is None:
            raise Stop
        verb, n = group
        if verb.words[verb.main].tag == "VB" and verb.aux is None and not subject.plural:
            raise Stop
        self.total = None
        self.subject = (subject, tail)
        rest, n = self._rest(n, end, verb)
        self._add(Clause(subject, tail, verb, (*rest, *front)))
        if self.total is not None and subject.words[subject.head].tag == "NNS":
            # "All houses are affected, 46 in total": 46 houses are.
            counted = NounPhrase((self.total, *subject.words[subject.head :]), 1, subject.core - subject.head + 1)
            self.clauses.append(Clause(counted, tail, verb, (*rest, *front), source="apposition"))
        self.clauses += extra
        return n, (subject, tail)

    def _stands_for_subject(self, previous, last: Clause | None) -> bool:
        """Whether "it" is the subject of the clause before: "The hall is cheaper, but it can't be used"."""
        if previous is None or last is None or last.subject is not previous[0]:
            return False
        subject = previous[0]
        return (
            not subject.plural
            and not subject.pronoun
            and subject.kind() in ("thing", "place", "organisation")
            and all(phrase.kind in ("adj", "adv") for phrase in last.rest)
        )

    def _order(self, at: int, end: int, front: tuple[Phrase, ...]) -> tuple[int, tuple | None]:
        group = verb_group(self.words, at)
        if group is not None and group[0].lemma == "let":
            return self._letting(group[1], end, front)
        if group is None or group[0].lemma == "make":
            raise Stop
        verb, n = group
        if verb.words[0].low in w.DO and verb.words[-1].tag != "VB":
            raise Stop
        rest, n = self._rest(n, end, verb)
        self._add(Clause(None, (), verb, (*rest, *front), order=True))
        return n, None

    def _joined_order(self, at: int, end: int, last: Clause) -> tuple[int, tuple | None]:
        """An order after another, under the condition that stands in front of both."""
        condition = tuple(
            phrase for phrase in last.rest
            if phrase.kind == "sub" and phrase.words[-1].end < last.verb.words[0].begin
        )  # fmt: skip
        made = self._order(at, end, condition)
        self.clauses[-1] = dataclasses.replace(self.clauses[-1], source="joined")
        return made

    def _letting(self, at: int, end: int, front: tuple[Phrase, ...]) -> tuple[int, tuple | None]:
        """ "Let the cold tap run for five minutes": the cold tap should run for five minutes."""
        found = noun_phrase(self.words, at, joins=False)
        if found is None or found[1] >= end or self.words[found[1]].tag not in ("VB", "NN", "JJ", "VBP"):
            raise Stop
        subject, n = found
        if not w.may_be(self.words[n].low, "VB"):
            raise Stop
        if subject.text.lower() == "it":
            subject = self._resolved((Phrase("np", subject.words, subject),))[0].phrase
        should = Word("should", "MD", self.words[n].begin, self.words[n].begin)
        verb = VerbGroup((should, dataclasses.replace(self.words[n], tag="VB")), 0, 1)
        rest, n = self._rest(n + 1, end, verb)
        self._add(Clause(subject, (), verb, (*rest, *front)))
        return n, None

    def _add(self, clause: Clause) -> None:
        clause = dataclasses.replace(clause, rest=self._resolved(joined_places(clause.rest)))
        if clause.verb.lemma == "marry" and not clause.verb.passive:
            clause = dataclasses.replace(clause, rest=_married(clause.rest))
        if self.said:
            self.said = False
        else:
            self.clauses.append(clause)

    def _resolved(self, rest: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
        """ "borrow ten books and keep them": them is the books of the clause before."""
        last = self.clauses[-1] if self.clauses else None
        made = []
        for phrase in rest:
            pronoun = phrase.phrase.text.lower() if phrase.kind in ("np", "pp") and phrase.phrase is not None else ""
            if pronoun in ("them", "it") and (last is not None or rest[-1].kind == "sub"):
                several = pronoun == "them"
                tags = ("NNS",) if several else ("NN", "NNP")
                told = [clause for clause in self.clauses if clause.source != "apposition"]
                if any(each.kind in ("sub", "reason") for clause in told for each in clause.rest):
                    told = []  # "it" may be something in there
                held = [each for clause in told for each in clause.rest
                        if each.phrase is not None and not each.phrase.pronoun
                        and each.phrase.words[each.phrase.head].tag in tags
                        and each.phrase.kind() in ("thing", "count", "place")]  # fmt: skip
                found = [each.phrase for each in held if each.kind == "np"] or [each.phrase for each in held]
                if several and not found:
                    found = _asked_in_front(rest)
                if len({each.noun for each in found}) == 1:
                    before = phrase.words[: len(phrase.words) - 1]  # "against" of "against it"
                    if found[0].is_name or (found[0].has_name and found[0].determiner):
                        words = spaced((*before, *found[0].words)) if before else found[0].words
                        made.append(dataclasses.replace(phrase, words=words, phrase=found[0]))
                        continue
                    kept = [word for word in found[0].words[: found[0].head + 1] if word.tag not in ("DT", "PRP$")]
                    the = Word("the", "DT", kept[0].begin - 1, kept[0].begin - 1)
                    words = (the, *kept)
                    whole = spaced((*before, *words)) if before else words
                    phrase = dataclasses.replace(phrase, words=whole, phrase=NounPhrase(words, len(kept), len(words)))
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
        main = last.verb.words[last.verb.main].tag
        if word.tag == "VB" and main in ("VBP", "VB") and last.subject is not None and last.subject.plural:
            return True  # "Visitors bring broken things and mend them": no order
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
                raise Stop
            return made[0], at + made[1] - len(before)
        made = verb_group(self.words, at)
        if made is None:
            raise Stop
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
            even = word.low == "even" and self._begins_subordinate(n + 1)
            if even or (self._begins_subordinate(n) and (word.low != "so" or n > at)):
                phrase, n = self._subordinate(n, end, stops_at_comma=True)
                front.append(phrase)
                continue
            comma = next((k for k in range(n, end) if self.words[k].text == ","), end)
            if word.tag == "TO" and n == at and comma < end and self.words[n + 1].tag == "VB":
                front.append(Phrase("sub", tuple(self.words[n:comma]), preposition="to"))  # "To reset the lock, ..."
                n = comma
                continue
            if word.low in ("about", "around", "over", "under", "up") and noun_phrase(self.words, n) is not None:
                break  # "About 12,000 visitors come"
            if word.tag in ("IN", "TO") and word.low not in w.SUBORDINATORS:
                found = self._preposition(n)
                if found is None:
                    raise Stop
                n = self._with_second_name(front, found[0], found[1], end)
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

    def _with_second_name(self, front: list[Phrase], phrase: Phrase, n: int, end: int) -> int:
        """Reads "a teacher" in "With her friend Ana Volk, a teacher, she climbed it"; the main clause follows."""
        front.append(phrase)
        found = noun_phrase(self.words, n + 1, joins=False) if n < end and self.words[n].text == "," else None
        if found is None or phrase.phrase is None or found[1] >= end or self.words[found[1]].text != ",":
            return n
        if found[0].is_name == phrase.phrase.has_name or not self._opens_clause(found[1] + 1):
            return n
        holder = phrase.phrase
        if holder.pronoun and (name := holder.named_person()) is not None:
            holder = name
        self._apposition([dataclasses.replace(phrase, phrase=holder)], found[0])
        return found[1] + 1

    def _opens_clause(self, at: int) -> bool:
        """Whether a noun phrase and a verb group begin here."""
        found = noun_phrase(self.words, at)
        if found is None:
            return False
        n = found[1]
        if (word := self._at(n)) is not None and word.low == "there":
            n += 1
        if (word := self._at(n)) is not None and word.text == "," and (inner := noun_phrase(self.words, n + 1)):
            closed = (word := self._at(inner[1])) is not None and word.text == ","
            n = inner[1] + 1 if closed and inner[0].is_name else n  # "and one, Tobias Quill, voted"
        while (word := self._at(n)) is not None and word.tag in ("IN",):
            inner = self._preposition(n)
            if inner is None:
                return False
            n = inner[1]
        return verb_group(self.words, n) is not None


def _asked_in_front(rest: Sequence[Phrase]) -> list[NounPhrase]:
    """ "When younger cavers asked her for advice, she told them to": the subject of the clause in front."""
    front = rest[-1]
    if front.kind != "sub" or not front.words[0].text[:1].isupper():
        return []
    found = noun_phrase(front.words, 1)
    others = [word for word in front.words[1:] if word.tag == "NNS"]
    return [found[0]] if found is not None and found[0].plural and not found[0].pronoun and len(others) == 1 else []


def _married(rest: Sequence[Phrase]) -> tuple[Phrase, ...]:
    """ "She married late, to the boatbuilder": she married the boatbuilder."""
    made = [
        Phrase("np", phrase.words[1:], phrase.phrase)
        if phrase.preposition == "to" and phrase.kind == "pp"
        else phrase
        for phrase in rest
    ]
    return tuple(sorted(made, key=lambda phrase: phrase.kind != "np"))


def _conditional(phrase: Phrase) -> bool:
    """Whether a phrase says when or why something is to be done, and is no part of what is to be done."""
    return phrase.kind == "reason" or (
        phrase.kind == "sub"
        and phrase.preposition not in ("until", "as")
        and not phrase.preposition.startswith("even")
    )


def _deed_end(clause: Clause) -> int:
    """Where an order ends, without its conditions and reasons, and what stands in front of it."""
    begin = clause.verb.words[0].begin
    parts = [phrase.words[-1].end for phrase in clause.rest if not _conditional(phrase)]
    return max([(clause.verb.chain or clause.verb.words)[-1].end, *(end for end in parts if end > begin)])
