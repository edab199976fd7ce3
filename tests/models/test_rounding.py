"""Products with frozen weights in bfloat16: what is rounded, what is not, and how far the losses are from float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models import decoder, lora, rounding
from selfparam_jax.models.decoder import apply_head, int8_product, rounded_product
from selfparam_jax.models.rounding import LEAST_BYTES, rounded_params, rounds_products
from selfparam_jax.models.unstacked import layers_apart
from selfparam_jax.training import train_step
from selfparam_jax.training.losses import Signal

LORA = lora.LoraConfig(rank=2)


def bfloat16(x):
    """An array rounded to bfloat16, as float64."""
    return np.asarray(jnp.asarray(x, jnp.bfloat16)).astype(np.float64)


def drawn(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("shape", [(2, 5, 12), (1, 1, 12), (3, 12)])
def test_a_product_is_that_of_the_rounded_operands_and_so_is_its_gradient(shape):
    x, kernel, slope = drawn(*shape), drawn(12, 7, seed=1), drawn(*shape[:-1], 7, seed=2)
    weight = kernel.astype(jnp.bfloat16)
    found, pull = jax.vjp(lambda x: rounded_product(x, weight), x)
    np.testing.assert_allclose(found, bfloat16(x) @ bfloat16(kernel), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pull(slope)[0], bfloat16(slope) @ bfloat16(kernel).T, rtol=1e-5, atol=1e-5)
    assert found.dtype == pull(slope)[0].dtype == jnp.float32
    assert np.abs(np.asarray(found) - np.asarray(x) @ np.asarray(kernel)).max() > 1e-4  # rounding is not nothing


def test_the_head_is_multiplied_in_its_own_numbers():
    hidden, head = drawn(3, 12), drawn(20, 12, seed=1)
    found = apply_head(hidden, head.astype(jnp.bfloat16))
    np.testing.assert_allclose(found, bfloat16(hidden) @ bfloat16(head).T, rtol=1e-5, atol=1e-5)
    one = apply_head(hidden[:1], head.astype(jnp.bfloat16))
    np.testing.assert_allclose(one, found[:1], rtol=1e-5, atol=1e-5)


def test_weights_of_8_bits_are_multiplied_in_bfloat16():
    x, slope = drawn(2, 5, 12), drawn(2, 5, 7, seed=2)
    values = jnp.asarray(np.random.default_rng(1).integers(-127, 128, (12, 7)), jnp.int8)
    scale = jnp.abs(drawn(1, 7, seed=3))
    found, pull = jax.vjp(lambda x: int8_product(x, values, scale, None, (None, None), "bfloat16"), x)
    whole = np.asarray(values, np.float64)
    np.testing.assert_allclose(found, bfloat16(x) @ whole * np.asarray(scale), rtol=1e-5, atol=1e-4)
    expected = bfloat16(slope * scale[None]) @ whole.T
    np.testing.assert_allclose(pull(slope)[0], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
def test_kernels_and_head_are_rounded_and_nothing_else(tiny_model, int8):
    params = tiny.rounded(tiny_model.params) if int8 else tiny_model.params
    found = rounded_params(params)
    held = [x.nbytes for x in jax.tree.leaves(found) if x.dtype == jnp.bfloat16]
    assert sum(held) == rounding.rounded_bytes(tiny_model.config, int8)
    np.testing.assert_array_equal(found["lm_head"]["weight"], decoder.head_weight(params).astype(jnp.bfloat16))
    assert found["embed_tokens"] is params["embed_tokens"] and found["norm"] is params["norm"]
    for name, block in params["layers"].items():
        if "weight" in block:
            assert found["layers"][name]["weight"] is block["weight"]
            continue
        for projection, entry in block.items():
            kernel = found["layers"][name][projection]["kernel"]
            if int8:
                assert kernel.values is entry["kernel"].values and kernel.operands == "bfloat16"
            else:
                np.testing.assert_array_equal(kernel, entry["kernel"].astype(jnp.bfloat16))


def step_of(config, params, adapter, seed=0):
    """Loss and gradient of an adapter on random rows against random states of a teacher."""
    rng = np.random.default_rng(seed)
    rows, length = 4, 24
    ids = rng.integers(1, config.vocab_size, (rows, length)).astype(np.int32)
    positions, segments = np.tile(np.arange(length, dtype=np.int32), (rows, 1)), np.ones((rows, length), np.int32)
    where = np.arange(rows * length, dtype=np.int32)[None]
    states = 3 * rng.standard_normal((1, rows * length, config.hidden_size)).astype(np.float32)
    targets = rng.integers(0, config.vocab_size, (1, rows * length)).astype(np.int32)
    ones = np.ones((1, rows * length), np.float32)
    signal = Signal(np.full(1, rows * length, np.int32), states, ones, targets, ones)
    batch = train_step.Batch(ids, positions, segments, where, signal)
    model = decoder.Decoder(config, lora_scale=2.0)

    @jax.jit
    def loss(adapter, params):
        given = adapter, params, batch, jax.random.key(0), model, train_step.LossConfig()
        return jax.value_and_grad(train_step.student_loss, has_aux=True)(*given)

    (total, count), gradient = loss(adapter, params)
    return float(total / count), jax.tree.map(np.asarray, gradient)


def relative(found, expected):
    """The norm of a difference of trees over the norm of the second."""
    squares = [
        (np.sum((a - b) ** 2), np.sum(b**2))
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    ]
    return float(np.sqrt(sum(a for a, _ in squares) / sum(b for _, b in squares)))


@pytest.mark.parametrize("case", ["stacked", "layers apart", "8 bits"])
def test_loss_and_gradient_are_near_those_in_float32(tiny_model, case):
    config = tiny_model.config
    params = tiny.rounded(tiny_model.params) if case == "8 bits" else tiny_model.params
    adapter = jax.tree.map(lambda x: x + 0.02, lora.init_lora(jax.random.key(0), params, LORA))
    expected = step_of(config, params, adapter)
    rounded = rounded_params(params)
    if case == "layers apart":
        rounded = layers_apart({"params": rounded})["params"]
    found = step_of(config, rounded, adapter)
    assert 0 < abs(found[0] - expected[0]) / expected[0] < 2e-3
    assert 0 < relative(found[1], expected[1]) < 2e-2


def test_what_an_adapter_is_merged_into_is_not_rounded(tiny_model):
    model = dataclasses.replace(tiny_model, matmul_precision="bfloat16")
    assert (model.matmul_dtype, tiny_model.matmul_dtype) == ("bfloat16", "float32")
    assert tiny_model.variables == {"params": tiny_model.params}
    kernel = model.variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert kernel.dtype == jnp.bfloat16 and model.params is tiny_model.params
    assert model.variables is model.variables  # rounded once


@pytest.mark.parametrize(
    ("precision", "dtype", "size", "devices", "units", "expected"),
    [
        ("auto", "float32", LEAST_BYTES, 1, True, True),
        ("auto", "float32", LEAST_BYTES, 1, False, False),
        ("auto", "float32", LEAST_BYTES - 4, 1, True, False),
        ("auto", "float32", LEAST_BYTES, 2, True, False),
        ("auto", "bfloat16", LEAST_BYTES, 1, True, False),
        ("float32", "float32", LEAST_BYTES, 1, True, False),
        ("bfloat16", "float32", 4, 1, False, True),
        ("bfloat16", "bfloat16", 4, 1, True, False),
    ],
)
def test_where_products_are_rounded(precision, dtype, size, devices, units, expected, monkeypatch):
    monkeypatch.setattr(rounding, "multiplies_bfloat16", lambda: units)
    params = {"x": jax.ShapeDtypeStruct((size // 4,), jnp.float32)}
    assert rounds_products(precision, params, dtype, devices) is expected


def test_a_precision_that_there_is_not_is_refused(tiny_model, all_devices):
    with pytest.raises(ValueError, match="matmul_precision = 'fp8', expected one of 'auto', 'float32', 'bfloat16'"):
        dataclasses.replace(tiny_model, matmul_precision="fp8")
    with pytest.raises(ValueError, match="'bfloat16' on 8 devices, expected 'auto' or 'float32'"):
        dataclasses.replace(tiny_model, matmul_precision="bfloat16", mesh=meshes.make_mesh())
