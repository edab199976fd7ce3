"""Adapters in and out in the layout of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from selfparam_jax.checkpoints.export import Finish, digest_arrays, new_directory
from selfparam_jax.checkpoints.fused import fuse_factors, split_factors
from selfparam_jax.checkpoints.load import ModelOutline
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.distributed.files import read_json, write_json
from selfparam_jax.distributed.mesh import fetch
from selfparam_jax.distributed.ranges import Range
from selfparam_jax.models.lora import MODULES
from selfparam_jax.models.parameters import FUSED, parameter_table, tree_leaves

CONFIG, WEIGHTS, RECORD = "adapter_config.json", "adapter_model.safetensors", "selfparam.json"
OLD_WEIGHTS = "adapter_model.bin"
# Fields of PEFT's config that do not change what an adapter computes, or that are read.
NEUTRAL = {
    *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode", "lora_alpha"),
    *("lora_dropout", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"),
    *("layers_pattern", "layers_to_transform", "revision", "target_modules", "task_type", "use_rslora"),
}
RANK = Range(1, 2**20)
# Values of other fields that ask for nothing.
PLAIN = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal")}


def save_adapter(
    lora: dict,
    scale: float,
    model: Model,
    directory: str | os.PathLike,
    extra: dict | None = None,
    finish: Finish | None = None,
) -> Path:
    """Writes an adapter in PEFT's layout, under a temporary name until it is complete.

    selfparam.json beside PEFT's files records the base's fingerprint, a digest of the factors, the scale and `extra`.
    Lower ranks than the highest are filled up with zeros, which `load_adapter` takes away again.
    Where the base's checkpoint holds several projections as one, so does the adapter: its rank there is the sum of
    theirs. All processes must call this; the main one writes.

    Args:
      lora: the adapter, `layers/self_attn/q_proj/{a: [L, D, R], b: [L, R, F]}`; ranks may differ.
      scale: factor of `a @ b`; PEFT's lora_alpha is scale * rank.
      model: the base that the adapter belongs to.
      directory: new or empty, or the same adapter, which is kept.
      extra: further JSON values for the record, for example a recipe.
      finish: called with the directory when its files are complete; what it returns is added to the record, and if it
        raises, nothing is left.

    Returns:
      the directory.

    Raises:
      ValueError: the directory holds something else, or the adapter is for another model.
    """
    factors = {path: np.asarray(fetch(leaf), np.float32) for path, leaf in tree_leaves(lora["layers"]).items()}
    kernels = _kernels(model)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for (block, name, factor), values in factors.items():
        layers, inputs, outputs = kernels[name]
        own = values.shape[2] if factor == "a" else values.shape[1]
        expected = (layers, inputs, own) if factor == "a" else (layers, own, outputs)
        if values.shape != expected:
            raise ValueError(
                f"{block}.{name}.{factor} of the adapter has shape {values.shape}, but the model's kernel wants "
                f"{expected}. Give the model that it was trained on."
            )
        pairs.setdefault(name, {})[factor] = values
    if model.config.fused_projections:
        pairs = fuse_factors(pairs, {name: shape[2] for name, shape in kernels.items()})
    ranks = {name: pair["a"].shape[2] for name, pair in pairs.items()}
    # One rank for all: llama.cpp's converter reads no patterns, and divides one alpha by each tensor's own rank.
    rank = max(ranks.values())
    tensors = {
        _tensor_name(layer, name, factor): np.ascontiguousarray(values[layer].T)
        for name, pair in pairs.items()
        for factor, values in _padded(pair, rank).items()
        for layer in range(len(values))
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.source or model.name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _short(scale * rank),
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    record = {
        "base_fingerprint": model.fingerprint,
        "adapter_digest": digest_arrays({"/".join(path): values for path, values in factors.items()}),
        "scale": float(scale),
        "ranks": {name: own for name, own in sorted(ranks.items()) if own != rank},
        "extra": extra or {},
    }
    with new_directory(directory, RECORD, record, finish) as temporary:
        if temporary is not None:
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
            (temporary / WEIGHTS).chmod(0o644)
            write_json(temporary / CONFIG, config)
            if finish:  # a reader of the finished files wants the record too
                write_json(temporary / RECORD, record)
    return Path(directory)


def load_adapter(directory: str | os.PathLike, model: Model | ModelOutline) -> tuple[dict, float, dict]:
    """Reads an adapter in PEFT's layout, ours or one that PEFT wrote.

    Args:
      directory: with adapter_config.json and adapter_model.safetensors.
      model: the base that it belongs to; of an outline, whose weights are not known, the shapes are compared alone.

    Returns:
      (lora, scale, record): the tree that `save_adapter` takes, as float32 NumPy arrays; the factor of `a @ b`; and
      the content of selfparam.json, {} if there is none (then only shapes tell whether the base is the right one).

    Raises:
      ValueError: a file is missing or damaged, the adapter is not a plain LoRA or belongs to another base, or its
        tensors are not those of this model.
    """
    directory = Path(directory)
    config, record = _read(directory / CONFIG), {}
    if (directory / RECORD).exists():
        record = _read(directory / RECORD)
        if model.fingerprint and record.get("base_fingerprint") != model.fingerprint:
            raise ValueError(
                f"{directory} belongs to a base with fingerprint {str(record.get('base_fingerprint'))[:12]}, but "
                f"{model.name!r} has {model.fingerprint[:12]}. Load the base it was trained on: "
                f"{config.get('base_model_name_or_path')!r}."
            )
    _check_plain(directory / CONFIG, config)
    weights = directory / WEIGHTS
    if not weights.exists() and (directory / OLD_WEIGHTS).exists():
        raise ValueError(f"{directory} holds {OLD_WEIGHTS} of an older PEFT; load it with PEFT and save it again.")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{weights} cannot be read: {error}. Copy the adapter again.") from error
    asked, depth = _asked(directory / CONFIG, config), model.config.num_hidden_layers
    chosen, partial = _layers(config, depth)
    pairs, scales = {}, {}
    shapes = _file_kernels(model)
    for name, (_, inputs, outputs) in shapes.items():
        names = [[_tensor_name(layer, name, factor) for factor in "ab"] for layer in range(depth)]
        if not any(each in tensors for pair in names for each in pair):
            continue
        wanted = [asked(_module(layer, name)) for layer in range(depth)]
        a = np.zeros((depth, inputs, max(rank for rank, _ in wanted)), np.float32)
        b = np.zeros((depth, a.shape[2], outputs), np.float32)
        for layer, (rank, own) in enumerate(wanted):
            if layer not in chosen or (partial and not any(each in tensors for each in names[layer])):
                continue
            a[layer, :, :rank] = _take(directory, tensors, names[layer][0], (rank, inputs))
            b[layer, :rank] = _take(directory, tensors, names[layer][1], (outputs, rank))
            scales[name, layer] = own
        pairs[name] = {"a": a, "b": b}
    if tensors or not pairs:
        name = min(tensors, default="any")
        raise ValueError(
            f"{weights}: tensor {name!r} is {'unexpected' if tensors else 'missing'}; expected LoRA factors of "
            f"{', '.join(shapes)} in {depth} layers. Use an adapter of these projections alone."
        )
    scale = next(iter(scales.values()))
    if not np.allclose(list(scales.values()), scale, rtol=1e-6):  # not the same everywhere: they go into the factors
        for (name, layer), own in scales.items():
            pairs[name]["b"][layer] *= np.float32(own)
        scale = 1.0
    for name, own in record.get("ranks", {}).items():
        pairs[name] = _cut(directory, name, pairs.get(name), own)
    if model.config.fused_projections:
        pairs = split_factors(pairs, {name: shape[2] for name, shape in _kernels(model).items()})
    layers: dict[str, dict] = {}
    for name in (name for name in MODULES if name in pairs):
        layers.setdefault(MODULES[name], {})[name] = pairs[name]
    recorded = record.get("scale", scale)
    if not isinstance(recorded, int | float) or not math.isclose(recorded, scale, rel_tol=1e-6):
        raise ValueError(
            f"{directory}: {RECORD} says scale {recorded}, but lora_alpha / r is {scale}; expected the same. "
            "Copy the adapter again."
        )
    _check_digest(directory, layers, record, model)
    return {"layers": layers}, recorded, record


def _check_digest(directory: Path, layers: dict, record: dict, model: Model | ModelOutline) -> None:
    """Raises ValueError if the factors are not those that were written with the record."""
    if "adapter_digest" not in record or model.config.fused_projections:  # these are put together again as they load
        return
    found = digest_arrays({"/".join(path): values for path, values in tree_leaves(layers).items()})
    if found != record["adapter_digest"]:
        raise ValueError(
            f"{directory / WEIGHTS} is not what was written with {RECORD}: it was damaged, or changed since. Copy "
            f"the adapter again, or delete {RECORD} if the change is meant."
        )


def _padded(pair: dict[str, np.ndarray], rank: int) -> dict[str, np.ndarray]:
    """A pair with zeros up to a rank, which change nothing."""
    missing = rank - pair["a"].shape[2]
    return {
        "a": np.pad(pair["a"], ((0, 0), (0, 0), (0, missing))),
        "b": np.pad(pair["b"], ((0, 0), (0, missing), (0, 0))),
    }


def _cut(directory: Path, name: str, pair: dict[str, np.ndarray] | None, rank: object) -> dict[str, np.ndarray]:
    """A pair without the zeros of `_padded`; ValueError if something else stands there."""
    if pair is None or type(rank) is not int or not 0 < rank < pair["a"].shape[2]:
        raise ValueError(f"{directory}: {RECORD} says that {name} has rank {rank}, but {WEIGHTS} has no such pair.")
    if pair["a"][:, :, rank:].any() or pair["b"][:, rank:].any():
        raise ValueError(f"{directory}: {RECORD} says that {name} has rank {rank}, but {WEIGHTS} has more.")
    return {"a": pair["a"][:, :, :rank], "b": pair["b"][:, :rank]}


def _module(layer: int, name: str) -> str:
    """A projection's name in the base, as PEFT knows it."""
    return f"model.layers.{layer}.{MODULES[FUSED[name][0] if name in FUSED else name]}.{name}"


