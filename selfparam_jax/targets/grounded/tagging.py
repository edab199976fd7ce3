"""The words of an English sentence with their parts of speech.

The tagger is TextBlob's (a lexicon and rules); it is right for most words of plain prose. Where a number, a name or a
verb stands is corrected here, since questions hang on these.
"""

import re

from selfparam_jax.targets.grounded import words as w
from selfparam_jax.targets.grounded.lexicon import WORDS
from selfparam_jax.targets.grounded.tag_rules import VERBS, correct_by_neighbours
from selfparam_jax.targets.grounded.words import Word, forms, is_known, is_number, may_be

_ORDERS = WORDS["orders"]
_TOKEN = re.compile(
    r"[$€£¥]\s?\d+(?:[.,]\d+)*"
    r"|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|%)?(?![^\W_])"
    r"|[ap]\.m\.|(?:Dr|Mr|Mrs|Ms|Prof|St|No|Mt)\.|(?:[^\W\d_]\.){2,}"
    r"|[^\W_]+(?:[-'’&](?!s\b)[^\W_]+)*|['’]s\b|[^\W_]?['’](?=\s)|\S"
)
_SHORTENED = {"n't": "not", "'ve": "have", "'re": "are", "'ll": "will", "'m": "am", "'d": "would"}
_SHORT = re.compile(r"\b([A-Za-z]+?)(n['’]t|['’](?:ve|re|ll|m|d))\b")
_SHORT_IS = re.compile(
    r"\b(it|that|there|here|what|who|where|he|she|everything|nobody|everybody)['’]s\b", re.IGNORECASE
)
_STEMS = {"ca": "can", "wo": "will", "sha": "shall"}
_NOMINAL = ("NN", "NNS", "NNP", "CD", "PRP")
_OPENS_NOUN = ("DT", "PRP$", "CD")


def spelled_out(sentence: str) -> str:
    """The sentence with "I've", "can't" and the like as two words each."""

    def of_verb(match: re.Match) -> str:
        stem, end = match[1], match[2].replace("’", "'").lower()
        if end == "n't" and stem.lower() in _STEMS:
            full = _STEMS[stem.lower()]
            stem = full.capitalize() if stem[0].isupper() else full
        return f"{stem} {_SHORTENED[end]}"

    def of_is(match: re.Match) -> str:
        following = match.string[match.end() :].split()[:1]
        return f"{match[1]} {'has' if following and following[0].lower() in ('been', 'got', 'had') else 'is'}"

    sentence = re.sub(r"\b([Cc])annot\b", r"\1an not", sentence)
    return _SHORT.sub(of_verb, _SHORT_IS.sub(of_is, sentence))


def tag_words(sentence: str, names: frozenset[str] = frozenset()) -> list[Word]:
    """Splits a sentence into words and finds their parts of speech.

    Args:
      sentence: the text.
      names: words that stand with a capital inside sentences of the document; at the beginning of one they are names.
    """
    if not sentence.endswith((" .", "!", "?")) and sentence.endswith(("a.m.", "p.m.")):
        sentence += "."
    found = list(_TOKEN.finditer(sentence))
    if not found:
        return []
    texts = [match[0].strip() for match in found]
    proper = [_is_name(texts, n, names) for n in range(len(texts))]
    read = [
        text if name else text.lower() if n == 0 else text
        for n, (text, name) in enumerate(zip(texts, proper, strict=True))
    ]
    tags = _repaired(texts, _tagged(read), proper)
    return [Word(text, tag, match.start(), match.end()) for text, tag, match in zip(texts, tags, found, strict=True)]


def _tagged(texts: list[str]) -> list[str]:
    from textblob.en import parse

    if not texts:
        return []
    clean = [re.sub(r"[/\s]", "-", text) for text in texts]
    # The parser ends a sentence at some marks; those come back as line breaks.
    made = str.split(parse(" ".join(clean), tokenize=False, tags=True, chunks=False))
    if len(made) != len(texts):
        raise ValueError(f"got {len(made)} tags for {len(texts)} words of {' '.join(texts)!r}")
    return [item.split("/")[1] for item in made]


def _is_name(texts: list[str], n: int, names: frozenset[str]) -> bool:
    text = texts[n]
    if not text[0].isupper() or text == "I":
        return False
    if n and not (texts[n - 1] in '"“‘:(' or texts[n - 1] in ".?!"):
        return True
    if text.lower() in w.SMALL:
        return False
    following = texts[n + 1] if n + 1 < len(texts) else ""
    follows_name = following[:1].isupper() and following.lower() not in w.SMALL and following not in w.MONTHS + w.DAYS
    if text.lower() in _ORDERS and text not in names and n == 0 and follows_name:
        return False  # "Call Bright Plumbing if the boiler fails"
    if (
        follows_name
        and following.isupper()
        and len(following) > 1
        and text not in names
        and may_be(text.lower(), "VB")
    ):
        return False  # "Hold CAL for five seconds"
    if text in names or text in w.MONTHS or text in w.DAYS or (follows_name and len(text) > 1):
        return True
    return not is_known(text) and not _is_compound(text.lower()) and not w.is_prefixed_verb(text.lower())


