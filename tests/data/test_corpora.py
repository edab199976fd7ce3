"""corpora: contexts and texts by name, path and hub layout, all from files written here."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from selfparam_jax.data import corpora
from selfparam_jax.data import rows as streaming
from selfparam_jax.data.corpora import read_documents, read_texts
from selfparam_jax.data.documents import Document, QAPair, Question

# The beginning of `printf %s TEXT | sha256sum`.
IDS = {"one": "7692c3ad3540bb80", "two": "3fc4ccfe745870e2", "three": "8b5b9db0c13db242"}


@pytest.fixture(autouse=True)
def requests(tmp_path, monkeypatch):
    """Keeps the library's cache in tmp_path and off the network; gives the requests it would have made."""
    made = []
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.load, "get_session", lambda: made.append("request"))
    yield made
    assert not made


def _squad_row(context, question, answers, **more):
    answers = {"text": answers, "answer_start": [0] * len(answers)}
    return {"id": "q", "title": "T", "context": context, "question": question, "answers": answers, **more}


def _pwc_row(context, question, answer):
    return {"input": context, "prompt": question, "answer": answer}


def _write(path, rows, row_group_size=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix.lower() == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group_size)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines)
    return path


def _hub_layout(folder, config="plain_text", **splits):
    """A directory as the hub has it: Parquet files in a folder, and a README.md that says which split they are."""
    lines = [f"  - split: {name}\n    path: {config}/{name}-*\n" for name in splits]
    for name, rows in splits.items():
        _write(folder / config / f"{name}-00000-of-00001.parquet", rows)
    head = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n"
    (folder / "README.md").write_text(head + "".join(lines) + "---\n# Card\n")
    return folder


def _questions(contexts):
    return {context.text: [question.question for question in context.questions] for context in contexts}


def _message(function, *args, error=ValueError, **kwargs):
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    assert "expected" in str(caught.value) or error is not ValueError
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _words(text):
    return len(text.split())


# --- contexts in SQuAD's layout -----------------------------------------------------------------------

ROWS = [
    _squad_row("one", "1a", ["x", "y", "x"]),
    _squad_row("two", "2a", ["z"]),
    _squad_row("one", "1b", []),
    _squad_row("one", "1c", ["w", "w"]),
    _squad_row("three", "3a", []),
]
CONTEXTS = [
    Document(
        id=f"squad-{IDS['one']}",
        title="T",
        text="one",
        questions=(Question("1a", ("x", "y")), Question("1c", ("w",))),
    ),
    Document(id=f"squad-{IDS['two']}", title="T", text="two", questions=(Question("2a", ("z",)),)),
    Document(id=f"squad-{IDS['three']}", title="T", text="three", questions=()),
]


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.parquet", "r.jsonl.gz", "R.PARQUET", "R.JSONL.gz", "folder [1]/r.parquet", "rows"]
)
def test_a_file_of_rows_is_grouped_by_text(tmp_path, name):
    assert read_documents(str(_write(tmp_path / name, ROWS))) == CONTEXTS


@pytest.mark.parametrize("source", ["squad@{}", "hub:{}:validation", "hub:{}:plain_text:validation"])
def test_a_local_directory_stands_for_the_hub(tmp_path, source):
    folder = _hub_layout(tmp_path / "a@b", train=ROWS[1:2], validation=ROWS)
    assert read_documents(source.format(folder)) == CONTEXTS
    train = source.replace("squad", "squad:train").replace("validation", "train")
    assert read_documents(train.format(folder)) == CONTEXTS[1:2]


