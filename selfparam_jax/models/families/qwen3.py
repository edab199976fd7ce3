"""Qwen3: Llama with norms over each head of queries and keys; the smaller models tie embedding and head."""

from typing import Any

from selfparam_jax.models.families.qwen2 import layer_types
from selfparam_jax.models.family import Family, GGUFHeader, biases, layer_windows


def _flags(hf_config: Any) -> dict[str, Any]:
    return {"qk_norm": "head", **biases(hf_config), **layer_windows(hf_config, layer_types(hf_config))}


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in header.names, "use_sliding_window": False}


FAMILY = Family(
    model_type="qwen3",
    hf_config="Qwen3Config",
    hf_model="Qwen3ForCausalLM",
    flags=_flags,
    title="Qwen3",
    biases="q, k, v, o with attention_bias",
    windows="the layers from max_window_layers on, with use_sliding_window",
    notes="q/k norms over each head",
    gguf_architecture="qwen3",
    gguf_fields=_gguf_fields,
)
