"""Models out as a llama.cpp file, through the gguf package: weights, settings, tokenizer and chat template."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from selfparam_jax.checkpoints.companions import gguf_file
from selfparam_jax.checkpoints.export import (
    Finish,
    check_tree,
    hf_tensors,
    merged_digest,
    new_directory,
)
from selfparam_jax.checkpoints.fused import fuse, fuse_shapes
from selfparam_jax.checkpoints.gguf import (
    LLAMA3_FACTORS,
    LONG_FACTORS,
    SHORT_FACTORS,
    gguf_names,
    open_gguf,
    shifted_norms,
)
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED, Vocabulary, read_vocabulary
from selfparam_jax.checkpoints.tokenizers import pre_tokenizers, split_by
from selfparam_jax.distributed.processes import is_main_process
from selfparam_jax.models.architecture import ModelConfig, RopeScaling
from selfparam_jax.models.family import check_gguf, rope_parameters
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.models.registry import family_of, gguf_family
from selfparam_jax.models.rope import rope_frequencies

RECORD = "export.json"
QUANTIZATIONS = {"float16": "F16", "q8_0": "Q8_0"}
# Text on which tokenizers that split differently differ.
_PROBE = "I'LL  say 12345 it's\n\n \tabc\r\nÜber_x 日本語 3.14!? (a) e\u0301"


def save_gguf(
    params: dict,
    model: Model,
    directory: str | os.PathLike,
    quantization: str = "float16",
    finish: Finish | None = None,
) -> Path:
    """Writes a directory with a model as one GGUF file, named after the base.

    Matrices are quantised, vectors stay in float32. One leaf is in memory at a time.

    Args:
      params: the weights, for example from `merge_for_export`.
      model: the base; gives settings and tokenizer.
      directory: new or empty, or the same export, which is kept.
      quantization: of QUANTIZATIONS.
      finish: called with the directory when its files are complete; what it returns is added to the record, and if it
        raises, nothing is left.

    Returns:
      the directory.

    Raises:
      ValueError: an architecture, setting or tokenizer that we cannot write; the directory holds something else.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"dtype {quantization!r}, expected one of {', '.join(QUANTIZATIONS)} for the format gguf")
    check_tree(params, model.config)
    values = [*_settings(model), *_tokenizer(model)]  # refused before anything is written
    record = {
        "base_fingerprint": model.fingerprint,
        "adapters_digest": merged_digest(params),
        "dtype": quantization,
    }
    name = f"{model.name.rsplit('/', 1)[-1]}-{QUANTIZATIONS[quantization]}.gguf"
    with new_directory(directory, RECORD, record, finish) as temporary:
        if temporary is not None:
            _write(temporary / name, values, params, model, QUANTIZATIONS[quantization])
    return Path(directory)


def _architecture(model: Model) -> str:
    family = family_of(model.hf_config.model_type)
    name = family.gguf_architecture or family.gguf_carries
    if not name:
        raise ValueError(
            f"a model of type {model.hf_config.model_type!r} cannot be written as GGUF here; export it as hf and use "
            "llama.cpp's convert_hf_to_gguf.py"
        )
    return name


