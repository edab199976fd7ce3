"""What the matrices of a sequential job say: retention, forgetting, backward transfer."""

from collections.abc import Sequence

import numpy as np


def summarize_matrix(matrix: np.ndarray) -> dict:
    """What a matrix of scores says, [N + 1, N]: row i after i injections, column j context j.

    Returns:
      "just_injected": mean of each context's score right after its injection; "final": mean after the last one;
      "retention": their ratio; "forgetting": mean over all but the last context of its best score from its injection
      on, minus its final one (Chaudhry et al. 2018); "backward_transfer": mean over them of the final score minus the
      one right after injection (Lopez-Paz and Ranzato 2017); "before": mean of each context's score just before its
      injection; "curves": per number of injections the means just injected, all so far, not yet injected.
    """
    count = matrix.shape[1]
    just = np.asarray([matrix[j + 1, j] for j in range(count)])
    final, early = matrix[-1], range(count - 1)
    drops = [matrix[j + 1 :, j].max() - final[j] for j in early]
    return {
        "just_injected": float(just.mean()),
        "final": float(final.mean()),
        "retention": float(final.mean() / just.mean()) if just.mean() > 0 else None,
        "forgetting": float(np.mean(drops)) if drops else 0.0,
        "backward_transfer": float(np.mean([final[j] - just[j] for j in early])) if count > 1 else 0.0,
        "before": float(np.mean([matrix[j, j] for j in range(count)])),
        "curves": {
            "just_injected": [None, *map(float, just)],
            "all_so_far": [None, *(float(matrix[i, :i].mean()) for i in range(1, count + 1))],
            "not_yet": [*(float(matrix[i, i:].mean()) for i in range(count)), None],
        },
    }


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
            "matrices": [matrix.tolist() for matrix in matrices],
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
