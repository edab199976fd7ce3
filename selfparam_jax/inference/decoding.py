"""Batched decoding with cached keys and values: greedy, or sampled.

The prefix that all rows share is not copied, unless it is very short. The rows' own prompts are read once into a
block with room for the new tokens, which are written to it inside one compiled loop. On a backend that copies the
slices of stacked arrays (`backend.copies_slices`), a step takes each layer's weights from an array of its own.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.distributed.backend import copies_slices
from selfparam_jax.distributed.ranges import Range, check_ranges
from selfparam_jax.distributed.watchdog import progressed
from selfparam_jax.inference.prefix import REST, Prefix, nothing_read, read_prefix, round_up
from selfparam_jax.models.decoder import Decoder, KeyValues, apply_head, constrain, output_head, written
from selfparam_jax.models.masks import EMPTY, PADDING, SHARED
from selfparam_jax.models.unstacked import layers_apart

# Few shapes, so few programs: one takes longer to compile than most batches take to answer.
PROMPT_BUCKET = 32
NEW_BUCKET = 64
SHORT_PREFIX = REST  # tokens: up to this many, a copy in every row is cheaper than a block of their own
ARGMAX_BLOCK = 128
NO_TOKEN = -1  # stands where the logits are not finite


class NotFiniteLogits(ValueError):
    """A model's logits are NaN or infinite, so that no token follows; it is named."""

    def __init__(self, name: str = "the model"):
        super().__init__(
            f"{name} gives logits that are not finite (NaN or infinity), so it cannot answer: its weights overflow "
            "or are damaged; load it with dtype float32, or get its files again"
        )


@contextlib.contextmanager
def answering(name: str) -> Iterator[None]:
    """Within it, `NotFiniteLogits` of `generate` names the model."""
    try:
        yield
    except NotFiniteLogits as error:
        raise NotFiniteLogits(f"model {name!r}") from error