def _is_compound(low: str) -> bool:
    """Whether a word that no dictionary has is two nouns in one ("limescale")."""
    return any(
        "NOUN" in forms(low[:n]) and "NOUN" in forms(low[n:]) for n in range(4, len(low) - 3)
    )  # fmt: skip


def _repaired(texts: list[str], tags: list[str], proper: list[bool]) -> list[str]:
    """The tags with what the tagger gets wrong put right: numbers, names, forms of "be", verbs after "must"."""
    lows = [text.lower() for text in texts]
    for n, (text, low) in enumerate(zip(texts, lows, strict=True)):
        if is_number(text) and not (low == "one" and n and lows[n - 1] in ("the", "this", "that")):
            tags[n] = "CD"
        elif proper[n]:
            tags[n] = "NNP"
        elif low in w.MODALS:
            tags[n] = "MD"
        elif low in ("is", "has", "does"):
            tags[n] = "VBZ"
        elif low in ("am", "pm") and n and tags[n - 1] == "CD":
            tags[n] = "CD"
        elif low in ("are", "am", "do") or (low == "have" and not (n and tags[n - 1] in ("MD", "TO"))):
            tags[n] = "VBP"
        elif low in ("was", "were", "had", "did"):
            tags[n] = "VBD"
        elif low == "been":
            tags[n] = "VBN"
        elif low in ("'s", "’s") or text in ("'", "’"):
            tags[n] = "POS"
        elif low in w.POSSESSIVES and not (low == "her" and tags[n] == "PRP"):
            tags[n] = "PRP$"
        elif low in w.PRONOUNS:
            tags[n] = "PRP"
        elif low in ("a.m.", "p.m.") and n and tags[n - 1] == "CD":
            tags[n] = "CD"
        elif low in w.CONJUNCTIONS:
            tags[n] = "CC"
        elif low == "to":
            tags[n] = "TO"
        elif low in w.DETERMINERS and low != "that":
            tags[n] = "DT"
        elif low in w.PREPOSITIONS and tags[n] not in ("RB", "RP") and low not in ("before", "after", "like"):
            tags[n] = "IN"
        elif low in ("not", "never", "n't"):
            tags[n] = "RB"
        elif tags[n] in ("NNP", "NNPS"):  # a word in lower case is no name
            tags[n] = "NNS" if low.endswith("s") and "NOUN" in forms(low) else "NN"
        elif tags[n].startswith("NNP"):
            tags[n] = "NN"
        elif text and not text[0].isalnum() and len(text) == 1:
            tags[n] = text
    return _repaired_verbs(lows, tags)


def _first_clause(tags: list[str]) -> list[str]:
    """The tags up to the first mark, conjunction or preposition, after which another clause may begin."""
    end = next((n for n, tag in enumerate(tags) if tag in (",", "CC", ";", ":", "IN")), len(tags))
    return tags[:end]


