"""OLMo 2: norms after attention and feed-forward block instead of before, and over all of queries and keys."""

from typing import Any

from selfparam_jax.models.families.llama import LLAMA3_PATTERN
from selfparam_jax.models.family import Family, GGUFHeader, PreTokenizer, biases


def _flags(hf_config: Any) -> dict[str, Any]:
    return {"layer_norms": "post", "norm": "olmo2", "qk_norm": "whole", **biases(hf_config)}


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in header.names}


FAMILY = Family(
    model_type="olmo2",
    hf_config="Olmo2Config",
    hf_model="Olmo2ForCausalLM",
    flags=_flags,
    title="OLMo 2",
    biases="q, k, v, o with attention_bias",
    windows="none",
    notes="norms after the blocks; q/k norms over all heads at once",
    gguf_architecture="olmo2",
    gguf_fields=_gguf_fields,
    pre_tokenizers={"dbrx": PreTokenizer(LLAMA3_PATTERN)},
)
