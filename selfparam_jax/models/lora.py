"""Low-rank adapters: the only thing that is trained, saved and, in the end, merged.

An adapter is a plain tree like the base's: `layers/self_attn/q_proj/{a: [L, D, R], b: [L, R, F]}`.
The adapted projection is `x @ kernel + alpha / rank * x @ a @ b`.
Adapters that were trained one after another stay separate: a list of (adapter, scale) is a model, `W0 + sum of
scale * a @ b`, and any of them can be left out of it again.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from selfparam_jax.distributed.ranges import FACTOR, Range, check_ranges
from selfparam_jax.models.architecture import PROJECTIONS

# Projections an adapter may change, and the block each belongs to.
MODULES = PROJECTIONS


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Shape and scale of an adapter.

    Attributes:
      rank: columns of each low-rank factor; at least 1.
      alpha: the adapter's product is multiplied by alpha / rank; above 0.
      dropout: probability of zeroing an input of the adapter while training, 0 <= dropout < 1.
      target_modules: names of the adapted projections, of `MODULES`.
    """

    rank: Annotated[int, Range(1, 16384)] = 8
    alpha: Annotated[float, FACTOR] = 16.0
    dropout: Annotated[float, Range(0, 1, open_most=True)] = 0.0
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")

    def __post_init__(self):
        check_ranges(self, "lora")
        unknown = set(self.target_modules) - set(MODULES)
        if unknown or not self.target_modules:
            raise ValueError(f"lora.target_modules = {self.target_modules}, expected some of {tuple(MODULES)}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def init_lora(key: jax.Array, params: dict, config: LoraConfig) -> dict:
    """A fresh float32 adapter: `a` uniform in +-1/sqrt(D) (as in PEFT), `b` zero, so it changes nothing.

    Args:
      params: the base model's tree, or its shapes; only shapes are read.
    """
    factors: dict = {}
    for index, name in enumerate(sorted(config.target_modules)):
        module = MODULES[name]
        depth, inputs, outputs = params["layers"][module][name]["kernel"].shape
        bound = inputs**-0.5
        a = jax.random.uniform(
            jax.random.fold_in(key, index), (depth, inputs, config.rank), jnp.float32, -bound, bound
        )
        b = jnp.zeros((depth, config.rank, outputs), jnp.float32)
        factors[module, name] = {"a": a, "b": b}
    return _lora_tree(factors)


def extend_lora(key: jax.Array, params: dict, config: LoraConfig, lora: dict, scale: float) -> dict:
    """An adapter that computes what another one does, with room for what it is to learn: a start for training.

    A projection that either of the two adapts has the other's factors, and where these are fewer than `config.rank`
    and it is one of `config.target_modules`, further ones as `init_lora` draws them.

    Args:
      key: of what is drawn.
      params: the base model's tree, or its shapes; only shapes are read.
      config: shape and scale of the new adapter.
      lora: the other adapter; ranks may differ.
      scale: of the other adapter.

    Returns:
      float32 NumPy arrays, to be used with `config.scale`.

    Raises:
      ValueError: the other adapter is for other kernels.
    """
    given = {projection: parts[0] for projection, parts in _by_projection([(lora, scale)]).items()}
    for (module, name), part in given.items():
        kernel = params["layers"][module][name]["kernel"]
        if kernel.shape != _kernel_shape(part):
            raise ValueError(
                f"the model has a kernel of shape {kernel.shape} for {module}.{name}, but the adapter is for one of "
                f"shape {_kernel_shape(part)}; give the model that it was trained on"
            )
    names = tuple({*config.target_modules, *(name for _, name in given)})
    largest = max([config.rank, *(a.shape[2] for a, _, _ in given.values())])
    drawn = init_lora(key, params, dataclasses.replace(config, rank=largest, target_modules=names))
    factors: dict = {}
    for module, name in traverse_util.flatten_dict(drawn["layers"], is_leaf=lambda path, _: len(path) == 2):
        a, b = (np.array(drawn["layers"][module][name][factor]) for factor in "ab")
        rank = config.rank if name in config.target_modules else 1
        if (module, name) in given:
            old_a, old_b, _ = map(np.asarray, given[module, name])
            own = old_a.shape[2]
            # Factors that are 0 on both sides, as where a layer has fewer than others, would never learn.
            used = old_a.any(axis=1) | old_b.any(axis=2)  # [L, R]
            a[:, :, :own] = np.where(used[:, None, :], old_a, a[:, :, :own])
            b[:, :own] = old_b * np.float32(scale / config.scale)
            rank = max(own, rank)
        factors[module, name] = {"a": a[:, :, :rank], "b": b[:, :rank]}
    return _lora_tree(factors)


def _lora_tree(factors: dict[tuple[str, str], dict]) -> dict:
    """{("self_attn", "q_proj"): {"a": a, "b": b}} as the tree of an adapter."""
    return {"layers": traverse_util.unflatten_dict(factors)}


def merge_lora(params: dict, lora: dict, scale: float) -> dict:
    """The base with `scale * a @ b` added to every adapted kernel; see `merge_adapters`."""
    return merge_adapters(params, [(lora, scale)])


def merge_lora_lazily(params: dict, lora: dict, scale: float) -> dict:
    """The same tree with kernels that are merged when they are read; see `merge_adapters_lazily`."""
    return merge_adapters_lazily(params, [(lora, scale)])


def merge_adapters(params: dict, adapters: Sequence[tuple[dict, float]]) -> dict:
    """The base with the sum of all `scale * a @ b` added, in float32, rounded once to each kernel's dtype.

    Args:
      adapters: (adapter, scale); targets and ranks may differ. An empty list gives the base.

    Raises:
      ValueError: an adapter is for other kernels.
    """
    return _replace_kernels(params, adapters, lambda kernel, parts: merge_kernel(kernel, parts))


def merge_adapters_lazily(params: dict, adapters: Sequence[tuple[dict, float]]) -> dict:
    """The same tree with kernels that are merged when they are read, for a reader that takes one array after another.

    So writing a merged model needs memory for one more kernel than the base, not for a second base.
    """
    return _replace_kernels(params, adapters, LazyKernel)


@dataclasses.dataclass(frozen=True)
class LazyKernel:
    """A kernel that is merged when it is asked for. `parts` are (a, b, scale)."""

    kernel: jax.Array
    parts: tuple[tuple, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kernel.shape

    def merged(self) -> jax.Array:
        """The merged kernel, laid out like the base's."""
        return merge_kernel(self.kernel, self.parts)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.merged(), dtype)


def merge_kernel(kernel: jax.Array, parts: Sequence[tuple]) -> jax.Array:
    """A kernel [layers, in, out] with the deltas of some adapters, each (a, b, scale), added in float32."""
    if len(parts) == 1:
        return merge_one(kernel, *parts[0])
    total = None
    for part in parts:
        total = _add_part(kernel, total, part)
    return apply_delta(kernel, total)


@jax.jit
def merge_one(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """`merge_kernel` of one adapter, in one program in place of three.

    Args:
      kernel: [layers, in, out].
      a: [layers, in, rank].
      b: [layers, rank, out].
      scale: [].

    Returns:
      kernel + scale * a @ b, added in float32 and rounded to the kernel's dtype.
    """
    return (kernel.astype(jnp.float32) + _delta(a, b, scale)).astype(kernel.dtype)


def _delta(a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    # Some accelerators multiply float32 with fewer bits unless told not to.
    return jnp.einsum("ldr,lrf->ldf", a, scale * b, precision=jax.lax.Precision.HIGHEST)


# One delta at a time: a program that took all adapters at once would be another one for every number of them.
@functools.partial(jax.jit, donate_argnums=0)
def add_delta(total: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """One delta more.

    Args:
      total: a sum of deltas [layers, in, out], float32; its memory is given away.
      a: [layers, in, rank].
      b: [layers, rank, out].
      scale: [].

    Returns:
      total + scale * a @ b.
    """
    return total + _delta(a, b, scale)


@jax.jit
def apply_delta(kernel: jax.Array, total: jax.Array) -> jax.Array:
    """A kernel with a sum of deltas added, rounded once to the kernel's dtype."""
    return (kernel.astype(jnp.float32) + total).astype(kernel.dtype)


def _add_part(kernel: jax.Array, total: jax.Array | None, part: tuple) -> jax.Array:
    """The sum of a kernel's deltas with one more (a, b, scale); None stands for none yet."""
    if total is None:
        total = jnp.zeros_like(kernel, jnp.float32)
    return add_delta(total, *part)


class DeltaSum:
    """The float32 sum of the deltas of adapters that come one after another, so that none has to be read again.

    It is kept in the host's memory. The same adapters in the same order give the bits of `merge_adapters`.
    """

    def __init__(self, params: dict):
        """Args:
        params: the base's tree.
        """
        self._params = params
        self._totals: dict[tuple[str, str], jax.Array] = {}

    def add(self, lora: dict, scale: float) -> None:
        """Adds `scale * a @ b` of an adapter.

        Raises:
          ValueError: it is for other kernels.
        """
        for (module, name), (part,) in _by_projection([(lora, scale)]).items():
            kernel = _adapted_kernel(self._params, module, name, part)
            total = self._totals.pop((module, name), None)
            total = None if total is None else _beside(kernel, total)
            self._totals[module, name] = _in_host_memory(_add_part(kernel, total, part))

    def merged(self) -> dict:
        """The base with the sum added, rounded once to each kernel's dtype."""
        merged = _copied(self._params)
        for (module, name), total in self._totals.items():
            entry = merged["layers"][module][name]
            added = apply_delta(entry["kernel"], _beside(entry["kernel"], total))
            merged["layers"][module][name] = {**entry, "kernel": added}
        return merged


def _beside(kernel: jax.Array, total: jax.Array) -> jax.Array:
    """A sum where its kernel is."""
    return total if total.sharding == kernel.sharding else jax.device_put(total, kernel.sharding)


def _in_host_memory(x: jax.Array) -> jax.Array:
    """The same array, laid out over the devices as it is, in the memory of their hosts; on CPU it is there."""
    if next(iter(x.devices())).platform == "cpu":
        return x
    return jax.device_put(x, x.sharding.with_memory_kind("pinned_host"))


def _copied(params: dict) -> dict:
    """The same tree, in which entries of layers can be replaced."""
    return {**params, "layers": {module: dict(entries) for module, entries in params["layers"].items()}}


def _adapted_kernel(params: dict, module: str, name: str, part: tuple) -> jax.Array:
    """The kernel that (a, b, scale) is for. Raises ValueError if it has another shape, or there is none."""
    entry = params["layers"].get(module, {}).get(name)
    if entry is None or entry["kernel"].shape != _kernel_shape(part):
        found = "no such kernel" if entry is None else f"a kernel of shape {entry['kernel'].shape}"
        raise ValueError(
            f"the model has {found} for {module}.{name}, but the adapter is for one of shape "
            f"{_kernel_shape(part)}; give the model that it was trained on"
        )
    return entry["kernel"]


def _replace_kernels(params: dict, adapters: Sequence[tuple[dict, float]], make: Callable) -> dict:
    """A tree like `params` with `make(kernel, parts)` in place of every adapted kernel."""
    merged = _copied(params)
    for (module, name), parts in _by_projection(adapters).items():
        kernel = _adapted_kernel(params, module, name, parts[0])
        merged["layers"][module][name] = {**merged["layers"][module][name], "kernel": make(kernel, parts)}
    return merged


def _by_projection(adapters: Sequence[tuple[dict, float]]) -> dict[tuple[str, str], tuple[tuple, ...]]:
    """(a, b, scale) of all adapters that have a projection, by (module, name)."""
    found: dict = {}
    for lora, scale in adapters:
        factors = traverse_util.flatten_dict(lora["layers"])
        for *projection, name in factors:
            if name == "a":
                a, b = (factors[*projection, each] for each in "ab")
                found.setdefault(tuple(projection), []).append((a, b, float(scale)))
    for (module, name), parts in found.items():
        shapes = {_kernel_shape(part) for part in parts}
        if len(shapes) > 1:
            raise ValueError(
                f"the adapters are for kernels of different shapes at {module}.{name}: "
                f"{sorted(shapes)}; expected adapters of one model"
            )
    return {key: tuple(parts) for key, parts in found.items()}


def _kernel_shape(part: tuple) -> tuple[int, int, int]:
    """[L, D, F] of the kernel that a part is for."""
    a, b, _ = part
    return (*a.shape[:2], b.shape[2])


def _concatenate(parts: Sequence[tuple]) -> tuple:
    """One a [L, D, sum of R] and b [L, sum of R, F] with the same product; NumPy arrays stay such."""
    arrays = [array for a, b, _ in parts for array in (a, b)]
    library = np if all(isinstance(array, np.ndarray) for array in arrays) else jnp
    a = library.concatenate([a for a, _, _ in parts], axis=2)
    return a, library.concatenate([scale * b for _, b, scale in parts], axis=1)


def compose_lora(adapters: Sequence[tuple[dict, float]]) -> dict:
    """All adapters as one, concatenated along the rank; its scale is 1.

    Args:
      adapters: (adapter, scale); targets and ranks may differ.

    Raises:
      ValueError: they are for kernels of different shapes.
    """
    joined = {projection: _concatenate(parts) for projection, parts in _by_projection(adapters).items()}
    return _lora_tree({projection: {"a": a, "b": b} for projection, (a, b) in joined.items()})


def recompress_lora(lora: dict, rank: int) -> tuple[dict, dict]:
    """The best approximation of an adapter by one of lower rank: a truncated SVD of every layer's `a @ b`.

    The product itself is never formed. Projections of this rank or a lower one are not changed.

    Returns:
      the adapter, float32 NumPy arrays where it was changed; and the relative Frobenius error,
      {"overall": error, "modules": {"self_attn.q_proj": error over all its layers}}.

    Raises:
      ValueError: `rank` is below 1.
    """
    if rank < 1:
        raise ValueError(f"got rank {rank} to recompress to, expected at least 1")
    factors, whole, lost = {}, {}, {}
    for (module, name), ((a, b, _),) in _by_projection([(lora, 1.0)]).items():
        left, left_core = np.linalg.qr(np.asarray(a, np.float64))  # [L, D, Q], [L, Q, R]
        right, right_core = np.linalg.qr(np.asarray(b, np.float64).swapaxes(1, 2))  # [L, F, P], [L, P, R]
        u, values, v = np.linalg.svd(left_core @ right_core.swapaxes(1, 2), full_matrices=False)
        if a.shape[2] > rank:
            root = np.sqrt(values[:, :rank])  # half of every singular value to each side
            a = ((left @ u[:, :, :rank]) * root[:, None, :]).astype(np.float32)
            b = (root[:, :, None] * (v[:, :rank] @ right.swapaxes(1, 2))).astype(np.float32)
        factors[module, name] = {"a": a, "b": b}
        whole[f"{module}.{name}"] = np.sum(values**2)
        lost[f"{module}.{name}"] = np.sum(values[:, rank:] ** 2)
    modules = {name: _relative(lost[name], whole[name]) for name in whole}
    return _lora_tree(factors), {"overall": _relative(sum(lost.values()), sum(whole.values())), "modules": modules}


def _relative(lost: float, whole: float) -> float:
    """Relative norm from squared norms; nothing lost of nothing is 0."""
    return float(np.sqrt(lost / whole)) if lost else 0.0


def delta_norms(lora: dict, scale: float) -> dict[str, float]:
    """Frobenius norm of `scale * a @ b` over all layers, {"self_attn.q_proj": norm}, without forming the product."""
    norms = {}
    for (module, name), ((a, b, _),) in _by_projection([(lora, scale)]).items():
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # |a b|^2 = trace(a^T a b b^T); rounding can take a product that cancels below 0.
        squared = np.sum((a.swapaxes(1, 2) @ a) * (b @ b.swapaxes(1, 2)))
        norms[f"{module}.{name}"] = abs(scale) * float(np.sqrt(max(squared, 0.0)))
    return norms


def parameter_count(tree: dict) -> int:
    """Number of scalars in a tree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
