"""Pronouns and short names replaced by what they stand for, sentence after sentence."""

import re
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Reading
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import ROLES, TITLES, text_of
from selfparam_jax.targets.grounded.topics import (
    Topic,
    name_runs,
    names_doer,
)
from selfparam_jax.targets.grounded.words import Word

_HE, _SHE = ("he", "him", "his"), ("she", "her", "hers")
_GENERIC = {
    "product": frozenset(["device", "machine", "appliance", "product", "model", "unit"]),
    "person": frozenset(),
    "group": frozenset(["organisation", "organization"]),
    "place": frozenset(),
    "event": frozenset(),
    "talk": frozenset(),
}


class Resolver:
    """Puts names in place of pronouns, sentence after sentence."""

    def __init__(self, topic: Topic, people: frozenset[str]):
        self._topic, self._people = topic, people
        self._gender: dict[str, str] = {}
        self._recent: list[str] = [topic.name] if topic.kind == "person" and topic.name else []  # latest last
        self._subject_person: str = self._recent[0] if self._recent else ""
        self._thing = "" if topic.kind == "person" else topic.name
        self._several, self._plural = "", True

    def resolve(self, text: str, words: Sequence[Word]) -> str:
        """The sentence with names for pronouns; what is not clear stays."""
        pieces: list[tuple[int, int, str]] = []
        spoken: set[str] = set()  # who was named in this sentence
        runs = {begin: end for begin, end in name_runs(words)}
        lows = [word.low for word in words]
        for n, word in enumerate(words):
            if n in runs:
                self._note_names(words, n, runs[n], pieces, spoken)
            low = word.low
            person = n and (low == "named" or words[n - 1].low in ROLES or names_doer(words[n - 1]))
            if low in ("named", "called") and person and words[n - 1].tag == "NN" and n + 1 in runs:
                # "a baker named Joren Vask" is the baker Joren Vask.
                if n > 1 and lows[n - 2] in ("a", "an"):
                    pieces.append((words[n - 2].begin, words[n - 2].end, "the" if n > 2 else "The"))
                pieces.append((word.begin, words[n + 1].begin, ""))
            elif low in _HE + _SHE:
                possessive = word.tag == "PRP$"
                later = any(
                    other in (_HE if low in _HE else _SHE) and words[k].tag == "PRP" and words[k].low in ("he", "she")
                    for k, other in enumerate(lows)
                    if k > n
                )
                if possessive and later and not spoken:
                    continue
                person = self._person("he" if low in _HE else "she", spoken)
                if person and not (possessive and person in spoken) and low not in ("hers",):
                    if low in ("him", "her") and not possessive and person in spoken:
                        continue
                    pieces.append(
                        (
                            word.begin,
                            word.end,
                            person + ("’s" if possessive and "’" in text else "'s" if possessive else ""),
                        )
                    )
                    spoken.add(person)
            elif low in ("it", "its") and not spoken and n <= 2 and self._thing:
                following = lows[n + 1 : n + 4]
                if low == "it" and n and words[n - 1].tag in ("VB", "VBZ", "VBD", "VBP"):
                    continue
                if low == "it" and _expletive(following, words[n + 1 : n + 6]):
                    continue
                name = self._thing if n else self._thing[:1].upper() + self._thing[1:]
                pieces.append((word.begin, word.end, name + ("'s" if low == "its" else "")))
                spoken.add(self._thing)
            elif low in ("they", "their") and n <= 2 and self._several and not spoken:
                name = self._several if n else self._several[:1].upper() + self._several[1:]
                pieces.append(
                    (word.begin, word.end, name + (("'" if name.endswith("s") else "'s") if low == "their" else ""))
                )
                spoken.add(self._several)
                if low == "they" and not self._plural and n + 1 < len(words):
                    verb = words[n + 1]
                    changed = w.SINGULAR.get(verb.low)
                    if changed is None and verb.tag in ("VBP", "VB"):
                        changed = w.inflect(verb.low, "VBZ")
                    if changed:
                        pieces.append((verb.begin, verb.end, changed))
            elif low == "our" and self._topic.kind == "product":
                pieces.append((word.begin, word.end, "the" if n else "The"))  # the maker's
            elif low in ("we", "our") and self._topic.kind == "group" and not re.search(r'["“]', text[: word.begin]):
                name = self._topic.name if n else self._topic.name[:1].upper() + self._topic.name[1:]
                verb = words[n + 1] if n + 1 < len(words) else None
                changed = w.SINGULAR.get(verb.low if verb else "")
                if changed:
                    pieces += [(word.begin, word.end, name), (verb.begin, verb.end, changed)]
                elif low == "our" or (verb is not None and verb.tag in ("MD", "VBD")):
                    pieces.append((word.begin, word.end, name + ("'s" if low == "our" else "")))
            elif (
                low == "the"
                and n + 1 < len(words)
                and lows[n + 1] in self._topic.nouns | _GENERIC[self._topic.kind]
                and words[n + 1].tag == "NN"
            ):
                after = words[n + 2] if n + 2 < len(words) else None
                if after is not None and (
                    after.tag in ("NN", "NNS", "NNP", "CD") or after.low in ("of", "called", "named")
                ):
                    continue
                full = self._topic_up_to(lows[n + 1])
                if full.lower() in text.lower():
                    continue
                pieces.append((word.begin, words[n + 1].end, full if n else full[:1].upper() + full[1:]))
                spoken.add(self._topic.name)
        return w.with_pieces(text, pieces)

    def _topic_up_to(self, noun: str) -> str:
        """The topic's name, cut after a noun inside it ("the Pinehurst bridge" of "... bridge project")."""
        parts = self._topic.name.split()
        lows = [part.lower() for part in parts]
        if noun in lows and noun != lows[-1]:
            return " ".join(parts[: lows.index(noun) + 1])
        return self._topic.name

    def _note_names(self, words, begin: int, end: int, pieces, spoken: set[str]) -> None:
        run = [word for word in words[begin:end] if word.text not in TITLES]
        if not run:
            return
        name = " ".join(word.text for word in run)
        person = name if name in self._people else ""
        if not person and len(run) == 1 and not (begin and words[begin - 1].low in ("the", "a")):
            found = [each for each in self._people if name in (each.split()[0], each.split()[-1])]
            if len(found) == 1 and not (end < len(words) and words[end].tag in ("NN", "NNS")):
                person = found[0]
                pieces.append((run[0].begin, run[0].end, person))
        if person and begin > 1 and words[begin - 1].low in ROLES and words[begin - 2].tag == "PRP$":
            # "With her friend Ana Volk, she ...": "she" is not Ana Volk, but the person before her.
            self._recent = [person, *(each for each in self._recent if each != person)]
        elif person:
            spoken.add(person)
            if person in self._recent:
                self._recent.remove(person)
            self._recent.append(person)

    def _person(self, gender: str, spoken: set[str]) -> str:
        order = [
            *([each for each in self._recent[::-1] if each in spoken]),
            self._subject_person,
            *self._recent[::-1],
        ]
        fitting = [each for each in order if each and self._gender.get(each, gender) == gender]
        if not fitting:
            return ""
        person = fitting[0]
        self._gender.setdefault(person, gender)
        return person

    def forget(self) -> None:
        """Under another heading, and after an order, "it" is no thing that was named before."""
        if self._topic.kind != "person":
            self._thing = self._topic.name
        self._several = ""

    def note(self, reading: Reading) -> None:
        """Remembers what a sentence was about."""
        main = [clause for clause in reading.clauses if clause.source == "main"]
        if main and main[0].order:
            self.forget()
        if not main or main[0].subject is None:
            self._several = ""
            return
        subject = main[0].subject
        text = text_of(subject.words)
        bare = " ".join(part for part in text.split() if part not in TITLES)
        if bare in self._people:
            self._subject_person, self._several = bare, ""
            return
        complement = next((phrase.text for phrase in main[0].rest if phrase.kind == "np"), "")
        if main[0].verb.copula and complement in self._people:
            self._subject_person = complement
            return
        if subject.pronoun:
            return
        tail = "".join(" " + phrase.text for phrase in main[0].tail if phrase.kind == "pp")
        lowered = text if subject.words[0].tag == "NNP" else text[:1].lower() + text[1:]
        self._plural = subject.plural
        if subject.plural:
            self._several = lowered + tail
        else:
            group = subject.noun in (
                "team",
                "crew",
                "staff",
                "family",
                "group",
                "band",
                "committee",
                "board",
                "couple",
            )
            self._several = lowered + tail if group else ""
            if (
                self._topic.kind == "person"
                or self._topic.bare in text
                or not self._topic.name
                or subject.determiner in ("the", "a", "an")
                or subject.is_name
            ):
                self._thing = lowered + tail


def _expletive(following: Sequence[str], words: Sequence[Word]) -> bool:
    """Whether "it" stands for what follows: "It was agreed to ...", "It is important that ..."."""
    said = WORDS["expletive"]
    return any(low in said for low in following[:3]) and any(word.low in ("to", "that") for word in words)
