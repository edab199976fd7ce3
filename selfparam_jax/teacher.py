"""The teacher's signal: final hidden states at the positions whose next token carries loss.

A context is read once; its sentences then run as packed rows that attend to its keys and values and to
their own segment. What is kept per loss token is D numbers; the frozen head turns them back into the
teacher's full distribution inside the loss. They lie in one file per context, named by everything that they
depend on: a file that exists is right, and a change of anything asks for another one.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from selfparam_jax.attention import BLOCKS
from selfparam_jax.files import replacing_own
from selfparam_jax.mesh import agreed, fetch, put_rows, share_of, sum_of_shares
from selfparam_jax.model import Decoder, KeyValues, apply_head
from selfparam_jax.packing import NO_SLOT, Piece, Rows, fill_rows, first_fit_decreasing
from selfparam_jax.prefix import Prefix, read_prefixes, round_up
from selfparam_jax.processes import progressed
from selfparam_jax.targets import Sentence, context_groups

FORMAT = 1  # of the files; another number makes all old ones unknown
FULL_ROW_BUCKET = 128  # rows of the online teacher are padded to a multiple of this


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the teacher reads: the model, its parameters (no adapter in training), and the shape of its rows.

    Attributes:
      variables: {'params'}, or {'params', 'lora'} for a teacher that has learned something already.
      identity: what names these parameters: fingerprint of the base, digest of the adapter.
      head: the ids read before a sentence that has no context.
      rows, row_length: shape of a packed call; `rows` a multiple of what the mesh splits rows into.
    """

    model: Decoder
    variables: dict
    identity: str
    head: tuple[int, ...]
    mesh: Mesh
    rows: int
    row_length: int


@functools.partial(jax.jit, static_argnames="model")
def states_of_rows(model, variables, input_ids, positions, segments, past):
    """Final hidden states [B, T, D] of packed rows that continue what was read before."""
    return model.apply(variables, input_ids, positions, segments, past)[0]


def read_rows(reader: Reader, rows: Rows, past: tuple[KeyValues, ...], into: np.ndarray) -> None:
    """Hidden states of packed rows at their loss positions, written to `into[slot]`, `reader.rows` rows a call."""
    for begin in range(0, len(rows.input_ids), reader.rows):
        part = rows.take(slice(begin, begin + reader.rows))
        arrays = put_rows(reader.mesh, (part.input_ids, part.positions, part.segments))
        states = fetch(states_of_rows(reader.model, reader.variables, *arrays, past))
        used = part.slots != NO_SLOT
        into[part.slots[used]] = states[used]
        progressed()


def teacher_piece(sentence: Sentence, before: int, first_slot: int) -> tuple[Piece, int | None]:
    """A sentence as the teacher reads it after `before` tokens that have been read already.

    The state that predicts token j stands at token j - 1; for j = 0 that is the last token before it.

    Returns:
      the piece, and the slot that the state before it fills (None if token 0 carries no loss).
    """
    slots = {token: first_slot + n for n, token in enumerate(sentence.loss_tokens)}
    from_before = slots.pop(0, None)
    ones, zeros = (1.0,) * len(slots), (0.0,) * len(slots)
    predictors = tuple(token - 1 for token in slots)
    return Piece(sentence.ids, before, predictors, ones, zeros, tuple(slots.values())), from_before


def read_context(reader: Reader, prefix: Prefix, sentences: Sequence[Sentence]) -> np.ndarray:
    """Hidden states [loss tokens of these sentences, D] of sentences that follow one prefix."""
    states = _room(reader, sentences)
    of_prefix = prefix.states() if any(sentence.start is not None for sentence in sentences) else None
    pieces, slot = [], 0
    for sentence in sentences:
        if sentence.start is not None:  # a tail: it was read with the prefix
            rows = [sentence.start + token - 1 for token in sentence.loss_tokens]
            states[slot : slot + len(rows)] = of_prefix[rows]
        else:
            _check_length(reader.model, prefix.length + len(sentence.ids))
            piece, from_before = teacher_piece(sentence, prefix.length, slot)
            if from_before is not None:
                states[from_before] = prefix.last_state()
            pieces.append(piece)
        slot += len(sentence.loss_tokens)
    read_rows(reader, _packed(reader, pieces), (prefix.key_values,), states)
    return states


def full_piece(before: Sequence[int], sentence: Sentence, first_slot: int) -> Piece:
    """A sentence in one row with all that the teacher reads before it (at least one token)."""
    predictors = tuple(len(before) + token - 1 for token in sentence.loss_tokens)
    slots = tuple(range(first_slot, first_slot + len(predictors)))
    ones, zeros = (1.0,) * len(slots), (0.0,) * len(slots)
    return Piece(tuple(before) + sentence.ids, 0, predictors, ones, zeros, slots)


