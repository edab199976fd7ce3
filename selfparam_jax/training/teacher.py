"""The teacher's signal: final hidden states at the positions whose next token carries loss.

A context is read once; its sentences then run as packed rows that attend to its keys and values and to their own
segment. A hidden state is D numbers per loss token; the frozen head turns it back into the teacher's full
distribution inside the loss.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfparam_jax.data.packing import NO_SLOT, Piece, Rows, fill_rows, first_fit_decreasing
from selfparam_jax.distributed.mesh import fetch, put_rows
from selfparam_jax.distributed.watchdog import progressed
from selfparam_jax.inference.prefix import Prefix, round_up
from selfparam_jax.models.decoder import Decoder, KeyValues, apply_head
from selfparam_jax.targets.sentences import Sentence

FULL_ROW_BUCKET = 128  # rows of the online teacher are padded to a multiple of this


class Teacher(Protocol):
    """Where the teacher's hidden states come from: `teacher_states.Store` or `Online`."""

    def take(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D] for slots of any shape; zeros for NO_SLOT, and for slots of another process."""

    def take_all(self, slots: np.ndarray) -> np.ndarray:
        """The same, for the slots of all processes; all of them must call it with the same slots."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the teacher reads: the model, its parameters (no adapter in training), and the shape of its rows.

    Attributes:
      model: the decoder.
      variables: {'params'}, or {'params', 'lora'} for a teacher that has already learned something.
      identity: names these parameters: fingerprint of the base, digest of the adapter.
      start_ids: the ids read before a sentence that has no context.
      mesh: the devices.
      rows: rows of a packed call; a multiple of the devices that rows are split over.
      seq_len: tokens per row of a packed call.
    """

    model: Decoder
    variables: dict
    identity: str
    start_ids: tuple[int, ...]
    mesh: Mesh
    rows: int
    seq_len: int


@functools.partial(jax.jit, static_argnames="model")
def states_of_rows(model, variables, input_ids, positions, segments, past):
    """Final hidden states [B, T, D] of packed rows that continue what is in `past`.

    Args:
      model: applies the variables.
      variables: {'params'}, or {'params', 'lora'}.
      input_ids, positions, segments: int32 [B, T].
      past: keys and values of what was read before.
    """
    return model.apply(variables, input_ids, positions, segments, past)[0]


def read_rows(reader: Reader, rows: Rows, past: tuple[KeyValues, ...], into: np.ndarray) -> None:
    """Writes the hidden states of packed rows at their loss positions to `into[slot]`.

    Args:
      reader: reads `reader.rows` rows per call.
      rows: a multiple of that.
      past: keys and values of what all rows continue.
      into: [slots, D], on the host.
    """
    for begin in range(0, len(rows.input_ids), reader.rows):
        part = rows.take(slice(begin, begin + reader.rows))
        arrays = put_rows(reader.mesh, (part.input_ids, part.positions, part.segments))
        states = fetch(states_of_rows(reader.model, reader.variables, *arrays, past))
        used = part.slots != NO_SLOT
        into[part.slots[used]] = states[used]
        progressed()


def teacher_piece(sentence: Sentence, before: int, first_slot: int) -> tuple[Piece, int | None]:
    """A sentence as the teacher reads it after `before` tokens of its context.

    The state that predicts token j is at token j - 1; for j = 0 that is the last token of the context.

    Returns:
      the piece, and the slot that the state before it fills (None if token 0 carries no loss).
    """
    slots = {token: first_slot + n for n, token in enumerate(sentence.taught_tokens)}
    from_before = slots.pop(0, None)
    ones, zeros = (1.0,) * len(slots), (0.0,) * len(slots)
    predictors = tuple(token - 1 for token in slots)
    return Piece(sentence.taught_ids, before, predictors, ones, zeros, tuple(slots.values())), from_before


def read_context(reader: Reader, prefix: Prefix, sentences: Sequence[Sentence]) -> np.ndarray:
    """Hidden states [loss tokens of these sentences, D] of sentences that follow one prefix."""
    states = _room(reader, sentences)
    of_prefix = prefix.states() if any(sentence.start is not None for sentence in sentences) else None
    pieces, slot = [], 0
    for sentence in sentences:
        if sentence.start is not None:  # a tail: it was read as part of the prefix
            rows = [sentence.start + token - 1 for token in sentence.loss_tokens]
            states[slot : slot + len(rows)] = of_prefix[rows]
        else:
            _check_length(reader.model, prefix.length + len(sentence.taught_ids))
            piece, from_before = teacher_piece(sentence, prefix.length, slot)
            if from_before is not None:
                states[from_before] = prefix.last_state()
            pieces.append(piece)
        slot += len(sentence.loss_tokens)
    read_rows(reader, _packed(reader, pieces), (prefix.key_values,), states)
    return states


def full_piece(before: Sequence[int], sentence: Sentence, first_slot: int) -> Piece:
    """A sentence in one row with everything that the teacher reads before it.

    That is at least one token, unless the sentence's first token carries no loss.
    """
    predictors = tuple(len(before) + token - 1 for token in sentence.taught_tokens)
    slots = tuple(range(first_slot, first_slot + len(predictors)))
    ones, zeros = (1.0,) * len(slots), (0.0,) * len(slots)
    return Piece(tuple(before) + sentence.taught_ids, 0, predictors, ones, zeros, slots)


def read_without_context(reader: Reader, sentences: Sequence[Sentence]) -> np.ndarray:
    """Hidden states [loss tokens of these sentences, D] of sentences without a document, after their start alone."""
    states = _room(reader, sentences)
    pieces, slot = [], 0
    for sentence in sentences:
        pieces.append(full_piece(sentence.start_ids(reader.start_ids), sentence, slot))
        slot += len(sentence.loss_tokens)
    read_rows(reader, _packed(reader, pieces), (), states)
    return states


def _room(reader: Reader, sentences: Sequence[Sentence]) -> np.ndarray:
    count = sum(len(sentence.loss_tokens) for sentence in sentences)
    return np.zeros((count, reader.model.config.hidden_size), reader.model.dtype)


def _packed(reader: Reader, pieces: Sequence[Piece]) -> Rows:
    # The teacher's piece is the sentence alone; the student's, with the prompt's start, is what must fit into a row.
    longest = max((len(piece.ids) for piece in pieces), default=0)
    seq_len = max(reader.seq_len, round_up(longest, reader.seq_len))
    assignment = first_fit_decreasing([len(piece.ids) for piece in pieces], seq_len)
    return fill_rows(pieces, assignment + [[]] * (-len(assignment) % reader.rows), seq_len)


def _check_length(model: Decoder, length: int) -> None:
    limit = model.config.max_position_embeddings
    if length > limit:
        raise ValueError(
            f"context and sentence have {length} tokens together, the model's limit is {limit} "
            "(max_position_embeddings); shorten the context or the sentence"
        )


class Online:
    """Reads with the teacher whenever states are asked for: the reference, and for a teacher that changes.

    Nothing is shared or packed: every sentence is a row of its own, after its whole context.
    """

    def __init__(
        self, reader: Reader, prefixes: Sequence[Sequence[int]], sentences: Sequence[Sentence], first: np.ndarray
    ):
        """Args:
        reader: how the teacher reads.
        prefixes: for each context, the ids that the teacher reads before a sentence.
        sentences: all target sentences.
        first: int [len(sentences)], each sentence's first slot.
        """
        self._reader, self._prefixes, self._sentences, self._first = reader, prefixes, sentences, first

    def take(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D]; zeros where a slot is NO_SLOT, and on all processes but the main one."""
        found = self.take_all(slots)
        return found if jax.process_index() == 0 else np.zeros_like(found)

    def take_all(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D] on every process; zeros where a slot is NO_SLOT."""
        reader = self._reader
        flat = np.asarray(slots).reshape(-1)
        order = np.argsort(self._first, kind="stable")
        order = order[[bool(self._sentences[i].loss_tokens) for i in order]]
        owners = order[np.searchsorted(self._first[order], flat[flat != NO_SLOT], side="right") - 1]
        pieces, next_slot, where = [], 0, {}
        for i in dict.fromkeys(owners.tolist()):
            sentence = self._sentences[i]
            without = sentence.context is None
            before = sentence.start_ids(reader.start_ids) if without else self._prefixes[sentence.context]
            before = tuple(before)[: sentence.start]
            _check_length(reader.model, len(before) + len(sentence.taught_ids))
            pieces.append(full_piece(before, sentence, next_slot))
            where[i], next_slot = next_slot, next_slot + len(sentence.loss_tokens)
        found = np.zeros((len(flat), reader.model.config.hidden_size), reader.model.dtype)
        if pieces:
            length = round_up(max(len(piece.ids) for piece in pieces), FULL_ROW_BUCKET)
            alone = [[n] for n in range(len(pieces))] + [[]] * (-len(pieces) % reader.rows)
            states = np.zeros((next_slot, found.shape[1]), found.dtype)
            read_rows(reader, fill_rows(pieces, alone, length), (), states)
            at = [
                where[int(i)] + slot - self._first[i] for i, slot in zip(owners, flat[flat != NO_SLOT], strict=True)
            ]
            found[flat != NO_SLOT] = states[np.asarray(at, np.int64)]
        return found.reshape(*np.shape(slots), found.shape[1])


def answer_confidence(
    head: np.ndarray | jax.Array,
    teacher: Teacher,
    sentences: Sequence[Sentence],
    first: np.ndarray,
    chunk: int = 64,
) -> np.ndarray:
    """How likely the teacher finds each sentence's own loss tokens.

    Args:
      head: of the language model, [V, D].
      teacher: has the states of all these sentences.
      sentences: target sentences.
      first: int [len(sentences)], each sentence's first slot.
      chunk: loss tokens whose logits over the vocabulary are in memory at a time.

    Returns:
      geometric mean probability of each sentence's loss tokens, float64 [len(sentences)]; 1 where there are none.
    """
    tokens = [sentence.ids[token] for sentence in sentences for token in sentence.loss_tokens]
    slots = [first[i] + n for i, sentence in enumerate(sentences) for n in range(len(sentence.loss_tokens))]
    padding = -len(slots) % chunk
    slots = np.pad(np.asarray(slots, np.int64), (0, padding), constant_values=NO_SLOT).reshape(-1, chunk)
    wanted = np.pad(np.asarray(tokens, np.int32), (0, padding)).reshape(-1, chunk)
    parts = [_log_probability(head, teacher.take_all(s), w) for s, w in zip(slots, wanted, strict=True)]
    log_probability = np.concatenate([*map(np.asarray, parts), np.zeros(0)]).astype(np.float64)
    ends = np.cumsum([0] + [len(sentence.loss_tokens) for sentence in sentences])
    spans = itertools.pairwise(ends)
    return np.asarray([np.exp(np.mean(log_probability[a:b])) if b > a else 1.0 for a, b in spans])


@jax.jit
def _log_probability(head, states, tokens):
    logits = jax.nn.log_softmax(apply_head(jnp.asarray(states), head), axis=-1)
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]


def confident(sentences: Sequence[Sentence], confidence: Iterable[float], least: float) -> list[int]:
    """Indices of the sentences to keep: all but the QA pairs whose answer the teacher finds unlikely.

    The teacher has the document in the prompt. A student copies its mistakes, and a pair that it would answer
    differently teaches one.

    Args:
      sentences: target sentences.
      confidence: of each of them, as `answer_confidence` gives it.
      least: QA pairs below this are left out.
    """
    return [i for i, value in enumerate(confidence) if sentences[i].kind != "qa" or value >= least]
