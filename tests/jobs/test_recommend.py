"""Job `recommend` on a tiny model: all systems, resumed replies, and files that changed."""

import json
import types

import pytest
from job_inputs import TEXTS, modified, write
from selfparam_jax.configs import base

from selfparam_jax.distributed import files
from selfparam_jax.jobs import inputs, recommend
from selfparam_jax.jobs.dry_run import dry_run
from selfparam_jax.jobs.run import run_job
from selfparam_jax.reports.report import write_report

DIALOGUES = [
    {
        "id": name,
        "messages": [{"role": "User", "text": f"I like {liked}."}, {"role": "System", "text": f"Try {suggested}."}],
        "titles": [{"title": liked, "suggested": False, "liked": True}, {"title": suggested, "suggested": True}],
    }
    for name, liked, suggested in (("d0", "Heat (1995)", "Jaws (1975)"), ("d1", "Up (2009)", "Jaws (1975)"))
]
SILENT = {"id": "d2", "messages": [{"role": "User", "text": "hi"}], "titles": []}
ENTITIES = {"Heat_(1995_film)": 0, "Jaws_(film)": 1, "Up": 2, "Al_Pacino": 3}
RECORDS = [
    {"input": "\nUser: I like Up\nSystem: ", "rec": [1], "prev_entity": [2], "dialog_id": "a"},
    {"input": "\nUser: I like Heat a lot\nSystem: ", "rec": [1, 0], "prev_entity": [0], "dialog_id": "b"},
    {"input": "\nUser: Al Pacino\nSystem: ", "rec": [0], "prev_entity": [3], "dialog_id": "c"},
]


