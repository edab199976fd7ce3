"""Which positions see which, in rows of several sentences and in what was read before them."""

import jax

# Segment ids. Two positions of one row see each other only if their segments are equal; positive ids
# are sentences. Padding is its own segment, so a padding position always sees itself and no row of the
# softmax is empty.
PADDING = 0
SHARED = -1  # keys that every segment of the row may see: a context prefix
EMPTY = -2  # keys that nothing may see: unused slots of a cache


def visible(
    query_positions: jax.Array,
    query_segments: jax.Array,
    key_positions: jax.Array,
    key_segments: jax.Array,
    window: int | None,
) -> jax.Array:
    """Boolean mask [B, T, S]: causal, within the sliding window, same segment or a shared key.

    Args:
      query_positions, query_segments: int32 [B, T].
      key_positions, key_segments: int32 [B or 1, S].
      window: keys that a query may look back on, itself included; None: all.

    Returns:
      bool [B, T, S].
    """
    query_positions, key_positions = query_positions[:, :, None], key_positions[:, None, :]
    query_segments, key_segments = query_segments[:, :, None], key_segments[:, None, :]
    mask = (key_segments == query_segments) | (key_segments == SHARED)
    mask &= key_positions <= query_positions
    if window is not None:
        mask &= key_positions > query_positions - window
    return mask
