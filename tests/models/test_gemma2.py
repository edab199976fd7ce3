"""Gemma 2: caps on scores and logits, windows in every second layer; parity with transformers."""

import dataclasses

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
    logits_of,
)

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.models.attention import attend
from selfparam_jax.models.decoder import CappedHead, Decoder, apply_head, output_head
from selfparam_jax.models.registry import model_config_from_hf

BASE = {
    "sliding_window": 5,
    "head_dim": 12,
    "query_pre_attn_scalar": 20,
    "tie_word_embeddings": False,
    # Below those of the released models (50 and 30), so that the caps matter; not so low that logits become equal.
    "attn_logit_softcapping": 1.5,
    "final_logit_softcapping": 12.0,
}
CASES = {
    "2b": {},
    "uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "full layers": {"layer_types": ["full_attention"] * 3, "attention_bias": True, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(tmp_path, case):
    config, params, made = check_parity(hf_config("Gemma2Config", **BASE | CASES[case]), tmp_path)
    assert (config.layer_norms, config.norm, config.qk_norm) == ("both", "gemma", None)
    if case != "2b":
        return
    assert [kind.window for kind in config.layer_kinds] == [5, None, 5]
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        other = logits_of(dataclasses.replace(config, **{name: None}), params, tiny.token_ids(14))
        assert np.abs(other - logits_of(config, params, tiny.token_ids(14))).max() > 0.1
    check_invariants(config, params)
    check_generation(config, params, made)
    check_sharded(config, params)
    with pytest.raises(
        ValueError, match=r"attention = 'splash' has no cap on scores.*= 1\.5\); set attention to 'blo"
    ):
        Model("tiny", config, params, None, made.config, "f", attention="splash")
    ids = jnp.zeros((1, 4), jnp.int32)
    for name in ("cudnn", "xla"):
        with pytest.raises(ValueError, match=f"attention = '{name}' has no cap on scores"):
            Decoder(config, attention=name).apply({"params": params}, ids, ids, ids)


def test_every_field_matters():
    refused = {
        "use_bidirectional_attention": (True, "use_bidirectional_attention is not supported"),
        "hidden_activation": ("relu", "hidden_act = 'relu' is not supported"),
    }
    mutations = {
        "layer_types": ["full_attention"] * 3,
        "head_dim": 16,
        "query_pre_attn_scalar": 24,
        "sliding_window": 4,
        "attention_bias": True,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": (0.0, "final_logit_softcapping = 0.0, expected a number above 0"),
        "num_hidden_layers": (2, r"num_hidden_layers.*\(2\) must be equal to the number of `layer_types` \(3\)"),
    }
    shared = {name: value for name, value in MUTATIONS.items() if name != "hidden_act"}
    kinds = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    check_every_field("Gemma2Config", BASE | kinds, shared | mutations | refused)


def test_capped_attention_and_its_gradient_by_hand():
    """In float64 by NumPy; the gradient is that of the plain expression, over two blocks and behind a mask."""
    rng, cap = np.random.default_rng(0), 0.8
    queries, (keys, values) = rng.standard_normal((2, 4, 6, 8)), rng.standard_normal((2, 2, 2, 7, 8))
    mask = rng.random((2, 4, 7)) < 0.6
    mask[:, :, 5] = True

    def plain(queries, keys, values):
        repeated = [jnp.repeat(x, 3, axis=1) for x in (keys, values)]
        scores = jnp.einsum("btnh,bnsh->btns", queries, repeated[0]) / np.sqrt(8)
        weights = jax.nn.softmax(jnp.where(mask[:, :, None], cap * jnp.tanh(scores / cap), -jnp.inf))
        return jnp.einsum("btns,bnsh->btnh", weights, repeated[1])

    def ours(queries, keys, values):
        blocks = [(keys[:, :, :3], values[:, :, :3]), (keys[:, :, 3:], values[:, :, 3:])]
        return attend(queries, blocks, [jnp.asarray(mask[..., :3]), jnp.asarray(mask[..., 3:])], cap)

    given = [jnp.asarray(x, jnp.float32) for x in (queries, keys, values)]
    np.testing.assert_allclose(ours(*given), plain(*given), atol=1e-5)
    for found, expected in zip(
        *(jax.grad(lambda *x, f=f: jnp.sum(jnp.sin(f(*x))), argnums=(0, 1, 2))(*given) for f in (ours, plain)),
        strict=True,
    ):
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_head_is_capped():
    config = model_config_from_hf(hf_config("Gemma2Config", **BASE))
    head = output_head({"embed_tokens": {"embedding": jnp.ones((3, 4))}}, config)
    assert isinstance(head, CappedHead) and head.shape == (3, 4)
    np.testing.assert_allclose(apply_head(jnp.ones((1, 4)), head), np.full((1, 3), 12 * np.tanh(4 / 12)), rtol=1e-6)
