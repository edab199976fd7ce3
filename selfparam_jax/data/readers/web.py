"""HTML and EPUB, as Markdown."""

import pathlib
import posixpath
import re
import types
import urllib.parse
import zipfile
from typing import Any
from xml.etree import ElementTree

from selfparam_jax.data.readers.texts import Text, import_reader

# Not part of what a page says.
_UNSEEN = ("script", "style", "noscript", "template", "svg", "nav")
_CONTAINER = "META-INF/container.xml"


def html_to_markdown(html: str | bytes, path: pathlib.Path) -> tuple[str, str]:
    """A page's text as Markdown, and its title; scripts, styles, navigation and pictures are left out.

    Raises:
      ValueError: the extra is not installed, or the page's encoding cannot be found out.
    """
    soup_of, markdownify = import_reader("bs4", path), import_reader("markdownify", path)
    try:
        return _to_markdown(soup_of.BeautifulSoup(html, "html.parser"), markdownify, path)
    except RecursionError:
        raise ValueError(
            f"{path}: got elements that are nested too deeply, expected a page; save it as text"
        ) from None


def _to_markdown(soup: Any, markdownify: types.ModuleType, path: pathlib.Path) -> tuple[str, str]:
    if soup.contains_replacement_characters:
        raise ValueError(f"{path}: got bytes of an unknown encoding, expected UTF-8; convert the file to UTF-8")
    title = " ".join(soup.title.get_text().split()) if soup.title else ""
    for element in soup([*_UNSEEN, "title"]):
        element.decompose()
    markdown = markdownify.MarkdownConverter(heading_style="ATX", bullets="-", strip=["img", "a"]).convert_soup(soup)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)[ \t]+$", "", markdown)).strip(), title


def read_html(path: pathlib.Path) -> list[Text]:
    """A web page that was saved."""
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