def _tensor_name(layer: int, name: str, factor: str) -> str:
    letter = {"a": "A", "b": "B"}[factor]
    return f"base_model.model.{_module(layer, name)}.lora_{letter}.weight"


def _kernels(model: Model | ModelOutline) -> dict[str, tuple[int, ...]]:
    """[L, D, F] of every projection."""
    return {entry.path[-2]: entry.shape for entry in parameter_table(model.config) if entry.is_kernel}


def _file_kernels(model: Model | ModelOutline) -> dict[str, tuple[int, ...]]:
    """The same of the modules that the base has in transformers: several projections may be one of them."""
    kernels = _kernels(model)
    if not model.config.fused_projections:
        return {name: kernels[name] for name in MODULES}
    fused = {name: (*kernels[parts[0]][:2], sum(kernels[part][2] for part in parts)) for name, parts in FUSED.items()}
    inside = {part for parts in FUSED.values() for part in parts}
    return fused | {name: kernels[name] for name in MODULES if name not in inside}


def _layers(config: dict, depth: int) -> tuple[set[int], bool]:
    """The layers that an adapter of PEFT may be in, and whether it may be missing in some of these."""
    chosen, targets = config.get("layers_to_transform"), config.get("target_modules") or ()
    layers = range(depth) if chosen is None else [chosen] if isinstance(chosen, int) else chosen
    named = isinstance(targets, str) or any("." in name for name in targets)
    return set(layers), bool(named or config.get("exclude_modules"))


