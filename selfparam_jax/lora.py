"""Low-rank adapters: the only thing that is trained, saved and, in the end, merged.

An adapter is a plain tree that mirrors the base: `layers/self_attn/q_proj/{a: [L, D, R], b: [L, R, F]}`.
The adapted projection is `x @ kernel + alpha / rank * x @ a @ b`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

MODULES = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Shape and scale of an adapter; the defaults are the released recipe's."""

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"lora.rank = {self.rank}, expected at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"lora.dropout = {self.dropout}, expected 0 <= dropout < 1")
        unknown = set(self.targets) - set(MODULES)
        if unknown or not self.targets:
            raise ValueError(f"lora.targets = {self.targets}, expected some of {tuple(MODULES)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_lora(key: jax.Array, params: dict, config: LoraConfig) -> dict:
    """A fresh float32 adapter: `a` uniform in +-1/sqrt(D) (as in PEFT), `b` zero, so it changes nothing.

    Args:
      params: the base model's tree, or its shapes; only shapes are read.
    """
    layers: dict = {}
    for index, name in enumerate(sorted(config.targets)):
        module = MODULES[name]
        depth, inputs, outputs = params["layers"][module][name]["kernel"].shape
        bound = inputs**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, index), (depth, inputs, config.rank), jnp.float32, -bound, bound
        )
        b = jnp.zeros((depth, config.rank, outputs), jnp.float32)
        layers.setdefault(module, {})[name] = {"a": a, "b": b}
    return {"layers": layers}


def merge_lora(params: dict, lora: dict, scale: float) -> dict:
    """The base with `scale * a @ b` added to every adapted kernel, in float32, rounded once to its dtype."""
    return _replace_kernels(params, lora, lambda kernel, a, b: _merge(kernel, a, b, scale))


def merge_lora_lazily(params: dict, lora: dict, scale: float) -> dict:
    """The same tree for a reader that takes one array after another: a kernel is merged when it is read.

    So writing a merged model needs one kernel more memory than the base, not a second base.
    """
    return _replace_kernels(params, lora, lambda kernel, a, b: LazyKernel(kernel, a, b, scale))


@dataclasses.dataclass(frozen=True)
class LazyKernel:
    """A merged kernel; `np.asarray` computes it."""

    kernel: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(_merge_now(self.kernel, self.a, self.b, self.scale), dtype)


def _merge(kernel, a, b, scale):
    delta = scale * jnp.einsum("ldr,lrf->ldf", a, b)
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


_merge_now = jax.jit(_merge)


def _replace_kernels(params: dict, lora: dict, make: Callable) -> dict:
    """A tree like `params` with `make(kernel, a, b)` in place of every adapted kernel."""
    merged = dict(params)
    merged["layers"] = {module: dict(entries) for module, entries in params["layers"].items()}
    for module, projections in lora["layers"].items():
        for name, factors in projections.items():
            entry = params["layers"][module][name]
            merged["layers"][module][name] = {**entry, "kernel": make(entry["kernel"], factors["a"], factors["b"])}
    return merged


def parameter_count(tree: dict) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
