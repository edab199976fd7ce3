"""Documents: what is read is exactly what is in the file, and every refusal names its place."""

import dataclasses
import errno
import hashlib
import json
import os

import pytest

from selfparam_jax.data import documents
from selfparam_jax.data.corpora import read_documents
from selfparam_jax.data.documents import (
    Document,
    QAPair,
    Question,
    digest,
    digest_documents,
    digest_texts,
    load_texts,
    read_document_files,
)

RECORD = {
    "id": "a",
    "title": "Town",
    "context": "Founded in 1743.",
    "questions": [{"question": "When?", "answers": ["1743", "in 1743"]}],
    "qa_pairs": [{"question": "What year?", "answer": "1743"}],
}
CONTEXT = Document(
    id="a",
    title="Town",
    text="Founded in 1743.",
    questions=(Question("When?", ("1743", "in 1743")),),
    qa_pairs=(QAPair("What year?", "1743"),),
)


def _file(tmp_path, *lines, name="c.jsonl"):
    """Writes lines, each a record or the text of a line, and returns the path."""
    path = tmp_path / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode())
    return path


def _without(field):
    return {key: value for key, value in RECORD.items() if key != field}


HOSTILE = {
    "nested": ('{"text": "x", "metadata": ' + "[" * 30_000 + "]" * 30_000 + "}", "nested too deeply"),
    "digits": ('{"text": "x", "metadata": {"n": ' + "7" * 5000 + "}}", "a number of thousands of digits"),
    "surrogate": ('{"text": "x\\ud800"}', "half of a character"),
    "escaped NUL": ('{"text": "x\\u0000y"}', "'text': got a NUL character at character 1"),
    "NUL": ('{"text": "x\0y"}', "got a NUL character"),
    "only NUL": ("\0" * 20, "got a NUL character"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_lines_are_named(tmp_path, name):
    line, message = HOSTILE[name]
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "Fine."}\n' + line + "\n")
    said = _message(read_document_files, path)
    assert (
        said.startswith(f"{path}, line 2: ") and message in said and len(said.splitlines()) == 1 and len(said) < 500
    )


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".py", ".ipynb"])
def test_a_file_with_nul_bytes_is_named(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(b"One line.\nTwo\0.\n")
    assert f"{path}, line 2: got a NUL character" in _message(read_document_files, path)


@pytest.mark.parametrize("content", ["[" * 30_000, '{"cells": ' + "9" * 5000 + "}", "{", "[]"])
def test_a_damaged_notebook_is_named_in_one_line(tmp_path, content):
    (tmp_path / "c.ipynb").write_text(content)
    said = _message(read_document_files, tmp_path / "c.ipynb")
    assert "c.ipynb: got " in said and "expected a Jupyter notebook of format 4" in said and len(said) < 400


def test_what_cannot_be_read_in_a_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("Fine.")
    (tmp_path / "b.txt").symlink_to("nowhere.txt")
    (tmp_path / "c.md").symlink_to("c.md")  # a circle
    said = _message(read_document_files, tmp_path)
    assert (
        "2 files cannot be used" in said
        and f"{tmp_path / 'b.txt'}: a link to nowhere.txt, which is not there" in said
    )
    assert f"{tmp_path / 'c.md'}: a link to c.md" in said
    assert "a link to nowhere.txt" in _message(read_document_files, str(tmp_path / "[ab]*"))
    for name in ("b.txt", "c.md"):
        (tmp_path / name).unlink()
    (tmp_path / "more").symlink_to(tmp_path)  # a folder in itself is not followed
    assert len(read_document_files(tmp_path)) == 1
    # Not by its mode: tests may be run by root, who may read everything.
    monkeypatch.setattr(os, "scandir", lambda path: (_ for _ in ()).throw(PermissionError(13, "no", str(path))))
    with pytest.raises(PermissionError, match=str(tmp_path)):
        read_document_files(tmp_path)


def _message(function, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_a_record_is_read_whole(tmp_path):
    assert read_document_files(_file(tmp_path, RECORD)) == [CONTEXT]


def test_title_questions_and_pairs_are_optional(tmp_path):
    assert read_document_files(_file(tmp_path, {"id": "b", "context": "x"})) == [
        Document(id="b", title="", text="x", questions=(), qa_pairs=())
    ]


def test_byte_order_mark_carriage_returns_and_blank_lines_are_tolerated(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORD).encode() + b"\r\n\r\n  \r\n" + b'{"id":"b","context":"x"}')
    assert read_document_files(path) == [CONTEXT, Document(id="b", title="", text="x")]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = _file(tmp_path, '{"id": "a", "context": "x\u2028y"}')
    assert read_document_files(path)[0].text == "x\u2028y"


def test_a_json_list_of_records_is_read_as_lines_are(tmp_path):
    """By itself, in a folder, and as a source of a job; what is wrong with an entry is named."""
    records = [{**RECORD, "id": "a"}, {"id": "b", "text": "Of b.", "metadata": {"by": "me"}}]
    lines = read_document_files(_file(tmp_path, *records))
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / "list.json"
    path.write_text(json.dumps(records, indent=2))
    for source in (path, path.parent):
        assert read_document_files(source) == lines == read_documents(str(source))
    for bad, message in (
        ({"id": "a", "context": "x"}, r"list\.json, entry 3: got the id 'a' again \(first in entry 1\)"),
        ({"id": "c", "context": "x", "questoins": []}, r"list\.json, entry 3: .*'questoins'"),
        (5, r"list\.json, entry 3: got a number, expected an object"),
    ):
        path.write_text(json.dumps([*records, bad]))
        with pytest.raises(ValueError, match=message):
            read_documents(str(path))


def test_line_numbers_count_blank_lines(tmp_path):
    path = _file(tmp_path, RECORD, "", "", "{oops")
    assert "c.jsonl, line 4: got malformed JSON" in _message(read_document_files, path)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{oops", ["malformed JSON", "column 2"]),
        ("[1, 2]", ["got a list", "expected an object"]),
        ("3", ["got a number", "expected an object"]),
        ('{"id": "x", "id": "y", "context": "z"}', ["'id' twice"]),
        (_without("context"), ["no 'context'"]),
        ({"id": 1, "context": "x"}, ["'id': got a number"]),
        ({**RECORD, "context": " \n"}, ["'context': got an empty string"]),
        ({"messages": [{"role": "user", "content": "Hi"}], "context": "x"}, ["got 'context' beside a conversation"]),
        ({"messages": "hello"}, ["'messages': got a string, expected a list of turns"]),
        ({**RECORD, "context": 7}, ["'context': got a number", "expected a string"]),
        ({**RECORD, "context": None}, ["'context': got null"]),
        ({**RECORD, "text": "x"}, ["both 'context' and 'text'"]),
        ({"id": "a", "text": ""}, ["'text': got an empty string"]),
        ({**RECORD, "metadata": 1}, ["'metadata': got a number", "expected an object"]),
        ('{"id": "a", "text": "x", "metadata": {"a": NaN}}', ["'metadata': got NaN or Infinity"]),
        ('{"id": "a", "text": "x\\ud800"}', ["half of a character", "'\\ud800'"]),
        ('{"id": "a", "text": "x", "qa_pairs": [{"question": "q", "answer": "\\udfff"}]}', ["half of a character"]),
        ('{"id": "a", "text": "x", "metadata": {"\\ud83d": 1}}', ["half of a character"]),
        ({**RECORD, "id": True}, ["'id': got a boolean"]),
        ({**RECORD, "title": ["x"]}, ["'title': got a list", "expected a string"]),
        ({**RECORD, "questions": {}}, ["'questions': got an object", "expected a list"]),
        ({**RECORD, "questions": ["When?"]}, ["questions entry 1", "got a string"]),
        ({**RECORD, "qa_pairs": "x"}, ["'qa_pairs': got a string", "expected a list"]),
        ({**RECORD, "contxt": "x"}, ["unknown field 'contxt'", "did you mean 'context'?"]),
        ({**RECORD, "zzz": "x"}, ["unknown field 'zzz'", "put fields of your own into 'metadata'"]),
        (
            {**RECORD, "questions": [{"question": "q", "answer": "x"}]},
            ["'answer'", "did you mean 'answers'?"],
        ),
        ({**RECORD, "questions": [{"question": "q"}]}, ["questions entry 1", "no 'answers'"]),
        ({**RECORD, "questions": [{"question": "q", "answers": []}]}, ["'answers': []"]),
        ({**RECORD, "questions": [{"question": "q", "answers": "x"}]}, ["expected 'answers' to be a list"]),
        (
            {**RECORD, "questions": [{"question": "q", "answers": ["x", ""]}]},
            ["'answers': got an empty string"],
        ),
        ({**RECORD, "questions": [{"question": "q", "answers": [1743]}]}, ["'answers': got a number"]),
        ({**RECORD, "questions": [{"answers": ["x"]}]}, ["no 'question'"]),
        (
            {**RECORD, "qa_pairs": [RECORD["qa_pairs"][0], {"question": "q"}]},
            ["qa_pairs entry 2", "no 'answer'"],
        ),
        ({**RECORD, "qa_pairs": [{"question": "q", "answer": " "}]}, ["'answer': got an empty string"]),
        ({**RECORD, "qa_pairs": [{"question": "q", "answers": ["x"]}]}, ["did you mean 'answer'?"]),
    ],
)
def test_a_bad_record_is_refused_with_its_line_and_field(tmp_path, record, words):
    path = _file(tmp_path, {"id": "first", "context": "good"}, record)
    message = _message(read_document_files, path)
    for word in [f"{path}, line 2", "expected", ";", *words]:  # after the semicolon stands what to do
        assert word in message


