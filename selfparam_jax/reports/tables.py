"""Markdown: tables, and cells that cannot break them."""

import json
import re
from collections.abc import Sequence

NOT_MEASURED = "–"
EMPTY = "*(empty)*"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are safe already (`markdown_cell`); an empty string for no rows."""
    lines = [header, ["---"] * len(header), *rows] if rows else []
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_cell(text: object, width: int = 160) -> str:
    """Makes any text safe inside a table: one line, and nothing that formats, links or ends the cell."""
    text = shorten(" ".join(str(text).split()), width)
    text = "".join(char if char.isprintable() else "\ufffd" for char in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|$~])", r"\\\1", text)


def value_cell(value: object) -> str:
    """A cell with a setting's value: text as it stands, everything else as JSON."""
    return markdown_cell(value if isinstance(value, str) else json.dumps(value, default=str))


def number_cell(value: float | None, digits: int = 3) -> str:
    """A cell with a number, with `digits` digits after the point, or a dash."""
    return NOT_MEASURED if value is None else f"{value:.{digits}f}"


def interval_cell(bounds: Sequence[float] | None) -> str:
    """A cell with the two ends of an interval, or a dash."""
    return NOT_MEASURED if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def shorten(text: str, width: int) -> str:
    """The text, cut to `width` characters with an ellipsis at the end if it is longer."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def counted(number: int, noun: str) -> str:
    """The number and its noun, which takes an "s" unless there is one: "1 document", "2 documents"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
