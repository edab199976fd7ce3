"""Checkpoints in and out: one strict parameter table, three kinds of files to read, safetensors to write.

The table pairs every leaf of our tree with its Hugging Face name and its GGUF name. It is total both
ways: a tensor that is missing, unexpected or of another shape is an error that names it. Readers hand out
slices, so a host reads only what its devices hold.
"""

import dataclasses
import fnmatch
import functools
import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selfparam_jax.files import replacing
from selfparam_jax.lora import LazyKernel
from selfparam_jax.mesh import fetch
from selfparam_jax.model import Int8Kernel, ModelConfig, RopeScaling, rope_frequencies
from selfparam_jax.quantization import round_kernel

Index = tuple[slice, ...]
FINGERPRINT_ELEMENTS = 4096
# Tensors that may be there without being a parameter: a constant that old versions of transformers stored,
# and the head where it is tied (untied, it is in the table): the embedding once more.
IGNORABLE = ("*.rotary_emb.inv_freq", "lm_head.weight")


# --- architecture -------------------------------------------------------------------------------------


def model_config_from_hf(hf_config: Any) -> ModelConfig:
    """Translates a transformers LlamaConfig or MistralConfig.

    Reads the `rope_parameters` of transformers 5 and the older `rope_theta` / `rope_scaling`.

    Raises:
      ValueError: the architecture, rope type, activation or another setting is not supported.
    """

    def get(name, default=None):
        return getattr(hf_config, name, default)

    model_type = get("model_type")
    if model_type not in ("llama", "mistral"):
        raise ValueError(
            f"model_type = {model_type!r} is not supported; expected 'llama' or 'mistral'. "
            "Use a checkpoint of one of these architectures."
        )
    if (get("pretraining_tp") or 1) != 1:
        raise ValueError(
            f"pretraining_tp = {get('pretraining_tp')} is not supported, expected 1. It only splits the same "
            "sums: set pretraining_tp to 1 in config.json."
        )
    if get("quantization_config"):
        raise ValueError(
            "config.json has a quantization_config, expected plain float weights. "
            "Use the unquantised checkpoint, or a quantised one in the GGUF format."
        )
    rope_theta, rope_scaling = _rope(hf_config)
    # Mistral has neither biases nor these fields; Llama has no sliding window, whatever its config says.
    is_llama = model_type == "llama"
    heads = hf_config.num_attention_heads
    return ModelConfig(
        vocab_size=hf_config.vocab_size,
        hidden_size=hf_config.hidden_size,
        intermediate_size=hf_config.intermediate_size,
        num_hidden_layers=hf_config.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=get("num_key_value_heads") or heads,
        head_dim=get("head_dim") or hf_config.hidden_size // heads,
        rms_norm_eps=float(hf_config.rms_norm_eps),
        rope_theta=rope_theta,
        max_position_embeddings=hf_config.max_position_embeddings,
        rope_scaling=rope_scaling,
        sliding_window=None if is_llama else get("sliding_window"),
        attention_bias=is_llama and bool(get("attention_bias", False)),
        mlp_bias=is_llama and bool(get("mlp_bias", False)),
        tie_word_embeddings=bool(get("tie_word_embeddings", False)),
        hidden_act=hf_config.hidden_act,
    )


