"""What a run is: settings, base and the contents of all inputs. A work directory answers for no other."""

import json

import pytest
import tiny
from job_inputs import DOCUMENTS, ROOT, TEXTS, modified, write

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.distributed import files
from selfparam_jax.jobs import batch, inputs
from selfparam_jax.jobs.dry_run import dry_run
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.settings import RENAMED
from selfparam_jax.jobs.workdir import LISTED, MetricsLog, bind_workdir, changed_inputs, digest_inputs, read_workdir
from selfparam_jax.reports.results import read_metrics


class Stopped(Exception):
    """The job ends here."""


@pytest.fixture
def stopped(config, tmp_path, monkeypatch):
    """The work directory of a job that was stopped after the bounds were measured."""

    def stop(*_, **__):
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(batch, "inject_documents", stop)
        with pytest.raises(Stopped):
            run_job(config, tmp_path / "run")
    assert {path.name for path in (tmp_path / "run" / "answers").iterdir()} == {"base_q.jsonl", "base_cq.jsonl"}
    return tmp_path / "run"


def assert_refused(config, workdir, message):
    """The job is refused with these words, and nothing in the directory is written."""
    before = modified(workdir)
    with pytest.raises(ValueError, match=f"(?s)belongs to a run with other inputs.*{message}"):
        run_job(config, workdir)
    assert modified(workdir) == before


def test_a_stopped_run_is_resumed_with_its_own_inputs_alone(config, stopped, tmp_path):
    path = tmp_path / "documents.jsonl"
    write(path, DOCUMENTS[::-1])
    assert_refused(config, stopped, "the documents are in another order")
    asked = {"question": "What is old?", "answers": ["Ava"]}
    write(path, [DOCUMENTS[0], {**DOCUMENTS[1], "questions": [*DOCUMENTS[1]["questions"], asked]}, DOCUMENTS[2]])
    assert_refused(config, stopped, r"document 'doc-1' has changed \(its text, questions or pairs\)\n")
    pair = {"question": "What is old?", "answer": "Ava"}
    write(path, [{**DOCUMENTS[0], "qa_pairs": [*DOCUMENTS[0]["qa_pairs"], pair]}, *DOCUMENTS[1:]])
    assert_refused(config, stopped, "document 'doc-0' has changed")
    write(path, [*DOCUMENTS[:2], {**DOCUMENTS[2], "id": "doc-9"}])
    assert_refused(config, stopped, "document 'doc-2' is gone\n.*document 'doc-9' is new")
    write(path, DOCUMENTS)
    texts = tmp_path / "texts.jsonl"  # both unrelated and general
    write(texts, [*TEXTS[:2], {"text": "Five is odd."}])
    assert_refused(config, stopped, "the unrelated texts have changed\n.*the general texts have changed")
    write(texts, TEXTS)

    # Answers are found by document and question, in whatever order they are stored.
    stored = stopped / "answers" / "base_cq.jsonl"
    records = files.read_lines(stored)
    assert len({record["answer"] for record in records}) == 3
    assert all({"context", "question"} <= record.keys() for record in records)
    files.write_lines(stored, records[1:] + records[:1])
    config.train.epochs, results = 8, run_job(config, stopped)
    wanted = {record["context"]: record["answer"] for record in records}
    found = {line["context"]: line["base_cq"]["answer"] for line in files.read_lines(stopped / "predictions.jsonl")}
    assert found == wanted and results["num_questions"] == 3

    # A finished run does not answer for a document that was edited after it.
    write(path, [{**DOCUMENTS[0], "context": DOCUMENTS[0]["context"] + " It is old."}, *DOCUMENTS[1:]])
    assert_refused(config, stopped, "document 'doc-0' has changed")
    assert results == files.read_json(stopped / "results.json")


def test_only_the_general_texts_have_changed(config, tmp_path):
    config.eval.general = str(write(tmp_path / "general.jsonl", TEXTS))
    inputs.prepare(config, tmp_path / "run")
    write(tmp_path / "general.jsonl", TEXTS[:2])
    with pytest.raises(ValueError, match=r"(?s)other inputs:\n  the general texts have changed\nChoose"):
        inputs.prepare(config, tmp_path / "run")


def test_only_the_unrelated_texts_have_changed(config, tmp_path):
    config.unrelated = str(write(tmp_path / "unrelated.jsonl", TEXTS))
    inputs.prepare(config, tmp_path / "run")
    write(tmp_path / "unrelated.jsonl", TEXTS[::-1])
    with pytest.raises(ValueError, match=r"(?s)other inputs:\n  the unrelated texts have changed\nChoose"):
        inputs.prepare(config, tmp_path / "run")


