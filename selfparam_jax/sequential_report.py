"""What is left of each context after every injection: sequential.md with a heat map and curves."""

import os
import pathlib

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from selfparam_jax import files
from selfparam_jax.report import save_figure, styled

_CURVES = {"just_injected": "just injected", "all_so_far": "all so far", "not_yet": "not yet injected"}
_COLOURS = {"just_injected": "#009E73", "all_so_far": "#0072B2", "not_yet": "#AEB4BC"}


def write_report(workdir: str | os.PathLike, found: dict) -> None:
    """Writes sequential.md, matrix.png and curves.png into a work directory.

    Args:
      found: what `sequential.summarize_courses` says of the sequences that are finished.
    """
    folder = pathlib.Path(workdir)
    with styled():
        save_figure(_draw_matrices(found), folder / "matrix.png")
        save_figure(_draw_curves(found), folder / "curves.png")
    files.write_text(folder / "sequential.md", _markdown(found))


def _perplexity_change(found: dict) -> np.ndarray | None:
    """Per sequence and number of injections, relative to the base; None where it is not measured."""
    if found["perplexity_after"][0][0] is None:
        return None
    perplexity = np.asarray(found["perplexity_after"])
    return perplexity / perplexity[:, :1] - 1


def _draw_matrices(found: dict) -> Figure:
    """F1 of every context after every injection, one panel per sequence."""
    matrices = [np.asarray(matrix) for matrix in found["f1"]["matrices"]]
    figure = Figure(figsize=(4.6 * len(matrices) + 0.6, 4.9), layout="constrained")
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for number, (matrix, panel) in enumerate(zip(matrices, panels, strict=True), start=1):
        image = panel.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        # The steps of the diagonal: to the left of it is what has been injected.
        steps = np.arange(matrix.shape[1] + 1)
        panel.step(steps - 0.5, steps + 0.5, where="post", color="white", linewidth=1)
        panel.set(xlabel="context, in order of injection", ylabel="injections", title=f"sequence {number}")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=panels.tolist(), label="F1", shrink=0.8)
    return figure


def _draw_curves(found: dict) -> Figure:
    """F1 over the injections, and drift."""
    figure = Figure(figsize=(9.33, 3.6), layout="constrained")
    scores, general = figure.subplots(1, 2)
    for name, label in _CURVES.items():
        curves = np.asarray([curve[name] for curve in found["f1"]["curves"]], np.float64)  # None becomes NaN
        middle = curves.mean(axis=0)
        scores.plot(middle, color=_COLOURS[name], label=label, marker="o", markersize=3)
        if len(curves) > 1:
            scores.fill_between(
                range(len(middle)),
                curves.min(axis=0),
                curves.max(axis=0),
                color=_COLOURS[name],
                alpha=0.2,
                linewidth=0,
            )
    scores.set(xlabel="injections", ylabel="F1 on held-out questions", ylim=(0, 1))
    scores.legend()
    change = _perplexity_change(found)
    if change is not None:
        general.plot(100 * change.T, color="#D55E00", marker="o", markersize=3)
        general.set(xlabel="injections", ylabel="perplexity on general text, %")
    for panel in (scores, general):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _markdown(found: dict) -> str:
    lines = [
        "# Sequential injection",
        "",
        f"{len(found['entries'])} sequences of {len(found['entries'][0])} contexts.",
        "",
    ]
    lines += ["| | F1 | log-likelihood of the answer |", "| --- | --- | --- |"]
    rows = {
        "before": "just before its injection",
        "just_injected": "just injected",
        "final": "after the last injection",
        "retention": "retention (final / just injected)",
        "forgetting": "average forgetting",
        "backward_transfer": "backward transfer",
    }
    for name, label in rows.items():
        values = [found[score][name] for score in ("f1", "log_likelihood")]
        if name == "retention":
            values[1] = None  # a ratio of logarithms says nothing
        lines.append(f"| {label} | " + " | ".join("" if value is None else f"{value:.3f}" for value in values) + " |")
    seconds = [second for course in found["seconds"] for second in course]
    lines += ["", f"An injection took {np.median(seconds):.0f} s (median)."]
    change = _perplexity_change(found)
    if change is not None:
        kl = np.mean([course[-1] for course in found["kl"]])
        lines.append(f"Perplexity on general text {change[:, -1].mean():+.1%}, KL to the base {kl:.3f}.")
    lines += ["", "![F1 of every context after every injection](matrix.png)", "", "![curves](curves.png)", ""]
    return "\n".join(lines)
