"""OLMo 2: norms after the blocks and over all of queries and keys; parity with transformers."""

import jax.numpy as jnp
import numpy as np
import pytest
from extras import require
from families import (
    MUTATIONS,
    check_every_field,
    check_gguf,
    check_invariants,
    check_parity,
    check_sharded,
    hf_config,
)

from selfparam_jax.models.decoder import RMSNorm


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4, "attention_bias": True}])
def test_logits_equal_transformers(tmp_path, changes):
    config, params, made = check_parity(hf_config("Olmo2Config", **changes), tmp_path)
    assert (config.layer_norms, config.norm, config.qk_norm) == ("post", "olmo2", "whole")
    if not changes:
        assert params["layers"]["self_attn"]["k_norm"]["weight"].shape == (3, 16)
        check_invariants(config, params)
        check_sharded(config, params)
        check_gguf(made, tmp_path, "olmo2", "dbrx")


def test_norm_in_bfloat16():
    """The weight is applied before rounding."""
    torch = require("torch")
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 50, 32)).astype(np.float32), rng.standard_normal(32).astype(np.float32)
    theirs = Olmo2RMSNorm(32, eps=1e-6)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(weight))
        expected = theirs(torch.from_numpy(x).bfloat16()).float().numpy()
    params, rounded = {"weight": jnp.asarray(weight)}, jnp.asarray(x, jnp.bfloat16)
    found = {kind: RMSNorm(1e-6, kind).apply({"params": params}, rounded) for kind in ("olmo2", "llama")}
    differing = {kind: np.mean(np.asarray(each, np.float32) != expected) for kind, each in found.items()}
    assert differing["olmo2"] < 0.01 < 0.1 < differing["llama"]


def test_every_field_matters():
    check_every_field("Olmo2Config", {}, MUTATIONS | {"attention_bias": True})
