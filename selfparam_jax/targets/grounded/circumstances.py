"""Questions about phrases with a preposition: where, when, for how long, by whom, for how much."""

import dataclasses
import re
from collections.abc import Iterator

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause, Phrase
from selfparam_jax.targets.grounded.composer import LONGEST_ANSWER, Ask, Draft, without_article
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.links import reason_text
from selfparam_jax.targets.grounded.phrases import DURATIONS, TIMES, NounPhrase, place_of, text_of, type_noun
from selfparam_jax.targets.grounded.rendering import (
    WHERE,
    active_verb,
    amount,
    are_people,
    lower,
    mark,
    synonyms,
    units,
)
from selfparam_jax.targets.grounded.subjects import SubjectAsker

_YEAR = re.compile(r"1\d{3}|20\d\d|21\d\d")
# Nouns of phrases such as "in total", "at a time": no answer to anything.
_IDIOMS = WORDS["idioms"]
_GIVING, EVENTS = WORDS["giving"], WORDS["events"]
_OPINING, _MOVING = WORDS["opining"], WORDS["moving"]
_NUMBERED = re.compile(r"(?:extension )?\d[\d ]*")
_RISING = ("rise", "increase", "go", "fall", "drop", "change", "climb", "sink", "grow")
_CONTACTING = WORDS["contacting"]
_SURE_PLACES, _TOWN_ENDINGS = WORDS["sure_places"], WORDS["town_endings"]
# "by post", "in writing": how something is done.
_MEANS = {"by": WORDS["means"], "in": frozenset(("writing", "cash", "person")), "on": frozenset(("foot",))}