def _repaired_verbs(lows: list[str], tags: list[str]) -> list[str]:
    following = [*tags[1:], "."]
    for n, low in enumerate(lows):
        last = tags[n - 1] if n else "."
        before = _before(tags, lows, n)
        if low in ("no", "longer") and "no longer" in " ".join(lows[max(n - 1, 0) : n + 2]):
            tags[n] = "RB"
        elif (
            last == "DT"
            and tags[n] in ("NN", "JJ")
            and following[n] == ","
            and "ADJ" in forms(low)
            and "ADJ" in forms(lows[n + 2])
        ):
            tags[n] = "JJ"  # "a flat, dry surface"
        elif tags[n] == "JJR" and last == "NN" and following[n] in ("VBN", "IN", ".", ",") and "NOUN" in forms(low):
            tags[n] = "NN"  # "a steam cleaner"
        elif last in ("DT", "PRP$", "JJ") and tags[n] == "VB" and following[n] == "VB":
            tags[n] = "NN"  # "let the cold tap run"
        elif (
            tags[n] == "VBG"
            and last in ("NN", "IN")
            and following[n] in ("VBN", "IN", ".", ",")
            and "NOUN" in forms(low)
        ):
            tags[n] = "NN"
        elif (
            last in ("DT", "PRP$")
            and tags[n] == "RB"
            and following[n] in ("NN", "NNS")
            and {"NOUN", "ADJ"} & forms(low).keys()
        ):
            tags[n] = "JJ"
        elif last in ("WP", "WDT") and tags[n] in ("NN", "NNS") and may_be(low, "VBZ" if low.endswith("s") else "VB"):
            tags[n] = "VBZ" if low.endswith("s") else "VBP"
        elif (
            last in ("DT", "PRP$")
            and tags[n] in ("VB", "VBP", "RB")
            and following[n] in (".", "IN", "VBZ", "VBD", "CC", ",")
        ) or (
            last in ("DT", "JJ", "NN")
            and tags[n] == "JJ"
            and following[n] in ("IN", ".", ",")
            and "NOUN" in forms(low)
        ):
            tags[n] = "NN"
        elif before is None or last in (";", ":"):
            opens = following[n] in ("DT", "PRP$", "PRP") or lows[n + 1 : n + 2] == ["that"]
            opens |= (
                last == "RB" and lows[n - 1] in ("never", "always") and following[n] in ("NN", "NNS", "NNP", "JJ")
            )
            opens |= following[n] == "NNP" and n == 0 and not any(tag in ("VBZ", "MD") for tag in _first_clause(tags))
            if tags[n] in ("NN", "JJ", "VBP") and opens and may_be(low, "VB"):
                tags[n] = "VB"  # an order
        elif tags[before] == "MD" or lows[before] in w.DO:
            if may_be(low, "VB") or low in ("be", "have"):
                tags[n] = "VB"
        elif tags[before] == "TO":
            base = low in ("be", "have") or (may_be(low, "VB") and tags[n] != "NNP")
            if base and (tags[n].startswith("VB") or following[n] in ("DT", "PRP", "PRP$", "CD", "IN", "NNP")):
                tags[n] = "VB"
        elif lows[before] in w.BE | w.HAVE:
            if (
                tags[n] in ("VBD", "VBN", "JJ", "VB", "VBP", "NN")
                and low.endswith(("ed", "en"))
                and may_be(low, "VBD")
            ) or (tags[n] in ("VBD", "VBP", "VB") and may_be(low, "VBD")):
                tags[n] = "VBN"
        elif (
            tags[n] == "VBN"
            and last in ("NNP", "PRP", "CC")
            and following[n] in (*_OPENS_NOUN, "NN", "NNS", "NNP", "PRP")
        ) or (tags[n] == "VBN" and not _participle(lows, tags, n)):
            tags[n] = "VBD"
        elif tags[n] in ("NN", "NNS", "JJ") and last in (*_NOMINAL, "CC", "RB") and last != "CD":
            opens = following[n] in _OPENS_NOUN or (n + 1 < len(lows) and lows[n + 1] in w.PRONOUNS)
            third = low.endswith("s") and not low.endswith("ss")
            if opens and third and tags[before] != "NNS" and may_be(low, "VBZ"):
                tags[n] = "VBZ"
            elif opens and not third and (last in ("NNS", "PRP", "CC")) and may_be(low, "VB"):
                tags[n] = "VBP"
    correct_by_neighbours(lows, tags)
    # A sentence without a verb has one that was taken for a noun.
    begin = 0
    for n in range(len(tags) + 1):
        if n == len(tags) or tags[n] in (";", ",", ":") or lows[n] in w.SUBORDINATORS:
            if not any(tag in VERBS for tag in tags[begin:n]) and (begin == 0 or n - begin > 2):
                _find_verb(lows, tags, begin, n)
            begin = n + 1
    if not any(tag in VERBS for tag in tags):  # "The mayor, Tobin Weld, lives in Orrin"
        for n in range(2, len(tags)):
            if tags[n - 1] == "," and tags[n] == "NNS" and may_be(lows[n], "VBZ"):
                tags[n] = "VBZ"
                break
    return tags


def _participle(lows: list[str], tags: list[str], n: int) -> bool:
    """Whether a form such as "held" or "called" belongs to the noun before it, or to the one after it."""
    after = tags[n + 1] if n + 1 < len(tags) else "."
    finite = [k for k, tag in enumerate(tags) if tag in ("VBD", "VBZ", "VBP", "MD") and k != n]
    return bool(finite) or after in ("NN", "NNS", "JJ")


def _before(tags: list[str], lows: list[str], n: int) -> int | None:
    """The word before this one, adverbs skipped."""
    for k in range(n - 1, -1, -1):
        if not (tags[k] == "RB" or lows[k] in w.ADVERBS):
            return k
    return None


def _find_verb(lows: list[str], tags: list[str], begin: int, end: int) -> None:
    if tags[begin] in ("IN", "VBG", "CC", "WDT", "WP") and lows[begin] not in w.SUBORDINATORS:
        return
    for n in range(begin + 1, end):
        low = lows[n]
        if (
            lows[n - 1] in w.SUBORDINATORS
            or tags[n - 1] not in _NOMINAL
            or tags[n] not in ("NNS", "NN", "VB", "JJ", "VBN", "IN")
        ):
            continue
        plural = tags[n - 1] == "NNS"
        if not plural and low.endswith("s") and not low.endswith("ss") and may_be(low, "VBZ"):
            tags[n] = "VBZ"
            return
        if low.endswith("ed") and may_be(low, "VBD"):
            tags[n] = "VBD"
            return
        if plural and may_be(low, "VB") and tags[n] != "IN":
            tags[n] = "VBP"
            return
