"""Models out: a directory in Hugging Face's layout, with weights, config and tokenizer."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from selfparam_jax.checkpoints.companions import write_companions
from selfparam_jax.checkpoints.fused import fuse, fuse_sizes
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.distributed.files import (
    DISK_ERRORS,
    StorageError,
    differences,
    digest,
    disk_error,
    flatten,
    read_json,
    replacing,
    write_json,
)
from selfparam_jax.distributed.mesh import fetch, make_mesh
from selfparam_jax.distributed.processes import is_main_process, written_by_main_process
from selfparam_jax.models.decoder import Int8Kernel, ModelConfig
from selfparam_jax.models.lora import LazyKernel, merge_adapters_lazily
from selfparam_jax.models.parameters import parameter_table, tree_leaves

RECORD = "export.json"
FILES = "files"  # the sha256 of each, in the record
FOUND = "found"  # what was measured on the files; no part of what an export is
# Measures an export before it gets its name: directory -> JSON values.
Finish = Callable[[Path], dict]


def save_model(
    params: dict, model: Model, directory: str | os.PathLike, dtype: Any, finish: Finish | None = None
) -> Path:
    """Writes a Hugging Face directory, under a temporary name until it is complete.

    Its export.json records the base's fingerprint, a digest of the merged adapters and the dtype. All processes must
    call this; the main one writes.

    Args:
      params: the weights, for example from `merge_for_export`.
      model: the base; gives config, tokenizer and fingerprint.
      directory: new or empty, or the same export, which is kept.
      dtype: of the weights in the files, as a name or a NumPy dtype.
      finish: called with the directory when its files are complete; what it returns is added to the record, and if it
        raises, nothing is left.

    Returns:
      the directory.

    Raises:
      ValueError: the directory holds something else, or the tree is not that of the model's config.
    """
    dtype = jnp.dtype(dtype)
    check_tree(params, model.config)
    record = {
        "base_fingerprint": model.fingerprint,
        "adapters_digest": merged_digest(params),
        "dtype": dtype.name,
    }
    with new_directory(directory, RECORD, record, finish) as temporary:
        if temporary is not None:
            save_safetensors(params, model.config, temporary, dtype)
            write_companions(model, temporary, dtype.name)  # others write to where it is thrown away
    return Path(directory)


def merge_for_export(model: Model, adapters: Sequence[tuple[dict, float]]) -> dict:
    """The model's parameters with adapters merged in, each kernel when it is read.

    Args:
      model: the base. If its kernels are in 8 bits, it is loaded again without rounding, into host memory.
      adapters: (adapter, scale), all for this base.

    Returns:
      a parameter tree for `save_model`.

    Raises:
      ValueError: an adapter is for another model, or the base's files have changed since it was loaded.
    """
    if not model.int8:
        return merge_adapters_lazily(model.params, adapters)
    base = load_model(model.source, model.dtype, make_mesh(jax.local_devices(backend="cpu")[:1]))
    if base.fingerprint != model.fingerprint:
        raise ValueError(
            f"{model.source} has changed since it was loaded: got fingerprint {base.fingerprint[:12]}, expected "
            f"{model.fingerprint[:12]}. Put the old files back, or train on the new ones."
        )
    return merge_adapters_lazily(base.params, [(jax.tree.map(fetch, lora), scale) for lora, scale in adapters])


@contextlib.contextmanager
def new_directory(
    directory: str | os.PathLike, record_name: str, record: dict, finish: Finish | None = None
) -> Iterator[Path | None]:
    """A temporary directory that becomes `directory`, with a record in it, if the block succeeds.

    Args:
      directory: new or empty, or one that was written with the same record.
      record_name: file of the record.
      record: JSON values that say what the directory holds.
      finish: called with the temporary directory after the block; what it returns is added to the record.

    Returns:
      a context manager that gives the temporary directory, to be filled; None if the same content is there already.

    Raises:
      ValueError: the directory holds something else; names the differences.
      StorageError: its disk is full or broken.
    """
    directory, record = Path(directory), json.loads(json.dumps(record))
    if _is_written(directory, record_name, record):
        yield None
        return
    with written_by_main_process(directory) as target:
        temporary = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            found = finish(temporary) if finish else {}
            written = {FOUND: found} if found else {}
            digests = _digests(temporary)
            digests.pop(record_name, None)  # it may be there for `finish`, and is written again
            write_json(temporary / record_name, record | written | {FILES: digests})
            temporary.rename(target)
        except Exception as error:
            if disk := disk_error(error):
                raise StorageError(
                    f"{directory}: {DISK_ERRORS[disk[0]]}; nothing of it was left there: give the command again when "
                    "that is mended, or choose another directory"
                ) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_written(directory: Path, record_name: str, record: dict) -> bool:
    """Whether a directory holds the content of a record; ValueError if it holds something else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    there, reason = None, None
    try:
        there = read_json(directory / record_name)
    except (OSError, ValueError) as error:
        reason = error
    if not isinstance(there, dict):
        raise ValueError(
            f"{directory} exists, but has no readable {record_name}, expected a new directory or the same export. "
            "Give another directory, or delete this one."
        ) from reason
    there.pop(FOUND, None)
    digests = there.pop(FILES, {})
    there, record = flatten(there), flatten(record)
    if there != record:
        found = "; ".join(line.strip() for line in differences(there, record))
        raise ValueError(
            f"{directory} holds another export ({found}), expected a new directory or the same export. "
            "Give another directory, or delete this one."
        )
    _check_files(directory, digests, f"delete {directory}, and give the command again")
    return True


