"""What a model family is: everything that sets its checkpoints apart from another's, in one value.

A family is one file in `families/` that holds a `FAMILY`; `registry` finds it there.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any

from selfparam_jax.models.architecture import ROPE_FIELDS, ModelConfig, RopeScaling

ROPE_TYPES = ("default", *ROPE_FIELDS)


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """How text is split and normalised before byte-level BPE.

    Attributes:
      pattern: regular expression of the pieces; "" is GPT-2's own.
      single_digits: every digit is a piece of its own.
      ignore_merges: a piece that is itself a token is not built from merges.
      nfc: text is brought into Unicode's normal form C first.
    """

    pattern: str = ""
    single_digits: bool = False
    ignore_merges: bool = False
    nfc: bool = False


@dataclasses.dataclass(frozen=True)
class GGUFHeader:
    """What a llama.cpp file says beside its weights.

    Attributes:
      names: of its tensors.
      value: a key of the architecture's metadata, without the architecture's name, and a default -> its value.
      fields: of the transformers config, as far as they are read in the same way for all families.
    """

    names: Set[str]
    value: Callable[[str, Any], Any]
    fields: Mapping[str, Any]


def rope_parameters(hf_config: Any) -> Mapping[str, Any]:
    """The settings of a model's rotary embedding: `rope_parameters` of transformers 5, or the older `rope_scaling`.

    Raises:
      ValueError: there are several embeddings.
    """
    found = getattr(hf_config, "rope_parameters", None) or getattr(hf_config, "rope_scaling", None) or {}
    nested = [name for name, value in found.items() if isinstance(value, Mapping)]
    if nested:
        raise ValueError(
            f"rope_parameters has settings for {', '.join(nested)}, expected one rotary embedding for all layers. "
            "Put the settings directly under rope_parameters if they are the same."
        )
    return found


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture as Hugging Face and llama.cpp know it.

    Attributes:
      model_type: its name in config.json.
      hf_config: name of its config class in transformers.
      hf_model: name of its model class, written to the config.json of a model that came as a GGUF file.
      flags: transformers config -> the fields of `ModelConfig` that are particular to the family. They replace
        those of `common_fields`. Raises ValueError for a setting that the decoder does not have.
      title: the models of the family, for readers.
      biases, windows: which projections may have a bias, and which layers a sliding window, for readers.
      notes: what else sets the family apart, for readers.
      rope_types: those of its rotary embedding; others are refused.
      rope: transformers config -> the settings of its rotary embedding.
      gguf_architecture: llama.cpp's name of the architecture; "" if its files are not supported, or carry the name of
        another family.
      gguf_carries: the name of that other family.
      gguf_fields: header of a GGUF file -> the fields of the transformers config that are particular to the family.
        A sliding window in the file is refused unless `sliding_window` is among them.
      gguf_settings: architecture -> further metadata of a GGUF file, keys without the architecture's name. Raises
        ValueError for what llama.cpp does not have.
      gguf_paired_rows: whether llama.cpp reorders the rows of q and k so that the two components of a rotation are
        neighbours. Hugging Face keeps them half a head apart.
      pre_tokenizers: by llama.cpp's name for them (`tokenizer.ggml.pre`), those that the family brought.
    """

    model_type: str
    hf_config: str
    hf_model: str
    flags: Callable[[Any], dict[str, Any]]
    title: str
    biases: str
    windows: str
    notes: str = ""
    rope_types: tuple[str, ...] = ROPE_TYPES
    rope: Callable[[Any], Mapping[str, Any]] = rope_parameters
    gguf_architecture: str = ""
    gguf_carries: str = ""
    gguf_fields: Callable[[GGUFHeader], dict[str, Any]] = lambda header: {}
    gguf_settings: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    gguf_paired_rows: bool = False
    pre_tokenizers: Mapping[str, PreTokenizer] = dataclasses.field(default_factory=dict)

    def model_config(self, hf_config: Any) -> ModelConfig:
        """The architecture that a transformers config of this family describes.

        Raises:
          ValueError: a setting is not supported.
        """
        config = ModelConfig(**{**common_fields(hf_config, self.rope(hf_config)), **self.flags(hf_config)})
        rope_type = config.rope_scaling.rope_type if config.rope_scaling else "default"
        if rope_type not in self.rope_types:
            raise ValueError(
                f"rope_type = {rope_type!r} is not supported for model_type {self.model_type!r}, expected one of "
                f"{', '.join(self.rope_types)}. Use a checkpoint with one of these."
            )
        return config


