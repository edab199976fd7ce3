"""Questions about what tables and lists say without a verb: names with values, and persons with roles."""

import re
from collections.abc import Iterator

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.composer import Draft, worded
from selfparam_jax.targets.grounded.lines import PRESENT, Listed
from selfparam_jax.targets.grounded.rendering import mark
from selfparam_jax.targets.grounded.topics import Topic

_LINKED = re.compile(r" (?:of|for|per|in|to|with|at|from|on) ")
_ALWAYS_SINGULAR = (
    "lens",
    "series",
    "basis",
    "news",
    "gas",
    "bus",
    "chassis",
    "status",
    "bonus",
    "address",
    "access",
)
_CLOCK = re.compile(r"\d{1,2}[:.]\d\d(?!\d)")
_UNIT = re.compile(r"\s*[(\[]([^()\[\]]{1,12})[)\]]$")
# How people ask for a value that has a name of its own.
_ASKED = {
    "weight": ("How much does {} weigh", "How heavy is {}"),
    "price": ("How much does {} cost", "What does {} cost"),
    "cost": ("How much does {} cost",),
    "length": ("How long is {}",),
    "height": ("How high is {}",),
    "width": ("How wide is {}",),
    "depth": ("How deep is {}",),
    "colour": ("What colour is {}",),
    "color": ("What color is {}",),
}


def listed_drafts(listed: Listed, topic: Topic) -> Iterator[Draft]:
    """All questions about a value or a role; those for one fact have the same `about`."""
    if listed.role:
        yield from _about_role(listed.name, listed.value, topic)
    elif listed.place:
        yield from _about_place(listed, topic)
    elif listed.name == "needed":
        yield from _about_needs(listed, topic)
    elif listed.name.lower() in PRESENT:
        at = f" at the meeting of {topic.name}" if topic.name and topic.kind != "person" else " at the meeting"
        yield from worded(
            listed.value,
            "who",
            "present",
            direct=f"Who was present{at}",
            synonym=f"Who attended{at.removeprefix(' at')}",
            indirect=f"Can you tell me who was present{at}",
        )
    else:
        yield from _about_value(listed, topic)


def _about_role(role: str, person: str, topic: Topic) -> Iterator[Draft]:
    at = f" at {topic.name}" if topic.name and topic.kind != "person" else ""
    lead = f"At {topic.name}, " if at else ""
    yield from worded(
        person,
        "who",
        "person",
        direct=f"Who is the {role}{at}",
        named=f"Who was the {role}{at}",
        echo=f"{lead}the {role} is who",
        prefix=f"{lead}who is the {role}",
        indirect=f"Can you tell me who the {role}{at} is",
    )
    yield from worded(
        role,
        "what",
        "role",
        direct=f"What is the role of {person}{at}",
        named=f"What is {person}'s position{at}",
        echo=f"{person} has which role{at}",
        synonym=f"Which role does {person} have{at}",
        indirect=f"Can you tell me the role of {person}{at}",
    )


def _about_place(listed: Listed, topic: Topic) -> Iterator[Draft]:
    """ "the check weight (in the blue tin)": where is it?"""
    thing = f"the {_small(listed.name)}"
    be = "are" if _is_plural(listed.name.lower()) else "is"
    whole = f"{thing} for {topic.name}" if topic.name and topic.kind not in ("person", "talk") else thing
    yield from worded(
        listed.value,
        "where",
        "place",
        direct=f"Where {be} {whole}",
        named=f"Where {be} {whole} kept",
        indirect=f"Can you tell me where {whole} {be}",
    )


def _about_needs(listed: Listed, topic: Topic) -> Iterator[Draft]:
    """The entries under "You will need"."""
    if not topic.name:
        return
    yield from worded(
        listed.value,
        "what",
        "needed",
        direct=f"What will you need for {topic.name}",
        prefix=f"For {topic.name}, what will you need",
        indirect=f"Can you tell me what you will need for {topic.name}",
    )


def _about_value(listed: Listed, topic: Topic) -> Iterator[Draft]:
    if topic.name and not listed.of and (topic.bare in listed.value or listed.name.lower() == topic.bare.lower()):
        return  # "Itinerary: trip to Valmora" is the title
    kind = "how many" if listed.value[:1].isdigit() else "what"
    for form, question in _value_forms(listed, topic):
        yield Draft(mark(question), listed.value, kind, form, "value")


