"""What "a model" may be, and how it becomes parameters and a tokenizer.

A model is one of: the embedded default, a `.gguf` file, a directory in Hugging Face's layout, or a
hub id `org/name`. Code that comes with a checkpoint is never run.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, default_model_file
from selfparam_jax.checkpoints.gguf import GGUFSource, gguf_config, gguf_end_ids, open_gguf
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.tensors import Source, has_own_head, load_with_fingerprint
from selfparam_jax.checkpoints.tokenizers import gguf_tokenizer, read_date, read_tokenizer
from selfparam_jax.checkpoints.weight_files import open_directory
from selfparam_jax.distributed.files import read_json
from selfparam_jax.distributed.mesh import make_mesh
from selfparam_jax.distributed.ranges import check_choice, check_path, check_type, given, shown
from selfparam_jax.models.attention import ATTENTION, BLOCKS
from selfparam_jax.models.decoder import ModelConfig
from selfparam_jax.models.registry import family_of, make_hf_config, model_config_from_hf
from selfparam_jax.models.rounding import AUTO, PRECISIONS
from selfparam_jax.models.shardings import parameter_shardings

HUB_TIMEOUT_S = 10  # for the hub's first answer

# transformers is imported where it is needed, and advises everyone without PyTorch to get it; not needed here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_model(
    source: str | os.PathLike,
    dtype: Any = "float32",
    mesh: Mesh | None = None,
    cache_dir: str | os.PathLike | None = None,
    int8: bool = False,
    attention: str = BLOCKS,
    date: str = "",
    matmul_precision: str = AUTO,
) -> Model:
    """Loads a model.

    Args:
      source: `DEFAULT_MODEL`, a `.gguf` file, a directory with config.json, weights and tokenizer, or a
        hub id `org/name`. An existing path wins over a hub id.
      dtype: of all parameters and of activations, as a name or a NumPy dtype; a floating one.
      mesh: over which the parameters are laid out (`parameter_shardings`); None: the first local device.
      cache_dir: directory of downloads; None means SELFPARAM_JAX_CACHE or the user's cache directory for
        the default model and the hub's own cache for hub ids.
      int8: round the kernels to 8 bits; needs qwix.
      attention: its implementation in training, of `models.attention.ATTENTION`.
      date: the day that a chat template is told if it asks for it, "2026-11-28"; "" is the day on which this process
        first needed one.
      matmul_precision: of products with the weights where `dtype` is float32, of `models.rounding.PRECISIONS`.

    Returns:
      the model, with parameters on the mesh.

    Raises:
      ValueError: the source is no model, is damaged or not supported, does not fit the mesh, or could not be
        downloaded; or an argument has a value that is not possible.
      TypeError: an argument is of another type.
    """
    check_type("source", source, str | os.PathLike, "the name or the path of a model", "give it as a string")
    source = os.fspath(source)
    if not source:
        raise ValueError("got an empty name of a model, expected a directory, a .gguf file or a hub id org/name")
    dtype = _floating(dtype)
    if mesh is not None:
        check_type("mesh", mesh, Mesh, "a jax.sharding.Mesh", "leave it out for the first local device")
    if cache_dir is not None:
        check_path("cache_dir", cache_dir, "a directory")
    check_type("int8", int8, bool, "True or False", "write it without quotes")
    check_choice("attention", attention, ATTENTION)
    check_type("date", date, str, "a day such as '2026-11-28', or '' for today", "write it as a string")
    day = read_date(date)
    check_choice("matmul_precision", matmul_precision, PRECISIONS)
    model = _load(
        source,
        _Settings(source, dtype, mesh or make_mesh(jax.local_devices()[:1]), int8, attention, matmul_precision),
        cache_dir,
    )
    model.tokenizer.conversation_date = day
    return model


def _floating(dtype: Any) -> Any:
    """The dtype of a name or a dtype. Raises TypeError or ValueError for one that cannot hold weights."""
    expected = "a floating dtype that JAX holds here, such as 'float32' or 'bfloat16'"
    try:
        found = None if dtype is None else jnp.dtype(dtype)  # NumPy takes None for float64
    except (TypeError, ValueError):
        found = None
    if found is None and not isinstance(dtype, str):
        raise TypeError(f"dtype: got {given(dtype)}, expected {expected}; give one of these")
    if found is None or not jnp.issubdtype(found, jnp.floating) or jax.dtypes.canonicalize_dtype(found) != found:
        named = shown(dtype) if found is None else repr(found.name)
        raise ValueError(f"dtype: got {named}, expected {expected}; give one of these")
    return found


def _load(source: str, into: "_Settings", cache_dir: str | os.PathLike | None) -> Model:
    path = Path(source).expanduser()
    if source == DEFAULT_MODEL:
        return _load_gguf(default_model_file(cache_dir), DEFAULT_MODEL, into)
    if path.suffix == ".gguf" and path.is_file():
        return _load_gguf(path, path.stem, into)
    if path.is_dir():
        return _load_directory(path, path.resolve().name, into)
    if _is_hub_id(source):
        return _load_directory(_download_from_hub(source, cache_dir), source, into)
    raise ValueError(_unknown(source))


@dataclasses.dataclass(frozen=True)
class ModelOutline:
    """What is known of a model without its weights.

    Attributes:
      name: short and without folders.
      config: the architecture.
      tokenizer: a transformers fast tokenizer.
      end_ids: ids that end a text, as `Model` has them.
      fingerprint: "", as it is that of weights.
    """

    name: str
    config: ModelConfig
    tokenizer: Any
    end_ids: tuple[int, ...]
    fingerprint: str = ""


def load_outline(source: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> ModelOutline:
    """Reads a model's architecture and tokenizer, no weights; of a hub id only small files are fetched.

    Args:
      source: as for `load_model`.
      cache_dir: as for `load_model`.

    Returns:
      the outline.

    Raises:
      ValueError: as `load_model`.
    """
    source = os.fspath(source)
    path, name = Path(source).expanduser(), source
    if source == DEFAULT_MODEL or (path.suffix == ".gguf" and path.is_file()):
        name = source if source == DEFAULT_MODEL else path.stem
        reader = open_gguf(default_model_file(cache_dir) if source == DEFAULT_MODEL else path)
        config = model_config_from_hf(gguf_config(reader))
        return ModelOutline(name, config, gguf_tokenizer(reader), _end_ids(config, *gguf_end_ids(reader)))
    if path.is_dir():
        path = path.resolve()
        name = path.name
    elif _is_hub_id(source):
        path = _download_from_hub(source, cache_dir, weights=False)
    else:
        raise ValueError(_unknown(source))
    hf_config, config = read_config(path / "config.json")
    end_ids = _end_ids(config, hf_config.eos_token_id, _generation_config(path).get("eos_token_id"))
    return ModelOutline(name, config, read_tokenizer(path), end_ids)


def model_directory(source: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> Path:
    """The directory of a checkpoint in Hugging Face's layout: an existing one, or the download of a hub id.

    Raises:
      ValueError: the source is neither, or could not be downloaded.
    """
    source = os.fspath(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return path.resolve()
    if _is_hub_id(source):
        return _download_from_hub(source, cache_dir)
    raise ValueError(_unknown(source))


def check_source(source: str) -> None:
    """Raises ValueError for the name of a model that is neither something here nor a hub id."""
    path = Path(source).expanduser()
    if (path.is_file() and path.suffix != ".gguf") or (not path.exists() and not _is_hub_id(source)):
        raise ValueError(_unknown(source))


def _is_hub_id(source: str) -> bool:
    looks_like_file = source.endswith(".gguf") or source.startswith((".", "~")) or Path(source).is_file()
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source, re.ASCII)) and not looks_like_file


def _unknown(source: str) -> str:
    if Path(source).expanduser().is_file():
        return (
            f"model {source!r}: got a file, expected a directory with config.json, weights and tokenizer, or a .gguf "
            "file; give the file's folder"
        )
    return (
        f"model {source!r} is not known: got neither an existing directory or .gguf file nor a hub id. "
        f"A model may be {DEFAULT_MODEL!r} (downloaded once), a path to a .gguf file, a directory with "
        "config.json, weights and tokenizer, or a hub id such as 'org/name'."
    )


@dataclasses.dataclass(frozen=True)
class _Settings:
    """How a model is to be loaded, whatever it is."""

    source: str
    dtype: Any
    mesh: Mesh
    int8: bool
    attention: str
    matmul_precision: str


def _load_gguf(path: Path, name: str, into: _Settings) -> Model:
    reader = open_gguf(path)
    try:
        hf_config = gguf_config(reader)
        config = model_config_from_hf(hf_config)
        tokenizer = gguf_tokenizer(reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    end_ids = _end_ids(config, *gguf_end_ids(reader))
    return _assemble(name, path, GGUFSource(path, config, reader), config, hf_config, tokenizer, into, end_ids)


def _load_directory(directory: Path, name: str, into: _Settings) -> Model:
    hf_config, config = read_config(directory / "config.json")
    tokenizer, weights = read_tokenizer(directory), open_directory(directory)
    if config.tie_word_embeddings and has_own_head(weights):
        # transformers 5 trusts the file too. It is a model that was trained with a head of its own.
        logging.warning("%s: tie_word_embeddings is true, but lm_head.weight differs; the head is used", directory)
        config, hf_config.tie_word_embeddings = dataclasses.replace(config, tie_word_embeddings=False), False
    end_ids = _end_ids(config, hf_config.eos_token_id, _generation_config(directory).get("eos_token_id"))
    model = _assemble(name, directory, weights, config, hf_config, tokenizer, into, end_ids)
    return dataclasses.replace(model, files=str(directory))


def _generation_config(directory: Path) -> dict:
    """The content of generation_config.json; {} if there is none."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return {}
    content = read_json(path, advice="get the file again, or delete it")
    ends = content.get("eos_token_id")
    if any(each is not None and type(each) is not int for each in (ends if isinstance(ends, list) else [ends])):
        raise ValueError(f"{path} has eos_token_id = {ends!r}, expected a token id or a list of them. Correct it.")
    return content


