"""Checkpoints of MemoryLLM (arXiv 2402.04624): a Llama, its memory vectors, and adapters to write and read them.

The layout is that of `YuWangX/memoryllm-8b`. Its config.json has, beside Llama's fields, `num_blocks` blocks of
`num_tokens` vectors, `drop_memory_per_layer`, and `lora_config` where there are adapters.
"""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfparam_jax.checkpoints.load import model_directory, read_config
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.tensors import Index, Source, load_with_fingerprint
from selfparam_jax.checkpoints.tokenizers import read_tokenizer
from selfparam_jax.checkpoints.weight_files import FLOATS, SafetensorsSource
from selfparam_jax.distributed.mesh import make_mesh
from selfparam_jax.models.architecture import PROJECTIONS, ModelConfig
from selfparam_jax.models.parameters import parameter_table, parameter_tree
from selfparam_jax.models.shardings import parameter_shardings

INITIALIZED = "initialized"  # 1 once the pool has been filled in training
WRITER, READER = "default", "decoder_adapter"  # the adapters' names
# With these, other releases (memoryllm-7b, M+) number positions, drop vectors or look them up in ways of their own.
OTHER_WAYS = (
    "add_encoder_retriever",
    "add_selector",
    "drop_memory_token",
    "interpolate_position_ids",
    "num_ltm_blocks",
    "share_position_ids",
    "split_positional_embedding",
    "use_negative_position_ids",
)


@flax.struct.dataclass
class MemoryPool:
    """The memory of every layer.

    Attributes:
      vectors: [L, M, D], the newest last.
      bos: [L, 1, D], stands before them in place of the tokenizer's BOS.
      positional: [D], added to the positions that become new vectors.
      block: how many vectors one write makes.
      drop_per_layer: whether every layer drops vectors of its own; else all drop those at the same places.
    """

    vectors: jax.Array
    bos: jax.Array
    positional: jax.Array
    block: int = flax.struct.field(pytree_node=False)
    drop_per_layer: bool = flax.struct.field(pytree_node=False, default=False)


@dataclasses.dataclass(frozen=True)
class MemoryCheckpoint:
    """A loaded MemoryLLM.

    Attributes:
      model: the Llama under it. Its limit of positions is that of the prompt, after the memory.
      pool: its memory as trained.
      writer, reader: adapters for writing and for reading, as `Decoder` takes them; {} for none.
      lora_scale: of both.
    """

    model: Model
    pool: MemoryPool
    writer: dict
    reader: dict
    lora_scale: float


@dataclasses.dataclass(frozen=True)
class _Adapters:
    """What config.json says about them: rank, scale, projections and names."""

    rank: int = 0
    scale: float = 1.0
    projections: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


