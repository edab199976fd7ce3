"""Sentences put into a form that can be read: left-out words, conditions without "if", what "it" of an order is."""

import dataclasses
import re

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause, Reading
from selfparam_jax.targets.grounded.parser import read_sentence
from selfparam_jax.targets.grounded.rendering import lower
from selfparam_jax.targets.grounded.tagging import tag_words

_ISSUED = re.compile(
    r"((?:Version|Edition|Issue|Revision|Draft) [\w.]+),? (issued|published|released|approved|written|revised)"
    r"((?: on)? \d{1,2} [A-Z]\w+ \d{4})?( by .+)?\.?"
)
_INVERTED = re.compile(r"Should ((?:the |an? |any |your )?[\w-]+(?: [\w-]+){0,3}?) (be|[a-z]+)((?: [^,]+?)?, .+)")
_LEFT_OUT = re.compile(r"If (?:(?:it|they|this|that) (?:does|do|is|are|has|have|can) not|not), ")
_CHECKED = re.compile(r"(?i)(?:please )?(?:check|make sure|ensure|verify|see) (?:that )?(.+?)\.?")
_SPREAD = frozenset(("spray", "pour", "spill", "inhale", "swallow", "dilute", "drink"))  # done with a substance
_BEFORE = ("do", "never", "always", "then", "please", "afterwards", "finally")
_POINTING = re.compile(r"(?i)this|that|this (?:change|rule|step|decision|move|measure)|these (?:changes|rules|steps)")


def whole_sentence(text: str, names: frozenset[str]) -> str:
    """ "Version 5, issued 9 September 2024 by Ilsa Throve" with its verb; other texts as they are."""
    match = _ISSUED.fullmatch(text)
    if not match or not (match[3] or match[4]):
        return text
    day = f" on {match[3].strip().removeprefix('on ')}" if match[3] else ""
    return f"{match[1]} was {match[2]}{day}{match[4] or ''}."


def plain_condition(text: str, names: frozenset[str]) -> str:
    """ "Should the pump fail, ..." as "If the pump fails, ..."."""
    match = _INVERTED.fullmatch(text)
    if not match or text.endswith("?") or (not w.may_be(match[2], "VB") and match[2] != "be"):
        return text
    subject = tag_words(match[1], names)
    several = subject[-1].tag == "NNS" or match[1] in ("they", "you")
    verb = ("are" if several else "is") if match[2] == "be" else match[2] if several else w.inflect(match[2], "VBZ")
    return f"If {match[1]} {verb}{match[3]}"


def with_condition(text: str, before: str) -> str:
    """ "Check that the lid sits flat. If it doesn't, ..." as "If the lid does not sit flat, ..."."""
    match, checked = _LEFT_OUT.match(text), _CHECKED.fullmatch(before)
    if not match or not checked:
        return text
    found = read_sentence(tag_words(checked[1][:1].upper() + checked[1][1:]))
    if not found.complete or len(found.clauses) != 1 or found.clauses[0].subject is None:
        return text
    clause = found.clauses[0]
    rest = " ".join(phrase.text for phrase in clause.rest)
    group = clause.verb
    if group.negative or group.chain:
        return text
    if group.aux is not None:
        at = group.aux + 1
        verb = " ".join([*(word.text for word in group.words[:at]), "not", *(word.text for word in group.words[at:])])
    else:
        does = "do" if clause.subject.plural else "does"
        after = [word.text for word in group.words[group.main + 1 :]]
        verb = " ".join([does, "not", group.lemma, *after])
    subject = lower(clause.subject.text, clause.subject.words)
    subject += "".join(" " + phrase.text for phrase in clause.tail)
    return f"If {subject} {verb} {rest}".rstrip() + ", " + text[match.end() :]


def with_object(text: str, last: Reading, names: frozenset[str]) -> str:
    """ "Rinse the barley. Simmer it": an order's "it" is what the order before was about, where that is one thing."""
    orders = [clause for clause in last.clauses if clause.source == "main"]
    if len(orders) != 1 or not orders[0].order or not last.complete:
        return text
    words = tag_words(text, names)
    at = next(
        (n for n, word in enumerate(words[:4]) if word.tag == "VB" and (n == 0 or words[0].low in _BEFORE)), None
    )
    if at is None or at + 1 >= len(words) or words[at + 1].low not in ("it", "them"):
        return text
    rest = [phrase for phrase in orders[0].rest if phrase.phrase is not None and not phrase.phrase.pronoun]
    objects = [
        phrase for phrase in rest if phrase.kind == "np" and phrase.phrase.kind() in ("thing", "place", "count")
    ]
    substances = [phrase for phrase in rest if phrase.preposition == "with" and not phrase.phrase.determiner]
    others = [phrase for phrase in rest if phrase.kind == "pp" and phrase.phrase.determiner in ("the", "a", "an")]
    if words[at].low in _SPREAD:
        found = substances
    elif substances or others or len(objects) != 1 or objects[0].phrase.core < len(objects[0].phrase.words):
        return text
    else:
        found = objects
    if len(found) != 1 or found[0].phrase.plural != (words[at + 1].low == "them"):
        return text
    thing = lower(found[0].phrase.text, found[0].phrase.words)
    thing = re.sub(r"^an? ", "the ", thing)
    return text[: words[at + 1].begin] + thing + text[words[at + 1].end :]


def explained(reading: Reading, last: Reading) -> tuple[Clause, ...]:
    """The main clause of the sentence before, with the reason that this one gives for it ("This is because ...")."""
    main = [clause for clause in last.clauses if clause.source == "main"]
    for clause in reading.clauses[:1]:
        reason = next((phrase for phrase in clause.rest if phrase.kind == "reason"), None)
        if reason is None or not main or any(phrase.kind == "reason" for phrase in main[0].rest):
            return ()
        pointing = [clause.subject] if clause.subject is not None else []
        pointing += [phrase.phrase for phrase in clause.rest if phrase.kind == "np"]
        shared = [other for other in main[1:] if other.subject is main[0].subject]
        if not shared and any(_POINTING.fullmatch(found.text) for found in pointing if found is not None):
            told = (*(phrase for phrase in main[0].rest if phrase.kind != "sub"), reason)
            return (dataclasses.replace(main[0], rest=told, source="reason"),)
    return ()