def _rope(hf_config: Any) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling from either layout of the config."""
    fields = getattr(hf_config, "rope_parameters", None) or getattr(hf_config, "rope_scaling", None) or {}
    # 10000 is what both architectures assume in files too old to name it.
    theta = fields.get("rope_theta") or getattr(hf_config, "rope_theta", None) or 10000.0
    rope_type = fields.get("rope_type") or fields.get("type") or "default"
    if (fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor = {fields['partial_rotary_factor']} is not supported, expected 1.0. "
            "Use a checkpoint that rotates the whole head."
        )
    needed = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    }
    if rope_type not in needed:
        raise ValueError(
            f"rope_type = {rope_type!r} is not supported; expected 'default', 'linear' or 'llama3'. "
            "Use a checkpoint with one of these."
        )
    missing = [name for name in needed[rope_type] if fields.get(name) is None]
    if missing:
        raise ValueError(
            f"rope_type = {rope_type!r} got no {', '.join(missing)}; expected a number for each. "
            "Add them to the rope settings of config.json."
        )
    if rope_type == "default":
        return float(theta), None
    return float(theta), RopeScaling(rope_type, **{name: fields[name] for name in needed[rope_type]})


# --- the table ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of our parameter tree and where it lies in a checkpoint.

    path: keys in our tree.
    hf_name, gguf_name: tensor names, with `{layer}` where the layers are stacked on our leading axis.
    transpose: the checkpoint holds [out, in] where we hold [in, out].
    shape: of our leaf, with the leading L where stacked.
    axes: what the leaf's axes are called in `mesh.RULES`; None for one that is never split.
    """

    path: tuple[str, ...]
    hf_name: str
    gguf_name: str
    transpose: bool
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether it is the weight [L, D, F] of a projection."""
        return self.path[-1] == "kernel"

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.hf_name

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of one tensor of the checkpoint."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transpose else shape

    def hf_names(self) -> list[str]:
        """The tensor names of this leaf, one per layer where stacked."""
        if not self.stacked:
            return [self.hf_name]
        return [self.hf_name.format(layer=layer) for layer in range(self.shape[0])]


def parameter_table(config: ModelConfig) -> tuple[Entry, ...]:
    """Every parameter of this architecture, once; the order is also that of `fingerprint`."""
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    table = (config.vocab_size, hidden), ("vocabulary", "hidden")
    entries = [Entry(("embed_tokens", "embedding"), "model.embed_tokens.weight", "token_embd.weight", False, *table)]
    for name, gguf in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
        hf, gguf = f"model.layers.{{layer}}.{name}.weight", f"blk.{{layer}}.{gguf}.weight"
        entries.append(Entry(("layers", name, "weight"), hf, gguf, False, (layers, hidden), (None, None)))
    attention, mlp = config.attention_bias, config.mlp_bias
    for block, name, gguf, size_in, size_out, bias, axes in (
        ("self_attn", "q_proj", "attn_q", hidden, queries, attention, ("hidden", "heads")),
        ("self_attn", "k_proj", "attn_k", hidden, keys, attention, ("hidden", "heads")),
        ("self_attn", "v_proj", "attn_v", hidden, keys, attention, ("hidden", "heads")),
        ("self_attn", "o_proj", "attn_output", queries, hidden, attention, ("heads", "hidden")),
        ("mlp", "gate_proj", "ffn_gate", hidden, inner, mlp, ("hidden", "inner")),
        ("mlp", "up_proj", "ffn_up", hidden, inner, mlp, ("hidden", "inner")),
        ("mlp", "down_proj", "ffn_down", inner, hidden, mlp, ("inner", "hidden")),
    ):
        hf, gguf = f"model.layers.{{layer}}.{block}.{name}", f"blk.{{layer}}.{gguf}"
        path = ("layers", block, name)
        kernel = (layers, size_in, size_out), (None, *axes)
        entries.append(Entry((*path, "kernel"), f"{hf}.weight", f"{gguf}.weight", True, *kernel))
        if bias:
            of_bias = (layers, size_out), (None, axes[1])
            entries.append(Entry((*path, "bias"), f"{hf}.bias", f"{gguf}.bias", False, *of_bias))
    entries.append(Entry(("norm", "weight"), "model.norm.weight", "output_norm.weight", False, (hidden,), (None,)))
    if not config.tie_word_embeddings:
        entries.append(Entry(("lm_head", "weight"), "lm_head.weight", "output.weight", False, *table))
    return tuple(entries)


def check_source(source: "Source", config: ModelConfig) -> None:
    """Raises ValueError unless the source holds exactly the tensors of the table, in their shapes."""
    found = set(source.names())
    for entry in parameter_table(config):
        for name in entry.hf_names():
            if name not in found:
                raise ValueError(
                    f"tensor {name!r} is missing: got {len(found)} other tensors, expected it with shape "
                    f"{entry.hf_shape}. Check that config.json belongs to these weights; is a file missing?"
                )
            found.remove(name)
            shape = tuple(source.shape(name))
            if shape != entry.hf_shape:
                raise ValueError(
                    f"tensor {name!r} has shape {shape}, expected {entry.hf_shape}. "
                    "Check that config.json belongs to these weights."
                )
    unexpected = sorted(n for n in found if not any(fnmatch.fnmatchcase(n, p) for p in IGNORABLE))
    if unexpected:
        raise ValueError(
            f"tensor {unexpected[0]!r} is unexpected (as are {len(unexpected) - 1} others): this "
            "architecture has no such parameter. Check that config.json belongs to these weights."
        )


# --- sources ------------------------------------------------------------------------------------------


class Source(Protocol):
    """Tensors of a checkpoint by their Hugging Face names, in Hugging Face's orientation."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, index: Index) -> np.ndarray: ...


