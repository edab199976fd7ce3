"""One step of training on the adapter, as pure functions of arrays, and its compiled form over a mesh.

What is trained is an adapter, unless a step is given another forward pass (`Forward`) and another tree.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from selfparam_jax.distributed.mesh import gather_options, replicated, split_rows
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.decoder import Decoder, Head, constrain, head_weight, output_head
from selfparam_jax.models.shardings import parameter_shardings
from selfparam_jax.models.unstacked import adapter_apart
from selfparam_jax.training.losses import DEFAULT_CHUNK, Signal, chunked_loss


@flax.struct.dataclass
class TrainState:
    """What training changes: the adapter (or the tree of another `Forward`), the optimizer's state, steps done."""

    lora: dict
    opt_state: optax.OptState
    step: jax.Array


@flax.struct.dataclass
class Batch:
    """Rows of one step, and what the loss compares.

    Where gradients are accumulated, every array has one more axis in front: the parts, one after another.

    Attributes:
      input_ids: int32 [B, T].
      positions: int32 [B, T].
      segments: int32 [B, T].
      index: int32 [S, N]: the positions with loss of each of S groups of rows (one group per part of the mesh that
        rows are split over), counted through the group's rows laid end to end.
      signal: the teacher's states, targets and weights at these positions.
    """

    input_ids: jax.Array
    positions: jax.Array
    segments: jax.Array
    index: jax.Array
    signal: Signal


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """How the student is compared with the teacher: arguments of `losses.chunked_loss`."""

    temperature: float = 1.0
    chunk: int = DEFAULT_CHUNK
    by_confidence: bool = False


# The student's forward pass: (what is trained, params, batch, dropout key, decoder) -> final hidden states [B, T, D].
Forward = Callable[[dict, dict, Batch, jax.Array, Decoder], jax.Array]


