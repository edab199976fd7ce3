"""Phi-3: fused projections, split when they are read and fused when they are written; parity with transformers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from families import MUTATIONS, check_every_field, check_invariants, check_parity, hf_config
from safetensors.numpy import load_file, save_file

from selfparam_jax.checkpoints.export import save_safetensors
from selfparam_jax.checkpoints.tensors import fingerprint, load_params
from selfparam_jax.checkpoints.weight_files import open_directory
from selfparam_jax.models.registry import model_config_from_hf

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 2.0],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
CASES = {
    "gqa": {},
    "window": {"sliding_window": 5, "num_key_value_heads": 4},
    "longrope": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    config, params, _ = check_parity(hf_config("Phi3Config", **CASES[case]), tmp_path)
    if case == "gqa":
        check_invariants(config, params)
    if case == "longrope":
        assert config.rope_scaling.short_factor == (1.0, 1.1, 1.3, 2.0)
        assert config.rope_scaling.attention_factor == pytest.approx((1 + np.log(4) / np.log(16)) ** 0.5)
        assert config.max_position_embeddings == 16  # longer texts have other frequencies


def test_written_as_transformers_writes_it(tmp_path):
    config, params, _ = check_parity(hf_config("Phi3Config"), tmp_path)
    for shard in (5e9, 20000):
        save_safetensors(params, config, tmp_path / f"{shard:.0f}", np.float32, shard)
        again = load_params(open_directory(tmp_path / f"{shard:.0f}"), config, jnp.float32)
        assert fingerprint(open_directory(tmp_path / f"{shard:.0f}"), config) == fingerprint(
            open_directory(tmp_path), config
        )
        np.testing.assert_array_equal(
            again["layers"]["mlp"]["up_proj"]["kernel"], params["layers"]["mlp"]["up_proj"]["kernel"]
        )
    names = load_file(tmp_path / "5000000000" / "model.safetensors")
    assert sum("qkv_proj" in name or "gate_up_proj" in name for name in names) == 6
    assert len(list((tmp_path / "20000").glob("*.safetensors"))) > 1


def test_wrong_fused_tensors_are_named(tmp_path):
    config, _, _ = check_parity(hf_config("Phi3Config"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.self_attn.qkv_proj.weight"
    whole = tensors.pop(name)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.q_proj\.weight' is missing"):
        load_params(open_directory(tmp_path), config, jnp.float32)
    save_file(tensors | {name: whole[:-1].copy()}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"qkv_proj\.weight' has shape \(63, 32\), expected 64 rows for .*q_proj"):
        load_params(open_directory(tmp_path), config, jnp.float32)


def test_fused_is_part_of_the_identity():
    config = model_config_from_hf(hf_config("Phi3Config"))
    assert config.fused_projections
    assert dataclasses.replace(config, fused_projections=False).identity() != config.identity()


def test_every_field_matters():
    changes = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16, "num_key_value_heads": 2}
    other = LONGROPE | {"short_factor": [1.0, 1.0, 1.0, 1.0]}
    mutations = {
        "original_max_position_embeddings": 32,
        "sliding_window": 5,
        "rope_parameters": other,
        # Heads of 8 dimensions have four factors.
        "hidden_size": (64, "short_factor"),
        "num_attention_heads": (8, "short_factor"),
    }
    check_every_field("Phi3Config", changes, MUTATIONS | mutations)


def test_partial_rotation_is_refused():
    made = hf_config("Phi3Config", rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})
    with pytest.raises(ValueError, match=r"partial_rotary_factor = 0\.5 is not supported"):
        model_config_from_hf(made)
