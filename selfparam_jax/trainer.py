"""The student: packed rows, one jitted and device-mapped KL step on the adapter, data order by (seed, step)."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from selfparam_jax.mesh import put_rows, put_rows_of_shares, replicated, shards, split_rows
from selfparam_jax.model import Decoder, head_weight, placed
from selfparam_jax.objective import DEFAULT_CHUNK, Signal, chunked_loss
from selfparam_jax.packing import Piece, Rows, check_sizes, fill_rate, fill_rows, first_fit_decreasing, loss_positions
from selfparam_jax.sharding import parameter_shardings
from selfparam_jax.targets import Sentence


class NotFiniteError(ArithmeticError):
    """The loss became NaN or infinite; `step` is the step at which it did."""

    def __init__(self, step: int, loss: float):
        super().__init__(
            f"the loss is {loss} at step {step}; training stopped, the last checkpoint before it is kept. "
            "Lower train.learning_rate or train.clip_norm, or raise train.warmup"
        )
        self.step = step


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Optimiser and batch; see configs/base.py for what each field does."""

    learning_rate: float = 2e-5
    b_ratio: float = 1.0
    schedule: str = "constant"
    warmup: float = 0.0
    final_fraction: float = 0.0
    clip_norm: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epochs: int = 1
    batch_rows: int = 1
    accumulate: int = 1
    row_length: int = 256
    pack: bool = True
    teacher: str = "stored"
    loss_chunk: int = DEFAULT_CHUNK
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("learning_rate", "epochs", "batch_rows", "row_length", "loss_chunk", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} = {getattr(self, name)}, expected more than 0")
        if self.accumulate < 1 or self.batch_rows % self.accumulate:
            raise ValueError(
                f"train.accumulate = {self.accumulate}, expected a divisor of train.batch_rows = {self.batch_rows}"
            )
        if self.teacher not in ("stored", "online"):
            raise ValueError(f"train.teacher = {self.teacher!r}, expected 'stored' or 'online'")


@flax.struct.dataclass
class TrainState:
    """What training changes: the adapter, the optimiser's state, and the number of steps done."""

    lora: dict
    opt_state: optax.OptState
    step: jax.Array


@flax.struct.dataclass
class Batch:
    """Rows of one step, and what the loss compares.

    Where gradients are accumulated, every array has one more axis in front: the parts, one after another.

    Attributes:
      input_ids, positions, segments: int32 [B, T].
      index: int32 [S, N], for each of S groups of rows (as many as the mesh splits them into) where the loss looks,
        as positions within the group's rows laid end to end.
      signal: the teacher's states, targets and weights at these positions.
    """

    input_ids: jax.Array
    positions: jax.Array
    segments: jax.Array
    index: jax.Array
    signal: Signal


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the student is compared: see `objective.chunked_loss`."""

    temperature: float = 1.0
    chunk: int = DEFAULT_CHUNK


class Teacher(Protocol):
    """Where the teacher's hidden states come from: `teacher.Store` or `teacher.Online`."""

    def take(self, slots: np.ndarray) -> np.ndarray:
        """States [*slots.shape, D] of slots of any shape; zeros for NO_SLOT, and for what another process holds."""

    def take_all(self, slots: np.ndarray) -> np.ndarray:
        """The same with what other processes hold."""


SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_schedule(config: TrainConfig, steps: int) -> Callable[[int], jax.Array]:
    """Linear warm-up over `warmup * steps`, then constant, linear or cosine down to `final_fraction`."""
    if config.schedule not in SCHEDULES:
        raise ValueError(f"train.schedule = {config.schedule!r}, expected {', '.join(SCHEDULES[:-1])} or cosine")
    pace = _pace(config, steps)
    return lambda step: _rate(_recipe(config), step, pace.warmup, pace.rest)


class Pace(NamedTuple):
    """Where the learning rate stands. As state, not as constants: all injections then share one compiled step.

    Attributes:
      step: steps done.
      warmup, rest: steps of the warm-up, and of what follows it.
    """

    step: jax.Array
    warmup: jax.Array
    rest: jax.Array


def _pace(config: TrainConfig, steps: int) -> Pace:
    warmup = round(config.warmup * steps)
    return Pace(np.int32(0), np.int32(warmup), np.int32(max(steps - warmup, 1)))


def _recipe(config: TrainConfig) -> TrainConfig:
    """The configuration without what differs from one injection to the next."""
    return dataclasses.replace(config, epochs=1, seed=0)


