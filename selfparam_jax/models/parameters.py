"""Every parameter of the decoder once: its path in our tree, its shape, and its name in a checkpoint.

The table is the only link between our tree and the files of others: loading, saving, fingerprints and shardings all
use it. It is complete both ways: a tensor that is missing, unexpected or of another shape is an error.
"""

import dataclasses
from typing import Any

from flax import traverse_util

from selfparam_jax.models.architecture import LAYER_NORMS, PROJECTIONS, ModelConfig

# llama.cpp's names of a layer's norms, in the order of `LAYER_NORMS`.
GGUF_NORMS = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
# Tensors that some checkpoints hold as one, along the output dimension; see `ModelConfig.fused_projections`.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One leaf of our parameter tree and its tensors in a checkpoint.

    Attributes:
      path: keys in our tree.
      hf_name, gguf_name: tensor names, with `{layer}` where the layers are stacked on our leading axis. The tensor
        may be a part of one in the checkpoint (`fused_tensors`).
      transpose: the checkpoint holds [out, in] where we hold [in, out].
      shape: of our leaf, with the leading L where stacked.
      axes: names of the leaf's axes in `mesh.RULES`; None for one that is never split.
    """

    path: tuple[str, ...]
    hf_name: str
    gguf_name: str
    transpose: bool
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]

    @property
    def is_kernel(self) -> bool:
        """Whether it is the weight [L, D, F] of a projection."""
        return self.path[-1] == "kernel"

    @property
    def is_norm(self) -> bool:
        """Whether it is the weight of a norm."""
        return self.path[-1] == "weight" and len(self.hf_shape) == 1

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.hf_name

    @property
    def hf_shape(self) -> tuple[int, ...]:
        """Shape of one tensor of the checkpoint."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transpose else shape

    def hf_names(self) -> list[str]:
        """The tensor names of this leaf, one per layer where stacked."""
        if not self.stacked:
            return [self.hf_name]
        return [self.hf_name.format(layer=layer) for layer in range(self.shape[0])]


def parameter_table(config: ModelConfig) -> tuple[Entry, ...]:
    """Every parameter of this architecture, once; the order is also that of `fingerprint`."""
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    table = (config.vocab_size, hidden), ("vocabulary", "hidden")
    entries = [Entry(("embed_tokens", "embedding"), "model.embed_tokens.weight", "token_embd.weight", False, *table)]
    for name, gguf in zip(LAYER_NORMS[config.layer_norms], GGUF_NORMS, strict=True):
        if name is not None:
            hf, gguf = f"model.layers.{{layer}}.{name}.weight", f"blk.{{layer}}.{gguf}.weight"
            entries.append(Entry(("layers", name, "weight"), hf, gguf, False, (layers, hidden), (None, None)))
    if config.qk_norm:
        whole = config.qk_norm == "whole"
        for name, size in (("q_norm", queries), ("k_norm", keys)):
            hf, gguf = f"model.layers.{{layer}}.self_attn.{name}.weight", f"blk.{{layer}}.attn_{name}.weight"
            of_norm = (layers, size if whole else config.head_dim), (None, "heads" if whole else None)
            entries.append(Entry(("layers", "self_attn", name, "weight"), hf, gguf, False, *of_norm))
    for name, gguf, size_in, size_out, axes in (
        ("q_proj", "attn_q", hidden, queries, ("hidden", "heads")),
        ("k_proj", "attn_k", hidden, keys, ("hidden", "heads")),
        ("v_proj", "attn_v", hidden, keys, ("hidden", "heads")),
        ("o_proj", "attn_output", queries, hidden, ("heads", "hidden")),
        ("gate_proj", "ffn_gate", hidden, inner, ("hidden", "inner")),
        ("up_proj", "ffn_up", hidden, inner, ("hidden", "inner")),
        ("down_proj", "ffn_down", inner, hidden, ("inner", "hidden")),
    ):
        block = PROJECTIONS[name]
        hf, gguf = f"model.layers.{{layer}}.{block}.{name}", f"blk.{{layer}}.{gguf}"
        path = ("layers", block, name)
        kernel = (layers, size_in, size_out), (None, *axes)
        entries.append(Entry((*path, "kernel"), f"{hf}.weight", f"{gguf}.weight", True, *kernel))
        if name in config.biased_projections:
            of_bias = (layers, size_out), (None, axes[1])
            entries.append(Entry((*path, "bias"), f"{hf}.bias", f"{gguf}.bias", False, *of_bias))
    entries.append(Entry(("norm", "weight"), "model.norm.weight", "output_norm.weight", False, (hidden,), (None,)))
    if not config.tie_word_embeddings:
        entries.append(Entry(("lm_head", "weight"), "lm_head.weight", "output.weight", False, *table))
    return tuple(entries)


def fused_tensors(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Tensors of a checkpoint that hold several of the table's, one after another along their first axis.

    Returns:
      {its name: the names in the table}; {} unless `config.fused_projections`.
    """
    if not config.fused_projections:
        return {}
    return {
        f"model.layers.{layer}.{PROJECTIONS[parts[0]]}.{name}.weight": tuple(
            f"model.layers.{layer}.{PROJECTIONS[part]}.{part}.weight" for part in parts
        )
        for layer in range(config.num_hidden_layers)
        for name, parts in FUSED.items()
    }


def parameter_tree(leaves: dict[tuple[str, ...], Any]) -> dict:
    """Values by the path of their entry as our parameter tree."""
    return traverse_util.unflatten_dict(leaves)


def tree_leaves(tree: dict) -> dict[tuple[str, ...], Any]:
    """The inverse: values by path. Kernels of 8 bits or merged lazily are one leaf each."""
    return traverse_util.flatten_dict(tree)
