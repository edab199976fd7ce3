"""The student: packed rows, one jitted and device-mapped KL step on the adapter, data order by (seed, step)."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from selfparam_jax.mesh import put_rows, replicated, split_rows
from selfparam_jax.model import Decoder, head_weight
from selfparam_jax.objective import cross_entropy, kl_divergence
from selfparam_jax.packing import Piece, Rows, concatenate, fill_rows, first_fit_decreasing
from selfparam_jax.targets import Sentence, slot_starts


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
    row_length: int = 256
    loss_length: int = 256
    pack: bool = True
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name in ("learning_rate", "epochs", "batch_rows", "row_length", "loss_length", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} = {getattr(self, name)}, expected more than 0")


@flax.struct.dataclass
class TrainState:
    """What training changes: the adapter, the optimiser's state, and the number of steps done."""

    lora: dict
    opt_state: optax.OptState
    step: jax.Array


@flax.struct.dataclass
class Batch:
    """Rows of one step: Rows' arrays but for the slots, in whose place are the teacher's states [B, M, D]."""

    input_ids: jax.Array
    positions: jax.Array
    segments: jax.Array
    index: jax.Array
    weights: jax.Array
    supervision: jax.Array
    teacher: jax.Array


def learning_rate_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup * steps`, then constant, linear or cosine down to `final_fraction`."""
    peak, warmup = config.learning_rate, round(config.warmup * steps)
    rest = max(steps - warmup, 1)
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final_fraction, rest)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, config.final_fraction)
    else:
        raise ValueError(f"train.schedule = {config.schedule!r}, expected constant, linear or cosine")
    if not warmup:
        return after
    # The first step already learns something: the ramp starts one step in.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """AdamW on the adapter; `b_ratio` scales the rate of `b` against that of `a` (LoRA+, arXiv 2402.12354)."""

    def is_b(tree):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "b", tree)

    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm > 0 else []
    parts.append(
        optax.adamw(
            learning_rate_schedule(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
        )
    )
    parts.append(optax.masked(optax.scale(config.b_ratio), is_b))
    return optax.chain(*parts)


def init_state(lora: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at step 0."""
    return TrainState(lora, optimizer.init(lora), jnp.zeros((), jnp.int32))


def student_loss(
    lora, params, batch: Batch, dropout_key, model: Decoder, temperature: float, supervised: bool = False
):
    """(sum of weighted losses, sum of weights) of one batch under the adapter.

    The loss is the KL to the teacher and, if `supervised`, the next-token loss where a position has any
    supervision. Its weights count only then.
    """
    hidden, _ = model.apply(
        {"params": params, "lora": lora},
        batch.input_ids,
        batch.positions,
        batch.segments,
        deterministic=model.lora_dropout == 0.0,
        rngs={"dropout": dropout_key},
    )
    states = jnp.take_along_axis(hidden, batch.index[:, :, None], axis=1)  # [B, M, D]
    flat = states.reshape(-1, states.shape[-1])
    teacher = batch.teacher.reshape(-1, states.shape[-1])
    head, weights = head_weight(params), batch.weights.reshape(-1)
    total, count = kl_divergence(teacher, flat, head, weights, temperature)
    if supervised:
        next_ids = jnp.take_along_axis(batch.input_ids, batch.index + 1, axis=1, mode="clip").reshape(-1)
        extra = cross_entropy(flat, head, next_ids, batch.supervision.reshape(-1))
        total, count = total + extra[0], count + extra[1]
    return total, count


def train_step(
    state: TrainState,
    params: dict,
    batch: Batch,
    key: jax.Array,
    *,
    model: Decoder,
    optimizer: optax.GradientTransformation,
    temperature: float = 1.0,
    supervised: bool = False,
) -> tuple[TrainState, dict]:
    """One optimiser step on the adapter. Pure; jitted in `compile_step`.

    Returns:
      the next state and {'loss', 'grad_norm'}; the loss is the mean KL per unit of weight, before the step.
    """

    def mean_loss(lora):
        key_now = jax.random.fold_in(key, state.step)
        total, count = student_loss(lora, params, batch, key_now, model, temperature, supervised)
        return total / jnp.maximum(count, 1e-6)

    loss, gradient = jax.value_and_grad(mean_loss)(state.lora)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.lora)
    lora = optax.apply_updates(state.lora, updates)
    metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
    return TrainState(lora, opt_state, state.step + 1), metrics


def compile_step(
    model: Decoder, optimizer, mesh: Mesh, temperature: float = 1.0, supervised: bool = False
) -> Callable:
    """`train_step` jitted over the mesh: rows split over `data`, everything else replicated, state donated."""
    same, rows = replicated(mesh), split_rows(mesh)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        temperature=temperature,
        supervised=supervised,
    )
    return jax.jit(step, in_shardings=(same, same, rows, same), out_shardings=(same, same), donate_argnums=0)


def student_pieces(sentences: Sequence[Sentence], head: Sequence[int]) -> list[Piece]:
    """Sentences as the student reads them: the prompt's head, then the sentence, positions from 0.

    The state that predicts sentence token j stands one before it; for j = 0 that is the head's last token.
    """
    pieces = []
    for sentence, first in zip(sentences, slot_starts(sentences)[:-1], strict=True):
        tokens = sentence.loss_tokens
        pieces.append(
            Piece(
                ids=tuple(head) + sentence.ids,
                first_position=0,
                predictors=tuple(len(head) + j - 1 for j in tokens),
                weights=tuple(sentence.weights[j] for j in tokens),
                supervision=tuple(sentence.supervision[j] if sentence.supervision else 0.0 for j in tokens),
                slots=tuple(int(first) + n for n in range(len(tokens))),
            )
        )
    return pieces


def plan_rows(
    sentences: Sequence[Sentence], head: Sequence[int], config: TrainConfig, unrelated_per_epoch: int
) -> Rows:
    """All rows of all epochs, in training order: a function of the sentences and the seed alone.

    Each epoch has every QA pair and every tail once, and the next `unrelated_per_epoch` unrelated texts.
    The last batch is filled up with empty rows.
    """
    pieces = student_pieces(sentences, head)
    unrelated = [i for i, sentence in enumerate(sentences) if sentence.kind == "unrelated"]
    others = [i for i, sentence in enumerate(sentences) if sentence.kind != "unrelated"]
    epochs, shape = [], (config.row_length, config.loss_length)
    for epoch in range(config.epochs):
        rng = np.random.default_rng([config.seed, epoch])
        first = epoch * unrelated_per_epoch
        turn = [unrelated[(first + n) % len(unrelated)] for n in range(unrelated_per_epoch)]
        chosen = rng.permutation(others + turn)
        members = [pieces[i] for i in chosen]
        assignment = first_fit_decreasing(members, *shape, one_per_row=not config.pack)
        rng.shuffle(assignment)
        epochs.append(fill_rows(members, assignment, *shape))
    total = sum(len(rows.input_ids) for rows in epochs)
    missing = -total % config.batch_rows
    return concatenate([*epochs, fill_rows([], [[]] * missing, *shape)])


def batches(rows: Rows, store: np.ndarray, config: TrainConfig, mesh: Mesh, first: int) -> Iterator[Batch]:
    """Batches from step `first` on, on the mesh."""
    for step in range(first, len(rows.input_ids) // config.batch_rows):
        part = rows.take(slice(step * config.batch_rows, (step + 1) * config.batch_rows))
        fields = {name: value for name, value in vars(part).items() if name != "slots"}
        yield put_rows(mesh, Batch(**fields, teacher=store[part.slots]))


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