def test_written_pairs_have_changed(config, tmp_path):
    """A file of written pairs that is only read is an input like the documents."""
    from selfparam_jax.targets.write_pairs import text_digest

    config.generator.file, config.generator.least_support = str(tmp_path / "pairs.jsonl"), 0.0
    line = {"digest": text_digest(Document(DOCUMENTS[1]["context"])), "round": 0, "context": "doc-1"}
    pair = {**line, "prompt": "p", "question": "Since when?", "answer": "long ago", "support": 1.0}
    lines = [{"settings": {}}, pair, {**line, "kinds": {}, "seconds": 1}]
    files.write_lines(tmp_path / "pairs.jsonl", lines)
    job = inputs.prepare(config, tmp_path / "run")
    assert [len(document.qa_pairs) for document in job.documents] == [3, 4, 3]
    files.write_lines(tmp_path / "pairs.jsonl", [lines[0], {**pair, "answer": "for ever"}, lines[2]])
    with pytest.raises(ValueError, match="document 'doc-1' has changed"):
        inputs.prepare(config, tmp_path / "run")


def test_the_lines_of_what_has_changed():
    def digests(documents, unrelated=("a",), general=("b",)):
        return digest_inputs(documents, unrelated, general)

    documents = [Document(f"text {n}", id=f"d{n}") for n in range(LISTED + 4)]
    old = json.loads(json.dumps(digests(documents)))
    assert changed_inputs(old, digests(documents)) == []
    others = [Document(f"other {n}", id=f"d{n}") for n in range(LISTED + 4)]
    lines = changed_inputs(old, digests(others))
    assert len(lines) == LISTED + 1 and lines[-1] == "and 4 more documents"
    assert lines[0] == "document 'd0' has changed (its text, questions or pairs)"
    assert changed_inputs(old, digests(documents[::-1])) == ["the documents are in another order"]
    assert changed_inputs(old, digests(documents, ("c",), ("d",))) == [
        "the unrelated texts have changed",
        "the general texts have changed",
    ]
    changes = [{"questions": (Question("Q?", ("A",)),)}, {"qa_pairs": (QAPair("Q?", "A"),)}, {"title": "T"}]
    for change in changes:
        changed = [Document("text 0", id="d0", **change), *documents[1:]]
        assert changed_inputs(old, digests(changed)) == [lines[0]], change


def test_a_work_directory_of_another_configuration_or_base_is_refused(config, tmp_path):
    config.train.epochs = 1
    config.model, workdir = str(tmp_path / "model"), tmp_path / "run"
    tiny.save_checkpoint(tmp_path / "model", "gqa", max_position_embeddings=2048)
    run_job(config, workdir)
    before = sorted(workdir.rglob("*"))
    config.lora.rank = 4
    with pytest.raises(ValueError, match=r"lora\.rank: 8 there, 4 now"):
        run_job(config, workdir)
    config.lora.rank = 8
    config.endpoint.update(budget=2.5, price_in=1.0, base_url="http://elsewhere/v1")
    assert run_job(config, workdir), "how a server is asked may change until a job ends"
    config.mesh.data, config.mesh.fsdp = 2, 4
    assert run_job(config, workdir), "and so may the mesh"
    sections = ("endpoint", "mesh")
    free = {f"{section}.{name}" for section in sections for name in config[section]}
    # Each system is bound to its own settings, see test_compare_systems.py.
    free |= {"systems", *(f"baselines.{name}" for name in files.flatten(config.baselines.to_dict()))}
    assert set(inputs.FREE) <= free | {"compilation_cache", "report_to", "eval.sample_every", "eval.sample_questions"}
    config.endpoint.model = "another"
    with pytest.raises(ValueError, match=r"endpoint\.model: '' there, 'another' now"):
        run_job(config, workdir)
    config.endpoint.model = ""
    tiny.save_checkpoint(tmp_path / "model", "gqa", seed=1, max_position_embeddings=2048)
    with pytest.raises(ValueError, match=r"another base model under the same name \(fingerprint \w{12} there"):
        run_job(config, workdir)
    assert sorted(workdir.rglob("*")) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        run_job(config, other)


# --- directories of earlier versions ------------------------------------------------------------------


@pytest.mark.parametrize("old", RENAMED)
def test_a_work_directory_with_old_names_is_refused_with_the_new_one(tmp_path, old):
    section, name = old.split(".")
    record = {"config": {"job": "batch", section: {name: 1}}, "base_fingerprint": "f", "inputs": {}}
    files.write_json(tmp_path / "config.json", record)
    with pytest.raises(ValueError, match=f"earlier version .the setting {old} is called {RENAMED[old]} now"):
        read_workdir(tmp_path)