def _end_ids(config: ModelConfig, *values: Any) -> tuple[int, ...]:
    """Ids of the vocabulary among values that are each an id, a list of ids or None."""
    ids = {each for value in values for each in (value if isinstance(value, list | tuple) else [value])}
    return tuple(sorted(each for each in ids if type(each) is int and 0 <= each < config.vocab_size))


def _assemble(
    name: str,
    path: Path,
    source: Source,
    config: ModelConfig,
    hf_config: Any,
    tokenizer: Any,
    into: _Settings,
    end_ids: tuple[int, ...],
) -> Model:
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model {name!r}: the tokenizer has {len(tokenizer)} tokens, expected at most vocab_size = "
            f"{config.vocab_size}, the rows of the embedding. Use the tokenizer of these weights."
        )
    highest = max(tokenizer.get_vocab().items(), key=lambda entry: entry[1], default=("", 0))
    if highest[1] >= config.vocab_size:
        raise ValueError(
            f"model {name!r}: the tokenizer gives {highest[0]!r} the id {highest[1]}, expected ids below "
            f"vocab_size = {config.vocab_size}, the rows of the embedding. Use the tokenizer of these weights."
        )
    shardings = parameter_shardings(into.mesh, config, into.int8)
    try:
        params, fingerprint = load_with_fingerprint(source, config, into.dtype, shardings, into.int8)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return Model(
        name,
        config,
        params,
        tokenizer,
        hf_config,
        fingerprint,
        into.mesh,
        into.attention,
        into.int8,
        into.source,
        end_ids,
        matmul_precision=into.matmul_precision,
    )


