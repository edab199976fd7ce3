"""The parity ladder against transformers, then what must hold for packed, padded and continued rows."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import require

from selfparam_jax.checkpoints.default_model import default_model_file
from selfparam_jax.inference.decoding import generate
from selfparam_jax.inference.prefix import read_prefix
from selfparam_jax.models import decoder as ours
from selfparam_jax.models import rope
from selfparam_jax.models.architecture import ROPE_FIELDS, RopeScaling
from selfparam_jax.models.decoder import (
    Decoder,
    ModelConfig,
    apply_head,
    output_head,
    param_shapes,
)
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.models.masks import EMPTY, PADDING, SHARED, visible
from selfparam_jax.models.parameters import fused_tensors
from selfparam_jax.models.registry import model_config_from_hf

RUNG = 1e-5  # of one part of the model
LOGITS = 1e-4


@functools.partial(jax.jit, static_argnames="decoder")
def run(decoder, params, ids, positions, segments, past):
    return decoder.apply({"params": params}, ids, positions, segments, past)


def read(config, params, ids, positions=None, segments=None, past=(), **attributes):
    """(hidden, KeyValues) of rows; by default one text per row, from its beginning."""
    ids = jnp.asarray(ids, jnp.int32)
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape) if positions is None else positions
    segments = np.ones(ids.shape) if segments is None else segments
    positions, segments = jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32)
    return run(Decoder(config, **attributes), params, ids, positions, segments, past)


def logits_of(config, params, ids, **how):
    return np.asarray(apply_head(read(config, params, ids, **how)[0], output_head(params, config)))


def layer(params, index=0):
    return jax.tree.map(lambda leaf: leaf[index], params["layers"])


def close(found, expected, atol=RUNG):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1  # not a comparison of nothing with nothing
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def activations(length=9, features=32, seed=3):
    return np.random.default_rng(seed).standard_normal((2, length, features)).astype(np.float32)


def rows_of(length):
    """Positions of two rows; the second does not start at 0."""
    return np.stack([np.arange(length), 7 + np.arange(length)]).astype(np.int32)


def hf_block_inputs(model, length):
    """(cos, sin) and the additive mask that transformers itself makes for a row."""
    torch = require("torch")
    from transformers import masking_utils

    config = model.config
    window = getattr(config, "sliding_window", None) if config.model_type == "mistral" else None
    make = masking_utils.create_sliding_window_causal_mask if window else masking_utils.create_causal_mask
    mask = make(
        config,
        torch.zeros(2, length, config.hidden_size),
        None,
        None,  # nothing was read before; the argument's name differs between versions
        position_ids=torch.arange(length)[None].expand(2, -1),
    )
    cos_sin = model.model.rotary_emb(torch.zeros(1), torch.from_numpy(rows_of(length)).long())
    return cos_sin, mask


def our_block_inputs(config, length):
    positions = jnp.asarray(rows_of(length))
    ones = jnp.ones_like(positions)
    cos, sin = rope.rotary_angles(config, positions)
    return cos, sin, visible(positions, ones, positions, ones, config.sliding_window)


# --- the ladder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [1e-6, 1e-2])
@pytest.mark.parametrize("size", [1.0, 0.03])
def test_rms_norm(epsilon, size):
    torch = require("torch")
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x, weight = size * activations(), activations(1)[0, 0]
    theirs = LlamaRMSNorm(32, eps=epsilon)
    with torch.no_grad():
        theirs.weight.copy_(torch.from_numpy(weight))
        expected = theirs(torch.from_numpy(x)).numpy()
    close(ours.RMSNorm(epsilon).apply({"params": {"weight": jnp.asarray(weight)}}, jnp.asarray(x)), expected)


@pytest.mark.parametrize("case", ["gqa", "linear", "llama3"])
def test_rope(case):
    torch = require("torch")
    from transformers.models.llama import modeling_llama

    hf_config = tiny.hf_config(case, head_dim=16)
    config = model_config_from_hf(hf_config)
    rotary = modeling_llama.LlamaRotaryEmbedding(hf_config)
    frequencies = rope.rope_frequencies(config)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, rotary.inv_freq.numpy(), rtol=1e-6)
    if case == "llama3":  # kept, interpolated and slowed frequencies are all among them
        slowed = frequencies / rope.rope_frequencies(dataclasses.replace(config, rope_scaling=None))
        assert {"kept", "between", "slowed"} == {
            "kept" if s > 0.999 else "slowed" if s < 0.126 else "between" for s in slowed
        }

    positions = np.array([[0, 1, 2, 5, 31, 63], [9, 8, 0, 40, 41, 62]])
    vectors = np.random.default_rng(0).standard_normal((2, 6, 3, 16)).astype(np.float32)
    cos, sin = rotary(torch.zeros(1), torch.from_numpy(positions))
    swapped = torch.from_numpy(vectors.swapaxes(1, 2).copy())
    expected, _ = modeling_llama.apply_rotary_pos_emb(swapped, swapped, cos, sin)
    found = rope.rotate(jnp.asarray(vectors), *rope.rotary_angles(config, jnp.asarray(positions)))
    close(found, expected.numpy().swapaxes(1, 2))


@pytest.mark.parametrize("case", ["mqa", "gqa", "mha", "biases", "head_dim", "mistral"])
def test_attention(case, from_hf):
    torch = require("torch")
    theirs = tiny.hf_model(case)
    config, params = from_hf(theirs)
    x, length = activations(), 9
    cos_sin, hf_mask = hf_block_inputs(theirs, length)
    with torch.no_grad():
        expected = theirs.model.layers[0].self_attn(torch.from_numpy(x), cos_sin, hf_mask)[0].numpy()
    cos, sin, mask = our_block_inputs(config, length)
    attention = ours.Attention(config, 1.0, 0.0, None)
    found, _ = attention.apply({"params": layer(params)["self_attn"]}, jnp.asarray(x), cos, sin, [mask], [], True)
    close(found, expected)


@pytest.mark.parametrize("case", ["gqa", "mistral"])
def test_mask(case, from_hf):
    theirs = tiny.hf_model(case)
    _, hf_mask = hf_block_inputs(theirs, 9)
    mask = np.asarray(our_block_inputs(from_hf(theirs)[0], 9)[2])
    np.testing.assert_array_equal(mask, hf_mask[:, 0].numpy() == 0)
    assert mask[0].sum() == {"gqa": 45, "mistral": 15 + 4 * 5}[case]  # the window of 5 is shorter than 9


@pytest.mark.parametrize("case", ["gqa", "biases", "mistral"])
def test_block(case, from_hf):
    torch = require("torch")
    theirs = tiny.hf_model(case)
    config, params = from_hf(theirs)
    x = activations()
    cos_sin, hf_mask = hf_block_inputs(theirs, 9)
    with torch.no_grad():
        expected = theirs.model.layers[1](
            torch.from_numpy(x), attention_mask=hf_mask, position_embeddings=cos_sin
        ).numpy()
    cos, sin, mask = our_block_inputs(config, 9)
    block = ours.DecoderLayer(config, 1.0, 0.0, True, None)
    found, _ = block.apply({"params": layer(params, 1)}, jnp.asarray(x), [], cos, sin, [mask])
    close(found, expected)


@pytest.mark.parametrize(
    ("case", "changes"),
    [(case, {}) for case in tiny.CASES]
    + [
        ("gqa", {"attention_bias": True}),
        ("gqa", {"mlp_bias": True}),
        ("tied", {"attention_bias": True, "num_key_value_heads": 1}),
        ("llama3", {"head_dim": 16, "tie_word_embeddings": True}),
        ("mistral", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    ],
)
def test_logits(case, changes, from_hf):
    theirs = tiny.hf_model(case, **changes)
    ids = tiny.token_ids(21)
    expected = tiny.hf_logits(theirs, ids)
    assert expected.std() > 0.5
    close(logits_of(*from_hf(theirs), ids), expected, LOGITS)


# --- packed, padded, continued ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["full", "window"])
def small(request, tiny_model):
    """Config and parameters, with full attention and with a window of 4."""
    window = {"full": None, "window": 4}[request.param]
    return dataclasses.replace(tiny_model.config, sliding_window=window), tiny_model.params


def test_packed_rows_equal_separate_rows(small):
    lengths, seq_len = [[6, 3, 5], [9, 1]], 16
    texts = [[tiny.token_ids(n, 1, seed=n)[0] for n in row] for row in lengths]
    ids, positions, segments = (np.zeros((2, seq_len), np.int32) for _ in range(3))
    for row, members in enumerate(texts):
        filled = np.concatenate(members)
        ids[row, : len(filled)] = filled
        positions[row, : len(filled)] = np.concatenate([np.arange(len(text)) for text in members])
        segments[row, : len(filled)] = np.repeat(np.arange(1, len(members) + 1), lengths[row])
    packed, _ = read(*small, ids, positions, segments)
    for row, members in enumerate(texts):
        starts = np.cumsum([0, *lengths[row]])
        for text, start in zip(members, starts, strict=False):
            alone, _ = read(*small, text[None])
            close(packed[row, start : start + len(text)], alone[0])


def test_padding_changes_nothing(small):
    ids = tiny.token_ids(9)
    alone, _ = read(*small, ids)
    for filling in (0, 77):
        padded = np.concatenate([ids, np.full((2, 7), filling)], axis=1)
        positions = np.where(np.arange(16) < 9, np.arange(16), 0)[None].repeat(2, 0)
        segments = np.where(np.arange(16) < 9, 1, PADDING)[None].repeat(2, 0)
        found, _ = read(*small, padded, positions, segments)
        close(found[:, :9], alone, 2e-6)  # four roundings of the largest logits: other lengths are other programs
        assert np.isfinite(found).all()


@pytest.mark.parametrize("shared", [True, False])
def test_prefix_and_continuation_equal_the_full_row(small, shared):
    whole = tiny.token_ids(15, 3)
    if shared:
        whole[:] = np.where(np.arange(15) < 8, whole[:1], whole)
    expected, _ = read(*small, whole)
    prefix_ids = whole[:1, :8] if shared else whole[:, :8]
    head, prefix = read(*small, prefix_ids, segments=np.full(prefix_ids.shape, SHARED))
    close(head, expected[: len(head), :8])
    assert prefix.keys.shape == (3, len(prefix_ids), 2, 8, 8)
    positions = np.broadcast_to(np.arange(8, 15), (3, 7))
    found, _ = read(*small, whole[:, 8:], positions, past=(prefix,))
    close(found, expected[:, 8:])
    without, _ = read(*small, whole[:, 8:], positions)
    assert np.abs(without - expected[:, 8:]).max() > 0.1  # the prefix matters
    # Two blocks of past in place of one.
    middle_positions = np.broadcast_to(np.arange(8, 11), (3, 3))
    _, middle = read(*small, whole[:, 8:11], middle_positions, np.full((3, 3), SHARED), past=(prefix,))
    last = np.broadcast_to(np.arange(11, 15), (3, 4))
    found, _ = read(*small, whole[:, 11:], last, past=(prefix, middle))
    close(found, expected[:, 11:])


def test_empty_slots_change_nothing(small):
    prefix_ids, rest = tiny.token_ids(8, 1), tiny.token_ids(6, 3, seed=1)
    positions = np.broadcast_to(np.arange(8, 14), rest.shape)
    _, prefix = read(*small, prefix_ids, segments=np.full((1, 8), SHARED))
    expected, _ = read(*small, rest, positions, past=(prefix,))
    padded_ids = np.concatenate([prefix_ids, [[5, 6, 7]]], axis=1)
    for empty_positions in ([8, 9, 10], [0, 0, 0]):
        _, padded = read(
            *small,
            padded_ids,
            np.array([[*range(8), *empty_positions]]),
            np.where(np.arange(11) < 8, SHARED, EMPTY)[None],
        )
        found, _ = read(*small, rest, positions, past=(padded,))
        close(found, expected, 1e-6)


@pytest.mark.parametrize("remat", ["layers", "products"])
def test_remat_changes_nothing(tiny_model, remat):
    config, params = tiny_model.config, tiny_model.params
    ids = jnp.asarray(tiny.token_ids(7))
    positions = jnp.broadcast_to(jnp.arange(7)[None], ids.shape)

    @functools.partial(jax.jit, static_argnames="remat")
    def value_and_gradient(params, remat):
        def loss(params):
            hidden, _ = Decoder(config, remat=remat).apply({"params": params}, ids, positions, jnp.ones_like(ids))
            return jnp.sum(jnp.sin(hidden))

        return jax.value_and_grad(loss)(params)

    plain, again = value_and_gradient(params, "none"), value_and_gradient(params, remat)
    for left, right in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain[1]["layers"]))
    text = str(jax.make_jaxpr(lambda p: value_and_gradient(p, remat))(params))
    assert "remat" in text or "checkpoint" in text


def test_bfloat16(tiny_model):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_model.params)
    ids = tiny.token_ids(20)
    hidden, key_values = read(tiny_model.config, params, ids, dtype=jnp.bfloat16)
    assert hidden.dtype == key_values.keys.dtype == key_values.values.dtype == jnp.bfloat16
    found = logits_of(tiny_model.config, params, ids, dtype=jnp.bfloat16)
    assert found.dtype == np.float32
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    expected = logits_of(tiny_model.config, rounded, ids)
    assert 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.03 * expected.std()


def test_head_of_any_rank():
    rng = np.random.default_rng(0)
    hidden, weight = rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 4))
    found = apply_head(jnp.asarray(hidden, jnp.float32), jnp.asarray(weight, jnp.float32))
    np.testing.assert_allclose(found, hidden @ weight.T, rtol=1e-5, atol=1e-5)
    half = apply_head(jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(weight, jnp.float32))
    assert half.dtype == jnp.float32


# --- every field is alive -----------------------------------------------------------------------------

LLAMA3 = RopeScaling("llama3", 8.0, 1.0, 4.0, 32)
# Field -> another value, and how it must show: other logits, other parameter shapes, another limit, or other files.
CONFIG_MUTATIONS = {
    "vocab_size": (273, "shapes"),
    "hidden_size": (40, "shapes"),
    "intermediate_size": (50, "shapes"),
    "num_hidden_layers": (2, "shapes"),
    "num_attention_heads": (2, "shapes"),
    "num_key_value_heads": (1, "shapes"),
    "head_dim": (4, "shapes"),
    "rms_norm_eps": (0.1, "logits"),
    "rope_theta": (500.0, "logits"),
    "max_position_embeddings": (8, "limit"),
    "rope_scaling": (None, "logits"),
    "sliding_window": (5, "logits"),
    "biased_projections": (("k_proj", "up_proj"), "shapes"),
    "tie_word_embeddings": (True, "shapes"),
    "hidden_act": ("gelu_pytorch_tanh", "logits"),
    "windowed_layers": ((True, False, True), "logits"),
    "rotated_layers": ((True, True, False), "logits"),
    "local_rope_theta": (500.0, "logits"),
    "layer_norms": ("both", "shapes"),
    "norm": ("gemma", "logits"),
    "qk_norm": ("head", "shapes"),
    "query_pre_attn_scalar": (64.0, "logits"),
    "embedding_scale": (3.0, "logits"),
    "fused_projections": (True, "files"),
    "attn_logit_softcapping": (1.0, "logits"),
    "final_logit_softcapping": (2.0, "logits"),
}
YARN = RopeScaling("yarn", 4.0, None, None, 256, attention_factor=1.1, beta_fast=32.0, beta_slow=1.0, truncate=True)
LONGROPE = RopeScaling("longrope", attention_factor=1.1, short_factor=(1.0, 1.1, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0))
SCALING_MUTATIONS = [
    (RopeScaling("linear", 8.0), {"factor": 4.0}),
    (
        LLAMA3,
        {
            "factor": 4.0,
            "low_freq_factor": 0.5,
            "high_freq_factor": 8.0,
            "original_max_position_embeddings": 64,
        },
    ),
    (
        YARN,
        {
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.3,
            "beta_fast": 4.0,
            "beta_slow": 0.25,
            "truncate": False,
        },
    ),
    (LONGROPE, {"attention_factor": 1.3, "short_factor": (1.0,) * 8}),
]


@pytest.fixture(scope="module")
def scaled(tiny_model, random_params):
    """A config in which every field has work to do, and its parameters."""
    config = dataclasses.replace(tiny_model.config, head_dim=16, rope_scaling=LLAMA3, sliding_window=7)
    return config, random_params(config)


def differ(first, second, params):
    ids = tiny.token_ids(30)
    return np.abs(logits_of(first, params, ids) - logits_of(second, params, ids)).max() > 1e-2


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelConfig)])
def test_every_config_field_matters(field, scaled):
    config, params = scaled
    value, effect = CONFIG_MUTATIONS[field]
    assert getattr(config, field) != value
    changed = dataclasses.replace(config, **{field: value})
    if effect == "logits":
        assert param_shapes(changed) == param_shapes(config)
        assert differ(config, changed, params)
    elif effect == "files":
        assert fused_tensors(changed)
        assert not fused_tensors(config)
    elif effect == "shapes":
        assert param_shapes(changed) != param_shapes(config)
    else:
        ids = tiny.token_ids(9, 1)[0].tolist()
        read_prefix(Decoder(config), {"params": params}, ids)
        with pytest.raises(ValueError, match=r"9 tokens.*limit of 8.*max_position_embeddings"):
            read_prefix(Decoder(changed), {"params": params}, ids)


@pytest.mark.parametrize(
    ("scaling", "mutations"), SCALING_MUTATIONS, ids=lambda value: getattr(value, "rope_type", "")
)
def test_every_scaling_field_matters(scaling, mutations, scaled):
    config, _ = scaled
    assert mutations.keys() == set(ROPE_FIELDS[scaling.rope_type])

    def angles(scaling):
        changed = dataclasses.replace(config, rope_scaling=scaling)
        return np.stack(rope.rotary_angles(changed, jnp.arange(30)[None]))

    for field, value in mutations.items():
        changed = angles(dataclasses.replace(scaling, **{field: value}))
        assert np.abs(changed - angles(scaling)).max() > 1e-2, field
    for other, _ in SCALING_MUTATIONS:  # the type itself
        assert other == scaling or np.abs(angles(other) - angles(scaling)).max() > 1e-2


def test_scalings_with_other_fields_are_refused():
    with pytest.raises(ValueError, match="'linear' needs factor and nothing else"):
        dataclasses.replace(LLAMA3, rope_type="linear")
    with pytest.raises(ValueError, match=r"'llama3' needs factor, low_freq_factor, .* and nothing else"):
        RopeScaling("llama3", 8.0)
    with pytest.raises(ValueError, match=r"rope_type = 'dynamic' is not supported; expected 'default', 'linear'"):
        RopeScaling("dynamic", 8.0)


@pytest.mark.parametrize("rope_type", ["yarn", "longrope"])
@pytest.mark.parametrize("changes", [{}, {"attention_factor": 0.9}, {"truncate": False, "beta_fast": 20}])
def test_scaled_rope_equals_transformers(rope_type, changes):
    require("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {
        "yarn": {"factor": 4.0, "original_max_position_embeddings": 256, "mscale": 0.7, "mscale_all_dim": 0.4},
        "longrope": {"short_factor": list(LONGROPE.short_factor), "long_factor": [9.0] * 8, "factor": 8.0},
    }
    if rope_type == "longrope":
        changes = {name: value for name, value in changes.items() if name == "attention_factor"}
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, **settings[rope_type], **changes}
    made = LlamaConfig(
        **{**tiny.SIZES, "head_dim": 16, "max_position_embeddings": 1024, "rope_parameters": parameters}
    )
    config = model_config_from_hf(made)
    frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](made)
    np.testing.assert_allclose(rope.rope_frequencies(config), frequencies.numpy(), rtol=2e-6)
    assert config.rope_scaling.attention_factor == pytest.approx(factor)
    assert factor != 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 3}, "num_attention_heads = 4 must be a multiple of num_key_value_heads = 3"),
        ({"head_dim": 7}, "head_dim = 7 must be even"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu' is not supported, expected 'silu' or 'gelu_pytorch_tanh'"),
        ({"layer_norms": "none"}, "layer_norms = 'none' is not supported"),
        ({"norm": "layer"}, "norm = 'layer' is not supported"),
        ({"qk_norm": "each"}, "qk_norm = 'each' is not supported"),
        ({"rope_scaling": LONGROPE}, "short_factor has 8 numbers, expected head_dim / 2 = 4"),
        ({"rotated_layers": (True, False)}, "rotated_layers has 2 entries, expected num_hidden_layers = 3"),
        ({"windowed_layers": (True, False, True)}, "without a sliding_window"),
        ({"local_rope_theta": 500.0}, "without a sliding_window"),
        ({"sliding_window": 0}, "sliding_window = 0, expected at least 1"),
        ({"vocab_size": 0}, "vocab_size = 0, expected a whole number from 1"),
        ({"hidden_size": -8}, "hidden_size = -8, expected a whole number from 1"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, expected a whole number from 1 to 100000"),
        ({"num_key_value_heads": 0}, "num_key_value_heads = 0, expected a whole number from 1"),
        ({"head_dim": 8.0}, r"head_dim = 8\.0, expected a whole number"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps = nan, expected a number from 0 to 1"),
        ({"rope_theta": math.inf}, "rope_theta = inf, expected a number above 0"),
        ({"rope_theta": -1.0}, r"rope_theta = -1\.0, expected a number above 0"),
        ({"embedding_scale": math.nan}, "embedding_scale = nan, expected a number above 0"),
        ({"query_pre_attn_scalar": 0.0}, r"query_pre_attn_scalar = 0\.0, expected a number above 0"),
        ({"final_logit_softcapping": math.inf}, "final_logit_softcapping = inf, expected a number above 0"),
    ],
)
def test_refused_configs(changes, message, tiny_model):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny_model.config, **changes)


def test_parameters_of_another_architecture_are_refused(tiny_model):
    config = dataclasses.replace(tiny_model.config, num_hidden_layers=2)
    with pytest.raises(Exception, match=r"(?i)shape|axis|length|size"):
        read(config, tiny_model.params, tiny.token_ids(4))


def test_adapter_is_ignored_nowhere(tiny_model):
    """An adapter on any one projection of any one layer changes the output."""
    config = LoraConfig(rank=2, target_modules=tuple(sorted((*LoraConfig().target_modules, "o_proj"))))
    lora = init_lora(jax.random.key(0), tiny_model.params, config)
    ids = jnp.asarray(tiny.token_ids(6))
    positions = jnp.broadcast_to(jnp.arange(6)[None], ids.shape)

    @jax.jit
    def student(lora):
        variables = {"params": tiny_model.params, "lora": lora}
        return Decoder(tiny_model.config).apply(variables, ids, positions, jnp.ones_like(ids))[0]

    plain = student(lora)
    for module, projections in lora["layers"].items():
        for name, factors in projections.items():
            for depth in range(tiny_model.config.num_hidden_layers):
                b = factors["b"].at[depth].set(1.0)
                changed = {**lora["layers"], module: {**projections, name: {**factors, "b": b}}}
                assert np.abs(student({"layers": changed}) - plain).max() > 1e-3, (name, depth)


# --- the real model -----------------------------------------------------------------------------------

PROMPTS = (
    "The lighthouse at Cape Orlin was built in 1871 by the engineer Tomas Vey. It is 34 metres high, painted "
    "in red and white bands, and its lamp can be seen from 22 miles away. Today the keeper's house is a "
    "small museum about the",
    "Question: What is the capital of France, and which river runs through it? Answer: The capital of France "
    "is Paris, and the river is the Seine.\nQuestion: What is the capital of Italy, and which river runs "
    "through it? Answer:",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWrite two short sentences about why the sky is blue during the day and red in the "
    "evening.<|im_end|>\n<|im_start|>assistant\n",
)


def torch_smollm2():
    """The default model in torch: published sizes, tensors from gguf; none of our code but the file's path."""
    torch = require("torch")
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():  # all are read below
        theirs = LlamaForCausalLM._from_config(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                max_position_embeddings=8192,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
                tie_word_embeddings=True,
                bos_token_id=1,
                eos_token_id=2,
            ),
            attn_implementation="eager",
        )
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    names |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj"}
    names |= {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {}
    for tensor in gguf.GGUFReader(default_model_file()).tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        *block, kind, _ = tensor.name.split(".")
        if kind in ("attn_q", "attn_k"):
            # llama.cpp interleaves the two halves of a head: rows 0, 32, 1, 33, ... of 64.
            order = np.arange(64).reshape(2, 32).T.reshape(64)
            whole = value.reshape(-1, 64, 576)
            value = np.empty_like(whole)
            value[:, order] = whole
            value = value.reshape(-1, 576)
        layer_name = f"model.layers.{block[1]}." if block else ""
        state[f"{layer_name}{names[kind]}.weight"] = torch.from_numpy(np.array(value))
    missing = theirs.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert missing.unexpected_keys == []
    theirs.tie_weights()
    return theirs.float().eval()


@pytest.mark.default_model
def test_default_model_equals_transformers(default_model):
    torch = require("torch")
    theirs = torch_smollm2()
    theirs.generation_config.eos_token_id = None  # twenty tokens whatever they are
    decoder, variables = Decoder(default_model.config), {"params": default_model.params}
    for text in PROMPTS:
        ids = default_model.tokenizer(text, add_special_tokens=False)["input_ids"][-45:]
        assert len(ids) == 45  # one length: one program for all of them
        rows = np.array([ids])
        close(logits_of(default_model.config, default_model.params, rows), tiny.hf_logits(theirs, rows), 1e-3)
        with torch.no_grad():
            made = theirs.generate(
                torch.tensor(rows),
                attention_mask=torch.ones_like(torch.tensor(rows)),
                do_sample=False,
                max_new_tokens=20,
                pad_token_id=0,
            )[0, len(ids) :].tolist()
        assert len(made) == 20
        found = generate(decoder, variables, ids[:23], [ids[23:]], 20)[0]
        assert default_model.tokenizer.decode(found) == default_model.tokenizer.decode(made)
        assert found == made
