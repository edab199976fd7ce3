"""Models of one base side by side: what was written into each, how they differ in what they say and answer.

    python -m selfparam_jax.compare A B [C ...]

A *delta* is what a contender's kernel has over the base's. All that is computed of it comes from its singular value
decomposition, so an adapter of rank R costs R x R matrices and the delta itself is never formed.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax import evaluate
from selfparam_jax.lora import MODULES
from selfparam_jax.model import Decoder, apply_head, head_weight
from selfparam_jax.objective import kl_from_logits
from selfparam_jax.prompts import Prompt

OVERLAP_RANK = 8  # subspaces are compared up to this many directions
RIGHT_F1 = 0.5  # an answer with at least this token F1 counts as right
# Singular values below this share of the largest are what rounding leaves of float32 kernels.
NEGLIGIBLE = 1e-6
CHUNK = 64  # positions whose logits, of all contenders, are held at a time


# --- deltas -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Factors:
    """A delta [D, F] = left @ diag(values) @ right.T, its singular value decomposition in float64.

    left, right: [D, R] and [F, R], orthonormal columns: directions of the kernel's input and of its output.
    values: [R], falling; those that are negligible are left out, so R is the delta's rank.
    """

    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
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

    In float64 that resolves singular values down to 1e-8 of the largest, more than float32 kernels hold.

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
        raise ValueError("got values that are not finite, expected numbers; use a checkpoint from before they arose")
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


@dataclasses.dataclass(frozen=True)
class Contender:
    """One of the models that are compared.

    Attributes:
      name: what the user called it.
      factors: module name and layer -> the delta of that kernel.
      variables: for `model.Decoder` with lora_scale 1.
      outside: parameters other than the kernels of `lora.MODULES` that are not the base's: path -> Frobenius
        norms of the difference and of the base's parameter.
      notes: what a reader must know about it.
      predictions: records of predictions.jsonl, or None.
    """

    name: str
    factors: Callable[[str, int], Factors]
    variables: dict
    outside: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predictions: list[dict] | None = None


def kernels_of(params: dict) -> list[tuple[str, int]]:
    """Module and layer of every kernel that can have a delta."""
    layers = len(params["layers"]["self_attn"]["q_proj"]["kernel"])
    return [(module, layer) for module in MODULES for layer in range(layers)]


def kernel_at(params: dict, module: str, layer: int) -> np.ndarray:
    """The kernel [D, F] of one layer, float64."""
    return np.asarray(params["layers"][MODULES[module]][module]["kernel"][layer]).astype(np.float64)


def measure_deltas(
    contenders: Sequence[Contender], params: dict, progress: Callable[[], object] = lambda: None
) -> tuple[list[list[dict]], dict[tuple[int, int], list[dict]]]:
    """Deltas of all contenders and of all pairs, kernel by kernel.

    Args:
      params: the base's.
      progress: called after every kernel.

    Returns:
      per contender: a record per kernel, {"module", "layer", "kernel_norm", "norm", "relative", "rank",
      "effective_rank"}; per pair of indices: a record per kernel, {"module", "layer", "inner", "cosine",
      "directions", "overlap_in", "overlap_out", "chance_in", "chance_out"}. What has no value (an angle with a
      delta of zero) is None.

    Raises:
      ValueError: a delta is not finite; says whose and where.
    """
    alone: list[list[dict]] = [[] for _ in contenders]
    together = {pair: [] for pair in itertools.combinations(range(len(contenders)), 2)}
    for module, layer in kernels_of(params):
        place = {"module": module, "layer": layer}
        kernel_norm = float(np.linalg.norm(kernel_at(params, module, layer)))
        deltas = []
        for contender, records in zip(contenders, alone, strict=True):
            try:
                delta = contender.factors(module, layer)
            except ValueError as error:
                raise ValueError(f"{contender.name}, {module} of layer {layer}: {error}") from error
            deltas.append(delta)
            sizes = {"kernel_norm": kernel_norm, "norm": delta.norm, "relative": _ratio(delta.norm, kernel_norm)}
            records.append({**place, **sizes, "rank": delta.rank, "effective_rank": delta.effective_rank})
        for (i, j), records in together.items():
            records.append({**place, **compare_factors(deltas[i], deltas[j])})
        progress()
    return alone, together


def compare_factors(one: Factors, other: Factors) -> dict:
    """How two deltas of one kernel lie to each other; see `measure_deltas`."""
    inner = inner_product(one, other)
    directions = min(one.rank, other.rank, OVERLAP_RANK)
    record = {"inner": inner, "cosine": _ratio(inner, one.norm * other.norm), "directions": directions}
    for side, x, y in (("in", one.left, other.left), ("out", one.right, other.right)):
        overlap = subspace_overlap(x[:, :directions], y[:, :directions]) if directions else None
        record |= {f"overlap_{side}": overlap, f"chance_{side}": directions / len(x) if directions else None}
    return record


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def total_delta(records: Sequence[dict]) -> dict:
    """Several kernels of one contender as one: {"norm", "relative", "effective_rank"}, the last a mean."""
    norm, kernels = (float(np.linalg.norm([record[name] for record in records])) for name in ("norm", "kernel_norm"))
    ranks = [record["effective_rank"] for record in records if record["rank"]]
    mean = float(np.mean(ranks)) if ranks else 0.0
    return {"norm": norm, "relative": _ratio(norm, kernels), "effective_rank": mean}


def total_pair(records: Sequence[dict], norm: float, other_norm: float) -> dict:
    """Several kernels of a pair as one: the cosine of all elements; means of the overlaps and of what chance gives.

    Args:
      norm, other_norm: of the two contenders over the same kernels.
    """
    found = {"cosine": _ratio(sum(record["inner"] for record in records), norm * other_norm)}
    for name in ("overlap_in", "overlap_out", "chance_in", "chance_out"):
        values = [record[name] for record in records if record[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found


# --- distributions ------------------------------------------------------------------------------------


@jax.jit
def _kl_sums(states, heads, used):
    """KL(i || j) [M, M] summed over the first `used` of N positions; M states [1, N, D], M heads [V, D]."""
    states = [jnp.pad(each[0], ((0, -each.shape[1] % CHUNK), (0, 0))) for each in states]

    def body(n, total):
        parts = [lax.dynamic_slice_in_dim(each, n * CHUNK, CHUNK) for each in states]
        logits = [apply_head(part, head) for part, head in zip(parts, heads, strict=True)]
        valid = n * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32) < used
        sums = [jnp.sum(jnp.where(valid, kl_from_logits(one, other), 0.0)) for one in logits for other in logits]
        return total + jnp.stack(sums).reshape(total.shape)

    return lax.fori_loop(0, (used + CHUNK - 1) // CHUNK, body, jnp.zeros((len(states),) * 2, jnp.float32))


def divergences(
    model: Decoder, variables: Sequence[dict], prompt: Prompt, texts: Iterable[str]
) -> tuple[np.ndarray, int]:
    """Mean KL(i || j) per token between models on some texts, each with its own head.

    Args:
      variables: of each model.
      texts: read as `evaluate.packed_texts` gives them.

    Returns:
      float64 [models, models], row i the model whose distribution is weighted by; and the number of tokens.

    Raises:
      ValueError: there is nothing to predict in the texts.
    """
    sums, count = np.zeros((len(variables),) * 2), 0
    heads = tuple(head_weight(each["params"]) for each in variables)
    for rows, at in evaluate.packed_texts(prompt, list(texts)):
        arrays = (rows.input_ids, rows.positions, rows.segments, at.index)
        states = tuple(evaluate.read_states(model, each, *arrays) for each in variables)
        sums += np.asarray(_kl_sums(states, heads, at.used[0]), np.float64)
        count += int(at.used[0])
    # Never negative; in float32 the sum of two equal distributions' terms may be, by a hair.
    return np.maximum(sums / count, 0.0), count


# --- answers ------------------------------------------------------------------------------------------


def _question_of(record: dict) -> tuple[str, str, str]:
    return record["context"], record["question"], json.dumps(record["answers"])


def _by_context(values: Iterable[tuple[str, object]]) -> list[list]:
    groups: dict[str, list] = {}
    for context, value in values:
        groups.setdefault(context, []).append(value)
    return list(groups.values())


def score_answers(predictions: Sequence[dict]) -> dict | None:
    """`evaluate.summarize` of the injected model's answers."""
    return evaluate.summarize(_by_context((record["context"], record["injected"]) for record in predictions))


