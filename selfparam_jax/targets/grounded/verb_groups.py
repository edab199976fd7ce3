"""Verb groups in a list of words: auxiliaries, verb and particle, and an infinitive that the verb leads to."""

import dataclasses
from collections.abc import Sequence

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.words import Word


@dataclasses.dataclass(frozen=True)
class VerbGroup:
    """Auxiliaries and verb of a clause.

    Attributes:
      words: as they stand, adverbs between them included.
      aux: index of the auxiliary that goes before the subject in a question; None if "do" must be put there.
      main: index of the main verb.
      particle: index of its particle ("off" of "shut off"); None if there is none.
      chain: words of an infinitive that the verb leads to ("to fetch" of "offered to fetch").
    """

    words: tuple[Word, ...]
    aux: int | None
    main: int
    particle: int | None = None
    chain: tuple[Word, ...] = ()

    @property
    def lemma(self) -> str:
        """Infinitive of the main verb."""
        return w.verb_lemma(self.words[self.main].text)

    @property
    def copula(self) -> bool:
        """Whether the main verb is "be"."""
        return self.words[self.main].low in w.BE

    @property
    def passive(self) -> bool:
        """Whether it is a form of "be" with a participle."""
        before = [word.low for word in self.words[: self.main]]
        return self.words[self.main].tag == "VBN" and any(low in w.BE for low in before)

    @property
    def negative(self) -> bool:
        """Whether it is negated."""
        return any(word.low in ("not", "never", "n't") for word in self.words)


_PARTICLES = frozenset(["off", "out", "up", "down", "away", "back", "over", "on"])
_CHAINS = WORDS["chains"]
# Verbs with the particles that stand before their object.
_WITH_OBJECT = {
    "fill": ("in", "out"), "hand": ("in", "out"), "plug": ("in",), "send": ("in",), "lift": ("out", "off", "up"),
    "take": ("out", "off"), "pull": ("out", "off", "up"), "switch": ("on", "off"), "turn": ("on", "off"),
    "cut": ("off", "out"), "put": ("on", "up", "away"), "throw": ("away", "out"), "wipe": ("off", "down"),
    "set": ("up",), "pick": ("up",), "clean": ("out",), "rinse": ("out",), "write": ("down",), "screw": ("on", "off"),
}  # fmt: skip


def verb_group(words: Sequence[Word], at: int) -> tuple[VerbGroup, int] | None:
    """The verb group with a tense that begins at a word, and where it ends; None if there is none."""
    n, size = at, len(words)
    while (
        n < size
        and (words[n].tag == "RB" or words[n].low in ("also", "still", "now", "then", "soon", "first"))
        and n - at < 3
    ):
        n += 1
    if n >= size or not (words[n].is_verb or words[n].tag == "VB"):
        return None
    first = n
    verbs = [n]
    n += 1
    while n < size and len(verbs) < 5:
        last = words[verbs[-1]].low
        takes = words[verbs[-1]].tag == "MD" or last in w.BE | w.HAVE | w.DO
        if not takes:
            break
        if words[n].tag in ("RB", "RBR") or words[n].low in (
            "not",
            "also",
            "still",
            "now",
            "only",
            "just",
            "already",
            "first",
            "once",
        ):
            ahead = n
            while ahead < size and (
                words[ahead].tag in ("RB", "RBR") or words[ahead].low in w.ADVERBS or words[ahead].low == "not"
            ):
                ahead += 1
            if ahead < size and _continues(words, verbs, ahead):
                n = ahead
                continue
            if words[n].low == "not":
                n += 1
            break
        if not _continues(words, verbs, n):
            break
        verbs.append(n)
        n += 1
    main = verbs[-1]
    aux = None
    if len(verbs) > 1 or words[main].low in w.BE or words[main].tag == "MD":
        aux = first
    end = n
    particle = None
    if end < size and words[end].low in _PARTICLES and words[main].low not in w.BE:
        after = words[end + 1] if end + 1 < size else None
        loose = after is None or after.tag in (".", ",", "CC", ";", "IN", "TO", "RB", "CD")
        quantity = (
            after is not None and after.low in ("to", "until") and end + 2 < size and words[end + 2].tag == "CD"
        )
        if (
            loose
            and not quantity
            and words[end].low not in ("on", "over")
            and not (after is not None and after.tag == "CD")
        ):
            particle, end = end, end + 1
    if (
        particle is None
        and end < size
        and words[end].low in ("place", "part")
        and w.verb_lemma(words[main].text) == "take"
    ):
        particle, end = end, end + 1
    if particle is None and end < size and words[end].low in _WITH_OBJECT.get(w.verb_lemma(words[main].text), ()):
        particle, end = end, end + 1  # "fill in the form", "lift out the pan"
    chain: tuple[Word, ...] = ()
    if (
        end + 1 < size
        and words[end].tag == "TO"
        and words[end + 1].tag == "VB"
        and w.verb_lemma(words[main].text) in _CHAINS
    ):
        stop = end + 2
        while stop < size and words[stop].tag in ("VBN", "VB") and words[stop - 1].low in ("be", "have", "get"):
            stop += 1
        if (
            stop < size
            and words[stop].low in _PARTICLES
            and stop + 1 < size
            and words[stop + 1].tag in (".", ",", "IN", "CC")
        ):
            stop += 1
        chain, end = tuple(words[end:stop]), stop
    taken = tuple(words[at:end])
    shift = at
    return VerbGroup(
        taken[: len(taken) - len(chain)],
        None if aux is None else aux - shift,
        main - shift,
        None if particle is None else particle - shift,
        chain,
    ), end


def _continues(words: Sequence[Word], verbs: list[int], n: int) -> bool:
    last, word = words[verbs[-1]], words[n]
    if last.tag == "MD" or last.low in w.DO:
        return word.tag == "VB"
    if last.low in w.HAVE and last.low != "having":
        return word.tag == "VBN" or word.low == "been"
    if last.low in w.BE:
        return word.tag in ("VBN", "VBG")
    return False
