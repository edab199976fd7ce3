"""HTML and EPUB, as Markdown."""

import functools
import pathlib
import posixpath
import re
import types
import urllib.parse
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from selfparam_jax.data.readers.texts import Text, import_reader

# Not part of what a page says.
_UNSEEN = ("script", "style", "noscript", "template", "svg")
# Elements that stand apart from what is around them, made a `div`: markdownify would join the text of most of them.
_BLOCKS = (
    *("address", "article", "aside", "center", "details", "dialog", "fieldset", "figcaption", "figure", "footer"),
    *("form", "header", "hgroup", "legend", "main", "optgroup", "search", "section", "select", "summary"),
)
_LISTS = ("dir", "menu")
# Elements within a line that a page shows apart from each other.
_SPACED = ("button", "option", "textarea")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
_MOST_COLUMNS, _MOST_ROWS = 1000, 65534  # that a cell may span, as HTML has it
_STYLE = {"heading_style": "ATX", "bullets": "-", "strip": ["img", "a"]}
_CONTAINER = "META-INF/container.xml"


def html_to_markdown(html: str | bytes, path: pathlib.Path) -> tuple[str, str]:
    """A page's text as Markdown, and its title; scripts, styles, navigation and pictures are left out.

    The title is the first heading where the page names none. A cell of several rows or columns of a table is repeated
    in each of them.

    Raises:
      ValueError: the extra is not installed, the page's encoding cannot be found out, or it is nested too deeply.
    """
    bs4, markdownify = import_reader("bs4", path), import_reader("markdownify", path)
    import_reader("lxml", path)  # bs4 would only say that it lacks a feature
    try:
        soup = _parse(html, bs4, path)
        title = _tidy(soup, bs4)
        markdown = _converter_class(markdownify)(**_STYLE).convert_soup(soup)
    except RecursionError:
        raise ValueError(
            f"{path}: got elements that are nested too deeply, expected a page; save it as text"
        ) from None
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)[ \t]+$", "", markdown)).strip(), title


def _parse(html: str | bytes, bs4: types.ModuleType, path: pathlib.Path) -> Any:
    """The tree of a page. lxml knows which end tags HTML lets one leave out; Python's own parser does not."""
    if isinstance(html, bytes):  # decoded here: lxml would leave out, without a word, bytes that it cannot read
        _refuse_damaged_utf8(html, path)
        decoded = bs4.UnicodeDammit(html, is_html=True)
        if decoded.contains_replacement_characters or decoded.unicode_markup is None:
            raise ValueError(f"{path}: got bytes of an unknown encoding, expected UTF-8; convert the file to UTF-8")
        html = decoded.unicode_markup
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # bs4's guesses that this may be XML, or the name of a file
        return bs4.BeautifulSoup(html, "lxml")


def _refuse_damaged_utf8(html: bytes, path: pathlib.Path) -> None:
    """Raises ValueError for UTF-8 with a few bytes that are none; as another encoding, all of it would be wrong."""
    try:
        html.decode()
    except UnicodeDecodeError as error:
        text = html.decode(errors="replace")
        damaged = text.count("\ufffd")
        if sum(character > "\x7f" for character in text) > 2 * damaged:
            raise ValueError(
                f"{path}: got a byte that is no UTF-8 at {error.start}, expected UTF-8 as the rest of the page is; "
                "get the page again, or save it as UTF-8"
            ) from error


def _tidy(soup: Any, bs4: types.ModuleType) -> str:
    """Takes out of a page what it does not say, makes blocks known to markdownify, and gives the page's title."""
    for markup in soup.find_all(string=lambda text: isinstance(text, bs4.element.PreformattedString)):
        markup.extract()  # declarations, instructions and comments; markdownify takes some of them for text
    for element in soup(_UNSEEN):
        element.decompose()
    for element in soup("nav"):  # it stays as an empty block: what is before and behind it is not one word
        element.clear()
        element.name = "div"
    title = _title(soup)
    for element in soup("title"):
        element.decompose()
    for names, known in ((_BLOCKS, "div"), (_LISTS, "ul")):
        for element in soup(names):
            element.name = known
    for element in soup(_SPACED):
        before, after = element.previous_sibling, element.next_sibling
        if not str(before or " ")[-1:].isspace():
            element.insert_before(" ")
        if not str(after or " ")[:1].isspace():
            element.insert_after(" ")
    return title


def _title(soup: Any) -> str:
    """A page's own title, else its first heading that has text; "" if there is none."""
    for line_break in soup.select(",".join(f"{name} br" for name in _HEADINGS)):
        line_break.replace_with(" ")
    named = (" ".join(element.get_text().split()) for name in ("title", _HEADINGS) for element in soup(name))
    return next((text for text in named if text), "")


