"""Checkpoints that hold several projections in one tensor: split when they are read, fused when they are written.

So are adapters of such checkpoints.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.parameters import FUSED, fused_tensors, parameter_table


def split_fused(source: Any, config: ModelConfig) -> Any:
    """A source of tensors under the names of the parameter table, whatever the checkpoint fuses."""
    return _Split(source, config) if config.fused_projections else source


class _Split:
    """A source in which each part of a fused tensor is a tensor of its own."""

    def __init__(self, source: Any, config: ModelConfig):
        self._source = source
        rows = {name: entry.hf_shape[0] for entry in parameter_table(config) for name in entry.hf_names()}
        self._places: dict[str, tuple[str, int, int]] = {}  # of a part: the fused tensor, its first row, its rows
        held = set(source.names())
        for fused, parts in fused_tensors(config).items():
            if fused not in held:
                continue  # the check against the table names what is missing
            whole, expected = source.shape(fused), sum(rows[part] for part in parts)
            if whole[0] != expected:
                raise ValueError(
                    f"tensor {fused!r} has shape {tuple(whole)}, expected {expected} rows for {', '.join(parts)}. "
                    "Check that config.json belongs to these weights."
                )
            start = 0
            for part in parts:
                self._places[part] = fused, start, rows[part]
                start += rows[part]
        self._fused = {fused for fused, _, _ in self._places.values()}

    def names(self) -> list[str]:
        return [name for name in self._source.names() if name not in self._fused] + list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._places:
            return tuple(self._source.shape(name))
        fused, _, rows = self._places[name]
        return (rows, *self._source.shape(fused)[1:])

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        if name not in self._places:
            return self._source.read(name, index)
        fused, first, rows = self._places[name]
        start, stop, _ = index[0].indices(rows)
        return self._source.read(fused, (slice(first + start, first + stop), *index[1:]))


def fuse_sizes(sizes: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Sizes of the tensors of a checkpoint, from those of the parameter table."""
    return dict(fuse(sizes.items(), config, sum))


def fuse_shapes(shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a checkpoint, from those of the parameter table, in the order of `fuse`."""
    return dict(fuse(shapes.items(), config, lambda parts: (sum(part[0] for part in parts), *parts[0][1:])))


def fuse(
    tensors: Iterable[tuple[str, Any]], config: ModelConfig, join: Callable[[list], Any] = np.concatenate
) -> Iterator[tuple[str, Any]]:
    """Tensors of the parameter table as the checkpoint holds them; parts wait in memory for each other."""
    wholes = {part: (fused, parts) for fused, parts in fused_tensors(config).items() for part in parts}
    waiting: dict[str, Any] = {}
    for name, values in tensors:
        if name not in wholes:
            yield name, values
            continue
        fused, parts = wholes[name]
        waiting[name] = values
        if all(part in waiting for part in parts):
            yield fused, join([waiting.pop(part) for part in parts])


Pairs = dict[str, dict[str, np.ndarray]]  # by projection, {"a": [L, D, R], "b": [L, R, F]}


def fuse_factors(pairs: Pairs, outputs: dict[str, int]) -> Pairs:
    """An adapter of separate projections as one of the fused ones.

    `a` of the parts stand beside each other, and `b` has a block for each part, so that ranks add up. Parts with the
    same `a` share its rank too.

    Args:
      pairs: of some of the projections.
      outputs: F of every projection.

    Returns:
      the pairs by the names that the checkpoint has.
    """
    pairs = dict(pairs)
    for fused, parts in FUSED.items():
        own = {part: pairs.pop(part) for part in parts if part in pairs}
        if not own:
            continue
        first = next(iter(own.values()))["a"]
        shared = all(np.array_equal(pair["a"], first) for pair in own.values())
        a = first if shared else np.concatenate([pair["a"] for pair in own.values()], axis=2)
        b = np.zeros((*a.shape[::2], sum(outputs[part] for part in parts)), a.dtype)
        row = column = 0
        for part in parts:
            if part in own:
                rank = own[part]["b"].shape[1]
                b[:, row : row + rank, column : column + outputs[part]] = own[part]["b"]
                row += 0 if shared else rank
            column += outputs[part]
        pairs[fused] = {"a": a, "b": b}
    return pairs


def split_factors(pairs: Pairs, outputs: dict[str, int]) -> Pairs:
    """The inverse: an adapter of fused projections as one of separate ones.

    What is zero in a part's block of `b`, in all layers, is left out of the part. An adapter that was never trained,
    whose `b` is zero everywhere, is kept whole.

    Args:
      pairs: by the names that the checkpoint has.
      outputs: F of every projection.

    Returns:
      the pairs by projection.
    """
    pairs = dict(pairs)
    for fused in FUSED.keys() & pairs.keys():
        pair, column = pairs.pop(fused), 0
        for part in FUSED[fused]:
            b = pair["b"][:, :, column : column + outputs[part]]
            column += outputs[part]
            used = b.any(axis=(0, 2)) if pair["b"].any() else np.ones(b.shape[1], bool)
            if used.any():
                pairs[part] = {
                    name: np.ascontiguousarray(x) for name, x in (("a", pair["a"][:, :, used]), ("b", b[:, used]))
                }
    return pairs
