"""What training and the teacher hold on each device, read from programs that are compiled for shapes alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.inference.prefix import cache_size
from selfparam_jax.models.attention import BLOCKS, SPLASH
from selfparam_jax.models.decoder import Int8Kernel, KeyValues, ModelConfig, output_head, param_shapes
from selfparam_jax.models.lora import init_lora
from selfparam_jax.models.shardings import parameter_shardings
from selfparam_jax.plan.workload import Workload
from selfparam_jax.training import teacher, train_step
from selfparam_jax.training.inject import student_decoder
from selfparam_jax.training.losses import Signal
from selfparam_jax.training.optimizer import make_optimizer
from selfparam_jax.training.recipe import Recipe


def batch_shapes(workload: Workload, config: ModelConfig, mesh: Mesh) -> train_step.Batch:
    """Shapes of a step's batch, laid out on the mesh."""
    train, groups = workload.train, meshes.shards(mesh, "rows")
    parts = (train.accumulate,) if train.accumulate > 1 else ()
    rows = train.batch_size // train.accumulate, train.seq_len
    positions = groups, rows[0] // groups * train.seq_len

    def array(shape, dtype):
        sharding = meshes.split_rows(mesh, len(parts))
        return jax.ShapeDtypeStruct((*parts, *shape), dtype, sharding=sharding)

    numbers, weights = array(positions, jnp.int32), array(positions, jnp.float32)
    states = array((*positions, (workload.teacher or config).hidden_size), jnp.dtype(workload.dtype))
    signal = Signal(array((groups,), jnp.int32), states, weights)
    if workload.supervised:
        signal = signal.replace(targets=numbers, supervision=weights)
    ids = array(rows, jnp.int32)
    return train_step.Batch(ids, ids, ids, numbers, signal)


def laid_out_params(config: ModelConfig, mesh: Mesh, int8: bool = False, dtype: str = "float32") -> dict:
    """Shapes of the parameters, laid out on the mesh.

    Args:
      config: the model's architecture.
      mesh: over which they are split.
      int8: whether the layers' kernels are in 8 bits, with float32 scales.
      dtype: of all others.

    Returns:
      a tree like the parameters', of shapes with shardings.
    """

    def array(leaf, sharding):
        if isinstance(sharding, Int8Kernel):
            layers, _, outputs = leaf.shape
            scale = jax.ShapeDtypeStruct((layers, 1, outputs), jnp.float32, sharding=sharding.scale)
            return Int8Kernel(jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=sharding.values), scale)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding)

    return jax.tree.map(array, param_shapes(config), parameter_shardings(mesh, config, int8))


def planned_model(workload: Workload, config: ModelConfig, mesh: Mesh, params: dict) -> Model:
    """The model that a job would load, with shapes in place of its parameters and without a tokenizer.

    Args:
      workload: how it is held, and its attention.
      config: its architecture.
      mesh: of any devices.
      params: from `laid_out_params`.

    Returns:
      a model whose parameters are shapes.
    """
    return Model("planned", config, params, None, None, "", mesh, workload.attention, workload.int8)


def planned_recipe(workload: Workload) -> Recipe:
    """The part of a recipe that a workload knows."""
    return Recipe(lora=workload.lora, train=workload.train, remat=workload.remat)


def adapter_shapes(workload: Workload, params: dict, mesh: Mesh) -> dict:
    """Shapes of the adapter, which is whole on every device."""
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), params, workload.lora))
    return on_every_device(lora, mesh)


def on_every_device(tree, mesh: Mesh):
    """A tree of shapes, laid out so that every device has all of them."""
    same = meshes.replicated(mesh)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=same), tree)


def trace_training_step(
    workload: Workload, config: ModelConfig, mesh: Mesh, params: dict, lora: dict
) -> jax.stages.Traced:
    """Traces the training step that a job would run, for shapes alone.

    Args:
      workload: its batch size can be split over the mesh.
      config: the model's architecture.
      mesh: of any devices, as many as the job has.
      params: shapes of the parameters (`laid_out_params`), in the workload's dtype.
      lora: shapes of the adapter (`adapter_shapes`).

    Returns:
      the traced program.
    """
    train = workload.train
    student = student_decoder(planned_model(workload, config, mesh, params), planned_recipe(workload))
    optimizer = make_optimizer(train, 100)
    state = on_every_device(jax.eval_shape(lambda lora: train_step.init_state(lora, optimizer), lora), mesh)
    loss = train_step.LossConfig(train.temperature, train.loss_chunk)
    step = train_step.compile_step(
        student, optimizer, mesh, loss, accumulate=train.accumulate, int8=workload.int8, teacher=workload.teacher
    )
    key = on_every_device(jax.eval_shape(lambda: jax.random.key(0)), mesh)
    given = state, params, batch_shapes(workload, config, mesh), key
    if workload.teacher is None:
        return step.trace(*given)
    theirs = laid_out_params(workload.teacher, mesh, workload.teacher_int8, workload.dtype)
    return step.trace(*given, None, output_head(theirs, workload.teacher))


