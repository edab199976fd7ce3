"""Words, and what a dictionary says about them: forms of verbs and nouns, closed classes such as prepositions.

Forms come from lemminflect.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable

from selfparam_jax.targets.grounded.lexicon import WORDS

MONTHS = [
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
NUMBER_WORDS = WORDS["number_words"]
BE = frozenset(["am", "is", "are", "was", "were", "be", "been", "being"])
HAVE = frozenset(["have", "has", "had", "having"])
DO = frozenset(["do", "does", "did"])
MODALS = WORDS["modals"]
DETERMINERS = WORDS["determiners"]
PRONOUNS = WORDS["pronouns"]
POSSESSIVES = WORDS["possessives"]
PREPOSITIONS = WORDS["prepositions"]
SUBORDINATORS = WORDS["subordinators"]
CONJUNCTIONS = frozenset(("and", "or", "but", "nor"))
RELATIVES = frozenset(("who", "which", "that", "where", "whom", "whose"))
ADVERBS = WORDS["adverbs"]
# Words that begin a sentence with a capital and are no part of a name.
SMALL = (
    DETERMINERS | PRONOUNS | POSSESSIVES | PREPOSITIONS | SUBORDINATORS | CONJUNCTIONS | RELATIVES | ADVERBS | MODALS
    | BE | HAVE | DO | {"please", "there", "here", "what", "how", "several", "many", "most", "few", "more", "its"}
)  # fmt: skip

_NUMBER = re.compile(r"[$€£¥]?\s?\d[\d.,:/]*(?:st|nd|rd|th|%|p)?")
PENCE = re.compile(r"\d+(?:\.\d+)?p")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a sentence.

    Attributes:
      text: as it stands there.
      tag: its part of speech, of the Penn Treebank's; "NNP" is part of a name.
      begin, end: its characters in the sentence.
    """

    text: str
    tag: str
    begin: int
    end: int

    @property
    def low(self) -> str:
        """In lower case."""
        return self.text.lower()

    @property
    def is_verb(self) -> bool:
        """Whether it is a verb with a tense."""
        return self.tag in ("VBD", "VBZ", "VBP", "MD")


# Verbs whose singular has a form of its own.
SINGULAR = {"are": "is", "were": "was", "have": "has", "do": "does"}


def with_pieces(text: str, pieces: Iterable[tuple[int, int, str]]) -> str:
    """A text with some pieces replaced: (begin, end, what stands there instead). Of two that overlap the first is."""
    made, at = [], 0
    for begin, end, put in sorted(pieces):
        if begin < at:
            continue
        made += [text[at:begin], put]
        at = end
    return "".join(made) + text[at:]


@functools.cache
def forms(word: str) -> dict[str, tuple[str, ...]]:
    """The lemmas that a word may have, by the part of speech; {} for a word that no dictionary has."""
    import lemminflect

    return lemminflect.getAllLemmas(word)


@functools.cache
def inflect(lemma: str, tag: str) -> str:
    """A form of a verb ("VBD", "VBN", "VBZ", "VBG", "VB") or noun ("NN", "NNS"); the lemma where none is known."""
    import lemminflect

    found = lemminflect.getInflection(lemma, tag=tag, inflect_oov=True)
    # Several are sorted by use in the dictionary; a regular one is last ("leapt", "leaped").
    return found[0] if found else lemma


def verb_lemma(word: str) -> str:
    """The infinitive of a verb's form."""
    low = word.lower()
    special = {
        "is": "be",
        "are": "be",
        "was": "be",
        "were": "be",
        "am": "be",
        "been": "be",
        "has": "have",
        "had": "have",
    }
    found = forms(low).get("VERB", ())
    return special.get(low) or (found[0] if found else low)


def is_known(word: str) -> bool:
    """Whether a dictionary has the word in lower case."""
    return word.lower() in SMALL or bool(forms(word.lower())) or word.lower() in NUMBER_WORDS


def is_number(text: str) -> bool:
    """Whether it is a number in digits or a number's word."""
    return bool(_NUMBER.fullmatch(text)) or text.lower() in NUMBER_WORDS


def is_prefixed_verb(low: str) -> bool:
    """Whether a word that no dictionary has is a verb with a prefix ("descale", "recalibrate")."""
    return any(low.startswith(prefix) and "VERB" in forms(low[len(prefix) :]) for prefix in ("de", "re", "un", "pre"))


def may_be(low: str, tag: str) -> bool:
    """Whether a word may be this form of a verb."""
    lemmas = forms(low).get("VERB", ())
    if tag == "VB":
        return low in lemmas or (not forms(low) and len(low) > 5 and is_prefixed_verb(low))
    if tag == "VBZ":
        return any(low == inflect(lemma, "VBZ") for lemma in lemmas)
    return any(low in (inflect(lemma, "VBD"), inflect(lemma, "VBN")) for lemma in lemmas) or (
        bool(lemmas) and low.endswith("ed")
    )
