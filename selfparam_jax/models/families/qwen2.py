"""Qwen2 and Qwen2.5: Llama with biases on q, k and v only; a sliding window if `use_sliding_window` is set."""

from typing import Any

from selfparam_jax.models.family import Family, GGUFHeader, PreTokenizer, layer_windows


def _flags(hf_config: Any) -> dict[str, Any]:
    return {"biased_projections": ("q_proj", "k_proj", "v_proj"), **layer_windows(hf_config, layer_types(hf_config))}


def layer_types(hf_config: Any) -> tuple[str, ...]:
    """The kind of every layer, also of a config that is older than the field."""
    kinds = tuple(getattr(hf_config, "layer_types", None) or ())
    if kinds or not getattr(hf_config, "use_sliding_window", False):
        return kinds
    full = min(max(getattr(hf_config, "max_window_layers", 0), 0), hf_config.num_hidden_layers)
    return ("full_attention",) * full + ("sliding_attention",) * (hf_config.num_hidden_layers - full)


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    return {"use_sliding_window": False}


FAMILY = Family(
    model_type="qwen2",
    hf_config="Qwen2Config",
    hf_model="Qwen2ForCausalLM",
    flags=_flags,
    title="Qwen2, Qwen2.5",
    biases="q, k, v",
    windows="the layers from max_window_layers on, with use_sliding_window",
    gguf_architecture="qwen2",
    gguf_fields=_gguf_fields,
    pre_tokenizers={
        "qwen2": PreTokenizer(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
            nfc=True,
        ),
    },
)