def init_state(lora: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(lora, optimizer.init(lora), jnp.zeros((), jnp.int32))


def read_adapted(lora: dict, params: dict, batch: Batch, dropout_key: jax.Array, model: Decoder) -> jax.Array:
    """Final hidden states [B, T, D] of a batch's rows under an adapter: the forward pass of a `Forward`.

    Args:
      lora: the adapter.
      params: of the frozen base, stacked, or with the layers apart if the model has no dropout.
      batch: its rows.
      dropout_key: used if the model has dropout on the adapter's inputs.
      model: the student.

    Returns:
      the states, in the model's dtype.
    """
    if isinstance(params["layers"], tuple):
        lora = adapter_apart(lora)
    hidden, _ = model.apply(
        {"params": params, "lora": lora},
        batch.input_ids,
        batch.positions,
        batch.segments,
        deterministic=model.lora_dropout == 0.0,
        rngs={"dropout": dropout_key},
    )
    return hidden


def student_loss(
    lora,
    params,
    batch: Batch,
    dropout_key,
    model: Decoder,
    loss: LossConfig,
    teacher_head: Head | None = None,
    forward: Forward = read_adapted,
):
    """The loss of one batch under the adapter: the KL to the teacher, the next-token loss, or both.

    Args:
      lora: the adapter, or what else `forward` takes.
      params: of the frozen base.
      batch: its signal decides which losses are taken.
      dropout_key: used if the model has dropout on the adapter's inputs.
      model: the student.
      loss: how both are compared.
      teacher_head: of a teacher that is another model; None: the teacher has the student's head.
      forward: how the student reads the rows.

    Returns:
      (sum of weighted losses, sum of weights), float32 scalars.
    """
    hidden = forward(lora, params, batch, dropout_key, model)
    flat = hidden.reshape(batch.index.shape[0], -1, hidden.shape[-1])  # [S, B / S * T, D]
    states = jnp.take_along_axis(flat, batch.index[:, :, None], axis=1)  # [S, N, D]
    # Gathered once, before the loop over chunks: in it, every chunk would gather it again.
    head = output_head(params, model.config, model.sharding)
    teacher_head = jax.tree.map(lambda weight: constrain(model.sharding, weight, "vocabulary", None), teacher_head)
    return chunked_loss(
        states, head, batch.signal, loss.temperature, loss.chunk, teacher_head, by_confidence=loss.by_confidence
    )


def project_lora(lora: dict, basis: dict) -> dict:
    """An adapter whose `a` reads nothing of the directions that the columns of a basis span.

    Args:
      lora: the adapter, `a` [L, D, R].
      basis: a tree like the adapter's with `basis` [L, D, R'], orthonormal or zero columns, in place of `a` and `b`.

    Returns:
      the adapter with `a` - basis basisᵀ `a`, layer by layer.
    """

    def project(factors, frozen):
        overlap = jnp.einsum("lds,ldr->lsr", frozen["basis"], factors["a"])
        return {**factors, "a": factors["a"] - jnp.einsum("lds,lsr->ldr", frozen["basis"], overlap)}

    return jax.tree.map(project, lora, basis, is_leaf=lambda tree: "a" in tree)


def orthonormal_basis(adapters: Sequence[dict], width: int) -> dict:
    """The directions that some adapters read: a basis for `project_lora`, filled up with zero columns to `width`.

    Args:
      adapters: trees of `a` [L, D, R] and `b`, at least one.
      width: columns of the basis, for all adapters that there will be.

    Raises:
      ValueError: together they would read every direction of a layer's input.
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
    teacher_head: Head | None = None,
    *,
    model: Decoder,
    update: Callable,
    loss: LossConfig,
    forward: Forward = read_adapted,
) -> tuple[TrainState, dict]:
    """One optimizer step on the adapter. Pure; jitted in `compile_step`.

    Args:
      state: adapter, optimizer state and number of steps done.
      params: of the frozen base.
      batch: rows and signal; with one more axis in front, gradients are accumulated over it.
      key: of the dropout; folded with the number of the step.
      basis: what the adapter is kept orthogonal to (`project_lora`), if given.
      teacher_head: of a teacher that is another model, if given.
      model: the student.
      update: of an optimizer.
      loss: how both are compared.
      forward: how the student reads the rows.

    Returns:
      the next state and {'loss', 'grad_norm'}; the loss is the mean per unit of weight, before the step.
    """

    key = jax.random.fold_in(key, state.step)

    def sums(lora, part, key):
        lora = lora if basis is None else project_lora(lora, basis)
        return student_loss(lora, params, part, key, model, loss, teacher_head, forward)

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
    teacher: ModelConfig | None = None,
    forward: Forward = read_adapted,
) -> Callable:
    """`train_step` jitted over the mesh: rows and weights split, the adapter on every device, the state donated.

    All injections of one recipe share one program, whatever their number of steps, learning rates and seeds.

    Args:
      model: the student.
      optimizer: of `make_optimizer`, or any other of optax.
      mesh: the devices.
      loss: how both are compared.
      orthogonal: whether the step takes a basis (`project_lora`) as its last argument.
      accumulate: number of parts that a batch is cut into (`make_batch`).
      int8: whether the base's kernels are `Int8Kernel`s.
      teacher: architecture of a teacher that is another model: the step then takes a basis (or None) and the head of
        this teacher as its last arguments.
      forward: how the student reads the rows; a function of a module, as programs are kept by it.

    Returns:
      a function of (state, params, batch, key), and the basis if `orthogonal`, to (state, metrics).
    """
    axis_of_rows = int(accumulate > 1)
    return _compiled_step(model, optimizer.update, mesh, loss, orthogonal, axis_of_rows, int8, teacher, forward)


@functools.lru_cache(maxsize=8)
def _compiled_step(model, update, mesh, loss, orthogonal, axis_of_rows, int8, teacher, forward) -> Callable:
    same, rows = replicated(mesh), split_rows(mesh, axis_of_rows)
    step = functools.partial(train_step, model=model, update=update, loss=loss, forward=forward)
    last: tuple = (same,) if orthogonal else ()
    if teacher is not None:
        last = (same, head_weight(parameter_shardings(mesh, teacher)))
    # On one device the layers may be apart (`unstacked.layers_apart`), and there is nothing to split.
    frozen = same if mesh.size == 1 else parameter_shardings(mesh, model.config, int8)
    given = (same, frozen, rows, same, *last)
    options = gather_options(mesh)
    return jax.jit(step, in_shardings=given, out_shardings=(same, same), donate_argnums=0, compiler_options=options)
