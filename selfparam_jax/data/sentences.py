"""Where the sentences of a text begin, by pysbd's rules for English prose."""

import functools
import re
from typing import Any

# Characters that pysbd is given at a time: its time grows with the square of the text's length.
_WINDOW = 4000
# Marks after which a sentence may begin without white space before it.
_WIDE_MARKS = "。！？．｡」』”’）"
# Marks that close a sentence and cannot begin one; pysbd sometimes leaves them to the next sentence.
_CLOSING = re.compile(r"[\s。！？．｡」』”’）)\]»,.!?…]*")
_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")


def sentence_starts(text: str) -> list[int]:
    """Indices of the characters of a text that sentences begin with, ascending.

    Found by pysbd's rules for English, paragraph by paragraph; a single line break is only a space. What follows a
    blank line begins a sentence. No start is inside a word.
    """
    gaps = [gap.span() for gap in _BLANK_LINE.finditer(text)]
    spans = zip([0, *(end for _, end in gaps)], [*(begin for begin, _ in gaps), len(text)], strict=True)
    starts: list[int] = []
    for begin, end in spans:
        begin += len(text[begin:end]) - len(text[begin:end].lstrip())
        if begin < end:
            starts += [begin, *_further_starts(text[begin:end], begin)]
    return starts


def _further_starts(paragraph: str, offset: int) -> list[int]:
    """Where sentences after the first one of a paragraph begin, counted from `offset`.

    A long paragraph is read in windows. The last sentence of a window may have been cut, so the next window begins
    with it.
    """
    paragraph = paragraph.replace("\n", " ")  # of the same length; pysbd takes a line break for an end
    starts, at, size = [], 0, _WINDOW
    while at < len(paragraph):
        found = _window_starts(paragraph, at, min(at + size, len(paragraph)))
        if at + size >= len(paragraph):
            starts += found
            break
        starts += found
        at, size = (found[-1], _WINDOW) if found else (at, 2 * size)
    return [offset + start for start in starts]


def _window_starts(text: str, begin: int, end: int) -> list[int]:
    """Where sentences after the first one of text[begin:end] begin."""
    starts, last = [], begin
    for span in _segmenter().segment(text[begin:end]):
        at = _CLOSING.match(text, begin + span.start).end() if span.start else begin
        separated = at > begin and (text[at - 1].isspace() or text[at - 1] in _WIDE_MARKS)
        if last < at < end and separated:
            starts.append(at)
            last = at
    return starts


@functools.cache
def _segmenter() -> Any:
    """pysbd's segmenter for English prose, with some abbreviations that it lacks."""
    import pysbd
    from pysbd.lang.common.standard import Standard
    from pysbd.lang.english import English
    from pysbd.processor import Processor
    from pysbd.utils import Text

    class Abbreviation(Standard.Abbreviation):
        more = ["al", "approx", "ca", "cf", "hon"]  # never the end of a sentence
        numbered = ["ch", "eq", "figs", "sec", "vol"]  # not the end before a number
        ABBREVIATIONS = [*Standard.Abbreviation.ABBREVIATIONS, *more, *numbered]
        PREPOSITIVE_ABBREVIATIONS = [*Standard.Abbreviation.PREPOSITIVE_ABBREVIATIONS, *more]
        NUMBER_ABBREVIATIONS = [*Standard.Abbreviation.NUMBER_ABBREVIATIONS, *numbered]

    class Prose(Processor):
        def process(self) -> list[str]:
            """All steps but the search for lists: it takes "... in 3. ... in 4." for their numbers."""
            self.replace_abbreviations()
            self.replace_numbers()
            self.replace_continuous_punctuation()
            self.replace_periods_before_numeric_references()
            rules = Abbreviation.WithMultiplePeriodsAndEmailRule, English.GeoLocationRule, English.FileFormatRule
            self.text = Text(self.text).apply(*rules)
            return self.split_into_segments()

    segmenter = pysbd.Segmenter(language="en", clean=False, char_span=True)
    segmenter.language_module = type("Prose", (English,), {"Abbreviation": Abbreviation, "Processor": Prose})
    return segmenter