@functools.partial(jax.jit, static_argnums=0)
def _rate(config: TrainConfig, step, warmup, rest):
    """The learning rate of a step. The first step already learns something: the ramp starts one step in."""
    peak = config.learning_rate
    ramp = peak * (step + 1) / (warmup + 1)
    done = jnp.clip((step - warmup) / rest, 0.0, 1.0)
    shapes = {"constant": 1.0 + 0.0 * done, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + jnp.cos(jnp.pi * done))}
    final = 1.0 if config.schedule == "constant" else config.final_fraction
    return jnp.where(step < warmup, ramp, peak * (final + (1.0 - final) * shapes[config.schedule]))


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW on the adapter; `b_ratio` scales the rate of `b` against that of `a` (LoRA+, arXiv 2402.12354)."""
    learning_rate_schedule(config, steps)  # refuses an unknown one
    chain, pace = _optimizer(_recipe(config)), _pace(config, steps)

    def init(lora):
        # The same leaves and the same update for any number of steps.
        return jax.tree.map(
            lambda leaf: pace if isinstance(leaf, Pace) else leaf,
            chain.init(lora),
            is_leaf=lambda leaf: isinstance(leaf, Pace),
        )

    return optax.GradientTransformation(init, chain.update)


@functools.lru_cache(maxsize=8)
def _optimizer(config: TrainConfig) -> optax.GradientTransformation:
    def is_b(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "b", tree)

    def scale(updates, pace, _=None):
        rate = _rate(config, pace.step, pace.warmup, pace.rest)
        return jax.tree.map(lambda update: -rate * update, updates), pace._replace(step=pace.step + 1)

    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    parts.append(optax.scale_by_adam(b1=config.beta1, b2=config.beta2))
    parts.append(optax.add_decayed_weights(config.weight_decay))
    parts.append(optax.GradientTransformation(lambda _: _pace(config, 1), scale))
    parts.append(optax.masked(optax.scale(config.b_ratio), is_b))
    chain = optax.chain(*parts)
    return optax.GradientTransformation(jax.jit(chain.init), chain.update)


def init_state(lora: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0."""
    return TrainState(lora, optimizer.init(lora), jnp.zeros((), jnp.int32))


def student_loss(lora, params, batch: Batch, dropout_key, model: Decoder, loss: LossConfig):
    """(sum of weighted losses, sum of weights) of one batch under the adapter.

    The loss is the KL to the teacher, the next-token loss, or both: whatever the batch's signal holds.
    """
    hidden, _ = model.apply(
        {"params": params, "lora": lora},
        batch.input_ids,
        batch.positions,
        batch.segments,
        deterministic=model.lora_dropout == 0.0,
        rngs={"dropout": dropout_key},
    )
    flat = hidden.reshape(batch.index.shape[0], -1, hidden.shape[-1])  # [S, B / S * T, D]
    states = jnp.take_along_axis(flat, batch.index[:, :, None], axis=1)  # [S, N, D]
    # Gathered once, before the loop over chunks: in it, every chunk would gather it again.
    head = placed(model.layout, head_weight(params), "vocabulary", None)
    return chunked_loss(states, head, batch.signal, loss.temperature, loss.chunk)


def project_lora(lora: dict, basis: dict) -> dict:
    """An adapter whose `a` reads nothing of what the columns of a basis read.

    Args:
      basis: a tree like the adapter's with `basis` [L, D, R'], orthonormal or zero columns, in place of `a` and `b`.
    """

    def project(factors, frozen):
        overlap = jnp.einsum("lds,ldr->lsr", frozen["basis"], factors["a"])
        return {**factors, "a": factors["a"] - jnp.einsum("lds,lsr->ldr", frozen["basis"], overlap)}

    return jax.tree.map(project, lora, basis, is_leaf=lambda tree: "a" in tree)


def orthonormal_basis(adapters: Sequence[dict], width: int) -> dict:
    """What some adapters read: a basis for `project_lora`, filled up with zero columns to `width`.

    Raises:
      ValueError: they read, or are going to read, every direction of a layer's input.
    """

    def span(*factors):
        reads = np.concatenate([np.asarray(entry["a"], np.float32) for entry in factors], axis=2)  # [L, D, R']
        if width >= reads.shape[1]:
            raise ValueError(
                f"sequential.orthogonal: {width} directions are to be kept free of {reads.shape[1]}; "
                "lower lora.rank or sequential.length"
            )
        basis = np.linalg.qr(reads)[0]
        missing = width - basis.shape[2]
        return {"basis": jnp.asarray(np.pad(basis, ((0, 0), (0, 0), (0, missing))))}

    return jax.tree.map(span, *adapters, is_leaf=lambda tree: "a" in tree)


