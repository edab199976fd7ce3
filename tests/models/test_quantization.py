"""A base in 8 bits: its kernels, what is computed with them on one and several devices, and what is exported."""

import dataclasses
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import need

from selfparam_jax.checkpoints.export import save_safetensors
from selfparam_jax.checkpoints.tensors import load_params
from selfparam_jax.checkpoints.weight_files import SafetensorsSource
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.inference.decoding import generate
from selfparam_jax.models import lora, quantization
from selfparam_jax.models.architecture import PROJECTIONS
from selfparam_jax.models.decoder import Decoder, Int8Kernel
from selfparam_jax.models.shardings import parameter_shardings
from selfparam_jax.training import train_step
from selfparam_jax.training.losses import Signal
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

need("qwix")


def is_rounded(leaf):
    return isinstance(leaf, Int8Kernel)


def as_float(params):
    """What rounded parameters stand for."""
    return jax.tree.map(lambda x: x.values * x.scale if is_rounded(x) else x, params, is_leaf=is_rounded)


def test_a_kernel_is_rounded_to_the_nearest_of_255_steps_per_channel(tiny_model):
    found = jax.tree.leaves(tiny.rounded(tiny_model.params), is_leaf=is_rounded)
    kernels = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tiny_model.params) if path[-1].key == "kernel"
    ]
    found = [leaf for leaf in found if is_rounded(leaf)]
    assert len(found) == len(kernels) == 7
    for kernel, eight in zip(kernels, found, strict=True):
        assert eight.values.dtype == jnp.int8 and eight.scale.dtype == jnp.float32
        assert eight.shape == kernel.shape and eight.scale.shape == (kernel.shape[0], 1, kernel.shape[2])
        np.testing.assert_allclose(eight.scale[:, 0], jnp.max(jnp.abs(kernel), axis=1) / 127, rtol=0.01)
        assert np.abs(eight.values).max() == 127
        error = np.abs(eight.values * eight.scale - kernel)
        assert (error <= 0.501 * np.asarray(eight.scale)).all()
        assert error.max() > 0


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_product_is_that_of_the_rounded_kernel(tiny_model, with_bias):
    model = Decoder(
        dataclasses.replace(tiny_model.config, biased_projections=tuple(PROJECTIONS) if with_bias else ())
    )
    ids = jnp.asarray(tiny.token_ids(9))
    positions = jnp.broadcast_to(jnp.arange(9)[None], ids.shape)
    params = (
        tiny_model.params if not with_bias else model.init(jax.random.key(1), ids, positions, positions)["params"]
    )
    params = jax.tree.map(lambda x: x + 0.01, params)
    eight = tiny.rounded(params)
    segments = jnp.ones_like(ids)
    adapter = lora.init_lora(jax.random.key(0), params, lora.LoraConfig(rank=2))
    adapter = jax.tree.map(lambda x: x + 0.01, adapter)

    def loss(adapter, params):
        return jnp.sum(jnp.sin(model.apply({"params": params, "lora": adapter}, ids, positions, segments)[0]))

    expected = jax.jit(jax.value_and_grad(loss))(adapter, as_float(eight))
    found = jax.jit(jax.value_and_grad(loss))(adapter, eight)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-5, atol=2e-5 * np.abs(right).max())
    assert abs(found[0] - loss(adapter, params)) > 1e-4  # rounding is not nothing


def step_and_inputs(config, params, mesh):
    """A training step, and what it is given."""
    model = Decoder(config, lora_scale=2.0, sharding=meshes.activation_sharding(mesh))
    optimizer = make_optimizer(
        TrainConfig(learning_rate=1e-2, schedule="constant", warmup=0.0, clip_norm=0.0, beta2=0.999), 10
    )
    state = train_step.init_state(lora.init_lora(jax.random.key(0), params, lora.LoraConfig(rank=2)), optimizer)
    state = meshes.put_same(mesh, jax.tree.map(np.asarray, state))
    groups, rng = meshes.shards(mesh, "rows"), np.random.default_rng(0)
    rows, length = 4, 8
    ids = rng.integers(1, config.vocab_size, (rows, length)).astype(np.int32)
    positions, segments = np.tile(np.arange(length, dtype=np.int32), (rows, 1)), np.ones((rows, length), np.int32)
    each = rows // groups * length
    where = np.tile(np.arange(each, dtype=np.int32), (groups, 1))
    states = rng.standard_normal((rows * length, config.hidden_size)).astype(np.float32).reshape(groups, each, -1)
    signal = Signal(np.full(groups, each, np.int32), states, np.ones((groups, each), np.float32))
    batch = meshes.put_rows(mesh, train_step.Batch(ids, positions, segments, where, signal))
    step = train_step.compile_step(model, optimizer, mesh, int8=True)
    return step, (state, params, batch, jax.random.key(0))


