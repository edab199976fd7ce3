"""How much of each document is left after every injection of a sequence: sequential.md with a heat map and curves."""

import os
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from selfparam_jax.distributed import files
from selfparam_jax.reports.style import NO_PICTURES, WIDTH, new_figure, save_figures
from selfparam_jax.reports.tables import counted, markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CURVES = {"just_injected": "just injected", "all_so_far": "all so far", "not_yet": "not yet injected"}
_COLOURS = {"just_injected": "#009E73", "all_so_far": "#0072B2", "not_yet": "#AEB4BC"}
_ROWS = {
    "before": "just before its injection",
    "just_injected": "just injected",
    "final": "after the last injection",
    "retention": "retention (final / just injected)",
    "forgetting": "average forgetting",
    "backward_transfer": "backward transfer",
}


def write_report(workdir: str | os.PathLike, found: dict) -> None:
    """Writes sequential.md, matrix.png and curves.png into a work directory.

    Without matplotlib the pictures are left out, and sequential.md says how to install it.

    Args:
      workdir: the directory, which must exist.
      found: the record of the finished sequences, as `sequential` summarizes them: "entries", "seconds", "kl",
        "perplexity_after", and for each score ("f1", "log_likelihood") its matrices, curves and means.
    """
    folder = pathlib.Path(workdir)
    drawings = {"matrix.png": lambda: _draw_matrices(found), "curves.png": lambda: _draw_curves(found)}
    pictures = save_figures(folder, drawings)
    files.write_text(folder / "sequential.md", _markdown(found, pictures))


def _perplexity_change(found: dict) -> np.ndarray | None:
    """Change relative to the base [sequences, injections + 1]; None if it was not measured."""
    if found["perplexity_after"][0][0] is None:
        return None
    perplexity = np.asarray(found["perplexity_after"])
    return perplexity / perplexity[:, :1] - 1


def _draw_matrices(found: dict) -> "Figure":
    """F1 of every document after every injection, one panel per sequence."""
    from matplotlib.ticker import MaxNLocator

    matrices = [np.asarray(matrix, np.float64) for matrix in found["f1"]["matrices"]]  # None becomes NaN
    figure = new_figure(4.6 * len(matrices) + 0.6, 4.9)
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    for number, (matrix, panel) in enumerate(zip(matrices, panels, strict=True), start=1):
        image = panel.imshow(matrix, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        # Steps along the diagonal: to their left is what has been injected.
        steps = np.arange(matrix.shape[1] + 1)
        panel.step(steps - 0.5, steps + 0.5, where="post", color="white", linewidth=1)
        panel.set(xlabel="document, in order of injection", ylabel="injections", title=f"sequence {number}")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=panels.tolist(), label="F1", shrink=0.8)
    return figure


def _draw_curves(found: dict) -> "Figure":
    """F1 over the injections, and drift."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(WIDTH, 3.6)
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


def _markdown(found: dict, pictures: bool) -> str:
    rows = []
    for name, label in _ROWS.items():
        values = [found[score][name] for score in ("f1", "log_likelihood")]
        if name == "retention":
            values[1] = None  # a ratio of logarithms says nothing
        rows.append((label, *("" if value is None else f"{value:.3f}" for value in values)))
    seconds = [second for sequence in found["seconds"] for second in sequence]
    text = f"An injection took {np.median(seconds):.0f} s (median)."
    change = _perplexity_change(found)
    if change is not None:
        kl = np.mean([sequence[-1] for sequence in found["kl"]])
        text += f"\nPerplexity on general text {change[:, -1].mean():+.1%}, KL to the base {kl:.3f}."
    parts = [
        "# Sequential injection",
        f"{counted(len(found['entries']), 'sequence')} of {counted(len(found['entries'][0]), 'document')}.",
        markdown_table(("", "F1", "log-likelihood of the answer"), rows),
        text,
        "![F1 of every document after every injection](matrix.png)" if pictures else NO_PICTURES,
        "![curves](curves.png)" if pictures else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
