"""Documents and unrelated text from anywhere: files, folders, and data sets by name.

Documents (`read_documents`) come from one of

    documents.jsonl                   our own records (documents.py)
    notes.md, paper.pdf, FOLDER       a file of a kind in readers/registry.py, a folder of them
    "notes/*.md"                      all files that match a pattern
    dev-v1.1.json, dev-v2.0.json      SQuAD's layout
    rows.jsonl, rows.parquet          the hub's flat layout of SQuAD: one question a row
    pwc, squad, squad:train,          from the hub; squadshifts also with nyt, reddit and amazon
      squadshifts:new_wiki
    NAME@PATH                         the same from a local file, or from a directory in the hub's layout
    hub:ID[[:CONFIG]:SPLIT]           another hub data set in SQuAD's flat layout; ID may be a local directory

and texts (`read_texts`) from one of

    texts.jsonl, paragraphs.txt       as documents.load_texts reads them
    texts.parquet, texts.jsonl.gz     rows with a column `text`, also .jsonl and .jsonl.zst
    FOLDER                            all such files below it
    hub:ID[[:CONFIG]:SPLIT]           the same column of a hub data set, such as hub:DKYoon/SlimPajama-6B

A name wins over a path (write ./squad for a folder that is called so), and what follows the first @ of a name is a
path, whatever it contains; an existing directory wins over a hub id. Rows are streamed by the `datasets` library
(rows.py): only lock files are written to its cache (HF_DATASETS_CACHE), and the hub's client uses its own; both are
below HF_HOME unless set otherwise. Code that comes with a data set is never run.
"""

import collections
import dataclasses
import difflib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from selfparam_jax.data.documents import (
    Document,
    Question,
    is_pattern,
    is_record_list,
    load_texts,
    read_document_files,
    refuse_special,
    select,
)
from selfparam_jax.data.readers.chats import read_json as read_conversations
from selfparam_jax.data.readers.registry import READERS as DOCUMENT_READERS
from selfparam_jax.data.rows import (
    HUB,
    READERS,
    Row,
    check_columns,
    ending_of,
    field_of,
    file_rows,
    first_record,
    hub_rows,
    stream_rows,
    typed,
)
from selfparam_jax.distributed.files import kind_of, reading

PWC_ANSWER_TOKENS = 5
PWC_EXCLUDED = "above text"
# Files of a folder that are read side by side, so that the first texts do not all come from one of them.
OPEN_FILES = 8