def _weight_files(directory: Path, single: str) -> dict[str, list[str] | None]:
    """File name -> tensor names the index puts there (None without an index).

    Raises:
      ValueError: neither the single file nor its index is there, or the index is not readable.
    """
    index = directory / f"{single}.index.json"
    if (directory / single).is_file():
        return {single: None}
    if not index.is_file():
        raise ValueError(f"{directory} has no {single} and no {index.name}; expected one of them.")
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        files: dict[str, list[str] | None] = {}
        for name, file in weight_map.items():
            files.setdefault(file, []).append(name)
    except (ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{index} is not an index of weights: {error}. Get the file again.") from error
    for file in files:
        if not (directory / file).is_file():
            raise ValueError(f"{directory / file} is missing, but {index.name} names it. Get the file again.")
    return files


def _same_names(path: Path, expected: list[str] | None, found: list[str]) -> None:
    if expected is not None and set(expected) != set(found):
        name = min(set(expected) ^ set(found))
        place = "only in the index" if name in expected else "only in the file"
        raise ValueError(f"{path}: tensor {name!r} is {place}; expected it in both. Get the files again.")


class SafetensorsSource:
    """`model.safetensors`, or shards with `model.safetensors.index.json`; reads slices lazily.

    Raises ValueError naming the file where one is missing, truncated or not a safetensors file.
    """

    def __init__(self, directory: str | os.PathLike):
        directory = Path(directory)
        self._tensors: dict[str, tuple[Path, Any]] = {}
        for file, expected in _weight_files(directory, "model.safetensors").items():
            path = directory / file
            try:
                handle = safe_open(str(path), framework="numpy")
                names = list(handle.keys())
                self._tensors.update((name, (path, handle)) for name in names)
            except (SafetensorError, OSError, ValueError) as error:
                raise ValueError(f"{path} is not a whole safetensors file: {error}. Get the file again.") from error
            _same_names(path, expected, names)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name][1].get_slice(name).get_shape())

    def read(self, name: str, index: Index) -> np.ndarray:
        path, handle = self._tensors[name]
        try:
            return handle.get_slice(name)[index]
        except (SafetensorError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: cannot read tensor {name!r}: {error}. Get the file again.") from error


class TorchBinSource:
    """`pytorch_model.bin`, or shards with `pytorch_model.bin.index.json`; memory-mapped. Needs torch.

    Nothing is unpickled but tensors (`weights_only=True`).
    """

    def __init__(self, directory: str | os.PathLike):
        directory = Path(directory)
        files = _weight_files(directory, "pytorch_model.bin")
        try:
            import torch
        except ImportError as error:
            raise ValueError(
                f"{directory} has its weights in pytorch_model.bin, and reading these needs torch, which is "
                "not installed. Run pip install 'selfparam-jax[torch]', or use a checkpoint in safetensors."
            ) from error
        self._torch = torch
        self._tensors: dict[str, Any] = {}
        for file, expected in files.items():
            path = directory / file
            try:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                shapes = {name: tensor.shape for name, tensor in tensors.items()}
            except Exception as error:  # pickle, zip and torch each have their own
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(
                    f"{path} is not a whole file of torch tensors: {reason}. Get the file again, or use safetensors."
                ) from error
            _same_names(path, expected, list(shapes))
            self._tensors.update(tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, index: Index) -> np.ndarray:
        tensor = self._tensors[name][index].contiguous()
        if tensor.dtype == self._torch.bfloat16:  # numpy has no such type of its own
            return tensor.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def open_gguf(path: str | os.PathLike) -> Any:
    """A gguf.GGUFReader of the file; ValueError naming the file if it is truncated or no GGUF file."""
    import gguf

    try:
        return gguf.GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole GGUF file: {reason}. Get the file again.") from error


class GGUFSource:
    """A llama.cpp file of architecture `llama`, dequantised slice by slice to float32.

    llama.cpp stores the rows of q and k so that the two components of a rotation are neighbours;
    Hugging Face keeps them half a head apart. Rows come out in Hugging Face's order.

    Args:
      path: the file.
      config: of the same model; gives head counts, and the scaling `rope_freqs.weight` must agree with.
      reader: of the same file, if it is open already (opening takes seconds).
    """

    def __init__(self, path: str | os.PathLike, config: ModelConfig, reader: Any = None):
        self._path = path
        self._head_dim = config.head_dim
        reader = open_gguf(path) if reader is None else reader
        hf_names = {}
        for entry in parameter_table(dataclasses.replace(config, tie_word_embeddings=False)):
            for layer, name in enumerate(entry.hf_names()):
                hf_names[entry.gguf_name.format(layer=layer)] = name
        self._tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            if tensor.name == "rope_freqs.weight":
                self._check_rope(tensor, config)
            else:
                self._tensors[hf_names.get(tensor.name, tensor.name)] = tensor

    def _check_rope(self, tensor: Any, config: ModelConfig) -> None:
        """`rope_freqs.weight` divides the plain frequencies: it must say what the config says."""
        found = np.asarray(self._dequantize(tensor, slice(None)), np.float64)
        plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
        expected = plain / rope_frequencies(config)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-3):
            raise ValueError(
                f"{self._path}: rope_freqs.weight got factors {np.ravel(found)[[0, -1]]} (first, last), "
                f"expected {expected[[0, -1]]} from rope_scaling = {config.rope_scaling}. "
                "Use the Hugging Face directory of this model instead."
            )

    def _dequantize(self, tensor: Any, rows: Any) -> np.ndarray:
        from gguf import quants

        try:
            return quants.dequantize(np.ascontiguousarray(tensor.data[rows]), tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{self._path}: tensor {tensor.name!r} has type {tensor.tensor_type.name}, which the gguf "
                "package cannot dequantise. Use a file with another quantisation, for example Q8_0 or Q4_K."
            ) from error

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._tensors[name].shape))

    def read(self, name: str, index: Index) -> np.ndarray:
        rows: Any = index[0]
        if ".q_proj." in name or ".k_proj." in name:
            # Ours: head, component, pair. Theirs: head, pair, component.
            ours = np.arange(self.shape(name)[0])[rows]
            head, within = np.divmod(ours, self._head_dim)
            component, pair = np.divmod(within, self._head_dim // 2)
            rows = head * self._head_dim + pair * 2 + component
        return self._dequantize(self._tensors[name], rows)[(slice(None), *index[1:])]


# --- reading ------------------------------------------------------------------------------------------


def put_leaf(tree: dict, entry: Entry, value: Any) -> None:
    """Puts a value where an entry's leaf is."""
    for key in entry.path[:-1]:
        tree = tree.setdefault(key, {})
    tree[entry.path[-1]] = value


def load_params(
    source: Source,
    config: ModelConfig,
    dtype: Any,
    shardings: dict | None = None,
    int8: bool = False,
) -> dict:
    """Our parameter tree as jax.Arrays; each device's slice is read, and nothing else.

    Args:
      source: where the tensors come from.
      config: architecture; must match the source exactly.
      dtype: of every leaf.
      shardings: of every leaf, as a tree (`sharding.parameter_shardings`); None puts all on the first local device.
      int8: round the kernels to 8 bits (`quantization.round_kernel`), one after the other as they are read.

    Raises:
      ValueError: a tensor is missing, unexpected, mis-shapen or unreadable. NaN and inf are not looked for.
    """
    check_source(source, config)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    tree: dict = {}
    for entry in parameter_table(config):
        sharding = single if shardings is None else functools.reduce(operator.getitem, entry.path, shardings)
        read = functools.partial(jax.make_array_from_callback, entry.shape)
        slices = _reader(source, entry, np.dtype(dtype))
        if int8 and entry.is_kernel:
            both = Int8Kernel(single, single) if shardings is None else sharding
            leaf = round_kernel(read(both.values, slices), both)
        else:
            leaf = read(sharding, slices)
        put_leaf(tree, entry, leaf)
    return tree


def _reader(source: Source, entry: Entry, dtype: np.dtype) -> Callable[[Index], np.ndarray]:
    """Slices of one leaf, in our orientation; each is read once, however many devices hold a copy."""
    done: dict[tuple, np.ndarray] = {}

    def read(index: Index) -> np.ndarray:
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index, entry.shape, strict=True))
        if bounds in done:
            return done[bounds]
        index = tuple(slice(*bound) for bound in bounds)
        out = np.empty([stop - start for start, stop in bounds], dtype)
        within = index[1:] if entry.stacked else index
        hf_index = within[::-1] if entry.transpose else within
        names = entry.hf_names()[index[0]] if entry.stacked else entry.hf_names()
        for position, name in enumerate(names):
            values = source.read(name, hf_index)
            out[position if entry.stacked else ...] = values.T if entry.transpose else values
        done[bounds] = out
        return out

    return read