def _value_forms(listed: Listed, topic: Topic) -> list[tuple[str, str]]:
    """(form, question) for a value, without a question mark."""
    name, value, unit = listed.name, listed.value, ""
    if match := _UNIT.search(name):
        bare = name[: match.start()]
        if re.fullmatch(r"[\d.,\s/×x–-]+", value):
            name, unit = bare, f" in {match[1]}"
    name = _small(name)
    of = _with_article(listed.of) if listed.of else topic.name
    # "For the Velm K3, what is the price of the filter?": a row's name alone does not say what it belongs to.
    own = sum(word[:1].isupper() for word in of.split()) > 1 or topic.bare.lower() in of.lower()
    extra = topic.name if listed.of and not own else ""
    if not _is_thing(name) or value.lower() in ("yes", "no"):
        whole = " and ".join(part for part in (of, extra) if part)
        after = f" for {whole}" if whole else ""
        return [
            ("direct", f'What is given under "{name}"{after}'),
            ("named", f'What does it say under "{name}"{after}'),
            ("indirect", f'Can you tell me what is given under "{name}"{after}'),
        ]
    be = "are" if _is_plural(name) else "is"
    if _LINKED.search(name):  # "the time to heat up"
        thing, lead = f"the {name}", f"For {' and '.join(part for part in (of, extra) if part)}, " if of else ""
        return [
            ("direct", f"{lead}what {be} {thing}{unit}"),
            ("echo", f"{lead}{thing} {be} what{unit}"),
            ("indirect", f"{lead}can you tell me {thing}{unit}"),
        ]
    if topic.kind == "talk" and not listed.of:  # "the severity" is not that of the report
        return [
            ("direct", f"In {of}, what {be} the {name}{unit}"),
            ("echo", f"In {of}, the {name} {be} what{unit}"),
            ("indirect", f"Can you tell me what the {name} {be} in {of}"),
        ]
    joint = "at" if _CLOCK.match(of) else "of"
    thing = f"the {name} {joint} {of}" if of else f"the {name}"
    lead, end = (f"For {extra}, ", f" for {extra}") if extra else ("", "")
    forms = [
        ("direct", f"What {be} {thing}{unit}{end}"),
        ("echo", f"{lead}{thing} {be} what{unit}"),
        ("indirect", f"Can you tell me {thing}{unit}{end}"),
    ]
    if extra:
        forms.append(("prefix", f"{lead}what {be} {thing}{unit}"))
    elif of:
        forms += [
            ("prefix", f"For {of}, what {be} the {name}{unit}"),
            ("named", f"What {name} does {of} have{unit}"),
        ]
    asked = _ASKED.get(name, ()) if of and not unit and not _is_plural(of.split()[-1].lower()) else ()
    return forms + [("synonym", lead + (text[:1].lower() + text[1:] if lead else text).format(of)) for text in asked]


def _keeps_capitals(word: str) -> bool:
    return (
        not word[:1].isupper() or word[1:] != word[1:].lower() or any(map(str.isdigit, word)) or len(word) == 1
        or word in w.MONTHS + w.DAYS or not w.is_known(word)
    )  # fmt: skip


def _small(name: str) -> str:
    """A name of a value as it stands inside a sentence: "Tank Capacity" is "tank capacity"."""
    return " ".join(word if _keeps_capitals(word) else word.lower() for word in name.split())


def _with_article(name: str) -> str:
    """A row's name inside a sentence: "Filter" is "the filter"; proper names and numbers stay."""
    parts = name.split()
    capitals = [word for word in parts if word[:1].isupper()]
    if len(capitals) > 1 or any(map(str.isdigit, name)) or _keeps_capitals(parts[0]):
        return name
    small = parts[0].lower() + name[len(parts[0]) :]
    forms = w.forms(parts[-1].lower())
    article = "NOUN" in forms and "ADJ" not in forms and parts[0].lower() not in w.DETERMINERS
    return f"the {small}" if article else small


def _is_thing(name: str) -> bool:
    """Whether "the ..." can stand before a name."""
    words = re.sub(r"\s*[(\[].*", "", name).split()
    if not words or words[0].lower() in w.DETERMINERS:
        return False
    if words[-1].lower() in w.PREPOSITIONS | w.ADVERBS and "to" not in words:
        return False
    head = _LINKED.split(" ".join(words))[0].split()[-1].lower()
    return "NOUN" in w.forms(head) or not w.is_known(head)


def _is_plural(name: str) -> bool:
    last = (_LINKED.split(re.sub(r"\s*[(\[].*", "", name))[0].split() or [""])[-1].lower()
    if not last.endswith("s") or last.endswith("ss") or last in _ALWAYS_SINGULAR:
        return False
    lemmas = w.forms(last).get("NOUN", ())
    return any(lemma != last for lemma in lemmas) if lemmas else last.endswith(("ies", "ers", "ors", "ions"))
