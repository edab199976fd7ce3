"""Batches of the student: which sentence stands in which row of which step, and the arrays of a step."""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from selfparam_jax.data.packing import (
    Piece,
    Rows,
    fill_rate,
    fill_rows,
    first_fit_decreasing,
    loss_positions,
)
from selfparam_jax.distributed.mesh import put_rows, put_rows_of_shares, shards
from selfparam_jax.targets.sentences import Sentence, lengths_in_rows
from selfparam_jax.training.losses import Signal
from selfparam_jax.training.optimizer import TrainConfig
from selfparam_jax.training.teacher import Teacher
from selfparam_jax.training.train_step import Batch


def student_piece(sentence: Sentence, start_ids: Sequence[int], first_slot: int) -> Piece:
    """A sentence as the student reads it: the prompt's start, then the sentence, positions from 0.

    The state that predicts sentence token j is at the token before it; for j = 0 that is the start's last token.
    """
    tokens, start_ids = sentence.loss_tokens, sentence.start_ids(start_ids)
    return Piece(
        ids=start_ids + sentence.ids,
        first_position=0,
        predictors=tuple(len(start_ids) + j - 1 for j in tokens),
        weights=tuple(sentence.weights[j] for j in tokens),
        supervision=tuple(sentence.supervision[j] if sentence.supervision else 0.0 for j in tokens),
        slots=tuple(int(first_slot) + n for n in range(len(tokens))),
    )


def student_rows(
    sentences: Sequence[Sentence],
    first_slots: np.ndarray,
    start_ids: Sequence[int],
    assignment: Sequence[Sequence[int]],
    seq_len: int,
) -> Rows:
    """Rows of sentences as the student reads them.

    Args:
      sentences: all target sentences.
      first_slots: int [len(sentences)], each sentence's first slot in the teacher's states.
      start_ids: what the student reads before a sentence, at least one id.
      assignment: for each row the indices of its sentences.
      seq_len: tokens per row.

    Returns:
      rows [len(assignment), seq_len].
    """
    members = itertools.chain.from_iterable(assignment)
    pieces = {i: student_piece(sentences[i], start_ids, first_slots[i]) for i in members}
    return fill_rows(pieces, assignment, seq_len)


