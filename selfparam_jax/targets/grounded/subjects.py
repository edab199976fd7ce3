"""Questions about the subject of a clause: who or what does it, and what it is made of."""

import dataclasses
from collections.abc import Iterator

from selfparam_jax.targets.grounded.clauses import Clause
from selfparam_jax.targets.grounded.composer import Draft, worded
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.links import LinkAsker
from selfparam_jax.targets.grounded.phrases import ROLES, NounPhrase, text_of, type_noun
from selfparam_jax.targets.grounded.rendering import (
    are_people,
    has_pronoun,
    lower,
    mark,
    parts_and_materials,
    synonyms,
    verb_text,
)

_DEEDS = WORDS["deeds"]
_DECIDERS = WORDS["deciders"]


class SubjectAsker(LinkAsker):
    """Asks who or what."""

    def _about_subject(self, clause: Clause) -> Iterator[Draft]:
        subject = clause.subject
        if subject is None or subject.pronoun or (clause.verb.chain and subject.text.lower() == "it"):
            return
        if clause.source == "label":
            return
        if not clause.rest and not clause.verb.chain and not clause.verb.passive:
            if (
                clause.verb.words[0].tag == "MD"
                and self._is_person(subject)
                and self._topic.kind in ("event", "group")
            ):
                # "Leander will play": at what the document is about.
                yield Draft(mark(f"Who {verb_text(clause)}"), self._answer(subject), "who", "direct", "subject")
            return
        if clause.verb.copula and any(phrase.kind == "np" for phrase in clause.rest[:1]):
            yield from self._about_copula_subject(clause, subject)
            return
        yield from self._about_tail(clause, subject)
        answer = self._answer(subject)
        kind = self._kind(subject)
        tail = "".join(" " + phrase.text for phrase in clause.tail)
        if kind == "count" and subject.number is not None and subject.words[subject.head].tag == "NN":
            return  # "one ticket costs"
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
        deciders = subject.noun in _DECIDERS and not subject.has_name
        if kind == "person" or are_people(subject) or deciders or (subject.joined and self._is_person(subject)):
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
        dated = [phrase.kind == "pp" and phrase.phrase.kind() == "date" for phrase in clause.rest]
        if clause.verb.copula and fronts[0][0] == "Who" and all(dated):
            return  # "The staff was on 15 April: ..."
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

    def _about_tail(self, clause: Clause, subject: NounPhrase) -> Iterator[Draft]:
        """ "Queues at the Essel terminal reached the car park": where did queues reach it?"""
        if len(clause.tail) != 1 or subject.determiner or not subject.plural or clause.verb.copula:
            return
        phrase = clause.tail[0]
        if phrase.words[0].low in ("totalling", "totaling") and len(phrase.words) == 2 and clause.verb.passive:
            be, done = clause.verb.words[0].text, verb_text(clause).partition(" ")[2]
            for rest in self._rests(clause, None)[:1]:
                question = f"What {'was' if be == 'were' else 'is'} the total of the {subject.noun} {done} {rest}"
                yield Draft(mark(question), phrase.words[1].text, "how much", "direct", "total")
            return
        if phrase.kind != "pp" or phrase.preposition not in ("in", "at", "on") or not phrase.phrase.has_name:
            return
        without = dataclasses.replace(clause, tail=())
        noun = type_noun(phrase.phrase)
        for rest in self._rests(clause, None)[:1]:
            answer = self._answer(phrase.phrase)
            if answer in self._topic.name:
                return
            turned = self._turned(without)
            yield Draft(mark(f"Where {turned} {rest}"), answer, "where", "direct", "tail")
            if noun:
                front = f"{phrase.preposition.capitalize()} which {noun}"
                yield Draft(mark(f"{front} {turned} {rest}"), answer, "where", "named", "tail")

    def _acts(self, clause: Clause) -> bool:
        if self._topic.kind == "product" and clause.subject is not None and self._topic.bare in clause.subject.text:
            return False
        return not clause.verb.passive and not clause.verb.copula and clause.verb.lemma in _DEEDS

    def _about_copula_subject(self, clause: Clause, subject: NounPhrase) -> Iterator[Draft]:
        """ "Ana Volk is the treasurer": who is the treasurer?"""
        complement = clause.rest[0].phrase
        if complement is None or has_pronoun(clause.rest[0].words) or self._whose(complement):
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
            if complement.determiner in ("a", "an"):
                yield Draft(mark(f"What is the occupation of {answer}"), role, "what", "direct", "role")
                return
            for text in (
                f"What is the role of {answer}",
                f"What is {answer}'s position",
                f"Which role does {answer} have",
            ):
                yield Draft(mark(text), role, "what", "direct", "role")

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
                yield from worded(
                    made_of,
                    "what",
                    f"material {n} {part}",
                    direct=f"What is {thing} made of",
                    named=f"What material is {thing} made of",
                    echo=f"{thing} is made of what",
                    indirect=f"Can you tell me what {thing} is made of",
                )