def _check_files(directory: Path, digests: dict[str, str], advice: str) -> None:
    for name, expected in digests.items():
        if not (directory / name).is_file() or digest(directory / name) != expected:
            raise ValueError(f"{directory / name} is missing or not as it was written; {advice}")


def check_saved(directory: Path, advice: str, ending: str = "") -> None:
    """Raises ValueError for a model that `save_model` wrote if one of its files is damaged; says which.

    Args:
      directory: of the model; nothing is checked where its record is not there.
      advice: what to do.
      ending: only files whose names end like this are checked.
    """
    if os.path.isfile(directory / RECORD):
        digests = read_json(directory / RECORD, advice=advice).get(FILES, {})
        checked = {name: expected for name, expected in digests.items() if name.endswith(ending)}
        _check_files(directory, checked, advice)


def check_weights(source: str | os.PathLike) -> None:
    """Raises ValueError if a source is a model that `save_model` wrote, and a file of its weights is damaged.

    Of other files people may have changed what they like.
    """
    directory = Path(source).expanduser()
    advice = f"write it again with selfparam export, or delete {directory / RECORD} if the change was meant"
    check_saved(directory, advice, ".safetensors")


def _digests(directory: Path) -> dict[str, str]:
    """The sha256 of the files of an export, by path; its README.md is for people to edit."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "README.md")
    return {path.relative_to(directory).as_posix(): digest(path) for path in paths}


def digest_arrays(arrays: dict[str, Any]) -> str:
    """Hex SHA-256 of arrays and their names, shapes and dtypes."""
    total = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        host = np.ascontiguousarray(fetch(array))
        total.update(f"{name} {host.shape} {host.dtype} ".encode())
        total.update(host.view(np.uint8) if host.ndim else host.tobytes())
    return total.hexdigest()


def merged_digest(params: dict) -> str:
    """Of the adapters in kernels that are merged lazily; without such kernels, of all parameters."""
    leaves = tree_leaves(params)
    parts = {
        f"{'/'.join(path)} {number} {name}": value
        for path, leaf in leaves.items()
        if isinstance(leaf, LazyKernel)
        for number, part in enumerate(leaf.parts)
        for name, value in zip(("a", "b", "scale"), part, strict=True)
    }
    return digest_arrays(parts or {"/".join(path): leaf for path, leaf in leaves.items()})


def save_safetensors(
    params: dict,
    config: ModelConfig,
    directory: str | os.PathLike,
    dtype: Any,
    max_shard_bytes: float = 5e9,
) -> None:
    """Writes the tree under Hugging Face's names as model.safetensors, or as shards with an index.

    Every file appears under its final name only when it is complete. One leaf and one shard are in memory at a time.
    A single file and an index from an earlier export do not stay beside each other.

    Args:
      params: the tree of `config`; kernels may be `LazyKernel`s.
      config: the architecture.
      directory: is made if it does not exist.
      dtype: of the tensors in the files.
      max_shard_bytes: size of a shard; a larger tensor is a shard of its own.

    Raises:
      ValueError: the tree is not that of `config`.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    directory, dtype = Path(directory), np.dtype(dtype)
    directory.mkdir(parents=True, exist_ok=True)
    check_tree(params, config)
    sizes = {
        name: int(np.prod(entry.hf_shape, dtype=np.int64)) * dtype.itemsize
        for entry in parameter_table(config)
        for name in entry.hf_names()
    }
    split = split_state_dict_into_shards_factory(
        fuse_sizes(sizes, config),
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=int(max_shard_bytes),
    )
    waiting: dict[str, dict[str, np.ndarray]] = {file: {} for file in split.filename_to_tensors}
    for name, values in fuse(hf_tensors(params, config, dtype), config):
        file = split.tensor_to_filename[name]
        waiting[file][name] = values
        if len(waiting[file]) == len(split.filename_to_tensors[file]):
            _write_shard(directory / file, waiting.pop(file))
    index_path = directory / "model.safetensors.index.json"
    if not split.is_sharded:
        index_path.unlink(missing_ok=True)
        return
    write_json(index_path, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})
    (directory / "model.safetensors").unlink(missing_ok=True)


def _write_shard(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary:
        # The other processes only help to fetch the tensors.
        save_file(tensors if is_main_process() else {}, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors makes it private, but a server may be another user


def check_tree(params: dict, config: ModelConfig) -> None:
    """Raises ValueError unless a tree is that of the config, in floats."""
    found = tree_leaves(params)
    expected = {entry.path: entry.shape for entry in parameter_table(config)}
    for path in sorted(found.keys() ^ expected.keys()):
        state = "missing" if path in expected else "unexpected"
        raise ValueError(f"parameter {'/'.join(path)} is {state}; expected the tree of {config}.")
    for path, shape in expected.items():
        if isinstance(found[path], Int8Kernel):
            raise ValueError(
                f"parameter {'/'.join(path)} is in 8 bits, expected floats; load the model without int8 to export it."
            )
        if tuple(found[path].shape) != shape:
            raise ValueError(
                f"parameter {'/'.join(path)} has shape {found[path].shape}, expected {shape}. "
                "Check that the config belongs to these parameters."
            )


def hf_tensors(params: dict, config: ModelConfig, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors one by one in table order, so that only one leaf is on the host."""
    leaves = tree_leaves(params)
    for entry in parameter_table(config):
        leaf = leaves[entry.path]
        host = fetch(leaf.merged()) if isinstance(leaf, LazyKernel) else fetch(leaf)
        for layer, name in enumerate(entry.hf_names()):
            values = host[layer] if entry.stacked else host
            yield name, np.ascontiguousarray((values.T if entry.transpose else values).astype(dtype))