def read_architecture(path: str | os.PathLike) -> ModelConfig:
    """The architecture that a config.json describes, whatever the file's name.

    Raises:
      ValueError: it is missing, not a model's, or not supported.
    """
    return read_config(Path(path))[1]


def read_config(path: Path) -> tuple[Any, ModelConfig]:
    """The transformers config in a config.json, and the architecture that it describes.

    Raises:
      ValueError: it is missing, not a model's, or not supported; names the file.
    """
    hf_config = read_hf_config(path)
    try:
        return hf_config, model_config_from_hf(hf_config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (TypeError, KeyError, AttributeError, OverflowError) as error:  # of a setting of another shape
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"{path}: has a setting that cannot be read ({reason}). Correct the model's settings, or get the file "
            "again."
        ) from error


def read_hf_config(path: Path) -> Any:
    """The transformers config in a config.json, by a class named in our registry: no code of the checkpoint runs.

    Raises:
      ValueError: it is missing, not a model's, or not supported.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}. Give a directory in Hugging Face's layout.")
    try:
        fields = read_json(path, keys=("model_type",), advice="get the file again")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a model's config.json: {error}") from error
    model_type = fields["model_type"]
    try:
        family = family_of(model_type)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        return make_hf_config(family, fields)
    except ValueError as error:
        raise ValueError(f"{path} is not valid: {error}") from error


def _download_from_hub(name: str, cache_dir: str | os.PathLike | None, weights: bool = True) -> Path:
    """The local snapshot of a hub id; weights in .bin only where there are no safetensors.

    A hub that does not answer within HUB_TIMEOUT_S is not waited for: what was fetched before is used.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # Not *.safetensors: some repositories hold the weights twice, under other names or in folders.
    patterns = [
        "*.json",
        "tokenizer*",
        "*.jinja",
        "*.txt",
        "LICENSE*",
        "README.md",
        *(["model.safetensors", "model-*.safetensors"] if weights else []),
    ]
    unreachable = ""
    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
    except HfHubHTTPError:  # it has answered; what is wrong is said below
        pass
    except Exception as error:  # the HTTP library's own, or a connection that is not allowed
        unreachable = (str(error) or type(error).__name__).splitlines()[0]
    local = bool(unreachable)
    try:
        path = Path(snapshot_download(name, allow_patterns=patterns, cache_dir=cache_dir, local_files_only=local))
        if weights and not any(path.glob("model*.safetensors")):
            patterns = ["pytorch_model.bin", "pytorch_model-*.bin"]
            path = Path(snapshot_download(name, allow_patterns=patterns, cache_dir=cache_dir, local_files_only=local))
    except Exception as error:  # the hub's client, its HTTP library and the operating system have their own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if local:
            reason = f"no connection to the hub ({unreachable}), and no copy of an earlier download is there"
        raise ValueError(
            f"model {name!r} could not be fetched from the hub: {reason}. Check the name, the "
            "network, and for gated models that you are logged in; or give a local directory."
        ) from error
    return path
