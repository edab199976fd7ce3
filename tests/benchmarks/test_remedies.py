"""The measurement of remedies for forgetting: their jobs, the table, and real ones on a tiny model."""

import json

import pytest
import tiny
from selfparam_jax.configs import sequential

from selfparam_jax.distributed import files
from selfparam_jax.jobs.settings import read_settings

remedies = tiny.benchmark("remedies")


@pytest.fixture
def flags(tmp_path, monkeypatch):
    model, contexts = tmp_path / "model", tmp_path / "contexts.jsonl"
    tiny.save_checkpoint(model, "gqa", max_position_embeddings=2048)
    pairs = [{"question": f"Who is number {n}?", "answer": "Ana Bell"} for n in range(3)]
    asked = [{"question": "Who?", "answers": ["Ana"]}]
    lines = [{"id": name, "context": f"Text {name}.", "questions": asked, "qa_pairs": pairs} for name in "ab"]
    contexts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {"CONTEXTS": str(contexts), "OUT": str(tmp_path / "out"), "LENGTH": 2, "SEQUENCES": 1, "PAIRS": 2}
    for name, value in (values | {"MODEL": str(model), "PROMPT": "plain", "ONLY": []}).items():
        monkeypatch.setattr(remedies, name, type("Flag", (), {"value": value}))
    return tmp_path


def test_every_remedy_is_the_published_job_with_its_own_changes_alone(flags):
    def flat(config):
        return {
            f"{section}.{key}": value
            for section in ("sequential", "targets", "train")
            for key, value in config[section].items()
        }

    nothing = flat(remedies.config_of({}))
    for _, changes in remedies.REMEDIES.values():
        found = flat(remedies.config_of(changes))
        different = {key for key in found if found[key] != nothing[key]}
        # What the published job has already is no change.
        assert different == set(changes)
        read_settings(remedies.config_of(changes))


def test_all_together_is_the_configuration_for_users(flags):
    config, ours = sequential.get_config(), remedies.REMEDIES["together"][1]
    published = sequential.get_config("published")
    for section in ("sequential", "targets", "train"):
        for key, value in config[section].items():
            assert ours.get(f"{section}.{key}", published[section][key]) == value, f"{section}.{key}"


def test_the_table_by_hand():
    row = {
        "name": "a", "label": "b", "f1_just_injected": 0.4, "f1_final": 0.3, "f1_retention": 0.75,
        "likelihood_before": -4.0, "likelihood_just_injected": -1.0, "likelihood_final": -2.0,
        "perplexity": 0.125, "seconds": 20.0, "steps": 40.0, "bytes": 0.0,
    }  # fmt: skip
    lines = remedies.table_of(
        [row, {**row, "f1_retention": None, "seconds": 30.0, "steps": 50.0, "bytes": 1.25e6}]
    ).splitlines()
    assert lines[2] == "| a: b | 0.400 | 0.300 | 0.75 | -4.00, -1.00, -2.00 | +12.5% | 1.00 | 1.00 | 0.0 MB |"
    assert lines[3] == "| a: b | 0.400 | 0.300 |  | -4.00, -1.00, -2.00 | +12.5% | 1.25 | 1.50 | 1.2 MB |"
    assert len({line.count("|") for line in lines}) == 1


def test_real_jobs(flags, monkeypatch, capsys):
    monkeypatch.setattr(remedies, "ONLY", type("Flag", (), {"value": ["nothing", "replay"]}))
    of_remedy = remedies.config_of

    def small(changes):
        config = of_remedy(changes)
        config.train.update(epochs=1, batch_size=8)
        return config

    monkeypatch.setattr(remedies, "config_of", small)
    remedies.measure_all()
    rows = files.read_json(flags / "out" / "remedies.json")["rows"]
    assert [row["name"] for row in rows] == ["nothing", "replay"]
    assert rows[0]["bytes"] == 0 and rows[1]["bytes"] > 0
    assert rows[0]["likelihood_before"] != rows[0]["likelihood_final"] != rows[1]["likelihood_final"]
    assert rows[0]["perplexity"] != 0 and rows[0]["steps"] == rows[1]["steps"] == 1  # all in eight rows
    assert (flags / "out" / "remedies.md").read_text() == remedies.table_of(rows)
    assert remedies.table_of(rows) in capsys.readouterr().out


def test_an_unknown_remedy_is_refused(flags, monkeypatch):
    monkeypatch.setattr(remedies, "ONLY", type("Flag", (), {"value": ["prayer"]}))
    with pytest.raises(ValueError, match="--only has prayer, expected some of nothing, text"):
        remedies.measure_all()
