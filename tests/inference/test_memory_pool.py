"""MemoryLLM's memory: writing and reading equal a slow reference in NumPy, and forgetting follows its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax.checkpoints.memoryllm import MemoryPool
from selfparam_jax.inference.memory_pool import kept_places, read_memory, replace_vectors, split_chunks, write
from selfparam_jax.models.lora import LoraConfig, init_lora

BLOCKS, BLOCK, SCALE = 4, 6, 2.0


def random_pool(config, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    layers, hidden = config.num_hidden_layers, config.hidden_size
    return MemoryPool(draw(layers, BLOCKS * BLOCK, hidden), draw(layers, 1, hidden), draw(hidden), BLOCK)


def random_adapter(params, seed):
    """Both factors random, so that the adapter matters."""
    shapes = init_lora(jax.random.key(0), params, LoraConfig(rank=3))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape), jnp.float32), shapes)


class Reference:
    """A Llama in NumPy, float64, one layer, head and query at a time."""

    def __init__(self, config, params, adapter=None):
        self.config, self.adapter = config, adapter or {}
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def weight(self, layer, block, name):
        kernel = self.params["layers"][block][name]["kernel"][layer]
        pair = self.adapter.get("layers", {}).get(block, {}).get(name)
        if pair is None:
            return kernel
        return kernel + SCALE * np.asarray(pair["a"][layer], np.float64) @ np.asarray(pair["b"][layer], np.float64)

    def norm(self, x, weight):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.config.rms_norm_eps) * weight

    def turned(self, x, position):
        half = self.config.head_dim // 2
        angles = position * self.config.rope_theta ** -(np.arange(half) / half)
        first, second = x[:half], x[half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)]
        )

    def layer(self, n, x):
        """[S, D] -> [S, D]; position s sees positions 0 to s."""
        config, own = self.config, self.params["layers"]
        normed = self.norm(x, own["input_layernorm"]["weight"][n])
        q, k, v = (normed @ self.weight(n, "self_attn", name) for name in ("q_proj", "k_proj", "v_proj"))
        size, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
        attended = np.zeros((len(x), config.num_attention_heads * size))
        for head in range(config.num_attention_heads):
            mine, theirs = (
                slice(head * size, (head + 1) * size),
                slice(head // group * size, (head // group + 1) * size),
            )
            keys = np.stack([self.turned(row, s) for s, row in enumerate(k[:, theirs])])
            for s in range(len(x)):
                scores = keys[: s + 1] @ self.turned(q[s, mine], s) / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                attended[s, mine] = weights / weights.sum() @ v[: s + 1, theirs]
        x = x + attended @ self.weight(n, "self_attn", "o_proj")
        normed = self.norm(x, own["post_attention_layernorm"]["weight"][n])
        gate, up = normed @ self.weight(n, "mlp", "gate_proj"), normed @ self.weight(n, "mlp", "up_proj")
        return x + (gate / (1 + np.exp(-gate)) * up) @ self.weight(n, "mlp", "down_proj")

    def write(self, pool, ids):
        """The new vectors of every layer [L, block, D]."""
        hidden, made = self.params["embed_tokens"]["embedding"][ids], []
        for n in range(self.config.num_hidden_layers):
            x = np.concatenate([pool.bos[n], pool.vectors[n, -BLOCK:], hidden]).astype(np.float64)
            x[-BLOCK:] += np.asarray(pool.positional)
            x = self.layer(n, x)
            made.append(x[-BLOCK:])
            hidden = x[-len(ids) :]
        return np.stack(made)

    def read(self, pool, ids):
        """The final states [T, D] of a prompt after all of the memory."""
        hidden = self.params["embed_tokens"]["embedding"][ids]
        for n in range(self.config.num_hidden_layers):
            x = np.concatenate([pool.bos[n], pool.vectors[n], hidden]).astype(np.float64)
            hidden = self.layer(n, x)[-len(ids) :]
        return self.norm(hidden, self.params["norm"]["weight"])


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("length", [10, 6, 3])  # longer than a block, as long, shorter
def test_writing_is_the_reference(tiny_model, length, adapted):
    pool, ids = random_pool(tiny_model.config), tiny.token_ids(length)[0]
    adapter = random_adapter(tiny_model.params, 1) if adapted else None
    variables = {"params": tiny_model.params} | ({"lora": adapter} if adapted else {})
    after = write(tiny_model.decoder(lora_scale=SCALE), variables, pool, [ids])
    expected = Reference(tiny_model.config, tiny_model.params, adapter).write(pool, ids)
    np.testing.assert_allclose(after.vectors[:, -BLOCK:], expected, rtol=1e-4, atol=1e-4)
    # What was not dropped stays in its order.
    kept = kept_places(pool, jax.random.fold_in(jax.random.key(0), 0))
    for layer, places in enumerate(kept):
        np.testing.assert_array_equal(after.vectors[layer, :-BLOCK], pool.vectors[layer, places])


@pytest.mark.parametrize("adapted", [False, True])
def test_reading_is_the_reference(tiny_model, adapted):
    pool, ids = random_pool(tiny_model.config, 3), tiny.token_ids(7, seed=2)[0]
    adapter = random_adapter(tiny_model.params, 2) if adapted else None
    variables = {"params": tiny_model.params} | ({"lora": adapter} if adapted else {})
    model = tiny_model.decoder(lora_scale=SCALE)
    memory = read_memory(model, variables, pool)
    assert memory.length == 1 + BLOCKS * BLOCK
    positions = memory.length + jnp.arange(7)[None]
    hidden, _ = model.apply(variables, ids[None], positions, jnp.ones_like(positions), (memory.key_values,))
    expected = Reference(tiny_model.config, tiny_model.params, adapter).read(pool, ids)
    np.testing.assert_allclose(hidden[0], expected, rtol=1e-4, atol=1e-4)


def test_several_writes_use_the_memory_of_then(tiny_model):
    """A second text is written after the first one's vectors; the first pool is not changed."""
    pool, model, variables = random_pool(tiny_model.config), tiny_model.decoder(), {"params": tiny_model.params}
    before = np.array(pool.vectors)
    texts = list(tiny.token_ids(9, batch=2))
    after = write(model, variables, pool, texts)
    expected = Reference(tiny_model.config, tiny_model.params).write(
        write(model, variables, pool, texts[:1]), texts[1]
    )
    np.testing.assert_allclose(after.vectors[:, -BLOCK:], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(pool.vectors, before)
    np.testing.assert_array_equal(after.vectors, write(model, variables, pool, texts).vectors)
    assert not np.array_equal(after.vectors, write(model, variables, pool, texts, seed=1).vectors)


def test_dropped_places_of_layers(tiny_model):
    pool = random_pool(tiny_model.config)
    same, own = (
        kept_places(pool, jax.random.key(5)),
        kept_places(pool.replace(drop_per_layer=True), jax.random.key(5)),
    )
    assert same.shape == own.shape == (3, (BLOCKS - 1) * BLOCK)
    assert all(np.array_equal(same[0], layer) for layer in same)
    assert not np.array_equal(own[0], own[1])
    for layer in (*same, *own):
        assert len(set(layer.tolist())) == len(layer) and list(layer) == sorted(layer.tolist())


def test_share_of_a_block_that_is_left():
    """After t further writes the expected share is (1 - 1/n)^t, for n = 50 blocks too."""
    for blocks, writes in ((4, 6), (50, 40)):
        block, seeds = 8, 60
        ages = jnp.full((1, blocks * block, 1), -1.0)
        start = MemoryPool(ages, jnp.zeros((1, 1, 1)), jnp.zeros(1), block)

        def shares(seed, start=start, writes=writes, block=block):
            """Of the block written first, after each further write."""

            def next_write(pool, t):
                key = jax.random.fold_in(jax.random.key(seed), t)
                pool = replace_vectors(pool, jnp.full((1, block, 1), t.astype(jnp.float32)), key)
                return pool, jnp.sum(pool.vectors == 0) / block

            return jax.lax.scan(next_write, start, jnp.arange(writes + 1))[1]

        left = np.asarray(jax.jit(jax.vmap(shares))(jnp.arange(seeds))).mean(axis=0)
        expected = (1 - 1 / blocks) ** np.arange(writes + 1)
        error = np.sqrt(expected * (1 - expected) / (block * seeds))
        assert (np.abs(left - expected) <= 4 * error + 1e-6).all()


def test_chunks():
    assert [len(chunk) for chunk in split_chunks(range(1100))] == [512, 512, 76]
    assert [len(chunk) for chunk in split_chunks(range(520))] == [260, 260]  # not 512 and 8
    assert [len(chunk) for chunk in split_chunks(range(5))] == [5]
    assert [each for chunk in split_chunks(range(1030)) for each in chunk] == list(range(1030))


def test_a_memory_of_another_model_is_refused(tiny_model):
    pool = random_pool(tiny_model.config)
    wrong = pool.replace(vectors=pool.vectors[:2])
    with pytest.raises(ValueError, match=r"memory of shape \(2, 24, 32\)"):
        read_memory(tiny_model.decoder(), {"params": tiny_model.params}, wrong)
    with pytest.raises(ValueError, match="a text without tokens"):
        write(tiny_model.decoder(), {"params": tiny_model.params}, pool, [[]])
