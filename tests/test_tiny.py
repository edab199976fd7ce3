"""The checkpoints that tests make without torch are those that transformers writes."""

import pytest
import tiny
from extras import require
from safetensors.numpy import load_file


@pytest.mark.parametrize("case", tiny.CASES)
def test_a_checkpoint_is_what_transformers_writes(tmp_path, case):
    require("torch")
    model = tiny.hf_model(case)
    model.save_pretrained(tmp_path / "theirs")
    tiny.save_checkpoint(tmp_path / "ours", case)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    ours, theirs = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys() == tiny.hf_tensors(model).keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
