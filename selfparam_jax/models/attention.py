"""Attention over rows of several sentences and over what was read before them, in several implementations.

The axis legend is in `decoder`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from selfparam_jax.models.masks import visible
from selfparam_jax.models.splash import UNIT, splash

MASKED = -1e30  # the score of a key that a query does not see


def attend(
    queries: jax.Array,
    blocks: list[tuple[jax.Array, jax.Array]],
    masks: list[jax.Array],
    softcap: float | None = None,
) -> jax.Array:
    """One softmax over several blocks of keys, without concatenating the keys.

    Args:
      queries: [B, T, N, H].
      blocks: (keys, values), each [B or 1, K, S_i, H].
      masks: one [B, T, S_i] per block; no query's may be all False.
      softcap: scores s are softcap * tanh(s / softcap); None for as they are.

    Returns:
      [B, T, N, H]. Scores and softmax are float32.
    """
    batch, length, heads, head_dim = queries.shape
    kv_heads = blocks[0][0].shape[1]
    grouped = queries.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    return _attend(grouped, blocks, masks, softcap).reshape(batch, length, heads, head_dim)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(queries, blocks, masks, softcap):
    return _attend_forward(queries, blocks, masks, softcap)[0]


def _fold(x, block):
    """[B, T, ...] as [block's B, rest, ...]: rows that share a block are one long row to it."""
    return x.reshape(block.shape[0], -1, *x.shape[2:])


def _to_block(x, block):
    """One number per query [B, T, K, G] in the order of the block's scores, [block's B, K, T, G, 1]."""
    return jnp.swapaxes(_fold(x, block), 1, 2)[..., None]


def _from_block(x, queries):
    """[block's B, K, T, G, ...] as [B, T, K, G, ...]."""
    return jnp.swapaxes(x, 1, 2).reshape(*queries.shape[:4], *x.shape[4:])


def _scores(queries, keys, mask, softcap):
    """Scaled, capped and masked scores, float32 [block's B, K, T, G, S]: so no product needs a transposed side."""
    folded = _fold(queries, keys)
    if folded.shape[1] == 1:  # a step of decoding: the narrow side is the one to transpose
        scores = jnp.einsum("bksh,btkgh->bkstg", keys, folded, preferred_element_type=jnp.float32)
        scores = jnp.moveaxis(scores, 2, 4)
    else:
        scores = jnp.einsum("btkgh,bksh->bktgs", folded, keys, preferred_element_type=jnp.float32)
    scores = scores * queries.shape[-1] ** -0.5
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    return jnp.where(_fold(mask, keys)[:, None, :, None], scores, MASKED)


def _attend_forward(queries, blocks, masks, softcap):
    scores = [_scores(queries, keys, mask, softcap) for (keys, _), mask in zip(blocks, masks, strict=True)]
    highest = functools.reduce(jnp.maximum, [_from_block(jnp.max(score, axis=-1), queries) for score in scores])
    out = total = 0.0
    for score, (_, values) in zip(scores, blocks, strict=True):
        exponentials = jnp.exp(score - _to_block(highest, values))
        total += _from_block(jnp.sum(exponentials, axis=-1), queries)
        weights = exponentials.astype(values.dtype)
        term = jnp.einsum("bktgs,bksh->bktgh", weights, values, preferred_element_type=jnp.float32)
        out += _from_block(term, queries)
    out = (out / total[..., None]).astype(queries.dtype)
    # One number per query is kept for the backward pass, not the [T, S] weights: those are computed again.
    return out, (queries, blocks, masks, out, highest + jnp.log(total))


def _attend_backward(softcap, residuals, gradient):
    queries, blocks, masks, out, log_total = residuals
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_queries, to_blocks = 0.0, []
    for (keys, values), mask in zip(blocks, masks, strict=True):
        folded, own = _fold(queries, keys), jnp.swapaxes(_fold(gradient, values), 1, 2)
        scores = _scores(queries, keys, mask, softcap)
        weights = jnp.exp(scores - _to_block(log_total, keys))
        slope = weights * (product("bktgh,bksh->bktgs", own, values) - _to_block(mean, keys))
        if softcap is not None:  # where the mask is, the weight is 0
            slope = slope * (1 - jnp.square(jnp.where(scores == MASKED, 0.0, scores) / softcap))
        slope = (slope * queries.shape[-1] ** -0.5).astype(queries.dtype)
        to_queries += _from_block(product("bktgs,bksh->bktgh", slope, keys), queries)
        to_keys = product("bktgs,btkgh->bksh", slope, folded).astype(keys.dtype)
        to_values = product("bktgs,bktgh->bksh", weights.astype(queries.dtype), own).astype(values.dtype)
        to_blocks.append((to_keys, to_values))
    return to_queries.astype(queries.dtype), to_blocks, None


_attend.defvjp(_attend_forward, _attend_backward)


# Implementations of attention: ours; those of jax.nn.dot_product_attention; JAX's kernel for TPUs.
BLOCKS, SPLASH = "blocks", "splash"
ATTENTION = (BLOCKS, "xla", "cudnn", SPLASH)
UNCAPPED = ("xla", "cudnn", SPLASH)  # those that have no cap on scores
BACKENDS = {"cudnn": "gpu", SPLASH: "tpu"}  # what an implementation needs


def runs_on(name: str, backend: str) -> bool:
    """Whether an implementation of attention runs on a backend of JAX."""
    return BACKENDS.get(name, backend) == backend


def check_backend(name: str, backend: str) -> None:
    """Raises ValueError if an implementation of attention does not run on a backend of JAX."""
    if not runs_on(name, backend):
        raise ValueError(
            f"attention = {name!r} needs a {BACKENDS[name].upper()}, but JAX runs on {backend!r}; "
            f"set --config.attention={BLOCKS}"
        )


def check_softcap(name: str, softcap: float | None) -> None:
    """Raises ValueError if a model caps its scores and the implementation that is asked for cannot."""
    if softcap is not None and name in UNCAPPED:
        raise ValueError(
            f"attention = {name!r} has no cap on scores, which this model needs (attn_logit_softcapping = "
            f"{softcap}); set attention to {BLOCKS!r}"
        )


def active_implementation(
    name: str, length: int, past: bool, single_block: bool, window: int | None, mixed: bool = False
) -> str:
    """The implementation in a call that asks for `name`: that one where it is possible, else ours.

    Args:
      name: of `ATTENTION`.
      length: T, queries of a row.
      past: something was read before.
      single_block: the tokens are written into the last block of it.
      window: tokens of a sliding window, which no static mask can follow into what was read before; None for none.
      mixed: layers differ in their windows or rotations, which no static mask can follow either.

    Returns:
      one of `ATTENTION`.
    """
    if name == SPLASH:
        possible = length >= UNIT and not single_block and not (past and window) and not mixed
    else:
        possible = not past and not single_block
    return name if possible else BLOCKS


def attention_masks(implementation: str, own: tuple, places: list[tuple], window: int | None) -> list:
    """Which keys each query sees, in the form that `compute_attention` takes for an implementation.

    Args:
      implementation: from `active_implementation`.
      own: positions and segments [B, T] of the queries.
      places: the same of every block's keys, [B or 1, S].
      window: tokens of a sliding window, or None.

    Returns:
      one entry per block: bool [B, T, S]; for SPLASH the segments of queries [B, T] and keys [B or 1, S].
    """
    if implementation == SPLASH:
        return [(own[1], segments) for _, segments in places]
    return [visible(*own, *place, window) for place in places]


def compute_attention(
    implementation: str,
    queries: jax.Array,
    blocks: list,
    masks: list,
    window: int | None,
    sharding: Any,
    softcap: float | None = None,
) -> jax.Array:
    """Attention [B, T, N, H] of queries over blocks of keys and values, the last block their own.

    Args:
      implementation: from `active_implementation`.
      queries: [B, T, N, H].
      blocks: (keys, values), each [B or 1, K, S_i, H].
      masks: from `attention_masks`.
      window: tokens of a sliding window, or None.
      sharding: of arrays on several devices (`mesh.ActivationSharding`), or None.
      softcap: cap on scores, for BLOCKS alone (`check_softcap`), or None.

    Returns:
      float array [B, T, N, H] in the queries' dtype.
    """
    if implementation == BLOCKS:
        return attend(queries, blocks, masks, softcap)
    if implementation == SPLASH:
        return _sharded_splash(queries, blocks, masks, window, sharding)
    keys, values = (jnp.swapaxes(x, 1, 2) for x in blocks[0])
    return jax.nn.dot_product_attention(queries, keys, values, mask=masks[0][:, None], implementation=implementation)


def _sharded_splash(queries, blocks, masks, window, sharding):
    """`splash` where every device has its own rows and heads: a kernel cannot be split by the compiler."""
    if sharding is None:
        return splash(queries, blocks, masks, window)
    leaves, tree = jax.tree.flatten((queries, blocks, masks))

    def names(x):
        rows = "rows" if x.shape[0] == queries.shape[0] else None  # what all rows share is whole everywhere
        if x is queries:
            return rows, None, "heads", None
        return (rows, "heads", None, None) if x.ndim == 4 else (rows, None)

    def alone(*leaves):
        return splash(*tree.unflatten(leaves), window)

    return sharding.each_alone(alone, leaves, list(map(names, leaves)), names(queries))