def test_duplicate_ids_name_both_lines(tmp_path):
    message = _message(read_document_files, _file(tmp_path, RECORD, "", RECORD))
    assert "line 3: got the id 'a' again (first in line 1)" in message


def test_bytes_that_are_not_utf8_name_line_and_offset(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n\n{\xff")
    message = _message(read_document_files, path)
    assert "line 3" in message and "byte 0xff at byte offset 3" in message and "UTF-8" in message


@pytest.mark.parametrize("load", [read_document_files, load_texts])
def test_missing_and_empty_files(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        load(tmp_path / "nowhere.jsonl")
    assert "c.jsonl: got an empty file" in _message(load, _file(tmp_path, "", " "))


def test_limit_takes_the_first_and_never_falls_short(tmp_path):
    path = _file(tmp_path, *({"id": name, "context": "x"} for name in "abc"))
    assert [context.id for context in read_document_files(path, limit=2)] == ["a", "b"]
    assert len(read_document_files(path, limit=3)) == len(read_document_files(path)) == 3
    assert "got limit 4, expected 0 (all) to 3" in _message(read_document_files, path, limit=4)
    assert "got limit -1" in _message(read_document_files, path, limit=-1)


def test_a_bad_record_beyond_the_limit_is_still_refused(tmp_path):
    assert "line 2" in _message(read_document_files, _file(tmp_path, RECORD, "{"), limit=1)


def test_ids_select_in_the_order_asked_for(tmp_path):
    path = _file(tmp_path, *({"id": name, "context": "x"} for name in ("town", "ship", "club")))
    assert [context.id for context in read_document_files(path, ids=("club", "town"))] == ["club", "town"]
    assert [context.id for context in read_document_files(path, limit=1, ids=("club", "town"))] == ["club"]
    assert "got limit 3, expected 0 (all) to 2" in _message(read_document_files, path, limit=3, ids=("club", "town"))


def test_bad_ids_are_refused(tmp_path):
    path = _file(tmp_path, {"id": "town", "context": "x"}, {"id": "ship", "context": "x"})
    message = _message(read_document_files, path, ids=("twon",))
    assert "'twon'" in message and "did you mean 'town'?" in message
    assert "the first is 'town'" in _message(read_document_files, path, ids=("zzz",))
    assert "'ship' twice" in _message(read_document_files, path, ids=("ship", "town", "ship"))
    assert "expected a tuple" in _message(read_document_files, path, ids="town")


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_bytes(b"\xef\xbb\xbf# A\r\nline\r\n")
    (tmp_path / "b.txt").write_text("B\n")
    (tmp_path / "a.TXT").write_text("first")
    (tmp_path / "skip.csv").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    expected = [
        Document(id="a", title="", text="first"),
        Document(id="b", title="", text="B"),
        Document(id="sub/a", title="A", text="# A\nline"),
    ]
    assert read_document_files(tmp_path) == expected
    assert read_document_files(tmp_path, limit=1, ids=("sub/a",)) == expected[2:]


def test_files_of_one_name_keep_their_suffixes(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("mill.md", "mill.txt", "other.md", "sub/mill.md", "sub/Other.txt"):
        (tmp_path / name).write_text(name)
    found = [document.id for document in read_document_files(tmp_path)]
    assert found == ["mill.md", "mill.txt", "other", "sub/Other", "sub/mill"]
    assert [document.id for document in read_document_files(tmp_path / "mill.md")] == ["mill"]


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "notes.csv").write_text("x")
    assert "a folder without text" in _message(read_document_files, tmp_path)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "notes.txt").write_text("y")
    (tmp_path / "notes.jsonl").write_text('{"id": "notes.md", "text": "z"}\n')
    message = _message(read_document_files, tmp_path)
    assert "'notes.md' again" in message and "notes.md" in message and "notes.jsonl" in message
    (tmp_path / "notes.md").write_text("\n ")
    assert "notes.md: got an empty file" in _message(read_document_files, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("notes.txt", "\ufeff\n # A\r\nline\n", Document("# A\nline", id="notes")),
        ("notes.md", "intro\n\n#no\n## Two\n# The  mill #\n# Other\n", None),
        ("my.notes.MD", "no heading", Document("no heading", id="my.notes")),
    ],
)
def test_a_text_file_is_one_document(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content.encode())
    expected = expected or Document(content.strip(), title="The  mill", id="notes")
    assert read_document_files(path) == [expected]
    assert read_document_files(path, ids=(expected.id,)) == [expected]
    path.write_bytes(b"\n")
    assert f"{name}: got an empty file" in _message(read_document_files, path)
    path.write_bytes(b"a\n\xff")
    assert "line 2: got byte 0xff at byte offset 2, expected UTF-8" in _message(read_document_files, path)


def test_a_record_without_an_id_is_named_by_its_text(tmp_path):
    assert read_document_files(_file(tmp_path, _without("id"))) == [dataclasses.replace(CONTEXT, id="")]


def test_the_text_may_be_called_text_and_metadata_is_kept(tmp_path):
    metadata = {"source": "archive", "pages": [1, 2], "nested": {"x": None}}
    record = {"id": "a", "text": "x", "metadata": metadata}
    (found,) = read_document_files(_file(tmp_path, record))
    assert found == Document("x", id="a", metadata=metadata)
    assert found.metadata == metadata and found != Document("x", id="a")
    assert hash(found) == hash(Document("x", id="a")), "a document can be put into a set"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: QAPair("", "1743"), "QAPair.question: got an empty string"),
        (lambda: QAPair("When?", " "), "QAPair.answer: got an empty string"),
        (lambda: QAPair("When?", 1743), "QAPair.answer: got a number, expected a string"),
        (lambda: Question(" ", ("a",)), "Question.question: got an empty string"),
        (lambda: Question("Who?", "Ann"), "Question.answers: got 'Ann', expected a tuple of strings"),
        (lambda: Question("Who?", [1]), "Question.answers: got [1], expected a tuple of strings"),
        (lambda: Question("Who?", ()), "Question.answers: got none, expected at least one"),
        (lambda: Question("Who?", None), "Question.answers: got None, expected a tuple of strings"),
        (lambda: Question("Who?", 5), "Question.answers: got 5, expected a tuple of strings"),
        (lambda: Question("Who?", {"a": 1}), "Question.answers: got {'a': 1}, expected a tuple of strings"),
        (lambda: Question("Who?", ("a",), 5), "Question.kind: got a number, expected a string"),
        (lambda: Question("Who?", ("a",), "", "ab"), "Question.documents: got 'ab', expected a tuple of strings"),
    ],
)
def test_a_question_in_memory_is_checked(made, words):
    assert words in _message(made)
    assert Question("Who?", ["Ann", "Bo"]).answers == ("Ann", "Bo")
    assert Question("Who?", (name for name in ("Ann", "Bo"))).answers == ("Ann", "Bo"), "read once"
    assert Question("Who?", ("",)).answers == ("",), "as `selfparam ask` has it"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text": ""}, "Document.text: got an empty string, expected text"),
        ({"text": " \n"}, "Document.text: got an empty string"),
        ({"text": None}, "Document.text: got null, expected a string"),
        ({"text": "x", "title": 1}, "Document.title: got a number"),
        ({"text": "x", "questions": "When?"}, "Document.questions: got 'When?', expected a tuple of Question"),
        ({"text": "x", "qa_pairs": [("When?", "1743")]}, "expected a tuple of QAPair"),
        ({"text": "x", "questions": None}, "Document.questions: got None, expected a tuple of Question"),
        ({"text": "x", "qa_pairs": 5}, "Document.qa_pairs: got 5, expected a tuple of QAPair"),
        ({"text": "x", "metadata": {"a": object}}, "Document.metadata: got"),
        ({"text": "x", "metadata": {"a": float("nan")}}, "expected a dict of JSON values"),
        ({"text": "x", "metadata": [1]}, "expected a dict of JSON values"),
        ({"text": "x\ud800"}, "half of a character (the lone surrogate '\\ud800') at character 1"),
        ({"text": "x", "id": "\ud800"}, "half of a character"),
        ({"text": "x", "questions": (Question("q", ("a", "\udc00")),)}, "half of a character"),
    ],
)
def test_a_document_in_memory_is_checked(fields, words):
    message = _message(Document, **fields)
    assert words in message and "\n" not in message
    message.encode()


