"""Qwen3: norms over each head of queries and keys; parity with transformers."""

import pytest
from families import (
    MUTATIONS,
    YARN,
    check_every_field,
    check_gguf,
    check_invariants,
    check_parity,
    hf_config,
    hf_model,
    write_gguf,
)

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.models.registry import model_config_from_hf

CASES = {
    "untied": {"attention_bias": True},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "windows of some layers": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "yarn": {"rope_parameters": YARN},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    config, params, made = check_parity(hf_config("Qwen3Config", head_dim=12, **CASES[case]), tmp_path)
    assert config.qk_norm == "head"
    if case == "windows of some layers":
        assert (config.sliding_window, config.windowed_layers) == (5, (False, True, True))
        check_invariants(config, params)
    if case == "untied":
        check_gguf(made, tmp_path, "qwen3", "qwen2")


def test_yarn_in_gguf(tmp_path):
    rope = {name: value for name, value in YARN.items() if name != "beta_fast"}  # llama.cpp has the default
    made = hf_model(hf_config("Qwen3Config", head_dim=8, rope_parameters=rope))
    made.save_pretrained(tmp_path)
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 32}
    scaling = {f"rope__scaling__{name}": value for name, value in scaling.items()}
    check_gguf(made, tmp_path, "qwen3", "qwen2", **scaling)
    write_gguf(tmp_path / "other.gguf", made, "qwen3", "qwen2", **scaling, rope__scaling__attn_factor=0.5)
    with pytest.raises(ValueError, match=r"rope\.scaling\.attn_factor = 0\.5 is not supported"):
        load_model(tmp_path / "other.gguf")


def test_every_field_matters():
    changes = {"head_dim": 8, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    mutations = {
        "head_dim": 16,
        "attention_bias": True,
        "use_sliding_window": False,
        "sliding_window": 4,
        "max_window_layers": 2,
        "layer_types": ["sliding_attention"] * 3,
    }
    check_every_field("Qwen3Config", changes, MUTATIONS | mutations)


def test_other_layers_are_refused():
    made = hf_config("Qwen3Config", head_dim=8)
    made.layer_types = ["chunked_attention"] * 3
    with pytest.raises(ValueError, match=r"layer_types = \['chunked_attention'\] is not supported, expected 'full_"):
        model_config_from_hf(made)
