"""Writing texts into MemoryLLM's memory, and reading it before a prompt (arXiv 2402.04624).

A pool is a value: writing gives a new one, so the trained memory stays what it was.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.checkpoints.memoryllm import MemoryPool
from selfparam_jax.inference.prefix import Prefix, prefix_of, round_up
from selfparam_jax.models.architecture import LAYER_NORMS
from selfparam_jax.models.attention import BLOCKS
from selfparam_jax.models.decoder import Decoder, DecoderLayer, Projection, RMSNorm
from selfparam_jax.models.masks import SHARED, visible
from selfparam_jax.models.rope import rotary_angles, rotate

CHUNK = 512  # tokens of one write at most
CHUNK_UNIT = 64  # chunks are padded to a multiple of this many tokens, so that they share a few compiled shapes
LEAST_TOKENS = 16  # a chunk of fewer tokens was not seen in training and disturbs the memory


def split_chunks(ids: Sequence[int], size: int = CHUNK) -> list[Sequence[int]]:
    """A text in chunks of `size` tokens; the last two share theirs if the last had fewer than LEAST_TOKENS."""
    starts = list(range(0, len(ids), size))
    if len(starts) > 1 and len(ids) - starts[-1] < LEAST_TOKENS:
        starts[-1] = (starts[-2] + len(ids)) // 2
    return [ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)]


def kept_places(pool: MemoryPool, key: jax.Array) -> jax.Array:
    """Places of the vectors that stay at a write, int32 [L, M - block], ascending; random by the key."""
    layers, size, _ = pool.vectors.shape
    # Layers that drop vectors at the same places have the same key.
    keys = jax.random.split(key, layers) if pool.drop_per_layer else jnp.broadcast_to(key, (layers,))
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, size))(keys)
    return jnp.sort(shuffled[:, : size - pool.block], axis=1).astype(jnp.int32)


def _layer_of(model: Decoder) -> DecoderLayer:
    return DecoderLayer(model.config, model.lora_scale, 0.0, True, model.sharding, BLOCKS, parent=None)


def _check(model: Decoder, pool: MemoryPool) -> None:
    """Raises ValueError for a decoder whose layers are not Llama's, or a pool of another shape."""
    config = model.config
    expected = config.num_hidden_layers, config.hidden_size
    if (pool.vectors.shape[0], pool.vectors.shape[2]) != expected or pool.block > pool.vectors.shape[1]:
        raise ValueError(
            f"got a memory of shape {pool.vectors.shape} in blocks of {pool.block}, expected {expected[0]} layers of "
            f"at least a block of vectors of size {expected[1]}"
        )
    plain = config.layer_norms == "pre" and config.qk_norm is None and config.embedding_scale == 1.0
    kinds = set(config.layer_kinds)
    if not plain or len(kinds) > 1 or next(iter(kinds)).window is not None or next(iter(kinds)).rope != "global":
        raise ValueError("a memory needs the layers of a Llama: norms before each block, no windows, one rotation")


@functools.partial(jax.jit, static_argnames="model")
def new_vectors(
    model: Decoder, variables: dict, pool: MemoryPool, input_ids: jax.Array, length: jax.Array
) -> jax.Array:
    """What every layer makes of a chunk: its output at the last `block` positions.

    A layer reads [BOS, the newest block of its memory, chunk]. A chunk shorter than a block makes its vectors also
    from the end of the old block.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}.
      pool: the memory.
      input_ids: int32 [1, T], padded at the end.
      length: how many of the ids are real, at least 1.

    Returns:
      [L, block, D].
    """
    block, params = pool.block, variables["params"]
    total = 1 + block + input_ids.shape[1]
    positions = jnp.arange(total, dtype=jnp.int32)[None]
    segments = jnp.full_like(positions, SHARED)  # the padding stands behind all: no token sees it
    cos, sin = rotary_angles(model.config, positions)
    masks = [visible(positions, segments, positions, segments, None)]
    first = 1 + length  # of the last `block` real positions
    becomes_new = (positions >= first) & (positions < first + block)
    mark = jnp.where(becomes_new[..., None], pool.positional[None, None], 0).astype(model.dtype)
    layer = _layer_of(model)

    def through(hidden, own):
        own_params, adapter, bos, memory = own
        x = jnp.concatenate([bos[None], memory[None], hidden], axis=1) + mark
        x, _ = layer.apply({"params": own_params, "lora": adapter}, x, [], cos, sin, masks)
        return x[:, 1 + block :], lax.dynamic_slice_in_dim(x[0], first, block)

    hidden = params["embed_tokens"]["embedding"][input_ids].astype(model.dtype)
    adapters = variables.get("lora", {}).get("layers", {})
    _, made = lax.scan(through, hidden, (params["layers"], adapters, pool.bos, pool.vectors[:, -block:]))
    return made


