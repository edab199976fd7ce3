"""Decides which written question-answer pairs are used: the shape and support of their answers, near-duplicates.

All of it works on text alone, and on scores that the pairs already have.
"""

import collections
import functools
import itertools
import re
import unicodedata
from collections.abc import Sequence

from selfparam_jax.data.documents import QAPair
from selfparam_jax.data.scripts import UNSPACED, count_words, segment
from selfparam_jax.targets.config import GeneratorConfig, import_synthesis
from selfparam_jax.targets.grounded.writer import KIND
from selfparam_jax.targets.texts import TextPair, sentences_of

SHORT_WORDS = 6  # the longest answer that counts as short
REASONS = ("kept", "wrong_shape", "unsupported", "unlikely", "duplicate")
HELD_OUT = "held_out"  # only asked: what becomes of a pair that was written as a question


def reasons(records: Sequence[dict], known: Sequence[QAPair], config: GeneratorConfig) -> list[str]:
    """One of REASONS for every record: whether the pair is used, and if not, why; HELD_OUT for those only asked.

    Args:
      records: lines of a pairs file.
      known: pairs that exist already; their questions are not used again.
      config: the thresholds.

    Raises:
      ValueError: the package rapidfuzz is not installed.
    """
    found, first = [], {}
    for n, record in enumerate(records):
        if record.get("held_out"):
            found.append(HELD_OUT)
        elif config.answer_shape not in ("any", answer_shape(record["answer"])):
            found.append("wrong_shape")
        elif record["support"] < config.least_support:
            found.append("unsupported")
        elif not _likely(record, config):
            found.append("unlikely")
        else:
            found.append("duplicate")
            first.setdefault(pair_of(record), n)
    # What the rules make has other wordings of the same fact on purpose.
    ruled = [pair for pair, n in first.items() if records[n]["prompt"].startswith(KIND)]
    asked = {pair.question.casefold() for pair in known}
    # Several texts answer the same question.
    texts = [pair for pair in first if isinstance(pair, TextPair)]
    others, _ = drop_near_duplicates(
        [pair for pair in first if pair not in {*ruled, *texts}],
        [pair for pair in known if not isinstance(pair, TextPair)],
        threshold=config.duplicate_threshold,
    )
    texts = _different_texts(texts, known, config.duplicate_threshold)
    for pair in [*others, *texts, *(pair for pair in ruled if pair.question.casefold() not in asked)]:
        found[first[pair]] = "kept"
    return found


def filter_pairs(
    records: Sequence[dict], known: Sequence[QAPair], config: GeneratorConfig
) -> tuple[list[dict], dict[str, int]]:
    """The records that are used, in order, and how many there are of each reason ("written": of all).

    Pairs that are held out are counted only where there are some.
    """
    found = reasons(records, known, config)
    counts = {"written": len(records), **{reason: found.count(reason) for reason in REASONS}}
    if HELD_OUT in found:
        counts[HELD_OUT] = found.count(HELD_OUT)
    return [record for record, reason in zip(records, found, strict=True) if reason == "kept"], counts


def describe_losses(documents: Sequence[tuple[Sequence[dict], Sequence[QAPair]]], config: GeneratorConfig) -> str:
    """Why written pairs are not used: each reason with its number, its setting and an example.

    Args:
      documents: for each document the records of its pairs, and its known pairs.
      config: the thresholds.

    Returns:
      one line; "" if every pair is used.
    """
    lost: dict[str, list[dict]] = {}
    for records, known in documents:
        for record, reason in zip(records, reasons(records, known, config), strict=True):
            if reason not in ("kept", HELD_OUT):
                lost.setdefault(reason, []).append(record)
    settings = {
        "wrong_shape": f"generator.answer_shape={config.answer_shape}",
        "unsupported": f"generator.least_support={config.least_support:g}",
        "unlikely": f"generator.least_likelihood={config.least_likelihood:g}, least_gain={config.least_gain:g}",
        "duplicate": f"generator.duplicate_threshold={config.duplicate_threshold:g}",
    }
    parts = []
    for reason, records in lost.items():
        first = records[0]
        scores = {"unsupported": "support", "unlikely": "likelihood"}.get(reason)
        score = f" ({scores} {first[scores]:g})" if scores else ""
        parts.append(
            f"{len(records)} {reason.replace('_', ' ')} ({settings[reason]}), for example {first['question']!r} -> "
            f"{first['answer']!r}{score}"
        )
    return "; ".join(parts)


def pair_of(record: dict) -> QAPair:
    """The question and answer of a line of a pairs file."""
    kind = TextPair if record.get("text") else QAPair
    return kind(record["question"], record["answer"])


