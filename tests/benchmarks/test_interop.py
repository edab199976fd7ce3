"""The injected model asked of every reader: a tiny job through all of them, and the comparison by hand."""

import numpy as np
import pytest
import tiny
from extras import require
from job_inputs import batch_config

from selfparam_jax.jobs.run import run_job

interop = tiny.benchmark("interop")


def test_every_reader_answers_as_ours(model_dir, tmp_path):
    for name in ("torch", "peft", "fastapi", "uvicorn"):
        require(name)
    config = batch_config(model_dir, tmp_path)
    config.export_dtype, config.eval.general, config.systems, config.eval.reach = "", "", (), "none"
    config.train.epochs = 2
    run_job(config, tmp_path / "run")
    told = []
    found = interop.run(str(tmp_path / "run"), config.contexts, tmp_path, lambda *row: told.append(row))
    assert [name for name, _ in told] == list(found)
    assert list(found)[:4] == ["transformers, merged", "transformers + PEFT", "selfparam serve", "ours, f16 file"]
    for name in ("transformers, merged", "transformers + PEFT"):
        assert (found[name]["questions"], found[name]["same"]) == (3, 3)
        assert 0 < found[name]["logits"] < 1e-3
    assert found["selfparam serve"]["same"] == 3 and found["selfparam serve"]["logits"] is None
    assert found["ours, f16 file"]["logits"] < 0.1
    for each in found.values():
        assert all(one["rounding"] for one in each.get("differences", ()))


class Prompt:
    """Words by number; 0 ends an answer."""

    stop_ids = (0,)

    def reply(self, ids):
        return " ".join(".abc"[n] for n in ids if n), True


def test_a_difference_is_rounding_if_the_margin_is_small():
    """Ours prefers b to c by 0.05; a reader whose logits are 0.03 and one whose logits are 0.01 away prefer c."""
    ours = [np.array([0.0, 3.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.05, 1.0])]
    asked = interop.Asked(Prompt(), [[5]], [[1, 2]], [np.stack(ours)])
    for away, rounding in ((0.03, True), (0.01, False)):
        found = interop.compare(asked, ["?"], [([1, 3], [ours[0], ours[1] + away])])
        assert (found["questions"], found["same"]) == (1, 0)
        assert found["logits"] == pytest.approx(away)
        (one,) = found["differences"]
        assert (one["ours"], one["theirs"], one["margin"]) == ("a b", "a c", pytest.approx(0.05))
        assert one["rounding"] == rounding
    assert interop.table_row("x", found) == "| x | 0 of 1 | 1.0e-02 | 'a b' / 'a c' (margin 5.0e-02) |"
    same = interop.compare(asked, ["?"], [([1, 2, 0], None)])
    assert (same["same"], same["logits"], same["differences"]) == (1, None, [])
