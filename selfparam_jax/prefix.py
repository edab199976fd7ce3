"""Reading what many rows will continue: a context's keys and values, once, in pieces of fixed size.

Contexts of any length share a few compiled shapes: a cache has one of a few sizes, and it is filled by
pieces of two. What all texts of a call begin with (worked examples, instructions) is read once.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.model import Decoder, KeyValues, place_keys, placed
from selfparam_jax.segments import EMPTY, SHARED

CACHE_UNIT = 256  # caches hold REST positions, or 1, 1.5, 2, 3, 4, 6, 8, ... times as many as this
PIECE = 256  # tokens read in one call
REST = 32  # tokens of a smaller piece, for as little as that or less
LEAST_SHARED = 32  # a shorter common beginning is not worth a pass of its own


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A text that has been read.

    Attributes:
      key_values: B = 1, segments SHARED where there is a token and EMPTY elsewhere.
      parts: final normed hidden states [T, D] of the pieces, in order, and how many tokens of each are real.
    """

    key_values: KeyValues
    parts: tuple[tuple[jax.Array, int], ...]

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return sum(count for _, count in self.parts)

    def states(self) -> np.ndarray:
        """The hidden states [length, D], on the host."""
        return np.concatenate([np.asarray(hidden)[:count] for hidden, count in self.parts])

    def last_state(self) -> np.ndarray:
        """The hidden state [D] that predicts what comes after the text, on the host."""
        hidden, count = self.parts[-1]
        return np.asarray(hidden)[count - 1]


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is at least `length`."""
    return -(-length // multiple) * multiple


def cache_size(length: int) -> int:
    """Positions of the cache for a text of so many tokens."""
    size = REST if length <= REST else CACHE_UNIT
    while size < length:
        # 256, 384, 512, 768, ...: at most a third of a cache is empty.
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def split(length: int) -> list[int]:
    """Sizes of the pieces in which so many tokens are read; together at least `length`."""
    whole, rest = divmod(length, PIECE)
    return [PIECE] * whole + ([REST if rest <= REST else PIECE] if rest else [])


def common_ids(texts: Sequence[Sequence[int]]) -> int:
    """How many ids all texts begin with, at most one less than the shortest has."""
    shortest, longest = min(texts), max(texts)  # in dictionary order: what these two share, all share
    same = next((n for n, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return min(same, min(map(len, texts)) - 1)


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """How many ids of all texts are worth reading apart, once: 0 if too few, or for a single text."""
    same = common_ids(texts)
    return same if len(texts) > 1 and same >= LEAST_SHARED else 0


@functools.partial(jax.jit, static_argnames="model", donate_argnums=2)
def _read_piece(model, variables, cache, input_ids, length, at):
    """Reads ids [1, T], `length` of them real, as positions `at` on; they see the cache and each other."""
    offsets = jnp.arange(input_ids.shape[1], dtype=jnp.int32)[None, :]
    positions, segments = at + offsets, jnp.where(offsets < length, SHARED, EMPTY).astype(jnp.int32)
    hidden, new = model.apply(variables, input_ids, positions, segments, (cache,))
    cache = KeyValues(
        lax.dynamic_update_slice_in_dim(cache.keys, new.keys, at, axis=3),
        lax.dynamic_update_slice_in_dim(cache.values, new.values, at, axis=3),
        lax.dynamic_update_slice_in_dim(cache.positions, positions, at, axis=1),
        lax.dynamic_update_slice_in_dim(cache.segments, segments, at, axis=1),
    )
    # On every device: every process reads the states.
    return placed(model.layout, hidden[0], None, None), place_keys(model.layout, cache)


@functools.partial(jax.jit, static_argnames=("model", "size"))
def _empty_cache(model, size):
    config = model.config
    shape = (config.num_hidden_layers, 1, config.num_key_value_heads, size, config.head_dim)
    zeros = jnp.zeros(shape, model.dtype)
    positions = jnp.zeros((1, size), jnp.int32)
    empty = KeyValues(zeros, jnp.zeros(shape, model.dtype), positions, jnp.full_like(positions, EMPTY))
    return place_keys(model.layout, empty)


@functools.partial(jax.jit, static_argnames=("layout", "size"))
def _resized_copy(layout, cache, size):
    """A cache of `size` positions that begins like this one (which stays as it is)."""
    missing = size - cache.positions.shape[1]
    wide = ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0))
    longer = KeyValues(
        jnp.pad(cache.keys, wide),
        jnp.pad(cache.values, wide),
        jnp.pad(cache.positions, wide[2:4]),
        jnp.pad(cache.segments, wide[2:4], constant_values=EMPTY),
    )
    return place_keys(layout, longer)


def _continue(model, variables, begun: Prefix | None, ids, size) -> Prefix:
    """Reads the rest of a text after what has been read of it, into a cache of its own."""
    start = begun.length if begun else 0
    pieces = split(len(ids) - start)
    # The last piece is written whole, padding included: there must be room for it.
    size = max(size, cache_size(start + sum(pieces)), begun.key_values.positions.shape[1] if begun else 0)
    cache = _resized_copy(model.layout, begun.key_values, size) if begun else _empty_cache(model, size)
    parts = list(begun.parts) if begun else []
    for piece in pieces:
        now = ids[start : start + piece]
        padded = np.zeros((1, piece), np.int32)
        padded[0, : len(now)] = now
        hidden, cache = _read_piece(model, variables, cache, padded, np.int32(len(now)), np.int32(start))
        parts.append((hidden, len(now)))
        start += len(now)
    return Prefix(cache, tuple(parts))


def read_prefixes(model: Decoder, variables: dict, texts: Sequence[Sequence[int]]) -> Iterator[Prefix]:
    """Reads texts (ids, at least one each) one after another, and what all of them begin with only once.

    Raises:
      ValueError: a text is empty, or longer than the model's max_position_embeddings.
    """
    limit = model.config.max_position_embeddings
    for ids in texts:
        if not len(ids):
            raise ValueError("a context of no tokens: there must be at least one to continue from")
        if len(ids) > limit:
            raise ValueError(
                f"a context of {len(ids)} tokens (prompt format included) exceeds the model's limit of {limit} "
                "(max_position_embeddings); shorten it or split it into several contexts"
            )
    texts = [tuple(ids) for ids in texts]
    shared = common_length(texts) if texts else 0
    smallest = min((cache_size(len(ids)) for ids in texts), default=0)
    begun = _continue(model, variables, None, texts[0][:shared], smallest) if shared else None
    for ids in texts:
        yield _continue(model, variables, begun, ids, 0)


def read_prefix(model: Decoder, variables: dict, ids: Sequence[int]) -> Prefix:
    """Reads one text that several rows will continue; see `read_prefixes`."""
    return next(read_prefixes(model, variables, [ids]))
