"""How the parts of a clause are put into words: forms of verbs, what is left out, capitals."""

from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.clauses import Clause
from selfparam_jax.targets.grounded.lexicon import SYNONYMS, WORDS
from selfparam_jax.targets.grounded.phrases import MEASURES, ROLES, TIMES, NounPhrase, text_of
from selfparam_jax.targets.grounded.words import Word, inflect

_CONDITIONS = ("when", "once", "to", "before", "after")
_MATERIALS = WORDS["materials"]
_PEOPLE_NOUNS = WORDS["people_nouns"]
WHERE = WORDS["where"] | {"close to", "next to", "in front of"}


def is_needed(clause: Clause, k: int) -> bool:
    """Whether a phrase belongs to what the verb says, and is no mere circumstance."""
    phrase = clause.rest[k]
    if phrase.kind in ("adj", "inf", "that"):
        return True
    if phrase.kind == "reason":
        return False
    if phrase.kind == "adv":
        return (
            phrase.words[0].low in ("on", "off", "out", "up", "down", "away", "back", "not", "over", "in")
            or clause.verb.copula
        )
    if phrase.kind == "sub":
        # "To call reception, dial 9": what is to be done then, and not at any time.
        return phrase.preposition in ("if", "unless") or (clause.order and phrase.preposition in _CONDITIONS)
    kind = phrase.phrase.kind() if phrase.phrase is not None else ""
    if phrase.kind == "pp" and not clause.order and phrase.words[0].begin < clause.verb.words[0].begin:
        return False  # "At nineteen she won": said in front, so not what the verb is about
    if phrase.kind == "np":
        timed = phrase.phrase.noun in TIMES and phrase.phrase.determiner in ("every", "each")
        return kind not in ("date", "time") and not timed
    if kind in ("date", "time", "duration", "money"):
        return (
            not any(other.kind in ("np", "adj", "pp") for j, other in enumerate(clause.rest) if j < k)
            and not clause.verb.passive
            and clause.verb.copula
        )
    if phrase.preposition == "of" or (clause.verb.copula and k <= 1):
        return True
    named = phrase.preposition in ("in", "near", "at") and phrase.phrase.has_name
    if (kind in ("place", "organisation") and phrase.preposition in WHERE) or named:
        return not any(other.kind in ("np", "pp") for other in clause.rest[:k]) and not (
            clause.verb.passive and clause.verb.lemma in ("hold",)
        )
    if phrase.preposition == "by" and clause.verb.passive:
        return False
    return k == 0 or clause.rest[k - 1].kind in ("np", "adj")


def is_kept(word: Word) -> bool:
    """Adverbs that only tie a sentence to the one before are left out of questions."""
    return word.low not in ("only", "also", "now", "still", "therefore", "however", "then", "already")


def verb_text(clause: Clause, singular: bool = False) -> str:
    """The verb group as it stands, or (`singular`) in the form that "who" and "what" have after them."""
    group = clause.verb
    words = [word.text for word in group.words if is_kept(word)]
    if not words:
        return ""
    first = next(k for k, word in enumerate(group.words) if word.is_verb or word.tag == "VB")
    word = group.words[first]
    if singular:
        changed = w.SINGULAR.get(word.low)
        if changed is None and word.tag in ("VBP", "VB"):
            changed = inflect(w.verb_lemma(word.text), "VBZ")
        if changed:
            at = words.index(word.text)
            words[at] = changed
    chain = [text_of(group.chain)] if group.chain else []
    return " ".join([*words, *chain])


def same_form(verb: str, tag: str) -> str:
    """Another verb in the form that a tag names; what follows its first word stays ("turn off", "turned off")."""
    first, _, rest = verb.partition(" ")
    made = inflect(first, tag) if tag in ("VBD", "VBN", "VBZ", "VBG") else first
    return f"{made} {rest}".strip()


def active_verb(clause: Clause, lemma: str = "") -> str:
    """The verb of a passive clause in the active, for a subject in the third person."""
    group = clause.verb
    verb = lemma or group.lemma
    particle = "" if group.particle is None or lemma else " " + group.words[group.particle].text
    before = [word for word in group.words[: group.main] if is_kept(word)]
    be = next(word for word in before[::-1] if word.low in w.BE)
    rest = [word.text for word in before if word is not be]
    if be.low in ("is", "are", "am"):
        made = same_form(verb, "VBZ")
    elif be.low in ("was", "were"):
        made = same_form(verb, "VBD")
    elif be.low == "been":
        made = same_form(verb, "VBN")
        rest = ["has" if text == "have" else text for text in rest]
    elif be.low == "being":
        made = same_form(verb, "VBG")
    else:
        made = verb
    if (
        made.split()[0] != verb.split()[0]
        and be.low in ("is", "are", "was", "were")
        and any(text == "not" for text in rest)
    ):
        return f"{'did' if be.low in ('was', 'were') else 'does'} not {verb}{particle}"
    return " ".join([*rest, made]) + particle


