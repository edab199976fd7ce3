"""Batched greedy decoding with cached keys and values.

Nothing large is ever copied: what was read before (a context prefix shared by all rows, the rows' own
prompts) stays as it is, and only the small block of new tokens is written, inside one compiled loop.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.model import EMPTY, PADDING, SHARED, Decoder, KeyValues, apply_head, head_weight

PREFIX_BUCKET = 128  # prefixes are padded to a multiple of this: few shapes, few compilations
PROMPT_BUCKET = 32


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple that is at least `length`."""
    return -(-length // multiple) * multiple


@functools.partial(jax.jit, static_argnames="model")
def _read_prefix(model: Decoder, variables: dict, input_ids, positions, segments):
    return model.apply(variables, input_ids, positions, segments)


def read_prefix(model: Decoder, variables: dict, ids: Sequence[int]) -> tuple[jax.Array, KeyValues]:
    """Reads a text that several rows will continue.

    Returns:
      hidden [len(ids) rounded up, D] (final normed, rows past len(ids) meaningless) and KeyValues with
      B = 1 and SHARED segments.

    Raises:
      ValueError: the text is longer than the model's max_position_embeddings.
    """
    limit = model.config.max_position_embeddings
    if len(ids) > limit:
        raise ValueError(
            f"a context of {len(ids)} tokens (prompt format included) exceeds the model's limit of {limit} "
            "(max_position_embeddings); shorten it or split it into several contexts"
        )
    length = min(round_up(len(ids), PREFIX_BUCKET), limit)
    padded = np.zeros((1, length), np.int32)
    padded[0, : len(ids)] = ids
    positions = np.arange(length, dtype=np.int32)[None]
    segments = np.where(positions < len(ids), SHARED, EMPTY).astype(np.int32)
    hidden, key_values = _read_prefix(model, variables, padded, positions, segments)
    return hidden[0], key_values


def _unused_slots(like: KeyValues, count: int) -> KeyValues:
    """Room for `count` positions of every row of `like`, to be filled one by one."""
    shape = (*like.keys.shape[:2], count, *like.keys.shape[3:])
    zeros = jnp.zeros(shape, like.keys.dtype)
    positions = jnp.zeros((shape[1], count), jnp.int32)
    return KeyValues(zeros, zeros, positions, jnp.full_like(positions, EMPTY))


@functools.partial(jax.jit, static_argnames=("model", "new_tokens", "least_tokens"))
def _decode(
    model: Decoder,
    variables: dict,
    prefix: KeyValues,
    start: jax.Array,
    prompts: jax.Array,
    lengths: jax.Array,
    stops: jax.Array,
    new_tokens: int,
    least_tokens: int,
) -> tuple[jax.Array, jax.Array]:
    """Greedy continuation [B, new_tokens] of prompts [B, T], and how many were made until all rows stopped."""
    batch, width = prompts.shape
    head = head_weight(variables["params"])
    offsets = jnp.arange(width, dtype=jnp.int32)[None, :]
    valid = offsets < lengths[:, None]
    positions = start + jnp.broadcast_to(offsets, prompts.shape)
    hidden, read = model.apply(
        variables, prompts, positions, jnp.where(valid, 1, PADDING).astype(jnp.int32), (prefix,)
    )
    read = read.replace(segments=jnp.where(valid, SHARED, EMPTY).astype(jnp.int32))
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]

    def pick(state):  # [B, D] -> [B]
        return jnp.argmax(apply_head(state, head), axis=-1).astype(jnp.int32)

    recent = _unused_slots(read, new_tokens)
    first = pick(last)
    tokens = jnp.zeros((batch, new_tokens), jnp.int32).at[:, 0].set(first)

    def unfinished(carry):
        step, _, _, stopped, _ = carry
        return (step < new_tokens) & ((step < least_tokens) | ~jnp.all(stopped))

    def advance(carry):
        step, token, recent, stopped, tokens = carry
        position = (start + lengths + step - 1)[:, None]
        segment = jnp.ones_like(position)
        hidden, new = model.apply(variables, token[:, None], position, segment, (prefix, read, recent))
        at = step - 1
        recent = KeyValues(
            lax.dynamic_update_slice_in_dim(recent.keys, new.keys, at, axis=2),
            lax.dynamic_update_slice_in_dim(recent.values, new.values, at, axis=2),
            lax.dynamic_update_slice_in_dim(recent.positions, position, at, axis=1),
            lax.dynamic_update_slice_in_dim(recent.segments, jnp.full_like(segment, SHARED), at, axis=1),
        )
        token = pick(hidden[:, 0])
        tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, None], step, axis=1)
        return step + 1, token, recent, stopped | stops[token], tokens

    carry = (jnp.int32(1), first, recent, stops[first], tokens)
    made, _, _, _, tokens = lax.while_loop(unfinished, advance, carry)
    return tokens, made


def generate(
    model: Decoder,
    variables: dict,
    prefix_ids: Sequence[int],
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    stop_ids: Sequence[int] = (),
    least_tokens: int = 1,
    batch_size: int = 16,
) -> list[list[int]]:
    """Greedy answers to several prompts that continue one prefix.

    Args:
      variables: {'params'} or {'params', 'lora'}.
      prefix_ids: what every prompt continues (at least one token); read once.
      prompts: token ids, each at least one.
      new_tokens: tokens to make per prompt.
      stop_ids: a batch ends early once all its rows have made one of these. The ids are kept in the answer,
        and what a row makes after its own stop is kept too, as far as it was computed.
      least_tokens: no batch ends before this many.

    Returns:
      token ids per prompt, at most new_tokens each.
    """
    if not all(prompts):
        raise ValueError("an empty prompt: generation needs at least one token to continue from")
    longest = max((len(prompt) for prompt in prompts), default=0)
    limit = model.config.max_position_embeddings
    if len(prefix_ids) + longest + new_tokens > limit:
        raise ValueError(
            f"{len(prefix_ids)} tokens of context, {longest} of question and {new_tokens} new ones exceed the "
            f"model's limit of {limit} (max_position_embeddings); shorten the context"
        )
    _, prefix = read_prefix(model, variables, prefix_ids)
    stops = np.zeros(model.config.vocab_size, bool)
    stops[list(stop_ids)] = True
    width = round_up(longest, PROMPT_BUCKET)
    answers: list[list[int]] = []
    for begin in range(0, len(prompts), batch_size):
        chunk = prompts[begin : begin + batch_size]
        # Rows are padded to the batch size with copies of the first: one shape, and they stop when it does.
        rows = list(chunk) + [chunk[0]] * (min(batch_size, len(prompts)) - len(chunk))
        padded = np.zeros((len(rows), width), np.int32)
        for row, prompt in enumerate(rows):
            padded[row, : len(prompt)] = prompt
        lengths = np.asarray([len(prompt) for prompt in rows], np.int32)
        start = np.int32(len(prefix_ids))
        tokens, made = _decode(model, variables, prefix, start, padded, lengths, stops, new_tokens, least_tokens)
        answers.extend(row[: int(made)].tolist() for row in np.asarray(tokens)[: len(chunk)])
    return answers
