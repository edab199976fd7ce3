"""Parts of speech that the words around a word decide: orders, participles, nouns that look like verbs.

Each rule looks at one word; the first that applies puts its tag right.
"""

from collections.abc import Callable

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.words import forms, may_be, verb_lemma

VERBS = ("VBD", "VBZ", "VBP", "MD", "VB")
_FINITE = ("VBZ", "VBD", "MD", "VBP")
_ORDERS, _SAYING, _COLOURS = WORDS["orders"], WORDS["saying"], WORDS["colours"]
# What stands at the beginning of a sentence whose order comes after a comma.
_BEFORE_ORDERS = w.SUBORDINATORS | {
    "once", "after", "before", "since", "unless", "to", "until", "for", "in", "at", "on",
}  # fmt: skip


class _Place:
    """A word in its sentence."""

    def __init__(self, lows: list[str], tags: list[str], n: int):
        self.lows, self.tags, self.n = lows, tags, n
        self.low, self.tag = lows[n], tags[n]
        self.last, self.last_tag = lows[n - 1], tags[n - 1]
        self.before_tag = tags[n - 2] if n > 1 else "."
        self.next = lows[n + 1] if n + 1 < len(lows) else ""
        self.next_tag = tags[n + 1] if n + 1 < len(tags) else "."
        self.third_tag = tags[n + 2] if n + 2 < len(tags) else "."

    def may_be(self, tag: str) -> bool:
        """Whether the word may be this form of a verb."""
        return may_be(self.low, tag)

    @property
    def is_noun(self) -> bool:
        """Whether the word may be a noun."""
        return "NOUN" in forms(self.low)


def correct_by_neighbours(lows: list[str], tags: list[str]) -> None:
    """Puts the tags of a sentence right, in place."""
    _correct_participles(lows, tags)
    if not tags:
        return
    _correct_beginning(lows, tags)
    for n in range(1, len(tags)):
        place = _Place(lows, tags, n)
        for rule in _RULES:
            if tag := rule(place):
                tags[n] = tag
                break


def _correct_beginning(lows: list[str], tags: list[str]) -> None:
    if len(tags) > 2 and lows[0] in _ORDERS and tags[0] in ("NN", "JJ") and tags[1] in ("NNS", "VBZ", "NN"):
        ends = tags[2] in ("TO", "IN", ",", "CC", ".")
        if ends and not any(tag in ("MD", "VBD", "VBP") for tag in tags):  # "Report leaks to the landlord"
            tags[0], tags[1] = "VB", "NNS" if tags[1] == "VBZ" else tags[1]
    described = len(tags) > 3 and tags[1] in ("JJ", "VBN", "VBD") and tags[2] in ("NN", "NNS")
    if described and lows[0] in _ORDERS and not any(tag in _FINITE for tag in tags[2:]):
        tags[:2] = ["VB", "JJ"]  # "Report broken lockers to the attendant"
    if tags[0] == "NNP" and lows[0].endswith("s") and lows[1:2] in (["are"], ["were"], ["have"], ["do"]):
        tags[0] = "NNS"  # "Nits have been found"


def _correct_participles(lows: list[str], tags: list[str]) -> None:
    """ "Claims approved by noon will be paid": a past form before the verb with a tense belongs to the noun."""
    for n in range(1, len(tags) - 1):
        if tags[n] != "VBD" or tags[n - 1] not in ("NN", "NNS") or tags[n + 1] not in ("IN", "TO"):
            continue
        if lows[n] in w.BE | w.HAVE | w.DO or not may_be(lows[n], "VBD"):
            continue
        for k in range(n + 1, len(tags)):
            if tags[k] in (",", "CC", ";", "WDT", "WP", "WRB") or lows[k] in w.SUBORDINATORS | {"that"}:
                break
            if tags[k] in ("MD", "VBZ") or lows[k] in ("are", "was", "were"):
                tags[n] = "VBN"
                break


def _discovered_a_lake(at: _Place) -> str:
    """ "The team discovered a lake that was frozen": what has an object is no participle."""
    done = at.tag == "VBN" and at.last_tag in ("NN", "NNS") and at.next_tag in ("DT", "PRP$")
    free = not any(low in w.BE | w.HAVE | {"that", "which", "who", "called", "named"} for low in at.lows[: at.n])
    return "VBD" if done and free and at.low not in ("called", "named", "given", "done") else ""


def _painted(at: _Place) -> str:
    """ "paint the door orange"."""
    painting = {"paint", "painted", "dye", "dyed", "colour", "color"} & set(at.lows[: at.n])
    return "JJ" if painting and at.low in _COLOURS and at.last_tag == "NN" and at.tag == "NN" else ""


def _have_it_signed(at: _Place) -> str:
    had = at.tag == "VBD" and at.last in ("it", "them") and at.n > 1 and at.lows[at.n - 2] == "have"
    return "VBN" if had else ""


def _let_it_cool(at: _Place) -> str:
    if at.tag not in ("NN", "JJ") or "let" not in at.lows[: at.n - 1] or at.last_tag not in ("NN", "NNP"):
        return ""
    whole = at.lows[at.n - 2] in w.DETERMINERS or at.before_tag in ("NNP", "NN")
    return "VB" if whole and at.next_tag in ("IN", ".", ",", "RB") and at.may_be("VB") else ""


