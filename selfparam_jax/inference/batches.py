"""Rows that are decoded together a few tokens at a time, so that what is made can be sent on at once.

`decoding.generate` makes whole answers in one compiled loop. A batch here has the same steps, but gives them out
in pieces, and its rows differ in all but the model: prompt, most tokens, stops, temperature, top_p and seed.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.distributed.backend import copies_slices
from selfparam_jax.inference.decoding import (
    NO_TOKEN,
    NotFiniteLogits,
    Sampling,
    highest,
    most_likely,
    read_token,
    split_layers,
    token_or_none,
)
from selfparam_jax.inference.prefix import Prefix, ReadTexts, cache_size, empty_cache, round_up
from selfparam_jax.models.decoder import Decoder, KeyValues, apply_head, constrain, output_head
from selfparam_jax.models.unstacked import layers_apart

PIECE = 8  # tokens of a row in one call


@dataclasses.dataclass(frozen=True)
class Variant:
    """A model that answers: the base, or the base with an adapter.

    Attributes:
      name: what requests call it.
      decoder: applies the variables.
      variables: {'params'} or {'params', 'lora'}.
    """

    name: str
    decoder: Decoder
    variables: dict

    @functools.cached_property
    def apart(self) -> dict:
        """The variables as decoding steps take them: with the layers apart where the backend copies slices."""
        if self.decoder.sharding is None and copies_slices():
            return layers_apart(self.variables)
        return self.variables


@dataclasses.dataclass(frozen=True)
class Continuation:
    """What is to be made.

    Attributes:
      prompt: token ids, at least one.
      new_tokens: the most tokens to make; at least 1.
      stop_ids: ids that end it.
      sampling: None takes the most likely token.
      seed: of the draws, 0 to 2**32 - 1.
      number: of the draws with one seed; the same seed and number give the same tokens as `generate` with this seed
        gives its row of this number.
    """

    prompt: tuple[int, ...]
    new_tokens: int
    stop_ids: tuple[int, ...] = ()
    sampling: Sampling | None = None
    seed: int = 0
    number: int = 0


@functools.partial(jax.jit, donate_argnums=0)
def _put_row(cache: KeyValues, read: KeyValues, row: jax.Array) -> KeyValues:
    """The cache with a text that was read (B = 1) as one of its rows."""

    def put(all_rows, own, axis):
        return lax.dynamic_update_slice(all_rows, own, tuple(row if n == axis else 0 for n in range(own.ndim)))

    return KeyValues(
        put(cache.keys, read.keys, 1),
        put(cache.values, read.values, 1),
        put(cache.positions, read.positions, 0),
        put(cache.segments, read.segments, 0),
    )


def _random_key(step: jax.Array, seed: jax.Array, number: jax.Array) -> jax.Array:
    """The key of one draw, as `generate` has it."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)


@functools.partial(jax.jit, static_argnames=("model", "sampled"), donate_argnames=("cache",))
def _advance(
    model: Decoder,
    variables: dict,
    cache: KeyValues,
    state: jax.Array,
    stopped: jax.Array,
    made: jax.Array,
    rows: dict[str, jax.Array],
    filled: jax.Array,
    count: jax.Array,
    sampled: bool,
) -> tuple[KeyValues, jax.Array, jax.Array, jax.Array]:
    """Up to `count` further tokens of every row; fewer if all rows have stopped.

    Args:
      model: the decoder.
      variables: stacked, or with the layers apart as the cache then is.
      cache: keys and values of every row, with room.
      state: [B, D], predicts each row's next token.
      stopped: bool [B].
      made: int32 [], tokens made so far, of every row.
      rows: lengths, limits, seeds, numbers, temperature, top_p [B], and stops [B, V].
      filled: int32 [], slots of the cache that the prompts take.
      count: int32 [], at most PIECE.
      sampled: whether any row is drawn.

    Returns:
      the cache, the state, which rows have stopped, and the tokens [B, PIECE].
    """
    head = output_head(variables["params"], model.config, model.sharding)
    batch = state.shape[0]

    def pick(state, step):
        logits = apply_head(state, head)
        best = highest(logits)
        if not sampled:
            return token_or_none(best, logits)
        greedy = rows["temperature"] == 0
        scaled = logits / jnp.where(greedy, 1.0, rows["temperature"])[:, None]
        likely = most_likely(scaled, rows["top_p"][:, None])
        scaled = jnp.where((rows["top_p"] < 1)[:, None], likely, scaled)
        keys = jax.vmap(
            lambda seed, number: jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), number)
        )
        drawn = jax.vmap(jax.random.categorical)(keys(rows["seeds"], rows["numbers"]), scaled)
        return token_or_none(jnp.where(greedy, best, drawn.astype(jnp.int32)), logits)

    def unfinished(carry):
        n, _, _, stopped, _ = carry
        return (n < count) & ~jnp.all(stopped)

    def step(carry):
        n, cache, state, stopped, tokens = carry
        token = pick(state, made + n)
        tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, None], n, axis=1)
        ends = rows["stops"][jnp.arange(batch), token] | (token == NO_TOKEN)
        stopped = stopped | ends | (made + n + 1 >= rows["limits"])
        state, cache = read_token(model, variables, token, rows["lengths"] + made + n, (cache,), filled + made + n)
        return n + 1, cache, state, stopped, tokens

    tokens = jnp.zeros((batch, PIECE), jnp.int32)
    _, cache, state, stopped, tokens = lax.while_loop(unfinished, step, (jnp.int32(0), cache, state, stopped, tokens))
    return cache, state, constrain(model.sharding, stopped, None), constrain(model.sharding, tokens, None, None)


