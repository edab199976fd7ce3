"""Documents with their questions: one JSONL record a line, a file of a kind in `readers`, or many files.

What is read here is written into a model's weights, so nothing is guessed: an unknown field, a missing answer or a
shorter file than asked for is a ValueError that names the file and the line.
"""

import collections
import dataclasses
import difflib
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import logging

from selfparam_jax.data.extras import MissingExtraError
from selfparam_jax.data.readers.chats import is_conversation, read_conversation, refuse_turns
from selfparam_jax.data.readers.registry import NAMED_BY_STEM, READERS, read_file
from selfparam_jax.data.readers.texts import Text, decode
from selfparam_jax.distributed.files import kind_of, parse_json, reading, refuse_surrogates

# Files of records, one a line; a file of another unknown kind is tried as such, too, if it is text.
RECORD_SUFFIXES = (".jsonl", ".ndjson")
LISTED = 12  # files that a message names
_RECORD_FIELDS = ("id", "title", "context", "text", "questions", "qa_pairs", "metadata")


@dataclasses.dataclass(frozen=True)
class Question:
    """A held-out question.

    Attributes:
      question: as it is asked.
      answers: any of them counts as right, the first is the gold answer; at least one.
      kind: a word by which results are also given, such as "latest"; "" for none.
      documents: ids of the documents that are needed to answer it; () for its own.

    Raises:
      ValueError: the question is empty, there is no answer, or a field has another type.
    """

    question: str
    answers: tuple[str, ...]
    kind: str = ""
    documents: tuple[str, ...] = ()

    def __post_init__(self):
        _refuse_blank(self.question, "Question.question")
        _typed(self.kind, "a string", "Question.kind")
        for name in ("answers", "documents"):
            object.__setattr__(self, name, _tuple_of(str, "strings", getattr(self, name), f"Question.{name}"))
        if not self.answers:
            raise ValueError("Question.answers: got none, expected at least one; add it, or leave the question out")


@dataclasses.dataclass(frozen=True)
class QAPair:
    """A question and its answer to train on.

    Raises:
      ValueError: one of them is empty, or no string.
    """

    question: str
    answer: str

    def __post_init__(self):
        _refuse_blank(self.question, "QAPair.question")
        _refuse_blank(self.answer, "QAPair.answer")


@dataclasses.dataclass(frozen=True)
class Document:
    """A document: its text, the questions it is tested with and the pairs it is trained with.

    Attributes:
      text: what is written into the model's weights.
      title: for reports.
      id: names it in every record; "" becomes a name made from the text.
      questions: held out; only ever asked.
      qa_pairs: trained on.
      metadata: your own fields, JSON values; they are kept and change nothing else, except "date" (`targets.dates`).

    Raises:
      ValueError: the text is empty, a field has another type, a string holds half of a character.
    """

    text: str
    title: str = ""
    id: str = ""
    questions: tuple[Question, ...] = ()
    qa_pairs: tuple[QAPair, ...] = ()
    metadata: dict = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        for name in ("text", "title", "id"):
            _typed(getattr(self, name), "a string", f"Document.{name}")
        _refuse_blank(self.text, "Document.text")
        for name, kind in (("questions", Question), ("qa_pairs", QAPair)):
            items = _tuple_of(kind, kind.__name__, getattr(self, name), f"Document.{name}")
            object.__setattr__(self, name, items)
        try:
            fields = json.dumps(self.metadata, allow_nan=False) if isinstance(self.metadata, dict) else None
        except (TypeError, ValueError):
            fields = None
        if fields is None:
            raise ValueError(f"Document.metadata: got {self.metadata!r:.80}, expected a dict of JSON values")
        if not self.id:
            digest_of_text = hashlib.sha256(self.text.encode("utf-8", "surrogatepass")).hexdigest()
            object.__setattr__(self, "id", f"document-{digest_of_text[:12]}")
        refuse_surrogates(dataclasses.asdict(self), f"Document {self.id!a}")


def _tuple_of(kind: type, what: str, items: object, where: str) -> tuple:
    """The items of a list, a tuple or another iterable, all of a type. Raises ValueError for anything else."""
    one = isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable)
    found = None if one else tuple(items)
    if found is None or not all(isinstance(item, kind) for item in found):
        raise ValueError(f"{where}: got {items!r:.80}, expected a tuple of {what}; correct the value")
    return found


