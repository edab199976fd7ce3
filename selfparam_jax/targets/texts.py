"""Texts that a model writes about a document (a summary, a list of facts), as pairs with a long answer.

A text answers a question that names what the document is about ("Tell me what you know about Quenbarrow."). One that
is longer than a training row is read in parts, which end where sentences end.
"""

import dataclasses
import itertools
from collections.abc import Sequence

from absl import logging

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Passage, title_path
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.sentences import sentence_starts
from selfparam_jax.targets.grounded.discourse import read_document


@dataclasses.dataclass(frozen=True)
class TextPair(QAPair):
    """A pair whose answer is a text that may be read in parts."""


def topic_of(document: Document) -> str:
    """What questions call that which a document is about; "" where nothing says it.

    That is its title, or what the rules find its sentences to be about; of a passage, its heading and the title.
    """
    title = " ".join(document.title.split())
    if not isinstance(document, Passage):
        return title or read_document(document).topic.name
    path = () if document.parts else title_path(document)
    if len(path) > 1:
        return f"{path[-1]} ({path[0]})"
    numbers = document.id.rpartition("#")[2].replace("+", " and ")
    return f"{title or document.source}, part {numbers}"


def with_split_texts(documents: Sequence[Document], prompt: Prompt, seq_len: int) -> list[Document]:
    """The documents with texts that no row holds in parts; what is too long even so is left out, and counted.

    Args:
      documents: with all their pairs; those that are no texts stay as they are.
      prompt: measures them.
      seq_len: tokens of a training row.

    Returns:
      the documents in the same order.
    """
    made, texts, parts, left_out = [], 0, 0, 0
    for document in documents:
        pairs: list[QAPair] = []
        for pair in document.qa_pairs:
            if not isinstance(pair, TextPair) or fits(pair, prompt, seq_len):
                pairs.append(pair)
                continue
            found, without = _parts(pair, prompt, seq_len)
            texts, parts, left_out = texts + 1, parts + len(found), left_out + without
            pairs += found
        made.append(dataclasses.replace(document, qa_pairs=tuple(pairs)))
    if texts:
        logging.info(
            "longer than a row: %d written texts, read in %d parts; %d of their sentences are longer than a row "
            "themselves and left out", texts, parts, left_out,
        )  # fmt: skip
    return made


def fits(pair: QAPair, prompt: Prompt, seq_len: int) -> bool:
    """Whether a pair is no longer than a training row, the prompt's first ids included."""
    sentence = prompt.question(pair.question) + prompt.answer(pair.answer)
    return len(prompt.start_ids) + len(sentence) <= seq_len


def _parts(pair: TextPair, prompt: Prompt, seq_len: int) -> tuple[list[TextPair], int]:
    """A text in parts that fit, as few as possible, and how many of its sentences fit into none."""
    parts: list[str] = []
    open_part, left_out = "", 0

    def fitting(text: str) -> bool:
        # No text has more parts than a hundred sentences.
        return fits(TextPair(_part_question(pair.question, 99, 99), text), prompt, seq_len)

    for sentence in sentences_of(pair.answer):
        if open_part and fitting(f"{open_part} {sentence}"):
            open_part = f"{open_part} {sentence}"
            continue
        parts += [open_part] if open_part else []
        open_part = sentence if fitting(sentence) else ""
        left_out += not open_part
    parts += [open_part] if open_part else []
    if len(parts) == 1:
        return [TextPair(pair.question, parts[0])], left_out
    questions = (_part_question(pair.question, number, len(parts)) for number in range(1, len(parts) + 1))
    return [TextPair(question, text) for question, text in zip(questions, parts, strict=True)], left_out


def _part_question(question: str, number: int, count: int) -> str:
    return f"{question} (part {number} of {count})"


def sentences_of(text: str) -> list[str]:
    """The sentences of a text."""
    starts = [*sentence_starts(text), len(text)]
    return [text[begin:end].strip() for begin, end in itertools.pairwise(starts)]