def _different_texts(texts: Sequence[TextPair], known: Sequence[QAPair], threshold: float) -> list[TextPair]:
    """The texts without those that say nearly the same as one before, by rapidfuzz's `ratio` of their letters."""
    if not texts:
        return []
    rapidfuzz = import_synthesis("rapidfuzz")
    seen, kept = [pair.answer for pair in known if isinstance(pair, TextPair)], []
    for pair in texts:
        if (
            rapidfuzz.process.extractOne(pair.answer, seen, scorer=rapidfuzz.fuzz.ratio, score_cutoff=threshold)
            is None
        ):
            kept.append(pair)
            seen.append(pair.answer)
    return kept


def _likely(record: dict, config: GeneratorConfig) -> bool:
    """Whether the teacher, with the document in the prompt, believes the answer, and more so than without it."""
    if not (config.least_likelihood > 0 or config.least_gain > 0):
        return True
    likelihood, without = record["likelihood"], record["likelihood_without"]
    return likelihood >= config.least_likelihood and likelihood - without >= config.least_gain


# Little words that carry no fact. "not", "before", "after", numbers and question words do, and are not here.
_STOP_WORDS = """
    am and are as at be been being but by ca can did do does for from had has have he her hers him his i in into is it
    its me my of on or our she so some that their them then there these they this those to us was we were will with wo
    would you your also please a an the
"""
_LITTLE = frozenset(_STOP_WORDS.split())
_YES_NO = frozenset(("yes", "no", "是", "不是", "否", "对", "はい", "いいえ", "ใช่", "ไม่ใช่"))
# Chinese particles that carry no fact.
_LITTLE_CHARACTERS = frozenset("的了吗呢啊呀吧")
# Korean words are apart, but end in particles: they are compared by their syllables.
_HANGUL = re.compile("[\uac00-\ud7a3]")
# Models put this before a question at will.
_ACCORDING = re.compile(
    r"(?i)\b(?:according to|based on|in) (?:the|this) (?:given )?(?:text|passage|document|article|context)\b"
)


@functools.cache
def _word() -> re.Pattern:
    """A word. Marks (vowels and tones of Thai, Burmese or Hindi, for example) belong to the letters before them."""
    marks = "".join(chr(n) for n in range(0x300, 0x20000) if unicodedata.category(chr(n))[0] == "M")
    return re.compile(rf"[^\W_]+(?:[{marks}]+[^\W_]*|\.(?<=\d\.)(?=\d)\d+)*")


def _words(text: str) -> list[str]:
    """Words in their case, without punctuation, possessive endings and commas inside numbers."""
    text = re.sub(r"(?<=\d)[,\u00a0\u202f\u2009](?=\d{3}(?!\d))", "", text)
    text = unicodedata.normalize("NFKC", text).replace("’", "'")
    text = re.sub(r"(?i)(?<=\w)'s?(?!\w)", "", re.sub(r"(?i)n't\b", " not", text))
    # "O'Hara" and "OHara" are one word.
    return _word().findall(re.sub(r"(?<=\w)'(?=\w)", "", text))


def _singulars(word: str) -> list[str]:
    """The word and what it may be the plural of; a number only itself."""
    if len(word) <= 3 or not word.isalpha() or not re.search(r"[^sui]s$", word):
        return [word]
    endings = (("s", ""), ("es", "") if re.search(r"(?:[sxzo]|[cs]h)es$", word) else None, ("ies", "y"))
    return [word] + [word.removesuffix(old) + new for old, new in filter(None, endings) if word.endswith(old)]


def drop_near_duplicates(
    pairs: Sequence[QAPair], earlier: Sequence[str | QAPair] = (), threshold: float = 90.0
) -> tuple[list[QAPair], int]:
    """Drops pairs whose question was asked before in nearly the same words.

    A question repeats another if (1) both ask with the same words that carry meaning, in the same order, and (2)
    rapidfuzz's `token_sort_ratio` of all their words, articles apart, is at least `threshold`. The ratio alone counts
    letters of sorted words: "built in 1901" and "built in 1907", "north" and "south", or "Did Ann teach Bo?" and its
    inversion would pass for duplicates, and a lost fact costs more than a kept repetition. So (1) finds the few
    candidates and (2) judges the small words.

    Args:
      pairs: the first of several duplicates is kept.
      earlier: questions, or pairs, that exist already.
      threshold: 0 (the words that carry meaning decide alone) to 100 (all words are the same).

    Returns:
      the pairs kept, in order, and how many were dropped.

    Raises:
      ValueError: the threshold is not between 0 and 100; the package rapidfuzz is not installed.
    """
    if not 0 <= threshold <= 100:
        raise ValueError(f"got threshold {threshold}, expected 0 to 100; correct it")
    if not pairs:
        return [], 0
    rapidfuzz = import_synthesis("rapidfuzz")
    seen: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for question in earlier:
        key, text = _question_key(question.question if isinstance(question, QAPair) else question)
        seen[key].append(text)
    kept = []
    for pair in pairs:
        key, text = _question_key(pair.question)
        ratio = rapidfuzz.fuzz.token_sort_ratio
        if rapidfuzz.process.extractOne(text, seen[key], scorer=ratio, score_cutoff=threshold) is None:
            kept.append(pair)
            seen[key].append(text)
    return kept, len(pairs) - len(kept)


