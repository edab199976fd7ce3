"""The measurement of facts that change and of two-step questions: its jobs, the table, and a real job."""

import pytest
import tiny

from selfparam_jax.data.documents import read_document_files
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files
from selfparam_jax.jobs.settings import read_settings

over_time = tiny.benchmark("over_time")
SYSTEMS = ("base_q", "base_cq", "injected")


@pytest.fixture
def flags(tmp_path, monkeypatch):
    values = {"OUT": str(tmp_path / "out"), "ONLY": [], "SET": ["train.epochs=1", "prompt=plain"]}
    for name, value in values.items():
        monkeypatch.setattr(over_time, name, type("Flag", (), {"value": value}))
    return tmp_path


def test_every_job_can_be_configured(flags):
    settings = {name: read_settings(over_time.config_of(name)) for name in over_time.JOBS}
    assert {name for name, each in settings.items() if each.targets.dated} == {"batch-dated", "sequence-dated"}
    assert {name for name, each in settings.items() if each.job == "sequential"} == {"sequence", "sequence-dated"}
    assert all((each.train.epochs, each.prompt) == (1, "plain") for each in settings.values())


def test_the_table_by_hand():
    kinds = {
        "latest": {"questions": 8, "base_q": [0.0, 0.125], "base_cq": [0.5, 0.75], "injected": [1.0, 1.0]},
        "as_of": {"questions": 4, "injected": [0.25, 0.5]},
    }
    row = {"name": "a", "what": "b", "kinds": kinds, "steps": 40, "train_s": 20.4, "perplexity": 0.051}
    row["seen"] = {"never": {"questions": 2, "injected": [0.5, 1.0]}}
    lines = over_time.table_of([row]).splitlines()
    assert lines[2] == "| a: b | latest | 8 | 0.000 (0.125) | 0.500 (0.750) | 1.000 (1.000) | 40 | 20 s | +5.1% |"
    assert lines[3] == "|  | as_of | 4 |  |  | 0.250 (0.500) |  |  |  |"
    assert lines[4] == "|  | two_documents, never | 2 |  |  | 0.500 (1.000) |  |  |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_two_step_questions_by_whether_their_like_was_trained_on(flags, tmp_path):
    """By the two documents and the answer."""
    config = over_time.config_of("two-step")
    documents = read_document_files(resource("examples", "two_documents.jsonl"))
    asked = [(d.id, q) for d in documents for q in d.questions if q.documents]
    files.write_lines(
        tmp_path / "predictions.jsonl",
        (
            {
                "context": name,
                "question": q.question,
                "injected": {"f1": float(q.answers[0] == "612"), "contains": 1.0},
            }
            for name, q in asked
        ),
    )
    group = {"kind": "qa", "context": "maro-telvik+village-of-ostwin", "question": "?", "answer": "612"}
    single = {"kind": "qa", "context": "village-of-ostwin", "question": "?", "answer": "blue"}
    files.write_lines(tmp_path / "targets.jsonl", [single, {"kind": "qa", "form": "chat", "turns": []}])
    assert over_time.seen(config, tmp_path) == {}
    files.write_lines(tmp_path / "targets.jsonl", [group, single, {"kind": "unrelated", "context": None}])
    assert over_time.seen(config, tmp_path) == {
        "trained on": {"questions": 1, "injected": [1.0, 1.0]},
        "never": {"questions": 23, "injected": [0.0, 1.0]},
    }


def test_a_real_job(flags, monkeypatch, capsys):
    """On a tiny model; the second run finds it done."""
    tiny.save_checkpoint(flags / "model", "gqa", max_position_embeddings=2048)
    lines = files.read_lines(resource("examples", "over_time.jsonl"))
    names = ["staff-2031", "staff-2032"]
    chosen = [line for line in lines if line["id"] in names]
    for line in chosen:
        line["questions"] = [each for each in line["questions"] if each["documents"] == names][:1]
        line["qa_pairs"] = line["qa_pairs"][:2]
    files.write_lines(flags / "small.jsonl", chosen)
    files.write_lines(flags / "texts.jsonl", [{"text": f"Rain fell on day {n}."} for n in range(2)])
    what, module, _, changes = over_time.JOBS["sequence-dated"]
    jobs = {"sequence-dated": (what, module, str(flags / "small.jsonl"), changes)}
    monkeypatch.setattr(over_time, "JOBS", jobs)
    over_time.SET.value += [
        f"model={flags / 'model'}", "train.batch_size=8", "train.seq_len=256", "targets.unrelated_per_epoch=2",
        f"unrelated={flags / 'texts.jsonl'}", f"eval.general={flags / 'texts.jsonl'}",
    ]  # fmt: skip
    over_time.measure_all()
    (row,) = files.read_json(flags / "out" / "over_time.json")["rows"]
    assert {kind: found["questions"] for kind, found in row["kinds"].items()} == {"as_of": 1, "latest": 1}
    assert row["perplexity"] != 0 and set(row["kinds"]["latest"]) == {"questions", *SYSTEMS}
    targets = files.read_lines(flags / "out" / "sequence-dated" / "targets.jsonl")
    assert [line["question"] for line in targets if line["kind"] == "qa"] == [
        question
        for day in ("15 April 2031", "1 September 2032")
        for question in (
            "Who is the director of the Pellan Folk Library?",
            f"As of {day}, who is the director of the Pellan Folk Library?",
            "What is the name of the director of the Pellan Folk Library?",
            f"What is the name of the director of the Pellan Folk Library as of {day}?",
        )
    ]
    shown = capsys.readouterr().out
    monkeypatch.setattr(over_time, "run_job", lambda config, directory: files.read_json(directory / "results.json"))
    over_time.measure_all()
    assert shown == capsys.readouterr().out == over_time.table_of([row]) + "\n"
