"""Weights in Hugging Face's layout: safetensors or PyTorch's .bin, as one file or as shards with an index."""

import os
import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from selfparam_jax.checkpoints.tensors import Index, Source
from selfparam_jax.distributed.files import read_json

# Types that are numbers of their own; others are parts of a quantisation, whose scales we do not know.
FLOATS = ("F16", "BF16", "F32", "F64")
TORCH_FLOATS = ("float16", "bfloat16", "float32", "float64")
# Of constants that some checkpoints hold beside their weights.
INTEGERS, TORCH_INTEGERS = ("I64", "I32"), ("int64", "int32")


def open_directory(directory: Path, integers: bool = False) -> Source:
    """The weights in a directory; safetensors where there are both. Integers are refused unless they are allowed.

    Raises:
      ValueError: there are none, or they cannot be read.
    """
    for single, source, types in (
        ("model.safetensors", SafetensorsSource, FLOATS + INTEGERS * integers),
        ("pytorch_model.bin", TorchBinSource, TORCH_FLOATS + TORCH_INTEGERS * integers),
    ):
        if any((directory / f"{single}{end}").is_file() for end in ("", ".index.json")):
            return source(directory, types)
    raise ValueError(
        f"{directory} has no weights: expected model.safetensors or pytorch_model.bin, or an index of "
        "either. Put them there; a .gguf file is given by its own path."
    )


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
        weight_map = read_json(index, keys=("weight_map",), advice="get the file again")["weight_map"]
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError("expected its 'weight_map' to have a file name for each tensor; get the file again")
    except (OSError, ValueError) as error:
        raise ValueError(f"{index} is not an index of weights: {error}") from error
    files: dict[str, list[str] | None] = {}
    for name, file in weight_map.items():
        files.setdefault(file, []).append(name)
    for file in files:
        if not (directory / file).is_file():
            raise ValueError(f"{directory / file} is missing, but {index.name} names it. Get the file again.")
    return files


def _same_names(path: Path, expected: list[str] | None, found: list[str]) -> None:
    if expected is not None and set(expected) != set(found):
        name = min(set(expected) ^ set(found))
        place = "only in the index" if name in expected else "only in the file"
        raise ValueError(f"{path}: tensor {name!r} is {place}; expected it in both. Get the files again.")


def _check_type(path: Path, name: str, found: str, known: Collection[str]) -> None:
    if found not in known:
        raise ValueError(
            f"{path}: tensor {name!r} has type {found}, expected one of {', '.join(known)}. The weights are "
            "quantised; use the unquantised checkpoint, or a quantised one in the GGUF format."
        )


class SafetensorsSource:
    """`model.safetensors`, or shards with `model.safetensors.index.json`; reads slices lazily.

    Raises ValueError naming the file where one is missing, truncated or not a safetensors file, or where a tensor's
    type is none of `types`.
    """

    def __init__(self, directory: str | os.PathLike, types: Collection[str] = FLOATS):
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
            for name in names:
                _check_type(path, name, handle.get_slice(name).get_dtype(), types)

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

    Only tensors are unpickled (`weights_only=True`), and of no other types than `types`.
    """

    def __init__(self, directory: str | os.PathLike, types: Collection[str] = TORCH_FLOATS):
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
                # Files of torch before 1.6 are no zip archives and cannot be mapped; only tensors are read of both.
                mapped = zipfile.is_zipfile(path)
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
                shapes = {name: tensor.shape for name, tensor in tensors.items()}
            except pickle.UnpicklingError as error:  # torch's own text advises to run what is in the file
                raise ValueError(
                    f"{path} is damaged, or holds more than tensors, which is not read because it could run code. "
                    "Get the file again, or use safetensors."
                ) from error
            except Exception as error:  # zip and torch each have their own
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ValueError(
                    f"{path} is not a whole file of torch tensors: {reason}. Get the file again, or use safetensors."
                ) from error
            _same_names(path, expected, list(shapes))
            for name, tensor in tensors.items():
                _check_type(path, name, str(tensor.dtype).removeprefix("torch."), types)
            self._tensors.update(tensors)

    def names(self) -> list[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def read(self, name: str, index: Index) -> np.ndarray:
        tensor = self._tensors[name].detach()[index].contiguous()  # a file may hold parameters
        if tensor.dtype == self._torch.bfloat16:  # numpy has no such type of its own
            return tensor.view(self._torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