def test_a_document_in_memory_has_a_name_and_takes_lists():
    one, other = Document("x", qa_pairs=[QAPair("q", "a")]), Document("y")
    assert one.qa_pairs == (QAPair("q", "a"),)
    assert one.id == Document("x").id != other.id and one.id.startswith("document-")


def test_what_cannot_be_read_is_an_error_of_one_line(tmp_path):
    empty, folder = tmp_path / "empty", tmp_path / "c.jsonl"
    empty.mkdir()
    folder.mkdir()
    for path in (empty, folder):
        message = _message(read_document_files, path)
        assert message.startswith(f"{path}: got a folder without text") and "\n" not in message
    binary = tmp_path / "paper.doc"
    binary.write_bytes(b"\xd0\xcf\x11\xe0\x00")
    assert "paper.doc: got a file of an unknown kind (.doc)" in _message(read_document_files, binary)
    for name, content, kind in (
        ("table.csv", b"name,age\nAna,4\n", ".csv"),
        ("noext", b"The mill turns.", "no suffix"),
        ("picture.png", b"\x89PNG\r\n", ".png"),
    ):
        (tmp_path / name).write_bytes(content)
        message = _message(read_document_files, tmp_path / name)
        assert f"{name}: got a file of an unknown kind ({kind}), expected JSONL or one of " in message
    (tmp_path / "records").write_text('{"text": "The mill turns."}\n')
    assert [document.text for document in read_document_files(tmp_path / "records")] == ["The mill turns."]


