"""What the matrices of a sequential job say: retention, forgetting, backward transfer."""

from collections.abc import Sequence

import numpy as np


def summarize_matrix(matrix: np.ndarray) -> dict:
    """What a matrix of scores says, [N + 1, N]: row i after i injections, column j context j.

    A column of NaN is a context without questions; it counts in no mean. A mean of nothing is None.

    Returns:
      "just_injected": mean of each context's score right after its injection; "final": mean after the last one;
      "retention": their ratio; "forgetting": mean over all but the last context of its best score from its injection
      on, minus its final one (Chaudhry et al. 2018); "backward_transfer": mean over them of the final score minus the
      one right after injection (Lopez-Paz and Ranzato 2017); "before": mean of each context's score just before its
      injection; "curves": per number of injections the means just injected, all so far, not yet injected.
    """
    count = matrix.shape[1]
    asked = [j for j in range(count) if not np.isnan(matrix[:, j]).any()]
    just = {j: matrix[j + 1, j] for j in asked}
    final, early = matrix[-1], [j for j in asked if j < count - 1]
    drops = [matrix[j + 1 :, j].max() - final[j] for j in early]
    summary = {
        "just_injected": _mean(list(just.values())),
        "final": _mean([final[j] for j in asked]),
        "forgetting": float(np.mean(drops)) if drops else 0.0,
        "backward_transfer": float(np.mean([final[j] - just[j] for j in early])) if early else 0.0,
        "before": _mean([matrix[j, j] for j in asked]),
        "curves": {
            "just_injected": [None, *(float(just[j]) if j in just else None for j in range(count))],
            "all_so_far": [_mean([matrix[i, j] for j in asked if j < i]) for i in range(count + 1)],
            "not_yet": [_mean([matrix[i, j] for j in asked if j >= i]) for i in range(count + 1)],
        },
    }
    learned = summary["just_injected"]
    return {**summary, "retention": summary["final"] / learned if learned and learned > 0 else None}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def summarize_sequences(done: Sequence[dict]) -> dict:
    """What results.json says about all sequences.

    Args:
      done: what `sequence.run_sequence` gives.

    Returns:
      per score ("f1", "log_likelihood") the matrices and the means of `summarize_matrix` over sequences; drift per
      number of injections; seconds per injection.
    """
    made: dict = {"entries": [sequence["entries"] for sequence in done]}
    for score in ("f1", "log_likelihood"):
        matrices = [np.asarray([row[score] for row in sequence["rows"]], np.float64) for sequence in done]
        summaries = [summarize_matrix(matrix) for matrix in matrices]
        names = ("just_injected", "final", "retention", "forgetting", "backward_transfer", "before")
        made[score] = {
            "matrices": [[row[score] for row in sequence["rows"]] for sequence in done],
            "sequences": [{name: summary[name] for name in names} for summary in summaries],
            "curves": [summary["curves"] for summary in summaries],
            **{name: _mean_known([summary[name] for summary in summaries]) for name in names},
        }
    for name in ("perplexity_after", "kl"):
        made[name] = [[row["drift"][name] for row in sequence["rows"]] for sequence in done]
    made["seconds"] = [[note["seconds"] for note in sequence["notes"]] for sequence in done]
    return made


def _mean_known(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))
