"""Texts in blocks: the algorithm token by token in NumPy, full attention where nothing is far, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.inference.block_memory import BlockOptions, BlockReader, representative_keys
from selfparam_jax.inference.decoding import generate
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.models.rope import rope_frequencies
from selfparam_jax.models.shardings import parameter_shardings

SMALL = BlockOptions(initial_tokens=3, local_tokens=16, block_tokens=4, representatives=2, chunk_tokens=6, blocks=3)


@pytest.fixture(scope="module")
def models(random_params):
    """A function: changes of the config -> (decoder, params), made once."""

    @functools.cache
    def make(case="gqa", **changes):
        config = model_config_from_hf(tiny.hf_config(case, max_position_embeddings=1024))
        config = dataclasses.replace(config, **changes)
        return Decoder(config), random_params(config)

    return make


def text(length, seed=0):
    return tiny.token_ids(length, 1, seed)[0].tolist()


def read_all(reader, ids):
    """The hidden states [T, D] of a text read in chunks, and its memory."""
    memory, size = reader.empty(), reader.options.chunk_tokens
    parts = []
    for begin in range(0, len(ids), size):
        chunk = ids[begin : begin + size]
        parts.append(np.asarray(reader.read_chunk(memory, chunk))[: len(chunk)])
    return np.concatenate(parts), memory


# --- the algorithm, one token and one head at a time, in float64 -----------------------------------------


class Reference:
    """What the paper describes, as literally as it can be written, for a Llama with a norm before each block.

    Attributes:
      looked_up: for each layer and chunk, the blocks that it saw.
    """

    def __init__(self, config, params, options):
        self.config, self.options = config, options
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        self.frequencies = np.asarray(rope_frequencies(config), np.float64)
        self.looked_up = []

    def turned(self, vector, position):
        half = len(vector) // 2
        turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * self.frequencies)
        return np.concatenate([turned.real, turned.imag])

    def normed(self, x, weight):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.rms_norm_eps) * weight[None]

    def read(self, ids):
        params = self.params
        x = params["embed_tokens"]["embedding"][ids]
        for layer in range(self.config.num_hidden_layers):
            own = jax.tree.map(lambda leaf, n=layer: leaf[n], params["layers"])
            attended = self.attention(own["self_attn"], self.normed(x, own["input_layernorm"]["weight"]))
            x = x + attended
            inner = self.normed(x, own["post_attention_layernorm"]["weight"])
            gate, up, down = (own["mlp"][name]["kernel"] for name in ("gate_proj", "up_proj", "down_proj"))
            gated = inner @ gate
            x = x + (gated / (1 + np.exp(-gated)) * (inner @ up)) @ down
        return self.normed(x, params["norm"]["weight"])

    def attention(self, own, x):
        config, options = self.config, self.options
        length, heads, kv_heads = len(x), config.num_attention_heads, config.num_key_value_heads
        queries = (x @ own["q_proj"]["kernel"]).reshape(length, heads, -1)
        keys = (x @ own["k_proj"]["kernel"]).reshape(length, kv_heads, -1)
        values = (x @ own["v_proj"]["kernel"]).reshape(length, kv_heads, -1)
        group, scale = heads // kv_heads, config.head_dim**-0.5
        far, out = options.local_tokens, np.zeros_like(queries)
        received = np.zeros((length, heads))
        blocks, stand_ins, oldest = [], [], options.initial_tokens
        for first in range(0, length, options.chunk_tokens):
            chunk = range(first, min(first + options.chunk_tokens, length))
            sums = [
                sum(self.turned(queries[t, n], far) @ stand_in[n] for t in chunk for n in range(heads))
                for stand_in in stand_ins
            ]
            chosen = sorted(range(len(blocks)), key=lambda block: -sums[block])[: options.blocks]
            self.looked_up.append(chosen)
            for t in chunk:
                seen = [s for s in range(min(options.initial_tokens, t + 1))]
                seen += [s for s in range(oldest, t + 1)]
                seen += [s for block in chosen for s in blocks[block]]
                for n in range(heads):
                    scores = [scale * self.turned(queries[t, n], min(t - s, far)) @ keys[s, n // group] for s in seen]
                    weights = np.exp(scores - np.max(scores))
                    weights /= weights.sum()
                    out[t, n] = sum(w * values[s, n // group] for w, s in zip(weights, seen, strict=True))
                    for w, s in zip(weights, seen, strict=True):
                        received[s, n] += w if t - s < far else 0.0
            while chunk[-1] + 1 - oldest - options.block_tokens >= far:
                block = list(range(oldest, oldest + options.block_tokens))
                blocks.append(block)
                stand_ins.append([])
                for n in range(heads):
                    most = sorted(block, key=lambda s, n=n: -received[s, n])[: options.representatives]
                    stand_ins[-1].append(np.mean([keys[s, n // group] for s in most], axis=0))
                oldest += options.block_tokens
        return out.reshape(length, -1) @ own["o_proj"]["kernel"]


@pytest.mark.parametrize("changes", [{}, {"blocks": 1, "chunk_tokens": 1, "initial_tokens": 0}, {"block_tokens": 1}])
def test_as_the_algorithm_token_by_token(models, changes):
    if "block_tokens" in changes:
        changes = {**changes, "representatives": 1}
    model, params = models()
    options, ids = dataclasses.replace(SMALL, **changes), text(59)
    reference = Reference(model.config, params, options)
    expected = reference.read(ids)
    found, memory = read_all(BlockReader(model, params, options), ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Blocks were chosen among more than there is room for, not simply the latest or the first ones.
    total = len(memory.blocks[0].keys)
    assert total > options.blocks and memory.length == 59
    assert any(c != list(range(len(c))) and max(c) < total - 1 for c in map(sorted, reference.looked_up) if c)
    # The test can fail: with other blocks, or all of them, the states are others.
    other = BlockReader(model, params, dataclasses.replace(options, blocks=options.blocks + 1))
    assert np.abs(read_all(other, ids)[0] - expected).max() > 1e-2


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, params, ids):
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    return model.apply({"params": params}, ids, positions, jnp.ones_like(positions))[0][0]


def full_attention(model, params, ids):
    return np.asarray(_apply(model, params, np.asarray([ids], np.int32)))


MODELS = {
    "llama": {},
    "qwen2": {"biased_projections": ("q_proj", "k_proj", "v_proj")},
    "qwen3": {"qk_norm": "head"},
    "olmo2": {"qk_norm": "whole", "layer_norms": "post", "norm": "olmo2"},
    "smollm3": {"rotated_layers": (True, False, True)},
    "scaled": {"query_pre_attn_scalar": 5.0, "embedding_scale": 2.0},
}


@pytest.mark.parametrize("name", MODELS)
def test_full_attention_as_long_as_nothing_is_far(models, name):
    model, params = models(**MODELS[name])
    options = dataclasses.replace(SMALL, local_tokens=40)
    found, memory = read_all(BlockReader(model, params, options), text(40))
    assert not memory.blocks[0].keys
    np.testing.assert_allclose(found, full_attention(model, params, text(40)), atol=1e-5)


def test_not_full_attention_beyond(models):
    """There, distances are no longer those of the text."""
    model, params = models()
    reader = BlockReader(model, params, dataclasses.replace(SMALL, local_tokens=40))
    found, expected = read_all(reader, text(60))[0], full_attention(model, params, text(60))
    np.testing.assert_allclose(found[:40], expected[:40], atol=1e-5)
    assert np.abs(found[40:] - expected[40:]).max() > 1e-2


def test_full_attention_with_scaled_rotations(models):
    for case in ("llama3", "mistral_full"):
        model, params = models(case)
        found, _ = read_all(BlockReader(model, params, dataclasses.replace(SMALL, local_tokens=30)), text(30))
        np.testing.assert_allclose(found, full_attention(model, params, text(30)), atol=1e-5)


def test_a_text_is_read_once_and_continued_many_times(models):
    model, params = models()
    reader, ids = BlockReader(model, params, SMALL), text(45)
    memory = reader.empty()
    reader.read(memory, ids)
    before = [np.asarray(each.keys) for each in memory.kept], len(memory.blocks[0].keys), memory.length
    prompts = [text(9, seed=1), text(2, seed=2), text(9, seed=1)]
    found = [reader.generate(memory, prompt, 12) for prompt in prompts]
    assert found[0] == found[2] != found[1] and all(len(each) == 12 for each in found)
    after = [np.asarray(each.keys) for each in memory.kept], len(memory.blocks[0].keys), memory.length
    jax.tree.map(np.testing.assert_array_equal, before, after)
    # Alone, each is the same.
    alone = reader.empty()
    reader.read(alone, ids)
    token = reader.read(alone, prompts[1])
    for made in found[1]:
        assert token == made
        token = reader.read(alone, [token])


def test_answers_of_a_short_text_are_those_of_full_attention(models):
    model, params = models()
    reader = BlockReader(model, params, dataclasses.replace(SMALL, local_tokens=64))
    memory, prompt = reader.empty(), text(7, seed=3)
    reader.read(memory, text(30))
    expected = generate(model, {"params": params}, text(30), [prompt], 20)[0]
    assert reader.generate(memory, prompt, 20) == expected
    stop = expected[3]
    for least in (1, 10):
        same = generate(model, {"params": params}, text(30), [prompt], 20, [stop], least)[0]
        assert reader.generate(memory, prompt, 20, [stop], least) == same


def test_no_program_is_compiled_again_as_a_text_grows(models):
    from selfparam_jax.inference import block_memory

    model, params = models()
    reader = BlockReader(model, params, SMALL)
    memory = reader.empty()
    reader.read(memory, text(48))
    programs = [getattr(block_memory, name) for name in ("_project", "_attend", "_embed", "_taken")]
    sizes = [program._cache_size() for program in programs]
    reader.read(memory, text(120, seed=1))
    assert [program._cache_size() for program in programs] == sizes


def test_the_key_that_stands_for_a_block_by_hand():
    keys = np.asarray([[[1.0, 0.0]], [[0.0, 2.0]], [[4.0, 4.0]]], np.float32)  # 3 tokens, 1 head
    received = np.asarray([[0.5, 0.1], [0.1, 0.1], [0.4, 0.3]], np.float32)  # 2 query heads
    found = representative_keys(keys, received, 2)
    np.testing.assert_array_equal(found, [[2.5, 2.0], [2.5, 2.0]])
    received[1, 1] = 0.2  # the second head now prefers the second token to the first
    np.testing.assert_array_equal(representative_keys(keys, received, 2), [[2.5, 2.0], [2.0, 3.0]])


def test_bytes_are_those_of_the_arrays(models):
    model, params = models()
    _, memory = read_all(BlockReader(model, params, SMALL), text(59))
    slots = 3 + 16 + 4 - 1 + 6
    assert memory.device_bytes() == 3 * slots * (2 * 2 * 8 + 4) * 4  # keys and values of 2 heads, 4 numbers received
    blocks = len(memory.blocks[0].keys)
    assert blocks == (59 - 3 - 16) // 4
    assert memory.host_bytes() == 3 * blocks * (4 * 2 * 2 * 8 + 4 * 8) * 4


def test_in_half_precision_and_over_several_devices(models):
    model, params = models()
    ids, expected = text(59), read_all(BlockReader(*models(), SMALL), text(59))[0]
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    found, memory = read_all(BlockReader(model.clone(dtype=jnp.bfloat16), half, SMALL), ids)
    assert found.dtype == memory.blocks[0].keys[0].dtype == jnp.bfloat16
    mesh = meshes.make_mesh(jax.devices()[:4], meshes.MeshConfig(data=1, fsdp=2, tensor=2))
    placed = jax.device_put(params, parameter_shardings(mesh, model.config))
    split = model.clone(sharding=meshes.activation_sharding(mesh))
    np.testing.assert_allclose(read_all(BlockReader(split, placed, SMALL), ids)[0], expected, atol=1e-4)


def test_what_is_refused(models):
    model, params = models()
    windowed = Decoder(model_config_from_hf(tiny.hf_config("mistral", max_position_embeddings=1024)))
    with pytest.raises(ValueError, match=r"window of its own .sliding_window = 5"):
        BlockReader(windowed, params, SMALL)
    capped = Decoder(dataclasses.replace(model.config, attn_logit_softcapping=50.0))
    with pytest.raises(ValueError, match=r"attn_logit_softcapping = 50\.0"):
        BlockReader(capped, params, SMALL)
    with pytest.raises(ValueError, match=r"local_tokens = 4096 is more than the model reads .*1024"):
        BlockReader(model, params)
    reader = BlockReader(model, params, SMALL)
    with pytest.raises(ValueError, match="without tokens"):
        reader.read(reader.empty(), [])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"initial_tokens": -1}, "initial_tokens = -1, expected a whole number from 0 to 1048576"),
        ({"block_tokens": 0}, "block_tokens = 0, expected a whole number from 1 to 65536"),
        ({"chunk_tokens": 0}, "chunk_tokens = 0, expected a whole number from 1"),
        ({"blocks": 0}, "blocks = 0, expected a whole number from 1"),
        ({"local_tokens": 511}, "local_tokens = 511, expected at least chunk_tokens = 512"),
        ({"representatives": 0}, "representatives = 0, expected a whole number from 1"),
        ({"representatives": 129}, "representatives = 129, expected at most block_tokens = 128"),
    ],
)
def test_sizes_out_of_range(changes, words):
    with pytest.raises(ValueError, match=words):
        BlockOptions(**changes)
