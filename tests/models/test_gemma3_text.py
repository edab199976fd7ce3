"""Gemma 3: windows and a rotary embedding of their own in some layers; parity with transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from families import (
    MUTATIONS,
    check_every_field,
    check_generation,
    check_invariants,
    check_parity,
    check_sharded,
    hf_config,
)

from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.models.registry import model_config_from_hf

ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
BASE = {
    "rope_parameters": ROPE,
    "sliding_window": 5,
    "head_dim": 12,
    "query_pre_attn_scalar": 20,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "tie_word_embeddings": False,
}
CASES = {
    "1b": {},
    "full layers": {"layer_types": ["full_attention"] * 3, "tie_word_embeddings": True},
    "windows": {"layer_types": ["sliding_attention"] * 3, "attention_bias": True},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    config, params, made = check_parity(hf_config("Gemma3TextConfig", **BASE | CASES[case]), tmp_path)
    assert (config.layer_norms, config.norm, config.qk_norm) == ("both", "gemma", "head")
    if case == "1b":
        kinds = [(kind.window, kind.rope) for kind in config.layer_kinds]
        assert kinds == [(5, "local"), (None, "global"), (5, "local")]
        check_invariants(config, params)
        check_gradients(config, params)
        check_generation(config, params, made)
        check_sharded(config, params)


def check_gradients(config, params):
    """The same with remat, and in every layer of every projection."""
    ids = jnp.asarray(tiny.token_ids(9))
    positions = jnp.broadcast_to(jnp.arange(9)[None], ids.shape)
    lora = jax.tree.map(lambda leaf: leaf + 0.05, init_lora(jax.random.key(0), params, LoraConfig(rank=2)))

    @functools.partial(jax.jit, static_argnames="remat")
    def gradient(lora, remat):
        def loss(lora):
            variables = {"params": params, "lora": lora}
            return jnp.sum(jnp.sin(Decoder(config, remat=remat).apply(variables, ids, positions, ids * 0 + 1)[0]))

        return jax.grad(loss)(lora)

    plain, again = gradient(lora, "none"), gradient(lora, "layers")
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-4)
        assert all(np.abs(layer).max() > 0 for layer in left)


def test_every_field_matters():
    refused = {
        "final_logit_softcapping": (30.0, "final_logit_softcapping = 30.0 is not supported"),
        "attn_logit_softcapping": (50.0, "attn_logit_softcapping = 50.0 is not supported"),
        "use_bidirectional_attention": (True, "use_bidirectional_attention = True is not supported"),
        "hidden_activation": ("relu", "hidden_act = 'relu' is not supported"),
    }
    mutations = {
        "layer_types": ["full_attention"] * 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 4,
        "attention_bias": True,
        "rope_parameters": ROPE | {"sliding_attention": {"rope_type": "default", "rope_theta": 500.0}},
        "num_hidden_layers": (2, r"num_hidden_layers.*\(2\) must be equal to the number of `layer_types` \(3\)"),
    }
    shared = {name: value for name, value in MUTATIONS.items() if name != "hidden_act"}
    check_every_field("Gemma3TextConfig", BASE, shared | mutations | refused)


def test_scaled_local_layers_are_refused():
    rope = ROPE | {"sliding_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}
    with pytest.raises(ValueError, match="rope_type = 'linear' is not supported for the layers with a sliding"):
        model_config_from_hf(hf_config("Gemma3TextConfig", **BASE | {"rope_parameters": rope}))
