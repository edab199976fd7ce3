"""PDF, Word and PowerPoint, as Markdown."""

import logging as logs
import pathlib
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence

from absl import logging

from selfparam_jax.data.readers.texts import Text, import_reader
from selfparam_jax.data.readers.web import html_to_markdown, markdown_rows

# A word that is cut at the end of a line; "well-\nKnown" and "1990-\n1995" are not.
_HYPHEN = re.compile(r"([^\W\d_])-\n([^\W\d_A-Z])")
_ENDS = re.compile(r"[.!?:;。！？”\"')\]]\s*$")
# Messages of mammoth about what it leaves out; it also tells of styles that it does not know, whose text is kept.
_IGNORED = re.compile(
    r"An unrecognised element was ignored: (?:\{.*\}|\w+:)?(?P<name>\S+)"
    r"|A w:sym element with an unsupported character was ignored: char (?P<symbol>.+)"
)
_EQUATIONS = ("<oMath>", "<oMathPara>")


def read_docx(path: pathlib.Path) -> list[Text]:
    """A Word document: headings, lists and tables; pictures are left out.

    Equations and other parts that mammoth does not know are left out, too, and named in the log.

    Raises:
      ValueError: it is damaged, or the extra is not installed.
    """
    mammoth = import_reader("mammoth", path)
    try:
        with path.open("rb") as file:
            no_pictures = mammoth.images.img_element(lambda image: {"src": ""})
            result = mammoth.convert_to_html(file, convert_image=no_pictures)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise ValueError(
            f"{path}: got {type(error).__name__}: {error}, expected a .docx file; save it again"
        ) from error
    if lost := _left_out(message.message for message in result.messages):
        logging.warning("%s: left out, as their text cannot be read: %s", path, ", ".join(lost))
    return [Text(*html_to_markdown(result.value, path))]


def _left_out(messages: Iterable[str]) -> list[str]:
    """What mammoth says that it has left out, each once; it has no setting to keep the text of these elements."""
    found = [match for message in messages if (match := _IGNORED.match(message))]
    names = [f"symbol {match['symbol']}" if match["symbol"] else f"<{match['name']}>" for match in found]
    return list(dict.fromkeys("equations" if name in _EQUATIONS else name for name in names))


def read_pptx(path: pathlib.Path) -> list[Text]:
    """Slides: each with its title as a heading, its texts, tables and the speaker's notes.

    Raises:
      ValueError: it is damaged, or the extra is not installed.
    """
    pptx = import_reader("pptx", path)
    try:
        slides = pptx.Presentation(str(path)).slides
    except (zipfile.BadZipFile, KeyError, ValueError, pptx.exc.PackageNotFoundError) as error:
        raise ValueError(
            f"{path}: got {type(error).__name__}: {error}, expected a .pptx file; save it again"
        ) from error
    parts, title = [], ""
    for number, slide in enumerate(slides, start=1):
        heading = slide.shapes.title
        name = " ".join(heading.text_frame.text.split()) if heading is not None else ""
        title = title or name
        texts = [text for shape in slide.shapes if shape != heading for text in _shape_texts(shape)]
        notes = slide.notes_slide.notes_text_frame.text.strip() if slide.has_notes_slide else ""
        texts += [f"Notes: {notes}"] if notes else []
        if name or texts:
            parts += [f"## {name or f'Slide {number}'}", *texts]
    return [Text("\n\n".join(parts), title)]


def _shape_texts(shape) -> Iterator[str]:
    if shape.has_text_frame:
        lines = [paragraph.text.strip() for paragraph in shape.text_frame.paragraphs]
        if text := "\n".join(line for line in lines if line):
            yield text
    elif getattr(shape, "has_table", False) and shape.has_table:
        rows = [[" ".join(cell.text.split()) for cell in row.cells] for row in shape.table.rows]
        yield markdown_rows(rows)
    for inner in getattr(shape, "shapes", ()):  # a group
        yield from _shape_texts(inner)


def read_pdf(path: pathlib.Path) -> list[Text]:
    """A PDF's text, page after page. Where it has an outline, those lines become headings.

    Words that are cut at the end of a line are put together. A page without text (a scan) is named in the log.

    Raises:
      ValueError: it is damaged or locked, has no text at all, or the extra is not installed.
    """
    pypdf = import_reader("pypdf", path)
    logs.getLogger("pypdf").setLevel(logs.ERROR)  # what is wrong with a damaged file is said in one line, below
    try:
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError(f"{path}: got a PDF that is locked with a password, expected an open one; unlock it")
        pages = [_page_text(page) for page in reader.pages]
        outline = list(_outline(reader, reader.outline))
        title = " ".join(((reader.metadata or {}).get("/Title") or "").split())
    except (pypdf.errors.PyPdfError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{path}: got {type(error).__name__}: {error}, expected a PDF; get the file again"
        ) from error
    empty = [str(number) for number, text in enumerate(pages, start=1) if not text]
    if len(empty) == len(pages):
        raise ValueError(
            f"{path}: got no text on any page (pages: {len(pages)}), expected text; scans need text recognition first"
        )
    if empty:
        logging.warning("%s: no text on page %s (scanned?); these pages are left out", path, ", ".join(empty))
    for level, heading, page in outline:
        pages[page] = _with_heading(pages[page], heading, min(level, 6))
    return [Text(_join_pages([text for text in pages if text]), title)]


def _page_text(page) -> str:
    text = _HYPHEN.sub(r"\1\2", page.extract_text().replace("\x00", ""))
    return "\n".join(line.strip() for line in text.split("\n")).strip()


def _outline(reader, entries, level: int = 1) -> Iterator[tuple[int, str, int]]:
    """(level, title, index of the page) of every entry of a PDF's outline."""
    for entry in entries:
        if isinstance(entry, list):
            yield from _outline(reader, entry, level + 1)
            continue
        page = reader.get_destination_page_number(entry)
        if page is not None and page >= 0:
            yield level, " ".join(entry.title.split()), page


def _with_heading(text: str, heading: str, level: int) -> str:
    """A page with the first line that is the heading written as one; the page as it is if there is no such line."""
    lines = text.split("\n")
    for at, line in enumerate(lines):
        if heading and " ".join(line.split()) == heading:
            lines[at] = f"\n{'#' * level} {heading}\n"
            return "\n".join(lines)
    return text


def _join_pages(pages: Sequence[str]) -> str:
    """Pages as one text: a blank line between them where the first ends a sentence, else only a line break."""
    text = pages[0]
    for page in pages[1:]:
        cut = _HYPHEN.fullmatch(f"{text[-2:]}\n{page[:1]}")
        if cut:
            text = text[:-1] + page
        else:
            text += ("\n\n" if _ENDS.search(text) or page.startswith("\n") else "\n") + page
    return text.strip()
