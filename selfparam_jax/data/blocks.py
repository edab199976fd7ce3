"""The structure of a text: headings, and the blocks between them, as Markdown has them.

Plain text is Markdown with few marks. The parser says where each block begins and ends; lines that it passes over are
blocks too, so nothing of a text is lost.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from markdown_it import MarkdownIt

from selfparam_jax.data.sentences import sentence_starts

MOST_OF_A_SENTENCE = 4000  # characters without a mark that may end a sentence
_MARK = re.compile(r"[.!?。！？．｡]")
_KINDS = {
    "heading_open": "heading",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """Some lines of a text that belong together.

    Attributes:
      text: the lines, without blank ones around them.
      kind: "heading", "table", "code", "list", or "text" for all else.
      level: of a heading, from 1; else 0.
      title: of a heading; else "".
      items: the lines that a list's items begin with, from 0.
    """

    text: str
    kind: str = "text"
    level: int = 0
    title: str = ""
    items: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a block that is too long for a passage.

    Attributes:
      text: the part.
      joint: what stands between it and the part before it.
      head, tail: lines that every passage with parts of this block repeats: a table's head, a fence.
    """

    text: str
    joint: str
    head: str = ""
    tail: str = ""


@functools.cache
def _parser() -> MarkdownIt:
    # What stands inside a line does not matter here.
    return MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"], ignoreInvalid=True)


def read_blocks(text: str) -> list[Block]:
    """The blocks of a text, in order; every line that is not blank is in exactly one."""
    lines = text.split("\n")
    tokens = _parser().parse(text)
    top = [n for n, token in enumerate(tokens) if token.level == 0 and token.map and token.nesting >= 0]
    blocks, after = [], 0

    def add(begin: int, end: int, **fields) -> None:
        body = "\n".join(lines[begin:end]).strip("\n").rstrip()
        if body.strip():
            blocks.append(Block(body, **fields))

    for n, following in itertools.pairwise([*top, len(tokens)]):
        token, (begin, end) = tokens[n], tokens[n].map
        add(after, begin)
        kind = _KINDS.get(token.type, "text")
        level, title, items = 0, "", ()
        if kind == "heading":
            level, title = int(token.tag[1:]), " ".join(tokens[n + 1].content.split())
            kind = kind if title else "text"
        if kind == "list":
            starts = [
                each.map[0] for each in tokens[n:following] if each.type == "list_item_open" and each.level == 1
            ]
            items = tuple(start - begin for start in starts)
        add(begin, end, kind=kind, level=level if title else 0, title=title, items=items)
        after = end
    add(after, len(lines))
    return blocks


def split_block(block: Block) -> list[Part]:
    """A block cut where it is cut best: a table between rows, code between lines, a list between items, other text
    between sentences."""
    lines = block.text.split("\n")
    if block.kind == "table" and len(lines) > 2:
        return [Part(line, "\n", "\n".join(lines[:2])) for line in lines[2:]]
    if block.kind == "code":
        head, tail = ("", "")
        if re.match(r"\s*(`{3,}|~{3,})", lines[0]):
            head, lines = lines[0], lines[1:]
            closed = lines and re.fullmatch(r"\s*(`{3,}|~{3,})\s*", lines[-1])
            tail = lines[-1] if closed else re.match(r"\s*(`{3,}|~{3,})", head)[1]
            lines = lines[:-1] if closed else lines
        return [Part(chunk, "\n", head, tail) for chunk in _code_chunks(lines)]
    if block.kind == "list" and len(block.items) > 1:
        cuts = itertools.pairwise([*block.items, len(lines)])
        return [Part("\n".join(lines[begin:end]).rstrip(), "\n") for begin, end in cuts]
    return [Part(sentence, joint) for sentence, joint in _sentences(block.text)]


def _sentences(text: str) -> list[tuple[str, str]]:
    """The sentences of a text, each with what stands before it; the text itself if it is no prose."""
    gaps = itertools.pairwise([0, *(mark.start() for mark in _MARK.finditer(text)), len(text)])
    if max(end - begin for begin, end in gaps) > MOST_OF_A_SENTENCE:  # pysbd would take very long to find none
        return [(text, " ")]
    cuts = itertools.pairwise([*sentence_starts(text), len(text)])
    return [(text[begin:end].rstrip(), "\n" if text[begin - 1 : begin] == "\n" else " ") for begin, end in cuts]


def _code_chunks(lines: Sequence[str]) -> Iterator[str]:
    """Lines of code in groups that end before a line that is not indented and follows a blank one."""
    group: list[str] = []
    for line in lines:
        if group and not group[-1].strip() and line[:1].strip():
            yield "\n".join(group)
            group = []
        group.append(line)
    if group:
        yield "\n".join(group)


def split_part(part: Part) -> list[Part]:
    """A part that is still too long, cut between lines, else between sentences, else words, else characters."""
    lines = [(line, "\n") for line in part.text.split("\n")]
    sentences = [] if part.head else _sentences(part.text)  # neither code nor a table's row has any
    words = [(word, " ") for word in part.text.split()]
    for pieces in (lines, sentences, words):
        if len(pieces) > 1:
            joints = [part.joint, *(joint for _, joint in pieces[1:])]
            return [
                dataclasses.replace(part, text=text, joint=joint)
                for (text, _), joint in zip(pieces, joints, strict=True)
            ]
    middle = len(part.text) // 2
    if not middle:
        return [part]
    first, second = part.text[:middle], part.text[middle:]
    return [dataclasses.replace(part, text=first), dataclasses.replace(part, text=second, joint="")]
