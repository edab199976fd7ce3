"""llama.cpp's GGUF files: metadata, config, and tensors that are dequantised as they are read."""

import dataclasses
import functools
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from selfparam_jax.checkpoints.tensors import Index
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.family import Family, GGUFHeader
from selfparam_jax.models.parameters import fused_tensors, parameter_table
from selfparam_jax.models.registry import gguf_family, make_hf_config
from selfparam_jax.models.rope import rope_frequencies

LLAMA3_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
# llama.cpp's names of projections that a checkpoint holds as one.
_FUSED = {"qkv_proj": "attn_qkv", "gate_up_proj": "ffn_up"}


def open_gguf(path: str | os.PathLike) -> Any:
    """A gguf.GGUFReader of the file, or of all files of a model that is split into several.

    Args:
      path: the file; any of them if there are several (`name-00001-of-00003.gguf`).

    Raises:
      ValueError: naming the file, if it is truncated or no GGUF file, or one of several is missing.
    """
    reader = _read_gguf(path)
    count = metadata(reader, "split.count", 0)
    if count < 2:
        return reader
    named = re.fullmatch(r"(.*-)\d{5}(-of-\d{5}\.gguf)", Path(path).name)
    if not named:
        raise ValueError(f"{path} is one of {count} files, expected a name such as model-00001-of-{count:05d}.gguf.")
    parts = [Path(path).with_name(f"{named[1]}{number:05d}{named[2]}") for number in range(1, count + 1)]
    if missing := [part for part in parts if not part.is_file()]:
        raise ValueError(f"{missing[0]} is missing, but {Path(path).name} is one of {count} files. Get it too.")
    return _Split([_read_gguf(part) for part in parts])


class _Split:
    """The readers of a model's files as one: the metadata of the first, the tensors of all."""

    def __init__(self, readers: list[Any]):
        self.fields = readers[0].fields
        self.tensors = [tensor for reader in readers for tensor in reader.tensors]


@functools.cache
def _reader_class() -> type:
    """gguf.GGUFReader over a plain view of the file: slices of a np.memmap cost two thirds of the time to open it."""
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> np.ndarray:
            return self._bytes

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._bytes = np.asarray(mapped)

    return Reader