@functools.cache
def _converter_class(markdownify: types.ModuleType) -> type:
    """markdownify's converter with tables and blocks of our own; made late, as the package need not be installed."""

    class Converter(markdownify.MarkdownConverter):
        def __init__(self, **options):
            super().__init__(**options)
            self._cells: dict[int, str] = {}  # by the element's id; a table is put together when all are known

        def convert_div(self, el, text, parent_tags):
            return super().convert_div(el, text, parent_tags) or "\n\n"  # an empty block parts texts, too

        def convert_p(self, el, text, parent_tags):
            return super().convert_p(el, text, parent_tags) or "\n\n"

        def convert_td(self, el, text, parent_tags):
            if _row_of(el) is None:
                return self.convert_div(el, text, parent_tags)
            self._cells[id(el)] = " ".join(text.split())
            return ""

        convert_th = convert_td

        def convert_tr(self, el, text, parent_tags):
            return f" {text.strip()} "  # what stands in no cell

        def convert_table(self, el, text, parent_tags):
            """The table below its caption; within another table's cell, a line can only hold its words."""
            rows, has_head = _table_rows(el)
            texts = [["" if cell is None else self._cells[id(cell)] for cell in row] for row in rows]
            if "_inline" in parent_tags:
                return " ".join(["", text.strip(), *(cell for row in texts for cell in row), ""])
            if not has_head:
                texts = [[""] * len(row) for row in texts[:1]] + texts
            return f"\n\n{text.strip()}\n\n{markdown_rows(texts) if texts else ''}\n\n"

    return Converter


def _row_of(cell: Any) -> Any | None:
    """The row of a table that a cell belongs to; None if it stands in none."""
    parent = cell.find_parent(["tr", "table"])
    return parent if parent is not None and parent.name == "tr" and parent.find_parent("table") else None


def _table_rows(table: Any) -> tuple[list[list[Any]], bool]:
    """The cell at each place of a table, None where there is none; and whether the first row is its head.

    A row without cells of its own, and a column in which no cell begins, repeat others and are left out.
    """
    sections: dict[int, list] = {}
    for row in table("tr"):
        if row.find_parent("table") is table:
            cells = [cell for cell in row(["td", "th"]) if _row_of(cell) is row]
            sections.setdefault(id(row.parent), []).append(cells)
    grid, begun = [], set()
    for rows in sections.values():  # no cell reaches from one section into the next
        grid += [(row, places) for row, places in zip(rows, _places(rows, begun), strict=True) if row]
    if not grid:
        return [], False
    first = grid[0][0]
    has_head = first[0].find_parent(["thead", "table"]).name == "thead" or all(cell.name == "th" for cell in first)
    return [[places.get(column) for column in sorted(begun)] for _, places in grid], has_head


def _places(rows: Sequence[Sequence[Any]], begun: set[int]) -> list[dict[int, Any]]:
    """For each row of a section its cells by column, with those that reach into it from the left and from above.

    The columns in which a cell begins are added to `begun`.
    """
    places: list[dict[int, Any]] = [{} for _ in rows]
    for at, row in enumerate(rows):
        column = 0
        for cell in row:
            while column in places[at]:
                column += 1
            begun.add(column)
            width, height = _span(cell, "colspan", _MOST_COLUMNS) or 1, _span(cell, "rowspan", _MOST_ROWS)
            for reached in places[at : at + height if height else None]:  # 0: to the end of the section
                for each in range(column, column + width):
                    reached.setdefault(each, cell)
    return places


def _span(cell: Any, name: str, most: int) -> int:
    """How many rows or columns a cell says that it spans; 1 where it says nothing that can be read."""
    digits = re.match(r"\s*(\d+)", cell.get(name, "1"), re.ASCII)
    return min(int(digits[1]), most) if digits else 1


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def read_html(path: pathlib.Path) -> list[Text]:
    """A web page that was saved.

    Raises:
      ValueError: as `html_to_markdown`.
      OSError: the file cannot be read.
    """
    text, title = html_to_markdown(path.read_bytes(), path)
    return [Text(text, title)]


def read_epub(path: pathlib.Path) -> list[Text]:
    """A book, chapter after chapter in the order of its spine.

    Raises:
      ValueError: it is damaged, protected, or no EPUB.
    """
    import_reader("bs4", path)
    try:
        with zipfile.ZipFile(path) as archive:
            if "META-INF/rights.xml" in archive.namelist():
                raise ValueError(f"{path}: got a protected book, expected one without copy protection")
            container = ElementTree.fromstring(archive.read(_CONTAINER))
            package = next(each for each in container.iter() if _tag(each) == "rootfile").attrib["full-path"]
            content = ElementTree.fromstring(archive.read(package))
            items = {each.attrib["id"]: each.attrib["href"] for each in content.iter() if _tag(each) == "item"}
            spine = [each.attrib["idref"] for each in content.iter() if _tag(each) == "itemref"]
            places = [
                posixpath.normpath(posixpath.join(posixpath.dirname(package), urllib.parse.unquote(items[name])))
                for name in spine
            ]
            chapters = [html_to_markdown(archive.read(place), path)[0] for place in places]
    except (zipfile.BadZipFile, KeyError, StopIteration, ElementTree.ParseError) as error:
        raise ValueError(
            f"{path}: got {type(error).__name__}: {error}, expected an EPUB; get the file again"
        ) from error
    title = next((" ".join((each.text or "").split()) for each in content.iter() if _tag(each) == "title"), "")
    return [Text("\n\n".join(chapter for chapter in chapters if chapter), title)]


def _tag(element: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]