# Title, text and, unless it was left out, a question.
_Entry = tuple[str, str, Question | None]


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A data set with a name.

    Attributes:
      hub: its id.
      layout: "squad" or "pwc": which columns it has and which questions are asked.
      splits: read in this order.
      folder: where in the repository it lies; "" means the top.
      revision: the branch; None means the main one.
    """

    hub: str
    layout: str
    splits: tuple[str, ...]
    folder: str = ""
    revision: str | None = None


CORPORA = {
    "pwc": Corpus("sggetao/PwC", "pwc", ("test", "train")),
    "squad": Corpus("rajpurkar/squad", "squad", ("validation",)),
    "squad:train": Corpus("rajpurkar/squad", "squad", ("train",)),
    # The main branch holds a loading script, which nobody runs any more; the hub's own conversion holds the rows.
    **{
        f"squadshifts:{domain}": Corpus(
            "ludwigschmidt/squadshifts", "squad", ("test",), domain, "refs/convert/parquet"
        )
        for domain in ("new_wiki", "nyt", "reddit", "amazon")
    },
}


def read_documents(
    source: str | os.PathLike,
    limit: int = 0,
    ids: tuple[str, ...] = (),
    count_tokens: Callable[[str], int] | None = None,
) -> list[Document]:
    """Reads documents with their questions, which are held out (`Document.questions`); see the module for sources.

    Rows of a data set with the same text are one document, wherever they are, in the order of first appearance. Its
    id is "squad-" or "pwc-" and the beginning of the text's sha256, so it depends on neither order nor `limit`. A
    question without an answer is left out, and the log reports how many were. For PwC the paper's filter applies:
    answers of at most `PWC_ANSWER_TOKENS` tokens, no question that mentions the "above text", and no document without
    a question.

    A split is read to its end, so that no question of a document is missed, but the next one is opened only if
    `limit` or `ids` ask for more documents: for PwC's 100 documents all questions of the test split are read.

    Args:
      source: a file, a folder, or the name of a data set.
      limit: how many documents to keep, 0 for all.
      ids: if given, only these documents, in this order (`limit` then counts among them).
      count_tokens: tokens of a text without special tokens; PwC needs it (the paper counts with OpenLLaMA's
        tokenizer).

    Returns:
      the documents, at least one.

    Raises:
      ValueError: no such data set or split, other columns, `limit` above the number of documents, no network.
      OSError: no such file.
    """
    with reading(source):
        return _read_documents(os.fspath(source), limit, ids, count_tokens)


def _read_documents(
    source: str, limit: int, ids: tuple[str, ...], count_tokens: Callable[[str], int] | None
) -> list[Document]:
    if limit < 0:
        raise ValueError(f"{source}: got limit {limit}, expected 0 (all) or more; correct the limit")
    name, at, place = source.partition("@")
    left_out: collections.Counter[str] = collections.Counter()
    layout = "squad"
    if name in CORPORA:
        corpus = CORPORA[name]
        layout = corpus.layout
        parts = _named_parts(source, corpus, _existing(place, source) if at else None, left_out, count_tokens)
    elif source.startswith(HUB):
        parts = iter([_squad_entries(hub_rows(source, ""), left_out)])
    elif is_pattern(source):
        return read_document_files(source, limit, ids)
    else:
        path = _existing(source, source)
        part = _file_entries(path, left_out)
        if part is None:
            return read_document_files(path, limit, ids)
        parts = iter([part])
    documents = _group(parts, layout, limit, ids)
    if not documents:
        raise ValueError(f"{source}: got no document, expected at least one;{_told(left_out)} check the source")
    documents = select(documents, limit, ids, source)
    questions = sum(len(document.questions) for document in documents)
    logging.info("%s: %d documents with %d questions;%s", source, len(documents), questions, _told(left_out))
    return documents


def read_texts(source: str | os.PathLike, count: int, seed: int, fewest: int | None = None) -> list[str]:
    """Reads `count` texts that are not empty, in an order fixed by `source`, `seed` and the version of `datasets`.

    Lists of texts (.txt, and .jsonl that holds nothing else) are shuffled as a whole; what is streamed is shuffled
    in a window of `SHUFFLE_BUFFER` rows, hub data sets also by file. Of a folder, `OPEN_FILES` files take turns. No
    more rows are read than the window and `count` texts need.

    Args:
      source: a file, a folder, or a hub data set; see the module. The split of the latter is "train" if not given.
      count: how many texts.
      seed: of the order; not negative.
      fewest: accept this many if there are no more; None: all `count` must be there.

    Returns:
      the texts.

    Raises:
      ValueError: fewer texts than `fewest`, no column `text`, no such data set or split, no network.
      OSError: no such file.
    """
    source = os.fspath(source)
    fewest = count if fewest is None else fewest
    if not 1 <= fewest <= count or seed < 0:
        raise ValueError(
            f"{source}: got count {count}, fewest {fewest} and seed {seed}, expected at least 1, up to the count, "
            "and no negative seed; correct them"
        )
    texts = _hub_texts(source, seed) if source.startswith(HUB) else _local_texts(source, seed)
    found = list(itertools.islice((text for text in texts if text.strip()), count))
    if len(found) < fewest:
        raise ValueError(
            f"{source}: got {len(found)} texts that are not empty, expected {fewest}; ask for fewer or add texts"
        )
    return found


# --- documents ----------------------------------------------------------------------------------------


def _named_parts(
    source: str,
    corpus: Corpus,
    place: pathlib.Path | None,
    left_out: collections.Counter,
    count_tokens: Callable[[str], int] | None,
) -> Iterator[Iterator[_Entry]]:
    """Returns the entries of each split; of a local file, its own. Nothing is opened before it is asked for."""
    entries = _squad_entries
    if corpus.layout == "pwc":
        if count_tokens is None:
            raise ValueError(
                f"{source}: got no count_tokens, expected a function that counts a text's tokens: only answers of at "
                f"most {PWC_ANSWER_TOKENS} tokens are kept; pass one"
            )
        entries = functools.partial(_pwc_entries, count_tokens=count_tokens)
    if place is None or place.is_dir():
        rows = (_split_rows(source, place or corpus.hub, corpus, split) for split in corpus.splits)
        return (entries(part, left_out) for part in rows)
    document = _squad_document(place) if corpus.layout == "squad" else None
    return iter([_document_entries(document, place, left_out) if document else entries(file_rows(place), left_out)])


def _file_entries(path: pathlib.Path, left_out: collections.Counter) -> Iterator[_Entry] | None:
    """Returns the entries of a path without a name; None if `documents.py` reads it."""
    if path.is_dir():
        if next(path.rglob("*.parquet"), None):
            raise ValueError(
                f"{path}: got a folder with .parquet files, expected documents; for a directory in the hub's "
                f"layout write {HUB}{path}:SPLIT, or NAME@{path} with NAME one of {', '.join(CORPORA)}"
            )
        return None
    suffix = path.suffix.lower()
    if (suffix in DOCUMENT_READERS and suffix != ".json") or (suffix == ".json" and read_conversations(path)):
        return None
    if is_record_list(path):
        return None
    document = _squad_document(path)
    if document:
        return _document_entries(document, path, left_out)
    if ending_of(path) in (".parquet", ".jsonl.gz", ".jsonl.zst"):
        return _squad_entries(file_rows(path), left_out)
    first = first_record(path)
    if {"input", "prompt", "answer"} <= first.keys():
        raise ValueError(
            f"{path}: got the columns {', '.join(first)}, which are PwC's, expected documents; write pwc@{path}"
        )
    return _squad_entries(file_rows(path), left_out) if {"context", "question"} <= first.keys() else None


def _split_rows(source: str, place: pathlib.Path | str, corpus: Corpus, split: str) -> Iterator[Row]:
    """Yields the rows of one split of a data set with a name, from the hub or a local directory."""
    if isinstance(place, str):
        how = {"data_dir": corpus.folder or None, "revision": corpus.revision}
    elif (place / corpus.folder).is_dir():
        place, how = place / corpus.folder, {}
    else:  # then the directory's README.md has to say where the rows are
        how = {"name": corpus.folder}
    return stream_rows(source, place, split, None, **how)


def _squad_entries(rows: Iterable[Row], left_out: collections.Counter) -> Iterator[_Entry]:
    for where, row in rows:
        check_columns(row, ("context", "question", "answers"), where)
        left_out["rows"] += 1
        texts = [typed(text, str, "answers", where) for text in _answers(row["answers"], where)]
        question = _question(row["question"], () if row.get("is_impossible") else texts, left_out, where)
        text = typed(row["context"], str, "context", where)
        if text.strip():
            yield typed(row.get("title") or "", str, "title", where), text, question
        elif question:
            left_out["empty"] += 1


def _answers(value: Any, where: str) -> list:
    return typed(typed(value, dict, "answers", where).get("text"), list, "answers.text", where)


def _pwc_entries(
    rows: Iterable[Row], left_out: collections.Counter, count_tokens: Callable[[str], int]
) -> Iterator[_Entry]:
    for where, row in rows:
        check_columns(row, ("input", "prompt", "answer"), where)
        left_out["rows"] += 1
        text, answer = (typed(row[field], str, field, where) for field in ("input", "answer"))
        question = _question(row["prompt"], (answer,), left_out, where)
        if question is None:
            continue
        if not text.strip():
            left_out["empty"] += 1
        elif PWC_EXCLUDED in question.question.lower():
            left_out[f'that speak of the "{PWC_EXCLUDED}"'] += 1
        elif count_tokens(answer) > PWC_ANSWER_TOKENS:
            left_out[f"whose answer has more than {PWC_ANSWER_TOKENS} tokens"] += 1
        else:
            yield "", text, question


def _squad_document(path: pathlib.Path) -> dict | None:
    """Returns the object of a file in SQuAD's layout; None for other files and for JSON lines."""
    if path.suffix.lower() != ".json":
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: got bytes that are not UTF-8 ({error.reason}), expected UTF-8; convert it"
        ) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return None
        raise ValueError(
            f"{path}, line {error.lineno}: got malformed JSON ({error.msg}), expected one object in SQuAD's layout; "
            "correct the file"
        ) from error
    except (RecursionError, ValueError) as error:
        what = (
            "JSON that is nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"
        )
        raise ValueError(f"{path}: got {what}, expected SQuAD's layout; correct the file") from error
    fields = document.keys() if isinstance(document, dict) else ()
    if "data" not in fields and not {"id", "context"} <= set(fields):
        got = f"an object with {', '.join(fields)}" if fields else kind_of(document)
        raise ValueError(
            f"{path}: got {got}, expected SQuAD's layout, an object with 'data', or "
            "conversations, or a list of records with 'context'; records may also be in a .jsonl file, one a line"
        )
    return document if "data" in fields else None


