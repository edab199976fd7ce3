"""Deltas of all candidates and of all pairs, kernel by kernel and in total."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from selfparam_jax.compare.candidates import Candidate, kernel_at, kernels_of
from selfparam_jax.compare.factors import compare_factors, ratio


def measure_deltas(
    candidates: Sequence[Candidate], params: dict, progress: Callable[[], object] = lambda: None
) -> tuple[list[list[dict]], dict[tuple[int, int], list[dict]]]:
    """Deltas of all candidates and of all pairs, kernel by kernel.

    Args:
      candidates: models of one base.
      params: the base's parameters.
      progress: called after every kernel.

    Returns:
      For each candidate a list with one record per kernel: {"module", "layer", "kernel_norm", "norm", "relative",
      "rank", "effective_rank"}. For each pair of indices a list with one record per kernel: {"module", "layer",
      "inner", "cosine", "directions", "overlap_in", "overlap_out", "chance_in", "chance_out"}. A number that is not
      defined (an angle with a delta of zero) is None.

    Raises:
      ValueError: a delta is not finite; says whose and where.
    """
    alone: list[list[dict]] = [[] for _ in candidates]
    together = {pair: [] for pair in itertools.combinations(range(len(candidates)), 2)}
    for module, layer in kernels_of(params):
        place = {"module": module, "layer": layer}
        kernel_norm = float(np.linalg.norm(kernel_at(params, module, layer)))
        deltas = []
        for candidate, records in zip(candidates, alone, strict=True):
            try:
                delta = candidate.factors(module, layer)
            except ValueError as error:
                raise ValueError(f"{candidate.name}, {module} of layer {layer}: {error}") from error
            deltas.append(delta)
            sizes = {"kernel_norm": kernel_norm, "norm": delta.norm, "relative": ratio(delta.norm, kernel_norm)}
            records.append({**place, **sizes, "rank": delta.rank, "effective_rank": delta.effective_rank})
        for (i, j), records in together.items():
            records.append({**place, **compare_factors(deltas[i], deltas[j])})
        progress()
    return alone, together


def total_delta(records: Sequence[dict]) -> dict:
    """Treats several kernels of one candidate as one.

    Args:
      records: of one candidate, from `measure_deltas`.

    Returns:
      {"norm", "relative", "effective_rank"}; the last is the mean over the kernels that have a delta.
    """
    norm, kernels = (float(np.linalg.norm([record[name] for record in records])) for name in ("norm", "kernel_norm"))
    ranks = [record["effective_rank"] for record in records if record["rank"]]
    mean = float(np.mean(ranks)) if ranks else 0.0
    return {"norm": norm, "relative": ratio(norm, kernels), "effective_rank": mean}


def total_pair(records: Sequence[dict], norm: float, other_norm: float) -> dict:
    """Treats several kernels of a pair as one.

    Args:
      records: of one pair, from `measure_deltas`.
      norm: of the first candidate's deltas of these kernels.
      other_norm: of the second candidate's.

    Returns:
      {"cosine", "overlap_in", "overlap_out", "chance_in", "chance_out"}: the cosine of all elements, and means of
      the overlaps and of their expectations for random directions.
    """
    found = {"cosine": ratio(sum(record["inner"] for record in records), norm * other_norm)}
    for name in ("overlap_in", "overlap_out", "chance_in", "chance_out"):
        values = [record[name] for record in records if record[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found
