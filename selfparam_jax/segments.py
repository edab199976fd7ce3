"""Who may see whom in rows of several sentences, and in what was read before them."""

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
    """Boolean mask [B, T, S]: causal, within the sliding window, same segment or a shared key."""
    query_positions, key_positions = query_positions[:, :, None], key_positions[:, None, :]
    query_segments, key_segments = query_segments[:, :, None], key_segments[:, None, :]
    mask = (key_segments == query_segments) | (key_segments == SHARED)
    mask &= key_positions <= query_positions
    if window is not None:
        mask &= key_positions > query_positions - window
    return mask
