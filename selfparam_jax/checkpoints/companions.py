"""The files of a Hugging Face directory that hold no weights: settings, tokenizer, licence and the like."""

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, default_model_file
from selfparam_jax.checkpoints.gguf import metadata, open_gguf
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.distributed.files import write_json

# Weights in whatever form, and files that an export writes itself.
_WEIGHTS = re.compile(r"(?i).*\.(safetensors|bin|gguf|pt|pth|ckpt|h5|msgpack|onnx)|.*\.index\.json")
NEW_CLASS = "TokenizersBackend"  # of tokenizers in transformers 5, which version 4 does not know
_OWN = {"config.json", "README.md", "export.json", "selfparam.json", "adapter_config.json"}


def write_companions(model: Model, directory: Path, dtype: str) -> None:
    """Writes config.json, and what belongs beside the weights of a base: its own files, or ones made from the model.

    Args:
      model: the base.
      directory: of the export.
      dtype: of the weights in it.
    """
    write_json(directory / "config.json", portable_config(model.hf_config, dtype))
    if model.files:
        for path in sorted(Path(model.files).iterdir()):
            other = _WEIGHTS.fullmatch(path.name) or path.name in _OWN or path.name.startswith(".")
            if path.is_file() and not other:
                shutil.copyfile(path, directory / path.name)
        if _class_of(directory / "tokenizer_config.json") == NEW_CLASS:
            _make_portable(directory / "tokenizer_config.json")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        model.tokenizer.save_pretrained(directory)
        _make_portable(directory / "tokenizer_config.json")
    if not (directory / "generation_config.json").is_file():
        ids = {"bos_token_id": model.tokenizer.bos_token_id, "pad_token_id": model.tokenizer.pad_token_id}
        ends = sorted({*model.end_ids, *([] if (eos := model.tokenizer.eos_token_id) is None else [eos])})
        ids["eos_token_id"] = ends if len(ends) > 1 else (ends[0] if ends else None)
        given = {name: value for name, value in sorted(ids.items()) if value is not None}
        write_json(directory / "generation_config.json", {"_from_model_config": True, **given})


def portable_config(hf_config: Any, dtype: str) -> dict:
    """The content of a config.json that transformers 4.57 and 5 read alike.

    Version 5 has `dtype` and `rope_parameters`, version 4 `torch_dtype`, `rope_theta` and `rope_scaling`; a file with
    both is read by both.
    """
    config = copy.deepcopy(hf_config)
    config.dtype = dtype
    fields = json.loads(config.to_json_string())
    fields["torch_dtype"] = fields["dtype"] = dtype
    rope = fields.get("rope_parameters")
    if not rope:
        return fields
    if all(isinstance(value, dict) for value in rope.values()):  # one for each kind of layer, as Gemma 3 has them
        local, rope = rope.get("sliding_attention", {}), rope["full_attention"]
        fields["rope_local_base_freq"] = local.get("rope_theta")
    fields["rope_theta"] = rope.get("rope_theta", 10000.0)
    kind = rope.get("rope_type", "default")
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    if fields["model_type"] == "phi3" and kind == "longrope":  # version 4 wants these three there, and nothing else
        scaling = {"type": kind, "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    fields["rope_scaling"] = None if kind == "default" else scaling
    return fields


def _class_of(path: Path) -> str | None:
    """The class that a tokenizer_config.json names; None if it names none."""
    return json.loads(path.read_text(encoding="utf-8")).get("tokenizer_class") if path.is_file() else None


def _make_portable(path: Path) -> None:
    """Replaces what only transformers 5 knows in a tokenizer_config.json that it wrote."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("tokenizer_class") in (None, NEW_CLASS):
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    fields.pop("backend", None)
    write_json(path, fields)


def gguf_file(model: Model) -> Path | None:
    """The GGUF file that a model was loaded from; None for a directory."""
    if model.source == DEFAULT_MODEL:
        return default_model_file()
    path = Path(model.source).expanduser()
    return path if path.suffix == ".gguf" and path.is_file() else None


def licence_of(model: Model) -> str:
    """The licence that the base's files name; "" if they name none."""
    if (path := gguf_file(model)) is not None:
        return str(metadata(open_gguf(path), "general.license", ""))
    if not model.files:
        return ""
    readme = Path(model.files) / "README.md"
    if readme.is_file():
        text = readme.read_text(encoding="utf-8", errors="replace")
        head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
        if head and (found := re.search(r"(?m)^licen[sc]e:\s*(\S.*)$", head[1])):
            return found[1].strip().strip("'\"")
    for path in sorted(Path(model.files).glob("LICENSE*")):
        lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
        if title := next(filter(None, lines), ""):
            return f"{title} (see {os.path.basename(path)})"
    return ""