def read_document_files(path: str | os.PathLike, limit: int = 0, ids: tuple[str, ...] = ()) -> list[Document]:
    """Reads the documents of a file, of a folder, or of all files that match a pattern such as "notes/*.md".

    A file of a kind in `readers.registry` is one document, or several where it holds several conversations; a JSONL
    file has a document or a conversation a line, and a .json file may have a list of documents. The id of a text or
    Markdown file is its name without the suffix, that of others their name; of a folder, relative to it. A folder is
    read recursively in sorted order, hidden files left out. Its files of unknown kinds are left out and named in the
    log; one that is empty or cannot be read, or a link to nothing, is an error. All records are checked, also those
    that are not selected. `corpora.read_documents` reads data sets as well.

    Args:
      path: file, folder or pattern.
      limit: how many documents to keep, 0 for all.
      ids: if given, only these documents, in this order (`limit` then counts among them).

    Returns:
      the documents, at least one.

    Raises:
      ValueError: the content is not what is expected; the message names the file and the line.
      OSError: there is no such file, or it cannot be read.
    """
    if is_pattern(path):
        documents = _documents_of(*_matching_files(os.fspath(path)), os.fspath(path))
    elif (path := _existing(path)).is_dir():
        documents = _documents_of(path, _files_below(path), str(path))
    else:
        found = read_file(path)
        if found is None:
            _refuse_unknown_kind(path)
        documents = _file_documents(path) if found is None else _text_documents(path, found)
    return select(documents, limit, ids, str(path))


def is_pattern(path: str | os.PathLike) -> bool:
    """Whether a path is a pattern (*, ?, [...]) rather than the name of something that exists."""
    return glob.has_magic(os.fspath(path)) and not os.path.exists(path)


def select(documents: list[Document], limit: int, ids: tuple[str, ...], source: str) -> list[Document]:
    """The documents with these ids in this order, or all if no ids are given; of them the first `limit`.

    Args:
      documents: all there are, with different ids.
      limit: how many to keep, 0 for all.
      ids: () means all.
      source: where they come from, for messages.

    Returns:
      the selected documents.

    Raises:
      ValueError: an unknown id, or one twice; a limit above the number of documents.
    """
    if ids:
        documents = _select(documents, ids, source)
    return _limited(documents, limit, source, "documents")


def load_texts(path: str | os.PathLike, limit: int = 0) -> list[str]:
    """Reads plain texts: a JSONL file of {"text": ...}, or a .txt file with blank lines between texts.

    Raises:
      ValueError: the content is not what is expected; the message names the file and the line.
      OSError: there is no such file, or it cannot be read.
    """
    path = _existing(path)
    if path.is_dir():
        raise ValueError(
            f"{path}: got a folder, expected a JSONL file of {{'text': ...}} or a .txt file; give one file"
        )
    if path.suffix.lower() == ".txt":
        paragraphs = re.split(r"\n[^\S\n]*\n", decode(path))
        texts = [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]
    else:
        texts = []
        for _, where, record in _records(path):
            _refuse_unknown(record, ("text",), where)
            texts.append(_text(record, "text", where))
    if not texts:
        raise ValueError(f"{path}: got an empty file, expected at least one text; check the path")
    return _limited(texts, limit, str(path), "texts")


def digest(document: Document) -> str:
    """The sha256 of a document's canonical JSON: equal exactly if all fields are equal."""
    record = dataclasses.asdict(document)
    for question in record["questions"]:  # fields of later versions count where they are given
        for name in ("kind", "documents"):
            if not question[name]:
                del question[name]
    return _digest(record)


def digest_documents(documents: Sequence[Document]) -> dict[str, str]:
    """The digest of each document by its id, in their order.

    Raises:
      ValueError: two documents have the same id.
    """
    found: dict[str, str] = {}
    for document in documents:
        if document.id in found:
            raise ValueError(f"got two documents with the id {document.id!r}, expected different ids; rename one")
        found[document.id] = digest(document)
    return found


def digest_texts(texts: Sequence[str]) -> str:
    """The sha256 of texts: equal exactly if the texts and their order are equal."""
    return _digest(list(texts))


def _digest(value: object) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _existing(path: str | os.PathLike) -> pathlib.Path:
    if not os.fspath(path):
        raise ValueError("got an empty path, expected a file, a folder or a pattern")
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; check the path")
    refuse_special(path)
    return path