def train_step(
    state: TrainState,
    params: dict,
    batch: Batch,
    key: jax.Array,
    basis: dict | None = None,
    *,
    model: Decoder,
    update: Callable,
    loss: LossConfig,
) -> tuple[TrainState, dict]:
    """One optimiser step on the adapter. Pure; jitted in `compile_step`.

    Args:
      basis: what the adapter is kept orthogonal to (`project_lora`), if given.
      update: of an optimiser.

    Returns:
      the next state and {'loss', 'grad_norm'}; the loss is the mean KL per unit of weight, before the step.
    """

    key = jax.random.fold_in(key, state.step)

    def sums(lora, part, key):
        lora = lora if basis is None else project_lora(lora, basis)
        return student_loss(lora, params, part, key, model, loss)

    gradients = jax.value_and_grad(sums, has_aux=True)

    def add(before, part):
        (total, count), gradient = gradients(state.lora, part, jax.random.fold_in(key, before[2]))
        return jax.tree.map(jnp.add, before, (total, count, 1, gradient)), None

    if batch.input_ids.ndim == 2:
        (total, count), gradient = gradients(state.lora, batch, key)
    else:
        nothing = (jnp.float32(0), jnp.float32(0), 0, jax.tree.map(jnp.zeros_like, state.lora))
        (total, count, _, gradient), _ = jax.lax.scan(add, nothing, batch)
    weight = jnp.maximum(count, 1e-6)
    mean, gradient = total / weight, jax.tree.map(lambda leaf: leaf / weight, gradient)
    updates, opt_state = update(gradient, state.opt_state, state.lora)
    lora = optax.apply_updates(state.lora, updates)
    metrics = {"loss": mean, "grad_norm": optax.tree.norm(gradient)}
    return TrainState(lora, opt_state, state.step + 1), metrics


def compile_step(
    model: Decoder,
    optimizer,
    mesh: Mesh,
    loss: LossConfig = LossConfig(),
    orthogonal: bool = False,
    accumulate: int = 1,
    int8: bool = False,
) -> Callable:
    """`train_step` jitted over the mesh: rows and weights split by its table, the adapter everywhere, state donated.

    With `orthogonal` it takes a basis as its last argument. Optimisers of one recipe share one program.

    Args:
      accumulate: into how many parts a batch is cut (`make_batch`).
      int8: the base's kernels are `Int8Kernel`s.
    """
    return _compiled_step(model, optimizer.update, mesh, loss, orthogonal, int(accumulate > 1), int8)


@functools.lru_cache(maxsize=8)
def _compiled_step(model, update, mesh, loss, orthogonal, axis_of_rows, int8) -> Callable:
    same, rows = replicated(mesh), split_rows(mesh, axis_of_rows)
    step = functools.partial(train_step, model=model, update=update, loss=loss)
    given = (same, parameter_shardings(mesh, model.config, int8), rows, same, *((same,) if orthogonal else ()))
    return jax.jit(step, in_shardings=given, out_shardings=(same, same), donate_argnums=0)


def student_piece(sentence: Sentence, head: Sequence[int], first_slot: int) -> Piece:
    """A sentence as the student reads it: the prompt's head, then the sentence, positions from 0.

    The state that predicts sentence token j stands one before it; for j = 0 that is the head's last token.
    """
    tokens = sentence.loss_tokens
    return Piece(
        ids=tuple(head) + sentence.ids,
        first_position=0,
        predictors=tuple(len(head) + j - 1 for j in tokens),
        weights=tuple(sentence.weights[j] for j in tokens),
        supervision=tuple(sentence.supervision[j] if sentence.supervision else 0.0 for j in tokens),
        slots=tuple(int(first_slot) + n for n in range(len(tokens))),
    )


def student_rows(
    sentences: Sequence[Sentence],
    first_slots: np.ndarray,
    head: Sequence[int],
    assignment: Sequence[Sequence[int]],
    row_length: int,
) -> Rows:
    """Rows of the sentences with the indices in `assignment`, as the student reads them."""
    members = itertools.chain.from_iterable(assignment)
    pieces = {i: student_piece(sentences[i], head, first_slots[i]) for i in members}
    return fill_rows(pieces, assignment, row_length)