def _document_entries(document: dict, path: pathlib.Path, left_out: collections.Counter) -> Iterator[_Entry]:
    """Yields the questions of SQuAD's layout, and each paragraph once more so that none is lost without them."""
    for a, article in enumerate(field_of(document, "data", list, str(path)), start=1):
        title = typed(article, dict, "data", f"{path}, data entry {a}").get("title") or ""
        typed(title, str, "title", f"{path}, data entry {a}")
        for p, paragraph in enumerate(field_of(article, "paragraphs", list, f"{path}, data entry {a}"), start=1):
            where = f"{path}, data entry {a}, paragraphs entry {p}"
            text = field_of(paragraph, "context", str, where)
            if not text.strip():
                raise ValueError(f"{where}: got an empty 'context', expected text; fill it in or remove the entry")
            yield title, text, None
            for q, asked in enumerate(field_of(paragraph, "qas", list, where), start=1):
                spot = f"{where}, qas entry {q}"
                left_out["rows"] += 1
                texts = [field_of(answer, "text", str, spot) for answer in field_of(asked, "answers", list, spot)]
                texts = () if asked.get("is_impossible") else texts
                yield title, text, _question(asked.get("question"), texts, left_out, spot)


def _question(value: Any, answers: Iterable[str], left_out: collections.Counter, where: str) -> Question | None:
    """Returns the question with its different answers, or None and counts it if there is none to ask."""
    question = typed(value, str, "question", where)
    answers = tuple(dict.fromkeys(answer for answer in answers if answer.strip()))
    if question.strip() and answers:
        return Question(question, answers)
    left_out["empty" if answers else "without an answer"] += 1
    return None


