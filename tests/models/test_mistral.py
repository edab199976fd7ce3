"""Mistral: a window in all layers or in none, and the narrow heads of Nemo; parity with transformers."""

import pytest
from families import MUTATIONS, check_every_field, check_invariants, check_parity, hf_config

CASES = {
    "v0.1": {"sliding_window": 5},
    "v0.3": {"sliding_window": None},
    "nemo": {"sliding_window": None, "head_dim": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    config, params, _ = check_parity(hf_config("MistralConfig", **CASES[case]), tmp_path)
    assert (config.sliding_window, config.head_dim) == (CASES[case]["sliding_window"], 6 if case == "nemo" else 8)
    if case == "nemo":
        assert config.head_dim * config.num_attention_heads != config.hidden_size
        check_invariants(config, params)


def test_every_field_matters():
    check_every_field("MistralConfig", {"sliding_window": 5}, MUTATIONS | {"head_dim": 16, "sliding_window": None})


def test_every_field_of_llama_matters():
    mutations = {
        "head_dim": 16,
        "attention_bias": True,
        "mlp_bias": True,
        "pretraining_tp": (2, "pretraining_tp = 2 is not supported"),
    }
    check_every_field("LlamaConfig", {}, MUTATIONS | mutations)
