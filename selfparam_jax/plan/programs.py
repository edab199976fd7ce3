"""The programs that a job runs on its devices, traced for shapes alone: nothing is loaded or computed.

They are the job's own functions, called with shapes in place of arrays.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.evaluation import drift
from selfparam_jax.evaluation.questions import SHORT_TOKENS
from selfparam_jax.inference import decoding, prefix
from selfparam_jax.models import lora as adapters
from selfparam_jax.models.decoder import ModelConfig, output_head
from selfparam_jax.plan import memory
from selfparam_jax.plan.workload import Workload
from selfparam_jax.training.losses import DEFAULT_CHUNK, Signal

# Of evaluation on general text: `drift.packed_texts` with its defaults.
_DRIFT_ROWS, _DRIFT_LENGTH = 2, 256


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled program of a job.

    Attributes:
      name: what it does.
      trace: traces it.
      tokens: that one run of it reads or makes, on all devices.
      unknown_trips: rounds of a loop whose number is known only when it runs.
      beside: bytes on a device of weights that are there and not its own: the base's, while another model reads.
    """

    name: str
    trace: Callable[[], jax.stages.Traced]
    tokens: int
    unknown_trips: int = 1
    beside: float = 0.0


def job_programs(
    workload: Workload, config: ModelConfig, mesh: Mesh, context_tokens: int = 0, names: tuple[str, ...] = ()
) -> list[Program]:
    """The programs of a job that take time or memory, in the order in which it runs them.

    Args:
      workload: what is trained; its batch size can be split over the mesh.
      config: the model's architecture.
      mesh: of the devices to compile for.
      context_tokens: of the longest context, prompt format included; 0 leaves out what reading one takes.
      names: only programs whose name begins with one of these; () means all.

    Returns:
      the programs, not traced yet.

    Raises:
      ValueError: model and mesh do not go together, or the context is longer than the model allows.
    """
    memory.check_context(workload.teacher or config, context_tokens)
    params = memory.laid_out_params(config, mesh, workload.int8, workload.dtype)
    lora = memory.adapter_shapes(workload, params, mesh)
    model = memory.planned_model(workload, config, mesh, params)
    train = workload.train
    rows = train.batch_size * train.seq_len
    found = []
    before: tuple = ()
    reader, beside = model, 0.0
    if workload.teacher is not None:
        held = dataclasses.replace(workload, int8=workload.teacher_int8)
        theirs = memory.laid_out_params(workload.teacher, mesh, held.int8, workload.dtype)
        reader = memory.planned_model(held, workload.teacher, mesh, theirs)
        beside = memory.held_bytes(params, workload.item_bytes)
    if context_tokens:
        pieces = prefix.split(context_tokens)
        cache = memory.cache_shapes(reader, _cache_size(context_tokens))
        before = (cache,)
        found.append(Program("context", lambda: _trace_piece(reader, cache, pieces[0]), pieces[0], beside=beside))
    found.append(
        Program("teacher's rows", lambda: memory.trace_reading(workload, reader, before), rows, beside=beside)
    )
    found.append(
        Program(
            "training step",
            lambda: memory.trace_training_step(workload, config, mesh, params, lora),
            rows,
            loss_chunks(workload, mesh),
        )
    )
    found.append(
        Program(
            "answers",
            lambda: _trace_answers(workload, model, lora, context_tokens),
            workload.questions * SHORT_TOKENS,
            SHORT_TOKENS - 1,
        )
    )
    general = _DRIFT_ROWS * _DRIFT_LENGTH
    found.append(Program("general text", lambda: _trace_general(workload, model, lora), general))
    chunks = -(-general // DEFAULT_CHUNK)
    found.append(Program("general text, KL", lambda: _trace_divergence(model), general, chunks))
    found.append(Program("merge", lambda: _trace_merge(workload, config, mesh, lora), 0))
    return [each for each in found if not names or each.name.startswith(names)]


def loss_chunks(workload: Workload, mesh: Mesh) -> int:
    """Rounds of the loss's loop in a step, where all positions carry loss."""
    train = workload.train
    positions = train.batch_size // train.accumulate // meshes.shards(mesh, "rows") * train.seq_len
    return -(-positions // min(train.loss_chunk, positions))


def _shape(*sizes: int, dtype=jnp.int32) -> jax.ShapeDtypeStruct:
    """Of an array that comes from the host."""
    return jax.ShapeDtypeStruct(sizes, dtype)


def _cache_size(length: int) -> int:
    """Places of the cache for a text of this many tokens, whose last piece is written with its padding."""
    return prefix.cache_size(sum(prefix.split(length)))


def _trace_piece(model, cache, size):
    """A piece of a context, after those before it."""
    ids = _shape(1, size)
    return prefix.read_piece.trace(model.decoder(), {"params": model.params}, cache, ids, _shape(), _shape())


def _trace_answers(workload, model, lora, context_tokens):
    """A batch of questions read, and answered token by token, by the model with its adapter."""
    decoder = model.decoder(lora_scale=workload.lora.scale)
    variables = {"params": model.params, "lora": lora}
    rows = prefix.round_up(workload.questions, meshes.shards(model.mesh, "rows"))
    length = context_tokens or 1
    cache = memory.cache_shapes(model, _cache_size(length))
    short = length <= decoding.SHORT_PREFIX
    return decoding.decode.trace(
        decoder, variables, None, cache, _shape(), _shape(rows, decoding.PROMPT_BUCKET), _shape(rows),
        _shape(model.config.vocab_size, dtype=bool), _shape(rows), _shape(dtype=jnp.uint32), _shape(),
        _shape(), prefix.round_up(SHORT_TOKENS, decoding.NEW_BUCKET), None, decoding.SHORT_PREFIX if short else 0,
    )  # fmt: skip


def _trace_general(workload, model, lora):
    decoder = model.decoder(lora_scale=workload.lora.scale)
    ids = _shape(_DRIFT_ROWS, _DRIFT_LENGTH)
    index = _shape(1, _DRIFT_ROWS * _DRIFT_LENGTH)
    return drift.read_states.trace(decoder, {"params": model.params, "lora": lora}, ids, ids, ids, index)


def _trace_divergence(model):
    count = _DRIFT_ROWS * _DRIFT_LENGTH
    states = _shape(1, count, model.config.hidden_size, dtype=model.dtype)
    states = memory.on_every_device(states, model.mesh)
    signal = Signal(_shape(1), targets=_shape(1, count), supervision=_shape(1, count, dtype=jnp.float32))
    return drift.kl_sum.trace(states, states, output_head(model.params, model.config), signal)


def _trace_merge(workload, config, mesh, lora):
    """The largest adapted kernel; the base is merged in its own dtype, whatever it is trained beside."""
    layers = memory.laid_out_params(config, mesh, dtype=workload.dtype)["layers"]
    kernels = [
        (layers[module][name]["kernel"], factors)
        for module, entries in lora["layers"].items()
        for name, factors in entries.items()
    ]
    kernel, factors = max(kernels, key=lambda each: each[0].size)
    delta = factors["a"], factors["b"], _shape(dtype=jnp.float32)
    if not workload.merges:
        return adapters.merge_one.trace(kernel, *delta)
    total = jax.ShapeDtypeStruct(kernel.shape, jnp.float32, sharding=kernel.sharding)
    return adapters.add_delta.trace(total, *delta)