def test_texts_from_jsonl(tmp_path):
    path = _file(tmp_path, {"text": "one"}, "", {"text": "two"})
    assert load_texts(path) == ["one", "two"]
    assert load_texts(path, limit=1) == ["one"]
    assert "got limit 3, expected 0 (all) to 2" in _message(load_texts, path, limit=3)


def test_texts_from_paragraphs(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\nstill one\r\n \t\r\n\r\n\r\ntwo\r\n")
    assert load_texts(path) == ["one\nstill one", "two"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"txt": "x"}', "did you mean 'text'?"),
        ("{}", "no 'text'"),
        ('{"text": ""}', "'text': got an empty string"),
        ('{"text": 1}', "'text': got a number"),
        ('"x"', "got a string, expected an object"),
        ('{"text": "\\ud800"}', "half of a character"),
    ],
)
def test_bad_texts_name_their_line(tmp_path, line, words):
    message = _message(load_texts, _file(tmp_path, {"text": "one"}, line))
    assert "c.jsonl, line 2" in message and words in message


def test_texts_from_a_folder_are_refused(tmp_path):
    assert "got a folder" in _message(load_texts, tmp_path)


def test_digest_depends_on_every_field_and_on_nothing_else(tmp_path):
    assert digest(CONTEXT) == digest(read_document_files(_file(tmp_path, dict(reversed(RECORD.items()))))[0])
    others = [
        dataclasses.replace(CONTEXT, **change)
        for change in (
            {"id": "z"},
            {"title": "z"},
            {"text": "z"},
            {"questions": (Question("When?", ("in 1743", "1743")),)},
            {"qa_pairs": (QAPair("What year?", "1744"),)},
            {"metadata": {"source": "archive"}},
        )
    ]
    assert len({digest(context) for context in [CONTEXT, *others]}) == 7
    assert len(digest(CONTEXT)) == 64


