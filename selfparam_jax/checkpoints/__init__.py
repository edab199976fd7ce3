"""Weights, tokenizers and adapters in and out: Hugging Face's layout, GGUF, PEFT, and the embedded default model."""
