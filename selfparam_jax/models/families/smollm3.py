"""SmolLM3: Llama in which some layers, by default every fourth, have no rotary embedding."""

from typing import Any

from selfparam_jax.models.family import Family, GGUFHeader, biases, layer_windows


def _flags(hf_config: Any) -> dict[str, Any]:
    rotated = tuple(map(bool, hf_config.no_rope_layers[: hf_config.num_hidden_layers]))  # 1 is a layer *with* RoPE
    return {"rotated_layers": rotated, **biases(hf_config), **layer_windows(hf_config, hf_config.layer_types)}


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    # llama.cpp has the default interval of layers without RoPE, and no other.
    return {"attention_bias": "blk.0.attn_q.bias" in header.names, "mlp_bias": "blk.0.ffn_up.bias" in header.names}


FAMILY = Family(
    model_type="smollm3",
    hf_config="SmolLM3Config",
    hf_model="SmolLM3ForCausalLM",
    flags=_flags,
    title="SmolLM3",
    biases="q, k, v, o with attention_bias; gate, up, down with mlp_bias",
    windows="by layer_types",
    notes="layers without RoPE (no_rope_layers)",
    gguf_architecture="smollm3",
    gguf_fields=_gguf_fields,
    gguf_paired_rows=True,
)