def _read_gguf(path: str | os.PathLike) -> Any:
    try:
        return _reader_class()(path)
    except (OSError, ValueError, IndexError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a whole GGUF file: {reason}. Get the file again.") from error


class GGUFSource:
    """A llama.cpp file, dequantised slice by slice to float32.

    For some families llama.cpp stores the rows of q and k so that the two components of a rotation are neighbours;
    Hugging Face keeps them half a head apart. Rows are handed out in Hugging Face's order. Weights of norms that are
    applied as 1 + weight are stored with the 1.

    Args:
      path: the file.
      config: of the same model; gives head counts, and the scaling that `rope_freqs.weight` must agree with.
      reader: of the same file, if it is open already (opening takes seconds).

    Raises:
      ValueError: the architecture is not supported, or the file contradicts the config.
    """

    def __init__(self, path: str | os.PathLike, config: ModelConfig, reader: Any = None):
        self._path = path
        self._head_dim = config.head_dim
        reader = open_gguf(path) if reader is None else reader
        self._paired_rows = family_of_file(reader).gguf_paired_rows
        untied = dataclasses.replace(config, tie_word_embeddings=False)
        hf_names = {gguf: name for name, gguf in gguf_names(untied).items()}
        self._shifted = shifted_norms(untied)
        self._tensors: dict[str, Any] = {}
        for tensor in reader.tensors:
            if tensor.name == LLAMA3_FACTORS:
                self._check_rope(tensor, config)
            elif tensor.name not in (LONG_FACTORS, SHORT_FACTORS):  # these are in the config
                self._tensors[hf_names.get(tensor.name, tensor.name)] = tensor

    def _check_rope(self, tensor: Any, config: ModelConfig) -> None:
        """`rope_freqs.weight` divides the plain frequencies: it must agree with the config."""
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
        if self._paired_rows and (".q_proj." in name or ".k_proj." in name):
            # Ours: head, component, pair. Theirs: head, pair, component.
            ours = np.arange(self.shape(name)[0])[rows]
            head, within = np.divmod(ours, self._head_dim)
            component, pair = np.divmod(within, self._head_dim // 2)
            rows = head * self._head_dim + pair * 2 + component
        found = self._dequantize(self._tensors[name], rows)[(slice(None), *index[1:])]
        return found - np.float32(1) if name in self._shifted else found


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """llama.cpp's names of a checkpoint's tensors, by Hugging Face's."""
    names = {
        name: entry.gguf_name.format(layer=layer)
        for entry in parameter_table(config)
        for layer, name in enumerate(entry.hf_names())
    }
    for fused, parts in fused_tensors(config).items():
        layer, projection = fused.split(".")[2], fused.split(".")[-2]
        names = {name: gguf for name, gguf in names.items() if name not in parts}
        names[fused] = f"blk.{layer}.{_FUSED[projection]}.weight"
    return names


def shifted_norms(config: ModelConfig) -> set[str]:
    """Names of the norms whose weights llama.cpp stores with the 1 that is added to them."""
    norms = [entry for entry in parameter_table(config) if entry.is_norm and config.norm == "gemma"]
    return {name for entry in norms for name in entry.hf_names()}


def metadata(reader: Any, key: str, default: Any = ...) -> Any:
    """A value of a file's metadata; ValueError if it is missing and no default is given."""
    field = reader.fields.get(key)
    if field is not None:
        return field.contents()
    if default is ...:
        raise ValueError(f"got no metadata {key!r}, expected it. Convert the model again with llama.cpp.")
    return default


def family_of_file(reader: Any) -> Family:
    """The model family of an open file. Raises ValueError if it is not supported."""
    return gguf_family(metadata(reader, "general.architecture"))


def gguf_config(reader: Any) -> Any:
    """The transformers config that a llama.cpp file describes.

    Raises:
      ValueError: the architecture or a setting is not supported.
    """
    family = family_of_file(reader)
    of = family.gguf_architecture
    hidden = metadata(reader, f"{of}.embedding_length")
    heads = metadata(reader, f"{of}.attention.head_count")
    key_heads = metadata(reader, f"{of}.attention.head_count_kv", heads)
    head_dim = metadata(reader, f"{of}.attention.key_length", hidden // heads)
    rotated = metadata(reader, f"{of}.rope.dimension_count", head_dim)
    if isinstance(heads, list) or isinstance(key_heads, list) or rotated != head_dim:
        raise ValueError(
            f"got {heads} heads, {key_heads} key heads, {rotated} rotated of {head_dim} head dimensions; expected "
            "one head count for all layers and whole heads rotated. Use the Hugging Face directory of the model."
        )
    names = {tensor.name for tensor in reader.tensors}
    fields = {
        "architectures": [family.hf_model],
        "vocab_size": len(metadata(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": metadata(reader, f"{of}.feed_forward_length"),
        "num_hidden_layers": metadata(reader, f"{of}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _short(metadata(reader, f"{of}.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata(reader, f"{of}.context_length"),
        "rope_parameters": _gguf_rope(reader, of),
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": metadata(reader, "tokenizer.ggml.bos_token_id", None),
        "eos_token_id": metadata(reader, "tokenizer.ggml.eos_token_id", None),
        "pad_token_id": metadata(reader, "tokenizer.ggml.padding_token_id", None),
    }

    def value(key: str, default: Any) -> Any:
        found = metadata(reader, f"{of}.{key}", default)
        return _short(found) if isinstance(found, float) else found

    fields |= family.gguf_fields(GGUFHeader(names, value, dict(fields)))
    window = value("attention.sliding_window", None)
    if window and "sliding_window" not in fields:
        raise ValueError(
            f"got a sliding window of {window}, expected none. Use the Hugging Face directory of the model."
        )
    return make_hf_config(family, fields)


def gguf_end_ids(reader: Any) -> list[int | None]:
    """Ids that end a text, a turn or a message, where the file names them."""
    return [metadata(reader, f"tokenizer.ggml.{kind}_token_id", None) for kind in ("eos", "eot", "eom")]


def _short(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _gguf_rope(reader: Any, architecture: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": _short(metadata(reader, f"{architecture}.rope.freq_base", 10000.0))}
    # As llama.cpp reads it: files of older writers have another key, or a factor without a type, which is linear.
    factor = metadata(reader, f"{architecture}.rope.scaling.factor", None)
    factor = metadata(reader, f"{architecture}.rope.scale_linear", None) if factor is None else factor
    implied = "none" if factor in (None, 0.0, 1.0) else "linear"
    kind = metadata(reader, f"{architecture}.rope.scaling.type", implied)
    rope["rope_type"] = "default" if kind == "none" else kind
    if rope["rope_type"] != "default":
        if factor is None:
            factor = metadata(reader, f"{architecture}.rope.scaling.factor")
        rope["factor"] = _short(factor)
    if rope["rope_type"] == "yarn":
        key = f"{architecture}.rope.scaling.original_context_length"
        rope["original_max_position_embeddings"] = metadata(reader, key)
        for name in ("attn_factor", "yarn_log_multiplier", "yarn_beta_fast", "yarn_beta_slow"):
            value = metadata(reader, f"{architecture}.rope.scaling.{name}", None)
            if value is not None:
                raise ValueError(
                    f"{architecture}.rope.scaling.{name} = {value} is not supported, expected a file without it. "
                    "Use the Hugging Face directory of the model."
                )
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if SHORT_FACTORS in tensors:
        rope["rope_type"] = "longrope"
        for field, name in (("short_factor", SHORT_FACTORS), ("long_factor", LONG_FACTORS)):
            if name in tensors:
                rope[field] = [_short(each) for each in np.ravel(tensors[name].data)]
        rope["attention_factor"] = _short(metadata(reader, f"{architecture}.rope.scaling.attn_factor", 1.0))
        key = f"{architecture}.rope.scaling.original_context_length"
        rope["original_max_position_embeddings"] = metadata(reader, key)
    factors = tensors.get(LLAMA3_FACTORS)
    if factors is not None:
        # llama.cpp keeps the divisors of the frequencies instead of the settings. All Llama 3 releases share
        # the settings below but for the factor, the largest divisor; our own exports name the length. GGUFSource
        # verifies every divisor.
        rope["rope_type"] = "llama3"
        rope["factor"] = float(np.max(factors.data))
        rope["low_freq_factor"], rope["high_freq_factor"] = 1.0, 4.0
        key = f"{architecture}.rope.scaling.original_context_length"
        rope["original_max_position_embeddings"] = metadata(reader, key, 8192)
    return rope