class Batch:
    """Continuations that one variant makes together.

    Attributes:
      size: how many they are.
      done: whether each has ended, list of bool.
    """

    def __init__(self, variant: Variant, wanted: Sequence[Continuation], texts: ReadTexts | None = None):
        """Reads the prompts.

        Args:
          variant: the model.
          wanted: at least one.
          texts: those that were read before.

        Raises:
          ValueError: a prompt is empty, or prompt and new tokens exceed the model's limit.
        """
        model, limit = variant.decoder, variant.decoder.config.max_position_embeddings
        for each in wanted:
            if len(each.prompt) + each.new_tokens > limit:
                raise ValueError(
                    f"{len(each.prompt)} tokens of prompt and {each.new_tokens} new ones exceed the model's limit of "
                    f"{limit} (max_position_embeddings)"
                )
        self.size, self.done = len(wanted), [False] * len(wanted)
        self._variant, self._made = variant, 0
        read = self._read([each.prompt for each in wanted], texts or ReadTexts(0))
        self._filled = max(prefix.length for prefix in read)
        shards = 1 if model.sharding is None else model.sharding.row_shards
        room = round_up(1 << (self.size - 1).bit_length(), shards)  # few shapes, so few programs
        size = cache_size(self._filled + max(each.new_tokens for each in wanted))
        size = max(size, *(prefix.key_values.positions.shape[1] for prefix in read))
        cache = empty_cache(model, size, room)
        for row, prefix in enumerate(read):
            cache = _put_row(cache, prefix.key_values, np.int32(row))
        self._cache = split_layers(cache) if isinstance(variant.apart["params"]["layers"], tuple) else cache
        states = [prefix.last_state() for prefix in read]
        self._state = np.stack(states + [states[0]] * (room - self.size))
        self._stopped = np.arange(room) >= self.size
        self._rows = self._columns(wanted, room)
        self._sampled = any(each.sampling for each in wanted)

    def _read(self, prompts: Sequence[tuple[int, ...]], texts: ReadTexts) -> list[Prefix]:
        """Each prompt as read; equal ones once."""
        different = list(dict.fromkeys(prompts))
        read = texts.read(self._variant.decoder, self._variant.variables, different)
        found = dict(zip(different, read, strict=True))
        return [found[prompt] for prompt in prompts]

    def _columns(self, wanted: Sequence[Continuation], room: int) -> dict[str, np.ndarray]:
        """What the rows do not share; missing rows are copies of the first."""
        filled = [*wanted, *[wanted[0]] * (room - len(wanted))]
        stops = np.zeros((room, self._variant.decoder.config.vocab_size), bool)
        for row, each in enumerate(filled):
            stops[row, list(each.stop_ids)] = True

        def column(dtype, value):
            return np.asarray([value(each) for each in filled], dtype)

        return {
            "lengths": column(np.int32, lambda each: len(each.prompt)),
            "limits": column(np.int32, lambda each: each.new_tokens),
            "seeds": column(np.uint32, lambda each: each.seed),
            "numbers": column(np.int32, lambda each: each.number),
            "temperature": column(np.float32, lambda each: each.sampling.temperature if each.sampling else 0.0),
            "top_p": column(np.float32, lambda each: each.sampling.top_p if each.sampling else 1.0),
            "stops": stops,
        }

    def end(self, row: int) -> None:
        """Makes no more tokens of a row."""
        self.done[row] = True
        self._stopped = np.asarray(self._stopped) | (np.arange(len(self._stopped)) == row)

    def advance(self, count: int = PIECE) -> list[list[int]]:
        """The next tokens of each row, [] for one that has ended; the last of a row may be a stop.

        Args:
          count: tokens to make, 1 to PIECE.

        Raises:
          NotFiniteLogits: of a row that has not ended.
        """
        variant = self._variant
        self._cache, self._state, stopped, tokens = _advance(
            variant.decoder, variant.apart, self._cache, self._state, np.asarray(self._stopped), np.int32(self._made),
            self._rows, np.int32(self._filled), np.int32(count), self._sampled,
        )  # fmt: skip
        self._stopped, tokens = np.asarray(stopped), np.asarray(tokens)
        found = []
        for row in range(self.size):
            given = [] if self.done[row] else self._until_end(tokens[row, :count], row)
            if NO_TOKEN in given:
                raise NotFiniteLogits(f"model {variant.name!r}")
            self.done[row] = bool(self._stopped[row])
            found.append(given)
        self._made += count
        return found

    def _until_end(self, tokens: np.ndarray, row: int) -> list[int]:
        """A row's new tokens up to its stop or its limit."""
        tokens = tokens[: self._rows["limits"][row] - self._made]
        (ends,) = np.nonzero(self._rows["stops"][row][tokens])
        return tokens[: ends[0] + 1 if len(ends) else None].tolist()
