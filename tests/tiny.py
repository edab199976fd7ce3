"""Tiny random Hugging Face checkpoints for tests. Only transformers' own models need torch.

The weights are scaled so that every part of a block changes the logits: with Hugging Face's own
initialisation (0.02) all logits are nearly equal and a wrong model passes.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from extras import require
from safetensors.numpy import save_file

from selfparam_jax.models.decoder import Int8Kernel, apply_head, head_weight
from selfparam_jax.models.quantization import round_kernel

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


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a Hugging Face checkpoint holds, without a model: transformers' config, and tensors by name."""

    config: Any
    tensors: dict[str, np.ndarray]


def tensor_shapes(config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a Llama or Mistral, as transformers has them."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    head_dim = config.head_dim or hidden // config.num_attention_heads
    queries, keys = (head_dim * count for count in (config.num_attention_heads, config.num_key_value_heads))
    attention = {"q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden)}
    attention["o_proj"] = (hidden, queries)
    products = {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        for part, bias, matrices in (
            ("self_attn", getattr(config, "attention_bias", False), attention),
            ("mlp", getattr(config, "mlp_bias", False), products),
        ):
            for name, shape in matrices.items():
                module = f"model.layers.{layer}.{part}.{name}"
                shapes[f"{module}.weight"] = shape
                if bias:
                    shapes[f"{module}.bias"] = shape[:1]
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{name}.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def checkpoint(case: str, seed: int = 0, **changes) -> Checkpoint:
    """Random float32 tensors for a case."""
    config = hf_config(case, **changes)
    config.architectures = [{"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}[config.model_type]]
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        noise = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            tensors[name] = np.float32(0.3) * noise + np.float32(not name.endswith("bias"))
        else:
            tensors[name] = noise * np.float32(1.0 if "embed" in name else shape[1] ** -0.5)
    return Checkpoint(config, tensors)


def hf_model(case: str, seed: int = 0, **changes):
    """`checkpoint` as a float32 transformers model on the CPU, in evaluation mode, with eager attention."""
    return with_torch(checkpoint(case, seed, **changes))


def with_torch(made: Checkpoint):
    """A checkpoint's float32 transformers model."""
    torch = require("torch")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(made.config, dtype=torch.float32, attn_implementation="eager").eval()
    tensors = {name: torch.from_numpy(value) for name, value in hf_tensors(made).items()}
    missing, unknown = model.load_state_dict(tensors, strict=False)
    tied = ["lm_head.weight"] if made.config.tie_word_embeddings else []
    assert (missing, unknown) == (tied, [])
    return model


def hf_tensors(model) -> dict[str, np.ndarray]:
    """Tensors of a transformers model or a Checkpoint by name, float32, without the second name of a tied head."""
    if isinstance(model, Checkpoint):
        return {name: value.astype(np.float32) for name, value in model.tensors.items()}
    tied = model.config.tie_word_embeddings
    return {
        name: value.detach().float().numpy()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def hf_logits(model, ids: np.ndarray) -> np.ndarray:
    """Float32 logits [B, T, V] of ids [B, T]."""
    torch = require("torch")
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids, np.int64))).logits.numpy()


def token_ids(length: int, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Random ids int32 [batch, length] of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(0, SIZES["vocab_size"], (batch, length), dtype=np.int32)


def save_checkpoint(
    directory, case: str, seed: int = 0, dtype: str = "float32", shards: int = 1, **changes
) -> Checkpoint:
    """Writes config.json, safetensors and a tokenizer as transformers does; returns what was written. No torch."""
    made = checkpoint(case, seed, **changes)
    tensors = {name: value.astype(jnp.dtype(dtype)) for name, value in made.tensors.items()}
    save_config(directory, made.config, dtype)
    save_shards(directory, "model", "safetensors", tensors, shards, _save_safetensors)
    return Checkpoint(made.config, tensors)


def save_torch_checkpoint(directory, case: str, seed: int = 0, dtype: str = "float32", shards: int = 1) -> Checkpoint:
    """The same with pytorch_model.bin, as in older checkpoints."""
    torch = require("torch")
    made = checkpoint(case, seed)
    tensors = {name: torch.from_numpy(value).to(getattr(torch, dtype)) for name, value in made.tensors.items()}
    save_config(directory, made.config, dtype)
    save_shards(directory, "pytorch_model", "bin", tensors, shards, torch.save)
    return Checkpoint(made.config, {name: value.float().numpy() for name, value in tensors.items()})


def save_config(directory, config, dtype: str) -> None:
    """Writes config.json, generation_config.json and the tokenizer's files."""
    from transformers import GenerationConfig

    config.dtype = dtype
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    tokenizer().save_pretrained(directory)


def _save_safetensors(tensors, path):
    save_file(tensors, path, metadata={"format": "pt"})


def save_shards(directory, stem: str, ending: str, tensors: dict, shards: int, save) -> None:
    """Writes tensors as one file, or as several with an index.

    Args:
      directory: where the files go.
      stem: of their names.
      ending: of their names, without the dot.
      tensors: by name.
      shards: number of files.
      save: a function of some tensors and a path.
    """
    directory = Path(directory)
    if shards == 1:
        save(tensors, directory / f"{stem}.{ending}")
        return
    weight_map = {}
    for number in range(shards):
        part = dict(list(tensors.items())[number::shards])
        file = f"{stem}-{number + 1:05d}-of-{shards:05d}.{ending}"
        save(part, directory / file)
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


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


def write_gguf(
    path, model, quantization: str = "F32", skip: tuple[str, ...] = (), tensors: list | None = None, **metadata
) -> None:
    """Writes a Llama as llama.cpp's converter does, q and k rows permuted.

    Args:
      path: of the file.
      model: a Checkpoint or a transformers model.
      quantization: of the matrices; F32, F16, BF16, Q8_0 or another that gguf can write.
      skip: metadata keys left out.
      tensors: of a GGUFReader, written in place of the model's.
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
    for tensor in tensors or ():
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name, value in ({} if tensors else gguf_tensors(model)).items():
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
        require("torch")
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0].numpy()
        half = np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim
        tensors["rope_freqs.weight"] = (config.rope_parameters["rope_theta"] ** -half / scaled).astype(np.float32)
    return tensors


@functools.partial(jax.jit, static_argnames="model")
def _logits(model, variables, ids):
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
    hidden, _ = model.apply(variables, ids, positions, jnp.ones_like(positions))
    return apply_head(hidden[0], head_weight(variables["params"]))


def plain_logits(model, variables: dict, ids) -> np.ndarray:
    """Float32 logits [T, V] of one text by a decoder, read in one piece.

    It is made longer to a multiple of 32: few programs for texts of many lengths.
    """
    ids = np.asarray(ids, np.int32)
    row = np.pad(ids, (0, -len(ids) % 32))[None]
    return np.asarray(_logits(model, variables, row))[: len(ids)]


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