@jax.jit
def replace_vectors(pool: MemoryPool, made: jax.Array, key: jax.Array) -> MemoryPool:
    """The pool after a write: a block of random old vectors is dropped, the new ones [L, block, D] stand last."""
    kept = jnp.take_along_axis(pool.vectors, kept_places(pool, key)[:, :, None], axis=1)
    return pool.replace(vectors=jnp.concatenate([kept, made.astype(kept.dtype)], axis=1))


def write(
    model: Decoder, variables: dict, pool: MemoryPool, texts: Sequence[Sequence[int]], seed: int = 0
) -> MemoryPool:
    """Writes texts into a memory, one after another, in chunks of at most CHUNK tokens.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}, for writing.
      pool: the memory before; it is not changed.
      texts: token ids of each text, without BOS.
      seed: of the vectors that are dropped.

    Returns:
      the memory after all texts.

    Raises:
      ValueError: a text is empty, or the memory does not belong to the decoder.
    """
    _check(model, pool)
    if not all(len(ids) for ids in texts):
        raise ValueError("got a text without tokens, expected at least one to write into the memory")
    chunks = [chunk for ids in texts for chunk in split_chunks(ids)]
    for number, chunk in enumerate(chunks):
        padded = np.zeros((1, round_up(len(chunk), CHUNK_UNIT)), np.int32)
        padded[0, : len(chunk)] = chunk
        made = new_vectors(model, variables, pool, padded, np.int32(len(chunk)))
        pool = replace_vectors(pool, made, jax.random.fold_in(jax.random.key(seed), number))
    return pool


@functools.partial(jax.jit, static_argnames="model")
def memory_key_values(model: Decoder, variables: dict, pool: MemoryPool) -> tuple[jax.Array, jax.Array]:
    """Keys, rotated, and values of BOS and all memory vectors, each [L, 1, K, 1 + M, H]."""
    config = model.config
    positions = jnp.arange(1 + pool.vectors.shape[1], dtype=jnp.int32)[None]
    cos, sin = rotary_angles(config, positions)
    norm_name = LAYER_NORMS[config.layer_norms][0]

    def of_layer(_, own):
        own_params, adapter, bos, memory = own
        x = jnp.concatenate([bos, memory])[None].astype(model.dtype)
        x = RMSNorm(config.rms_norm_eps, config.norm).apply({"params": own_params[norm_name]}, x)

        def project(name):
            size = config.num_key_value_heads * config.head_dim
            projection = Projection(size, name in config.biased_projections, model.lora_scale, 0.0, model.sharding)
            own = {"params": own_params["self_attn"][name], "lora": adapter.get("self_attn", {}).get(name, {})}
            heads = projection.apply(own, x, True)
            return heads.reshape(1, -1, config.num_key_value_heads, config.head_dim)

        keys, values = rotate(project("k_proj"), cos, sin), project("v_proj")
        return None, (jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2))

    adapters = variables.get("lora", {}).get("layers", {})
    _, read = lax.scan(of_layer, None, (variables["params"]["layers"], adapters, pool.bos, pool.vectors))
    return read


def read_memory(model: Decoder, variables: dict, pool: MemoryPool) -> Prefix:
    """A memory as the prefix of 1 + M positions that prompts continue.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}, for reading.
      pool: the memory.

    Returns:
      the prefix; a prompt after it has no BOS of the tokenizer.

    Raises:
      ValueError: the memory does not belong to the decoder.
    """
    _check(model, pool)
    return prefix_of(model, *memory_key_values(model, variables, pool))