def test_a_relative_directory_and_a_home_directory(tmp_path, monkeypatch):
    _hub_layout(tmp_path / "org" / "name", validation=ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in ("squad@org/name", "squad@~/org/name", "hub:org/name", "hub:~/org/name:validation"):
        assert read_documents(source) == CONTEXTS


def test_a_hub_directory_with_one_split_needs_no_split(tmp_path):
    assert read_documents(f"hub:{_hub_layout(tmp_path / 'd', dev=ROWS)}") == CONTEXTS
    folder = _hub_layout(tmp_path / "e", train=ROWS, validation=ROWS)
    assert "got no split, expected one of train, validation" in _message(read_documents, f"hub:{folder}")
    assert "got the split 'test', expected one of train, vali" in _message(read_documents, f"hub:{folder}:test")
    assert "'other' not found" in _message(read_documents, f"hub:{folder}:other:train")


@pytest.mark.parametrize("layout", ["converted", "described"])
def test_squadshifts_takes_one_domain(tmp_path, layout):
    if layout == "converted":  # as the hub's own conversion to Parquet has it
        _write(tmp_path / "d" / "nyt" / "test" / "0000.parquet", ROWS)
        _write(tmp_path / "d" / "reddit" / "test" / "0000.parquet", ROWS[:1])
    else:
        _hub_layout(tmp_path / "d", "nyt", test=ROWS)
        (tmp_path / "d" / "nyt").rename(tmp_path / "d" / "data")
        card = tmp_path / "d" / "README.md"
        text = card.read_text().replace("path: nyt/", "path: data/")
        other = "configs:\n- config_name: reddit\n  data_files:\n  - split: test\n    path: data/other-*\n"
        card.write_text(text.replace("configs:\n", other))
        _write(tmp_path / "d" / "data" / "other-0.parquet", ROWS[:1])
    assert read_documents(f"squadshifts:nyt@{tmp_path / 'd'}") == CONTEXTS


@pytest.mark.parametrize(
    ("name", "hub_id", "splits", "how"),
    [
        ("pwc", "sggetao/PwC", ["test", "train"], {"data_dir": None, "revision": None}),
        ("squad", "rajpurkar/squad", ["validation"], {"data_dir": None, "revision": None}),
        ("squad:train", "rajpurkar/squad", ["train"], {"data_dir": None, "revision": None}),
        (
            "squadshifts:amazon",
            "ludwigschmidt/squadshifts",
            ["test"],
            {"data_dir": "amazon", "revision": "refs/convert/parquet"},
        ),
        ("hub:some/rows:part:train", "some/rows", ["train"], {"name": "part"}),
    ],
)
def test_what_the_hub_is_asked_for(tmp_path, monkeypatch, name, hub_id, splits, how):
    """The hub's place is taken by a local directory; nothing else is passed on, no token and no leave to run code."""
    row = {**ROWS[0], **_pwc_row("one", "1a", "x")}
    folder = _hub_layout(tmp_path / "d", **{split: [row] for split in splits})
    asked, real = [], datasets.load_dataset_builder
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda path, **how: asked.append((path, how)) or real(str(folder))
    )
    assert _questions(read_documents(name, count_tokens=_words)) == {"one": ["1a"] * len(splits)}
    assert asked == [(hub_id, how)] * len(splits)


DOCUMENT = {
    "version": "v2.0",
    "data": [
        {
            "title": "Town",
            "paragraphs": [
                {
                    "context": "one",
                    "qas": [
                        {"id": "1", "question": "1a", "answers": [{"text": "x", "answer_start": 0}] * 2},
                        {"id": "2", "question": "1b", "answers": [], "is_impossible": True},
                        {"id": "3", "question": "1c", "answers": [{"text": "y"}], "is_impossible": True},
                        {"id": "4", "question": "1d", "answers": [{"text": "y"}, {"text": "x"}, {"text": " "}]},
                    ],
                },
                {"context": "two", "qas": []},
            ],
        },
        {"paragraphs": [{"context": "one", "qas": [{"question": "1e", "answers": [{"text": "z"}]}]}]},
    ],
}


