"""Rows and entries that record what happened at a time, and who is to do what by when.

"08:25 | Full disk found" becomes a sentence that is read as any other, "A full disk was found at 08:25."; "Double the
disk. Owner: Ana Volk." is asked as "Who should double the disk?".
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.composer import Draft, worded
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.phrases import noun_phrase
from selfparam_jax.targets.grounded.rendering import mark
from selfparam_jax.targets.grounded.tagging import tag_words
from selfparam_jax.targets.grounded.words import Word

_TIMES, _DEEDS = ("time", "when", "date", "day"), ("action", "actions", "task", "what", "to do", "measure", "step")
_DOERS = ("owner", "who", "responsible", "assigned to", "assignee", "person", "lead", "action by")
_DUE = ("due", "deadline", "by when", "due date", "due by", "by")
_CLOCK = re.compile(r"\d{1,2}[:.]\d\d(?: ?[ap]\.?m\.?)?|\d{1,2} ?[ap]\.?m\.?")
_DAY = re.compile(r"(?:[A-Z][a-z]+day,? )?\d{1,2} (?:" + "|".join(w.MONTHS) + r")(?: \d{4})?|" + "|".join(w.DAYS))
_OWNED = re.compile(r"(?i:" + "|".join(_DOERS) + r"): ((?:[A-Z][\w'’-]+ ?){1,3})(?:[,;] (?:due|by) ([^.,;]+))?\.?")
_CHOOSING = re.compile(r"(?:Which|What) (\w+s) ")
_CHOICE = re.compile(r"(\d[\d.,]*(?: ?[^\s\w,.]{0,2}\w{1,3})?) for ([a-z]+(?: [a-z]+)?)(?=,| and |\.|$)")
_ALONE = WORDS["intransitive"]
_LONGEST_DEED = 18  # words


@dataclasses.dataclass(frozen=True)
class Event:
    """What happened, and when, as a table says it."""

    time: str
    what: str


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be done, by whom, and by when ("" if that is not said)."""

    deed: str
    who: str
    due: str = ""


def event_of(head: Sequence[str], cells: Sequence[str]) -> Event | None:
    """What a row of two columns records, the first of them a time."""
    timed = len(head) == len(cells) == 2 and head[0].lower() in _TIMES
    if not timed or not (_CLOCK.fullmatch(cells[0]) or _DAY.fullmatch(cells[0])):
        return None
    event = Event(cells[0], re.split(r"[;.]", cells[1])[0].strip())
    return event if event_sentence(event) else None


def event_sentence(event: Event) -> str:
    """ "A full disk was found at 08:25."; "" where what happened is said without a verb."""
    words = tag_words(event.what)
    at = f"{'at' if _CLOCK.fullmatch(event.time) else 'on'} {event.time}"
    found = noun_phrase(words, 0, joins=False)
    verb = words[found[1]] if found is not None and found[1] < len(words) else None
    if verb is None:
        return ""
    following = words[found[1] + 1] if found[1] + 1 < len(words) else None
    alone = following is None or following.tag in ("IN", "TO", "CC", ",", "RB")
    undergone = verb.tag in ("VBN", "VBD") and alone and w.verb_lemma(verb.text) not in _ALONE
    if undergone and verb.low not in w.BE:
        be = "were" if found[0].plural else "was"
        thing = _with_article(event.what[: verb.begin].strip(), words[: found[1]])
        return f"{thing} {be} {event.what[verb.begin :]} {at}."
    return f"{event.what} {at}." if verb.is_verb else ""


def _with_article(text: str, words: Sequence[Word]) -> str:
    """ "Full disk" as "A full disk", "Alarm" as "The alarm"; names, plurals and "Booking" as they are."""
    first, last = words[0], words[-1]
    ordinal = first.low in ("first", "second", "third", "last", "next")
    if first.tag in ("DT", "NNP", "PRP$", "CD") and not ordinal:
        return text
    small = text[:1].lower() + text[1:]
    if ordinal:
        return f"The {small}"
    if last.tag != "NN" or last.low.endswith("ing"):
        return text
    described = len(words) > 1 and first.tag in ("JJ", "VBN", "VBG")
    return f"{'An' if small[0] in 'aeiou' else 'A'} {small}" if described else f"The {small}"


def event_drafts(event: Event) -> Iterator[Draft]:
    """What happened at a time."""
    at = "at" if _CLOCK.fullmatch(event.time) else "on"
    first = tag_words(event.what)[0]
    what = event.what if first.tag == "NNP" else event.what[:1].lower() + event.what[1:]
    yield Draft(mark(f"What happened {at} {event.time}"), what, "what", "direct", "event")


def choice_drafts(question: str, answer: str) -> Iterator[Draft]:
    """ "Which temperatures can I choose?" "80 °C for green tea, 92 °C for coffee": which is for green tea?"""
    asked, found = _CHOOSING.match(question), _CHOICE.findall(answer)
    if not asked or len(found) < 2:
        return
    lemmas = w.forms(asked[1].lower()).get("NOUN", ())
    for value, purpose in found if lemmas and lemmas[0] != asked[1].lower() else ():
        yield from worded(
            value,
            "how many",
            f"choice {purpose}",
            direct=f"Which {lemmas[0]} is for {purpose}",
            named=f"What is the {lemmas[0]} for {purpose}",
        )


def task_of(head: Sequence[str], cells: Sequence[str]) -> Task | None:
    """What a row of a table says is to be done by whom."""
    row = {name.lower(): cell for name, cell in zip(head, cells, strict=False)}
    deed, who, due = (next((row[name] for name in names if row.get(name)), "") for names in (_DEEDS, _DOERS, _DUE))
    return _task(deed, who, due)


def owned_task(deed: str, text: str) -> Task | None:
    """ "Owner: Ana Volk, due 26 July" after what is to be done."""
    match = _OWNED.fullmatch(text)
    return _task(deed, match[1].strip(), match[2] or "") if match else None


def _task(deed: str, who: str, due: str) -> Task | None:
    words = tag_words(deed)
    order = bool(words) and (words[0].tag == "VB" or w.may_be(words[0].low, "VB")) and len(words) > 1
    named = bool(who) and all(part[:1].isupper() for part in who.replace(" and ", " ").split())
    if not order or not named or len(words) > _LONGEST_DEED or any(word.low in w.PRONOUNS for word in words):
        return None
    return Task(deed[:1].lower() + deed[1:].rstrip("."), who, due)


def task_drafts(task: Task) -> Iterator[Draft]:
    """Who is to do it, and by when."""
    verb, _, rest = task.deed.partition(" ")
    doing = f"{w.inflect(verb, 'VBG')} {rest}"
    yield from worded(
        task.who,
        "who",
        "task",
        direct=f"Who should {task.deed}",
        named=f"Who is responsible for {doing}",
        passive=f"Who has the task of {doing}",
        indirect=f"Can you tell me who should {task.deed}",
    )
    if _DAY.fullmatch(task.due):
        yield from worded(
            task.due,
            "when",
            "due",
            direct=f"By when should {task.who} {task.deed}",
            named=f"By what date should {task.who} {task.deed}",
        )
