"""Which reader takes a file, by its suffix. A new kind is a function of a path and an entry here."""

import pathlib
import zipfile
from collections.abc import Callable

from selfparam_jax.data.readers import chats, code, office, texts, web
from selfparam_jax.data.readers.texts import Text

# Each gives the texts of a file; None if the file has another layout than those that it knows.
Reader = Callable[[pathlib.Path], list[Text] | None]

READERS: dict[str, Reader] = {
    ".txt": chats.read_text,
    ".md": texts.read_markdown,
    ".markdown": texts.read_markdown,
    ".rst": texts.read_restructured,
    ".html": web.read_html,
    ".htm": web.read_html,
    ".xhtml": web.read_html,
    ".epub": web.read_epub,
    ".pdf": office.read_pdf,
    ".docx": office.read_docx,
    ".pptx": office.read_pptx,
    ".ipynb": code.read_notebook,
    ".json": chats.read_json,
    **dict.fromkeys(code.LANGUAGES, code.read_source),
}
# Their name alone is a document's id; others keep their suffix in it, so that a.c and a.h are two.
NAMED_BY_STEM = (".txt", ".md")


# Kinds that other libraries take apart: a damaged file can raise anything there.
FOREIGN = (".epub", ".docx", ".pptx", ".pdf")
# Kinds that are archives, and the most bytes that one may unpack to: some kilobytes can stand for many gigabytes.
ARCHIVES = (".epub", ".docx", ".pptx")
MOST_UNPACKED = 1 << 30
MOST_TEXT = 1 << 26  # of one file of markup in it; a book has a few MiB


def read_file(path: pathlib.Path) -> list[Text] | None:
    """The texts of a file; None if it is of no known kind or layout.

    Raises:
      ValueError: it is empty, damaged, or needs a package that is not installed; the message names the file.
      OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        return None
    found = _read_foreign(READERS[suffix], path) if suffix in FOREIGN else READERS[suffix](path)
    if found is not None and not any(text.text.strip() for text in found):
        raise ValueError(f"{path}: got an empty file, expected text; fill it in or remove the file")
    return found


def _read_foreign(reader: Reader, path: pathlib.Path) -> list[Text] | None:
    """What a reader gives; whatever a library raises in it becomes a ValueError that names the file."""
    try:
        if path.suffix.lower() in ARCHIVES:
            _refuse_large(path)
        return reader(path)
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        reason = " ".join(str(error).split())[:120]
        raise ValueError(
            f"{path}: got a damaged file ({type(error).__name__}: {reason}), expected {path.suffix.lower()}; get the "
            "file again, or save it again"
        ) from error


def _refuse_large(path: pathlib.Path) -> None:
    """Raises ValueError for an archive that unpacks to too much; what is no archive is its reader's to refuse."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [(each.filename.lower(), each.file_size) for each in archive.infolist()]
    except zipfile.BadZipFile:
        return
    unpacked = sum(size for _, size in sizes)
    largest = max((size for name, size in sizes if name.endswith((".xml", ".xhtml", ".html", ".htm"))), default=0)
    if largest > MOST_TEXT:
        raise ValueError(
            f"{path}: got a text of {largest >> 20} MiB in it, expected at most {MOST_TEXT >> 20}; split the document"
        )
    if unpacked > MOST_UNPACKED:
        raise ValueError(
            f"{path}: got an archive of {unpacked >> 20} MiB when unpacked, expected at most {MOST_UNPACKED >> 20}; "
            "save the document without its pictures, or as text"
        )
