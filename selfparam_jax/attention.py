"""Attention over rows of several sentences and over what was read before them, in several ways.

Shapes are those of `model`: B rows, T queries, S keys, N query heads, K heads of keys and values, G = N / K, H.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from selfparam_jax.segments import visible
from selfparam_jax.splash import UNIT, splash


def attend(queries: jax.Array, blocks: list[tuple[jax.Array, jax.Array]], masks: list[jax.Array]) -> jax.Array:
    """One softmax over several blocks of keys, without concatenating the keys.

    Args:
      queries: [B, T, N, H].
      blocks: (keys, values), each [B or 1, K, S_i, H].
      masks: one [B, T, S_i] per block; no query's may be all False.

    Returns:
      [B, T, N, H]. Scores and softmax are float32.
    """
    batch, length, heads, head_dim = queries.shape
    kv_heads = blocks[0][0].shape[1]
    grouped = queries.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    return _attend(grouped, blocks, masks).reshape(batch, length, heads, head_dim)


@jax.custom_vjp
def _attend(queries, blocks, masks):
    return _attend_forward(queries, blocks, masks)[0]


def _fold(x, block):
    """[B, T, ...] as [block's B, rest, ...]: rows that share a block are one long row to it."""
    return x.reshape(block.shape[0], -1, *x.shape[2:])


def _to_block(x, block):
    """One number per query [B, T, K, G] in the order of the block's scores, [block's B, K, T, G, 1]."""
    return jnp.swapaxes(_fold(x, block), 1, 2)[..., None]


def _from_block(x, queries):
    """[block's B, K, T, G, ...] as [B, T, K, G, ...]."""
    return jnp.swapaxes(x, 1, 2).reshape(*queries.shape[:4], *x.shape[4:])


def _scores(queries, keys, mask):
    """Scaled and masked scores, float32 [block's B, K, T, G, S]: so no product needs a transposed side."""
    folded = _fold(queries, keys)
    if folded.shape[1] == 1:  # a step of decoding: the narrow side is the one to transpose
        scores = jnp.einsum("bksh,btkgh->bkstg", keys, folded, preferred_element_type=jnp.float32)
        scores = jnp.moveaxis(scores, 2, 4)
    else:
        scores = jnp.einsum("btkgh,bksh->bktgs", folded, keys, preferred_element_type=jnp.float32)
    return jnp.where(_fold(mask, keys)[:, None, :, None], scores * queries.shape[-1] ** -0.5, -1e30)


def _attend_forward(queries, blocks, masks):
    scores = [_scores(queries, keys, mask) for (keys, _), mask in zip(blocks, masks, strict=True)]
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


def _attend_backward(residuals, gradient):
    queries, blocks, masks, out, log_total = residuals
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_queries, to_blocks = 0.0, []
    for (keys, values), mask in zip(blocks, masks, strict=True):
        folded, own = _fold(queries, keys), jnp.swapaxes(_fold(gradient, values), 1, 2)
        weights = jnp.exp(_scores(queries, keys, mask) - _to_block(log_total, keys))
        slope = weights * (product("bktgh,bksh->bktgs", own, values) - _to_block(mean, keys))
        slope = (slope * queries.shape[-1] ** -0.5).astype(queries.dtype)
        to_queries += _from_block(product("bktgs,bksh->bktgh", slope, keys), queries)
        to_keys = product("bktgs,btkgh->bksh", slope, folded).astype(keys.dtype)
        to_values = product("bktgs,bktgh->bksh", weights.astype(queries.dtype), own).astype(values.dtype)
        to_blocks.append((to_keys, to_values))
    return to_queries.astype(queries.dtype), to_blocks, None


_attend.defvjp(_attend_forward, _attend_backward)


# What computes attention: ours; an implementation of jax.nn.dot_product_attention; JAX's kernel for TPUs.
BLOCKS, SPLASH = "blocks", "splash"
ATTENTION = (BLOCKS, "xla", "cudnn", SPLASH)
BACKENDS = {"cudnn": "gpu", SPLASH: "tpu"}  # what a way needs


def runs_on(name: str, backend: str) -> bool:
    """Whether a way of computing attention runs on a backend of JAX."""
    return BACKENDS.get(name, backend) == backend


def check_backend(name: str, backend: str) -> None:
    """Raises ValueError if a way of computing attention does not run on a backend of JAX."""
    if not runs_on(name, backend):
        raise ValueError(
            f"attention = {name!r} needs a {BACKENDS[name].upper()}, but JAX runs on {backend!r}; "
            f"set --config.attention={BLOCKS}"
        )


def way_of(name: str, length: int, past: bool, single_block: bool, window: int | None) -> str:
    """What computes attention in a call that asks for `name`.

    Args:
      length: queries of a row.
      past: something was read before.
      single_block: the tokens are written into the last block of it.
      window: of a sliding window, which no static mask can follow into what was read before.
    """
    if name == SPLASH:
        possible = length >= UNIT and not single_block and not (past and window)
    else:
        possible = not past and not single_block
    return name if possible else BLOCKS


def sight(way: str, own: tuple, places: list[tuple], window: int | None) -> list:
    """Per block what `attended` needs to know of who sees whom.

    Args:
      own: positions and segments [B, T] of the queries.
      places: the same of every block's keys, [B or 1, S].
    """
    if way == SPLASH:
        return [(own[1], segments) for _, segments in places]
    return [visible(*own, *place, window) for place in places]


def attended(way: str, queries: jax.Array, blocks: list, seen: list, window: int | None, layout: Any) -> jax.Array:
    """Attention [B, T, N, H] of queries over blocks of keys and values, the last block their own.

    Args:
      way: of `way_of`.
      blocks: (keys, values), each [B or 1, K, S_i, H].
      seen: of `sight`.
      layout: where arrays lie on several devices, or None (`mesh.Layout`).
    """
    if way == BLOCKS:
        return attend(queries, blocks, seen)
    if way == SPLASH:
        return _laid_out_splash(queries, blocks, seen, window, layout)
    keys, values = (jnp.swapaxes(x, 1, 2) for x in blocks[0])
    return jax.nn.dot_product_attention(queries, keys, values, mask=seen[0][:, None], implementation=way)


def _laid_out_splash(queries, blocks, seen, window, layout):
    """`splash` where every device has its own rows and heads: a kernel cannot be split by the compiler."""
    if layout is None:
        return splash(queries, blocks, seen, window)
    leaves, tree = jax.tree.flatten((queries, blocks, seen))

    def names(x):
        rows = "rows" if x.shape[0] == queries.shape[0] else None  # what all rows share is whole everywhere
        if x is queries:
            return rows, None, "heads", None
        return (rows, "heads", None, None) if x.ndim == 4 else (rows, None)

    def alone(*leaves):
        return splash(*tree.unflatten(leaves), window)

    return layout.each_alone(alone, leaves, list(map(names, leaves)), names(queries))