def pair_answers(one: Sequence[dict], other: Sequence[dict]) -> list[tuple[dict, dict]]:
    """Records about the same question, in an order that does not depend on that of the files.

    Raises:
      ValueError: the two were not asked the same questions, or not with the same gold answers.
    """
    one, other = sorted(one, key=_question_of), sorted(other, key=_question_of)
    mine, theirs = [_question_of(record) for record in one], [_question_of(record) for record in other]
    if mine != theirs:
        shared = len(set(mine) & set(theirs))
        raise ValueError(
            f"they were asked different questions: got {len(mine)} and {len(theirs)}, {shared} of them the same; for "
            "a paired comparison ask both the same"
        )
    return list(zip(one, other, strict=True))


def compare_answers(one: Sequence[dict], other: Sequence[dict]) -> dict:
    """The second's F1 less the first's, and the questions whose answer became right or wrong.

    Right is a token F1 of at least RIGHT_F1. The interval is paired: contexts are resampled, then their questions,
    the same for both, which is the bootstrap of the differences.

    Returns:
      {"f1", "f1_ci95", "gained", "lost"}, the last two lists of {"context", "question", "answers", "before",
      "after"}.

    Raises:
      ValueError: different questions, see `pair_answers`.
    """
    pairs = pair_answers(one, other)
    changes = [(a["context"], b["injected"]["f1"] - a["injected"]["f1"]) for a, b in pairs]
    groups = _by_context(changes)
    found = {"f1": float(np.mean([np.mean(group) for group in groups]))}
    found |= {"f1_ci95": evaluate.bootstrap_interval(groups), "gained": [], "lost": []}
    for a, b in pairs:
        was, became = (record["injected"]["f1"] >= RIGHT_F1 for record in (a, b))
        if was != became:
            asked = {name: a[name] for name in ("context", "question", "answers")}
            answers = {"before": a["injected"]["answer"], "after": b["injected"]["answer"]}
            found["gained" if became else "lost"].append(asked | answers)
    return found
