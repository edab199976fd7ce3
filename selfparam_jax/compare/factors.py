"""A delta of one kernel as its singular value decomposition, and what is computed from it.

A *delta* is a candidate's kernel less the base's. An adapter of rank R costs R x R matrices; its delta is never
formed.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

OVERLAP_RANK = 8  # subspaces are compared up to this many directions
# Smaller singular values, relative to the largest, are rounding errors of float32 kernels.
NEGLIGIBLE = 1e-6


@dataclasses.dataclass(frozen=True)
class Factors:
    """A delta [D, F] = left @ diag(values) @ right.T, its singular value decomposition in float64.

    Attributes:
      left: [D, R], orthonormal columns: directions of the kernel's input.
      values: [R], falling; negligible ones are left out, so R is the delta's rank.
      right: [F, R], orthonormal columns: directions of the kernel's output.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
        """R."""
        return len(self.values)

    @property
    def norm(self) -> float:
        """Frobenius norm."""
        return float(np.linalg.norm(self.values))

    @property
    def effective_rank(self) -> float:
        """exp(entropy of the singular values as shares of their sum) (Roy and Vetterli 2007); 0 for no delta."""
        if not self.rank:
            return 0.0
        shares = self.values / self.values.sum()
        return float(np.exp(-np.sum(shares * np.log(shares))))


def factor_low_rank(a: np.ndarray, b: np.ndarray) -> Factors:
    """Factors of a @ b for a [D, R], b [R, F]; exact, without the product.

    Raises:
      ValueError: a value is not finite.
    """
    left, upper = np.linalg.qr(_finite(a))
    right, lower = np.linalg.qr(_finite(b).T)
    inner_left, values, inner_right = np.linalg.svd(upper @ lower.T, full_matrices=False)
    return _without_negligible(left @ inner_left, values, lambda kept, _: right @ inner_right.T[:, kept])


def factor_dense(delta: np.ndarray) -> Factors:
    """Factors of a delta [D, F], from the eigenvectors of its smaller Gram matrix.

    In float64 this resolves singular values down to 1e-8 of the largest, more than float32 kernels hold.

    Raises:
      ValueError: a value is not finite.
    """
    delta = _finite(delta)
    if delta.shape[0] > delta.shape[1]:
        turned = factor_dense(delta.T)
        return Factors(turned.right, turned.values, turned.left)
    squares, left = np.linalg.eigh(delta @ delta.T)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    return _without_negligible(left[:, ::-1], values, lambda kept, left: delta.T @ left / values[None, kept])


def _finite(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if not np.isfinite(x).all():
        raise ValueError("got values that are not finite, expected finite numbers; use an earlier checkpoint")
    return x


def _without_negligible(left, values, right_of: Callable) -> Factors:
    kept = slice(0, int(np.sum(values > NEGLIGIBLE * values[0])))
    left = left[:, kept]
    return Factors(left, values[kept], right_of(kept, left))


def inner_product(one: Factors, other: Factors) -> float:
    """Sum of the products of two deltas' elements."""
    inputs, outputs = one.left.T @ other.left, one.right.T @ other.right
    return float(np.sum(one.values[:, None] * inputs * other.values[None] * outputs))


def subspace_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared cosine of the principal angles between the spans of orthonormal columns [D, K] and [D, K].

    1 for the same subspace, 0 for orthogonal ones, K / D on average for random ones.
    """
    return float(np.sum((one.T @ other) ** 2) / one.shape[1])


def compare_factors(one: Factors, other: Factors) -> dict:
    """How two deltas of one kernel lie to each other; a record as `deltas.measure_deltas` describes it."""
    inner = inner_product(one, other)
    directions = min(one.rank, other.rank, OVERLAP_RANK)
    record = {"inner": inner, "cosine": ratio(inner, one.norm * other.norm), "directions": directions}
    for side, x, y in (("in", one.left, other.left), ("out", one.right, other.right)):
        overlap = subspace_overlap(x[:, :directions], y[:, :directions]) if directions else None
        record |= {f"overlap_{side}": overlap, f"chance_{side}": directions / len(x) if directions else None}
    return record


def ratio(part: float, whole: float) -> float | None:
    """part / whole, or None if the whole is 0."""
    return part / whole if whole else None