def read_without_context(reader: Reader, sentences: Sequence[Sentence]) -> np.ndarray:
    """Hidden states [loss tokens of these sentences, D] of sentences that follow the prompt's head alone."""
    states = _room(reader, sentences)
    pieces, slot = [], 0
    for sentence in sentences:
        pieces.append(full_piece(reader.head, sentence, slot))
        slot += len(sentence.loss_tokens)
    read_rows(reader, _packed(reader, pieces), (), states)
    return states


def _room(reader: Reader, sentences: Sequence[Sentence]) -> np.ndarray:
    count = sum(len(sentence.loss_tokens) for sentence in sentences)
    return np.zeros((count, reader.model.config.hidden_size), reader.model.dtype)


def _packed(reader: Reader, pieces: Sequence[Piece]) -> Rows:
    # A teacher's piece holds the sentence alone; the student's, with the head, is what must fit into a row.
    longest = max((len(piece.ids) for piece in pieces), default=0)
    row_length = max(reader.row_length, round_up(longest, reader.row_length))
    assignment = first_fit_decreasing([len(piece.ids) for piece in pieces], row_length)
    return fill_rows(pieces, assignment + [[]] * (-len(assignment) % reader.rows), row_length)


def _check_length(model: Decoder, length: int) -> None:
    limit = model.config.max_position_embeddings
    if length > limit:
        raise ValueError(
            f"context and sentence have {length} tokens together, the model's limit is {limit} "
            "(max_position_embeddings); shorten the context or the sentence"
        )


