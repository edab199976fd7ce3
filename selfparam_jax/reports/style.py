"""How all pictures look, and how they are written. Without matplotlib (the extra `report`) there are none."""

import contextlib
import importlib.util
import pathlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from selfparam_jax.distributed import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A line of every report that was written without its pictures.
NO_PICTURES = "Pictures are left out because matplotlib is missing: `pip install 'selfparam-jax[report]'`."

INK, FAINT, GRID = "#22272E", "#6B7280", "#E5E7EB"
# Okabe-Ito colours, and three more where a role has many systems, which take them in turn.
COLOURS = {
    "lower bound": ("#AEB4BC", "#6B7280"),
    "upper bound": ("#E69F00", "#D55E00"),
    "candidate": ("#0072B2", "#56B4E9", "#000000"),
    "baseline": ("#009E73", "#CC79A7", "#F0E442", "#8B5A2B", "#7B4FA3", "#9DC209"),
}
WIDTH, DPI = 9.33, 150  # inches and dots per inch: 1400 pixels

_STYLE = {
    "font.size": 9.5,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "text.color": INK,
    "text.parse_math": False,  # a title with a dollar sign is not a formula
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextlib.contextmanager
def styled() -> Iterator[None]:
    """Gives the figures that are drawn within it our style."""
    import matplotlib

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The default font lacks some scripts; boxes in a label are no reason to have no report.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def new_figure(width: float, height: float, **options) -> "Figure":
    """An empty figure of this size in inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


def titled_figure(title: str, subtitle: str, height: float) -> "Figure":
    """An empty figure with a bold title and a faint line below it, both at the left edge."""
    figure = new_figure(WIDTH, height, dpi=DPI, facecolor="white")
    figure.get_layout_engine().set(rect=(0.01, 0.02, 0.98, 1 - 0.78 / height), wspace=0.06)
    figure.text(0.02, 1 - 0.13 / height, title, fontsize=13.5, fontweight="bold", va="top")
    figure.text(0.02, 1 - 0.44 / height, subtitle, fontsize=9.5, color=FAINT, va="top")
    return figure


def share_axis(axes, end: float = 1.0) -> None:
    """A horizontal axis from 0 to 1 that ends at `end`, with faint lines and nothing at its left."""
    axes.set_xlim(0, end)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"], fontsize=8.5)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=GRID, lw=0.7)
    axes.set_axisbelow(True)


def empty_figure(title: str, subtitle: str) -> "Figure":
    """A picture that says why there is nothing to see. It also replaces the picture of an earlier run."""
    return titled_figure(title, subtitle, 1.2)


def save_figures(folder: pathlib.Path, drawings: Mapping[str, Callable[[], "Figure"]]) -> bool:
    """Draws figures in our style and writes each as a PNG.

    Args:
      folder: where the files go.
      drawings: file name to a function that draws the figure.

    Returns:
      False if matplotlib is missing, so that nothing was drawn or written.
    """
    if not can_draw():
        return False
    with styled():
        for name, draw in drawings.items():
            save_figure(draw(), folder / name)
    return True


def save_figure(figure: "Figure", path: pathlib.Path) -> None:
    """Writes a PNG."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
