"""Questions about the parts of a clause, and about whom or what they ask.

For each part that can be an answer (the subject, an object, a place, a date, an amount, ...) the question word
follows from its kind, and the clause's own words make the question: "Who chaired the meeting?", "In what year was it
founded?", "The pipe is made of what?". All are drafts; `facts.py` decides which are used.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.circumstances import CircumstanceAsker
from selfparam_jax.targets.grounded.clauses import Clause, Phrase
from selfparam_jax.targets.grounded.composer import LONGEST_ANSWER, Ask, Draft, without_article
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.links import WEATHER
from selfparam_jax.targets.grounded.phrases import ROLES, TIMES, NounPhrase, text_of, type_noun
from selfparam_jax.targets.grounded.rendering import (
    amount,
    are_people,
    has_pronoun,
    is_day,
    lower,
    mark,
    plural,
    units,
    verb_text,
)
from selfparam_jax.targets.grounded.words import Word

_UNCLEAR = re.compile(
    r"\bones?\b(?=$|[?,.]| (?:before|after|at|in|on|for|of|while|who|from|to|and)\b)|"
    r"\b(?:he|she|it|they|him|them|we|us|i|(?<!tell )me|my|our|this|these|those|there's|here)\b|"
    r"\b(?:yours|mine|theirs|ours)\b",
    re.IGNORECASE,
)
_SOMEBODY = re.compile(r"\b(?:he|she|they|we|us|him|them|yours|mine)\b", re.IGNORECASE)
_COLOURS = WORDS["colours"]
_SIZES = {
    "long": "length",
    "high": "height",
    "tall": "height",
    "wide": "width",
    "deep": "depth",
    "old": "age",
    "thick": "thickness",
    "heavy": "weight",
}
_DECIDERS = WORDS["deciders"]
_CONTACTING, _TELLING = WORDS["contacting"], WORDS["telling"]


class Asker(CircumstanceAsker):
    """Makes drafts about clauses of one document."""

    def drafts(self, clause: Clause, you: str = "you") -> Iterator[Draft]:
        """All questions about a clause; `you` is whom orders in it are for."""
        self._you = you
        if not clause.verb.words or self._unclear(clause):
            return
        for draft in self._all(clause):
            yield from self.checked(draft)

    def checked(self, draft: Draft) -> Iterator[Draft]:
        """The draft, named after the topic where it names nothing; nothing where a word in it is unclear."""
        links = ("reason", "sub", "that", "question")
        if _SOMEBODY.search(draft.answer) and not draft.about.startswith(links):
            return
        if re.search(r"(?i)\bthe \w+ one\b", draft.question) or re.fullmatch(r"\w+ ones?", draft.answer):
            return  # "the red one"
        if re.match(r"(?:this|these|that|those) [a-z]", draft.answer):
            return  # "this change"
        if (
            not _UNCLEAR.search(draft.question)
            or draft.question.lower().startswith(("what was it ", "it was "))
            or " was it " in draft.question
        ):
            yield from self._named(draft)

    def _unclear(self, clause: Clause) -> bool:
        subject = clause.subject
        if self._owned_by_another(clause):
            return True
        if subject is None:
            return False
        expletive = subject.text.lower() == "it" and bool(clause.verb.chain)
        return (
            subject.pronoun
            and subject.text.lower() != "you"
            and not expletive
            and not subject.text.lower().startswith(("anyone", "everyone"))
        )

    def _owned_by_another(self, clause: Clause) -> bool:
        """Whether "their" and the like in a clause belong to somebody whom it does not name."""
        subject = clause.subject
        parts = [phrase for phrase in clause.rest if phrase.kind in ("np", "pp", "inf", "adj")]
        if clause.verb.lemma in _TELLING and parts and parts[0].kind == "np" and parts[0].phrase.plural:
            parts = [phrase for phrase in parts if phrase.kind != "inf"]  # "told the cavers to count their steps"
        named = [phrase for phrase in parts if phrase.phrase is not None and phrase.phrase.joined]
        parts = [phrase for phrase in parts if phrase not in named or phrase.phrase.words[0].tag != "NNP"]
        owners = {word.low for phrase in parts for word in phrase.words} & {"their", "his", "her", "its"}
        if not owners:
            return False
        if subject is None or subject.pronoun:
            return True
        several = subject.plural or subject.determiner in ("each", "every") or subject.noun in _DECIDERS
        person = self._is_person(subject) or are_people(subject)
        return (
            ("their" in owners and (not several or subject.noun in _DECIDERS))
            or (bool(owners & {"his", "her"}) and not person)
            or ("its" in owners and (person or subject.plural))
        )

    def _all(self, clause: Clause) -> Iterator[Draft]:
        if clause.source == "reason":  # all else about it was asked where it stands
            yield from self._about_reason(clause, len(clause.rest) - 1, clause.rest[-1])
            return
        yield from self._about_subject(clause)
        yield from self._about_materials(clause)
        yield from self._what_somebody_does(clause)
        for n, phrase in enumerate(clause.rest):
            if phrase.kind == "reason":
                yield from self._about_reason(clause, n, phrase)
            elif phrase.kind == "that":
                yield from self._about_meaning(clause, n, phrase)
            elif phrase.kind == "sub":
                yield from self._about_subordinate(clause, n, phrase)
            elif phrase.kind == "label":
                yield from self._about_label(clause, phrase)
            if has_pronoun(phrase.words):
                continue
            if phrase.kind == "np" and phrase.phrase is not None:
                yield from self._about_object(clause, n, phrase)
            elif phrase.kind == "pp" and phrase.phrase is not None:
                yield from self._about_preposition(clause, n, phrase)
            elif phrase.kind == "adj" and n == 0 and clause.verb.copula and not clause.there:
                yield from self._about_adjective(clause, phrase.words)
            elif phrase.kind == "adv" and phrase.words[0].low in ("once", "twice") and phrase.text[0].islower():
                yield from self._inverted(clause, n, Ask(("How often", "How many times"), phrase.text, "how often"))

    def _about_object(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found = phrase.phrase
        kind = self._kind(found)
        answer = self._answer(found)
        if found.pronoun or found.text.lower() in ("nothing", "place", "part"):
            return
        if found.determiner in ("this", "that", "these", "those") and kind not in ("date", "time"):
            return
        if answer == self._topic.bare and clause.order:
            return
        described = len(phrase.words) > len(found.words) and phrase.words[len(found.words)].tag != "JJ"
        described &= phrase.words[-1].low not in ("advance", "early", "late", "later", "ago")
        if described and kind in ("thing", "place", "person") and not found.name:
            answer = self._described(phrase)  # "damage caused by salt water"
        if found.determiner in ("every", "each") and (kind in ("date", "duration", "count") or found.noun in TIMES):
            yield from self._inverted(
                clause, n, Ask(("How often", "When"), lower(found.text, found.words), "how often")
            )
        elif found.noun == "times" and clause.verb.copula:
            return  # "four times faster"
        elif found.noun == "times" and found.number is not None:
            yield from self._inverted(
                clause, n, Ask(("How many times", "How often"), text_of(phrase.words), "how often")
            )
        elif clause.verb.copula and clause.subject is not None and clause.subject.noun in ("date", "day", "time"):
            yield from self._inverted(clause, n, Ask(("What",), found.text, "when"))
        elif kind in ("date", "time") and (found.determiner in ("this", "last", "next", "") or is_day(found)):
            if (is_day(found) or kind == "time") and found.determiner not in ("this", "last", "next"):
                yield from self._inverted(clause, n, Ask(("When",), found.text, "when"))
        elif clause.there:
            yield from self._about_there(clause, n, phrase)
        elif phrase.words[-1].low in ("advance", "early", "late", "later") and not clause.verb.copula:
            end = text_of(phrase.words[len(found.words) :])
            fronts = (f"How long {end}", f"How many {plural(found.noun)} {end}")
            yield from self._inverted(clause, n, Ask(fronts, found.text, "how long"), echo=False)
        elif kind == "money":
            fronts = (
                ("How much",)
                if clause.verb.lemma in ("cost", "pay", "spend", "be", "charge", "earn", "owe", "save")
                else ("How much money", "How much")
            )
            yield from self._inverted(clause, n, Ask(fronts, amount(found), "how much"))
            yield from self._price(clause, n, found)
        elif kind in ("measure", "duration") and found.number is not None:
            after = clause.rest[n + 1] if n + 1 < len(clause.rest) else None
            if clause.verb.copula and after is not None and after.text.lower() in _SIZES:
                front = f"How {after.text.lower()} {self._turned(clause)}"
                yield Draft(mark(front), found.text, "how many", "direct", f"np {n}")
                subject = self._subject(clause)
                size = _SIZES[after.text.lower()]
                yield Draft(mark(f"What is the {size} of {subject}"), found.text, "how many", "named", f"np {n}")
                yield Draft(
                    mark(f"Can you tell me how {after.text.lower()} {subject} {verb_text(clause)}"),
                    found.text,
                    "how many",
                    "indirect",
                    f"np {n}",
                )
                return
            unit = units(found)
            fronts = [f"How many {unit}"]
            if clause.verb.lemma in ("weigh", "hold", "cost", "need", "use"):
                fronts.append("How much")
            if kind == "duration":
                fronts.append("How long") if clause.verb.lemma in (
                    "last",
                    "take",
                    "stay",
                    "live",
                    "work",
                    "be",
                    "run",
                    "wait",
                ) else None
            yield from self._inverted(
                clause,
                n,
                Ask(
                    tuple(fronts),
                    text_of(found.words[: found.core]),
                    "how long" if kind == "duration" else "how many",
                ),
            )
        elif (found.number is not None and not found.joined and kind == "count") or (
            found.joined and found.words[0].tag == "CD"
        ):
            if clause.verb.copula and not clause.there:
                return
            number = found.number if found.number is not None else 0
            yield from self._counted(clause, n, found, number)
        elif clause.verb.copula or clause.verb.lemma in ("remain", "become"):
            yield from self._about_complement(clause, n, phrase, kind, answer)
        elif clause.verb.lemma in ("stay", "keep") and not found.determiner and not clause.order:
            return  # "stays hot"
        elif len(answer.split()) <= LONGEST_ANSWER:
            if (clause.verb.lemma == "call" and not clause.order) or clause.verb.lemma == "name":
                if clause.verb.passive:
                    yield from self._inverted(clause, n, Ask(("What",), answer, "what"))
                    subject = self._subject(clause)
                    yield Draft(mark(f"What is the name of {subject}"), answer, "what", "named", f"np {n}")
                return
            yield from self._inverted(
                clause,
                n,
                Ask(
                    self._what(found, kind, clause.verb.lemma in _CONTACTING, self._told(clause, n)),
                    answer,
                    "who" if kind == "person" else "what",
                ),
                # "What should you repeat?" has as many answers as there are orders to repeat something.
                rests=self._telling(clause, n) if clause.order else None,
            )

    def _described(self, phrase: Phrase) -> str:
        """A noun phrase as an answer, with the clause that belongs to it."""
        words = without_article(phrase.words)
        return lower(text_of(words), words)

    def _told(self, clause: Clause, n: int) -> bool:
        """Whether a part is whom somebody tells to do something."""
        following = clause.rest[n + 1].kind if n + 1 < len(clause.rest) else ""
        return clause.verb.lemma in _TELLING and following == "inf"

    def _what(self, found: NounPhrase, kind: str, contacted: bool = False, told: bool = False) -> tuple[str, ...]:
        type_word = type_noun(found)
        if kind == "person" or are_people(found) or told:
            return ("Who",)
        if contacted and found.is_name:
            return ("Who", "Whom")
        if type_word and found.name:
            return (f"Which {type_word}", f"What {type_word}")
        return ("What",)

    def _counted(self, clause: Clause, n: int, found: NounPhrase, number: int) -> Iterator[Draft]:
        end = next(
            (k for k in range(number + 1, len(found.words)) if found.words[k].low in ("and", "or", ",")),
            len(found.words),
        )
        noun = text_of(found.words[number + 1 : end])
        if not noun:
            return
        head = found.words[found.head]
        if head.tag == "NN" and number < found.head < end:  # "one tablet"
            noun = noun.replace(head.text, plural(head.text), 1)
        answer = text_of(found.words[: number + 1]).removeprefix("the ")
        yield from self._inverted(clause, n, Ask((f"How many {noun}",), answer, "how many"))
        if clause.verb.lemma == "have" and clause.subject is not None:
            subject = self._subject(clause)
            yield Draft(mark(f"What is the number of {noun} of {subject}"), answer, "how many", "named", f"np {n}")
            if not self._is_person(clause.subject):
                yield Draft(mark(f"How many {noun} are there in {subject}"), answer, "how many", "synonym", f"np {n}")
        if end < len(found.words) - 2:
            second = next((k for k in range(end, len(found.words)) if found.words[k].tag == "CD"), None)
            if second is not None and second + 1 < len(found.words):
                other = text_of(found.words[second + 1 :])
                if found.words[-1].tag == "NN":
                    other = other.removesuffix(found.words[-1].text) + plural(found.words[-1].text)
                for draft in self._inverted(
                    clause, n, Ask((f"How many {other}",), found.words[second].text, "how many")
                ):
                    yield dataclasses.replace(draft, about=f"np {n} second")

    def _price(self, clause: Clause, n: int, found: NounPhrase) -> Iterator[Draft]:
        subject = self._subject(clause)
        single = clause.subject is not None and not clause.subject.plural
        if clause.verb.lemma == "cost" and len(clause.verb.words) <= 2 and single:
            tense = (
                "will be"
                if clause.verb.words[0].low == "will"
                else "was"
                if clause.verb.words[0].tag == "VBD"
                else "is"
            )
            front = f"What {tense.split()[0]} the price of {subject}" + (" be" if tense == "will be" else "")
            yield Draft(mark(front), amount(found), "how much", "synonym", f"np {n}")
            yield Draft(
                mark(
                    f"What does {subject} cost"
                    if tense == "is"
                    else f"What {'will' if tense == 'will be' else 'did'} {subject} cost"
                ),
                amount(found),
                "how much",
                "direct",
                f"np {n}",
            )

    def _about_complement(self, clause: Clause, n: int, phrase: Phrase, kind: str, answer: str) -> Iterator[Draft]:
        found, subject = phrase.phrase, clause.subject
        if n or subject is None or subject.pronoun:
            return
        if found.words[-1].low in _COLOURS:
            yield from self._about_adjective(clause, found.words)
            return
        person = self._is_person(found)
        if clause.verb.lemma in ("remain", "become") or self._whose(subject):
            return
        others = [phrase.text for phrase in clause.rest[1:]]
        if person and found.name and not any(word.tag == "POS" for word in found.words):
            name = self._answer(found)
            front = f"Who {self._turned(clause)}"
            yield Draft(mark(front), name, "who", "direct", "complement")
            yield Draft(mark(f"What is the name of {self._subject(clause)}"), name, "who", "named", "complement")
            yield Draft(
                mark(f"Can you tell me who {self._subject(clause)} {verb_text(clause)}"),
                name,
                "who",
                "indirect",
                "complement",
            )
            if subject.noun in ROLES:
                role = re.sub(r"^(the|a|an) ", "", self._subject(clause))
                for text in (f"What is {name}'s role", f"Which position does {name} have"):
                    yield Draft(mark(text), role, "what", "direct", "role")
            return
        if len(answer.split()) > LONGEST_ANSWER or found.determiner in ("this", "that"):
            return
        if (
            found.words[found.head].tag == "NN"
            and found.head + 1 < found.core
            and found.words[found.head + 1].tag == "CD"
        ):
            front: tuple[str, ...] = (f"Which {found.noun}", "What")
        elif self._is_person(subject) and found.noun in ROLES:
            if found.determiner in ("a", "an"):
                text = f"What is {self._subject(clause)}'s occupation"
                yield Draft(mark(text), answer, "what", "direct", "complement")
            front = ("What",)
        elif type_noun(found) and found.name:
            front = (f"Which {type_noun(found)}", "What")
        else:
            front = ("What",)
        if not self._is_person(subject):
            yield from self._inverted(
                clause, n, Ask(front, answer, "what"), rests=[""] if others else None, echo=False
            )

    def _about_there(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found = phrase.phrase
        rest = " ".join(lower(other.text, other.words) for k, other in enumerate(clause.rest) if k != n)
        verb = clause.verb.words[0].text
        if not rest and found.number is None:
            return
        if found.number is not None:
            noun = text_of(found.words[found.number + 1 :])
            yield Draft(
                mark(f"How many {noun} {verb} there {rest}"),
                text_of(found.words[: found.number + 1]),
                "how many",
                "direct",
                f"np {n}",
            )
            return
        singular = {"are": "is", "were": "was"}.get(verb, verb)
        yield Draft(mark(f"What {singular} there {rest}"), self._answer(found), "what", "direct", f"np {n}")

    def _about_adjective(self, clause: Clause, words: Sequence[Word]) -> Iterator[Draft]:
        """ "The flag is orange and white": what colour is it?"""
        if clause.subject is None or len(clause.rest) > 1:
            return
        if words[0].low == "no" and len(words) > 3 and (size := w.forms(words[1].low).get("ADJ")):
            front = f"How {size[0]} {self._turned(clause)}"  # "no larger than 2 metres"
            yield Draft(mark(front), text_of(words), "how many", "direct", "adj 0")
            return
        plain = [word.low for word in words if word.low not in ("and", ",")]
        if (
            plain
            and all(low in _COLOURS | {"dark", "light", "bright", "pale"} for low in plain)
            and plain[-1] in _COLOURS
        ):
            for noun in ("colour", "color"):
                yield Draft(mark(f"What {noun} {self._turned(clause)}"), text_of(words), "what", "direct", "adj 0")
            yield Draft(
                mark(f"What is the colour of {self._subject(clause)}"), text_of(words), "what", "named", "adj 0"
            )

    def _about_subordinate(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        yield from self._about_condition(clause, n, phrase)
        if any(word.low in w.PRONOUNS - {"you"} for word in phrase.words[1:]) and not WEATHER.search(phrase.text):
            return
        text = lower(phrase.text, phrase.words)
        if phrase.preposition == "if" and clause.order and len(phrase.words) <= 12:
            yield from self._inverted(clause, n, Ask(("When",), text, "when"), echo=False)
        elif phrase.preposition in ("when", "before", "after", "until", "while") and len(phrase.words) <= 9:
            fronts = ("Until when",) if phrase.preposition == "until" else ("When",)
            yield from self._inverted(clause, n, Ask(fronts, text, "when"), echo=False)