class Plan:
    """Which sentences stand in which row of which step: a function of the sentences and the seed alone.

    Each epoch has once every sentence that is due in it (`Sentence.epochs`) and the next `unrelated_per_epoch`
    unrelated texts, packed anew. Rows follow one another through the epochs; the last batch is filled up with
    empty rows. Only the epoch that is asked for is held.

    Attributes:
      steps: optimiser steps of all epochs.
      fill: share of the positions of all steps that hold a token.
    """

    def __init__(
        self,
        sentences: Sequence[Sentence],
        first_slots: np.ndarray,
        head: Sequence[int],
        config: TrainConfig,
        unrelated_per_epoch: int,
    ):
        self._sentences, self._first_slots, self._head, self._config = sentences, first_slots, head, config
        self._unrelated_per_epoch = unrelated_per_epoch
        self._lengths = np.asarray([len(head) + len(sentence.ids) for sentence in sentences], np.int64)
        check_sizes(self._lengths, config.row_length)
        self._unrelated = [i for i, sentence in enumerate(sentences) if sentence.kind == "unrelated"]
        self._others = [i for i, sentence in enumerate(sentences) if sentence.kind != "unrelated"]
        if not any(self._members(epoch) for epoch in range(config.epochs)):
            raise ValueError("no sentence is left to train on; lower targets.least_confidence or give other contexts")
        self._packed = functools.lru_cache(maxsize=2)(self._pack)
        # Packing sees lengths only, so counting the rows of every epoch costs little.
        counts = [len(self._packed(epoch)) for epoch in range(config.epochs)]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.steps = -(-int(self._starts[-1]) // config.batch_rows)
        tokens = sum(self._lengths[self._members(epoch)].sum() for epoch in range(config.epochs))
        self.fill = fill_rate([tokens], self.steps * config.batch_rows, config.row_length)

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
        rows = first_fit_decreasing(lengths, self._config.row_length, one_per_row=not self._config.pack)
        rows = [[int(chosen[i]) for i in row] for row in rows]
        rng.shuffle(rows)
        return rows

    def assignment(self, step: int) -> list[list[int]]:
        """Indices of the sentences in each row of a step."""
        count = self._config.batch_rows
        rows = []
        for row in range(step * count, (step + 1) * count):
            epoch = int(np.searchsorted(self._starts, row, side="right")) - 1
            inside = epoch < self._config.epochs
            rows.append(self._packed(epoch)[row - int(self._starts[epoch])] if inside else [])
        return rows

    def rows(self, step: int) -> Rows:
        """The rows of a step."""
        row_length = self._config.row_length
        return student_rows(self._sentences, self._first_slots, self._head, self.assignment(step), row_length)

    def sentence_tokens(self, step: int) -> int:
        """Tokens of the step's sentences; padding and the prompt's head do not count."""
        return sum(len(self._sentences[i].ids) for row in self.assignment(step) for i in row)


def make_batch(rows: Rows, teacher: Teacher | None, mesh: Mesh, supervised: bool, accumulate: int = 1) -> Batch:
    """Rows with what their loss compares, on the mesh.

    Args:
      teacher: None leaves the KL out (plain fine-tuning).
      supervised: whether any sentence has supervision; False leaves the next-token loss out.
      accumulate: into how many parts the rows are cut; with 1 there is no axis for them.
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
    """Batches from step `first` on, on the mesh."""
    for step in range(first, plan.steps):
        yield make_batch(plan.rows(step), teacher, mesh, supervised, accumulate)


def fit(
    state: TrainState,
    params: dict,
    step_function: Callable,
    data: Iterator[Batch],
    key: jax.Array,
    on_metrics: Callable[[int, dict], None],
    on_checkpoint: Callable[[int, TrainState], None],
    checkpoint_every: int = 0,
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Runs the steps that are left, and returns the state after the last one (or after the stop).

    Metrics are fetched one step late, so that the device never waits for the host, except before a
    checkpoint: a state is only handed to `on_checkpoint` once its own step's loss is known to be finite.
    `checkpoint_every` = 0 means at the end (or the stop) only.

    Raises:
      NotFiniteError: a loss is NaN or infinite.
    """
    pending: list[tuple[int, dict]] = []
    began, step, saved = time.perf_counter(), int(state.step), int(state.step)

    def report_pending():
        nonlocal began
        for done, metrics in pending:
            values = {name: float(value) for name, value in metrics.items()}
            if not all(np.isfinite(value) for value in values.values()):
                raise NotFiniteError(done, values["loss"])
            now = time.perf_counter()
            on_metrics(done, {**values, "seconds": now - began})
            began = now
        pending.clear()

    for batch in data:
        state, metrics = step_function(state, params, batch, key)
        step += 1
        report_pending()
        pending.append((step, metrics))
        if checkpoint_every and step % checkpoint_every == 0:
            report_pending()
            on_checkpoint(step, state)
            saved = step
        if stop_requested():
            break
    report_pending()
    if step != saved:
        on_checkpoint(step, state)
    return state
