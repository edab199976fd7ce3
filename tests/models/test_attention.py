"""Attention: who sees whom, one softmax over several blocks, and the other implementations."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax.distributed import mesh
from selfparam_jax.models.attention import (
    active_implementation,
    attend,
    attention_masks,
    check_backend,
    compute_attention,
)
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.masks import EMPTY, PADDING, SHARED, visible


def close(found, expected, atol=1e-5):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 0.1  # not a comparison of nothing with nothing
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_visible_by_hand():
    keys = np.array([[0, 1, 2, 3, 0]]), np.array([[SHARED, 1, 1, 2, EMPTY]])
    queries = np.array([[2, 3, 1]]), np.array([[1, 2, PADDING]])
    mask = visible(*map(jnp.asarray, (*queries, *keys)), None)
    assert mask.astype(int).tolist() == [[[1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 0]]]
    mask = visible(*map(jnp.asarray, (*queries, *keys)), 2)  # itself and one before it
    assert mask.astype(int).tolist() == [[[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]]]


@pytest.fixture(params=[True, False], ids=["shared", "own"])
def blocks_and_mask(request):
    """Queries [3, 4, 6, 8], two blocks of keys and values (the first of all rows together, or not), and a mask."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    queries, first = draw(3, 4, 6, 8), draw(2, 1 if request.param else 3, 2, 5, 8)
    second, mask = draw(2, 3, 2, 4, 8), rng.random((3, 4, 9)) < 0.6
    mask[:, :, 5] = True
    return queries, first, second, mask


def over_blocks(queries, first, second, mask):
    blocks = [tuple(map(jnp.asarray, first)), tuple(map(jnp.asarray, second))]
    return attend(jnp.asarray(queries), blocks, [jnp.asarray(mask[..., :5]), jnp.asarray(mask[..., 5:])])


def test_attend_over_blocks_is_one_softmax(blocks_and_mask):
    queries, first, second, mask = blocks_and_mask
    expected = np.zeros((3, 4, 6, 8))
    whole = np.broadcast_to(first, (2, 3, 2, 5, 8)), second
    keys, values = np.concatenate(whole, axis=3).astype(np.float64)
    for b, t, n in np.ndindex(3, 4, 6):
        scores = keys[b, n // 3] @ queries[b, t, n] / np.sqrt(8)
        weights = np.where(mask[b, t], np.exp(scores), 0.0)
        expected[b, t, n] = weights / weights.sum() @ values[b, n // 3]
    close(over_blocks(*blocks_and_mask), expected)


def test_gradients_of_attend_are_those_of_one_softmax(blocks_and_mask):
    queries, first, second, mask = blocks_and_mask
    slope = jnp.asarray(np.random.default_rng(1).standard_normal(queries.shape), jnp.float32)

    def one_softmax(queries, first, second):
        whole = jnp.concatenate([jnp.broadcast_to(first, (2, 3, 2, 5, 8)), second], axis=3)
        keys, values = jnp.repeat(whole, 3, axis=2)
        scores = jnp.einsum("btnh,bnsh->bnts", queries, keys) / jnp.sqrt(8.0)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
        return jnp.sum(slope * jnp.einsum("bnts,bnsh->btnh", weights, values))

    def ours_summed(queries, first, second):
        return jnp.sum(slope * over_blocks(queries, first, second, mask))

    arguments = [jnp.asarray(x) for x in (queries, first, second)]
    expected = jax.grad(one_softmax, argnums=(0, 1, 2))(*arguments)
    for found, wanted in zip(jax.grad(ours_summed, argnums=(0, 1, 2))(*arguments), expected, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("case", ["gqa", "mistral"])  # Mistral's window is shorter than the rows
@pytest.mark.parametrize("attention", ["xla", pytest.param("cudnn", marks=pytest.mark.gpu)])
def test_attention_by_jax_is_ours(case, attention, from_hf, monkeypatch):
    if attention == "cudnn" and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU")
    asked, theirs = [], jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *a, **k: asked.append(k) or theirs(*a, **k))
    config, params = from_hf(tiny.hf_model(case))
    ids, positions = jnp.asarray(tiny.token_ids(12)), jnp.asarray([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 0]] * 2)
    segments = jnp.asarray([[1] * 8 + [2] * 3 + [PADDING], [1] * 8 + [2] * 3 + [PADDING]])
    dtype = jnp.float32 if attention == "xla" else jnp.bfloat16

    def value_and_gradient(attention):
        def loss(params):
            model = Decoder(config, dtype, attention=attention)
            hidden, read = model.apply({"params": params}, ids, positions, segments)
            return jnp.sum(jnp.sin(hidden)[:, :11].astype(jnp.float32)), read.keys

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    tolerance = 1e-5 if attention == "xla" else 3e-2
    for left, right in zip(
        jax.tree.leaves(value_and_gradient(attention)), jax.tree.leaves(value_and_gradient("blocks")), strict=True
    ):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance * max(1, np.abs(right).max()))
    assert asked and all(given["implementation"] == attention for given in asked)


# --- JAX's kernel for TPUs, interpreted ---------------------------------------------------------------