def test_a_question_may_have_a_kind_and_need_other_documents(tmp_path):
    asked = {**RECORD["questions"][0], "kind": "latest", "documents": ["a", "b"]}
    (found,) = read_document_files(_file(tmp_path, {**RECORD, "questions": [asked]}))
    assert found.questions == (
        Question(CONTEXT.questions[0].question, CONTEXT.questions[0].answers, "latest", ("a", "b")),
    )
    (plain,) = read_document_files(_file(tmp_path, {**RECORD, "questions": RECORD["questions"][:1]}))
    without_kind = dataclasses.replace(found, questions=(dataclasses.replace(found.questions[0], kind=""),))
    assert len({digest(each) for each in (found, plain, without_kind)}) == 3
    for bad, words in (({"kind": 3}, "'kind': got a number"), ({"documents": "a"}, "'documents': got a string")):
        with pytest.raises(ValueError, match=words):
            read_document_files(_file(tmp_path, {**RECORD, "questions": [{**asked, **bad}]}))


def test_the_digest_of_a_question_without_these_is_that_of_earlier_versions():
    document = Document("Text.", id="a", questions=(Question("Who?", ("Ana",)),))
    record = {
        "id": "a", "metadata": {}, "qa_pairs": [], "questions": [{"answers": ["Ana"], "question": "Who?"}],
        "text": "Text.", "title": "",
    }  # fmt: skip
    text = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert digest(document) == hashlib.sha256(text.encode()).hexdigest()


