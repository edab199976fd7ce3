"""Questions about the parts of a clause, and about whom or what they ask.

For each part that can be an answer (the subject, an object, a place, a date, an amount, ...) the question word
follows from its kind, and the clause's own words make the question: "Who chaired the meeting?", "In what year was it
founded?", "The pipe is made of what?". All are drafts; `facts.py` decides which are used.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause, Phrase
from selfparam_jax.targets.grounded.composer import LONGEST_ANSWER, Ask, Composer, Draft
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import ROLES, TIMES, NounPhrase, place_of, text_of, type_noun
from selfparam_jax.targets.grounded.rendering import (
    WHERE,
    active_verb,
    amount,
    are_people,
    has_pronoun,
    is_day,
    lower,
    mark,
    parts_and_materials,
    plural,
    synonyms,
    units,
    verb_text,
)
from selfparam_jax.targets.grounded.words import Word

_YEAR = re.compile(r"1\d{3}|20\d\d|21\d\d")
_UNCLEAR = re.compile(
    r"\bones?\b(?=$|[?,.]| (?:before|after|at|in|on|for|of|while|who|from|to|and)\b)|"
    r"\b(?:he|she|it|they|him|them|we|us|i|(?<!tell )me|my|our|this|these|those|there's|here)\b",
    re.IGNORECASE,
)
# Nouns of phrases such as "in total", "at a time": no answer to anything.
_IDIOMS = WORDS["idioms"]
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
_GIVING = WORDS["giving"]
_DEEDS = WORDS["deeds"]


class Asker(Composer):
    """Makes drafts about clauses of one document."""

    def drafts(self, clause: Clause) -> Iterator[Draft]:
        """All questions about a clause."""
        if not clause.verb.words or self._unclear(clause):
            return
        for draft in self._all(clause):
            if (
                not _UNCLEAR.search(draft.question)
                or draft.question.lower().startswith(("what was it ", "it was "))
                or " was it " in draft.question
            ):
                yield from self._named(draft)

    def _unclear(self, clause: Clause) -> bool:
        subject = clause.subject
        if subject is None:
            return False
        expletive = subject.text.lower() == "it" and bool(clause.verb.chain)
        return (
            subject.pronoun
            and subject.text.lower() != "you"
            and not expletive
            and not subject.text.lower().startswith(("anyone", "everyone"))
        )

    def _all(self, clause: Clause) -> Iterator[Draft]:
        yield from self._about_subject(clause)
        yield from self._about_materials(clause)
        for n, phrase in enumerate(clause.rest):
            if has_pronoun(phrase.words):
                continue
            if phrase.kind == "np" and phrase.phrase is not None:
                yield from self._about_object(clause, n, phrase)
            elif phrase.kind == "pp" and phrase.phrase is not None:
                yield from self._about_preposition(clause, n, phrase)
            elif phrase.kind == "adj" and n == 0 and clause.verb.copula and not clause.there:
                yield from self._about_adjective(clause, phrase.words)
            elif phrase.kind == "sub":
                yield from self._about_subordinate(clause, n, phrase)
            elif phrase.kind == "adv" and phrase.words[0].low in ("once", "twice") and phrase.text[0].islower():
                yield from self._inverted(clause, n, Ask(("How often", "How many times"), phrase.text, "how often"))

    def _about_materials(self, clause: Clause) -> Iterator[Draft]:
        """ "The kettle has a lid of cherry wood and a glass body": what are they made of?"""
        has = clause.verb.copula or clause.verb.lemma == "have"
        if clause.subject is None or clause.subject.pronoun or not has:
            return
        for n, phrase in enumerate(clause.rest):
            owned = phrase.kind == "np" and not clause.verb.copula
            if not owned and not (phrase.kind == "pp" and phrase.preposition == "with"):
                continue
            for part, made_of in parts_and_materials(phrase.words):
                thing = f"the {part} of {self._subject(clause)}"
                for form, question in (
                    ("direct", f"What is {thing} made of"),
                    ("named", f"What material is {thing} made of"),
                    ("echo", f"{thing} is made of what"),
                    ("indirect", f"Can you tell me what {thing} is made of"),
                ):
                    yield Draft(mark(question), made_of, "what", form, f"material {n} {part}")

    def _about_subject(self, clause: Clause) -> Iterator[Draft]:
        subject = clause.subject
        if subject is None or subject.pronoun or (clause.verb.chain and subject.text.lower() == "it"):
            return
        if not clause.rest and not clause.verb.chain and not clause.verb.passive:
            return
        if clause.verb.copula and any(phrase.kind == "np" for phrase in clause.rest[:1]):
            yield from self._about_copula_subject(clause, subject)
            return
        answer = self._answer(subject)
        kind = self._kind(subject)
        tail = "".join(" " + phrase.text for phrase in clause.tail)
        if kind == "count" and subject.number is not None:
            noun = text_of(subject.words[subject.number + 1 :])
            for rest in self._rests(clause, None):
                question = f"How many {noun}{tail} {verb_text(clause)} {rest}"
                answer = lower(text_of(subject.words[: subject.number + 1]), subject.words)
                yield Draft(mark(question), answer, "how many", "direct", "subject")
                yield Draft(
                    mark(f"Can you tell me {question[:1].lower()}{question[1:]}"),
                    answer,
                    "how many",
                    "indirect",
                    "subject",
                )
            return
        if kind in ("date", "time", "money", "measure", "duration", "number"):
            return
        singular = verb_text(clause, singular=subject.plural)
        type_word = type_noun(subject)
        fronts: list[tuple[str, str, str]] = []
        if kind == "person" or are_people(subject) or (subject.joined and self._is_person(subject)):
            fronts.append(("Who", singular, "who"))
            if type_word in ROLES:
                fronts.append((f"Which {type_word}", singular, "who"))
        elif type_word and subject.name:
            fronts.append((f"Which {type_word}", singular, "what"))
            fronts.append(("Who" if kind == "organisation" and not clause.verb.passive else "What", singular, "what"))
        elif (kind == "organisation" and self._acts(clause)) or (subject.is_name and self._acts(clause)):
            fronts.append(("Who", singular, "who"))
            if kind == "organisation" and subject.is_name:
                fronts.append(("Which company", singular, "what"))
        else:
            fronts.append(("What", singular, "what"))
            modified = (
                subject.core - (1 if subject.determiner else 0) > 1 and not subject.has_name and not subject.joined
            )
            counts = bool(subject.determiner) or subject.plural or subject.words[-1].tag == "CD"
            if counts and (modified or (clause.tail and not subject.has_name)):
                noun = lower(subject.words[subject.head].text, subject.words[subject.head : subject.head + 1])
                fronts.insert(0, (f"Which {noun}", verb_text(clause), "what"))
        whole = answer + tail if not subject.has_name and tail else answer
        if (
            clause.verb.copula
            and len(clause.rest) > 1
            and clause.rest[0].text == "responsible"
            and fronts[0][0] == "Who"
        ):
            duty = lower(clause.rest[1].phrase.text, clause.rest[1].phrase.words) if clause.rest[1].phrase else ""
            be = verb_text(clause, singular=True)
            for verb, form in (
                ("takes care of", "synonym"),
                (f"{be} in charge of", "named"),
                ("looks after", "passive"),
            ):
                if duty and clause.rest[1].preposition == "for" and (be == "is" or form == "named"):
                    yield Draft(mark(f"Who {verb} {duty}"), whole, "who", form, "subject")
        for n, (front, verb, kind_of) in enumerate(fronts):
            for rest in self._rests(clause, None):
                if not rest or (clause.verb.copula and len(rest.split()) < 2 and len(clause.rest) > 1):
                    continue
                yield Draft(
                    mark(f"{front} {verb} {rest}"), whole, kind_of, "direct" if n == 0 else "named", "subject"
                )
                if n == 0:
                    yield Draft(
                        mark(f"Can you tell me {front.lower()} {verb} {rest}"), whole, kind_of, "indirect", "subject"
                    )
                    for other in synonyms(clause, singular=subject.plural and verb == singular):
                        yield Draft(mark(f"{front} {other} {rest}"), whole, kind_of, "synonym", "subject")

    def _acts(self, clause: Clause) -> bool:
        if self._topic.kind == "product" and clause.subject is not None and self._topic.bare in clause.subject.text:
            return False
        return not clause.verb.passive and not clause.verb.copula and clause.verb.lemma in _DEEDS

    def _about_copula_subject(self, clause: Clause, subject: NounPhrase) -> Iterator[Draft]:
        """ "Ana Volk is the treasurer": who is the treasurer?"""
        complement = clause.rest[0].phrase
        if complement is None or has_pronoun(clause.rest[0].words):
            return
        if self._kind(complement) in ("money", "measure", "count", "date", "time", "duration", "number") or (
            complement.name and complement.noun not in ROLES
        ):
            return
        if complement.determiner in ("a", "an") and not self._is_person(subject) and subject.is_name is False:
            return
        if complement.plural and not subject.plural:
            return
        who = "Who" if self._is_person(subject) or complement.noun in ROLES else "What"
        verb = verb_text(clause, singular=True)
        text = text_of(clause.rest[0].words)
        tail = " ".join(phrase.text for phrase in clause.rest[1:])
        answer = self._answer(subject)
        if answer == self._topic.bare and complement.determiner in ("a", "an"):
            return
        question = f"{who} {verb} {lower(text, clause.rest[0].words)} {tail}"
        yield Draft(mark(question), answer, "who" if who == "Who" else "what", "direct", "subject")
        yield Draft(
            mark(f"Can you tell me {question[:1].lower() + question[1:]}"),
            answer,
            who.lower(),
            "indirect",
            "subject",
        )
        if who == "Who" and complement.determiner == "the":
            yield Draft(
                mark(f"What is the name of {lower(text, clause.rest[0].words)} {tail}"),
                answer,
                "who",
                "named",
                "subject",
            )
        if self._is_person(subject) and complement.noun in ROLES and clause.verb.lemma in ("be", "remain", "become"):
            role = self._answer(complement)
            for text in (
                f"What is the role of {answer}",
                f"What is {answer}'s position",
                f"Which role does {answer} have",
            ):
                yield Draft(mark(text), role, "what", "direct", "role")

    def _about_object(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found = phrase.phrase
        kind = self._kind(found)
        answer = self._answer(found)
        if found.pronoun or found.text.lower() in ("nothing", "place", "part"):
            return
        if answer == self._topic.bare and clause.order:
            return
        if found.determiner in ("every", "each") and (kind in ("date", "duration") or found.noun in TIMES):
            yield from self._inverted(
                clause, n, Ask(("How often", "When"), lower(found.text, found.words), "how often")
            )
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
        elif len(answer.split()) <= LONGEST_ANSWER:
            if "call" in (clause.verb.lemma, "") or clause.verb.lemma == "name":
                if clause.verb.passive:
                    yield from self._inverted(clause, n, Ask(("What",), answer, "what"))
                    subject = self._subject(clause)
                    yield Draft(mark(f"What is the name of {subject}"), answer, "what", "named", f"np {n}")
                return
            yield from self._inverted(
                clause, n, Ask(self._what(found, kind), answer, "who" if kind == "person" else "what")
            )

    def _what(self, found: NounPhrase, kind: str) -> tuple[str, ...]:
        type_word = type_noun(found)
        if kind == "person" or are_people(found):
            return ("Who",)
        if type_word and found.name:
            return (f"Which {type_word}", f"What {type_word}")
        modified = found.core - (1 if found.determiner else 0) > 1 and not found.joined and not found.has_name
        if modified and (found.plural or found.determiner):
            return ("What", f"Which {found.words[found.head].text}")
        return ("What",)

    def _counted(self, clause: Clause, n: int, found: NounPhrase, number: int) -> Iterator[Draft]:
        end = next(
            (k for k in range(number + 1, len(found.words)) if found.words[k].low in ("and", "or", ",")),
            len(found.words),
        )
        noun = text_of(found.words[number + 1 : end])
        if not noun:
            return
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
        if clause.verb.lemma in ("remain", "become"):
            return
        others = [phrase.text for phrase in clause.rest[1:]]
        if person and found.name:
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
            yield Draft(mark(f"What is {self._subject(clause)}'s occupation"), answer, "what", "direct", "complement")
            front = ("What",)
        elif type_noun(found) and found.name:
            front = (f"Which {type_noun(found)}", "What")
        else:
            front = ("What",)
        if not self._is_person(subject):
            yield from self._inverted(clause, n, Ask(front, answer, "what"), keep_rest=not others, echo=False)

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

    def _about_preposition(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        kind, answer = self._kind(found), self._answer(found)
        if (
            found.pronoun
            or len(answer.split()) > LONGEST_ANSWER
            or prep in ("instead of", "because of", "like", "than", "as", "per", "without", "against", "according to")
        ):
            return
        if n and clause.verb.copula and clause.rest[0].kind == "np" and not clause.there:
            # "Her office is room 214 in the east wing": where is her office?
            if n == 1 and self._place(phrase) and prep != "from":
                front = f"Where {self._turned(clause)}"
                yield Draft(mark(front), lower(phrase.text, phrase.words), "where", "direct", f"pp {n}")
            return
        if clause.there and clause.rest and clause.rest[0].kind == "np" and kind not in ("place",):
            return
        if (
            prep == "by"
            and clause.verb.passive
            and kind not in ("date", "time", "money", "duration", "measure", "count")
        ):
            yield from self._about_agent(clause, n, found, kind, answer)
        elif kind in ("date", "time"):
            if found.noun in ("time", "times") or found.determiner in (
                "a",
                "an",
                "all",
                "any",
                "some",
                "this",
                "last",
                "next",
            ):
                return
            yield from self._inverted(clause, n, self._when(found, prep, kind))
        elif kind == "money":
            yield from self._about_amount(clause, n, phrase)
        elif kind == "duration" and found.number is not None:
            unit = units(found)
            if prep == "for":
                asks = Ask(("How long", f"For how many {unit}"), found.text, "how long")
            else:
                asks = Ask((f"{prep.capitalize()} how many {unit}",), found.text, "how long")
            yield from self._inverted(clause, n, asks)
        elif kind in ("measure", "count") and found.number is not None and not found.joined:
            unit = units(found)
            lead = "" if prep == "up to" else prep.capitalize() + " "
            front = f"{lead}how many {unit}"
            if prep == "up to":
                yield from self._inverted(
                    clause,
                    n,
                    Ask(
                        (front[:1].upper() + front[1:],),
                        "up to " + text_of(found.words[: found.number + 1]),
                        "how many",
                    ),
                )
            else:
                yield from self._inverted(clause, n, Ask((front,), text_of(found.words[: found.core]), "how many"))
        elif found.noun in _IDIOMS or (
            not found.determiner
            and found.words[found.head].tag == "NN"
            and found.core == 1
            and prep in ("in", "at", "on", "for", "by")
        ):
            if prep in ("for", "by") and found.noun not in _IDIOMS:
                yield from self._with_preposition(clause, n, phrase, kind, answer)
        elif prep == "from" and any(word.low == "to" for word in found.words) and not found.has_name:
            to = next(k for k, word in enumerate(found.words) if word.low == "to")
            fronts = (("From where", text_of(found.words[:to]), ""), ("Where", text_of(found.words[to + 1 :]), "to"))
            for front, text, stranded in fronts:
                for draft in self._inverted(clause, n, Ask((front,), text, "where", stranded), echo=False):
                    yield dataclasses.replace(draft, about=f"{draft.about} {front}")
        elif prep == "to" and clause.verb.lemma in _GIVING:
            who = kind in ("person", "organisation") or are_people(found)
            yield from self._inverted(
                clause, n, Ask(("Who" if who else "What",), answer, "who" if who else "what", "to")
            )
        elif prep in ("after", "before", "during"):
            text = lower(phrase.text, phrase.words)
            yield from self._inverted(clause, n, Ask(("When",), text, "when"))
        elif self._place(phrase):
            yield from self._about_place(clause, n, phrase, answer)
        elif prep in ("in", "at", "on") and kind == "thing" and not found.has_name:
            return
        else:
            yield from self._with_preposition(clause, n, phrase, kind, answer)

    def _place(self, phrase: Phrase) -> bool:
        """Whether a phrase says where."""
        found, prep = phrase.phrase, phrase.preposition
        if phrase.kind != "pp" or found is None:
            return False
        kind = self._kind(found)
        if self._topic.kind == "product" and self._answer(found) == self._topic.bare:
            return False
        return (kind in ("place", "organisation") and prep in WHERE) or (
            prep in ("in", "near", "at") and found.has_name and kind == "thing" and found.is_name
        )

    def _about_place(self, clause: Clause, n: int, phrase: Phrase, answer: str) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        if (found.name or place_of(found)) and prep in ("in", "at", "on", "to", "near"):
            said = answer
        elif prep == "from":
            said = lower(found.text, found.words)
        else:
            said = lower(phrase.text, phrase.words)
        fronts = ["Where"]
        type_word = type_noun(found)
        if type_word and (found.name or place_of(found)):
            fronts.append(f"{prep.capitalize()} which {type_word}")
        if prep == "from":
            fronts = ["From where", *fronts[1:]]
        if prep in ("to", "into"):
            fronts[0] = "Where"
        if not (found.name and type_word and prep == "to"):
            yield from self._inverted(clause, n, Ask(tuple(fronts), said, "where"))
        else:
            yield from self._inverted(clause, n, Ask(tuple(fronts[::-1]), said, "where"))

    def _with_preposition(self, clause: Clause, n: int, phrase: Phrase, kind: str, answer: str) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        type_word = type_noun(found)
        if kind == "person" or are_people(found):
            yield from self._inverted(clause, n, Ask(("Who",), answer, "who", prep))
            yield from self._inverted(clause, n, Ask((f"{prep.capitalize()} whom",), answer, "who"), echo=False)
        elif type_word and found.name:
            yield from self._inverted(clause, n, Ask((f"{prep.capitalize()} which {type_word}",), answer, "what"))
            yield from self._inverted(clause, n, Ask((f"Which {type_word}",), answer, "what", prep), echo=False)
        else:
            yield from self._inverted(clause, n, Ask(("What",), answer, "what", prep))
            if clause.verb.passive and prep == "of" and clause.verb.lemma == "make":
                subject = self._subject(clause)
                be = clause.verb.words[clause.verb.aux or 0].text
                yield Draft(mark(f"What material {be} {subject} made of"), answer, "what", "synonym", f"pp {n}")
                yield Draft(mark(f"Of what {be} {subject} made"), answer, "what", "synonym", f"pp {n}")

    def _about_amount(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        to = next((k for k, word in enumerate(found.words) if word.low == "to"), None)
        if prep == "from" and to is not None:
            unit = text_of(found.words[to + 2 :])
            new, old = text_of(found.words[to + 1 :]), text_of(found.words[:to])
            old = old if any(word.tag != "CD" for word in found.words[:to]) else f"{old} {unit}"
            for draft in self._inverted(clause, n, Ask(("To how much", "To what amount"), new, "how much")):
                yield dataclasses.replace(draft, about=f"pp {n} to")
            subject = self._subject(clause)
            if subject.startswith("the ") and clause.verb.lemma in (
                "rise",
                "increase",
                "go",
                "fall",
                "drop",
                "change",
            ):
                yield Draft(mark(f"What is the new {subject[4:]}"), new, "how much", "synonym", f"pp {n} to")
                yield Draft(mark(f"How much is the new {subject[4:]}"), new, "how much", "named", f"pp {n} to")
                yield Draft(mark(f"What was the old {subject[4:]}"), old, "how much", "synonym", f"pp {n} from")
            for draft in self._inverted(clause, n, Ask(("From how much", "From what amount"), old, "how much")):
                yield dataclasses.replace(draft, about=f"pp {n} from")
            return
        fronts = ("For how much money", "For what price") if prep == "for" else (f"{prep.capitalize()} how much",)
        yield from self._inverted(clause, n, Ask(fronts, amount(found), "how much"))

    def _when(self, found: NounPhrase, prep: str, kind: str) -> Ask:
        text = found.text
        if prep in ("since", "until", "till", "by", "before", "after", "from") and not (
            prep == "from" and " to " in text
        ):
            fronts = {"since": ("Since when",), "until": ("Until when",), "till": ("Until when",), "by": ("By when",)}
            front = fronts.get(prep, (f"{prep.capitalize()} when",) if prep in ("from",) else ("When",))
            answer = text if prep in fronts or prep == "from" else f"{prep} {text}"
            if prep == "since" and _YEAR.fullmatch(text):
                front = (*front, "Since what year")
            if prep == "by" and any(word.tag == "CD" for word in found.words):
                front = (*front, "By what date")
            return Ask(front, answer, "when")
        if prep in ("between", "during", "from", "within"):
            return Ask(("When",), f"{prep} {text}", "when")
        if kind == "time":
            return Ask(("At what time", "When"), text, "when")
        if _YEAR.fullmatch(text):
            return Ask(("When", "In what year", "In which year"), text, "when")
        months = [word for word in found.words if word.text in w.MONTHS]
        numbers = [word for word in found.words if word.tag == "CD"]
        if months and not numbers:
            return Ask(("When", "In which month"), text, "when")
        if months and len(numbers) == 1 and _YEAR.fullmatch(numbers[0].text):
            return Ask(("When", "In which month"), text, "when")
        if months:
            return Ask(("When", "On what date", "On which day"), text, "when")
        if any(word.text.rstrip("s") in w.DAYS for word in found.words):
            return Ask(("When", "On which day"), text, "when")
        return Ask(("When",), f"{prep} {text}" if found.determiner and prep in ("in", "on", "at") else text, "when")

    def _about_agent(self, clause: Clause, n: int, found: NounPhrase, kind: str, answer: str) -> Iterator[Draft]:
        """Who did it, of a passive clause: also turned into the active."""
        type_word = type_noun(found)
        person = kind in ("person", "organisation", "place") or found.has_name or are_people(found)
        about = f"pp {n}"
        front = "Who" if person else "What"
        kinds = "who" if person else "what"
        done = active_verb(clause)
        subject = self._subject(clause)
        others = [rest for rest in self._rests(clause, n)]
        for rest in others:
            yield Draft(mark(f"{front} {done} {subject} {rest}"), answer, kinds, "direct", about)
            if type_word:
                yield Draft(mark(f"Which {type_word} {done} {subject} {rest}"), answer, kinds, "named", about)
            elif kind == "organisation":
                yield Draft(mark(f"Which company {done} {subject} {rest}"), answer, kinds, "named", about)
        for lead in (["By whom"] if person else ["By what"]) + ([f"By which {type_word}"] if type_word else []):
            yield from self._inverted(clause, n, Ask((lead,), answer, kinds), form="passive")
        for other in synonyms(clause, active=True):
            for rest in others:
                yield Draft(mark(f"{front} {other} {subject} {rest}"), answer, kinds, "synonym", about)

    def _about_subordinate(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        if any(word.low in w.PRONOUNS for word in phrase.words[1:]):
            return
        text = lower(phrase.text, phrase.words)
        if phrase.preposition == "because" and len(phrase.words) <= 14:
            yield from self._inverted(clause, n, Ask(("Why",), text, "why"), echo=False)
        elif phrase.preposition in ("when", "before", "after", "until", "while") and len(phrase.words) <= 9:
            fronts = ("Until when",) if phrase.preposition == "until" else ("When",)
            yield from self._inverted(clause, n, Ask(fronts, text, "when"), echo=False)