class CircumstanceAsker(SubjectAsker):
    """Asks where, when, by whom and the like."""

    def _about_preposition(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        kind, answer = self._kind(found), self._answer(found)
        if prep in ("because of", "due to") and not found.pronoun and not clause.there:
            text = reason_text(phrase.words)
            yield from self._inverted(clause, n, Ask(("Why",), text, "why"), echo=False, rests=self._whole(clause, n))
            return
        plain = len(found.words) < 3 and all(word.tag == "NN" for word in found.words)
        if found.noun in _MEANS.get(prep, ()) and plain:
            yield from self._inverted(clause, n, Ask(("How",), phrase.text.lower(), "how"), echo=False)
            return
        if (person := found.named_person()) is not None and found.determiner in ("his", "her"):
            found, kind = person, "person"  # "with her friend Tobiah Wrenfield"
            phrase, answer = dataclasses.replace(phrase, phrase=found), found.text
        if phrase.double and kind not in ("date", "time") and not self._place(phrase):
            return
        if (
            found.pronoun
            or len(answer.split()) > LONGEST_ANSWER
            or prep in ("instead of", "plus", "like", "than", "as", "per", "without", "against", "according to")
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
        elif prep in ("on", "at") and clause.verb.lemma in _CONTACTING and _NUMBERED.fullmatch(answer):
            yield from self._inverted(clause, n, Ask((f"{prep.capitalize()} which number",), answer, "what"))
        elif kind == "number":
            age = prep == "at" and len(found.words) == 1 and clause.subject is not None
            if age and self._is_person(clause.subject) and not clause.verb.passive:  # "At nineteen she won"
                yield from self._inverted(clause, n, Ask(("At what age",), found.text, "when"), echo=False)
            return
        elif kind in ("date", "time"):
            if prep == "for" and found.noun in DURATIONS:
                return  # "for years"
            if (
                found.noun in ("time", "times")
                or (prep == "for" and found.determiner and found.noun in TIMES)
                or found.determiner
                in (
                    "a",
                    "an",
                    "all",
                    "any",
                    "some",
                    "this",
                    "last",
                    "next",
                )
            ):
                return
            yield from self._inverted(clause, n, self._when(found, prep, kind))
        elif kind == "money":
            yield from self._about_amount(clause, n, phrase)
        elif kind == "duration" and found.number is not None:
            unit = units(found)
            if prep == "for":
                parts = any(word.tag == "CC" for word in found.words)  # "for 3 hours and 10 minutes"
                fronts = ("How long",) if parts else ("How long", f"For how many {unit}")
                asks = Ask(fronts, found.text, "how long")
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
                if prep == "with" and clause.order and len(found.words) > found.core:
                    for draft in self._inverted(clause, n, Ask(("What",), found.text, "what", "with")):
                        yield dataclasses.replace(draft, about=f"pp {n} whole")
        elif found.noun in _IDIOMS or (
            not found.determiner
            and found.words[found.head].tag == "NN"
            and found.core == 1
            and prep in ("in", "at", "on", "for", "by")
        ):
            if prep in ("for", "by") and found.noun not in _IDIOMS:
                yield from self._with_preposition(clause, n, phrase, kind, answer)
        elif prep == "from" and any(word.low == "to" for word in found.words) and not found.has_name:
            if clause.verb.lemma in _RISING and len(found.words) == 3:
                yield from self._new_and_old(clause, n, found.words[2].text, found.words[0].text)
                return
            if all(word.tag in ("CD", "TO") for word in found.words):  # "open from 9 to 6"
                yield from self._inverted(clause, n, Ask(("When",), f"from {found.text}", "when"))
                return
            to = next(k for k, word in enumerate(found.words) if word.low == "to")
            fronts = (("From where", text_of(found.words[:to]), ""), ("Where", text_of(found.words[to + 1 :]), "to"))
            for front, text, stranded in fronts:
                for draft in self._inverted(clause, n, Ask((front,), text, "where", stranded), echo=False):
                    yield dataclasses.replace(draft, about=f"{draft.about} {front}")
        elif prep == "to" and clause.verb.lemma in _GIVING:
            who = kind in ("person", "organisation") or are_people(found)
            answer = self._with_relative(phrase, answer)
            if not who and found.is_name and not type_noun(found):  # a town, or a firm: "where" suits both
                yield from self._inverted(clause, n, Ask(("Where",), answer, "where"))
                return
            yield from self._inverted(
                clause, n, Ask(("Who" if who else "What",), answer, "who" if who else "what", "to")
            )
        elif prep in ("after", "before") and clause.verb.copula:
            return  # "He has been after a piano": no time
        elif prep in ("after", "before", "during"):
            text = lower(phrase.text, phrase.words)
            yield from self._inverted(clause, n, Ask(("When",), text, "when"))
        elif clause.verb.lemma in _OPINING and prep in WHERE and not clause.verb.passive:
            return  # "I suggest the Ladle in Ashby": there it is, not there it is suggested
        elif prep == "to" and found.is_name and kind == "thing" and clause.verb.lemma in _MOVING:
            yield from self._inverted(clause, n, Ask(("Where",), answer, "where", "to"), echo=False)
            yield from self._inverted(clause, n, Ask(("Where",), answer, "where"))
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
        if kind == "thing" and (prep in _SURE_PLACES or prep in ("next to", "close to")):
            return True  # "along the north hedge"
        if kind == "thing" and prep in WHERE and any(word.low in ("next", *_SURE_PLACES) for word in found.words):
            return True  # "on the board next to the hut"
        if (kind == "thing" and prep == "at") and type_noun(found) not in ("", *EVENTS) and not found.is_name:
            return True  # "at the Dunmarrow cannery"
        return (kind in ("place", "organisation") and prep in WHERE) or (
            prep in ("in", "near", "at") and found.has_name and kind == "thing" and found.is_name
        )

    def _about_place(self, clause: Clause, n: int, phrase: Phrase, answer: str) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        if phrase.double:
            said, fronts = lower(phrase.text, phrase.words), ["Where"]
            yield from self._inverted(clause, n, Ask(("Where",), said, "where"))
            return
        if (found.name or place_of(found)) and prep in ("in", "at", "on", "to", "near"):
            said = answer
        elif prep == "from":
            said = lower(found.text, found.words)
        else:
            said = lower(phrase.text, phrase.words)
        fronts = ["Where"]
        type_word = type_noun(found)
        town = type_word in _TOWN_ENDINGS and bool(found.name) and found.words[-1].low == type_word
        if type_word and (found.name or place_of(found)) and not town:
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
        answer = self._with_relative(phrase, answer)
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

    def _with_relative(self, phrase: Phrase, answer: str) -> str:
        """ "passengers who had been charged twice": an answer with the clause that belongs to it."""
        found = phrase.phrase
        if phrase.words[-1] is found.words[-1] or found.has_name or phrase.words[-1].end <= found.words[-1].end:
            return answer
        at = next(n for n, word in enumerate(phrase.words) if word is found.words[0])
        words = without_article(phrase.words[at:])
        return lower(text_of(words), words)

    def _about_amount(self, clause: Clause, n: int, phrase: Phrase) -> Iterator[Draft]:
        found, prep = phrase.phrase, phrase.preposition
        to = next((k for k, word in enumerate(found.words) if word.low == "to"), None)
        if prep == "from" and to is not None:
            unit = text_of(found.words[to + 2 :])
            new, old = text_of(found.words[to + 1 :]), text_of(found.words[:to])
            old = old if any(word.tag != "CD" for word in found.words[:to]) else f"{old} {unit}"
            for draft in self._inverted(clause, n, Ask(("To how much", "To what amount"), new, "how much")):
                yield dataclasses.replace(draft, about=f"pp {n} to")
            if clause.verb.lemma in _RISING:
                subject = self._subject(clause)
                yield from self._new_and_old(clause, n, new, old)
                if subject.startswith("the "):
                    yield Draft(mark(f"How much is the new {subject[4:]}"), new, "how much", "named", f"pp {n} to")
            for draft in self._inverted(clause, n, Ask(("From how much", "From what amount"), old, "how much")):
                yield dataclasses.replace(draft, about=f"pp {n} from")
            return
        fronts = ("For how much money", "For what price") if prep == "for" else (f"{prep.capitalize()} how much",)
        yield from self._inverted(clause, n, Ask(fronts, amount(found), "how much"))

    def _new_and_old(self, clause: Clause, n: int, new: str, old: str) -> Iterator[Draft]:
        """ "The fee rises from 85 to 92 pounds": what is the new fee?"""
        subject = self._subject(clause)
        if subject.startswith("the "):
            yield Draft(mark(f"What is the new {subject[4:]}"), new, "how much", "synonym", f"pp {n} to")
            yield Draft(mark(f"What was the old {subject[4:]}"), old, "how much", "synonym", f"pp {n} from")

    def _when(self, found: NounPhrase, prep: str, kind: str) -> Ask:
        text = found.text
        if text.count(" and ") and any(word.tag == "IN" for word in found.words[found.core :]):
            return Ask(("When",), f"{prep} {text}", "when")  # "before 9 am and after 6 pm"
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
        if prep == "for":  # "a room booked for 7 pm"
            return Ask(("For what time" if kind == "time" else "For when",), text, "when")
        if prep == "to":  # "moved to Thursdays"
            return Ask(("To what time" if kind == "time" else "To when",), text, "when")
        if prep in ("between", "during", "from", "within"):
            return Ask(("When",), f"{prep} {text}", "when")
        if kind == "time":
            return Ask(("At what time", "When"), text, "when")
        if _YEAR.fullmatch(text):
            return Ask(("When", "In what year", "In which year"), text, "when")
        months = [word for word in found.words if word.text in w.MONTHS]
        numbers = [word for word in found.words if word.tag == "CD"]
        if months and not numbers:
            return Ask(("When", "In which months" if len(months) > 1 else "In which month"), text, "when")
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