class Rows:
    """Queries, keys and values of rows of 150 positions: sentences from 12 on, then padding; 40 slots before them."""

    def __init__(self, rows=2, heads=4, kv_heads=2):
        rng = np.random.default_rng(0)

        def draw(*shape):
            return jnp.asarray(rng.standard_normal(shape).astype(np.float32))

        self.queries = draw(rows, 150, heads, 16)
        self.own = draw(rows, kv_heads, 150, 16), draw(rows, kv_heads, 150, 16)
        self.before = {shared: [draw(shared or rows, kv_heads, 40, 16) for _ in range(2)] for shared in (1, 0)}
        ends = np.sort([[50, 131, 146], [9, 60, 140]][:2], axis=1)[np.arange(rows) % 2]
        at = np.arange(150)
        number = (at >= ends[..., None]).sum(axis=1)  # how many sentences have ended
        begins = np.take_along_axis(np.concatenate([np.zeros((rows, 1), int), ends], axis=1), number, axis=1)
        self.segments = jnp.asarray(np.where(number < 3, number + 1, PADDING), jnp.int32)
        self.positions = jnp.asarray(12 + at - begins, jnp.int32)
        self.real = np.asarray(self.segments) != PADDING
        there = np.arange(40)[None]
        self.prefix = jnp.asarray(there, jnp.int32), jnp.asarray(np.where(there < 12, SHARED, EMPTY), jnp.int32)

    def blocks(self, past):
        """Blocks and places: with those of rows of their own, or one of all rows, or none before them."""
        own = self.positions, self.segments
        if past is None:
            return [self.own], [own]
        before = self.before[past]
        places = tuple(jnp.broadcast_to(x, (before[0].shape[0], 40)) for x in self.prefix)
        return [tuple(before), self.own], [places, own]

    def attend(self, implementation, past=None, window=None, sharding=None):
        blocks, places = self.blocks(past)
        masks = attention_masks(implementation, (self.positions, self.segments), places, window)

        @jax.jit
        def run(queries, blocks, masks):
            return compute_attention(implementation, queries, blocks, masks, window, sharding)

        return np.asarray(run(self.queries, blocks, masks))[self.real]


@pytest.fixture(scope="module")
def rows():
    return Rows()


@pytest.mark.parametrize("past", [None, 1, 0], ids=["no past", "shared past", "own past"])
def test_splash_is_ours(rows, past):
    """Rows are not as long as the kernel wants them, and have two kinds of blocks before them."""
    close(rows.attend("splash", past), rows.attend("blocks", past))


@pytest.mark.parametrize("window", [1, 7, 140])
def test_splash_has_the_same_window(rows, window):
    close(rows.attend("splash", window=window), rows.attend("blocks", window=window))
    if window < 140:
        assert np.abs(rows.attend("splash") - rows.attend("splash", window=window)).max() > 0.1


@pytest.mark.parametrize("window", [None, 7])
def test_gradients_of_splash_are_ours(rows, window):
    def gradients(implementation):
        (own,), places = rows.blocks(None)
        masks = attention_masks(implementation, (rows.positions, rows.segments), places, window)

        def loss(queries, keys, values):
            out = compute_attention(implementation, queries, [(keys, values)], masks, window, None)
            return jnp.sum(jnp.sin(3 * out) * rows.real[:, :, None, None])

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(rows.queries, *own)

    for found, expected in zip(gradients("splash"), gradients("blocks"), strict=True):
        close(found, expected, 1e-6 * np.abs(expected).max())  # gradients are up to 25: eight roundings of these


@pytest.mark.parametrize(("count", "past"), [(2, None), (2, 1), (2, 0), (3, 1)])
def test_splash_over_devices_is_that_of_one(count, past):
    """Every device has its rows and heads; three rows do not divide and are everywhere."""
    devices = mesh.make_mesh(jax.devices()[:4], mesh.MeshConfig(data=2, tensor=2))
    sharding, rows = mesh.activation_sharding(devices), Rows(rows=count)
    close(rows.attend("splash", past, sharding=sharding), rows.attend("blocks", past))


def test_a_step_by_splash_needs_no_other_device(rows):
    """Forward and backward, each device works alone: what is split by rows and heads has nothing to send."""
    devices = mesh.make_mesh(jax.devices()[:4], mesh.MeshConfig(data=2, tensor=2))
    sharding = mesh.activation_sharding(devices)
    (own,), places = rows.blocks(None)

    def loss(queries, keys, values, places):
        queries = sharding(queries, "rows", None, "heads", None)
        keys, values = (sharding(x, "rows", "heads", None, None) for x in (keys, values))
        out = compute_attention(
            "splash", queries, [(keys, values)], attention_masks("splash", places, [places], None), None, sharding
        )
        return jnp.sin(sharding(out, "rows", None, "heads", None))

    def pulled(queries, keys, values, places):
        out, pull = jax.vjp(functools.partial(loss, places=places), queries, keys, values)
        return pull(out)

    split = [jax.sharding.NamedSharding(devices, mesh.spec(*axes)) for axes in (
        ("rows", None, "heads", None), ("rows", "heads", None, None), ("rows", None),
    )]  # fmt: skip
    given = split[0], split[1], split[1], (split[2], split[2])
    compiled = jax.jit(pulled, in_shardings=given, out_shardings=given[:3])
    text = compiled.lower(rows.queries, *own, places[0]).compile().as_text()
    assert not [kind for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if kind in text]


