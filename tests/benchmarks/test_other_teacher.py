"""The measurement of a student in 4 bits: its rounding by hand, its jobs, the table, and real jobs."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from job_inputs import DOCUMENTS, write

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.distributed import files

other_teacher = tiny.benchmark("other_teacher")


def test_the_rounding_by_hand():
    kernel = jnp.asarray([[7.0, 0.1], [-3.4, 0.0], [1.0, 0.0], [0.26, 0.0]])
    rounded = other_teacher.round_to_4_bits(kernel, group=2)
    # Scales by group and column: 1 and 0.1 / 7, then 1 / 7 and none.
    np.testing.assert_allclose(rounded, [[7, 0.1], [-3, 0], [1, 0], [2 / 7, 0]], atol=1e-6)
    stacked = other_teacher.round_to_4_bits(jnp.stack([kernel, -kernel]), group=2)
    np.testing.assert_array_equal(stacked[1], -rounded)
    with pytest.raises(ValueError, match="4 inputs has no whole groups of 3"):
        other_teacher.round_to_4_bits(kernel, group=3)


def test_the_table_by_hand():
    row = {"name": "own", "what": "a", "base_q": 0.1, "base_cq": 0.5, "injected": 0.75, "perplexity_before": 20.0,
           "perplexity_after": 21.5, "kl": 0.01234, "steps": 40, "teacher_s": 2.0, "train_s": 20.4}  # fmt: skip
    lines = other_teacher.table_of([row]).splitlines()
    assert lines[2] == "| own: a | 0.100 | 0.500 | 0.750 | 20.00 | 21.50 | 0.0123 | 40 | 2 s | 20 s |"
    assert len({line.count("|") for line in lines}) == 1


def test_real_jobs(tmp_path, monkeypatch, capsys):
    """On a tiny model: the same student twice, with two teachers."""
    tiny.save_checkpoint(tmp_path / "model", "gqa", max_position_embeddings=2048, intermediate_size=64)
    values = {"OUT": str(tmp_path / "out"), "MODEL": str(tmp_path / "model"), "ONLY": ["own", "other"], "QUICK": True}
    values["CONTEXTS"] = str(write(tmp_path / "documents.jsonl", DOCUMENTS[:2]))
    for name, value in values.items():
        monkeypatch.setattr(other_teacher, name, type("Flag", (), {"value": value}))
    config_of = other_teacher.config_of

    def small(name):
        config = config_of(name)
        config.prompt, config.eval.general, config.targets.unrelated_per_epoch = "plain", "", 0
        config.targets.qa_per_context = 0  # the documents of tests have three pairs
        config.train.update(epochs=1, batch_size=8)
        return config

    monkeypatch.setattr(other_teacher, "config_of", small)
    monkeypatch.setattr(other_teacher, "table_of", lambda rows: f"{len(rows)} rows")
    other_teacher.measure_all()
    own, other = files.read_json(tmp_path / "out" / "other_teacher.json")["rows"]
    assert own["steps"] == other["steps"] > 0 and own["base_cq"] == other["base_cq"]
    assert capsys.readouterr().out == "2 rows\n"
    whole, student = (load_model(tmp_path / name) for name in ("model", "out/student"))
    kernel = student.params["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_allclose(
        kernel, other_teacher.round_to_4_bits(whole.params["layers"]["mlp"]["up_proj"]["kernel"]), atol=1e-6
    )
    assert all(len(np.unique(np.asarray(kernel[0, :, column]))) <= 15 for column in range(8))
    records = [files.read_json(tmp_path / "out" / name / "injection.json") for name in ("own", "other")]
    assert "teacher" not in records[0] and records[1]["teacher"]["fingerprint"] == whole.fingerprint
