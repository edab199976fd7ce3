"""The teacher's signal: final hidden states at the positions whose next token carries loss.

A context is read once; its sentences then run as packed rows that attend to its keys and values and to
their own segment. What is kept per loss token is D numbers; the frozen head turns them back into the
teacher's full distribution inside the loss.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.generate import read_prefix, round_up
from selfparam_jax.model import Decoder, apply_head
from selfparam_jax.packing import Piece, fill_rows, first_fit_decreasing
from selfparam_jax.targets import Sentence, slot_starts


@functools.partial(jax.jit, static_argnames="model")
def _continue_prefix(model, variables, input_ids, positions, segments, index, prefix):
    hidden, _ = model.apply(variables, input_ids, positions, segments, (prefix,))
    return jnp.take_along_axis(hidden, index[:, :, None], axis=1)


def teacher_piece(sentence: Sentence, prefix_length: int, first_slot: int) -> tuple[Piece, int | None]:
    """A sentence as the teacher reads it after its prefix.

    The state that predicts token j stands at token j - 1; for j = 0 that is the prefix's last token.

    Returns:
      the piece, and the slot that the prefix's last state fills (None if token 0 carries no loss).
    """
    predictors, slots, from_prefix, slot = [], [], None, first_slot
    for token in sentence.loss_tokens:
        if token == 0:
            from_prefix = slot
        else:
            predictors.append(token - 1)
            slots.append(slot)
        slot += 1
    ones, zeros = (1.0,) * len(slots), (0.0,) * len(slots)
    return Piece(sentence.ids, prefix_length, tuple(predictors), ones, zeros, tuple(slots)), from_prefix


def teacher_states(
    model: Decoder,
    variables: dict,
    prefixes: Sequence[Sequence[int]],
    head: Sequence[int],
    sentences: Sequence[Sentence],
    row_length: int,
    rows_per_call: int = 4,
    progress=None,
) -> np.ndarray:
    """Hidden states for all loss tokens of all sentences.

    Args:
      variables: the teacher's: the frozen base, without the adapter that is being trained.
      prefixes: for each context, the ids that the teacher reads before a sentence.
      head: the ids read when a sentence has no context.
      row_length: tokens of a packed row.
      progress: called with the number of sentences done after each context, if given.

    Returns:
      float32 [number of loss tokens, D], in the order of `slot_starts(sentences)`.
    """
    starts = slot_starts(sentences)
    store = np.zeros((starts[-1], model.config.hidden_size), np.float32)
    groups: dict[int | None, list[int]] = {}
    for i, sentence in enumerate(sentences):
        groups.setdefault(sentence.context, []).append(i)
    for context, members in groups.items():
        prefix_ids = head if context is None else prefixes[context]
        hidden, prefix = read_prefix(model, variables, prefix_ids)
        hidden = np.asarray(hidden, np.float32)
        pieces = []
        for i in members:
            sentence, slot = sentences[i], int(starts[i])
            if sentence.start is not None:  # a tail: the prefix pass has read it already
                rows = [sentence.start + token - 1 for token in sentence.loss_tokens]
                store[slot : slot + len(rows)] = hidden[rows]
                continue
            piece, from_prefix = teacher_piece(sentence, len(prefix_ids), slot)
            if from_prefix is not None:
                store[from_prefix] = hidden[len(prefix_ids) - 1]
            _check_length(model, len(prefix_ids) + len(sentence.ids))
            pieces.append(piece)
        _read_pieces(model, variables, prefix, pieces, row_length, rows_per_call, store)
        if progress:
            progress(len(members))
    return store


def answer_confidence(
    head: np.ndarray | jax.Array, states: np.ndarray, sentences: Sequence[Sentence], chunk: int = 64
) -> np.ndarray:
    """How likely the teacher finds each sentence's own loss tokens: geometric mean probability, float64 [len].

    Args:
      head: [V, D].
      states: what `teacher_states` returned for these sentences.
    """
    tokens = [sentence.ids[token] for sentence in sentences for token in sentence.loss_tokens]
    padding = -len(states) % chunk
    states = np.pad(states, ((0, padding), (0, 0))).reshape(-1, chunk, states.shape[1])
    wanted = np.pad(np.asarray(tokens, np.int32), (0, padding)).reshape(-1, chunk)
    parts = [np.asarray(_log_probability(head, *part)) for part in zip(states, wanted, strict=True)]
    log_probability = np.concatenate([*parts, np.zeros(0)]).astype(np.float64)
    starts = slot_starts(sentences)
    spans = itertools.pairwise(starts)
    return np.asarray([np.exp(np.mean(log_probability[a:b])) if b > a else 1.0 for a, b in spans])


@jax.jit
def _log_probability(head, states, tokens):
    logits = jax.nn.log_softmax(apply_head(states, head), axis=-1)
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]


def keep_confident(
    sentences: Sequence[Sentence], states: np.ndarray, confidence: np.ndarray, least: float
) -> tuple[list[Sentence], np.ndarray]:
    """Leaves out the QA pairs whose answer the teacher, with the context in view, finds unlikely.

    A student copies its teacher's mistakes; a pair that the teacher would answer otherwise teaches one.
    """
    starts = slot_starts(sentences)
    kept = [i for i, s in enumerate(sentences) if s.kind != "qa" or confidence[i] >= least]
    slots = [np.arange(starts[i], starts[i + 1]) for i in kept]
    return [sentences[i] for i in kept], states[np.concatenate([*slots, np.zeros(0, np.int64)])]


def _check_length(model: Decoder, length: int) -> None:
    limit = model.config.max_position_embeddings
    if length > limit:
        raise ValueError(
            f"context and sentence have {length} tokens together, the model's limit is {limit} "
            "(max_position_embeddings); shorten the context or the sentence"
        )


def _read_pieces(model, variables, prefix, pieces, row_length, rows_per_call, store) -> None:
    """Runs packed rows after a prefix, a fixed number of rows a call, and writes their states to the store."""
    assignment = first_fit_decreasing(pieces, row_length, row_length)
    padded = round_up(len(assignment), rows_per_call)
    rows = fill_rows(pieces, assignment + [[]] * (padded - len(assignment)), row_length, row_length)
    for begin in range(0, padded, rows_per_call):
        part = rows.take(slice(begin, begin + rows_per_call))
        states = _continue_prefix(model, variables, part.input_ids, part.positions, part.segments, part.index, prefix)
        used = part.weights > 0
        store[part.slots[used]] = np.asarray(states, np.float32)[used]
