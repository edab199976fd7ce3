"""SmolLM3: layers without a rotary embedding; parity with transformers."""

import dataclasses

import numpy as np
import pytest
import tiny
from families import (
    MUTATIONS,
    YARN,
    check_every_field,
    check_gguf,
    check_invariants,
    check_parity,
    hf_config,
    hf_model,
    logits_of,
)

from selfparam_jax.models.registry import model_config_from_hf

CASES = {
    "every second layer": {"no_rope_layer_interval": 2},
    "biases, windows": {
        "no_rope_layers": [0, 1, 1],
        "use_sliding_window": True,
        "sliding_window": 5,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": False,
    },
    "yarn": {"rope_parameters": YARN},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    config, params, made = check_parity(hf_config("SmolLM3Config", **CASES[case]), tmp_path)
    rotated = {"every second layer": (True, False, True), "biases, windows": (False, True, True), "yarn": ()}
    assert config.rotated_layers == rotated[case]
    if case == "biases, windows":
        assert config.windowed_layers == (True, False, False)
        check_invariants(config, params)
    if case == "every second layer":  # the order of the flags matters
        ids = tiny.token_ids(14)
        other = dataclasses.replace(config, rotated_layers=(False, True, True))
        assert np.abs(logits_of(other, params, ids) - tiny.hf_logits(made, ids)).max() > 1e-2


def test_gguf(tmp_path):
    """llama.cpp reorders rows of q and k, and takes every fourth layer for one without a rotary embedding."""
    made = hf_model(hf_config("SmolLM3Config", num_hidden_layers=5))
    made.save_pretrained(tmp_path)
    check_gguf(made, tmp_path, "smollm3", "llama-bpe", paired_rows=True)
    assert model_config_from_hf(made.config).rotated_layers == (True, True, True, False, True)


def test_every_field_matters():
    changes = {
        "no_rope_layer_interval": 2,
        "use_sliding_window": True,
        "sliding_window": 5,
        "tie_word_embeddings": False,
    }
    mutations = {
        "no_rope_layer_interval": 3,
        "no_rope_layers": [1, 1, 1],
        "use_sliding_window": False,
        "sliding_window": 4,
        "layer_types": ["full_attention"] * 3,
        "attention_bias": True,
        "mlp_bias": True,
    }
    check_every_field("SmolLM3Config", changes, MUTATIONS | mutations)
