"""What a sentence is made of: clauses, each with subject, verb group and what follows them."""

import dataclasses
from collections.abc import Sequence

from selfparam_jax.targets.grounded.phrases import NounPhrase, text_of
from selfparam_jax.targets.grounded.verb_groups import VerbGroup
from selfparam_jax.targets.grounded.words import Word


@dataclasses.dataclass(frozen=True)
class Phrase:
    """One part of a clause beside subject and verb.

    Attributes:
      kind: "np" (noun phrase), "pp" (with a preposition), "adj", "adv", "inf" ("to ..."), "sub" ("if ..."), "reason"
        (why, without "because"), "that" (what something means).
      words: all of it.
      phrase: its noun phrase, for "np" and "pp".
      preposition: of a "pp", in lower case; the conjunction of a "sub".
      double: whether it is two phrases with prepositions, joined by "and".
    """

    kind: str
    words: tuple[Word, ...]
    phrase: NounPhrase | None = None
    preposition: str = ""
    double: bool = False

    @property
    def text(self) -> str:
        """As it stands in the sentence."""
        return text_of(self.words)


@dataclasses.dataclass(frozen=True)
class Clause:
    """A clause with a verb.

    Attributes:
      subject: None for an order, and for "there is".
      tail: what belongs to the subject after its noun phrase ("for adults" in "the fee for adults").
      verb: the verb group.
      rest: complements and adverbials, in order; those in front of the subject last.
      order: whether it is an order ("Press the button").
      there: whether it says that there is something.
      source: "main", "relative", "apposition", "label", or "joined" for an order after another.
      deed: what an order says to do, with the orders that are joined to it.
    """

    subject: NounPhrase | None
    tail: tuple[Phrase, ...]
    verb: VerbGroup
    rest: tuple[Phrase, ...]
    order: bool = False
    there: bool = False
    source: str = "main"
    deed: tuple[Word, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found in a sentence: its clauses, and whether all its words belong to one."""

    clauses: tuple[Clause, ...]
    complete: bool


def spaced(words: Sequence[Word]) -> tuple[Word, ...]:
    """Words that come from several places, with a space between each two."""
    made, at = [], 0
    for word in words:
        made.append(dataclasses.replace(word, begin=at, end=at + len(word.text)))
        at += len(word.text) + 1
    return tuple(made)
