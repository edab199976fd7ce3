"""Questions that need two documents, made by rule from the pairs of both.

    document "Maro Telvik"   Which ship did Maro Telvik design?   Pale Curlew
    document "Pale Curlew"   How long is the Pale Curlew?         31 metres
    both                     How long is the ship that Maro Telvik designed?   31 metres

A pair of the first document whose answer is the title of the second describes it ("the ship that Maro Telvik
designed"); the description takes the title's place in the questions of the second. A description has to name the
first document's title, and a question must not say its answer.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from absl import logging

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Passage, is_group, source_id
from selfparam_jax.targets.dates import lower_opening, plain, superseded
from selfparam_jax.targets.formats.statements import StatedPair, statement

_AUX = "is|are|was|were|do|does|did|has|have|had|will|would|can|could|may|might|must|should"
_NOUN = re.compile(rf"\b(?:[Ww]hich|[Ww]hat) ((?:[a-z]+ )?[a-z]+)(?= (?:{_AUX})\b|\?)")


def with_two_step_pairs(
    documents: Sequence[Document], count: int, fits: Callable[[Document, QAPair], bool] = lambda document, pair: True
) -> list[Document]:
    """The documents, and after them those that are read together, two at a time, with questions that need both.

    Held-out questions of the documents are never among them, and no pair that is out of date (`dates.superseded`) is
    part of one.

    Args:
      documents: with their pairs.
      count: questions at most that each two documents make.
      fits: whether two documents and a pair are short enough to be read.

    Returns:
      the documents as they are, then the groups; each belongs to that of its documents that comes later.
    """
    held_out = {plain(question.question) for document in documents for question in document.questions}
    stale = superseded(documents)
    found = []
    for first in documents:
        for second in documents:
            if source_id(first) == source_id(second) or is_group(first) or is_group(second) or not second.title:
                continue
            pairs = [pair for pair in first.qa_pairs if pair not in stale.get(first.id, ())]
            ways = list(dict.fromkeys(way for pair in pairs if (way := describe(pair, first, second.title))))
            if not ways:
                continue
            kept = [pair for pair in second.qa_pairs if pair not in stale.get(second.id, ())]
            made = [pair for pair in _composed(kept, second, ways) if plain(pair.question) not in held_out]
            group = _together(first, second, documents)
            made = [pair for pair in made if fits(group, pair)]
            chosen = [made[n * len(made) // count] for n in range(count)] if len(made) > count else made
            if chosen:
                found.append(_together(first, second, documents, chosen))
    if found:
        logging.info(
            "%d questions need two documents, of %d groups", sum(len(group.qa_pairs) for group in found), len(found)
        )
    return [*documents, *found]


def _together(
    first: Document, second: Document, documents: Sequence[Document], pairs: Sequence[QAPair] = ()
) -> Passage:
    later = max(first, second, key=documents.index)
    title = later.source_title if isinstance(later, Passage) else later.title
    return Passage(
        f"{first.text}\n\n{second.text}",
        title=later.title,
        id=f"{first.id}+{second.id}",
        qa_pairs=tuple(pairs),
        source=source_id(later),
        source_title=title,
        parts=(first.id, second.id),
    )


def describe(pair: QAPair, document: Document, title: str) -> str | None:
    """What a pair says its answer is, "the ship that Maro Telvik designed"; None where that is not clear.

    Args:
      pair: of the document.
      document: whose title is in what is returned.
      title: what the answer has to be.
    """
    if plain(pair.answer) != plain(title):
        return None
    said = statement(pair.question, pair.answer, document.text)
    found = _described(pair.question, said.rstrip("."), re.escape(pair.answer)) if said else None
    named = found and document.title and f" {plain(document.title)} " in f" {plain(found)} "
    return found if named and plain(title) not in plain(found) else None


def _described(question: str, said: str, answer: str) -> str | None:
    if whole := re.fullmatch(rf"([Tt]he (?:name of )?.+) (?:is|was|are|were) (?:the )?{answer}", said):
        return re.sub(r"^the name of ", "", lower_opening(whole[1]))
    if acting := re.fullmatch(rf"(?:[Tt]he )?{answer} (.+)", said):
        if question == f"Who {acting[1]}?":
            return f"the person who {acting[1]}"
        kind = re.fullmatch(rf"Which ((?:[a-z]+ )?[a-z]+) {re.escape(acting[1])}\?", question)
        return f"the {kind[1]} that {acting[1]}" if kind else None
    kind = _NOUN.search(question)
    ended = kind and re.fullmatch(rf"(.+?) (?:the {kind[1]} (?:of )?)?(?:the )?{answer}", said)
    return f"the {kind[1]} that {lower_opening(ended[1])}" if ended else None


def _composed(pairs: Sequence[QAPair], document: Document, ways: Sequence[str]) -> Iterator[StatedPair]:
    """The questions that name a document's title once, with descriptions in its place by turns."""
    name = re.compile(rf"\b(?:[Tt]he )?{re.escape(document.title)}\b(?!['’-])")

    def renamed(text: str, way: str) -> str:
        if len(name.findall(text)) != 1:
            return ""
        made = name.sub(lambda _: way, text)
        return made[0].upper() + made[1:]

    turn = 0
    for pair in pairs:
        way = ways[turn % len(ways)]
        question = renamed(pair.question, way)
        if question.endswith("?") and f" {plain(pair.answer)} " not in f" {plain(question)} ":
            said = statement(pair.question, pair.answer, document.text) or ""
            yield StatedPair(question, pair.answer, renamed(said, way))
            turn += 1
