"""What a document is about, and who is in it."""

import collections
import dataclasses
import re
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import (
    ORGANISATIONS,
    PLACES,
    ROLES,
    TITLES,
    noun_phrase,
    text_of,
    type_noun,
)
from selfparam_jax.targets.grounded.tagging import tag_words
from selfparam_jax.targets.grounded.words import Word

EVENTS = WORDS["events"]
# What a manual's title says beside the product.
MANUAL = re.compile(
    r"(?i)(?<=\w)[\s:,–-]+(?:(?:user|owner['’]?s|instruction|operating|service|product|quick|start)\s+){0,2}"
    r"(?:manual|guide|handbook|instructions|data ?sheet)\s*$"
)


# "Incident report: Larkmoor booking outage, 12 July 2024"
_REPORT = re.compile(
    r"(?:the )?((?:[a-z]+ ){0,2}report)(?:\s*[:–—-]\s*| (?:on|about|of) )(?:the )?(.+?)"
    r"(?:,? (?:of |on )?(?:\d{1,2} )?(?:[a-z]+ )?\d{4})?", re.IGNORECASE,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topic:
    """What a document is about.

    Attributes:
      name: as a question says it, with its article ("the Orrin Rowing Club"); "" if the document names nothing.
      kind: "person", "group", "place", "event", "talk" (a chat) or "product".
      nouns: what else the document calls it after "the" ("club").
    """

    name: str = ""
    kind: str = "product"
    nouns: frozenset[str] = frozenset()

    @property
    def bare(self) -> str:
        """The name without its article."""
        return self.name.removeprefix("the ")


def names_inside(texts: Sequence[str]) -> frozenset[str]:
    """Words that stand with a capital inside a sentence."""
    found = set()
    for text in texts:
        for match in re.finditer(r"(?<=[a-z,;] )[A-Z][\w'’-]+", text):
            found.add(match[0])
    return frozenset(found)


def report_name(title: str) -> str:
    """What a question calls a report whose title says what it is about; "" for other titles."""
    match = _REPORT.fullmatch(title.strip())
    if not match or not 1 < len(match[2].split()) <= 7 or match[2].endswith("?"):
        return ""
    words = tag_words(match[2])
    plain = all(word.tag in ("NN", "NNP", "JJ", "CD") or word.low in ("of", "in", "at", "the") for word in words)
    if not plain or words[-1].tag not in ("NN", "NNP") or any(word.text in w.MONTHS for word in words):
        return ""
    proper = words[0].tag == "NNP" or not w.is_known(words[0].text)
    about = match[2] if proper else match[2][:1].lower() + match[2][1:]
    article = "" if words[-1].tag == "NNP" or words[0].tag == "DT" else "the "
    return f"the {match[1].lower()} on {article}{about}"


def name_runs(words: Sequence[Word]) -> list[tuple[int, int]]:
    """Where names begin and end, months and days apart."""
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


def find_people(tagged: Sequence[Sequence[Word]]) -> frozenset[str]:
    """Full names of persons, without titles: names with a role, a title, or what only persons do."""
    score: collections.Counter[str] = collections.Counter()
    for words in tagged:
        for begin, end in name_runs(words):
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
                if before.low in ("called", "named") and begin > 1:
                    value += 3 * (words[begin - 2].low in ROLES or names_doer(words[begin - 2]))
                linked = any(word.low in w.BE for word in words[max(begin - 2, 0) : begin])
                if linked and any(word.low in ROLES or names_doer(word) for word in words[:begin]):
                    value += 3
            if after is not None and (after.is_verb or after.tag == "RB"):
                verbs = [word for word in words[end : end + 3] if word.is_verb or word.tag in ("VB", "VBN")]
                value += 2 * any(w.verb_lemma(word.text) in _HUMAN for word in verbs) + (not w.is_known(run[0].text))
                if any(word.low in ROLES or word.low == "responsible" for word in words[end : end + 5]):
                    value += 2
            if after is not None and after.text == "," and any(word.low in ROLES for word in words[end : end + 5]):
                value += 3
            value += 3 * ([word.low for word in words[max(begin - 2, 0) : begin]] == ["one", ","])
            value += 3 * ([word.low for word in words[end : end + 2]] == [",", "who"])
            score[name] += value
    return frozenset(name for name, value in score.items() if value > 0)


def names_doer(word: Word) -> bool:
    """Whether a noun looks like that of a person ("scorer", "cellist")."""
    return word.tag == "NN" and word.low.endswith(("er", "or", "ist", "man", "woman")) and len(word.low) > 5


def type_of_run(run: Sequence[Word]) -> str:
    """The common noun that a name ends with, of places and organisations."""
    phrase = noun_phrase(list(run), 0)
    return type_noun(phrase[0]) if phrase else ""


def find_topic(title: str, tagged: Sequence[Sequence[Word]], people: frozenset[str], names: frozenset[str]) -> Topic:
    """What a document is about: the name that its title and its sentences speak of most.

    Args:
      title: the document's; may be empty.
      tagged: the words of its sentences.
      people: names of persons in it.
      names: words that are names wherever they stand.

    Returns:
      The topic; one without a name where nothing is spoken of often enough.
    """
    count: collections.Counter[str] = collections.Counter()
    first: dict[str, list[Word]] = {}
    articles: collections.Counter[str] = collections.Counter()
    heads = [tag_words(title, names)] if title else []
    for place, words in enumerate([*heads, *tagged]):
        in_title = bool(heads) and place == 0
        for begin, end in name_runs(words):
            run = list(words[begin:end])
            if run[0].text in TITLES and len(run) > 1:
                run, begin = run[1:], begin + 1
            if run[0].low in w.PREPOSITIONS | w.DETERMINERS:
                continue
            if in_title and len(run) == 1 and begin == 0 and w.is_known(run[0].text) and run[0].text not in names:
                continue  # "Minutes of", "Notice:"
            # "Pinehurst bridge project": common nouns after a name belong to it.
            while end < len(words) and words[end].tag == "NN" and words[end].low not in _PAPERS:
                run.append(words[end])
                end += 1
            name = " ".join(word.text for word in run)
            before = words[begin - 1].low if begin else ""
            opens = place == len(heads) and not any(word.is_verb for word in words[:begin])
            count[name] += 6 * in_title + 1 + (place <= len(heads)) + opens
            articles[name] += bool(begin) and words[begin - 1].text == "the" if in_title else before == "the"
            first.setdefault(name, run)
    called = re.fullmatch(r"[Tt]he ([a-z][\w-]+(?: [a-z][\w-]+)?)", title.strip())
    if called and sum(called[1] in text_of(words) for words in tagged) >= 3:
        return Topic(f"the {called[1]}", "product")  # an animal, a kind of thing
    if not count:
        return _common_topic(title, heads)
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
    said = [best in text_of(words) for words in tagged]
    if best not in title and not any(said[:2]) and (len(best) < 3 or 5 * sum(said) < len(said)):
        return Topic()  # a name among others
    if best in people and best not in title and sum(text_of(words).startswith(best) for words in tagged) < 2:
        return Topic()  # somebody who is named once
    if best in people:
        kind = "person"
    elif run[-1].low in EVENTS:
        kind = "event"
    elif (
        nouns & ORGANISATIONS
        or run[-1].low in ORGANISATIONS | {"project"}
        or f" at {best}" in title
        or re.search(rf"(?i)\b(?:{_OF_GROUPS})\b.* of (?:the )?{re.escape(best)}", title)
    ):
        kind = "group"
    elif nouns & (PLACES - {"ship", "boat", "vessel", "car"}) or _after_preposition(best, tagged):
        kind = "place"
    else:
        kind = "product"
    shorter = [name for name in articles if best.startswith(name + " ")]
    in_text = any(best in text_of(words) and any(word.is_verb for word in words) for words in tagged)
    device = kind == "product" and len(run) > 1 and not in_text and run[-1].tag == "NNP" and not best.endswith("s")
    named_so = run[-1].low in WORDS["with_article"] and len(run) > 1
    article = (
        "the "
        if device or named_so or articles[best] or any(articles[name] for name in shorter) or run[-1].tag == "NN"
        else ""
    )
    nouns = frozenset(nouns - {""}) if kind != "person" else frozenset()
    return Topic(article + best, kind, nouns)


def _common_topic(title: str, heads: Sequence[Sequence[Word]]) -> Topic:
    """What a title without a name says the document is about ("Lemon barley soup"); none for other titles."""
    words = heads[0] if heads else []
    if not 1 < len(words) <= 5 or any(word.tag not in ("NN", "JJ", "NNS") for word in words):
        return Topic()
    last = words[-1]
    if last.low in _PAPERS or words[0].low in _PAPERS or last.tag == "JJ" or "NOUN" not in w.forms(last.low):
        return Topic()
    small = title[:1].lower() + title[1:]
    return Topic(f"the {small}", "product", frozenset((last.low,)))


_OF_GROUPS = "policy|policies|rules|regulations|handbook|newsletter|staff|employees|members|notice"
# What a title calls the document itself.
_PAPERS = WORDS["papers"]


def _belongs(part: str, whole: str) -> bool:
    return part in whole.split() or whole.startswith(part + " ") or whole.endswith(" " + part)


def _after_preposition(name: str, tagged: Sequence[Sequence[Word]]) -> bool:
    first = name.split()[0]
    return any(
        n > 0 and word.text == first and words[n - 1].low in ("in", "near")
        for words in tagged
        for n, word in enumerate(words)
    )
