"""Reading a text that many rows will continue: its keys and values, computed once, in pieces of fixed size.

Texts of any length share a few compiled shapes: a cache has one of a few sizes, and is filled by pieces of two sizes.
A beginning that all texts of a call share (worked examples, instructions) is read once.
"""

import collections
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.models.decoder import Decoder, KeyValues, constrain, place_keys
from selfparam_jax.models.masks import EMPTY, SHARED

CACHE_UNIT = 256  # a cache holds REST positions, or 1, 1.5, 2, 3, 4, 6, 8, ... times this many
PIECE = 256  # tokens read in one call
REST = 32  # tokens of the smaller piece, for this many tokens or fewer
LEAST_SHARED = 32  # a shorter common beginning is not worth a pass of its own
REPLACED = 64  # a longer text replaces the one it continues if all but this many tokens of that are shared


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A text that has been read.

    Attributes:
      key_values: of its tokens, B = 1; segments are SHARED where there is a token and EMPTY elsewhere.
      parts: for each piece, in order, its final normed hidden states [T, D] (None for keys and values that were not
        read from a text) and how many of its tokens are real.
    """

    key_values: KeyValues
    parts: tuple[tuple[jax.Array | None, int], ...]

    @property
    def length(self) -> int:
        """Tokens of the text."""
        return sum(count for _, count in self.parts)

    def states(self) -> np.ndarray:
        """The hidden states [length, D], on the host."""
        return np.concatenate([np.asarray(hidden)[:count] for hidden, count in self.parts])

    def last_state(self) -> np.ndarray:
        """The hidden state [D] that predicts the token after the text, on the host."""
        hidden, count = self.parts[-1]
        return np.asarray(hidden)[count - 1]


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is at least `length`."""
    return -(-length // multiple) * multiple


def cache_size(length: int) -> int:
    """Positions of the cache for a text of this many tokens."""
    size = REST if length <= REST else CACHE_UNIT
    while size < length:
        # 256, 384, 512, 768, ...: at most a third of a cache is empty.
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def split(length: int) -> list[int]:
    """Sizes of the pieces in which this many tokens are read; together at least `length`."""
    whole, rest = divmod(length, PIECE)
    return [PIECE] * whole + ([REST if rest <= REST else PIECE] if rest else [])


def common_ids(texts: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all texts share, at most one less than the shortest text."""
    shortest, longest = min(texts), max(texts)  # first and last in dictionary order: all share what these two share
    same = next((n for n, (a, b) in enumerate(zip(shortest, longest, strict=False)) if a != b), len(shortest))
    return min(same, min(map(len, texts)) - 1)


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """Length of the shared beginning if it is worth a pass of its own; 0 if it is too short, or for a single text."""
    same = common_ids(texts)
    return same if len(texts) > 1 and same >= LEAST_SHARED else 0


@functools.partial(jax.jit, static_argnames="model", donate_argnums=2)
def read_piece(
    model: Decoder, variables: dict, cache: KeyValues, input_ids: jax.Array, length: jax.Array, at: jax.Array
) -> tuple[jax.Array, KeyValues]:
    """Reads a piece of a text; its tokens attend to the cache and to each other.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}.
      cache: keys and values of the text before it, with room for the piece; its memory is used again.
      input_ids: int32 [1, T], padded.
      length: how many of the ids are real.
      at: position of the first.

    Returns:
      the hidden states [T, D], and the cache with the piece.
    """
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
    return constrain(model.sharding, hidden[0], None, None), place_keys(model.sharding, cache)


@functools.partial(jax.jit, static_argnames=("model", "size", "rows"))
def empty_cache(model: Decoder, size: int, rows: int = 1) -> KeyValues:
    """A cache of `size` positions in each row, all of them EMPTY."""
    config = model.config
    shape = (config.num_hidden_layers, rows, config.num_key_value_heads, size, config.head_dim)
    zeros = jnp.zeros(shape, model.dtype)
    positions = jnp.zeros((rows, size), jnp.int32)
    empty = KeyValues(zeros, jnp.zeros(shape, model.dtype), positions, jnp.full_like(positions, EMPTY))
    return place_keys(model.sharding, empty)


@functools.partial(jax.jit, static_argnames=("sharding", "size"))
def _resized_copy(sharding, cache, size):
    """A copy of a cache with `size` positions; the cache itself is not changed."""
    missing = size - cache.positions.shape[1]
    wide = ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0))
    longer = KeyValues(
        jnp.pad(cache.keys, wide),
        jnp.pad(cache.values, wide),
        jnp.pad(cache.positions, wide[2:4]),
        jnp.pad(cache.segments, wide[2:4], constant_values=EMPTY),
    )
    return place_keys(sharding, longer)


def _continue(model, variables, begun: Prefix | None, ids, size) -> Prefix:
    """Reads the rest of a text, the beginning of which has been read, into a cache of its own."""
    start = begun.length if begun else 0
    pieces = split(len(ids) - start)
    # The last piece is written with its padding: there must be room for it.
    size = max(size, cache_size(start + sum(pieces)), begun.key_values.positions.shape[1] if begun else 0)
    cache = _resized_copy(model.sharding, begun.key_values, size) if begun else empty_cache(model, size)
    parts = list(begun.parts) if begun else []
    for piece in pieces:
        now = ids[start : start + piece]
        padded = np.zeros((1, piece), np.int32)
        padded[0, : len(now)] = now
        hidden, cache = read_piece(model, variables, cache, padded, np.int32(len(now)), np.int32(start))
        parts.append((hidden, len(now)))
        start += len(now)
    return Prefix(cache, tuple(parts))


def read_prefixes(model: Decoder, variables: dict, texts: Sequence[Sequence[int]]) -> Iterator[Prefix]:
    """Reads texts (ids, at least one each) one after another, and the beginning that they share only once.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}.
      texts: token ids of each text.

    Yields:
      the texts as read, in order.

    Raises:
      ValueError: a text is empty, or longer than the model's max_position_embeddings.
    """
    limit = model.config.max_position_embeddings
    for ids in texts:
        if not len(ids):
            raise ValueError("got a context without tokens, expected at least one to continue from")
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


def nothing_read(model: Decoder) -> Prefix:
    """What rows continue that nothing precedes: a cache of REST empty positions."""
    return Prefix(empty_cache(model, REST), ())


def read_prefix(model: Decoder, variables: dict, ids: Sequence[int]) -> Prefix:
    """Reads one text that several rows will continue; see `read_prefixes`."""
    return next(read_prefixes(model, variables, [ids]))


def shared_block(keys: jax.Array, values: jax.Array) -> KeyValues:
    """Rotated keys, as they are attended to, and values [L, 1, K, S, H] at positions 0 to S - 1 that all rows see."""
    positions = jnp.arange(keys.shape[3], dtype=jnp.int32)[None]
    return KeyValues(keys, values, positions, jnp.full_like(positions, SHARED))


def prefix_of(model: Decoder, keys: jax.Array, values: jax.Array) -> Prefix:
    """Given keys and values as a prefix that rows continue, without the states of a text.

    Args:
      model: the decoder.
      keys, values: [L, 1, K, S, H], as `shared_block` has them.

    Returns:
      the prefix of S tokens, in the model's dtype.
    """
    block = shared_block(jnp.asarray(keys, model.dtype), jnp.asarray(values, model.dtype))
    length = keys.shape[3]
    return Prefix(_resized_copy(model.sharding, block, cache_size(length)), ((None, length),))


@functools.partial(jax.jit, static_argnames=("sharding", "size"))
def _first_tokens(sharding, cache, length, size):
    """The first `length` tokens of a cache, in a copy with `size` positions."""
    positions, segments = cache.positions[:, :size], cache.segments[:, :size]
    segments = jnp.where(jnp.arange(size)[None] < length, segments, EMPTY)
    return place_keys(
        sharding, KeyValues(cache.keys[..., :size, :], cache.values[..., :size, :], positions, segments)
    )


def beginning(model: Decoder, read: Prefix, length: int) -> Prefix:
    """The first tokens of a text that has been read, 1 to all of them, as if nothing else had been."""
    size = min(cache_size(length), read.key_values.positions.shape[1])
    parts, left = [], length
    for hidden, count in read.parts:
        if left > 0:
            parts.append((hidden, min(count, left)))
        left -= count
    return Prefix(_first_tokens(model.sharding, read.key_values, np.int32(length), size), tuple(parts))


class ReadTexts:
    """A cache of the texts that were read last. Of a new text with the same beginning only the rest is read.

    That changes how the text is cut into pieces, so its states may differ by rounding.
    """

    def __init__(self, most: int):
        """Holds nothing yet.

        Args:
          most: texts whose keys and values stay in memory, over all models; 0 for none.
        """
        self._most = most
        # The variables are held, so that none others have their id.
        self._held: collections.OrderedDict[tuple, tuple[dict, Prefix]] = collections.OrderedDict()

    def read(self, model: Decoder, variables: dict, texts: Sequence[tuple[int, ...]]) -> list[Prefix]:
        """Reads texts as `read_prefixes` does, and holds them.

        Args:
          model: the decoder.
          variables: {'params'} or {'params', 'lora'}; the same object for the same model.
          texts: token ids of each text, no two alike.

        Returns:
          the texts as read, in order.

        Raises:
          ValueError: as `read_prefixes`.
        """
        nearest = [self._nearest(variables, ids) for ids in texts]
        others = read_prefixes(
            model, variables, [ids for ids, found in zip(texts, nearest, strict=True) if not found[1]]
        )
        made = []
        for ids, (key, same) in zip(texts, nearest, strict=True):
            if same:
                begun = beginning(model, self._held[key][1], same)
                made.append(_continue(model, variables, begun, ids, 0))
            else:
                made.append(next(others))
        for ids, (key, same), read in zip(texts, nearest, made, strict=True):
            if same and len(key[1]) - same <= REPLACED:
                self._held.pop(key, None)
            self._held[id(variables), ids] = variables, read
            self._held.move_to_end((id(variables), ids))
        while len(self._held) > self._most:
            self._held.popitem(last=False)
        return made

    def _nearest(self, variables: dict, ids: tuple[int, ...]) -> tuple[tuple, int]:
        """The text with the longest beginning of these ids, and its length; 0 if it is not worth a copy."""
        found = [(common_ids([key[1], ids]), key) for key in self._held if key[0] == id(variables) and ids]
        same, key = max(found, key=lambda each: each[0], default=(0, ()))
        return key, same if same >= LEAST_SHARED and 2 * same >= len(ids) else 0