class Store:
    """Hidden states of all loss tokens of an injection, by slot: [slots, D] in several files.

    A context's slots are contiguous (`targets.first_slots`); its file is memory-mapped, or an array in memory.
    Of several processes each holds a share of every context's.
    """

    def __init__(self, parts: Sequence[np.ndarray], counts: Sequence[int] | None = None):
        """Args:
        parts: per context the states that this process holds.
        counts: per context how many there are; None: all of them are here.
        """
        self._parts, self._shared = list(parts), counts is not None
        counts = [len(part) for part in parts] if counts is None else counts
        self._ends = np.cumsum([0, *counts])
        begins = [share_of(count).start if self._shared else 0 for count in counts]
        self._starts = self._ends[:-1] + np.asarray(begins, np.int64)  # slot of each part's first state

    def __len__(self) -> int:
        return int(self._ends[-1])

    def with_states(self, states: np.ndarray) -> "Store":
        """This store and after it other states [slots, D], the same on every process, in its dtype."""
        states = states.astype(self._parts[0].dtype if self._parts else states.dtype)
        if not self._shared:
            return Store([*self._parts, states])
        return Store([*self._parts, states[share_of(len(states))]], [*np.diff(self._ends), len(states)])

    def take(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D]; zeros where a slot is NO_SLOT or another process holds it."""
        flat = np.asarray(slots).reshape(-1)
        found = np.zeros((len(flat), self._parts[0].shape[1]), self._parts[0].dtype)
        owner = np.searchsorted(self._ends, flat, side="right") - 1
        for part in np.unique(owner[flat != NO_SLOT]):
            mine = np.flatnonzero((owner == part) & (flat != NO_SLOT))
            at = flat[mine] - self._starts[part]
            here = (at >= 0) & (at < len(self._parts[part]))
            found[mine[here]] = self._parts[part][at[here]]
        return found.reshape(*np.shape(slots), found.shape[1])

    def take_all(self, slots: np.ndarray) -> np.ndarray:
        """As `take`, with what other processes hold; every process must call it with the same slots."""
        return sum_of_shares(self.take(slots)) if self._shared else self.take(slots)


def digest(reader: Reader, prefix: Sequence[int], sentences: Sequence[Sentence]) -> str:
    """Names the states of some sentences after a prefix by all that they depend on; 40 hexadecimal digits.

    Token ids stand for tokenizer, prompt format and texts; the shape of the rows is not part of it.
    """
    what = {
        "format": FORMAT,
        "parameters": reader.identity,
        "architecture": repr(reader.model.clone(remat="none", attention=BLOCKS, layout=None)),
        "prefix": list(map(int, prefix)),
        "sentences": [[list(map(int, s.ids)), s.loss_tokens, s.start] for s in sentences],
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:40]


def _save(path: pathlib.Path, states: np.ndarray) -> None:
    with replacing_own(path) as temporary, open(temporary, "wb") as file:
        # .npy knows no bfloat16: its bits are kept as integers.
        np.save(file, states.view(np.uint16) if states.dtype == ml_dtypes.bfloat16 else states, allow_pickle=False)


def _open(path: pathlib.Path, count: int, reader: Reader) -> np.ndarray | None:
    """The memory-mapped states of a file, or None if it is not there or not whole."""
    if not path.exists():
        return None
    try:
        states = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # whatever a damaged header leads to: the states are computed again
        return None
    dtype = np.dtype(reader.model.dtype)
    states = states.view(dtype) if states.dtype == np.uint16 else states
    whole = states.shape == (count, reader.model.config.hidden_size) and states.dtype == dtype
    return states if whole else None


def teacher_store(
    reader: Reader,
    prefixes: Sequence[Sequence[int]],
    sentences: Sequence[Sentence],
    directory: pathlib.Path,
    memory_limit: int = 256 << 20,
    progress=None,
) -> Store:
    """The states of all sentences: read from `directory` where they are, computed and written where not.

    Stopped at any point, it goes on after the last finished context. Files of the directory that belong to
    nothing here are removed in the end.

    Args:
      prefixes: for each context, the ids that the teacher reads before a sentence.
      memory_limit: bytes up to which all states are held in memory; more are memory-mapped.
      progress: called with the number of sentences done after each context, if given.
    """
    directory = _own_directory(directory)
    plan, counts = {}, {}
    for context, members in context_groups(sentences).items():
        chosen = [sentences[i] for i in members]
        prefix = reader.head if context is None else prefixes[context]
        plan[context] = (directory / f"{digest(reader, prefix, chosen)}.npy", chosen)
        counts[context] = sum(len(sentence.loss_tokens) for sentence in chosen)

    def open_part(context) -> np.ndarray | None:
        share = share_of(counts[context])
        return _open(plan[context][0], share.stop - share.start, reader)

    # A context that one process has lost is read again by all of them: they can only read together.
    there = agreed([open_part(context) is not None for context in plan])
    missing = [context for context, has in zip(plan, there, strict=True) if not has]
    reading = read_prefixes(reader.model, reader.variables, [prefixes[c] for c in missing if c is not None])
    for context, (path, chosen) in plan.items():
        if context in missing:
            if context is None:
                states = read_without_context(reader, chosen)
            else:
                states = read_context(reader, next(reading), chosen)
            _save(path, states[share_of(len(states))])
        if progress:
            progress(len(chosen))
    wanted = {path for path, _ in plan.values()}
    for stray in [*directory.glob("*.npy"), *directory.glob(".*.npy.*.tmp")]:  # other states; what a kill cut off
        if stray not in wanted:
            stray.unlink()
    parts = [open_part(context) for context in plan]
    small = sum(part.nbytes for part in parts) <= memory_limit
    parts = [np.array(part) for part in parts] if small else parts
    return Store(parts, list(counts.values()) if jax.process_count() > 1 else None)


def _own_directory(directory: pathlib.Path) -> pathlib.Path:
    """Where this process keeps its share: the directory itself for a single one, else a folder of its own in it.

    Shares of another number of processes are of no use any more and are removed.
    """
    index, count = jax.process_index(), jax.process_count()
    own = directory if count == 1 else directory / f"{index}-of-{count}"
    own.mkdir(parents=True, exist_ok=True)
    if index == 0:
        for other in directory.glob("*-of-*"):
            if not other.name.endswith(f"-of-{count}"):
                shutil.rmtree(other)
    return own


class Online:
    """The teacher read anew for whatever is asked for: the reference, and for a teacher that changes.

    Nothing is shared or packed: every sentence is a row of its own, after its whole context.
    """

    def __init__(
        self, reader: Reader, prefixes: Sequence[Sequence[int]], sentences: Sequence[Sentence], first: np.ndarray
    ):
        self._reader, self._prefixes, self._sentences, self._first = reader, prefixes, sentences, first

    def take(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D]; zeros where a slot is NO_SLOT, and on all processes but the first."""
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
            before = reader.head if sentence.context is None else self._prefixes[sentence.context]
            before = tuple(before)[: sentence.start]
            _check_length(reader.model, len(before) + len(sentence.ids))
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
    teacher: Store | Online,
    sentences: Sequence[Sentence],
    first: np.ndarray,
    chunk: int = 64,
) -> np.ndarray:
    """How likely the teacher finds each sentence's own loss tokens: geometric mean probability, float64 [len].

    Args:
      head: [V, D].
      first: each sentence's first slot.
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
    """Indices of all sentences but the QA pairs whose answer the teacher, with the context in view, finds unlikely.

    A student copies its teacher's mistakes; a pair that the teacher would answer otherwise teaches one.
    """
    return [i for i, value in enumerate(confidence) if sentences[i].kind != "qa" or value >= least]
