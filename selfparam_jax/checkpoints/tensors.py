"""Tensors of a checkpoint: checked against the parameter table, read onto devices, and fingerprinted.

Sources hand out slices, so a process reads only what its devices hold. Every value that is read is checked to be
finite, and tensors that are read whole are digested at the same time.
"""

import fnmatch
import functools
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np

from selfparam_jax.checkpoints.fused import split_fused
from selfparam_jax.distributed.mesh import all_agree, sum_of_shares
from selfparam_jax.models.decoder import Int8Kernel, ModelConfig
from selfparam_jax.models.parameters import Entry, parameter_table, parameter_tree, tree_leaves
from selfparam_jax.models.quantization import round_kernel

Index = tuple[slice, ...]
# Tensors that may be present without being a parameter: a constant that old versions of transformers stored, and
# the head of a tied model (untied, it is in the table), which is the embedding once more.
IGNORABLE = ("*.rotary_emb.inv_freq", "lm_head.weight")
CHUNK = 1 << 20  # elements that are converted and digested at a time
LARGEST = 1e18  # of a weight: sums of a thousand squares are finite in float32
THREADS = min(4, os.cpu_count() or 1)  # tensors in memory at once, besides the leaf they are copied to


class Source(Protocol):
    """Tensors of a checkpoint by their Hugging Face names, in Hugging Face's orientation; used by several threads."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, index: Index) -> np.ndarray: ...


def check_source(source: Source, config: ModelConfig) -> None:
    """Raises ValueError unless the source holds exactly the tensors of the table, in their shapes."""
    source = split_fused(source, config)
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


def has_own_head(source: Source) -> bool:
    """Whether a source holds an `lm_head.weight` that is not the embedding once more, whatever its config says."""
    names = ("lm_head.weight", "model.embed_tokens.weight")
    if not set(names) <= set(source.names()):
        return False
    shape, other = (tuple(source.shape(name)) for name in names)
    if shape != other:
        return True
    rows = max(1, CHUNK // shape[1])
    for start in range(0, shape[0], rows):
        index = (slice(start, min(start + rows, shape[0])), slice(0, shape[1]))
        if not np.array_equal(*(source.read(name, index) for name in names)):
            return True
    return False


def load_params(
    source: Source,
    config: ModelConfig,
    dtype: Any,
    shardings: dict | None = None,
    int8: bool = False,
) -> dict:
    """Our parameter tree as jax.Arrays; each device's slice is read, and nothing else.

    Args:
      source: holds the tensors.
      config: architecture; must match the source exactly.
      dtype: of every leaf.
      shardings: of every leaf, as a tree (`parameter_shardings`); None puts all on the first local device.
      int8: round the kernels to 8 bits (`quantization.round_kernel`), one after another as they are read.

    Returns:
      the tree of `parameters.parameter_table`.

    Raises:
      ValueError: a tensor is missing, unexpected, of another shape, unreadable, or holds NaN or infinity.
    """
    reading = _Reading(source, config)
    params = reading.params(dtype, shardings, int8)
    reading.check_finite()
    return params


def fingerprint(source: Source, config: ModelConfig) -> str:
    """Hex SHA-256 that tells base models apart.

    Covers the config and, of every tensor in table order, its Hugging Face name, its shape and all of its elements
    as float32 in Hugging Face's row-major order. So it depends neither on the kind of file nor on the dtype and mesh
    a model is loaded with. Several processes share the work; all must call this.

    Raises:
      ValueError: a tensor holds NaN or infinity.
    """
    return _Reading(source, config).fingerprint()


def load_with_fingerprint(
    source: Source,
    config: ModelConfig,
    dtype: Any,
    shardings: dict | None = None,
    int8: bool = False,
) -> tuple[dict, str]:
    """`load_params` and `fingerprint` in one: what is read whole for the parameters is not read again.

    Args:
      source: holds the tensors.
      config: architecture; must match the source exactly.
      dtype: of every leaf.
      shardings: of every leaf, as a tree; None puts all on the first local device.
      int8: round the kernels to 8 bits.

    Returns:
      (parameters, fingerprint).

    Raises:
      ValueError: as `load_params` does; of several processes all raise it.
    """
    reading = _Reading(source, config, digesting=True)
    params = reading.params(dtype, shardings, int8)
    return params, reading.fingerprint()


class _Reading:
    """One pass over a source: parameters, digests of tensors, and the names of those that are not finite."""

    def __init__(self, source: Source, config: ModelConfig, digesting: bool = False):
        self._whole, self._config, self._digesting = source, config, digesting
        self._source = split_fused(source, config)
        self._shapes = {name: entry.hf_shape for entry in parameter_table(config) for name in entry.hf_names()}
        # Of several processes each digests its share.
        self._share = set(list(self._shapes)[jax.process_index() :: jax.process_count()])
        self._digests: dict[str, bytes] = {}
        self._damaged: set[str] = set()

    def params(self, dtype: Any, shardings: dict | None, int8: bool) -> dict:
        check_source(self._whole, self._config)
        single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = None if shardings is None else tree_leaves(shardings)
        leaves = {}
        with ThreadPoolExecutor(THREADS) as pool:
            for entry in parameter_table(self._config):
                sharding = single if wanted is None else wanted[entry.path]
                read = functools.partial(jax.make_array_from_callback, entry.shape)
                slices = self._reader(entry, np.dtype(dtype), pool)
                if int8 and entry.is_kernel:
                    both = Int8Kernel(single, single) if wanted is None else sharding
                    leaves[entry.path] = round_kernel(read(both.values, slices), both)
                else:
                    leaves[entry.path] = read(sharding, slices)
        return parameter_tree(leaves)

    def _reader(self, entry: Entry, dtype: np.dtype, pool: ThreadPoolExecutor) -> Callable[[Index], np.ndarray]:
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

            def place(position: int, name: str) -> None:
                values = self._source.read(name, hf_index)
                self._inspect(name, values)
                out[position if entry.stacked else ...] = values.T if entry.transpose else values

            list(pool.map(place, range(len(names)), names))
            self._raise_alone()
            done[bounds] = out
            return out

        return read

    def _inspect(self, name: str, values: np.ndarray) -> None:
        """Notes whether values are finite and, if they are a whole tensor of our share, their digest."""
        whole = self._digesting and name in self._share and values.shape == self._shapes[name]
        digest = hashlib.sha256() if whole else None
        if not _digest(values, digest):
            self._damaged.add(name)
        if digest:
            self._digests[name] = digest.digest()

    def _digest_whole(self, name: str) -> None:
        """The digest of a tensor, read a few rows at a time."""
        shape, digest = self._shapes[name], hashlib.sha256()
        rows = max(1, CHUNK * shape[0] // int(np.prod(shape, dtype=np.int64)))
        for start in range(0, shape[0], rows):
            index = (slice(start, min(start + rows, shape[0])), *(slice(0, size) for size in shape[1:]))
            if not _digest(self._source.read(name, index), digest):
                self._damaged.add(name)
        self._digests[name] = digest.digest()

    def fingerprint(self) -> str:
        missing = [name for name in self._shapes if name in self._share and name not in self._digests]
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(self._digest_whole, missing))
        self.check_finite()
        own = np.zeros((len(self._shapes), hashlib.sha256().digest_size), np.uint8)
        for row, name in zip(own, self._shapes, strict=True):
            row[:] = np.frombuffer(self._digests[name], np.uint8) if name in self._share else 0
        total = hashlib.sha256(json.dumps(self._config.identity(), sort_keys=True).encode())
        for (name, shape), digest in zip(self._shapes.items(), sum_of_shares(own), strict=True):
            total.update(f"{name} {shape}".encode() + digest.tobytes())
        return total.hexdigest()

    def check_finite(self) -> None:
        """Raises ValueError, on all processes, if one has read NaN or infinity."""
        finite = all_agree([name not in self._damaged for name in self._shapes])
        _raise_damaged([name for name, fine in zip(self._shapes, finite, strict=True) if not fine])

    def _raise_alone(self) -> None:
        """Raises ValueError early where there are no other processes that would wait for this one."""
        if jax.process_count() == 1:
            _raise_damaged([name for name in self._shapes if name in self._damaged])


def _raise_damaged(names: list[str]) -> None:
    if names:
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ValueError(
            f"tensor {names[0]!r} holds NaN or infinity{others}, expected finite weights. Get the file again, or "
            "find the step of training or conversion that broke them. (Numbers from "
            f"{LARGEST:g} on count as infinite: the sums of their squares are.)"
        )


def _digest(values: np.ndarray, digest: Any = None) -> bool:
    """Whether all values are finite and below `LARGEST`, as float32; adds them to a digest in row-major order."""
    flat, finite = values.reshape(-1), True
    for start in range(0, flat.size, CHUNK):
        part = flat[start : start + CHUNK]
        if part.dtype == ml_dtypes.bfloat16:  # the upper half of a float32; twice as fast as the conversion
            part = (np.ascontiguousarray(part).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):
            part = np.ascontiguousarray(part, "<f4")
        # False for a NaN, too.
        finite &= bool(part.size == 0 or (part.min() > -LARGEST and part.max() < LARGEST))
        if digest:
            digest.update(part)
    return finite