@pytest.mark.parametrize("case", ["gqa", "mistral"])
def test_a_decoder_by_splash_is_ours(case, random_params, monkeypatch):
    """In whole: contexts that are read in pieces, rows after them, and the gradient of rows without one."""
    from selfparam_jax.inference.prefix import read_prefix
    from selfparam_jax.models.registry import model_config_from_hf

    config = model_config_from_hf(tiny.hf_config(case, max_position_embeddings=1024, num_hidden_layers=2))
    params, prefix = random_params(config), tiny.token_ids(300, 1, seed=1)[0]
    ids = jnp.asarray(tiny.token_ids(140, 2))
    segments = jnp.asarray(np.where(np.arange(140) < 90, 1, 2)[None].repeat(2, axis=0))
    positions = jnp.asarray(
        np.where(np.arange(140) < 90, np.arange(140), np.arange(140) - 90)[None].repeat(2, axis=0)
    )

    def all_of_it(attention):
        model = Decoder(config, remat="layers", attention=attention)
        read = read_prefix(model, {"params": params}, prefix)
        after, _ = model.apply({"params": params}, ids, positions + 300, segments, (read.key_values,))

        def loss(params):
            return jnp.sum(jnp.sin(model.apply({"params": params}, ids, positions, segments)[0]))

        return read.states(), after, jax.jit(jax.grad(loss))(params)["layers"]["self_attn"]

    used = []
    monkeypatch.setattr(
        "selfparam_jax.models.decoder.compute_attention",
        lambda name, *a: used.append(name) or compute_attention(name, *a),
    )
    expected = all_of_it("blocks")
    assert set(used) == {"blocks"}
    used.clear()
    found = all_of_it("splash")
    assert used.count("splash") >= (1 if case == "mistral" else 3)
    for left, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("splash", 128, False, False, None), "splash"),
        (("splash", 128, False, False, 4096), "splash"),
        (("splash", 256, True, False, None), "splash"),
        (("splash", 256, True, False, 4096), "blocks"),  # the window reaches into what was read before
        (("splash", 127, False, False, None), "blocks"),
        (("splash", 256, True, True, None), "blocks"),
        (("cudnn", 64, False, False, 4096), "cudnn"),
        (("cudnn", 64, True, False, None), "blocks"),
        (("xla", 1, False, True, None), "blocks"),
        (("blocks", 512, False, False, None), "blocks"),
    ],
)
def test_which_way(given, expected):
    assert active_implementation(*given) == expected


def test_a_way_that_is_not_possible_here_is_refused():
    for name, backend in (("blocks", "cpu"), ("xla", "tpu"), ("cudnn", "gpu"), ("splash", "tpu")):
        check_backend(name, backend)
    for name, backend, needs in (("cudnn", "tpu", "GPU"), ("splash", "gpu", "TPU"), ("splash", "cpu", "TPU")):
        with pytest.raises(ValueError, match=f"'{name}' needs a {needs}, but JAX runs on '{backend}'; set --config"):
            check_backend(name, backend)


LLAMA3, MISTRAL, OPENLLAMA, SMOLLM = (32, 8, 128, None), (32, 8, 128, 4096), (32, 32, 100, None), (9, 3, 64, None)


@pytest.mark.parametrize(
    "shape", [LLAMA3, MISTRAL, OPENLLAMA, SMOLLM], ids=["llama3", "mistral", "openllama", "smollm"]
)
def test_splash_is_lowered_for_a_tpu(shape, monkeypatch):
    """In the real models' shapes: the kernel itself, not interpreted. A TPU's own compiler is not asked."""
    heads, kv_heads, width, window = shape
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def read(queries, own, before, segments, segments_before):
        masks = [(segments, segments_before), (segments, segments)]
        return compute_attention("splash", queries, [before, own], masks, None, None)

    def slope(queries, own, segments):
        def total(queries, own):
            out = compute_attention("splash", queries, [own], [(segments, segments)], window, None)
            return jnp.sum(out.astype(jnp.float32))

        return jax.grad(total, argnums=(0, 1))(queries, own)

    queries, own = array(2, 288, heads, width), (array(2, kv_heads, 288, width),) * 2
    before, segments = (array(1, kv_heads, 768, width),) * 2, array(2, 288, dtype=jnp.int32)
    calls = [
        jax.export.export(jax.jit(function), platforms=["tpu"])(*given).mlir_module().count("tpu_custom_call")
        for function, given in (
            (read, (queries, own, before, segments, array(1, 768, dtype=jnp.int32))),
            (slope, (queries, own, segments)),
        )
    ]
    assert calls == [2, 3]  # own and earlier block; forward, and the gradients of queries and of keys and values
