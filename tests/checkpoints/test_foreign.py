"""What others wrote: configs of transformers 4, and shards as mergekit writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file
from saved_weights import logits_of

from benchmarks.foreign import CASES, SIZES
from selfparam_jax.checkpoints.companions import portable_config
from selfparam_jax.checkpoints.load import load_model, read_architecture, read_hf_config

# config.json of each case of benchmarks/foreign.py, as transformers 4.57.6 wrote it.
WRITTEN = json.loads((Path(__file__).parent / "configs_of_transformers_4.json").read_text())
# The same settings by the names of version 5, where these are others.
NEW = {
    "llama3": {"rope_parameters": {**CASES["llama3"][1]["rope_scaling"], "rope_theta": 5e5}},
    "nemo": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "qwen2": {"rope_parameters": {**CASES["qwen2"][1]["rope_scaling"], "rope_theta": 1e6}},
    "phi3-longrope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            **{name: CASES["phi3-longrope"][1]["rope_scaling"][name] for name in ("short_factor", "long_factor")},
        }
    },
    "gemma3": {
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
}
OLD_NAMES = {"rope_scaling", "rope_theta", "sliding_window_pattern"}


def config_of(fields, folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return read_architecture(folder / "config.json")


@pytest.mark.parametrize("name", CASES)
def test_configs_of_transformers_4(name, tmp_path):
    """They mean what the same settings mean in version 5, and what we write of them is what version 4 wrote."""
    import transformers

    written = WRITTEN[name]
    assert written["transformers_version"].startswith("4.")
    config = config_of(written, tmp_path / "theirs")
    kind, changes = CASES[name]
    new = {**SIZES, **{key: value for key, value in changes.items() if key not in OLD_NAMES}, **NEW.get(name, {})}
    assert config_of(json.loads(getattr(transformers, kind)(**new).to_json_string()), tmp_path / "new") == config
    ours = portable_config(read_hf_config(tmp_path / "theirs" / "config.json"), "float32")
    assert config_of(ours, tmp_path / "ours") == config
    for field in ("rope_theta", "rope_local_base_freq"):
        assert ours.get(field) == written.get(field)
    theirs = written.get("rope_scaling")
    assert (ours["rope_scaling"] is None) == (theirs is None)
    if theirs:
        assert theirs.items() <= ours["rope_scaling"].items()
    if name == "phi3-longrope":  # version 4 refuses any other field
        assert ours["rope_scaling"] == theirs


def test_shards_as_mergekit_writes_them(tmp_path):
    """Files of any names and sizes, tensors of several types in another order, other metadata in the index."""
    made = tiny.save_checkpoint(tmp_path, "gqa")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(made.tensors, reverse=True)
    parts = {"out-1.safetensors": names[:1], "out-2.safetensors": names[1:9], "rest.of.it.safetensors": names[9:]}
    types = ("float32", "float16", "bfloat16")
    stored = {name: made.tensors[name].astype(tiny.jnp.dtype(types[n % 3])) for n, name in enumerate(names)}
    for file, inside in parts.items():
        save_file({name: stored[name] for name in inside}, tmp_path / file, metadata={"format": "pt"})
    index = {
        "metadata": {"mergekit_version": "0.1.3", "total_size": 1},
        "weight_map": {name: file for file, inside in reversed(parts.items()) for name in inside},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    model = load_model(tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    widened = {name: value.astype(np.float32) for name, value in stored.items()}
    save_file(widened, whole / "model.safetensors", metadata={"format": "pt"})
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (whole / file).write_bytes((tmp_path / file).read_bytes())
    other = load_model(whole)
    assert model.fingerprint == other.fingerprint
    ids = tiny.token_ids(5)
    np.testing.assert_array_equal(logits_of(model, ids), logits_of(other, ids))
