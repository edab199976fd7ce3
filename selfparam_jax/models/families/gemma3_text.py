"""Gemma 3, text only: layers with a window and a rotary embedding of their own, between layers that see everything.

Norms before and after every block have the weight 1 + w, also over each head of queries and keys; the embedding is
scaled by the root of hidden_size.
"""

from collections.abc import Mapping
from typing import Any

from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.families.gemma2 import check_gguf_gemma, gguf_scalar
from selfparam_jax.models.family import (
    ROPE_TYPES,
    Family,
    GGUFHeader,
    biases,
    gguf_layer_types,
    gguf_windows,
    layer_windows,
    read_rope,
)

PERIOD = 6  # llama.cpp's: every sixth layer has no window
LOCAL_THETA = 10000.0


def _flags(hf_config: Any) -> dict[str, Any]:
    for name in ("final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"):
        if getattr(hf_config, name, None):
            raise ValueError(
                f"{name} = {getattr(hf_config, name)} is not supported for model_type 'gemma3_text', expected none. "
                "Use a checkpoint without it."
            )
    local_theta, local_scaling = read_rope(hf_config, hf_config.rope_parameters["sliding_attention"])
    if local_scaling is not None:
        raise ValueError(
            f"rope_type = {local_scaling.rope_type!r} is not supported for the layers with a sliding window, "
            "expected 'default'. Use a checkpoint that scales the other layers only."
        )
    windows = layer_windows(hf_config, hf_config.layer_types)
    return {
        "hidden_act": hf_config.hidden_activation,
        "layer_norms": "both",
        "norm": "gemma",
        "qk_norm": "head",
        "query_pre_attn_scalar": float(hf_config.query_pre_attn_scalar),
        "embedding_scale": hf_config.hidden_size**0.5,
        "local_rope_theta": None if windows["sliding_window"] is None else local_theta,
        **biases(hf_config),
        **windows,
    }


def _rope(hf_config: Any) -> Mapping[str, Any]:
    return hf_config.rope_parameters["full_attention"]


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    window = header.value("attention.sliding_window", 0)
    local = {"rope_type": "default", "rope_theta": header.value("rope.freq_base_swa", LOCAL_THETA)}
    return {
        "final_logit_softcapping": header.value("final_logit_softcapping", None),
        "sliding_window": window or None,
        "layer_types": gguf_layer_types(header, PERIOD if window else 1),
        "rope_parameters": {"full_attention": header.fields["rope_parameters"], "sliding_attention": local},
        "query_pre_attn_scalar": gguf_scalar(header.fields, 62),
    }


def _gguf_settings(config: ModelConfig) -> dict[str, Any]:
    check_gguf_gemma(config, 62)
    if config.sliding_window is None:
        return {}
    # Not every version of llama.cpp reads the base; all have this one where it is missing.
    local = {} if config.local_rope_theta == LOCAL_THETA else {"rope.freq_base_swa": config.local_rope_theta}
    return {**gguf_windows(config, PERIOD), **local}


FAMILY = Family(
    model_type="gemma3_text",
    hf_config="Gemma3TextConfig",
    hf_model="Gemma3ForCausalLM",
    flags=_flags,
    title="Gemma 3, text only (270M, 1B)",
    biases="q, k, v, o with attention_bias",
    windows="by layer_types",
    notes="norms before and after the blocks; q/k norms; two RoPE bases; scaled embeddings; GeGLU",
    rope_types=tuple(name for name in ROPE_TYPES if name != "longrope"),
    rope=_rope,
    gguf_architecture="gemma3",
    gguf_fields=_gguf_fields,
    gguf_settings=_gguf_settings,
)
