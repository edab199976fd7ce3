"""Gemma 2: caps on attention's scores and on the logits, and a window in every second layer.

Norms before and after every block have the weight 1 + w; the embedding is scaled by the root of hidden_size.
"""

from collections.abc import Mapping
from typing import Any

from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.family import (
    ROPE_TYPES,
    Family,
    GGUFHeader,
    biases,
    check_gguf,
    gguf_layer_types,
    gguf_windows,
    layer_windows,
)

PERIOD = 2  # llama.cpp's: every second layer has no window


def _flags(hf_config: Any) -> dict[str, Any]:
    if getattr(hf_config, "use_bidirectional_attention", None):
        raise ValueError(
            "use_bidirectional_attention is not supported for model_type 'gemma2', expected it unset. "
            "Use a checkpoint without it."
        )
    return {
        "hidden_act": hf_config.hidden_activation,
        "layer_norms": "both",
        "norm": "gemma",
        "query_pre_attn_scalar": float(hf_config.query_pre_attn_scalar),
        "embedding_scale": hf_config.hidden_size**0.5,
        "attn_logit_softcapping": hf_config.attn_logit_softcapping,
        "final_logit_softcapping": hf_config.final_logit_softcapping,
        **biases(hf_config),
        **layer_windows(hf_config, hf_config.layer_types),
    }


def gguf_scalar(sizes: Mapping[str, Any], largest: int) -> int:
    """`query_pre_attn_scalar` as llama.cpp has it: head_dim, but for the largest model, which it knows by its layers.

    Args:
      sizes: `num_hidden_layers`, `hidden_size`, `num_attention_heads` and `head_dim`.
      largest: number of layers of the largest model.

    Returns:
      the scalar.
    """
    if sizes["num_hidden_layers"] == largest:
        return sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes["head_dim"]


def check_gguf_gemma(config: ModelConfig, largest: int) -> None:
    """Raises ValueError for what llama.cpp does not have for any Gemma.

    Args:
      config: the architecture.
      largest: as in `gguf_scalar`.
    """
    check_gguf("layers with biases", config.biased_projections, ())
    check_gguf(
        "query_pre_attn_scalar", config.query_pre_attn_scalar or config.head_dim, gguf_scalar(vars(config), largest)
    )
    rope_type = config.rope_scaling.rope_type if config.rope_scaling else "linear"
    check_gguf("rope_type", rope_type, "linear")


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": header.value("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.value("final_logit_softcapping", 30.0),
        "sliding_window": header.value("attention.sliding_window", 4096),
        "layer_types": gguf_layer_types(header, PERIOD),
        "query_pre_attn_scalar": gguf_scalar(header.fields, 46),
    }


def _gguf_settings(config: ModelConfig) -> dict[str, Any]:
    check_gguf_gemma(config, 46)
    caps = {name: getattr(config, name) for name in ("attn_logit_softcapping", "final_logit_softcapping")}
    for name, value in caps.items():
        check_gguf(name, value, value or "a number")
    check_gguf("tie_word_embeddings", config.tie_word_embeddings, True)
    check_gguf("sliding_window", config.sliding_window, config.sliding_window or "a number")
    return {**caps, **gguf_windows(config, PERIOD)}


FAMILY = Family(
    model_type="gemma2",
    hf_config="Gemma2Config",
    hf_model="Gemma2ForCausalLM",
    flags=_flags,
    title="Gemma 2 (2B, 9B, 27B)",
    biases="q, k, v, o with attention_bias",
    windows="by layer_types",
    notes="norms before and after the blocks; caps on scores and logits (attention=blocks); scaled embeddings; GeGLU",
    rope_types=tuple(name for name in ROPE_TYPES if name != "longrope"),
    gguf_architecture="gemma2",
    gguf_fields=_gguf_fields,
    gguf_settings=_gguf_settings,
)