def _group(parts: Iterable[Iterator[_Entry]], layout: str, limit: int, ids: tuple[str, ...]) -> list[Document]:
    found: dict[str, tuple[str, str, list[Question]]] = {}  # by text: id, title, questions
    known: set[str] = set()
    for part in parts:
        if known.issuperset(ids) if ids else limit and len(found) >= limit:
            break
        for title, text, question in part:
            if text not in found:
                if limit and not ids and len(found) >= limit:
                    continue
                digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
                found[text] = (f"{layout}-{digest[:16]}", title, [])
                known.add(found[text][0])
            if question:
                found[text][2].append(question)
    return [
        Document(id=name, title=title, text=text, questions=tuple(asked))
        for text, (name, title, asked) in found.items()
    ]


def _told(left_out: collections.Counter) -> str:
    """Says how many questions were read and how many of them are not asked, and why."""
    reasons = [f"{count} {reason}" for reason, count in left_out.items() if reason != "rows"]
    return f" of {left_out['rows']} questions read, left out: {', '.join(reasons) or 'none'};"


# --- texts --------------------------------------------------------------------------------------------


def _hub_texts(source: str, seed: int) -> Iterator[str]:
    yield from _texts(hub_rows(source, "train", seed))


def _local_texts(source: str, seed: int) -> Iterator[str]:
    path = _existing(source, source, named=False)
    files = [path] if path.is_file() else _text_files(path)
    order = np.random.default_rng([seed, 0]).permutation(len(files))
    return _take_turns(_file_texts(files[index], seed) for index in order)


def _text_files(folder: pathlib.Path) -> list[pathlib.Path]:
    relative = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    # Hidden: editors and file systems leave half copies there.
    shown = [name for name in relative if not any(part.startswith(".") for part in name.parts)]
    files = [folder / name for name in shown if ending_of(name) in (".txt", *READERS)]
    if not files:
        raise ValueError(f"{folder}: got a folder without texts, expected .txt, {', '.join(READERS)}; check the path")
    return files


def _file_texts(path: pathlib.Path, seed: int) -> Iterator[str]:
    only_texts = ending_of(path) not in READERS or (
        ending_of(path) == ".jsonl" and first_record(path).keys() <= {"text"}
    )
    if only_texts:
        texts = load_texts(path)
        yield from (texts[index] for index in np.random.default_rng([seed, 1]).permutation(len(texts)))
    else:
        yield from _texts(file_rows(path, seed))


def _take_turns(streams: Iterator[Iterator[str]]) -> Iterator[str]:
    """Yields one item of each of the first `OPEN_FILES` streams in turn; where one ends, the next begins."""
    turns = collections.deque(itertools.islice(streams, OPEN_FILES))
    while turns:
        stream = turns.popleft()
        for item in stream:
            yield item
            turns.append(stream)
            break
        else:
            turns.extend(itertools.islice(streams, 1))


def _texts(rows: Iterable[Row]) -> Iterator[str]:
    for where, row in rows:
        check_columns(row, ("text",), where)
        if row["text"] is not None:
            yield typed(row["text"], str, "text", where)


def _existing(place: str, source: str, named: bool = True) -> pathlib.Path:
    """Returns the path, or says what else the user may have meant."""
    path = pathlib.Path(place).expanduser()
    if place and path.exists():
        refuse_special(path)
        return path
    name = source.partition("@")[0]
    close = difflib.get_close_matches(name, CORPORA, n=2) if named and name not in CORPORA else []
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:.*)?", source, re.ASCII):
        hint = f"check the path; a hub data set is written {HUB}{source}"
    else:
        hint = "check the path"
    names = f" and no data set of that name ({', '.join(CORPORA)})" if named and name not in CORPORA else ""
    raise FileNotFoundError(f"{source}: no such file or folder{names}; {hint}")
