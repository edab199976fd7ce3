"""Replies of a recommender: read from a file, and taken apart into lines with a title each.

`benchmark_lines` does what the LLM conversational-recommendation benchmark (arXiv 2308.10053) does, its oddities
included. `strict_lines` mends these; what it gives is never mixed with the benchmark's numbers.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence

from selfparam_jax.distributed import files
from selfparam_jax.evaluation.titles import squeeze, without_parentheses

LONG_ITEM = 12  # words: a longer line is a sentence and no title
_NUMBER = re.compile(r"\d+[.)、]?\s*[-—–]?\s*")
# In strict parsing a number needs a mark behind it: "12 Angry Men" is a title.
_STRICT_MARK = re.compile(r"(?:\d+\s*(?:[.)、:]|[-—–](?=\s))|[-*•·](?=\s))\s*[-—–]?\s*")
_LIST_LINE = re.compile(r"\s*(?:\d+\s*[.)、]|[-*•·]\s)")
_QUOTES = "\"'“”‘’*_ "
# What chat templates leave before a reply when their special tokens are left out.
_OPENING = re.compile(r"\s*(?:\[/INST\]|assistant\b:?|System:)\s*", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a recommender answered at one turn.

    Attributes:
      index: of the record it answers, from 0.
      content: the text; it may begin with the prompt.
      prompt: what was asked, as far as the file has it.
    """

    index: int
    content: str
    prompt: str = ""


def read_replies(path: str | os.PathLike) -> list[Reply]:
    """Reads a JSONL file of replies, ordered by index.

    A line is the benchmark's {"index", "prompt", "resp": {"choices": [{"message": {"content": str}}]}}, where the
    prompt is a text or chat messages, or {"index", "content"}, with or without "prompt".

    Raises:
      ValueError: no reply at all, another layout, a request that failed, an index twice.
      OSError: there is no such file.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    replies: dict[int, Reply] = {}
    for number, record in enumerate(files.read_lines(path), start=1):
        reply = _reply(record, f"{path}, reply {number}")
        if reply.index in replies:
            raise ValueError(f"{path}, reply {number}: got index {reply.index} twice, expected it once; remove one")
        replies[reply.index] = reply
    if not replies:
        raise ValueError(f"{path}: got no reply, expected one a line; check the path")
    return [replies[index] for index in sorted(replies)]


def _reply(record: dict, where: str) -> Reply:
    index = record.get("index")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise ValueError(f"{where}: got index {index!r}, expected the place of its record, from 0")
    content = record["content"] if "content" in record else _content(record.get("resp"), where)
    if not isinstance(content, str):
        raise ValueError(f"{where}: got {content!r:.60} as content, expected a string")
    return Reply(index, content, _prompt(record.get("prompt", ""), where))


def _content(response: object, where: str) -> object:
    if isinstance(response, str):  # how the benchmark's scripts note a request that was not answered
        raise ValueError(f"{where}: the request failed ({response!r:.60}); ask again and replace the line")
    try:
        return response["choices"][0]["message"]["content"]
    except (TypeError, KeyError, IndexError):
        raise ValueError(
            f"{where}: got {response!r:.60} as resp, expected {{'choices': [{{'message': {{'content': str}}}}]}}, or "
            "'content' in place of resp"
        ) from None


def _prompt(prompt: object, where: str) -> str:
    """The prompt's last message, as that is what stands before a reply."""
    if isinstance(prompt, list):
        prompt = prompt[-1] if prompt else ""
    if isinstance(prompt, dict):
        prompt = prompt.get("content")
    if not isinstance(prompt, str):
        raise ValueError(f"{where}: got {prompt!r:.60} as prompt, expected a string or chat messages")
    return prompt


def benchmark_lines(content: str) -> list[str]:
    """The lines of a reply as the benchmark reads them.

    If "1." occurs anywhere (also in a prompt, in "11." or at the end of "in 2001."), what follows its first
    occurrence is the list; else all is, with commas as line ends. Of every line parentheses, needless white space and
    a number at its beginning are removed. Empty lines stay: the benchmark looks for the nearest name of these, too.
    """
    _, mark, rest = content.partition("1.")
    text = rest if mark else content.replace(",", "\n")
    return [_without_number(squeeze(without_parentheses(line))) for line in text.split("\n")]


def _without_number(line: str) -> str:
    number = _NUMBER.match(line)
    return line[number.end() :] if number else line


def strict_lines(reply: Reply, dialogue: str = "") -> tuple[list[str], bool]:
    """The titles of a reply with the benchmark's oddities mended, and whether it is a list at all.

    The prompt is removed. A list begins at the first line with a number or a bullet; without one, every line is an
    item, and a single line is cut at its commas. A number needs a mark behind it, so "12 Angry Men" stays. Quotes,
    asterisks and empty lines are removed.

    Args:
      reply: the content may begin with the prompt.
      dialogue: as the prompt holds it; the content is cut behind it if the prompt itself is not known.

    Returns:
      the titles; whether they are two or more and at least half of them are at most `LONG_ITEM` words.
    """
    lines = _without_prompt(reply, dialogue).split("\n")
    marked = [bool(_LIST_LINE.match(line)) for line in lines]
    if any(marked):
        lines = lines[marked.index(True) :]
    elif sum(bool(line.strip()) for line in lines) == 1:
        lines = "".join(lines).split(",")
    titles = [_strict_title(line) for line in lines]
    titles = [title for title in titles if title]
    short = sum(len(title.split()) <= LONG_ITEM for title in titles)
    return titles, len(titles) > 1 and 2 * short >= len(titles)


def _without_prompt(reply: Reply, dialogue: str) -> str:
    for known in (reply.prompt.strip(), dialogue.strip()):
        at = reply.content.rfind(known) if known else -1
        if at >= 0:
            rest = reply.content[at + len(known) :]
            opening = _OPENING.match(rest)
            return rest[opening.end() :] if opening else rest
    return reply.content


def _strict_title(line: str) -> str:
    line = squeeze(without_parentheses(line))
    mark = _STRICT_MARK.match(line)
    return (line[mark.end() :] if mark else line).strip(_QUOTES)


def repeats(lines: Sequence[str]) -> float:
    """Share of lines that occurred before in the same reply, in lower case; 0 for none."""
    return 1 - len({line.lower() for line in lines}) / len(lines) if lines else 0.0
