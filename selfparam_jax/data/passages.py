"""Long documents as passages: cut along their structure, with their title path in front.

A document of at most `passage_tokens` tokens is left alone. A longer one becomes passages of at most as many, each of
which is a document of its own to all that follows: the teacher reads it, pairs are written about it, and a given pair
or question of the document goes to the passage that supports its answer.

    Document title > Heading > Subheading

    The passage's text.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from selfparam_jax.data.blocks import Block, Part, read_blocks, split_block, split_part
from selfparam_jax.data.documents import Document, digest
from selfparam_jax.data.retrieval import Retriever

LEAST_TOKENS = 32  # of `passage_tokens`: a title path needs room beside the text
_BETWEEN, _SEPARATOR = "\n\n", " > "

# Numbers of tokens of some texts.
Count = Callable[[Sequence[str]], list[int]]


@dataclasses.dataclass(frozen=True)
class Passage(Document):
    """A part of a long document, or several related parts that are read together.

    Attributes:
      source: id of the document.
      source_title: its title.
      parts: ids of the passages that are read together; () for a single one.
    """

    source: str = ""
    source_title: str = ""
    parts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A document with the passages that it became; a short one is its own only passage.

    Attributes:
      id, title: the document's.
      passages: in order, the related ones that are read together at the end.
      places: of the passages among all documents of the job.
    """

    id: str
    title: str
    passages: tuple[Document, ...]
    places: tuple[int, ...]

    @property
    def text(self) -> str:
        """Title and passages, to search in."""
        return "\n\n".join([self.title, *(passage.text for passage in self.passages)])

    @property
    def digest(self) -> str:
        """Equal exactly if all passages are equal; of a short document, its own."""
        found = [digest(passage) for passage in self.passages]
        whole = len(found) == 1 and not isinstance(self.passages[0], Passage)
        return found[0] if whole else hashlib.sha256("".join(found).encode()).hexdigest()


def is_group(document: Document) -> bool:
    """Whether a document is several related passages that are read together."""
    return isinstance(document, Passage) and bool(document.parts)


def source_id(document: Document) -> str:
    """The id of the document that a passage belongs to; of a document, its own."""
    return document.source if isinstance(document, Passage) else document.id


def title_path(passage: Passage) -> tuple[str, ...]:
    """The headings that stand in front of a passage's text, its document's title first; () where none do."""
    line, _, _ = passage.text.partition(_BETWEEN)
    path = tuple(line.split(_SEPARATOR))
    return path if passage.source_title and path[0] == passage.source_title else ()


def group_passages(documents: Sequence[Document]) -> list[Source]:
    """The documents that some passages and short documents belong to, in the order of their first passages."""
    places: dict[str, list[int]] = {}
    for place, document in enumerate(documents):
        places.setdefault(source_id(document), []).append(place)
    found = []
    for name, members in places.items():
        first = documents[members[0]]
        title = first.source_title if isinstance(first, Passage) else first.title
        found.append(Source(name, title, tuple(documents[place] for place in members), tuple(members)))
    return found


# --- cutting --------------------------------------------------------------------------------------------


def split_documents(documents: Sequence[Document], passage_tokens: int, count: Count) -> list[Document]:
    """The documents, those of more than `passage_tokens` tokens as passages; 0 splits none.

    Args:
      documents: with their questions and pairs.
      passage_tokens: tokens of the longest passage, its title path included.
      count: counts tokens.

    Returns:
      short documents as they are, and the passages of long ones in their place: "x#1", "x#2", ...

    Raises:
      ValueError: a passage would have the id of another document.
    """
    made: list[Document] = []
    for document in documents:
        made += split_document(document, passage_tokens, count)
    names = [document.id for document in made]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the document id {twice!r} is also the name of a passage of a long document; rename it")
    return made


def may_be_long(document: Document, passage_tokens: int) -> bool:
    """Whether a document may have more tokens than a passage: no tokenizer makes more of a text than it has bytes."""
    return 0 < passage_tokens < len(document.text.encode("utf-8", "surrogatepass"))


def token_counter(tokenizer: Any) -> Count:
    """A function that counts the tokens of texts with a transformers tokenizer, without special ones."""

    def count(texts: Sequence[str]) -> list[int]:
        made = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(ids) for ids in made["input_ids"]]

    return count