def refuse_special(path: pathlib.Path) -> None:
    """Raises ValueError for a pipe or a device, which may never end, and for a name that no other file can hold."""
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: got a pipe or a device, expected a file or a folder; copy its content into a file")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{str(path)!a}: got a file name that is not UTF-8, expected one that is; rename it"
        ) from None


def is_record_list(path: pathlib.Path) -> bool:
    """Whether a .json file is a list of records, which a JSONL file has one a line."""
    if path.suffix.lower() != ".json":
        return False
    try:
        content = json.loads(decode(path))
    except (ValueError, RecursionError):
        return False
    return isinstance(content, list) and any(
        isinstance(each, dict) and {"context", "text"} & each.keys() and not is_conversation(each) for each in content
    )


def _records(path: pathlib.Path) -> Iterator[tuple[int, str, dict]]:
    """Yields number, place and object of each record: of each line that is not blank, or each entry of a list."""
    if is_record_list(path):
        unique = functools.partial(_unique, where=str(path))
        found = parse_json(decode(path), str(path), "a list of records; correct the file", unique)
        for number, record in enumerate(found, start=1):
            yield number, (where := f"{path}, entry {number}"), _typed(record, "an object", where)
        return
    # Not str.splitlines: it also splits at U+2028 and others, which JSON allows inside a string.
    for line, text in enumerate(decode(path).split("\n"), start=1):
        if not text.strip():
            continue
        where = f"{path}, line {line}"
        unique = functools.partial(_unique, where=where)
        record = parse_json(text, where, "one JSON object a line; correct the line", unique)
        yield line, where, _typed(record, "an object", where)


def _unique(pairs: list[tuple], where: str) -> dict:
    """Builds an object; a key written twice would otherwise silently lose its first value."""
    record = {}
    for key, value in pairs:
        if key in record:
            raise ValueError(f"{where}: got the field {key!r} twice, expected it once; remove one of the two")
        record[key] = value
    return record


def _file_documents(path: pathlib.Path, name: str = "") -> list[Document]:
    """The documents of a file of records; `name` is that of a conversation without an id, before its line."""
    name = name or path.stem
    documents, first_place, about = [], {}, {}
    for line, where, record in _records(path):
        if is_conversation(record):
            text = read_conversation(record, where)
            document = _of_text(text, text.name or f"{name}-{line}")
            if text.pairs and text.text in about:  # a further pair about a text that is there
                place = about[text.text]
                pairs = (*documents[place].qa_pairs, *document.qa_pairs)
                documents[place] = dataclasses.replace(documents[place], qa_pairs=pairs)
                continue
            about[text.text] = len(documents)
        else:
            document = _document(record, where)
        if document.id in first_place:
            raise ValueError(
                f"{where}: got the id {document.id!r} again (first in {first_place[document.id]}), expected "
                "different ids; rename one of the two"
            )
        first_place[document.id] = where.removeprefix(f"{path}, ")
        documents.append(document)
    if not documents:
        raise ValueError(f"{path}: got an empty file, expected one document a line; check the path")
    return documents


def _document(record: dict, where: str) -> Document:
    refuse_turns(record, where)
    _refuse_unknown(record, _RECORD_FIELDS, where, "put fields of your own into 'metadata'")
    if "context" in record and "text" in record:
        raise ValueError(f"{where}: got both 'context' and 'text', expected one of them; remove one")
    return Document(
        id=_text(record, "id", where) if "id" in record else "",
        title=_typed(record.get("title", ""), "a string", f"{where}: 'title'"),
        text=_text(record, "text" if "text" in record else "context", where),
        questions=tuple(_question(item, spot) for item, spot in _objects(record, "questions", where)),
        qa_pairs=tuple(_pair(item, spot) for item, spot in _objects(record, "qa_pairs", where)),
        metadata=_metadata(record.get("metadata", {}), f"{where}: 'metadata'"),
    )


def _metadata(value: object, where: str) -> dict:
    _typed(value, "an object", where)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise ValueError(f"{where}: got NaN or Infinity, expected JSON values; correct the value") from None
    return value