def step_with(config, params, mesh):
    """A training step's loss and the adapter after it."""
    step, inputs = step_and_inputs(config, params, mesh)
    state, metrics = step(*inputs)
    return float(metrics["loss"]), jax.tree.map(np.asarray, state.lora)


def test_several_devices_compute_what_one_does(tiny_model):
    params = tiny.rounded(tiny_model.params)
    one = meshes.make_mesh(jax.devices()[:1])
    expected = step_with(tiny_model.config, params, one)
    mesh = meshes.make_mesh(jax.devices()[:4], meshes.MeshConfig(1, 2, 2))
    shardings = parameter_shardings(mesh, tiny_model.config, int8=True)
    spread = jax.device_put(params, shardings)
    gate = spread["layers"]["mlp"]["gate_proj"]["kernel"]
    assert gate.values.sharding.shard_shape(gate.shape)[1:] == (gate.shape[1] // 2, gate.shape[2] // 2)
    found = step_with(tiny_model.config, spread, mesh)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for left, right in zip(jax.tree.leaves(found[1]), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 4, 1), (1, 2, 2)])
def test_kernels_are_gathered_as_8_bits(tiny_model, sizes):
    """Forward and backward: not what a product makes of them, which is four times as much to send."""
    mesh = meshes.make_mesh(jax.devices()[:4], meshes.MeshConfig(*sizes))
    config = tiny_model.config
    params = jax.device_put(tiny.rounded(tiny_model.params), parameter_shardings(mesh, config, int8=True))
    step, inputs = step_and_inputs(config, params, mesh)
    text = step.lower(*inputs).compile().as_text()
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather\(", text)
    kernels = {leaf.size // config.num_hidden_layers // sizes[2] for leaf in jax.tree.leaves(
        jax.tree.map(lambda leaf: leaf.values if is_rounded(leaf) else None, params, is_leaf=is_rounded)
    )}  # fmt: skip
    of_kernels = [kind for kind, shape in gathered if math.prod(map(int, shape.split(","))) in kernels]
    assert len([kind for kind in of_kernels if kind == "s8"]) == 14  # seven of a layer, twice
    wide = [shape for kind, shape in gathered if kind == "f32" and shape.startswith("1,")]
    assert not wide, "a layer's kernel in float32"


def test_decoding_with_a_base_in_8_bits(tiny_model):
    eight = tiny.rounded(tiny_model.params)
    model = Decoder(tiny_model.config)
    prefix, prompt = [1, 7, 30], [9, 200, 4]
    found = generate(model, {"params": eight}, prefix, [prompt], 8)
    assert found == [tiny.continued(model, {"params": as_float(eight)}, prefix + prompt, 8)]
    assert len(set(found[0])) > 2


def test_loading_rounds_what_is_loaded(tiny_model, tmp_path):
    save_safetensors(tiny_model.params, tiny_model.config, tmp_path, jnp.float32)
    source = SafetensorsSource(tmp_path)
    mesh = meshes.make_mesh(jax.devices()[:2], meshes.MeshConfig(1, 2, 1))
    expected = tiny.rounded(tiny_model.params)
    for shardings in (None, parameter_shardings(mesh, tiny_model.config, int8=True)):
        found = load_params(source, tiny_model.config, jnp.float32, shardings, int8=True)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(left, right)
        if shardings is not None:
            same = jax.tree.map(
                lambda leaf, wanted: leaf.sharding.is_equivalent_to(wanted, leaf.ndim), found, shardings
            )
            assert all(jax.tree.leaves(same))


def test_without_qwix(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    quantization._round.clear_cache()
    with pytest.raises(ValueError, match="qwix, which is not installed; pip install 'selfparam-jax\\[int8\\]'"):
        tiny.rounded(tiny_model.params)
    quantization._round.clear_cache()