def split_document(document: Document, passage_tokens: int, count: Count) -> list[Document]:
    """One document as `split_documents` has it."""
    if not may_be_long(document, passage_tokens) or count([document.text])[0] <= passage_tokens:
        return [document]
    texts = cut_text(document.text, document.title, passage_tokens, count)
    fields = {"title": document.title, "metadata": document.metadata}
    owned = {"source": document.id, "source_title": document.title}
    passages = [
        Passage(text, id=f"{document.id}#{number}", **fields, **owned) for number, text in enumerate(texts, start=1)
    ]
    return _with_pairs(document, passages)


def _with_pairs(document: Document, passages: list[Passage]) -> list[Document]:
    """The passages with the document's questions and pairs, each at the passage that supports its answer."""
    if not document.qa_pairs and not document.questions:
        return list(passages)
    retriever = Retriever([passage.text for passage in passages])
    pairs: list[list] = [[] for _ in passages]
    questions: list[list] = [[] for _ in passages]
    unsupported = 0
    for pair in document.qa_pairs:
        place, found = retriever.supporting(pair.question, [pair.answer])
        pairs[place].append(pair)
        unsupported += not found
    for question in document.questions:
        place, found = retriever.supporting(question.question, question.answers)
        questions[place].append(question)
        unsupported += not found
    if unsupported:
        logging.warning(
            "document %r: %d of its pairs and questions share no word with any passage; its first one has them",
            document.id, unsupported,
        )  # fmt: skip
    return [
        dataclasses.replace(passage, qa_pairs=tuple(own), questions=tuple(asked))
        for passage, own, asked in zip(passages, pairs, questions, strict=True)
    ]


def cut_text(text: str, title: str, passage_tokens: int, count: Count) -> list[str]:
    """The passages of a text.

    Args:
      text: plain text or Markdown.
      title: first element of every title path; "" for none.
      passage_tokens: tokens of the longest passage.
      count: counts tokens.

    Returns:
      the passages' texts. Every line of the text is in one of them, a heading perhaps in its title path only.
    """
    blocks = read_blocks(text)
    sizes = dict(zip(blocks, count([block.text + _BETWEEN for block in blocks]), strict=True))
    limit = passage_tokens
    while True:
        cutter = _Cutter(limit, count, sizes)
        texts = [cutter.render(piece) for piece in cutter.cut(blocks, title)]
        # Tokens of a whole are those of its parts or fewer, as a rule.
        excess = max(count(texts)) - passage_tokens
        if excess <= 0 or limit <= passage_tokens // 2:
            return texts
        limit -= max(excess, 1)