def _question(item: dict, where: str) -> Question:
    _refuse_unknown(item, ("question", "answers", "kind", "documents"), where)
    question = _text(item, "question", where)
    answers = item.get("answers")
    if not isinstance(answers, list) or not answers:
        got = "no 'answers'" if "answers" not in item else f"'answers': {json.dumps(answers)[:80]}"
        raise ValueError(
            f"{where}: got {got}, expected 'answers' to be a list of at least one string; "
            "add the answer or remove the question"
        )
    named = _typed(item.get("documents", []), "a list", f"{where}: 'documents'")
    return Question(
        question,
        tuple(_string(answer, "answers", where) for answer in answers),
        _typed(item.get("kind", ""), "a string", f"{where}: 'kind'"),
        tuple(_string(name, "documents", where) for name in named),
    )


def _pair(item: dict, where: str) -> QAPair:
    _refuse_unknown(item, ("question", "answer"), where)
    return QAPair(_text(item, "question", where), _text(item, "answer", where))


def _objects(record: dict, field: str, where: str) -> Iterator[tuple[dict, str]]:
    """Yields each object of a list field with its place in words, counted from 1 as lines are."""
    items = _typed(record.get(field, []), "a list", f"{where}: {field!r}")
    for number, item in enumerate(items, start=1):
        spot = f"{where}, {field} entry {number}"
        yield _typed(item, "an object", spot), spot


def _refuse_blank(value: object, where: str) -> None:
    if not _typed(value, "a string", where).strip():
        raise ValueError(f"{where}: got an empty string, expected text; fill it in")


def _text(record: dict, field: str, where: str) -> str:
    if field not in record:
        raise ValueError(f"{where}: got no {field!r}, expected a string that is not empty; add the field")
    return _string(record[field], field, where)


def _string(value: object, field: str, where: str) -> str:
    _typed(value, "a string", f"{where}: {field!r}")
    if not value.strip():
        raise ValueError(f"{where}: {field!r}: got an empty string, expected text; fill it in or remove the entry")
    if "\0" in value:
        raise ValueError(
            f"{where}: {field!r}: got a NUL character at character {value.index(chr(0))}, expected text; remove it"
        )
    return value


def _refuse_unknown(record: dict, known: tuple[str, ...], where: str, advice: str = "remove it") -> None:
    for field in record:
        if field not in known:
            close = difflib.get_close_matches(field, known, n=1)
            hint = f"did you mean {close[0]!r}? Else {advice}" if close else advice
            raise ValueError(f"{where}: got the unknown field {field!r}, expected only {', '.join(known)}; {hint}")


def _typed(value: object, kind: str, where: str) -> object:
    if kind_of(value) != kind:
        raise ValueError(f"{where}: got {kind_of(value)}, expected {kind}; correct the value")
    return value


# --- files of other kinds -------------------------------------------------------------------------------


def _of_text(text: Text, name: str) -> Document:
    pairs = tuple(QAPair(*pair) for pair in text.pairs)
    return Document(text.text, title=text.title, id=name, qa_pairs=pairs, metadata=text.metadata)


def _text_documents(
    path: pathlib.Path, texts: Sequence[Text], name: str = "", whole_name: bool = False
) -> list[Document]:
    """The documents of a file's texts.

    Args:
      path: the file.
      texts: what was read from it.
      name: the file's, relative to its folder.
      whole_name: whether its suffix belongs to the ids, whatever its kind.
    """
    name = name or path.name
    if path.suffix.lower() in NAMED_BY_STEM and not whole_name:
        name = name[: -len(path.suffix)]
    single = len(texts) == 1
    documents: dict[str, Document] = {}
    for number, text in enumerate(texts, start=1):
        document = _of_text(text, text.name or (name if single else f"{name}-{number}"))
        if document.id in documents:
            raise ValueError(
                f"{path}, entry {number}: got the id {document.id!r} again, expected different ids; rename one"
            )
        documents[document.id] = document
    return list(documents.values())


