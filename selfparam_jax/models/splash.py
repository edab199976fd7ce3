"""Attention by JAX's Pallas kernel for TPUs ("splash attention"), over packed rows and shared prefixes."""

import functools

import jax
import jax.numpy as jnp

from selfparam_jax.distributed.backend import platform
from selfparam_jax.models.masks import EMPTY, PADDING, SHARED

UNIT = 128  # queries and keys of a call are multiples of it
BLOCK = 512  # most queries, and keys, of one block


def splash(queries: jax.Array, blocks: list, segments: list, window: int | None) -> jax.Array:
    """`attend` by the Pallas kernel for TPUs, which holds no [T, S] scores; elsewhere it is interpreted (for tests).

    Relies on the form of packed rows and prefixes: in a row, a segment's positions are adjacent and ascend; keys of
    earlier blocks are SHARED or EMPTY, and their positions come before the queries'.

    Args:
      queries: [B, T, N, H].
      blocks: (keys, values), each [B or 1, K, S_i, H]; the last is the queries' own.
      segments: per block those of queries [B, T] and keys [B or 1, S_i].
      window: tokens of a sliding window, or None.

    Returns:
      [B, T, N, H]. Only a call without earlier blocks can be differentiated.
    """
    scaled = queries * jnp.asarray(queries.shape[-1] ** -0.5, queries.dtype)
    *past, (keys, values) = blocks
    *past_segments, (own, _) = segments
    if not past:
        return _splash_rows(scaled, keys, values, own, own, window, True, False)
    parts = [_splash_rows(scaled, keys, values, own, own, window, True, True)]
    for (keys, values), (_, there) in zip(past, past_segments, strict=True):
        # Rows that share a block are one long row to it.
        folded = scaled.reshape(there.shape[0], -1, *scaled.shape[2:])
        asking = jnp.full(folded.shape[:2], SHARED, jnp.int32)
        out, log_total = _splash_rows(folded, keys, values, asking, there, None, False, True)
        parts.append((out.reshape(scaled.shape), log_total.reshape(scaled.shape[:3])))
    highest = functools.reduce(jnp.maximum, [log_total for _, log_total in parts])
    shares = [jnp.exp(log_total - highest)[..., None] for _, log_total in parts]
    mixed = sum(out.astype(jnp.float32) * share for (out, _), share in zip(parts, shares, strict=True))
    return (mixed / sum(shares)).astype(queries.dtype)


def _splash_rows(queries, keys, values, query_segments, key_segments, window, causal, with_totals):
    """The kernel on every row: [B, T, N, H], and the log of each softmax's denominator [B, T, N] if asked for."""
    # Only where it is used: it is an experimental part of JAX, which no other implementation should depend on.
    from jax.experimental.pallas.ops.tpu import splash_attention

    length = queries.shape[1]
    queries, query_segments = _to_unit(jnp.swapaxes(queries, 1, 2), 2, 0), _to_unit(query_segments, 1, PADDING)
    keys, values = _to_unit(keys, 2, 0), _to_unit(values, 2, 0)
    key_segments = _to_unit(key_segments, 1, PADDING if causal else EMPTY)
    shape = queries.shape[2], keys.shape[2]
    mask = splash_attention.FullMask(shape)
    if causal and window is None:
        mask = splash_attention.CausalMask(shape)
    elif causal:
        mask = splash_attention.LocalMask(shape, (window - 1, 0), offset=0)
    blocks = [next(n for n in (BLOCK, 256, UNIT) if size % n == 0) for size in shape]
    sizes = splash_attention.BlockSizes(
        block_q=blocks[0], block_kv=blocks[1], block_q_dkv=blocks[0], block_kv_dkv=blocks[1],
        block_kv_dkv_compute=blocks[1], block_q_dq=blocks[0], block_kv_dq=blocks[1],
    )  # fmt: skip
    with jax.ensure_compile_time_eval():
        kernel = splash_attention.make_splash_mha(
            splash_attention.MultiHeadMask([mask] * queries.shape[1]), block_sizes=sizes, head_shards=1,
            q_seq_shards=1, save_residuals=with_totals, interpret=platform() != "tpu",
        )  # fmt: skip
    segments = splash_attention.SegmentIds(query_segments, key_segments)
    found = jax.vmap(kernel)(queries, keys, values, segments)
    found = (found[0], found[1][0]) if with_totals else found
    return jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2)[:, :length], found)


def _to_unit(x, axis, value):
    """`x` padded along an axis to a multiple of UNIT."""
    widths = [(0, -size % UNIT if n == axis else 0) for n, size in enumerate(x.shape)]
    return jnp.pad(x, widths, constant_values=value)