@dataclasses.dataclass(frozen=True)
class _Unit:
    """What is not cut any further; a passage is some of them in a row.

    Attributes:
      text: its text.
      size: tokens.
      joint: what stands between it and the unit before it.
      wrap: head and tail that all units of a block share; ("", "") for none.
      block: which block it comes from, as far as units share a wrap.
      heading: the title, if it is a whole section that begins with its heading.
    """

    text: str
    size: int
    joint: str = _BETWEEN
    wrap: tuple[str, str] = ("", "")
    block: int = -1
    heading: str = ""


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A passage to be: its title path and its units."""

    path: tuple[str, ...]
    units: tuple[_Unit, ...]
    size: int


@dataclasses.dataclass
class _Section:
    """A heading with what stands under it."""

    title: str
    level: int
    blocks: list[Block]
    children: list["_Section"]


class _Cutter:
    """Cuts the blocks of one text into passages of at most `limit` tokens."""

    def __init__(self, limit: int, count: Count, sizes: dict[Block, int]):
        """Args:
        limit: tokens of the longest passage.
        count: counts tokens.
        sizes: tokens of each block with the blank line after it.
        """
        self._limit, self._count, self._sizes = limit, count, sizes
        self._blocks = itertools.count()
        self._wraps: dict[tuple[str, str], int] = {("", ""): 0}
        self._path = functools.cache(self._shown_path)

    def cut(self, blocks: Sequence[Block], title: str) -> list[_Piece]:
        """The passages of a text's blocks, in order."""
        return self._merge_small(list(self._pieces(_sections(blocks), (title,) if title else ())))

    def _shown_path(self, path: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
        """What is shown of a title path, and its tokens with the blank line after it.

        One of more than half a passage is shortened in its middle, or left out.
        """
        names = tuple(name for n, name in enumerate(path) if n == 0 or name != path[n - 1])
        for shown in (names, (names[0], names[-1]) if len(names) > 2 else names, names[-1:]):
            size = self._count([_SEPARATOR.join(shown) + _BETWEEN])[0] if shown else 0
            if size <= self._limit // 2:
                return shown, size
        return (), 0

    def _room(self, path: tuple[str, ...]) -> int:
        return self._limit - self._path(path)[1]

    def _section_size(self, section: _Section) -> int:
        own = sum(self._sizes[block] for block in section.blocks)
        return own + sum(map(self._section_size, section.children))

    def _pieces(self, section: _Section, path: tuple[str, ...]) -> Iterator[_Piece]:
        """The passages of a section that is too long for one; `path` ends with its title."""
        run: list[_Unit] = []
        room = self._room(path)
        for block in section.blocks:
            said = block.kind == "heading" and block.title in self._path(path)[0]
            run += [] if said else self._block_units(block, room)
        for child in section.children:
            size = self._section_size(child)
            if size <= room:
                run.append(_Unit(_section_text(child), size, heading=child.title))
                continue
            yield from self._pack(run, path)
            run = []
            yield from self._pieces(child, (*path, child.title))
        yield from self._pack(run, path)

    def _block_units(self, block: Block, room: int) -> list[_Unit]:
        size = self._sizes[block]
        if size <= room:
            return [_Unit(block.text, size)]
        first, *others = self._part_units(split_block(block), room, next(self._blocks))
        return [dataclasses.replace(first, joint=_BETWEEN), *others]

    def _part_units(self, parts: Sequence[Part], room: int, block: int) -> Iterator[_Unit]:
        first = parts[0]
        around = self._wrap_size((first.head, first.tail))
        if around > room // 2:  # a head that leaves no room is not repeated
            parts = [Part(first.head, "\n"), *(dataclasses.replace(part, head="", tail="") for part in parts)]
            parts += [Part(first.tail, "\n")] if first.tail else []
            around = 0
        sizes = self._count([part.joint + part.text for part in parts])
        for part, size in zip(parts, sizes, strict=True):
            smaller = split_part(part) if size > room - around else [part]
            if len(smaller) > 1:
                yield from self._part_units(smaller, room, block)
            else:
                yield _Unit(part.text, size, part.joint, (part.head, part.tail), block)

    def _pack(self, units: Sequence[_Unit], path: tuple[str, ...]) -> Iterator[_Piece]:
        """Units in a row as few passages as possible, of about the same size."""
        if not units:
            return
        room = self._room(path)
        fewest = self._fill(units, room)
        low, high = room // 2, room
        while low < high:  # the smallest limit that needs no more passages
            middle = (low + high) // 2
            if len(self._fill(units, middle)) <= len(fewest):
                high = middle
            else:
                low = middle + 1
        for group in self._fill(units, high):
            _, _, body = group[0].text.partition(_BETWEEN)
            inner = (*path, group[0].heading)
            shown, size = self._path(inner)
            size += self._size(group)
            if len(group) == 1 and group[0].heading and body and shown[-1:] == inner[-1:] and size <= self._limit:
                yield _Piece(inner, (dataclasses.replace(group[0], text=body),), size)  # the path says the heading
            else:
                yield _Piece(path, group, self._size(group) + self._path(path)[1])

    def _fill(self, units: Sequence[_Unit], room: int) -> list[tuple[_Unit, ...]]:
        """Units in groups of at most `room` tokens, each as full as possible; a longer unit is a group of its own."""
        groups: list[list[_Unit]] = []
        size = 0
        for unit in units:
            more = unit.size
            if not groups or groups[-1][-1].block != unit.block:
                more += self._wrap_size(unit.wrap)
            if groups and size + more <= room:
                groups[-1].append(unit)
                size += more
            else:
                groups.append([unit])
                size = unit.size + self._wrap_size(unit.wrap)
        return [tuple(group) for group in groups]

    def _wrap_size(self, wrap: tuple[str, str]) -> int:
        if wrap not in self._wraps:
            self._wraps[wrap] = self._count([f"{wrap[0]}\n{wrap[1]}{_BETWEEN}"])[0]
        return self._wraps[wrap]

    def _size(self, units: Sequence[_Unit]) -> int:
        groups = itertools.groupby(units, key=lambda unit: (unit.block, unit.wrap))
        return sum(unit.size for unit in units) + sum(self._wrap_size(wrap) for (_, wrap), _ in groups)

    def _merge_small(self, pieces: list[_Piece]) -> list[_Piece]:
        """The passages, a very short one together with a neighbour where both fit into one."""
        least = self._limit // 8
        made: list[list[_Piece]] = []
        for piece in pieces:
            before = made[-1] if made else []
            size = sum(each.size for each in before)
            if before and min(size, piece.size) < least and size + piece.size <= self._limit:
                before.append(piece)
            else:
                made.append([piece])
        return [group[0] if len(group) == 1 else self._together(group) for group in made]

    def _together(self, pieces: Sequence[_Piece]) -> _Piece:
        texts = _Unit(_BETWEEN.join(map(self.render, pieces)), sum(piece.size for piece in pieces))
        return _Piece((), (texts,), texts.size)

    def render(self, piece: _Piece) -> str:
        """A passage's text."""
        line = _SEPARATOR.join(self._path(piece.path)[0])
        parts = [line] if line else []
        body = ""
        for (_, (head, tail)), group in itertools.groupby(piece.units, key=lambda unit: (unit.block, unit.wrap)):
            units = list(group)
            text = units[0].text + "".join(unit.joint + unit.text for unit in units[1:])
            if head:
                text = f"{head}\n{text}" + (f"\n{tail}" if tail else "")
            body += (units[0].joint if body else "") + text
        if line and body.split("\n", 1)[0].strip().rstrip(".") == line.strip().rstrip("."):
            return body  # a text that begins with its own title
        return _BETWEEN.join([*parts, body])


def _sections(blocks: Sequence[Block]) -> _Section:
    """The blocks as a tree of headings."""
    root = _Section("", 0, [], [])
    open_sections = [root]
    for block in blocks:
        if block.kind == "heading":
            while open_sections[-1].level >= block.level:
                open_sections.pop()
            section = _Section(block.title, block.level, [block], [])
            open_sections[-1].children.append(section)
            open_sections.append(section)
        else:
            open_sections[-1].blocks.append(block)
    return root


def _section_text(section: _Section) -> str:
    return _BETWEEN.join([*(block.text for block in section.blocks), *map(_section_text, section.children)])


# --- related passages -----------------------------------------------------------------------------------


def related_passages(
    passages: Sequence[Passage], share: float, fits: Callable[[str], bool] = lambda text: True
) -> list[Passage]:
    """Passages of one document that are read together, two or three at a time, so that questions across them are
    learned.

    They begin at passages that are spread evenly over the document, and take in turns one or two of those that share
    most words with it (BM25).

    Args:
      passages: of one document, in order.
      share: of all that is read, single passages and groups, how much is groups; 0 to below 1.
      fits: whether a text is short enough; groups that are not are made smaller or left out.

    Returns:
      the groups, "x#3+7": their texts in the document's order.
    """
    wanted = round(len(passages) * share / (1 - share))
    if len(passages) < 2 or not wanted:
        return []
    retriever = Retriever([passage.text for passage in passages])
    made: dict[tuple[int, ...], Passage] = {}
    for turn in range(wanted):
        begin = turn * len(passages) // wanted % len(passages)
        near = retriever.related(begin, 1 + turn % 2)
        while near:
            chosen = tuple(sorted({begin, *near}))
            text = _BETWEEN.join(passages[n].text for n in chosen)
            if fits(text):
                made.setdefault(chosen, _joined([passages[n] for n in chosen], text))
                break
            near = near[:-1]
    return list(made.values())


def _joined(passages: Sequence[Passage], text: str) -> Passage:
    first = passages[0]
    numbers = "+".join(passage.id.rpartition("#")[2] for passage in passages)
    return Passage(
        text,
        title=first.title,
        id=f"{first.source}#{numbers}",
        metadata=first.metadata,
        source=first.source,
        source_title=first.source_title,
        parts=tuple(passage.id for passage in passages),
    )
