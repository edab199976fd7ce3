"""contexts: what is read is exactly what is in the file, and every refusal names its place."""

import json

import pytest

from selfparam_jax.contexts import Context, QAPair, Question, digest, load_contexts, load_texts

RECORD = {
    "id": "a",
    "title": "Town",
    "context": "Founded in 1743.",
    "questions": [{"question": "When?", "answers": ["1743", "in 1743"]}],
    "qa_pairs": [{"question": "What year?", "answer": "1743"}],
}
CONTEXT = Context(
    "a",
    "Town",
    "Founded in 1743.",
    (Question("When?", ("1743", "in 1743")),),
    (QAPair("What year?", "1743"),),
)


def _file(tmp_path, *lines, name="c.jsonl"):
    """Writes lines, each a record or the text of a line, and returns the path."""
    path = tmp_path / name
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes("\n".join(texts).encode())
    return path


def _without(field):
    return {key: value for key, value in RECORD.items() if key != field}


def _message(function, *args, **kwargs):
    with pytest.raises(ValueError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_a_record_is_read_whole(tmp_path):
    assert load_contexts(_file(tmp_path, RECORD)) == [CONTEXT]


def test_title_questions_and_pairs_are_optional(tmp_path):
    assert load_contexts(_file(tmp_path, {"id": "b", "context": "x"})) == [Context("b", "", "x", (), ())]


def test_byte_order_mark_carriage_returns_and_blank_lines_are_tolerated(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(RECORD).encode() + b"\r\n\r\n  \r\n" + b'{"id":"b","context":"x"}')
    assert load_contexts(path) == [CONTEXT, Context("b", "", "x")]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path):
    path = _file(tmp_path, '{"id": "a", "context": "x\u2028y"}')
    assert load_contexts(path)[0].context == "x\u2028y"