def test_a_work_directory_without_its_inputs_is_refused(config, tmp_path):
    inputs.prepare(config, tmp_path / "run")
    record = files.read_json(tmp_path / "run" / "config.json")
    assert read_workdir(tmp_path / "run") == record
    del record["inputs"]
    files.write_json(tmp_path / "run" / "config.json", record)
    with pytest.raises(ValueError, match="earlier version, which did not record its inputs; run the job again in"):
        inputs.prepare(config, tmp_path / "run")


@pytest.mark.parametrize("content", ["{}", '{"model_type": "llama"}', '{"config": 1, "base_fingerprint": "f"}'])
def test_another_config_json_is_no_work_directory(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="is not a job's; give the directory of a job"):
        read_workdir(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"config": {'])
def test_a_damaged_config_json_is_named_with_what_to_do(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        ValueError, match=r"config\.json: got .*restore it from a copy, or run the job again in anoth"
    ):
        read_workdir(tmp_path)


@pytest.mark.parametrize("size", [0, -1, "x", None, 2.5])
def test_a_batch_size_that_is_none_is_refused(tmp_path, size):
    record = {"config": {}, "base_fingerprint": "f", "inputs": {"batch_size": size}}
    files.write_json(tmp_path / "config.json", record)
    with pytest.raises(ValueError, match=r"config\.json: got the batch size .*; restore it from a copy"):
        read_workdir(tmp_path)


def test_a_config_json_without_its_inputs_is_refused(tmp_path):
    files.write_json(tmp_path / "config.json", {"config": {}, "base_fingerprint": "f", "inputs": {}})
    with pytest.raises(ValueError, match=r"config\.json does not say which inputs the run has; restore it"):
        bind_workdir(tmp_path, {}, "f", digest_inputs([], [], []))


LOG = b'{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\nnonsense\n\0\0\n{"loss": 1}\n{"step": "3"}\n{"step": 4}'


def test_a_damaged_log_keeps_no_job_from_going_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(LOG)
    log = MetricsLog(path, first=3)
    log.write({"step": 4, "loss": 1.0})
    log.close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": NaN}\n{"step": 4, "loss": 1.0}\n'


def test_another_directory_is_left_as_it_is(config, tmp_path):
    """Not even a lock is put there."""
    for name in ("notes.txt", "config.json"):
        other = tmp_path / name.split(".")[0]
        other.mkdir()
        (other / name).write_text('{"hidden_size": 8}')
        with pytest.raises(ValueError, match=r"is not empty and holds no config|config\.json is not a job's"):
            run_job(config, other)
        assert [path.name for path in other.iterdir()] == [name]


def test_a_log_that_is_a_folder_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_work_directory_is_read_from_anywhere(config, tmp_path, monkeypatch):
    """It states whole paths."""
    monkeypatch.chdir(tmp_path)
    config.contexts, config.unrelated, config.eval.general = "documents.jsonl", "texts.jsonl", "texts.jsonl"
    inputs.prepare(config, "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(inputs.reopen(tmp_path / "run").documents) == 3


def test_a_dry_run_refuses_the_directory_that_the_run_would_refuse(config, tmp_path):
    workdir, foreign = tmp_path / "run", tmp_path / "foreign"
    assert next(dry_run(config, workdir)).split()[0] == "document" and not workdir.exists()
    inputs.prepare(config, workdir)
    foreign.mkdir()
    (foreign / "letter.txt").write_text("mine")
    before = modified(tmp_path)
    assert next(dry_run(config, workdir)).split()[0] == "document"
    with pytest.raises(ValueError, match=r"foreign is not empty and holds no config\.json of ours"):
        next(dry_run(config, foreign))
    config.train.epochs += 1
    with pytest.raises(
        ValueError, match=r"(?s)belongs to a run with another configuration.*train\.epochs: 8 there, 9"
    ):
        next(dry_run(config, workdir))
    config.train.epochs -= 1
    assert modified(tmp_path) == before
    path = tmp_path / "documents.jsonl"
    path.write_text(path.read_text().replace("lies on the Nil", "lies on the Om"))
    with pytest.raises(ValueError, match=r"(?s)other inputs.*'doc-1' has changed.*Choose another directory for"):
        next(dry_run(config, workdir))


def test_messages_about_a_directory_hold_for_every_command():
    """`inject` calls it --out, `run` --workdir, and others take it as an argument."""
    for path in (ROOT / "selfparam_jax/jobs").glob("*.py"):
        assert "--workdir" not in path.read_text(encoding="utf-8"), path.name