def compile_training_step(
    workload: Workload, config: ModelConfig, mesh: Mesh, params: dict, lora: dict
) -> jax.stages.Compiled:
    """Compiles the training step for CPU devices.

    Everything is float32, whatever the job's dtype: CPU programs convert bfloat16 and would show copies that other
    devices do not have. Attention is our own: the others need their device.

    Args:
      workload: its batch size can be split over the mesh.
      config: the model's architecture.
      mesh: of CPU devices, as many as the job has.
      params: shapes of the parameters (`laid_out_params`), float32.
      lora: shapes of the adapter.

    Returns:
      the compiled program.
    """
    here = dataclasses.replace(workload, dtype="float32", attention=BLOCKS)
    return trace_training_step(here, config, mesh, params, lora).lower().compile()


def gathered_layer(workload: Workload, params: dict, mesh: Mesh) -> float:
    """Bytes of those weights of one layer that FSDP splits, on a device that has gathered them.

    Args:
      workload: its dtype.
      params: shapes of the parameters (`laid_out_params`).
      mesh: over which they are split.
    """
    count = mesh.shape["fsdp"]
    if count == 1:
        return 0.0

    def is_split(leaf):
        values = leaf.values if _is_int8(leaf) else leaf
        return "fsdp" in jax.tree.leaves(tuple(values.sharding.spec))

    layers = jax.tree.leaves(params["layers"], is_leaf=_is_int8)
    number = jax.tree.leaves(params["layers"])[0].shape[0]
    return held_bytes(list(filter(is_split, layers)), workload.item_bytes) * count / number


def teacher_needs(
    workload: Workload, config: ModelConfig, mesh: Mesh, params: dict, context_tokens: int
) -> dict[str, float]:
    """What a device holds beside the weights while the teacher reads rows after a context.

    Args:
      workload: its batch size can be split over the mesh.
      config: the model's architecture.
      mesh: of any devices, as many as the job has.
      params: shapes of the parameters (`laid_out_params`).
      context_tokens: tokens of the context, prompt format included.

    Returns:
      bytes: "context", the context's keys and values; "reading", what the program reserves, as if all of it were
      float32 (attention scores are, whatever the job's dtype).

    Raises:
      ValueError: the context is longer than the model allows.
    """
    check_context(config, context_tokens)
    here = dataclasses.replace(workload, dtype="float32", attention=BLOCKS)
    model = planned_model(here, config, mesh, params)
    past = cache_shapes(model, cache_size(context_tokens))
    # The TPU kernel holds no scores; its need is that of rows without a context.
    before = () if workload.attention == SPLASH else (past,)
    memory = trace_reading(here, model, before).lower().compile().memory_analysis()
    reading = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return {"context": 2 * held_bytes(past.keys, workload.item_bytes), "reading": float(reading)}


def check_context(config: ModelConfig, context_tokens: int) -> None:
    """Raises ValueError if a context has more tokens than the model allows."""
    limit = config.max_position_embeddings
    if context_tokens > limit:
        raise ValueError(
            f"--context_tokens={context_tokens} exceeds the model's limit of {limit} (max_position_embeddings); "
            "give a shorter context"
        )


def cache_shapes(model: Model, size: int) -> KeyValues:
    """Shapes of the keys and values of one text, in a cache of `size` positions."""
    config, same = model.config, meshes.replicated(model.mesh)
    shape = (config.num_hidden_layers, 1, config.num_key_value_heads, size, config.head_dim)
    heads = NamedSharding(model.mesh, meshes.spec(None, None, "heads", None, None))
    keys = jax.ShapeDtypeStruct(shape, model.dtype, sharding=heads)
    places = jax.ShapeDtypeStruct((1, size), jnp.int32, sharding=same)
    return KeyValues(keys, keys, places, places)


def trace_reading(workload: Workload, model: Model, before: tuple[KeyValues, ...]) -> jax.stages.Traced:
    """Traces the teacher's reading of packed rows.

    The teacher reads whole batches, however many parts training cuts them into.

    Args:
      workload: batch size and sequence length.
      model: from `planned_model`.
      before: shapes of what the rows continue (`cache_shapes`).
    """
    rows = workload.train.batch_size, workload.train.seq_len
    ids = jax.ShapeDtypeStruct(rows, jnp.int32, sharding=meshes.split_rows(model.mesh))
    return teacher.states_of_rows.trace(model.decoder(), {"params": model.params}, ids, ids, ids, before)


def held_bytes(tree, float_bytes: int) -> float:
    """Bytes that one device holds of a tree of shapes.

    Args:
      tree: shapes with their shardings.
      float_bytes: bytes of an element that is float32 in the tree; scales of 8-bit kernels always have 4.
    """

    def size(leaf):
        return math.prod(leaf.sharding.shard_shape(leaf.shape))

    def held(leaf):
        if _is_int8(leaf):
            return size(leaf.values) + 4 * size(leaf.scale)
        return size(leaf) * float_bytes

    return float(sum(map(held, jax.tree.leaves(tree, is_leaf=_is_int8))))


def _is_int8(leaf: object) -> bool:
    return isinstance(leaf, Int8Kernel)