def _with_room(read: KeyValues, count: int) -> KeyValues:
    """The keys and values, followed by `count` empty slots per row, to be filled one by one.

    Both are one block, as every block of a layer costs two more small products per token.
    """

    def longer(array, axis, value=0):
        widths = [(0, count if n == axis else 0) for n in range(array.ndim)]
        return jnp.pad(array, widths, constant_values=value)

    return KeyValues(
        longer(read.keys, 3), longer(read.values, 3), longer(read.positions, 1), longer(read.segments, 1, EMPTY)
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
      temperature: divides the logits; more than 0.
      top_p: tokens are drawn from the most likely ones that together have this probability; 1 keeps all.
    """

    temperature: Annotated[float, Range(1e-6, 100)] = 1.0
    top_p: Annotated[float, Range(0, 1, open_least=True)] = 1.0

    def __post_init__(self):
        check_ranges(self)


def most_likely(logits: jax.Array, top_p: jax.Array | float) -> jax.Array:
    """Logits [B, V] with all but the fewest tokens that together have probability `top_p` set to -inf.

    `top_p` is one number, or one per row [B, 1].

    The lowest logit to keep is found by bisection over float32 bit patterns, which is exact after 32 passes over the
    row; sorting the row takes ten times as long on a CPU (benchmarks/sampling.py).
    """
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    enough = top_p * jnp.sum(weights, axis=-1, keepdims=True)
    bits = lax.bitcast_convert_type(logits, jnp.int32)
    order = jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)  # integers in the order of the logits

    def halve(_, bounds):
        below, least = bounds
        middle = (below & least) + ((below ^ least) >> 1)  # their mean, without overflow
        above = jnp.sum(jnp.where(order > middle, weights, 0.0), axis=-1, keepdims=True)
        return jnp.where(above < enough, below, middle), jnp.where(above < enough, middle, least)

    # No token is above the most likely one, so that is always kept.
    bounds = jnp.min(order, axis=-1, keepdims=True) - 1, jnp.max(order, axis=-1, keepdims=True)
    _, least = lax.fori_loop(0, 32, halve, bounds)
    return jnp.where(order >= least, logits, -jnp.inf)


def highest(logits: jax.Array) -> jax.Array:
    """argmax over [B, V], int32 [B]: over maxima of blocks first, as a CPU finds an index element by element."""
    batch, size = logits.shape
    if size % ARGMAX_BLOCK:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    blocks = logits.reshape(batch, -1, ARGMAX_BLOCK)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    within = jnp.argmax(jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0], axis=-1)
    return (block * ARGMAX_BLOCK + within).astype(jnp.int32)


def token_or_none(token: jax.Array, logits: jax.Array) -> jax.Array:
    """The tokens [B] that were taken by the logits [B, V], and NO_TOKEN where these are not finite."""
    return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), token, NO_TOKEN)


def _draw(
    logits: jax.Array, sampling: Sampling, seed: jax.Array, rows: jax.Array, step: jax.Array | int
) -> jax.Array:
    """One token per row [B]; every seed, row number and step has a random key of its own."""
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        logits = most_likely(logits, sampling.top_p)
    key = jax.random.fold_in(jax.random.key(seed), step)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _read_prompts(model, variables, prefix, start, prompts, lengths, new_tokens):
    """The state [B, D] that predicts the token after each prompt, and the prompts' cache with room for new tokens."""
    offsets = jnp.arange(prompts.shape[1], dtype=jnp.int32)[None, :]
    valid = offsets < lengths[:, None]
    positions = start + jnp.broadcast_to(offsets, prompts.shape)
    hidden, read = model.apply(
        variables, prompts, positions, jnp.where(valid, 1, PADDING).astype(jnp.int32), (prefix,)
    )
    read = read.replace(segments=jnp.where(valid, SHARED, EMPTY).astype(jnp.int32))
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return last, _with_room(read, new_tokens)


def split_layers(read: KeyValues) -> KeyValues:
    """The same with the keys and values of every layer in an array of their own."""
    return read.replace(keys=tuple(read.keys), values=tuple(read.values))


def _joined(prefix: KeyValues, slots: int, cache: KeyValues) -> KeyValues:
    """One block of the first slots of the shared prefix, copied to each row, and the row's own cache."""

    def join(shared, own, axis):
        first = lax.slice_in_dim(shared, 0, slots, axis=axis)
        shape = (*own.shape[:axis], slots, *own.shape[axis + 1 :])
        return jnp.concatenate([jnp.broadcast_to(first, shape), own], axis)

    return KeyValues(
        join(prefix.keys, cache.keys, 3),
        join(prefix.values, cache.values, 3),
        join(prefix.positions, cache.positions, 1),
        join(prefix.segments, cache.segments, 1),
    )


def read_token(
    model: Decoder,
    variables: dict,
    token: jax.Array,
    position: jax.Array,
    past: tuple[KeyValues, ...],
    at: jax.Array,
) -> tuple[jax.Array, KeyValues]:
    """Reads one more token of every row.

    Args:
      model: the decoder.
      variables: stacked, or with the layers apart as `past` then is.
      token, position: int32 [B].
      past: what the rows attend to; the last block has the rows' own tokens and room for more.
      at: int32 [], the slot of that block that the token is written to.

    Returns:
      the state [B, D] of the token, and the last block of `past` with the token in it.
    """
    ids, position = token[:, None], position[:, None]
    segment = jnp.full_like(position, SHARED)
    if isinstance(variables["params"]["layers"], tuple):
        hidden, cache = model.apply(variables, ids, position, segment, past, at=at)
        return hidden[:, 0], cache
    hidden, new = model.apply(variables, ids, position, segment, past)
    cache = past[-1]
    cache = KeyValues(
        written(cache.keys, new.keys, at, 3),
        written(cache.values, new.values, at, 3),
        written(cache.positions, position, at, 1),
        written(cache.segments, segment, at, 1),
    )
    return hidden[:, 0], cache


@functools.partial(jax.jit, static_argnames=("model", "room", "sampling", "slots"))
def decode(
    model: Decoder,
    variables: dict,
    apart: dict | None,
    prefix: KeyValues,
    start: jax.Array,
    prompts: jax.Array,
    lengths: jax.Array,
    stops: jax.Array,
    rows: jax.Array,
    seed: jax.Array,
    new_tokens: jax.Array,
    least_tokens: jax.Array,
    room: int,
    sampling: Sampling | None,
    slots: int,
) -> tuple[jax.Array, jax.Array]:
    """Continuations of prompts that follow one prefix.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}.
      apart: the same with the layers apart (`layers_apart`), for the steps; None where steps scan over the layers.
      prefix: keys and values that all rows share.
      start: tokens of the prefix.
      prompts: int32 [B, T], padded.
      lengths: int32 [B], tokens of each prompt.
      stops: bool [V], tokens that end a row.
      rows: int32 [B], numbers of the rows, for the random keys.
      seed: of the draws.
      new_tokens: int32 [], the most to make, at most `room`.
      least_tokens: int32 [], no stop before this many.
      room: tokens for which there is room in every row.
      sampling: None takes the most likely token.
      slots: positions of the prefix's cache that are copied to every row; 0 shares the cache.

    Returns:
      tokens [B, room], NO_TOKEN where logits were not finite, and how many were made until all rows stopped.
    """
    batch, width = prompts.shape
    prompts = constrain(model.sharding, prompts, "rows", None)
    head = output_head(variables["params"], model.config, model.sharding)
    last, cache = _read_prompts(model, variables, prefix, start, prompts, lengths, room)
    past, filled = (prefix,), width
    if slots:
        cache, past, filled = _joined(prefix, slots, cache), (), slots + width
    if apart is not None:
        variables, past, cache = apart, tuple(map(split_layers, past)), split_layers(cache)

    def pick(state, step):  # [B, D] -> [B]
        logits = apply_head(state, head)
        token = highest(logits) if sampling is None else _draw(logits, sampling, seed, rows, step)
        return token_or_none(token, logits)

    def ends(token):
        return stops[token] | (token == NO_TOKEN)

    first = pick(last, 0)
    tokens = jnp.zeros((batch, room), jnp.int32).at[:, 0].set(first)

    def unfinished(carry):
        step, _, _, stopped, _ = carry
        return (step < new_tokens) & ((step < least_tokens) | ~jnp.all(stopped))

    def advance(carry):
        step, token, cache, stopped, tokens = carry
        position = start + lengths + step - 1
        state, cache = read_token(model, variables, token, position, (*past, cache), filled + step - 1)
        token = pick(state, step)
        tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return step + 1, token, cache, stopped | ends(token), tokens

    carry = (jnp.int32(1), first, cache, ends(first), tokens)
    made, _, _, _, tokens = lax.while_loop(unfinished, advance, carry)
    return constrain(model.sharding, tokens, None, None), made  # on every device: every process reads them


def _padded(prompts, rows, width):
    """Ids [rows, width] and lengths [rows]; missing rows are copies of the first one and stop when it does."""
    filled = [*prompts, *[prompts[0]] * (rows - len(prompts))]
    ids = np.zeros((rows, width), np.int32)
    for row, prompt in enumerate(filled):
        ids[row, : len(prompt)] = prompt
    return ids, np.asarray([len(prompt) for prompt in filled], np.int32)


def generate(
    model: Decoder,
    variables: dict,
    prefix: Prefix | Sequence[int],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop_ids: Sequence[int] = (),
    least_tokens: int = 1,
    batch_size: int = 16,
    sampling: Sampling | None = None,
    seed: int = 0,
) -> list[list[int]]:
    """Continuations of several prompts that follow one prefix.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}.
      prefix: what every prompt continues: token ids, which are read once, or a `Prefix` that was read with these
        variables. No ids: nothing, so a prompt's own first token is what is read first.
      prompts: token ids, each at least one.
      new_tokens: the most tokens to make per prompt.
      stop_ids: a batch ends early once all its rows have made one of these. The answer includes the id, and also the
        tokens after it that were computed before the batch ended.
      least_tokens: no batch ends before this many.
      batch_size: prompts decoded together.
      sampling: None takes the most likely token.
      seed: together with a prompt's place in the call it decides what is drawn; the batch size does not matter.

    Returns:
      token ids per prompt, at most new_tokens each.

    Raises:
      ValueError: a prompt is empty, or context, prompt and new tokens exceed the model's limit.
      NotFiniteLogits: of a prompt or an answer.
    """
    if not all(prompts):
        raise ValueError("got an empty prompt, expected at least one token to continue from")
    longest = max((len(prompt) for prompt in prompts), default=0)
    limit = model.config.max_position_embeddings
    prefix_length = prefix.length if isinstance(prefix, Prefix) else len(prefix)
    if prefix_length + longest + new_tokens > limit:
        raise ValueError(
            f"{prefix_length} tokens of context, {longest} of question and {new_tokens} new ones exceed the "
            f"model's limit of {limit} (max_position_embeddings); shorten the context"
        )
    if not isinstance(prefix, Prefix):
        prefix = read_prefix(model, variables, prefix) if len(prefix) else nothing_read(model)
    apart = layers_apart(variables) if model.sharding is None and copies_slices() else None
    slots = SHORT_PREFIX if prefix_length <= SHORT_PREFIX else 0
    stops = np.zeros(model.config.vocab_size, bool)
    stops[list(stop_ids)] = True
    width = round_up(longest, PROMPT_BUCKET)
    answers: list[list[int]] = []
    shards = 1 if model.sharding is None else model.sharding.row_shards  # all get the same number of rows
    # Rows in powers of two: the documents of a job differ in how many questions they have.
    rows = round_up(min(batch_size, 1 << max(len(prompts) - 1, 0).bit_length()), shards)
    for begin in range(0, len(prompts), batch_size):
        chunk = prompts[begin : begin + batch_size]
        padded, lengths = _padded(chunk, rows, width)
        numbers = np.arange(begin, begin + rows, dtype=np.int32)
        tokens, made = decode(
            model, variables, apart, prefix.key_values, np.int32(prefix_length), padded, lengths, stops, numbers,
            np.uint32(seed), np.int32(new_tokens), np.int32(least_tokens), round_up(new_tokens, NEW_BUCKET), sampling,
            slots,
        )  # fmt: skip
        found = np.asarray(tokens)[: len(chunk), : int(made)]
        if (found == NO_TOKEN).any():
            raise NotFiniteLogits
        answers.extend(found.tolist())
        progressed()
    return answers