def fingerprint(source: Source, config: ModelConfig) -> str:
    """Hex SHA-256 that tells base models apart, cheaply: it does not read all of the weights.

    Covers the config and, of every tensor in table order, its Hugging Face name, its shape and its first
    4096 elements (Hugging Face's row-major order) as float32.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for entry in parameter_table(config):
        shape = entry.hf_shape
        rows = min(shape[0], -(-FINGERPRINT_ELEMENTS // int(np.prod(shape[1:], dtype=np.int64))))
        index = (slice(0, rows), *(slice(0, size) for size in shape[1:]))
        for name in entry.hf_names():
            first = np.asarray(source.read(name, index)).astype("<f4").ravel()[:FINGERPRINT_ELEMENTS]
            digest.update(f"{name} {shape}".encode() + first.tobytes())
    return digest.hexdigest()


# --- writing ------------------------------------------------------------------------------------------


def save_safetensors(
    params: dict,
    config: ModelConfig,
    directory: str | os.PathLike,
    dtype: Any,
    max_shard_bytes: float = 5e9,
) -> None:
    """Writes the tree under Hugging Face's names as model.safetensors, or as shards with an index.

    Every file appears under its final name only when it is whole. Shards hold at most `max_shard_bytes`
    (but at least one tensor). A single file and an index do not stay side by side from an earlier export.

    Raises:
      ValueError: the tree is not that of `config`.
    """
    directory, dtype = Path(directory), np.dtype(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    _check_tree(params, config)
    groups = _plan_shards(config, dtype.itemsize, max_shard_bytes)
    tensors = _hf_tensors(params, config, dtype)
    weight_map = {}
    for number, names in enumerate(groups, 1):
        file = "model.safetensors"
        if len(groups) > 1:
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        content = dict(next(tensors) for _ in names)
        with replacing(directory / file) as temporary:
            save_file(content, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # safetensors keeps it to the owner, but a server may be another user
        weight_map.update(dict.fromkeys(names, file))
    index_path = directory / "model.safetensors.index.json"
    if len(groups) == 1:
        index_path.unlink(missing_ok=True)
        return
    total = sum(int(np.prod(entry.shape, dtype=np.int64)) for entry in parameter_table(config))
    index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": weight_map}
    with replacing(index_path) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n")
    (directory / "model.safetensors").unlink(missing_ok=True)


def _check_tree(params: dict, config: ModelConfig) -> None:
    found = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    expected = {entry.path: entry.shape for entry in parameter_table(config)}
    for path in sorted(found.keys() ^ expected.keys()):
        state = "missing" if path in expected else "unexpected"
        raise ValueError(f"parameter {'/'.join(path)} is {state}; expected the tree of {config}.")
    for path, shape in expected.items():
        if tuple(found[path].shape) != shape:
            raise ValueError(
                f"parameter {'/'.join(path)} has shape {found[path].shape}, expected {shape}. "
                "Check that the config belongs to these parameters."
            )


def _plan_shards(config: ModelConfig, item_bytes: int, max_shard_bytes: float) -> list[list[str]]:
    """Tensor names of every shard, in table order."""
    shards: list[list[str]] = [[]]
    used = 0
    for entry in parameter_table(config):
        size = int(np.prod(entry.hf_shape, dtype=np.int64)) * item_bytes
        for name in entry.hf_names():
            if shards[-1] and used + size > max_shard_bytes:
                shards.append([])
                used = 0
            shards[-1].append(name)
            used += size
    return shards


def _hf_tensors(params: dict, config: ModelConfig, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors one by one in table order, so that only one leaf and one shard are in memory."""
    for entry in parameter_table(config):
        leaf = params
        for key in entry.path:
            leaf = leaf[key]
        host = fetch(leaf.merged()) if isinstance(leaf, LazyKernel) else fetch(leaf)
        for layer, name in enumerate(entry.hf_names()):
            values = host[layer] if entry.stacked else host
            yield name, np.ascontiguousarray((values.T if entry.transpose else values).astype(dtype))