def test_squads_own_layout(tmp_path, caplog):
    path = tmp_path / "dev-v2.0.json"
    path.write_text("\ufeff" + json.dumps(DOCUMENT, indent=1))
    asked = (Question("1a", ("x",)), Question("1d", ("y", "x")), Question("1e", ("z",)))
    expected = [
        Document(id=f"squad-{IDS['one']}", title="Town", text="one", questions=asked),
        Document(id=f"squad-{IDS['two']}", title="Town", text="two"),
    ]
    with caplog.at_level("INFO"):
        assert read_documents(str(path)) == expected
    assert "2 documents with 3 questions; of 5 questions read, left out: 2 without an answer;" in caplog.text
    assert read_documents(f"squad@{path}") == expected


def _changed(path, value):
    document = json.loads(json.dumps(DOCUMENT))
    *keys, last = path
    item = document
    for key in keys:
        item = item[key]
    item[last] = value
    return document


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ('{"data": [}', ["line 1", "malformed JSON"]),
        ([1], ["got a list", "an object with 'data'"]),
        ({"rows": []}, ["an object with rows", "an object with 'data'"]),
        ({"data": {}}, ["data: got an object, expected a list"]),
        ({"data": [3]}, ["data entry 1", "got a number"]),
        (_changed(["data", 1, "paragraphs"], None), ["data entry 2", "paragraphs: got null"]),
        (_changed(["data", 0, "paragraphs", 1, "context"], 5), ["paragraphs entry 2", "context: got a number"]),
        (_changed(["data", 0, "paragraphs", 1, "context"], " "), ["paragraphs entry 2", "empty 'context'"]),
        (_changed(["data", 0, "paragraphs", 1, "qas"], "x"), ["qas: got a string"]),
        (
            _changed(["data", 0, "paragraphs", 0, "qas", 3, "question"], None),
            ["qas entry 4", "question: got null"],
        ),
        (_changed(["data", 0, "paragraphs", 0, "qas", 3, "answers"], {}), ["qas entry 4", "answers: got an object"]),
        (_changed(["data", 0, "paragraphs", 0, "qas", 3, "answers", 0], {}), ["qas entry 4", "text: got null"]),
        ({"data": []}, ["got no document"]),
    ],
)
def test_a_bad_document_is_refused_with_its_place(tmp_path, document, words):
    path = tmp_path / "d.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    message = _message(read_documents, str(path))
    for word in [str(path), *words]:
        assert word in message


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "d.json").write_bytes(b'{"data": "\xff"}')
    assert "d.json: got bytes that are not UTF-8" in _message(read_documents, str(tmp_path / "d.json"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"context": "c", "question": "q"}, "row 1: got the columns context, question, expected at least context"),
        ({**ROWS[0], "answers": ["x"]}, "row 1: answers: got a list, expected an object"),
        ({**ROWS[0], "answers": {"text": "x"}}, "row 1: answers.text: got a string, expected a list"),
        ({**ROWS[0], "context": 3}, "row 1: context: got a number, expected a string"),
        ({**ROWS[0], "question": None}, "row 1: question: got null, expected a string"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(tmp_path, row, words):
    path = _write(tmp_path / "r.jsonl", [row])
    assert f"{path}, {words}" in _message(read_documents, str(path))
    folder = _hub_layout(tmp_path / "d", validation=[row])
    assert f"squad@{folder}, validation {words}" in _message(read_documents, f"squad@{folder}")


def test_a_later_bad_row_has_its_own_number(tmp_path):
    rows = [*ROWS[:2], {**ROWS[0], "question": None}]
    assert "row 3: question: got null" in _message(read_documents, str(_write(tmp_path / "r.parquet", rows)))


def test_empty_fields_are_left_out_and_counted(tmp_path, caplog):
    rows = [_squad_row("one", " ", ["x"]), _squad_row(" ", "q", ["x"]), _squad_row("two", "2a", ["", "z"])]
    with caplog.at_level("INFO"):
        assert _questions(read_documents(str(_write(tmp_path / "r.parquet", rows)))) == {"one": [], "two": ["2a"]}
    assert "2 documents with 1 questions; of 3 questions read, left out: 2 empty;" in caplog.text


def test_a_column_may_say_what_has_no_answer(tmp_path):
    rows = [_squad_row("one", question, ["x"], is_impossible=question == "1b") for question in ("1a", "1b")]
    assert _questions(read_documents(str(_write(tmp_path / "r.parquet", rows)))) == {"one": ["1a"]}


def test_contexts_of_our_own_are_read_as_before(tmp_path):
    record = {"id": "a", "context": "c", "qa_pairs": [{"question": "q", "answer": "x"}]}
    expected = [
        Document(id="a", title="", text="c", questions=(), qa_pairs=(QAPair("q", "x"),)),
        Document(id="b", title="", text="d"),
    ]
    for name in ("c.jsonl", "c.json", "c"):
        path = _write(tmp_path / name, [record, {"id": "b", "context": "d"}])
        assert read_documents(str(path)) == expected
        assert read_documents(str(path), limit=1, ids=("b", "a")) == expected[1:]
    assert read_documents(str(_write(tmp_path / "one.json", [record]))) == expected[:1]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "n.md").write_text("note")
    assert read_documents(str(tmp_path / "texts")) == [Document(id="n", title="", text="note")]
    bad = _write(tmp_path / "bad.jsonl", [{"contxt": "c"}])
    assert "unknown field 'contxt'" in _message(read_documents, str(bad))
    assert "line 1: got a list" in _message(read_documents, str(_write(tmp_path / "list.jsonl", [["c"]])))