def _after_please(at: _Place) -> str:
    return "VB" if at.last == "please" and at.may_be("VB") else ""


def _stays_closed(at: _Place) -> str:
    stays = at.last_tag in VERBS and verb_lemma(at.last) in ("stay", "remain", "keep")
    return "VBN" if at.tag == "VBD" and stays else ""


def _you_lose(at: _Place) -> str:
    free = at.before_tag not in ("MD", "VB", "VBP", "TO", "VBZ", "VBD")  # "should you lose", "helps you lose"
    return "VBP" if at.tag == "VB" and at.last in ("i", "you", "we", "they") and free else ""


def _after_possessive(at: _Place) -> str:
    return "NN" if at.tag in ("VB", "VBP") and at.last_tag == "POS" and at.is_noun else ""


def _order_after_another(at: _Place) -> str:
    """ "Fill the tank and press the button"; "If you arrive late, ring the bell"."""
    if at.tag not in ("NN", "JJ", "VBP") or at.last_tag not in ("CC", ",") or not at.may_be("VB"):
        return ""
    opens = at.next_tag in ("DT", "PRP$", "CD") or at.next in ("whether", "that")
    first = at.tags[0] == "VB" or (at.last_tag == "," and at.lows[0] in _BEFORE_ORDERS)
    return "VB" if opens and first else ""


def _verb_after_relative_clause(at: _Place) -> str:
    """ "Mrs Hall, who runs the shop, answers questions"."""
    if at.tag != "NNS" or at.last_tag != "," or not at.may_be("VBZ"):
        return ""
    begin = next((k for k in range(1, at.n) if at.lows[k] in ("who", "which") and at.tags[k - 1] == ","), None)
    if begin is None or any(tag in _FINITE for tag in (*at.tags[:begin], *at.tags[at.n + 1 :])):
        return ""
    return "VBZ"


def _leaves_and_returns(at: _Place) -> str:
    """ "leaves at 8:40 and returns at 4 pm"."""
    joined = at.tag == "NNS" and at.last_tag == "CC" and at.before_tag == "CD" and "VBZ" in at.tags[: at.n]
    return "VBZ" if joined and at.next_tag in ("IN", "TO", "DT") and at.may_be("VBZ") else ""


def _noun_before_verb(at: _Place) -> str:
    """ "the summer fair is"."""
    noun = at.tag == "JJ" and at.last_tag in ("DT", "NN", "JJ") and at.next_tag in ("VBZ", "VBD", "MD")
    return "NN" if noun and at.is_noun else ""


def _pump_before_works(at: _Place) -> str:
    """ "until the pump works, ..."."""
    noun = (
        at.tag in ("VB", "VBP") and at.last_tag == "DT" and at.next_tag == "NNS" and at.third_tag in (",", "IN", ".")
    )
    return "NN" if noun and at.is_noun and may_be(at.next, "VBZ") else ""


def _works_after_pump(at: _Place) -> str:
    opened = at.n > 2 and at.lows[at.n - 3] in _BEFORE_ORDERS - {"for", "in", "at", "on", "to"}
    works = at.tag == "NNS" and at.last_tag == "NN" and at.before_tag == "DT" and at.next_tag in (",", "IN", ".")
    return "VBZ" if opened and works and at.may_be("VBZ") else ""


def _fear_that(at: _Place) -> str:
    """ "Shops in Mill Street fear that"."""
    if at.tag != "NN" or at.next != "that" or verb_lemma(at.low) not in _SAYING:
        return ""
    return "VBP" if "NNS" in at.tags[: at.n] and not any(tag in VERBS for tag in at.tags[: at.n]) else ""


def _long_after(at: _Place) -> str:
    """ "stays hot long after"."""
    return "RB" if at.low == "long" and at.last_tag == "JJ" and at.next in ("after", "before") else ""


def _people_walk(at: _Place) -> str:
    """ "and people walk the last bit"."""
    plain = at.tag in ("VB", "NN") and at.last_tag == "NNS" and at.before_tag in ("CC", ",")
    return "VBP" if plain and at.next_tag in ("DT", "PRP$") and at.may_be("VB") else ""


def _turns_tap_water(at: _Place) -> str:
    """ "turns tap water into"."""
    helping = w.BE | w.HAVE | w.DO | {"helps", "lets", "makes"}
    noun = at.tag in ("VB", "VBP") and at.last_tag == "VBZ" and at.last not in helping
    return "NN" if noun and at.next_tag in ("NN", "NNS") and at.is_noun else ""


_RULES: tuple[Callable[[_Place], str], ...] = (
    _discovered_a_lake,
    _painted,
    _have_it_signed,
    _let_it_cool,
    _after_please,
    _stays_closed,
    _you_lose,
    _after_possessive,
    _order_after_another,
    _verb_after_relative_clause,
    _leaves_and_returns,
    _noun_before_verb,
    _pump_before_works,
    _works_after_pump,
    _fear_that,
    _long_after,
    _people_walk,
    _turns_tap_water,
)