def _settings(model: Model) -> Iterator[tuple[str, Any, Any, Any]]:
    """Key, value, type and type of elements of the architecture's metadata."""
    from gguf import GGUFValueType as Kind

    config, of = model.config, _architecture(model)
    _check_rotated(config, of)
    own = family_of(model.hf_config.model_type).gguf_settings(config)
    # To most architectures llama.cpp gives no sliding window. Up to its length a text is read as with it.
    window = None if own.get("attention.sliding_window") else config.sliding_window
    yield "general.name", model.name, Kind.STRING, None
    whole = {
        "block_count": config.num_hidden_layers,
        "context_length": min(config.max_position_embeddings, window or sys.maxsize),
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    for key, value in (whole | own).items():
        kind = {list: Kind.ARRAY, float: Kind.FLOAT32}.get(type(value), Kind.UINT32)
        yield f"{of}.{key}", value, kind, Kind.BOOL if kind is Kind.ARRAY else None
    yield f"{of}.attention.layer_norm_rms_epsilon", config.rms_norm_eps, Kind.FLOAT32, None
    yield f"{of}.rope.freq_base", config.rope_theta, Kind.FLOAT32, None
    scaling = config.rope_scaling
    if scaling is None:
        return
    if scaling.rope_type == "llama3":  # the divisors of the frequencies are a tensor
        found = scaling.low_freq_factor, scaling.high_freq_factor
        if found != (1.0, 4.0):
            raise ValueError(f"got low_freq_factor, high_freq_factor = {found}, expected 1 and 4 as all Llama 3 have")
        length = scaling.original_max_position_embeddings
        yield f"{of}.rope.scaling.original_context_length", length, Kind.UINT32, None
        return
    if scaling.rope_type == "longrope":  # the divisors are tensors here too
        length = config.max_position_embeddings
        yield f"{of}.rope.scaling.original_context_length", length, Kind.UINT32, None
        yield f"{of}.rope.scaling.attn_factor", scaling.attention_factor, Kind.FLOAT32, None
        return
    if scaling.rope_type not in ("linear", "yarn"):
        raise ValueError(f"rope_type = {scaling.rope_type!r} cannot be written as GGUF here; export the model as hf")
    yield f"{of}.rope.scaling.type", scaling.rope_type, Kind.STRING, None
    yield f"{of}.rope.scaling.factor", scaling.factor, Kind.FLOAT32, None
    if scaling.rope_type == "yarn":
        _check_yarn(scaling)
        length = scaling.original_max_position_embeddings
        yield f"{of}.rope.scaling.original_context_length", length, Kind.UINT32, None


def _check_yarn(scaling: RopeScaling) -> None:
    """Raises ValueError for settings that not every version of llama.cpp reads from a file."""
    grown = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    for name, expected in (("attention_factor", grown), ("beta_fast", 32.0), ("beta_slow", 1.0), ("truncate", True)):
        if not math.isclose(found := getattr(scaling, name), expected, rel_tol=1e-6):
            check_gguf(name, found, expected)


def _check_rotated(config: ModelConfig, architecture: str) -> None:
    """Raises ValueError where llama.cpp would give a layer a rotary embedding that it lacks, or the reverse."""
    step = {"smollm3": 4}.get(architecture, 0)  # every fourth layer has none; its files do not say it
    found = [n for n, kind in enumerate(config.layer_kinds, 1) if kind.rope == "none"]
    expected = [n for n in range(1, config.num_hidden_layers + 1) if step and n % step == 0]
    if found != expected:
        raise ValueError(
            f"layers without RoPE {found} cannot be written as GGUF, expected {expected}: llama.cpp has no others "
            f"for {architecture!r}; export the model as hf"
        )


def _tokenizer(model: Model) -> Iterator[tuple[str, Any, Any, Any]]:
    """The metadata of the tokenizer: those of the base's own GGUF file, or made from its tokenizer."""
    if (path := gguf_file(model)) is None:
        pieces = read_vocabulary(model.tokenizer, model.config.vocab_size)
        yield from _byte_level(model) if pieces is None else _pieces(pieces)
        yield from _special_tokens(model)
        return
    for key, field in open_gguf(path).fields.items():
        if key.startswith("tokenizer.") or key == "general.license":
            kind, *inner = field.types
            yield key, field.contents(), kind, inner[-1] if inner else None


def _byte_level(model: Model) -> Iterator[tuple[str, Any, Any, Any]]:
    from gguf import GGUFValueType as Kind

    tokenizer, config = model.tokenizer, model.config
    made = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(tokenizer, made)
    if made["model"]["type"] != "BPE" or not pre:
        raise ValueError(
            "the tokenizer is not one of the kinds, byte-level BPE or SentencePiece's, that can be written as GGUF "
            "here; export the model as hf and use llama.cpp's convert_hf_to_gguf.py"
        )
    tokens, types = [f"[PAD{n}]" for n in range(config.vocab_size)], [UNUSED] * config.vocab_size
    for token, index in made["model"]["vocab"].items():
        tokens[index], types[index] = token, NORMAL
    for added in made["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    merges = [each if isinstance(each, str) else " ".join(each) for each in made["model"]["merges"]]
    yield "tokenizer.ggml.model", "gpt2", Kind.STRING, None
    yield "tokenizer.ggml.pre", pre, Kind.STRING, None
    yield "tokenizer.ggml.tokens", tokens, Kind.ARRAY, Kind.STRING
    yield "tokenizer.ggml.token_type", types, Kind.ARRAY, Kind.INT32
    yield "tokenizer.ggml.merges", merges, Kind.ARRAY, Kind.STRING


def _pieces(pieces: Vocabulary) -> Iterator[tuple[str, Any, Any, Any]]:
    from gguf import GGUFValueType as Kind

    yield "tokenizer.ggml.model", "t5" if pieces.unigram else "llama", Kind.STRING, None
    if pieces.unigram:  # llama.cpp would put EOS behind every text
        yield "tokenizer.ggml.add_eos_token", False, Kind.BOOL, None
    yield "tokenizer.ggml.pre", "default", Kind.STRING, None
    yield "tokenizer.ggml.tokens", pieces.tokens, Kind.ARRAY, Kind.STRING
    yield "tokenizer.ggml.scores", pieces.scores, Kind.ARRAY, Kind.FLOAT32
    yield "tokenizer.ggml.token_type", pieces.types, Kind.ARRAY, Kind.INT32
    yield "tokenizer.ggml.add_space_prefix", pieces.space_prefix, Kind.BOOL, None


def _special_tokens(model: Model) -> Iterator[tuple[str, Any, Any, Any]]:
    from gguf import GGUFValueType as Kind

    tokenizer = model.tokenizer
    ids = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}
    others = [token for token in model.end_ids if token != tokenizer.eos_token_id]
    if len(others) > 2:
        logging.warning(
            "GGUF names three ends of text, but the model has %d: tokens %s do not end an answer there unless "
            "llama.cpp knows their names", len(others) + 1, others[2:],
        )  # fmt: skip
    ids |= dict(zip(("eot", "eom"), others, strict=False)) | {"unknown": tokenizer.unk_token_id}
    for role, index in ids.items():
        if index is not None:
            yield f"tokenizer.ggml.{role}_token_id", index, Kind.UINT32, None
    starts = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    yield "tokenizer.ggml.add_bos_token", starts, Kind.BOOL, None
    if tokenizer.chat_template:
        yield "tokenizer.chat_template", tokenizer.get_chat_template(), Kind.STRING, None  # of several, the default


def _pre_tokenizer(tokenizer: Any, made: dict) -> str:
    """llama.cpp's name of how a tokenizer splits text; "" if it is none that we know."""
    own = tokenizer.backend_tokenizer.pre_tokenizer
    if own is None:
        return ""
    pieces, merging = own.pre_tokenize_str(_PROBE), bool(made["model"].get("ignore_merges"))
    normal = (made.get("normalizer") or {}).get("type")
    for name, settings in pre_tokenizers().items():
        same = split_by(settings).pre_tokenize_str(_PROBE) == pieces
        if same and settings.ignore_merges == merging and normal == ("NFC" if settings.nfc else None):
            return name
    return ""


class _Written(np.ndarray):
    """An array that is written by the file, whose error of a full disk NumPy's own writing hides."""

    def tofile(self, file, *_):
        """Writes the bytes."""
        file.write(np.ascontiguousarray(self).view(np.ndarray).data.cast("B"))


def _write(path: Path, values: list, params: dict, model: Model, quantization: str) -> None:
    """The file; the other processes only help to fetch the tensors."""
    import gguf

    tensors = _tensors(params, model)
    if not is_main_process():
        for _ in tensors:
            pass
        return
    kind = gguf.GGMLQuantizationType[quantization]
    writer = gguf.GGUFWriter(str(path), _architecture(model))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization}"])
    for key, value, value_type, inner in values:
        writer.add_key_value(key, value, value_type, inner)
    shapes = _shapes(model)

    def type_of(shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return gguf.GGMLQuantizationType.F32
        return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else gguf.GGMLQuantizationType.F16

    for name, shape in shapes.items():
        block, size = gguf.GGML_QUANT_SIZES[type_of(shape)]
        count = int(np.prod(shape, dtype=np.int64))
        stored = {"F32": np.float32, "F16": np.float16}.get(type_of(shape).name, np.uint8)
        inner = shape if stored is not np.uint8 else (*shape[:-1], shape[-1] // block * size)
        writer.add_tensor_info(name, inner, np.dtype(stored), count // block * size, type_of(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, array in tensors:
        if array.shape != shapes[name]:
            raise ValueError(f"tensor {name!r} has shape {array.shape}, expected {shapes[name]}; report this")
        writer.write_tensor_data(gguf.quants.quantize(array, type_of(array.shape)).view(_Written))
    writer.close()


def _shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors, in the order of `_tensors`."""
    config, names = model.config, gguf_names(model.config)
    shapes = {name: entry.hf_shape for entry in parameter_table(config) for name in entry.hf_names()}
    found = {names[name]: shape for name, shape in fuse_shapes(shapes, config).items()}
    return found | {name: array.shape for name, array in _factors(model).items()}


def _tensors(params: dict, model: Model) -> Iterator[tuple[str, np.ndarray]]:
    """llama.cpp's tensors, one by one, in float32."""
    config = model.config
    names, shifted = gguf_names(config), shifted_norms(config)
    paired = gguf_family(_architecture(model)).gguf_paired_rows
    for name, array in fuse(hf_tensors(params, config, np.dtype(np.float32)), config):
        if paired and (".q_proj." in name or ".k_proj." in name):
            # Ours: head, component, pair. Theirs: head, pair, component.
            halves = array.reshape(-1, 2, config.head_dim // 2, *array.shape[1:])
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        yield names[name], array + np.float32(1) if name in shifted else array
    yield from _factors(model).items()


def _factors(model: Model) -> dict[str, np.ndarray]:
    """The divisors of the rotary frequencies, float32 [H / 2], where llama.cpp has them as tensors."""
    config = model.config
    rope_type = config.rope_scaling.rope_type if config.rope_scaling else "default"
    if rope_type == "llama3":
        plain = rope_frequencies(dataclasses.replace(config, rope_scaling=None))
        return {LLAMA3_FACTORS: (plain / rope_frequencies(config)).astype(np.float32)}
    if rope_type != "longrope":
        return {}
    short = np.asarray(config.rope_scaling.short_factor, np.float32)
    # llama.cpp takes the long ones for texts that are longer than those which we read.
    long = rope_parameters(model.hf_config).get("long_factor")
    return {LONG_FACTORS: short if long is None else np.asarray(long, np.float32), SHORT_FACTORS: short}