@pytest.fixture
def config(model_dir, tmp_path):
    """Two dialogues, a third that recommends nothing, and three turns."""
    config = base.get_config()
    config.job, config.model, config.prompt = "recommend", str(model_dir), "chat"
    config.contexts = str(write(tmp_path / "dialogues.jsonl", [*DIALOGUES, SILENT]))
    config.unrelated = config.eval.general = str(write(tmp_path / "texts.jsonl", TEXTS))
    config.recommend.records = str(write(tmp_path / "records.jsonl", RECORDS))
    for name, content in (("entities", ENTITIES), ("item_ids", [0, 1, 2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        config.recommend[name] = str(tmp_path / f"{name}.json")
    config.recommend.systems = ("base", "popularity")
    config.recommend.new_tokens = 4
    config.targets.generator = "none"
    config.targets.unrelated_per_epoch = 2
    config.targets.tails_per_context = 1
    config.targets.tail_cut = "sentence"
    config.export_dtype = ""
    config.train.update(epochs=1, batch_size=8, seq_len=256, learning_rate=1e-2)
    config.eval.batch_size = 2
    return config


@pytest.mark.pictures
def test_all_systems_and_their_files(config, tmp_path):
    config.recommend.systems = ("base", "bm25", "ft_c", "ft_s", "popularity")
    folder = tmp_path / "run"
    results = run_job(config, folder)
    names = [system["name"] for system in results["systems"]]
    assert names == ["base", "injected", "bm25", "ft_c", "ft_s", "popularity"]
    assert results["num_contexts"] == 2  # the dialogue without a suggestion is left out
    for name in names:
        replies = files.read_lines(folder / "replies" / f"{name}.jsonl")
        assert sorted(reply["index"] for reply in replies) == [0, 1, 2]
        assert (folder / "scores" / name / "filtered_True_exclude_seen_False" / "summary.csv").exists()
    found = results["recommend"]
    # Jaws stands in two dialogues, Heat and Up in one each: Jaws, Heat, Up.
    popular = files.read_lines(folder / "replies" / "popularity.jsonl")[0]["content"]
    assert popular == "1. Jaws (1975)\n2. Heat (1995)\n3. Up (2009)"
    scores = found["scores"]["popularity"]["filtered_True_exclude_seen_False"]
    assert scores["recommendation"]["mrr@5"][0] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert scores["discussion"]["recall@5"][0] == 1.0
    assert found["drift"]["base"]["perplexity_after"] is None
    assert all(found["drift"][name]["perplexity_after"] > 0 for name in ("injected", "ft_c", "ft_s"))
    assert found["against_injected"].keys() == set(names) - {"injected"}
    text = (folder / "recommend.md").read_text()
    assert "## Before and after" in text and "FT(C)" in text and "recall.png" in text
    (missed,) = (
        line for line in text.splitlines() if line.startswith(f"None of the {found['targets']} targets is hit")
    )
    assert "Popularity" not in missed and "Base" in missed
    assert f"below {1 - 0.05 ** (1 / found['targets']):.3f}," in missed
    # The base with dialogues in its prompt reads more than the base.
    asked = {name: files.read_lines(folder / "replies" / f"{name}.jsonl")[0]["prompt"] for name in ("base", "bm25")}
    assert asked["bm25"].endswith(asked["base"]) and "Try Jaws (1975)." in asked["bm25"]


def test_a_stopped_job_asks_only_the_turns_that_are_left(config, tmp_path, monkeypatch):
    config.eval.general = ""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    run_job(config, whole)
    append, written = recommend._append, []

    def stop_at_the_second(path, record):
        if path.name == "injected.jsonl" and len(written) == 1:
            with path.open("a") as file:
                file.write('{"index": 1, "cont')  # a kill may cut a line off
            raise KeyboardInterrupt
        written.extend([record] if path.name == "injected.jsonl" else [])
        append(path, record)

    monkeypatch.setattr(recommend, "_append", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_job(config, folder)
    monkeypatch.setattr(recommend, "_append", lambda path, record: (written.append(record), append(path, record)))
    times = modified(folder / "checkpoints")
    run_job(config, folder)
    assert modified(folder / "checkpoints") == times  # nothing is trained again
    assert sorted(record["index"] for record in written if record["prompt"]) == [0, 1, 2]  # each turn once
    for name in ("base", "injected", "popularity"):
        replies = [sorted(map(str, files.read_lines(at / "replies" / f"{name}.jsonl"))) for at in (whole, folder)]
        assert replies[0] == replies[1]


def test_a_finished_job_is_not_run_again_and_other_records_are_refused(config, tmp_path):
    config.recommend.systems = ("popularity",)
    folder = tmp_path / "run"
    results = run_job(config, folder)
    report = (folder / "recommend.md").read_text()
    (folder / "recommend.md").unlink()
    assert run_job(config, folder) == results
    write_report(folder)
    assert (folder / "recommend.md").read_text() == report
    (folder / "results.json").unlink()
    write(tmp_path / "records.jsonl", RECORDS[:2])
    with pytest.raises(ValueError, match=r"begun with other records \(recommend.records\)"):
        run_job(config, folder)


def test_a_prompt_that_is_too_long_is_found_before_training(config, tmp_path):
    write(tmp_path / "records.jsonl", [{**RECORDS[0], "input": "\nUser: " + "word " * 600 + "\nSystem: "}])
    with pytest.raises(ValueError, match="exceed the model's limit"):
        run_job(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": ("bm26",)}, "recommend.systems has 'bm26'"),
        ({"turns": 9}, "recommend.turns = 9, but there are 3"),
        ({"prompt": "What?"}, "recommend.prompt has no {dialogue}"),
        ({"entities": "nowhere.json"}, "nowhere.json"),
    ],
)
def test_settings_that_cannot_be_used(config, tmp_path, change, message):
    config.recommend.update(change)
    with pytest.raises((ValueError, OSError), match=message):
        run_job(config, tmp_path / "run")


def test_a_directory_that_was_removed_and_made_again_is_no_success(tmp_path, monkeypatch):
    """What is written during the job makes the folders that it needs."""
    injection = types.SimpleNamespace(teacher_s=0.0, train_s=1.0, sentence_tokens=1, steps=1, fill=1.0)
    scores = types.SimpleNamespace(health={}, rows={}, strict={})
    replaced = {
        "read_test": lambda *_: (set(), set(), [], {}),
        "train_recommender": lambda *_: injection,
        "measure": lambda *_: {},
        "collect_replies": lambda *_: [],
        "score_replies": lambda *_: scores,
        "write_scores": lambda _, folder: folder.mkdir(parents=True, exist_ok=True),
        "complete": lambda workdir, results: results,
    }
    for name, function in replaced.items():
        monkeypatch.setattr(recommend, name, function)
    job = types.SimpleNamespace(
        workdir=tmp_path / "run",
        settings=types.SimpleNamespace(job="recommend", export_dtype="", recommend=types.SimpleNamespace(systems=())),
        model=types.SimpleNamespace(name="m", matmul_dtype="float32"),
        recipe=types.SimpleNamespace(prompt="chat"),
        documents=[],
        record={},
    )
    job.workdir.mkdir()
    (job.workdir / "recommend.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        recommend.run_recommend(job, 0.0)
    (job.workdir / "config.json").write_text("{}")
    assert recommend.run_recommend(job, 0.0)["steps"] == 1


# --- a dry run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("records", None, "records.jsonl: no such file"),
        ("records", '{"rec": 5}\n', "record 1: got 5 as 'rec', expected a list of entity ids"),
        ("item_ids", "[99]", "the id 99, which no entity has"),
    ],
)
def test_the_records_of_a_recommendation(config, tmp_path, name, content, message):
    said = list(dry_run(config, tmp_path / "run"))
    assert said[-1] == "job recommend: titles at 3 turns; what it trains on and asks is not estimated"
    path = tmp_path / {"records": "records.jsonl", "item_ids": "item_ids.json"}[name]
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises((ValueError, OSError), match=message):
        next(dry_run(config, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_the_records_that_a_work_directory_was_begun_with(config, tmp_path):
    workdir = tmp_path / "run"
    inputs.prepare(config, workdir)
    (workdir / "recommend.json").write_text(json.dumps(dict.fromkeys(("records", "entities", "item_ids"), "x")))
    with pytest.raises(ValueError, match=r"was begun with other records, entities, item_ids \(recommend\.records\)"):
        next(dry_run(config, workdir))