def _short(value: float) -> float | int:
    """A whole number as an int, as PEFT writes it."""
    return int(value) if float(value).is_integer() else float(value)


def _read(path: Path) -> dict:
    try:
        return read_json(path, advice="copy it again")
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} has no {path.name}. Give a directory with an adapter in PEFT's layout."
        ) from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}. Copy the adapter again.") from error


# Fields that are read, beside numbers, and what they may hold besides null: of a list, what is in it.
_TYPES = {
    "rank_pattern": (dict, None),
    "alpha_pattern": (dict, None),
    "use_rslora": (bool, None),
    "target_modules": (str, str),
    "exclude_modules": (str, str),
    "layers_to_transform": (int, int),
}


def _check_plain(path: Path, config: dict) -> None:
    """Raises ValueError, with its name, for a field that asks for more than `scale * a @ b`, or has another type."""
    for name, (kind, within) in _TYPES.items():
        value = config.get(name)
        listed = isinstance(value, list) and within is not None and all(type(each) is within for each in value)
        if value is not None and type(value) is not kind and not listed:
            shape = kind.__name__ if within is None else f"{kind.__name__} or a list of them"
            raise ValueError(f"{path}: {name} = {value!r:.80}, expected {shape}. Copy the adapter again.")
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type = {config.get('peft_type')!r} is not supported, expected 'LORA'.")
    for name, value in config.items():
        if name in NEUTRAL or not value or value in PLAIN.get(name, ()):
            continue
        wanted = " or ".join(map(repr, PLAIN[name])) if name in PLAIN else "it unset"
        raise ValueError(
            f"{path}: {name} = {value!r} is not supported, expected {wanted}. Merge the adapter with PEFT and load "
            "the merged model instead."
        )