def test_digests_by_id():
    other = Document("x")
    assert digest_documents([CONTEXT, other]) == {"a": digest(CONTEXT), other.id: digest(other)}
    assert digest_documents([]) == {}
    assert "two documents with the id 'a'" in _message(digest_documents, [CONTEXT, Document("z", id="a")])


def test_the_digest_of_texts_depends_on_their_order_and_their_ends():
    lists = ([], ["a"], ["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])
    assert len({digest_texts(texts) for texts in lists}) == len(lists)
    assert digest_texts(("a", "b")) == digest_texts(["a", "b"]) and len(digest_texts([])) == 64


def test_an_error_of_the_disk_names_the_file(tmp_path, monkeypatch):
    """Reading a block that is broken is an error without a name."""
    path = tmp_path / "a.txt"
    path.write_text("A mill.")

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(documents, "read_file", broken)
    for source, kind in ((path, OSError), (tmp_path, ValueError)):  # of a folder all bad files are told
        with pytest.raises(kind, match=r"Input/output error: '.*a\.txt'"):
            read_documents(source)


def test_devices_are_refused(tmp_path):
    with pytest.raises(ValueError, match="/dev/zero: got a pipe or a device, expected a file or a folder"):
        read_documents("/dev/zero")


def test_pipes_and_names_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("A mill.")
    os.mkfifo(tmp_path / "pipe.txt")
    for path in (tmp_path / "pipe.txt", tmp_path):
        with pytest.raises(ValueError, match=r"pipe\.txt: got a pipe or a device, expected a file or a folder"):
            read_document_files(path)
    (tmp_path / "pipe.txt").unlink()
    name = os.path.join(os.fsencode(tmp_path), b"bad\xff.txt")
    with open(name, "w", encoding="utf-8") as file:
        file.write("A mill.")
    for path in (os.fsdecode(name), tmp_path):
        with pytest.raises(ValueError, match=r"bad\\udcff\.txt': got a file name that is not UTF-8, .*; rename it"):
            read_document_files(path)
    with pytest.raises(ValueError, match="got an empty path, expected a file, a folder or a pattern"):
        read_document_files("")
