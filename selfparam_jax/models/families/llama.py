"""Llama 1 to 3 and what shares their architecture: SmolLM2, OpenLLaMA, ..."""

from typing import Any

from selfparam_jax.models.family import Family, GGUFHeader, PreTokenizer, biases

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gguf_fields(header: GGUFHeader) -> dict[str, Any]:
    return {"attention_bias": "blk.0.attn_q.bias" in header.names, "mlp_bias": "blk.0.ffn_up.bias" in header.names}


FAMILY = Family(
    model_type="llama",
    hf_config="LlamaConfig",
    hf_model="LlamaForCausalLM",
    # No sliding window, even if the config names one: transformers gives Llama none.
    flags=biases,
    title="Llama 1 to 3.x, SmolLM2, OpenLLaMA",
    biases="q, k, v, o with attention_bias; gate, up, down with mlp_bias",
    windows="none",
    gguf_architecture="llama",
    gguf_fields=_gguf_fields,
    gguf_paired_rows=True,
    pre_tokenizers={
        "smollm": PreTokenizer(single_digits=True),
        # Llama 3: a word that is one token is not built from merges.
        "llama-bpe": PreTokenizer(
            LLAMA3_PATTERN,
            ignore_merges=True,
        ),
    },
)