class _Base:
    """The tensors of the Llama in a checkpoint of MemoryLLM, by the names that they have in a Llama."""

    def __init__(self, source: Source, others: Sequence[str]):
        self._source, left = source, set(source.names()) - set(others)
        self._names = {name.replace(".base_layer.", "."): name for name in left}

    def names(self) -> list[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(self._names[name])

    def read(self, name: str, index: Index) -> np.ndarray:
        return self._source.read(self._names[name], index)


def load_memoryllm(source: str | os.PathLike, dtype: Any = "float32", mesh: Mesh | None = None) -> MemoryCheckpoint:
    """Loads a MemoryLLM.

    Args:
      source: a directory in the published layout, or a hub id.
      dtype: of all parameters, memory vectors and activations; the adapters are float32.
      mesh: over which the Llama's parameters are laid out; None: the first local device.

    Returns:
      the model and its memory.

    Raises:
      ValueError: the checkpoint is not there, is not trained, or has a tensor that is missing, unexpected, of another
        shape or not finite.
    """
    directory, dtype = model_directory(source), jnp.dtype(dtype)
    hf_config, config = read_config(directory / "config.json")
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    blocks, block, adapters = _memory_fields(directory, fields)
    weights = SafetensorsSource(directory, (*FLOATS, "U8"))
    shapes = _memory_shapes(config, blocks * block, adapters)
    try:
        tensors = {name: _read(weights, name, shape) for name, shape in shapes.items()}
        if not tensors.pop(INITIALIZED):
            raise ValueError(f"tensor {INITIALIZED!r} is 0, expected 1: the memory was never filled in training")
        mesh = mesh or make_mesh(jax.local_devices()[:1])
        placed = parameter_shardings(mesh, config)
        params, fingerprint = load_with_fingerprint(_Base(weights, list(shapes)), config, dtype, placed)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error
    pool = MemoryPool(
        jnp.asarray(tensors["memory"], dtype),
        jnp.asarray(tensors["bos_embedding"], dtype),
        jnp.asarray(tensors["new_memory_positional_emb"][0, 0], dtype),
        block,
        bool(fields.get("drop_memory_per_layer", False)),
    )
    longer = dataclasses.replace(config, max_position_embeddings=_positions(config, blocks * block))
    model = Model(directory.name, longer, params, read_tokenizer(directory), hf_config, fingerprint, mesh,
                  source=os.fspath(source))  # fmt: skip
    writer = _adapter(tensors, config, adapters, WRITER)
    reader = _adapter(tensors, config, adapters, READER if READER in adapters.names else WRITER)
    return MemoryCheckpoint(model, pool, writer, reader, adapters.scale)


def _positions(config: ModelConfig, vectors: int) -> int:
    """How many positions there are: the memory stands before the prompt, whose tokens have those after it.

    A linear factor stretches the positions that the Llama had, and there are no more: the published model has 14,848,
    of which its memory takes 12,801.
    """
    with_memory, scaling = config.max_position_embeddings + 1 + vectors, config.rope_scaling
    if scaling is None or scaling.rope_type != "linear":
        return with_memory
    return min(with_memory, int(config.max_position_embeddings * scaling.factor))


def _memory_fields(directory: Path, fields: dict) -> tuple[int, int, _Adapters]:
    """Number of blocks, vectors in each, and the adapters, of config.json."""
    path = directory / "config.json"
    for name in ("num_blocks", "num_tokens"):
        if not isinstance(fields.get(name), int) or fields[name] < 1:
            raise ValueError(
                f"{path}: {name} = {fields.get(name)!r}, expected a number of at least 1. Is it a MemoryLLM, "
                "such as YuWangX/memoryllm-8b?"
            )
    if not fields.get("add_bos_embedding", True):
        raise ValueError(f"{path}: add_bos_embedding is false, expected true; a memory without BOS is not supported")
    if others := [name for name in OTHER_WAYS if fields.get(name)]:
        raise ValueError(
            f"{path}: {others[0]} = {fields[others[0]]!r}, expected none; it is of another release of MemoryLLM. Use "
            "YuWangX/memoryllm-8b or one like it."
        )
    for name in ("drop_memory_per_layer", "add_decoder_lora"):
        if not isinstance(fields.get(name, False), bool):
            raise ValueError(f"{path}: {name} = {fields[name]!r}, expected true or false")
    vectors = fields["num_blocks"] * fields["num_tokens"]
    if (total := fields.get("num_memory_tokens", vectors)) != vectors:
        raise ValueError(f"{path}: num_memory_tokens = {total!r}, expected num_blocks * num_tokens = {vectors}")
    lora = fields.get("lora_config")
    adapters = _Adapters()
    if lora is not None:
        rank, alpha = (lora.get(name) for name in ("r", "lora_alpha")) if isinstance(lora, dict) else (None, None)
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float) or not alpha > 0:
            raise ValueError(
                f"{path}: lora_config has r = {rank!r} and lora_alpha = {alpha!r}, expected a whole number of at "
                "least 1 and a number above 0"
            )
        if unknown := set(lora.get("target_modules") or ["(none)"]) - set(PROJECTIONS):
            raise ValueError(
                f"{path}: lora_config.target_modules has {', '.join(sorted(unknown))}, expected some of "
                f"{', '.join(PROJECTIONS)}"
            )
        names = (WRITER, READER) if fields.get("add_decoder_lora") else (WRITER,)
        adapters = _Adapters(rank, alpha / rank, tuple(lora["target_modules"]), names)
    return fields["num_blocks"], fields["num_tokens"], adapters


def _lora_name(layer: int, projection: str, side: str, adapter: str) -> str:
    return f"model.layers.{layer}.{PROJECTIONS[projection]}.{projection}.lora_{side}.{adapter}.weight"


def _memory_shapes(config: ModelConfig, vectors: int, adapters: _Adapters) -> dict[str, tuple[int, ...]]:
    """The tensors that a checkpoint has beside the Llama's, and their shapes."""
    layers, hidden = config.num_hidden_layers, config.hidden_size
    shapes = {
        "memory": (layers, vectors, hidden),
        "new_memory_positional_emb": (1, 1, hidden),
        "bos_embedding": (layers, 1, hidden),
        INITIALIZED: (),
    }
    kernels = {entry.path[2]: entry.shape for entry in parameter_table(config) if entry.is_kernel}
    for projection in adapters.projections:
        _, size_in, size_out = kernels[projection]
        for name in adapters.names:
            for layer in range(layers):
                shapes[_lora_name(layer, projection, "A", name)] = (adapters.rank, size_in)
                shapes[_lora_name(layer, projection, "B", name)] = (size_out, adapters.rank)
    return shapes


def _read(source: Source, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A whole tensor, checked."""
    if name not in source.names():
        raise ValueError(
            f"tensor {name!r} is missing, expected it with shape {shape}. Is the checkpoint a MemoryLLM?"
        )
    if source.shape(name) != shape:
        raise ValueError(
            f"tensor {name!r} has shape {source.shape(name)}, expected {shape}. Check that config.json belongs to "
            "these weights."
        )
    values = source.read(name, tuple(slice(0, size) for size in shape))
    if not np.isfinite(np.asarray(values, np.float32)).all():
        raise ValueError(f"tensor {name!r} holds NaN or infinity, expected finite values. Get the file again.")
    return values


def _adapter(tensors: dict, config: ModelConfig, adapters: _Adapters, name: str) -> dict:
    """An adapter as `Decoder` takes it; {} where there are none."""

    def stacked(projection, side):
        layers = range(config.num_hidden_layers)
        parts = [tensors[_lora_name(layer, projection, side, name)].T for layer in layers]
        return jnp.asarray(np.stack(parts), jnp.float32)

    return parameter_tree(
        {
            ("layers", PROJECTIONS[projection], projection, side.lower()): stacked(projection, side)
            for projection in adapters.projections
            for side in "AB"
        }
    )