def common_fields(hf_config: Any, rope: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `ModelConfig` that all families read in the same way.

    Args:
      hf_config: of the model.
      rope: settings of its rotary embedding.

    Raises:
      ValueError: the rope type, quantisation or another setting is not supported.
    """

    def get(name: str, default: Any = None) -> Any:
        return getattr(hf_config, name, default)

    if (get("pretraining_tp") or 1) != 1:
        raise ValueError(
            f"pretraining_tp = {get('pretraining_tp')} is not supported, expected 1. It only splits the same "
            "sums: set pretraining_tp to 1 in config.json."
        )
    if get("quantization_config"):
        raise ValueError(
            "config.json has a quantization_config, expected plain float weights. "
            "Use the unquantised checkpoint, or a quantised one in the GGUF format."
        )
    rope_theta, rope_scaling = read_rope(hf_config, rope)
    heads, key_heads, head_dim = hf_config.num_attention_heads, get("num_key_value_heads"), get("head_dim")
    return {
        "vocab_size": hf_config.vocab_size,
        "hidden_size": hf_config.hidden_size,
        "intermediate_size": hf_config.intermediate_size,
        "num_hidden_layers": hf_config.num_hidden_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if key_heads is None else key_heads,
        "head_dim": hf_config.hidden_size // heads if head_dim is None else head_dim,
        "rms_norm_eps": float(hf_config.rms_norm_eps),
        "rope_theta": rope_theta,
        "max_position_embeddings": _longest_text(hf_config, rope_scaling, rope),
        "rope_scaling": rope_scaling,
        "tie_word_embeddings": bool(get("tie_word_embeddings", False)),
        "hidden_act": get("hidden_act"),
    }


def read_rope(hf_config: Any, parameters: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of a rotary embedding.

    Args:
      hf_config: of the model.
      parameters: those of the embedding, of either layout of the config.

    Raises:
      ValueError: the type is not supported, or a setting is missing.
    """

    def get(name: str) -> Any:
        value = parameters.get(name)
        return getattr(hf_config, name, None) if value is None else value

    # 10000 is what every family assumes in files too old to name it.
    theta = float(get("rope_theta") or 10000.0)
    rope_type = parameters.get("rope_type") or parameters.get("type") or "default"
    if (get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError(
            f"partial_rotary_factor = {get('partial_rotary_factor')} is not supported, expected 1.0. "
            "Use a checkpoint that rotates the whole head."
        )
    if rope_type not in ROPE_TYPES:
        *others, last = map(repr, ROPE_TYPES)
        raise ValueError(
            f"rope_type = {rope_type!r} is not supported; expected {', '.join(others)} or {last}. "
            "Use a checkpoint with one of these."
        )
    if rope_type == "default":
        return theta, None
    given = {name: parameters.get(name) for name in ROPE_FIELDS[rope_type]}
    if rope_type != "linear":
        given["original_max_position_embeddings"] = get("original_max_position_embeddings")
    if rope_type == "yarn":
        given |= _yarn_defaults(given, parameters)
    if rope_type == "longrope":
        if given["short_factor"] is not None:
            given["short_factor"] = tuple(map(float, given["short_factor"]))
        if given["attention_factor"] is None and given["original_max_position_embeddings"]:
            given["attention_factor"] = _longrope_attention_factor(hf_config, given, parameters)
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"rope_type = {rope_type!r} got no {', '.join(missing)}; expected a number for each. "
            "Add them to the rope settings of config.json."
        )
    return theta, RopeScaling(rope_type, **{name: given[name] for name in ROPE_FIELDS[rope_type]})


def _yarn_defaults(given: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What yarn takes for fields that the config leaves out."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(given["factor"]) + 1.0 if given["factor"] > 1 else 1.0

    defaults = {
        "beta_fast": float(given["beta_fast"] or 32),
        "beta_slow": float(given["beta_slow"] or 1),
        "truncate": True if given["truncate"] is None else bool(given["truncate"]),
    }
    if given["attention_factor"] is None and given["factor"] is not None:
        scales = parameters.get("mscale"), parameters.get("mscale_all_dim")
        defaults["attention_factor"] = grown(scales[0]) / grown(scales[1]) if all(scales) else grown(1)
    return defaults


def _longrope_attention_factor(hf_config: Any, given: dict[str, Any], parameters: Mapping[str, Any]) -> float:
    original = given["original_max_position_embeddings"]
    factor = parameters.get("factor") or hf_config.max_position_embeddings / original
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _longest_text(hf_config: Any, scaling: RopeScaling | None, parameters: Mapping[str, Any]) -> int:
    """The limit of a text in tokens."""
    if scaling is None or scaling.rope_type != "longrope":
        return hf_config.max_position_embeddings
    # A longer text turns every position by other frequencies, also those that were read before it became so long.
    original = parameters.get("original_max_position_embeddings")
    return min(hf_config.max_position_embeddings, original or hf_config.original_max_position_embeddings)


def layer_windows(hf_config: Any, kinds: Iterable[str]) -> dict[str, Any]:
    """The fields of `ModelConfig` that say which layers have a sliding window.

    Args:
      hf_config: of the model; gives the window.
      kinds: "full_attention" or "sliding_attention" for each layer.

    Raises:
      ValueError: another kind, or no window where a layer has one.
    """
    kinds = tuple(kinds)
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise ValueError(
            f"layer_types = {sorted(set(kinds))} is not supported, expected 'full_attention' or 'sliding_attention' "
            "for each layer. Use a checkpoint of such layers."
        )
    if "sliding_attention" not in kinds:
        return {"sliding_window": None}
    if not getattr(hf_config, "sliding_window", None):
        raise ValueError(
            "layer_types names sliding_attention, but got no sliding_window; expected its number of tokens. "
            "Set sliding_window and use_sliding_window in config.json."
        )
    windowed = tuple(kind == "sliding_attention" for kind in kinds)
    return {"sliding_window": hf_config.sliding_window, "windowed_layers": windowed}


def gguf_layer_types(header: GGUFHeader, period: int) -> list[str]:
    """The kind of every layer of a llama.cpp file with a sliding window.

    Args:
      header: of the file. `attention.sliding_window_pattern` is a flag for each layer, or a period.
      period: used where the file has no pattern: every `period`-th layer has no window.
    """
    count = header.fields["num_hidden_layers"]
    pattern = header.value("attention.sliding_window_pattern", period)
    windowed = pattern if isinstance(pattern, list) else _windowed(pattern, count)
    return ["sliding_attention" if each else "full_attention" for each in windowed]


def gguf_windows(config: ModelConfig, period: int) -> dict[str, Any]:
    """The metadata of a llama.cpp file that say which layers have a sliding window.

    Args:
      config: the architecture; at least one layer has a window.
      period: as in `gguf_layer_types`.
    """
    found: dict[str, Any] = {"attention.sliding_window": config.sliding_window}
    windowed = [kind.window is not None for kind in config.layer_kinds]
    if windowed != _windowed(period, config.num_hidden_layers):
        found["attention.sliding_window_pattern"] = windowed
    return found


def _windowed(period: int, count: int) -> list[bool]:
    return [period == 0 or layer % period < period - 1 for layer in range(count)]


def check_gguf(what: str, found: Any, expected: Any) -> None:
    """Raises ValueError unless a value is the only one that llama.cpp has for an architecture."""
    if found != expected:
        raise ValueError(
            f"{what} = {found} cannot be written as GGUF, expected {expected}: llama.cpp has no other for this "
            "architecture; export the model as hf"
        )


def biases(hf_config: Any) -> dict[str, Any]:
    """The field of `ModelConfig` that follows from `attention_bias` and `mlp_bias`."""
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if getattr(hf_config, "attention_bias", False) else ()
    mlp = ("gate_proj", "up_proj", "down_proj") if getattr(hf_config, "mlp_bias", False) else ()
    return {"biased_projections": attention + mlp}
