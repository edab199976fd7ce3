"""Phi-3: Llama whose checkpoints hold q, k and v in one tensor, and gate and up in another.

The models for long texts have `longrope`: other frequencies as soon as a text is longer than the original length.
Texts up to that length are supported, and longer ones are refused.
"""

from typing import Any

from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.family import Family, GGUFHeader, check_gguf


def _flags(hf_config: Any) -> dict[str, Any]:
    return {"fused_projections": True, "sliding_window": getattr(hf_config, "sliding_window", None)}


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    rope = header.fields["rope_parameters"]
    original = rope.get("original_max_position_embeddings", header.fields["max_position_embeddings"])
    return {
        "sliding_window": header.value("attention.sliding_window", 0) or None,
        "original_max_position_embeddings": original,
    }


def _gguf_settings(config: ModelConfig) -> dict[str, Any]:
    check_gguf("head_dim", config.head_dim, config.hidden_size // config.num_attention_heads)
    # Current versions of llama.cpp ignore a window here, and older ones want the key. 0 is none; the file's longest
    # text is as long as the window.
    return {"attention.sliding_window": 0}


FAMILY = Family(
    model_type="phi3",
    hf_config="Phi3Config",
    hf_model="Phi3ForCausalLM",
    flags=_flags,
    title="Phi-3, Phi-3.5 mini, Phi-4",
    biases="none",
    windows="all layers, where sliding_window is set",
    notes="fused qkv_proj and gate_up_proj; with longrope texts up to original_max_position_embeddings",
    rope_types=("default", "longrope"),
    gguf_architecture="phi3",
    gguf_fields=_gguf_fields,
    gguf_settings=_gguf_settings,
)