# --- limit and ids ------------------------------------------------------------------------------------


def test_text_files_and_paths(tmp_path):
    (tmp_path / "notes.md").write_text('{"context": "not a record", "question": "?"}\n# Town\n')
    expected = [Document('{"context": "not a record", "question": "?"}\n# Town', title="Town", id="notes")]
    assert read_documents(tmp_path / "notes.md") == read_documents(str(tmp_path / "notes.md")) == expected
    (tmp_path / "t.txt").write_text("one\n\ntwo")
    assert sorted(read_texts(tmp_path / "t.txt", 2, 0)) == ["one", "two"]


def test_half_of_a_character_is_refused_with_its_place(tmp_path):
    squad = {"data": [{"title": "T", "paragraphs": [{"context": "x\udfff", "qas": []}]}]}
    for name, content, read in (
        ("s.json", squad, read_documents),
        ("c.jsonl", {"id": "a", "context": "x\ud800"}, read_documents),
        ("t.jsonl", {"text": "x\ud800"}, lambda source: read_texts(source, 1, 0)),
        ("rows.jsonl", {"text": "x\ud800", "more": 1}, lambda source: read_texts(source, 1, 0)),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        message = _message(read, str(tmp_path / name))
        assert name in message and "surrogate" in message and "\n" not in message


def test_a_title_is_a_string(tmp_path):
    squad = {"data": [{"title": 7, "paragraphs": [{"context": "x", "qas": []}]}]}
    (tmp_path / "s.json").write_text(json.dumps(squad))
    assert "s.json, data entry 1: title: got a number" in _message(read_documents, str(tmp_path / "s.json"))


def test_limit_keeps_all_questions_of_what_it_keeps(tmp_path):
    path = str(_write(tmp_path / "r.jsonl", ROWS))
    assert read_documents(path, limit=1) == CONTEXTS[:1]  # its second question comes after the next context
    assert read_documents(path, limit=3) == CONTEXTS
    assert "got limit 4, expected 0 (all) to 3, the documents available" in _message(read_documents, path, limit=4)
    assert "got limit -1" in _message(read_documents, "pwc", limit=-1)


def test_ids_select_in_the_order_asked_for(tmp_path):
    path = str(_write(tmp_path / "r.jsonl", ROWS))
    ids = (CONTEXTS[2].id, CONTEXTS[0].id)
    assert read_documents(path, ids=ids) == [CONTEXTS[2], CONTEXTS[0]]
    assert read_documents(path, limit=1, ids=ids) == [CONTEXTS[2]]
    assert f"did you mean '{CONTEXTS[0].id}'" in _message(read_documents, path, ids=(CONTEXTS[0].id[:-1],))
    assert "got limit 3" in _message(read_documents, path, limit=3, ids=ids)


# --- PwC ----------------------------------------------------------------------------------------------

TEST = [
    _pwc_row("one", "1a", "a b c d e"),
    _pwc_row("zero", "0a", "a b c d e f"),  # so this context has no question
    _pwc_row("one", "What does the Above Text say?", "a"),
    _pwc_row("two", "2a", "a"),
    _pwc_row("one", "1b", "b"),
    _pwc_row("two", "2b", ""),
    _pwc_row(" ", "which?", "a"),
]
TRAIN = [_pwc_row("three", "3a", "train"), _pwc_row("one", "1c", "train too")]


@pytest.fixture(params=["jsonl", "parquet"])
def pwc(tmp_path, request):
    folder = tmp_path / "PwC"
    for split, rows in (("test", TEST), ("train", TRAIN)):
        _write(folder / f"PwC_{split}.{request.param}", rows)
    return folder


def test_pwc_reads_test_then_train_and_filters(pwc, caplog):
    with caplog.at_level("INFO"):
        contexts = read_documents(f"pwc@{pwc}", count_tokens=_words)
    assert _questions(contexts) == {"one": ["1a", "1b", "1c"], "two": ["2a"], "three": ["3a"]}
    assert list(_questions(contexts)) == ["one", "two", "three"]
    assert contexts[0].id == f"pwc-{IDS['one']}" and contexts[0].questions[0] == Question("1a", ("a b c d e",))
    assert (
        "3 documents with 5 questions; of 9 questions read, left out: 1 whose answer has more than 5 tokens, "
        '1 that speak of the "above text", 1 without an answer, 1 empty;' in caplog.text
    )


@pytest.mark.parametrize(
    ("limit", "ids", "expected", "train_is_read"),
    [
        (1, (), {"one": ["1a", "1b"]}, False),
        (2, (), {"one": ["1a", "1b"], "two": ["2a"]}, False),
        (3, (), {"one": ["1a", "1b", "1c"], "two": ["2a"], "three": ["3a"]}, True),
        (0, ("two",), {"two": ["2a"]}, False),
        (0, ("three", "two"), {"three": ["3a"], "two": ["2a"]}, True),
    ],
)
def test_pwc_opens_train_only_if_it_must(pwc, limit, ids, expected, train_is_read):
    counted = []

    def count(text):
        counted.append(text)
        return _words(text)

    ids = tuple(f"pwc-{IDS[name]}" for name in ids)
    assert _questions(read_documents(f"pwc@{pwc}", limit, ids, count)) == expected
    assert ("train" in counted) == train_is_read
    assert "b" in counted  # the test split's last, in any case


def test_pwc_from_one_file(pwc):
    for path in pwc.glob("PwC_test.*"):
        assert _questions(read_documents(f"pwc@{path}", count_tokens=_words)) == {"one": ["1a", "1b"], "two": ["2a"]}


def test_a_split_that_is_not_there(pwc):
    for path in pwc.glob("PwC_train.*"):
        path.unlink()
    assert len(read_documents(f"pwc@{pwc}", limit=2, count_tokens=_words)) == 2
    message = _message(read_documents, f"pwc@{pwc}", count_tokens=_words)
    assert "got the split 'train', expected one of test" in message and "a single file" in message


def test_pwc_needs_tokens_and_its_columns(tmp_path):
    assert "got no count_tokens" in _message(read_documents, "pwc")
    path = _write(tmp_path / "r.jsonl", ROWS)
    message = _message(read_documents, f"pwc@{path}", count_tokens=_words)
    assert "got the columns id, title, context, question, answers, expected at least input, prompt" in message
    path = _write(tmp_path / "p.jsonl", [_pwc_row("c", "q", 3)])
    assert "answer: got a number, expected a string" in _message(read_documents, f"pwc@{path}", count_tokens=_words)
    path = _write(tmp_path / "p.jsonl", TEST)
    assert f"write pwc@{path}" in _message(read_documents, str(path))
    path = _write(tmp_path / "none.jsonl", TEST[1:3])
    assert "got no document" in _message(read_documents, f"pwc@{path}", count_tokens=_words)


# --- sources that are none ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("sqad", "did you mean squad"),
        ("pcw@/tmp", "did you mean pwc"),
        ("squadshifts:new_wik", "did you mean squadshifts:new_wiki"),
        ("squad@/no/such", "squad@/no/such: no such file or folder; check the path"),
        ("squad@", "no such file"),
        ("documents.jsonl", "and no data set of that name (pwc, squad, squad:train, squadshifts:new_wiki"),
        ("some/rows:test", "a hub data set is written hub:some/rows:test"),
    ],
)
def test_an_unknown_source_says_what_was_meant(source, words):
    assert words in _message(read_documents, source, error=FileNotFoundError)


