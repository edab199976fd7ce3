"""Mistral 7B and Mistral Nemo: Llama with a sliding window in the first release, and no biases.

Nemo's heads are narrower than hidden_size / num_attention_heads.

llama.cpp writes its files as architecture `llama`; see there. Such files do not say that Mistral 7B v0.1 has a
sliding window: beyond 4096 tokens use its Hugging Face directory.
"""

from typing import Any

from selfparam_jax.models.family import Family


def _flags(hf_config: Any) -> dict[str, Any]:
    return {"sliding_window": getattr(hf_config, "sliding_window", None)}


FAMILY = Family(
    model_type="mistral",
    hf_config="MistralConfig",
    hf_model="MistralForCausalLM",
    flags=_flags,
    title="Mistral 7B v0.1 to v0.3, Mistral Nemo",
    biases="none",
    windows="all layers, where sliding_window is set",
    notes="head_dim other than hidden_size / num_attention_heads",
    gguf_carries="llama",
)
