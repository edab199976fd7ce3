"""A document's sentences with their references resolved: what it is about, who is in it, whom "she" means.

A question must say whom it is about, since no text stands beside it. So "She joined in 2019" is read as "Salla
Winther joined in 2019", "the club" as "the Orrin Rowing Club", where the sentences before leave one candidate.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Reading, read_sentence
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.lines import LABEL, REMARKS, Listed, is_naming, names_in, split_lines
from selfparam_jax.targets.grounded.phrases import (
    ORGANISATIONS,
    PLACES,
    ROLES,
    TITLES,
    noun_phrase,
    text_of,
    type_noun,
)
from selfparam_jax.targets.grounded.words import Word, tag_words

# What a manual's title says beside the product.
_MANUAL = re.compile(
    r"(?i)(?<=\w)[\s:,–-]+(?:(?:user|owner['’]?s|instruction|operating|service|product|quick|start)\s+){0,2}"
    r"(?:manual|guide|handbook|instructions|data ?sheet)\s*$"
)
_HE, _SHE = ("he", "him", "his"), ("she", "her", "hers")
_GENERIC = {
    "product": frozenset(["device", "machine", "appliance", "product", "model", "unit"]),
    "person": frozenset(),
    "group": frozenset(["organisation", "organization"]),
    "place": frozenset(),
}


@dataclasses.dataclass(frozen=True)
class Topic:
    """What a document is about.

    Attributes:
      name: as a question says it, with its article ("the Orrin Rowing Club"); "" if the document names nothing.
      kind: "person", "group", "place" or "product".
      nouns: what else the document calls it after "the" ("club").
    """

    name: str = ""
    kind: str = "product"
    nouns: frozenset[str] = frozenset()

    @property
    def bare(self) -> str:
        """The name without its article."""
        return self.name.removeprefix("the ")


@dataclasses.dataclass(frozen=True)
class ReadSentence:
    """A sentence of a document.

    Attributes:
      text: as it stands there.
      resolved: with names in place of pronouns.
      reading: its clauses.
      heading: the heading that it stands under, "" without one.
      listed: what it says without a verb: a row of a table, an entry of a list.
      row: whether it is a row of a table.
    """

    text: str
    resolved: str
    reading: Reading
    heading: str = ""
    listed: tuple[Listed, ...] = ()
    row: bool = False


@dataclasses.dataclass(frozen=True)
class Discourse:
    """A document, read.

    Attributes:
      topic: what it is about.
      people: words of the names of persons.
      sentences: in order.
    """

    topic: Topic
    people: frozenset[str]
    sentences: tuple[ReadSentence, ...]


def read_document(document: Document) -> Discourse:
    """Splits a document into sentences, finds what it is about, resolves references and reads the clauses."""
    lines = split_lines(document.text)
    names = _names_inside([line.text for line in lines if not line.row])
    spoken = [
        line.text if line.row or line.listed else _said_of_label(line.text, tag_words(line.text, names)) or line.text
        for line in lines
    ]
    tagged = [tag_words(text, names) for text in spoken]
    # What a document is about, and who is in it, its sentences say, not its tables.
    prose = [words for words, line in zip(tagged, lines, strict=True) if not line.row] or tagged
    people = _people(prose) | {name for line in lines for name in names_in(line)}
    title = document.title.replace("_", " ") or next((line.first for line in lines), "")
    title = _MANUAL.sub("", title)
    topic = _topic(title, prose, people, names)
    if topic.name not in title and any(topic.name in names_in(line) for line in lines):
        topic = Topic()  # somebody who was there, and is not what the minutes are about
    resolver = _Resolver(topic, people, names)
    sentences = []
    for line, said, words in zip(lines, spoken, tagged, strict=True):
        if line.row or line.listed or is_naming(line.text):
            nothing = Reading((), True)
            sentences.append(ReadSentence(line.text, line.text, nothing, line.heading, line.listed, line.row))
            continue
        resolved = resolver.resolve(said, words)
        reading = read_sentence(tag_words(resolved, names | people))
        resolver.note(reading)
        sentences.append(ReadSentence(line.text, resolved, reading, line.heading))
    return Discourse(topic, frozenset(part for person in people for part in person.split()), tuple(sentences))


def split_sentences(text: str) -> list[tuple[str, str]]:
    """The sentences of a text, each with the heading that it stands under ("" without one)."""
    return [(line.text, line.heading) for line in split_lines(text)]


def _said_of_label(text: str, words: Sequence[Word]) -> str:
    """ "Chair: Ana Volk" as a sentence, "The chair is Ana Volk."; "" for anything else."""
    match = LABEL.match(text)
    if not match or any(word.is_verb for word in words) or is_naming(text):
        return ""
    label, value = match[1].lower(), match[2].rstrip(".")
    if label in ("minutes", "notes"):
        return f"{value} took the {label}."
    if label in REMARKS:
        return ""
    parts = [word for word in words if word.end <= match.end(1)]
    last = parts[-1]
    noun = last.tag != "NNS" and "NOUN" in w.forms(last.low)
    if not noun or any(word.tag not in ("NN", "JJ", "IN", "DT") for word in parts[:-1]):
        return ""
    if not any(month in value for month in w.MONTHS) and ", " in value:
        value = value[: value.index(", ")]
    return f"The {label} is {value}."


def _names_inside(texts: Sequence[str]) -> frozenset[str]:
    """Words that stand with a capital inside a sentence."""
    found = set()
    for text in texts:
        for match in re.finditer(r"(?<=[a-z,;] )[A-Z][\w'’-]+", text):
            found.add(match[0])
    return frozenset(found)


def _name_runs(words: Sequence[Word]) -> list[tuple[int, int]]:
    runs, n = [], 0
    while n < len(words):
        if words[n].tag == "NNP" and words[n].text not in w.MONTHS + w.DAYS:
            begin = n
            while n < len(words) and (words[n].tag == "NNP") and words[n].text not in w.MONTHS + w.DAYS:
                n += 1
            runs.append((begin, n))
        else:
            n += 1
    return runs


_HUMAN = WORDS["human"]


def _people(tagged: Sequence[Sequence[Word]]) -> frozenset[str]:
    """Full names of persons, without titles: names with a role, a title, or what only persons do."""
    score: collections.Counter[str] = collections.Counter()
    for words in tagged:
        for begin, end in _name_runs(words):
            run = words[begin:end]
            titled = run[0].text in TITLES
            run = run[1:] if titled else run
            if not 2 <= len(run) <= 3 or any(
                not word.text.replace("-", "").replace("'", "").replace("’", "").replace(".", "").isalpha()
                for word in run
            ):
                continue
            last = run[-1].low
            if (
                last in ORGANISATIONS | PLACES
                or any(word.text.isupper() and len(word.text) > 2 for word in run)
                or type_of_run(run)
            ):
                continue
            name = " ".join(word.text for word in run)
            before = words[begin - 1] if begin else None
            after = words[end] if end < len(words) else None
            value = 3 * titled
            if before is not None:
                value += (
                    3 * (before.low in ROLES)
                    - 3 * (before.low in ("the", "a", "an"))
                    - 2 * (before.low in ("in", "at", "near", "from", "to", "of", "on", "under"))
                )
                value += 2 * (before.low == "by") + (
                    before.text == "," and any(word.low in ROLES for word in words[max(begin - 7, 0) : begin])
                )
                value -= 3 * (before.tag == "NN" and before.low not in ROLES)
                linked = any(word.low in w.BE for word in words[max(begin - 2, 0) : begin])
                if linked and any(word.low in ROLES or _names_doer(word) for word in words[:begin]):
                    value += 3
            if after is not None and (after.is_verb or after.tag == "RB"):
                verbs = [word for word in words[end : end + 3] if word.is_verb or word.tag in ("VB", "VBN")]
                value += 2 * any(w.verb_lemma(word.text) in _HUMAN for word in verbs) + (not w.is_known(run[0].text))
                if any(word.low in ROLES or word.low == "responsible" for word in words[end : end + 5]):
                    value += 2
            if after is not None and after.text == "," and any(word.low in ROLES for word in words[end : end + 5]):
                value += 3
            score[name] += value
    return frozenset(name for name, value in score.items() if value > 0)


def _names_doer(word: Word) -> bool:
    """Whether a noun looks like that of a person ("scorer", "cellist")."""
    return word.tag == "NN" and word.low.endswith(("er", "or", "ist", "man", "woman")) and len(word.low) > 5


def type_of_run(run: Sequence[Word]) -> str:
    """The common noun that a name ends with, of places and organisations."""
    phrase = noun_phrase(list(run), 0)
    return type_noun(phrase[0]) if phrase else ""


def _topic(title: str, tagged: Sequence[Sequence[Word]], people: frozenset[str], names: frozenset[str]) -> Topic:
    count: collections.Counter[str] = collections.Counter()
    first: dict[str, list[Word]] = {}
    articles: collections.Counter[str] = collections.Counter()
    heads = [tag_words(title, names)] if title else []
    for place, words in enumerate([*heads, *tagged]):
        in_title = bool(heads) and place == 0
        for begin, end in _name_runs(words):
            run = list(words[begin:end])
            if run[0].text in TITLES and len(run) > 1:
                run, begin = run[1:], begin + 1
            if run[0].low in w.PREPOSITIONS | w.DETERMINERS:
                continue
            if in_title and len(run) == 1 and begin == 0 and w.is_known(run[0].text) and run[0].text not in names:
                continue  # "Minutes of", "Notice:"
            # "Pinehurst bridge project": common nouns after a name belong to it.
            while end < len(words) and words[end].tag == "NN" and not (in_title and words[end].text == ":"):
                run.append(words[end])
                end += 1
            name = " ".join(word.text for word in run)
            before = words[begin - 1].low if begin else ""
            opens = place == len(heads) and not any(word.is_verb for word in words[:begin])
            count[name] += 6 * in_title + 1 + (place <= len(heads)) + opens
            articles[name] += (before == "the") if not in_title else 0
            first.setdefault(name, run)
    called = re.fullmatch(r"[Tt]he ([a-z][\w-]+(?: [a-z][\w-]+)?)", title.strip())
    if called and sum(called[1] in text_of(words) for words in tagged) >= 3:
        return Topic(f"the {called[1]}", "product")  # an animal, a kind of thing
    if not count:
        return Topic()
    whole = {
        name: value + sum(count[other] for other in count if other != name and _belongs(other, name))
        for name, value in count.items()
    }
    best = max(whole, key=lambda name: (whole[name], -list(whole).index(name)))
    run = first[best]
    nouns = {
        word.low
        for word in run
        if word.low in PLACES | ORGANISATIONS or word.tag == "NN" or (word is run[-1] and w.is_known(word.text))
    }
    subject = rf"(?:^|\s)(?:the )?{re.escape(best)} (?:is|was) (?:an?|the) "
    for words in tagged:
        text = text_of(words)
        if match := re.search(subject, text, re.IGNORECASE):
            at = next(n for n, word in enumerate(words) if word.begin >= match.end() - (words[0].begin == -1))
            if found := noun_phrase(words, max(at - 1, 0)):
                nouns.add(found[0].noun)
    if best in people:
        kind = "person"
    elif nouns & ORGANISATIONS or run[-1].low in ORGANISATIONS | {"project"}:
        kind = "group"
    elif nouns & (PLACES - {"ship", "boat", "vessel", "car"}) or _after_preposition(best, tagged):
        kind = "place"
    else:
        kind = "product"
    article = "the " if articles[best] or run[-1].tag == "NN" else ""
    nouns = frozenset(nouns - {""}) if kind != "person" else frozenset()
    return Topic(article + best, kind, nouns)


def _belongs(part: str, whole: str) -> bool:
    return part in whole.split() or whole.startswith(part + " ") or whole.endswith(" " + part)


def _after_preposition(name: str, tagged: Sequence[Sequence[Word]]) -> bool:
    first = name.split()[0]
    return any(
        n > 0 and word.text == first and words[n - 1].low in ("in", "near")
        for words in tagged
        for n, word in enumerate(words)
    )


class _Resolver:
    """Puts names in place of pronouns, sentence after sentence."""

    def __init__(self, topic: Topic, people: frozenset[str], names: frozenset[str]):
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
        runs = {begin: end for begin, end in _name_runs(words)}
        lows = [word.low for word in words]
        for n, word in enumerate(words):
            if n in runs:
                self._note_names(words, n, runs[n], pieces, spoken)
            low = word.low
            person = low == "named" or words[n - 1].low in ROLES if n else False
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
                    changed = {"are": "is", "were": "was", "have": "has", "do": "does"}.get(verb.low)
                    if changed is None and verb.tag in ("VBP", "VB"):
                        changed = w.inflect(verb.low, "VBZ")
                    if changed:
                        pieces.append((verb.begin, verb.end, changed))
            elif low in ("we", "our") and self._topic.kind == "group":
                name = self._topic.name if n else self._topic.name[:1].upper() + self._topic.name[1:]
                if low == "our" or (n + 1 < len(words) and words[n + 1].tag in ("MD", "VBD")):
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
        made, at = [], 0
        for begin, end, name in sorted(pieces):
            if begin < at:
                continue
            made += [text[at:begin], name]
            at = end
        return "".join(made) + text[at:]

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
        if person:
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

    def note(self, reading: Reading) -> None:
        """Remembers what a sentence was about."""
        main = [clause for clause in reading.clauses if clause.source == "main"]
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