@pytest.mark.parametrize("source", ["hub:", "hub:rows", "hub:./no/such", "hub:a/b:c:d:e", "hub:a/b:", "hub:/no/such"])
def test_a_bad_hub_id_is_refused_before_anything_is_asked(source):
    assert "expected hub:ID, hub:ID:SPLIT or hub:ID:CONFIG:SPLIT" in _message(read_documents, source)
    assert "expected hub:ID, hub:ID:SPLIT or hub:ID:CONFIG:SPLIT" in _message(read_texts, source, 1, 0)


def test_no_network(tmp_path):
    # The last line of the error, as the command line shows it.
    code = (
        "import sys\nfrom selfparam_jax.data.corpora import read_documents\n"
        "try:\n    read_documents('squad')\nexcept ValueError as error:\n    sys.exit(f'error: {error}')"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_secret"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: squad: got no rows from the hub's data set rajpurkar/squad (ConnectionError"
    )
    assert "expected a network" in result.stderr and "a local copy: squad@PATH" in result.stderr
    assert "secret" not in result.stderr + result.stdout


def test_an_error_of_the_hub_keeps_tokens_to_itself(monkeypatch):
    def fail(*args, **how):
        raise RuntimeError("401 for https://me:pw@host/x?sig=abc with hf_secret and Bearer xyz\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(ValueError) as caught:
        read_texts("hub:some/texts", 1, 0)
    assert "RuntimeError: 401 for (address) with (token) and Bearer (token))" in str(caught.value)
    assert "a local copy: hub:DIRECTORY" in str(caught.value)
    assert caught.value.__suppress_context__ and caught.value.__cause__ is None  # a traceback shows it no more


def test_code_beside_the_data_is_not_run(tmp_path):
    folder = _hub_layout(tmp_path / "rows", validation=ROWS)
    (folder / "rows.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert "scripts are no longer supported" in _message(read_documents, f"squad@{folder}")
    assert not (tmp_path / "ran").exists()


def test_other_formats_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    assert "got data in the format 'imagefolder'" in _message(read_texts, f"hub:{tmp_path / 'pictures'}", 1, 0)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    assert "rows.parquet: got data that cannot be read (Arrow" in _message(
        read_documents, str(tmp_path / "rows.parquet")
    )
    (tmp_path / "empty").mkdir()
    assert "got data that cannot be read" in _message(read_documents, f"squad@{tmp_path / 'empty'}")
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert "rows.csv: got a file that is not JSON lines" in _message(read_documents, f"squad@{tmp_path / 'rows.csv'}")


def test_a_folder_of_parquet_is_not_a_folder_of_texts(tmp_path):
    folder = _hub_layout(tmp_path / "d", validation=ROWS)  # its README.md is no context
    assert f"write hub:{folder}:SPLIT, or NAME@{folder}" in _message(read_documents, str(folder))


# --- texts --------------------------------------------------------------------------------------------

TEXTS = [f"text {number}" for number in range(40)]
TEXT_ROWS = [{"text": text, "meta": {"n": 1}} for text in TEXTS]


def _texts_file(path):
    if path.suffix == ".txt":
        path.write_text("\n\n".join(TEXTS))
        return path
    return _write(path, [{"text": text} for text in TEXTS] if path.stem == "plain" else TEXT_ROWS)


@pytest.fixture(params=["t.txt", "plain.jsonl", "t.jsonl", "t.parquet", "t.jsonl.gz", "folder", "hub"])
def texts_source(tmp_path, request):
    if request.param == "folder":
        for part in range(4):
            _write(
                tmp_path / "f" / f"{part}.{'jsonl' if part % 2 else 'parquet'}", TEXT_ROWS[10 * part : 10 * part + 10]
            )
        return str(tmp_path / "f")
    if request.param == "hub":
        return f"hub:{_hub_layout(tmp_path / 'h', train=TEXT_ROWS, validation=[{'text': 'held out', 'meta': None}])}"
    return str(_texts_file(tmp_path / request.param))


def test_texts_are_shuffled_by_the_seed(texts_source):
    texts = read_texts(texts_source, 40, seed=0)
    assert sorted(texts) == sorted(TEXTS) and texts != TEXTS
    assert read_texts(texts_source, 40, seed=0) == texts
    others = [read_texts(texts_source, 40, seed=seed) for seed in (1, 2)]
    assert sorted(others[0]) == sorted(TEXTS) and texts != others[0] != others[1] != texts
    assert read_texts(texts_source, 7, seed=0) == texts[:7]
    assert read_texts(texts_source, 50, seed=0, fewest=40) == texts


def test_fewer_texts_than_asked_for(texts_source):
    assert "got 40 texts that are not empty, expected 41; ask for" in _message(read_texts, texts_source, 41, 0)
    assert "got 40 texts that are not empty, expected 41; ask" in _message(read_texts, texts_source, 50, 0, fewest=41)


@pytest.mark.parametrize("numbers", [(0, 0, None), (1, -1, 1), (1, 0, 0), (1, 0, 2)])
def test_bad_numbers(numbers):
    message = _message(read_texts, "t.txt", *numbers)
    assert f"got count {numbers[0]}, fewest {numbers[2] or 0} and seed {numbers[1]}" in message


def test_the_split_of_a_hub_data_set(tmp_path):
    folder = _hub_layout(tmp_path / "h", "part", train=[{"text": "a"}], validation=[{"text": "b"}])
    assert read_texts(f"hub:{folder}", 1, 0) == read_texts(f"hub:{folder}:train", 1, 0) == ["a"]
    assert read_texts(f"hub:{folder}:validation", 1, 0) == read_texts(f"hub:{folder}:part:validation", 1, 0) == ["b"]


def test_empty_texts_are_passed_over(tmp_path):
    rows = [{"text": ""}, {"text": "a"}, {"text": None}, {"text": " \n"}, {"text": "b"}]
    for name in ("t.parquet", "t.jsonl.gz"):
        path = str(_write(tmp_path / name, rows))
        assert sorted(read_texts(path, 2, 0)) == ["a", "b"]
        assert "got 2 texts that are not empty, expected 3" in _message(read_texts, path, 3, 0)


def test_bad_rows_of_texts(tmp_path):
    path = _write(tmp_path / "t.parquet", [{"content": "a", "id": 1}])
    words = f"{path}, shuffled row 1: got the columns content, id, expected at least text"
    assert words in _message(read_texts, str(path), 1, 0)
    path = _write(tmp_path / "n.parquet", [{"text": 1}])
    assert "text: got a number, expected a string" in _message(read_texts, str(path), 1, 0)
    path = _write(tmp_path / "t.jsonl", [{"text": "a"}, {"text": 2}])
    assert f"{path}, line 2: 'text': got a number" in _message(read_texts, str(path), 1, 0)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / ".t.txt").write_text("hidden")
    assert "got a folder without texts, expected .txt" in _message(read_texts, str(tmp_path / "none"), 1, 0)
    message = _message(read_texts, "DKYoon/SlimPajama-6B", 1, 0, error=FileNotFoundError)
    assert message.endswith(
        "no such file or folder; check the path; a hub data set is written hub:DKYoon/SlimPajama-6B"
    )


def test_files_of_a_folder_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "OPEN_FILES", 2)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name}{number}" for number in range(3)))
    texts = read_texts(str(tmp_path), 9, seed=0)
    first, second = texts[0][0], texts[1][0]
    (third,) = {"a", "b", "c"} - {first, second}
    assert [text[0] for text in texts] == [first, second] * 3 + [third] * 3
    assert {read_texts(str(tmp_path), 1, seed=seed)[0][0] for seed in range(20)} == {"a", "b", "c"}