def _asked(path: Path, config: dict) -> Callable[[str], tuple[int, float]]:
    """A function: a module's name in the base -> its rank, and what PEFT multiplies its product with.

    That is alpha / rank, or alpha / sqrt(rank) for rslora. A pattern applies to names that end with it, and may be a
    regular expression; the first that matches counts.
    """
    patterns = {}
    for field, kind in (("rank_pattern", int), ("alpha_pattern", (int, float))):
        given = config.get(field) or {}
        default = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}[field]
        for name, value in {default: config.get(default), **given}.items():
            if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
                raise ValueError(f"{path}: {name} = {value!r}, expected a number. Copy the adapter again.")
        try:
            patterns[field] = [(re.compile(rf"(.*\.)?({key})$"), value) for key, value in given.items()]
        except re.error as error:
            raise ValueError(f"{path}: {field} has a pattern that cannot be read: {error}.") from error

    for value in (config.get("r"), *(config.get("rank_pattern") or {}).values()):
        RANK.check(f"{path}: r", value, int)

    def find(field: str, module: str, default: float) -> float:
        return next((value for pattern, value in patterns[field] if pattern.match(module)), default)

    def asked(module: str) -> tuple[int, float]:
        rank = int(find("rank_pattern", module, config["r"]))
        alpha = find("alpha_pattern", module, config["lora_alpha"])
        return rank, float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))

    return asked


def _take(directory: Path, tensors: dict, name: str, shape: tuple[int, int]) -> np.ndarray:
    """A factor [D, R] or [R, F], taken out of the tensors that are still to be read."""
    if name not in tensors:
        raise ValueError(f"{directory / WEIGHTS}: tensor {name!r} is missing; expected it with shape {shape}.")
    stored = tensors.pop(name)
    if stored.dtype.kind not in "fV":  # V: ml_dtypes' bfloat16
        raise ValueError(
            f"{directory / WEIGHTS}: tensor {name!r} has type {stored.dtype}, expected floats: these are parts of a "
            "quantisation, whose scales are not known. Save the adapter in float32."
        )
    values = stored.astype(np.float32)
    if values.shape != shape:
        raise ValueError(
            f"{directory / WEIGHTS}: tensor {name!r} has shape {values.shape}, expected {shape}. "
            "Load the base that it was trained on."
        )
    if not np.isfinite(values).all():
        raise ValueError(f"{directory / WEIGHTS}: tensor {name!r} holds NaN or infinity, expected finite values.")
    return np.ascontiguousarray(values.T)