def _question_key(question: str) -> tuple[tuple[str, ...], str]:
    """The words of a question that carry meaning, and all its words but articles, as text."""
    question = _ACCORDING.sub(" ", question)
    key, words = [], []
    for word in _words(question):
        folded = word.casefold()
        folded = "what" if folded == "which" else folded
        if folded not in ("a", "an", "the"):
            words.append(folded)
        if UNSPACED.search(folded):
            units = [unit for unit in segment(folded) if unit not in _LITTLE_CHARACTERS]
            key += units
            words[-1:] = segment(folded)
        elif folded not in _LITTLE:
            # A name keeps its last letter: Anders is not Ander.
            key.append(folded if word[0].isupper() else _singulars(folded)[-1])
    return tuple(key), " ".join(words)


def string_support(answer: str, context: str) -> float:
    """Share of an answer's words that occur in the document.

    Words are compared in lower case, without punctuation, articles, little words ("of", "was", "he") and yes/no; a
    possessive or plural also matches the plain word, a number only itself, though "1,500" is "1500". This finds
    invented names and numbers, but not facts put together wrongly; a true answer in other words scores low.

    Args:
      answer: the answer.
      context: the document.

    Returns:
      the share, 0 to 1; 1.0 for an answer without such words, which asserts nothing that a string could support.
    """
    content = [word.casefold() for word in _words(answer)]
    content = [word for word in content if word not in _LITTLE | _YES_NO]
    if any(UNSPACED.search(word) or _HANGUL.search(word) for word in content):
        return _unspaced_support(content, context)
    if not content:
        return 1.0
    known = {form for word in _words(context) for form in _singulars(word.casefold())}
    return sum(any(form in known for form in _singulars(word)) for word in content) / len(content)


def text_support(text: str, context: str) -> float:
    """`string_support` of a text, or the share of its names and numbers that occur in the document if that is less.

    A name is a word with a capital that does not begin a sentence. A text of many words may well have all of its
    invented names among the few that the document does not have.
    """
    named = []
    for sentence in sentences_of(text):
        first, *others = _words(sentence) or [""]
        others = [word for word in others if word.casefold() not in _LITTLE]
        named += [word for word in others if word[0].isupper() or any(map(str.isdigit, word))]
        named += [first] if any(map(str.isdigit, first)) else []
    known = {form for word in _words(context) for form in _singulars(word.casefold())}
    found = sum(any(form in known for form in _singulars(word.casefold())) for word in named)
    return min(string_support(text, context), found / len(named) if named else 1.0)


def _unspaced_support(content: Sequence[str], context: str) -> float:
    """The same where words are not apart: the share of pairs of neighbouring characters, and of other words."""
    known = _neighbours(_units(context))
    parts = [part for word in content for part in _neighbours(_units(word), lone=True)]
    return sum(part in known for part in parts) / len(parts) if parts else 1.0


def _units(text: str) -> list[str]:
    """`segment`, with Korean syllables apart."""
    return [part for unit in segment(text) for part in (unit if _HANGUL.search(unit) else [unit])]


def _neighbours(units: Sequence[str], lone: bool = False) -> list[tuple[str, ...]] | set[tuple[str, ...]]:
    """Pairs of neighbouring units, and units alone: all, as a set, or (`lone`) only where there is no pair."""
    pairs = list(itertools.pairwise(units))
    if lone:
        return pairs or [(unit,) for unit in units]
    return {*pairs, *((unit,) for unit in units)}


def word_count(answer: str) -> int:
    """How many words an answer has: runs between white space with at least one letter or digit.

    In a script without spaces two characters, or four letters, count as a word.
    """
    return sum(map(count_words, answer.split()))


def answer_shape(answer: str) -> str:
    """Returns "short" for an answer of one to six words, "sentence" for a longer one.

    Raises:
      ValueError: the answer has no word.
    """
    count = word_count(answer)
    if count == 0:
        raise ValueError(f"got the answer {answer!r}, expected at least one word; drop the pair")
    return "short" if count <= SHORT_WORDS else "sentence"