def synonyms(clause: Clause, singular: bool = False, active: bool = False, plain: bool = False) -> list[str]:
    """Other verbs for the clause's.

    Args:
      clause: whose verb is replaced.
      singular: in the form that "who" and "what" have after them.
      active: in the active, for a passive clause.
      plain: as infinitives.

    Returns:
      the verbs with their auxiliaries, in the clause's form; [] where none fits.
    """
    group = clause.verb
    made_of = group.lemma == "make" and any(phrase.preposition in ("of", "from") for phrase in clause.rest)
    # "The cold tap runs": nobody manages it.
    objects = [phrase.phrase for phrase in clause.rest if phrase.kind == "np"]
    alone = group.lemma == "run" and not group.passive
    alone &= all(found.determiner in ("every", "each") for found in objects)
    if group.chain or group.negative or group.copula or made_of or alone:
        return []
    lemma = group.lemma + ("" if group.particle is None else " " + group.words[group.particle].low)
    others = SYNONYMS.get(lemma, ())
    if plain:
        return list(others)
    if active:
        return [active_verb(clause, other) for other in others]
    made = []
    for other in others:
        before = [word.text for word in group.words[: group.main] if is_kept(word)]
        if singular:
            before = [{"are": "is", "were": "was", "have": "has"}.get(text.lower(), text) for text in before]
        tag = group.words[group.main].tag
        tag = "VBZ" if singular and tag in ("VBP", "VB") and not before else tag
        made.append(" ".join([*before, same_form(other, tag)]))
    return made


def participle_of(verb: str) -> str:
    """The participle of a verb; what follows its first word stays."""
    first, _, rest = verb.partition(" ")
    return f"{inflect(first, 'VBN')} {rest}".strip()


def plural(noun: str) -> str:
    """A noun in the plural."""
    return noun if noun.endswith("s") else inflect(noun, "NNS")


def units(found: NounPhrase) -> str:
    """What a number counts, in the plural."""
    words = list(found.words[found.number + 1 :])
    text = text_of(words)
    head = found.words[found.head]
    return text.replace(head.text, plural(head.text), 1) if head.tag == "NN" and head.low not in MEASURES else text


def are_people(found: NounPhrase) -> bool:
    """Whether a common noun is one of persons, in the singular or plural."""
    single = found.noun + "s" in _PEOPLE_NOUNS
    return found.noun in _PEOPLE_NOUNS or single or (found.plural and found.noun.removesuffix("s") in ROLES)


def parts_and_materials(words: Sequence[Word]) -> list[tuple[str, str]]:
    """The parts that some words say the material of: ("lid", "cherry wood") of "a lid of cherry wood"."""
    found = []
    for k, word in enumerate(words):
        if word.low not in _MATERIALS:
            continue
        after = words[k + 1] if k + 1 < len(words) else None
        begin = k
        while begin and words[begin - 1].tag in ("JJ", "NN") and words[begin - 1].low != "of":
            begin -= 1
        if begin > 1 and words[begin - 1].low == "of" and words[begin - 2].tag == "NN":
            if after is None or after.low in ("and", ","):
                found.append((words[begin - 2].low, text_of(words[begin : k + 1])))
        elif after is not None and after.tag == "NN" and (k + 2 == len(words) or words[k + 2].tag != "NN"):
            found.append((after.low, word.low))
    return found


def is_day(found: NounPhrase) -> bool:
    """Whether a noun phrase names a month or a day of the week."""
    return any(word.text in w.MONTHS or word.text.rstrip("s") in w.DAYS for word in found.words)


def amount(found: NounPhrase) -> str:
    """A sum of money without what is joined to it by "of"."""
    return text_of(found.words[: found.core])


def lower(text: str, words: Sequence[Word]) -> str:
    """The text with its first letter small, unless it begins with a name."""
    if (
        not words
        or words[0].tag == "NNP"
        or words[0].text == "I"
        or (words[0].text.isupper() and len(words[0].text) > 1)
    ):
        return text
    return text[:1].lower() + text[1:]


def has_pronoun(words: Sequence[Word], ok: Sequence[str] = ()) -> bool:
    """Whether there is a word whose meaning the question itself does not give; `ok` are exceptions."""
    unclear = (
        "i",
        "me",
        "mine",
        "yours",
        "theirs",
        "he",
        "she",
        "it",
        "we",
        "they",
        "him",
        "us",
        "them",
        "my",
        "our",
        "this",
        "these",
        "those",
        "there",
        "here",
    )
    return any(
        word.low == "same"  # as what?
        or (
            word.low in unclear
            and word.low not in ok
            and not (word.low in ("this", "these", "those") and word.tag == "DT")
        )
        for word in words
    )


def mark(text: str) -> str:
    """The text as a question: a capital first, a question mark last."""
    text = " ".join(text.replace(" ,", ",").split()).rstrip(" ,;")
    text = text.replace(" can not ", " cannot ")
    text = text if text.endswith((".m.", "Dr.", "St.")) else text.rstrip(".")
    return text[:1].upper() + text[1:] + "?"