def _refuse_unknown_kind(path: pathlib.Path) -> None:
    """Raises ValueError for a file of an unknown kind that does not begin as a file of records does."""
    if path.suffix.lower() in (".json", *RECORD_SUFFIXES):
        return
    with path.open("rb") as file:
        begin = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin and not begin.startswith((b"{", b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(
            f"{path}: got a file of an unknown kind ({path.suffix or 'no suffix'}), expected JSONL or one of "
            f"{', '.join(READERS)}; convert it, or give text the suffix .txt"
        )


def _files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder, relative to it, in sorted order; hidden ones left out."""
    found = []

    def refuse(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=refuse):
        below = pathlib.Path(place).relative_to(folder)
        # Hidden: editors and file systems leave half copies there.
        folders[:] = [name for name in folders if not name.startswith(".")]
        if links := [str(below / name) for name in folders if os.path.islink(os.path.join(place, name))]:
            logging.warning("%s: links to folders are not followed: %s", folder, ", ".join(_listed(links)))
        found += [below / name for name in files if not name.startswith(".")]
    return sorted(found)  # a link to nothing and a pipe are kept, so that they are named


def _matching_files(pattern: str) -> tuple[pathlib.Path, list[pathlib.Path]]:
    """The folder that a pattern begins with, and the files that match it, those of matching folders among them."""
    parts = pathlib.Path(pattern).parts
    plain = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    root = pathlib.Path(*parts[:plain])
    found: set[pathlib.Path] = set()
    for match in map(pathlib.Path, glob.glob(pattern, recursive=True)):
        below = [match / name for name in _files_below(match)] if match.is_dir() else [match]
        found.update(path.relative_to(root) for path in below)
    if not found:
        raise FileNotFoundError(f"{pattern}: no file matches the pattern; check it")
    return root, sorted(found)


def _documents_of(root: pathlib.Path, names: Sequence[pathlib.Path], source: str) -> list[Document]:
    """The documents of several files.

    Every file that cannot be used is named: those of unknown kinds in a warning, all others in one error.
    """
    documents, first_file, unknown, refused = [], {}, [], []
    # Notes.txt beside Notes.md: both keep their suffix.
    stems = collections.Counter(name.with_suffix("") for name in names if name.suffix.lower() in NAMED_BY_STEM)
    for name in names:
        path = root / name
        try:
            with reading(path):
                found = _file_of_many(path, name, stems[name.with_suffix("")] > 1)
        except MissingExtraError:  # not the file's fault
            raise
        except (ValueError, OSError) as error:
            refused.append(str(error))
            continue
        if found is None:
            unknown.append(str(name))
        for document in found or ():
            if document.id in first_file:
                refused.append(
                    f"{path}: got the id {document.id!r} again (first from {first_file[document.id]}), expected "
                    "different names without the suffix; rename one of the two"
                )
            first_file.setdefault(document.id, path)
            documents.append(document)
    if len(refused) == 1:
        raise ValueError(refused[0])
    if refused:
        raise ValueError("\n".join([f"{source}: {len(refused)} files cannot be used:", *_listed(refused)]))
    if unknown:
        logging.warning("%s: files of unknown kinds are left out: %s", source, ", ".join(_listed(unknown)))
    if not documents:
        raise ValueError(
            f"{source}: got a folder without text, expected .jsonl, .txt, .md or another known kind; check the path"
        )
    return documents


def _file_of_many(path: pathlib.Path, name: pathlib.Path, whole_name: bool) -> list[Document] | None:
    """The documents of one of many files; None if its kind is unknown. For the last two, see `_text_documents`."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path}: a link to {os.readlink(path)}, which is not there; remove the link")
    refuse_special(path)
    if path.suffix.lower() in RECORD_SUFFIXES or is_record_list(path):
        return _file_documents(path, name.with_suffix("").as_posix())
    found = read_file(path)
    return None if found is None else _text_documents(path, found, name.as_posix(), whole_name)


def _listed(items: Sequence[str]) -> list[str]:
    more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return [*items[:LISTED], *more]


# --- choosing -------------------------------------------------------------------------------------------


def _select(documents: list[Document], ids: tuple[str, ...], source: str) -> list[Document]:
    if kind_of(ids) == "a string":
        raise ValueError(f"ids: got the string {ids!r}, expected a tuple of ids; write ({ids!r},)")
    by_id = {document.id: document for document in documents}
    for name in ids:
        if name not in by_id:
            close = difflib.get_close_matches(str(name), by_id, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the first is {documents[0].id!r}"
            raise ValueError(f"{source}: got the id {name!r}, expected one of the file's {len(by_id)} ids; {hint}")
    twice = [name for number, name in enumerate(ids) if name in ids[:number]]
    if twice:
        raise ValueError(f"ids: got {twice[0]!r} twice, expected each id once; remove one of the two")
    return [by_id[name] for name in ids]


def _limited(items: list, limit: int, source: str, noun: str) -> list:
    if limit < 0 or limit > len(items):
        raise ValueError(
            f"{source}: got limit {limit}, expected 0 (all) to {len(items)}, the {noun} available; "
            "lower the limit or add records"
        )
    return items[:limit] if limit else items
