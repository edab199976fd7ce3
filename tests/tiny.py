"""Tiny random Hugging Face checkpoints for tests; the functions that make models need torch.

The weights are scaled so that every part of a block changes the logits: with Hugging Face's own
initialisation (0.02) all logits are nearly equal and a wrong model passes.
"""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.model import Int8Kernel, apply_head, head_weight
from selfparam_jax.quantization import round_kernel

SIZES = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# Model type and what differs from SIZES.
CASES = {
    "mha": ("llama", {"num_key_value_heads": 4}),
    "gqa": ("llama", {}),
    "mqa": ("llama", {"num_key_value_heads": 1}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "llama3": ("llama", {"rope_parameters": LLAMA3_ROPE}),
    "linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    ),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "head_dim": ("llama", {"head_dim": 12}),
    "mistral": ("mistral", {"sliding_window": 5}),
    "mistral_full": ("mistral", {"sliding_window": None}),
}


def hf_config(case: str, **changes):
    """The transformers config of a case; needs no torch."""
    from transformers import LlamaConfig, MistralConfig

    model_type, fields = CASES[case]
    config = {"llama": LlamaConfig, "mistral": MistralConfig}[model_type]
    return config(
        **{**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, **fields, **changes}
    )


def hf_model(case: str, seed: int = 0, **changes):
    """A random float32 transformers model on the CPU, in evaluation mode, with eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(hf_config(case, **changes), attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim == 1:
                value.copy_(0.3 * noise + (0.0 if name.endswith("bias") else 1.0))
            else:
                value.copy_(noise * (1.0 if "embed" in name else value.shape[1] ** -0.5))
    return model.float().eval()


def hf_tensors(model) -> dict[str, np.ndarray]:
    """The model's tensors by name, float32, without the second name of a tied head."""
    tied = model.config.tie_word_embeddings
    return {
        name: value.detach().float().numpy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def hf_logits(model, ids: np.ndarray) -> np.ndarray:
    """Float32 logits [B, T, V] of ids [B, T]."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids, np.int64))).logits.numpy()


def token_ids(length: int, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Random ids int32 [batch, length] of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, length), dtype=np.int32)


def save_checkpoint(directory, case: str, seed: int = 0, dtype: str = "float32", shards: int = 1, **changes):
    """Writes config.json, safetensors and a tokenizer as transformers does; returns the model."""
    import torch

    model = hf_model(case, seed, **changes).to(getattr(torch, dtype))
    size = sum(value.numel() * value.element_size() for value in model.parameters())
    model.save_pretrained(directory, max_shard_size=size // shards + 1 if shards > 1 else "5GB")
    tokenizer().save_pretrained(directory)
    return model


def save_torch_checkpoint(directory, case: str, seed: int = 0, dtype: str = "float32", shards: int = 1):
    """The same with pytorch_model.bin (and an index for shards > 1), as in older checkpoints."""
    import torch

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model = hf_model(case, seed).to(getattr(torch, dtype))
    model.config.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    if shards == 1:
        torch.save(tensors, directory / "pytorch_model.bin")
        return model
    weight_map = {}
    for number in range(shards):
        part = dict(list(tensors.items())[number::shards])
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return model


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges of a byte-level BPE of 272 tokens: 3 special, 256 bytes, a few words, fillers."""
    from tokenizers import pre_tokenizers

    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("i", "n"),
        ("a", "n"),
        ("an", "d"),
        ("1", "2"),
        ("Ġ", "a"),
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", "<pad>", *alphabet, *("".join(merge) for merge in merges)]
    tokens += [f"<filler_{number}>" for number in range(SIZES["vocab_size"] - len(tokens))]
    return tokens, merges


CHAT_TEMPLATE = "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"


def tokenizer():
    """A byte-level tokenizer of the tiny vocabulary, with <s>, </s>, <pad> and a chat template."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, merges = vocabulary()
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def write_gguf(path, model, quantization: str = "F32", skip: tuple[str, ...] = (), **metadata) -> None:
    """Writes a transformers Llama model as llama.cpp's converter does, q and k rows permuted.

    Args:
      path: of the file.
      model: a tiny transformers model.
      quantization: of the matrices; F32, F16, BF16, Q8_0 or another that gguf can write.
      skip: metadata keys left out.
      metadata: further or other metadata, `__` for a dot in the key.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    tokens, merges = vocabulary()
    values = {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    adders |= {str: writer.add_string, list: writer.add_array}
    for key, value in values.items():
        if key == "general.architecture":
            writer.arch = value
            writer.kv_data[0][key].value = value
        elif key not in skip:
            adders[type(value)](key, value)
    kind = gguf.GGMLQuantizationType[quantization]
    for name, value in gguf_tensors(model).items():
        of = kind if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(value, of), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(model) -> dict[str, np.ndarray]:
    """The model's tensors under llama.cpp's names, q and k permuted as it does."""
    config = model.config
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    inner = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    inner |= {f"self_attn.{a}_proj": f"attn_{b}" for a, b in zip("qkvo", ("q", "k", "v", "output"), strict=True)}
    inner |= {f"mlp.{a}_proj": f"ffn_{a}" for a in ("gate", "up", "down")}
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in inner.items()}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, value in hf_tensors(model).items():
        module, kind = name.rsplit(".", 1)
        if count := heads.get(module.rsplit(".", 1)[-1]):
            halves = value.reshape(count, 2, value.shape[0] // count // 2, *value.shape[1:])
            value = halves.swapaxes(1, 2).reshape(value.shape)
        tensors[f"{names[module]}.{kind}"] = np.ascontiguousarray(value)
    if config.rope_parameters["rope_type"] == "llama3":
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
        half = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        tensors["rope_freqs.weight"] = (config.rope_parameters["rope_theta"] ** -half / scaled).astype(np.float32)
    return tensors


def rounded(params: dict) -> dict:
    """The same tree with its kernels in 8 bits, on the first device."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def convert(path, leaf):
        return round_kernel(leaf, Int8Kernel(one, one)) if path[-1].key == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(convert, params)


def benchmark(name: str):
    """A module of `benchmarks`; its command-line flags are taken back, as several define the same ones."""
    import importlib

    from absl import flags

    before = set(flags.FLAGS)
    module = importlib.import_module(f"benchmarks.{name}")
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module


@functools.partial(jax.jit, static_argnames="model")
def _next_ids(model, variables, ids):
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1])[None], ids.shape)
    hidden, _ = model.apply(variables, ids, positions, jnp.ones_like(ids))
    return jnp.argmax(apply_head(hidden, head_weight(variables["params"])), axis=-1)


def continued(model, variables, ids, new_tokens):
    """Reads the whole text again for every token; what stands behind it cannot matter to a causal model."""
    text = list(ids)
    for _ in range(new_tokens):
        row = np.zeros((1, 128), np.int32)
        row[0, : len(text)] = text
        text.append(int(_next_ids(model, variables, row)[0, len(text) - 1]))
    return text[len(ids) :]