def _damage(path, row_group):
    """Overwrites the values of a group of rows; the file can still be opened."""
    column = pq.ParquetFile(path).metadata.row_group(row_group).column(0)
    start, size = column.dictionary_page_offset or column.data_page_offset, column.total_compressed_size
    raw = path.read_bytes()
    path.write_bytes(raw[:start] + b"\xff" * size + raw[start + size :])


@pytest.mark.parametrize("source", ["{}/train.parquet", "{}", "hub:{}"])
def test_no_more_is_read_than_is_needed(tmp_path, monkeypatch, source):
    """One of twenty groups of rows is damaged; texts that come long before it are read all the same."""
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 100)
    path = _write(tmp_path / "d" / "train.parquet", [{"text": f"{n:04}"} for n in range(2000)], row_group_size=100)
    _damage(path, 15)
    source = source.format(path.parent)
    assert set(read_texts(source, 150, 0)) <= {f"{n:04}" for n in range(300)}
    assert "got data that cannot be read" in _message(read_texts, source, 1800, 0)


def test_one_file_of_the_hub_at_a_time(tmp_path, monkeypatch):
    """Of three files two are damaged: what comes from the first is read without them."""
    monkeypatch.setattr(streaming, "SHUFFLE_BUFFER", 4)
    for part in range(3):
        _write(tmp_path / "d" / "data" / f"train-0000{part}-of-00003.parquet", TEXT_ROWS[10 * part : 10 * part + 10])
    texts = read_texts(f"hub:{tmp_path / 'd'}", 30, 0)
    assert sorted(texts) == sorted(TEXTS[:30])
    for part in range(3):
        if part != int(texts[0].split()[1]) // 10:
            _damage(tmp_path / "d" / "data" / f"train-0000{part}-of-00003.parquet", 0)
    assert read_texts(f"hub:{tmp_path / 'd'}", 6, 0) == texts[:6]
    assert "got data that cannot be read" in _message(read_texts, f"hub:{tmp_path / 'd'}", 30, 0)


def test_zstandard(tmp_path, monkeypatch):
    path = tmp_path / "t.jsonl.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        file.write(b'{"text": "a"}\n')
    if streaming.importlib.util.find_spec("zstandard"):
        assert read_texts(str(path), 1, 0) == ["a"]
    monkeypatch.setattr(streaming.importlib.util, "find_spec", lambda name: None)
    assert "pip install zstandard" in _message(read_texts, str(path), 1, 0)


def test_nothing_is_written_beside_the_caches_locks(tmp_path, monkeypatch):
    source = _hub_layout(tmp_path / "h", train=TEXT_ROWS)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = sorted(tmp_path.rglob("*"))
    read_texts(f"hub:{source}", 3, 0)
    read_texts(str(source / "plain_text" / "train-00000-of-00001.parquet"), 3, 0)
    new = set(tmp_path.rglob("*")) - set(before)
    assert {path.relative_to(tmp_path).parts[0] for path in new} == {"cache"}
    assert all(path.suffix == ".lock" for path in new - {tmp_path / "cache"})