class Plan:
    """Which sentences stand in which row of which step: a function of the sentences and the seed alone.

    Each epoch has every sentence that is due in it (`Sentence.epochs`) once, and the next `unrelated_per_epoch`
    unrelated texts; every epoch is packed separately. Batches run on across epochs, and the last one is filled up
    with empty rows. Only two epochs are held in memory.

    Attributes:
      steps: optimizer steps of all epochs.
      fill: share of the positions of all steps that hold a token.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        first_slots: np.ndarray,
        start_ids: Sequence[int],
        config: TrainConfig,
        unrelated_per_epoch: int,
    ):
        """Args:
          sentences: all target sentences.
          first_slots: int [len(sentences)], each sentence's first slot in the teacher's states.
          start_ids: what the student reads before a sentence, at least one id.
          config: its epochs, batch_size, seq_len, pack and seed.
          unrelated_per_epoch: unrelated texts of each epoch, taken in turn.

        Raises:
          ValueError: a sentence is longer than a row, or no sentence is due in any epoch.
        """
        self._sentences, self._first_slots, self._start_ids, self._config = sentences, first_slots, start_ids, config
        self._unrelated_per_epoch = unrelated_per_epoch
        self._lengths = np.asarray(lengths_in_rows(sentences, start_ids, config.seq_len), np.int64)
        self._unrelated = [i for i, sentence in enumerate(sentences) if sentence.kind == "unrelated"]
        self._others = [i for i, sentence in enumerate(sentences) if sentence.kind != "unrelated"]
        if not any(self._members(epoch) for epoch in range(config.epochs)):
            raise ValueError("no sentence is left to train on; lower targets.least_confidence or give other contexts")
        self._packed = functools.lru_cache(maxsize=2)(self._pack)
        # Packing sees lengths only, so counting the rows of every epoch costs little.
        counts = [len(self._packed(epoch)) for epoch in range(config.epochs)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.steps = -(-int(self._starts[-1]) // config.batch_size)
        tokens = sum(self._lengths[self._members(epoch)].sum() for epoch in range(config.epochs))
        self.fill = fill_rate([tokens], self.steps * config.batch_size, config.seq_len)

    def _members(self, epoch: int) -> list[int]:
        epochs = [(i, self._sentences[i].epochs) for i in self._others]
        due = [i for i, listed in epochs if listed is None or epoch in listed]
        first = epoch * self._unrelated_per_epoch
        count = self._unrelated_per_epoch if self._unrelated else 0
        return due + [self._unrelated[(first + n) % len(self._unrelated)] for n in range(count)]

    def _pack(self, epoch: int) -> list[list[int]]:
        """Sentences per row of one epoch."""
        rng = np.random.default_rng([self._config.seed, epoch])
        chosen = rng.permutation(np.asarray(self._members(epoch), np.int64))
        lengths = self._lengths[chosen]
        rows = first_fit_decreasing(lengths, self._config.seq_len, one_per_row=not self._config.pack)
        rows = [[int(chosen[i]) for i in row] for row in rows]
        rng.shuffle(rows)
        return rows

    def assignment(self, step: int) -> list[list[int]]:
        """Indices of the sentences in each row of a step."""
        count = self._config.batch_size
        rows = []
        for row in range(step * count, (step + 1) * count):
            epoch = int(np.searchsorted(self._starts, row, side="right")) - 1
            inside = epoch < self._config.epochs
            rows.append(self._packed(epoch)[row - int(self._starts[epoch])] if inside else [])
        return rows

    def rows(self, step: int) -> Rows:
        """The rows of a step."""
        seq_len = self._config.seq_len
        return student_rows(self._sentences, self._first_slots, self._start_ids, self.assignment(step), seq_len)

    def sentence_tokens(self, step: int) -> int:
        """Tokens of the step's sentences; padding and the prompt's start do not count."""
        return sum(len(self._sentences[i].ids) for row in self.assignment(step) for i in row)


def make_batch(rows: Rows, teacher: Teacher | None, mesh: Mesh, supervised: bool, accumulate: int = 1) -> Batch:
    """Rows and what their loss compares, on the mesh.

    Args:
      rows: of one step.
      teacher: None leaves the KL out (plain fine-tuning).
      mesh: the rows of each part are split over it.
      supervised: whether any sentence has supervision; False leaves the next-token loss out.
      accumulate: number of parts that the rows are cut into; with 1 there is no axis for them.

    Returns:
      the batch of one step.
    """
    each, groups = len(rows.input_ids) // accumulate, shards(mesh, "rows")
    parts = [
        _part(rows.take(slice(n * each, (n + 1) * each)), teacher, groups, supervised) for n in range(accumulate)
    ]
    axis = int(accumulate > 1)
    batch, states = jax.tree.map(lambda *leaves: np.stack(leaves), *parts) if axis else parts[0]
    batch = put_rows(mesh, batch, axis)
    if states is None:
        return batch
    return batch.replace(signal=batch.signal.replace(teacher=put_rows_of_shares(mesh, states, axis)))


def _part(rows: Rows, teacher: Teacher | None, groups: int, supervised: bool) -> tuple[Batch, np.ndarray | None]:
    """A batch on the host without its teacher's states, and these (this process's share of them)."""
    at = loss_positions(rows, groups)
    signal = Signal(at.used)
    if teacher is not None:
        signal = signal.replace(weights=at.weights)
    if supervised:
        signal = signal.replace(targets=at.targets, supervision=at.supervision)
    batch = Batch(rows.input_ids, rows.positions, rows.segments, at.index, signal)
    return batch, None if teacher is None else teacher.take(at.slots)


def batches(
    plan: Plan, teacher: Teacher | None, mesh: Mesh, supervised: bool, first: int = 0, accumulate: int = 1
) -> Iterator[Batch]:
    """Batches from step `first` on, on the mesh; the other arguments are those of `make_batch`.

    Args:
      plan: which sentences stand in which step.
      teacher: None leaves the KL out.
      mesh: the arrays are put on it.
      supervised: whether any sentence has supervision.
      first: steps that are done already.
      accumulate: parts that a batch is cut into.

    Returns:
      an iterator over the batches of the steps that are left.
    """
    for step in range(first, plan.steps):
        yield make_batch(plan.rows(step), teacher, mesh, supervised, accumulate)
