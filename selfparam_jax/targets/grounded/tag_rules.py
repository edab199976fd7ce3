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
_CHAINS, _DONE_TO = WORDS["chains"], WORDS["done_to"]
_QUARTERS = ("north", "south", "east", "west")
_WE = ("i", "you", "we", "they")
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
    # "showed that the caves fed the wells": the verb of a clause of its own.
    said = next((k for k in range(at.n - 1, 0, -1) if at.lows[k] == "that"), 0)
    begin = said + 1 if said and verb_lemma(at.lows[said - 1]) in _SAYING else 0
    busy = w.BE | w.HAVE | {"that", "which", "who", "called", "named"}
    free = not any(low in busy for low in at.lows[begin : at.n])
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


def _sold_paper_tickets(at: _Place) -> str:
    """ "Staff sold paper tickets from a box": no participle, as there is no other verb."""
    done = at.tag == "VBN" and at.last_tag in ("NN", "NNS") and at.next_tag == "NN" and at.third_tag in ("VBZ", "NNS")
    return "VBD" if done and not any(tag in VERBS for tag in at.tags[: at.n]) and at.low != "written" else ""


def _tickets_sold(at: _Place) -> str:
    """ "sold paper tickets": the noun after it, which has the form of a verb."""
    plural = at.tag == "VBZ" and at.last_tag == "NN" and at.before_tag == "VBD" and at.is_noun
    return "NNS" if plural and at.next_tag in ("IN", "TO", ".", ",") else ""


def _who_left(at: _Place) -> str:
    """ "who left the firm"; "Ana Volk left after two years"."""
    if at.tag != "VBN" or not at.may_be("VBD"):
        return ""
    if at.last in ("who", "which"):
        return "VBD"
    end = next((k for k in range(at.n, len(at.tags)) if at.tags[k] == "," or at.lows[k] in w.SUBORDINATORS), None)
    begins = not any(tag in (*VERBS, "IN", ",") for tag in at.tags[: at.n])
    alone = not any(tag in VERBS for tag in at.tags[at.n + 1 : end])
    return "VBD" if at.last_tag == "NNP" and begins and alone and at.next_tag == "IN" and at.next != "by" else ""


def _changed_and_sent(at: _Place) -> str:
    """ "is changed every month and sent by text": both are done to it."""
    joined = at.tag == "VBD" and at.last_tag in ("CC", ",", "RB") and at.next_tag in ("IN", "TO", ".", ",", "RB")
    passive = any(low in w.BE and tag == "VBN" for low, tag in zip(at.lows[: at.n], at.tags[1 : at.n], strict=False))
    return "VBN" if joined and passive and (at.next == "by" or verb_lemma(at.low) in _DONE_TO) else ""


def _a_dry_spell(at: _Place) -> str:
    """ "in a dry spell the chair", "a shed may", "the north hedge"."""
    if at.tag not in ("VB", "VBP"):
        return ""
    described = at.last_tag in ("JJ", "RB", "NN") and at.before_tag in ("DT", "PRP$")
    if described and at.is_noun and at.next_tag in ("DT", ".", ",", "MD", "IN", "VBZ", "VBD", "CC", "TO"):
        return "NN"
    return "NN" if at.last_tag in ("DT", "PRP$") and at.next_tag in ("MD", "NN") else ""


def _cost_us(at: _Place) -> str:
    """ "The restart cost us time"."""
    noun = at.tag == "NN" and at.last_tag == "NN" and at.next in ("us", "them", "me", "him") and at.may_be("VBD")
    return "VBD" if noun else ""


def _refused_to_travel(at: _Place) -> str:
    """ "refused to travel to", "too hot to touch", "I need to"."""
    verb = at.tag == "NN" and at.may_be("VB")
    if verb and at.last_tag == "TO" and at.n > 1:
        chained = at.before_tag in VERBS and verb_lemma(at.lows[at.n - 2]) in _CHAINS
        too = at.before_tag == "JJ" and "too" in at.lows[: at.n - 1]
        return "VB" if (chained and at.next_tag in ("TO", "IN", "RB", ".", ",")) or too else ""
    return "VBP" if verb and at.last in _WE and at.next_tag in ("TO", "IN", "DT") and at.n == 1 else ""


def _contact_us(at: _Place) -> str:
    """ "unplug it and contact us": a second order."""
    second = at.tag in ("VBP", "NN") and at.last_tag in ("CC", ",") and at.next in ("us", "it", "them", "me", "him")
    return "VB" if second and "VB" in at.tags[: at.n] and at.may_be("VB") else ""


def _spending_her_days(at: _Place) -> str:
    """ ", spending her Sundays underground"."""
    doing = at.tag == "NN" and at.last_tag == "," and at.next_tag in ("PRP$", "DT") and at.low.endswith("ing")
    return "VBG" if doing else ""


def _in_writing(at: _Place) -> str:
    return "NN" if at.low == "writing" and at.last == "in" and at.tag == "VBG" else ""


def _north(at: _Place) -> str:
    """ "the north hedge"."""
    return "JJ" if at.tag == "RB" and at.last_tag == "DT" and at.low in _QUARTERS and at.next_tag != "." else ""


def _takes_it_home(at: _Place) -> str:
    return "RB" if at.low == "home" and at.last_tag in ("NN", "NNS", "PRP") and at.next_tag in (".", ",") else ""


def _next_to(at: _Place) -> str:
    """Prepositions of two words, which the tagger takes apart."""
    return "IN" if (at.low, at.next) in (("next", "to"), ("instead", "of"), ("close", "to")) else ""


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
    _sold_paper_tickets,
    _tickets_sold,
    _who_left,
    _changed_and_sent,
    _north,
    _a_dry_spell,
    _cost_us,
    _refused_to_travel,
    _contact_us,
    _spending_her_days,
    _in_writing,
    _takes_it_home,
    _next_to,
)