def test_line_numbers_count_blank_lines(tmp_path):
    assert "c.jsonl, line 4: got malformed JSON" in _message(load_contexts, _file(tmp_path, RECORD, "", "", "{oops"))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{oops", ["malformed JSON", "column 2"]),
        ("[1, 2]", ["got a list", "expected an object"]),
        ("3", ["got a number", "expected an object"]),
        ('{"id": "x", "id": "y", "context": "z"}', ["'id' twice"]),
        (_without("context"), ["no 'context'"]),
        (_without("id"), ["no 'id'"]),
        ({**RECORD, "context": " \n"}, ["'context': got an empty string"]),
        ({**RECORD, "context": 7}, ["'context': got a number", "expected a string"]),
        ({**RECORD, "context": None}, ["'context': got null"]),
        ({**RECORD, "id": True}, ["'id': got a boolean"]),
        ({**RECORD, "title": ["x"]}, ["'title': got a list", "expected a string"]),
        ({**RECORD, "questions": {}}, ["'questions': got an object", "expected a list"]),
        ({**RECORD, "questions": ["When?"]}, ["questions entry 1", "got a string"]),
        ({**RECORD, "qa_pairs": "x"}, ["'qa_pairs': got a string", "expected a list"]),
        ({**RECORD, "contxt": "x"}, ["unknown field 'contxt'", "did you mean 'context'?"]),
        ({**RECORD, "zzz": "x"}, ["unknown field 'zzz'", "remove it"]),
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
    message = _message(load_contexts, path)
    for word in [f"{path}, line 2", "expected", ";", *words]:  # after the semicolon stands what to do
        assert word in message


def test_duplicate_ids_name_both_lines(tmp_path):
    message = _message(load_contexts, _file(tmp_path, RECORD, "", RECORD))
    assert "line 3: got the id 'a' again (first in line 1)" in message


def test_bytes_that_are_not_utf8_name_line_and_offset(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\n\n{\xff")
    message = _message(load_contexts, path)
    assert "line 3" in message and "byte 0xff at byte offset 3" in message and "UTF-8" in message


@pytest.mark.parametrize("load", [load_contexts, load_texts])
def test_missing_and_empty_files(tmp_path, load):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file"):
        load(tmp_path / "nowhere.jsonl")
    assert "c.jsonl: got an empty file" in _message(load, _file(tmp_path, "", " "))


def test_limit_takes_the_first_and_never_falls_short(tmp_path):
    path = _file(tmp_path, *({"id": name, "context": "x"} for name in "abc"))
    assert [context.id for context in load_contexts(path, limit=2)] == ["a", "b"]
    assert len(load_contexts(path, limit=3)) == len(load_contexts(path)) == 3
    assert "got limit 4, expected 0 (all) to 3" in _message(load_contexts, path, limit=4)
    assert "got limit -1" in _message(load_contexts, path, limit=-1)


def test_a_bad_record_beyond_the_limit_is_still_refused(tmp_path):
    assert "line 2" in _message(load_contexts, _file(tmp_path, RECORD, "{"), limit=1)


def test_ids_select_in_the_order_asked_for(tmp_path):
    path = _file(tmp_path, *({"id": name, "context": "x"} for name in ("town", "ship", "club")))
    assert [context.id for context in load_contexts(path, ids=("club", "town"))] == ["club", "town"]
    assert [context.id for context in load_contexts(path, limit=1, ids=("club", "town"))] == ["club"]
    assert "got limit 3, expected 0 (all) to 2" in _message(load_contexts, path, limit=3, ids=("club", "town"))


def test_bad_ids_are_refused(tmp_path):
    path = _file(tmp_path, {"id": "town", "context": "x"}, {"id": "ship", "context": "x"})
    message = _message(load_contexts, path, ids=("twon",))
    assert "'twon'" in message and "did you mean 'town'?" in message
    assert "the first is 'town'" in _message(load_contexts, path, ids=("zzz",))
    assert "'ship' twice" in _message(load_contexts, path, ids=("ship", "town", "ship"))
    assert "expected a tuple" in _message(load_contexts, path, ids="town")


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.md").write_bytes(b"\xef\xbb\xbf# A\r\nline\r\n")
    (tmp_path / "b.txt").write_text("B\n")
    (tmp_path / "a.TXT").write_text("first")
    (tmp_path / "skip.csv").write_text("x")
    (tmp_path / ".hidden.txt").write_text("x")
    expected = [Context("a", "", "first"), Context("b", "", "B"), Context("sub/a", "", "# A\nline")]
    assert load_contexts(tmp_path) == expected
    assert load_contexts(tmp_path, limit=1, ids=("sub/a",)) == expected[2:]


def test_bad_folders_are_refused(tmp_path):
    (tmp_path / "notes.csv").write_text("x")
    assert "a folder without text" in _message(load_contexts, tmp_path)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "notes.txt").write_text("y")
    message = _message(load_contexts, tmp_path)
    assert "'notes' again" in message and "notes.md" in message and "notes.txt" in message
    (tmp_path / "notes.md").write_text("\n ")
    assert "notes.md: got an empty file" in _message(load_contexts, tmp_path)
    assert "expected a JSONL file or a folder" in _message(load_contexts, tmp_path / "notes.txt")


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
    ],
)
def test_bad_texts_name_their_line(tmp_path, line, words):
    message = _message(load_texts, _file(tmp_path, {"text": "one"}, line))
    assert "c.jsonl, line 2" in message and words in message


def test_texts_from_a_folder_are_refused(tmp_path):
    assert "got a folder" in _message(load_texts, tmp_path)


def test_digest_depends_on_every_field_and_on_nothing_else(tmp_path):
    assert digest(CONTEXT) == digest(load_contexts(_file(tmp_path, dict(reversed(RECORD.items()))))[0])
    others = [
        Context("z", *_fields()[1:]),
        Context("a", "z", *_fields()[2:]),
        Context("a", "Town", "z", *_fields()[3:]),
        Context("a", "Town", CONTEXT.context, (Question("When?", ("in 1743", "1743")),), CONTEXT.qa_pairs),
        Context("a", "Town", CONTEXT.context, CONTEXT.questions, (QAPair("What year?", "1744"),)),
    ]
    assert len({digest(context) for context in [CONTEXT, *others]}) == 6
    assert len(digest(CONTEXT)) == 64


def _fields():
    return CONTEXT.id, CONTEXT.title, CONTEXT.context, CONTEXT.questions, CONTEXT.qa_pairs
