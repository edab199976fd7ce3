"""The model families that can be loaded, by `model_type`: one for every file in `families/`."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any

from selfparam_jax.models import families
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.family import Family

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        importlib.import_module(f"{families.__name__}.{module.name}").FAMILY
        for module in pkgutil.iter_modules(families.__path__)
    )
}


def family_of(model_type: Any) -> Family:
    """The family of a config.json's `model_type`.

    Raises:
      ValueError: there is none.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type = {model_type!r} is not supported; expected {one_of(FAMILIES)}. "
            "Use a checkpoint of one of these architectures."
        )
    return FAMILIES[model_type]


def gguf_family(architecture: Any) -> Family:
    """The family of a GGUF file's `general.architecture`.

    Raises:
      ValueError: there is none.
    """
    known = {family.gguf_architecture: family for family in FAMILIES.values() if family.gguf_architecture}
    if architecture not in known:
        others = [family.model_type for family in FAMILIES.values() if family.gguf_carries]
        note = f" (files of {', '.join(others)} carry one of these names too)" if others else ""
        raise ValueError(
            f"general.architecture = {architecture!r} is not supported; expected {one_of(known)}{note}. "
            "Use a model of one of these architectures."
        )
    return known[architecture]


def support_matrix() -> list[dict[str, str]]:
    """What each family supports, one row each, in the words of its file: for the documentation.

    Returns:
      rows with the same keys, in the order of the columns.
    """
    return [
        {
            "family": family.title,
            "model_type": family.model_type,
            "HF class": family.hf_model,
            "GGUF architecture": family.gguf_architecture or family.gguf_carries,
            "RoPE types": ", ".join(family.rope_types),
            "biases": family.biases,
            "windows": family.windows,
            "notes": family.notes,
        }
        for family in FAMILIES.values()
    ]


def model_config_from_hf(hf_config: Any) -> ModelConfig:
    """Translates a transformers config of a supported family.

    Raises:
      ValueError: the architecture, rope type, activation or another setting is not supported.
    """
    return family_of(getattr(hf_config, "model_type", None)).model_config(hf_config)


def make_hf_config(family: Family, fields: dict[str, Any]) -> Any:
    """A transformers config of a family, by a class named here: no code of a checkpoint runs.

    Raises:
      ValueError: the fields are not valid; one line, whatever transformers' own validation raises.
    """
    import transformers

    try:
        return getattr(transformers, family.hf_config).from_dict(fields)
    except Exception as error:
        raise ValueError(f"{' '.join(str(error).split())} Correct the model's settings.") from error


def one_of(names: Iterable[str]) -> str:
    """'a', 'b' or 'c'."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} or {last}" if first else last
