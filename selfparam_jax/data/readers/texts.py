"""Plain text, Markdown and reStructuredText; and what every reader gives."""

import codecs
import dataclasses
import pathlib
import re
import types

from selfparam_jax.data.extras import import_extra

MARKDOWN_HEADING = re.compile(r"(?m)^# +(\S.*?)[ #]*$")
# How a heading of reStructuredText is marked: a line of one of these, below the title or also above it.
_RULE = re.compile(r"([=\-`:.'\"~^_*+#<>])\1{2,}\s*")
_BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclasses.dataclass(frozen=True)
class Text:
    """What a reader finds in a file: one text, or one of several.

    Attributes:
      text: plain text, or Markdown where there is structure.
      title: "" if the file has none.
      name: what tells it from other texts of the same file; "" for the only one.
      metadata: JSON values, such as a conversation's date and speakers.
      pairs: questions with their answers, to train on.
    """

    text: str
    title: str = ""
    name: str = ""
    metadata: dict = dataclasses.field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()


def import_reader(name: str, path: pathlib.Path) -> types.ModuleType:
    """Imports a package of the extra `documents`, which plain kinds of files do not need.

    Raises:
      ValueError: it is not installed.
    """
    return import_extra(name, "documents", f"{path}: reading {path.suffix.lower()} files needs")


def decode(path: pathlib.Path) -> str:
    """A file's text without a byte-order mark and with plain line ends.

    UTF-8, or UTF-16 where a byte-order mark says so.

    Raises:
      ValueError: bytes of another encoding, or no text; the message names the line.
      OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    encoding = "utf-16" if raw.startswith(_BYTE_ORDER_MARKS) else "utf-8"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: got byte 0x{raw[error.start]:02x} at byte offset {error.start}, "
            "expected UTF-8; convert the file to UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"{path}, line {line}: got a NUL character, expected text; if the file is UTF-16, save it as UTF-8, and "
            "if it is no text, remove it"
        )
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def read_markdown(path: pathlib.Path) -> list[Text]:
    """Markdown as it is; the title is its first heading "# ..."."""
    text = decode(path).strip()
    heading = MARKDOWN_HEADING.search(text)
    return [Text(text, heading[1] if heading else "")]


def read_restructured(path: pathlib.Path) -> list[Text]:
    """reStructuredText with its headings written as in Markdown; the title is the first of them."""
    text = restructured_headings(decode(path).strip())
    heading = re.search(r"(?m)^#{1,6} +(\S.*)$", text)
    return [Text(text, heading[1].strip() if heading else "")]


def restructured_headings(text: str) -> str:
    """A text with the underlined headings of reStructuredText written as `#`, `##`, ...; all else is left alone.

    The first kind of line that marks a heading is the first level, the next new one the second, and so on.
    """
    lines, made, levels = text.split("\n"), [], []
    at = 0
    while at < len(lines):
        over = (
            bool(_RULE.fullmatch(lines[at])) and at + 2 < len(lines) and lines[at].rstrip() == lines[at + 2].rstrip()
        )
        title_at = at + 1 if over else at
        title = lines[title_at].strip() if title_at < len(lines) else ""
        under = lines[title_at + 1] if title_at + 1 < len(lines) else ""
        alone = title_at == 0 or over or not lines[title_at - 1].strip()
        marks = title and alone and not _RULE.fullmatch(title) and _RULE.fullmatch(under)
        if not (marks and len(under.rstrip()) >= len(title) and (over or lines[title_at][:1].strip())):
            made.append(lines[at])
            at += 1
            continue
        kind = (under[0], over)
        if kind not in levels:
            levels.append(kind)
        made += ["#" * min(levels.index(kind) + 1, 6) + " " + title, ""]
        at = title_at + 2
    return "\n".join(made)
