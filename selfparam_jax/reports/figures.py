"""The three pictures of a report: scores, training loss, drift."""

import pathlib
import textwrap
from typing import TYPE_CHECKING

import numpy as np

from selfparam_jax.evaluation.systems import ROLES
from selfparam_jax.reports.results import Results, System, drift_words, losses, running_median
from selfparam_jax.reports.style import COLOURS, FAINT, INK, empty_figure, share_axis, titled_figure
from selfparam_jax.reports.tables import shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SYSTEMS = 6  # bars beside one another
LABELLED_BARS = 48  # more would not be readable beside the documents' titles


def colours_of(results: Results) -> dict[str, str]:
    """A colour for each system's name: by its role, and by its place among the systems of that role."""
    found = {}
    for role in ROLES:
        names = [system.name for system in results.systems if system.role == role]
        found |= {name: COLOURS[role][place % len(COLOURS[role])] for place, name in enumerate(names)}
    return found


# ---------------------------------------------------------------------------------------------- scores


def headline(results: Results) -> str:
    """The candidate's F1 between its bounds, as far as these were measured."""
    lower, candidate, upper = results.first("lower bound"), results.candidate, results.first("upper bound")
    words = f"F1: {lower.label} {results.f1(lower):.2f} → " if lower else "F1: "
    words += f"{candidate.label} {results.f1(candidate):.2f}"
    if results.share is not None:
        words += f", {results.share:.0%} of {upper.label}".replace("%", " %")
    return words


def draw_f1(results: Results) -> "Figure":
    """Mean F1 of every system with its interval; beside it the F1 of each document, if there are several."""
    systems = _drawn(results)
    if results.candidate not in systems:
        return empty_figure("No scores", "The documents have no questions, so nothing was asked.")
    rows = [row for row in results["per_context"] or [] if all(row.get(s.name) is not None for s in systems)]
    labelled = len(rows) > 1 and len(rows) * len(systems) <= LABELLED_BARS
    height = max(4.3, 1.7 + 0.46 * len(rows) * max(1.0, len(systems) / 3)) if labelled else 4.3
    questions, count = results["num_questions"], results["num_contexts"]
    has_bars = any(results.interval(system) for system in systems)
    subtitle = f"{questions} held-out questions on {count} document{'s' * (count != 1)}"
    subtitle += f" · {shorten(pathlib.PurePath(results['model']).name, 40)}"
    subtitle += " · error bars: 95 % interval" if has_bars else ""
    figure = titled_figure(headline(results), subtitle, height)
    if len(rows) <= 1:
        _draw_means(figure.subplots(), results, paired=False)
        return figure
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_means(left, results, paired=True)
    (_draw_bars if labelled else _draw_ranks)(right, results, rows)
    return figure


def _drawn(results: Results) -> list[System]:
    """All systems, or the candidates and their bounds where there are too many; `systems.draw_systems` has all."""
    if len(results.scored) <= MOST_SYSTEMS:
        return results.scored
    return [system for system in results.scored if system.role != "baseline"]


def _draw_means(axes, results: Results, paired: bool) -> None:
    top, systems, colours = 0.0, _drawn(results), colours_of(results)
    for place, system in enumerate(systems):
        value = results.f1(system)
        axes.bar(place, value, width=0.66, color=colours[system.name])
        low, high = results.interval(system) or (value, value)
        if high > low:
            # Percentile intervals of a skewed sample may leave the mean outside by a hair.
            ends = [[max(0.0, value - low)], [max(0.0, high - value)]]
            axes.errorbar(place, value, yerr=ends, color=INK, lw=1.1, capsize=4, capthick=1.1)
        strong = system.role == "candidate"
        axes.annotate(
            f"{value:.2f}",
            (place, max(high, value)),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=14 if strong else 12,
            fontweight="bold" if strong else "normal",
        )
        top = max(top, high, value)
    width = max(6, 15 * 3 // max(3, len(systems)))  # letters that fit under a bar
    labels = [f"{textwrap.fill(s.label, width)}\n{textwrap.fill(s.meaning, width)}" for s in systems]
    axes.set_xticks(range(len(systems)), labels, fontsize=9 if len(systems) <= 4 else 7)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, max(0.1, top * 1.14))
    margin = 0.6 if paired else 1.6
    axes.set_xlim(-margin, len(systems) - 1 + margin)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_title("Mean token F1", loc="left", color=FAINT)


def _draw_bars(axes, results: Results, rows: list[dict]) -> None:
    """Thin grouped bars, a document a group, in the order of the file from the top."""
    systems, colours = _drawn(results), colours_of(results)
    places, thick = np.arange(len(rows)), 0.75 / len(systems)
    for number, system in enumerate(systems):
        values = [row[system.name] for row in rows]
        offset = (number - (len(systems) - 1) / 2) * (thick + 0.015)
        axes.barh(places + offset, values, thick, color=colours[system.name], label=system.label)
        if system.role == "candidate":
            for place, value in zip(places, values, strict=True):
                inside = value > 0.12  # room for the number
                colour = "white" if inside else colours[system.name]
                shift, side = (-0.01, "right") if inside else (0.01, "left")
                style = {"fontsize": 8, "fontweight": "bold", "va": "center_baseline", "ha": side}
                axes.text(value + shift, place + offset, f"{value:.2f}", color=colour, **style)
    axes.set_yticks(places, [_document_label(row) for row in rows], fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_ylim(len(rows) - 0.45, -0.55)
    share_axis(axes, 1.02)
    axes.set_title("F1 of each document", loc="left", color=FAINT)


def _document_label(row: dict) -> str:
    lines = textwrap.wrap(" ".join((row.get("title") or row["id"]).split()), 26)
    return "\n".join(lines[:2]) + ("…" if len(lines) > 2 else "")


def _draw_ranks(axes, results: Results, rows: list[dict]) -> None:
    """For many documents: each system's scores in rising order, over the share of documents."""
    share, colours = np.linspace(0, 100, len(rows)), colours_of(results)
    for system in _drawn(results):
        values = sorted(row[system.name] for row in rows)
        axes.plot(share, values, color=colours[system.name], lw=2, label=system.label)
    axes.legend(loc="upper left", fontsize=9, ncols=3)  # in the strip above 1
    axes.set_ylim(-0.02, 1.15 + 0.09 * ((len(_drawn(results)) - 1) // 3))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the documents at or below this F1, %")
    axes.set_title(f"F1 of the {len(rows)} documents, each line sorted", loc="left", color=FAINT)


# ------------------------------------------------------------------------------------ loss and drift


def draw_loss(metrics: list[dict]) -> "Figure":
    """Loss over the steps, single and smoothed, with the learning rate on a second axis."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    curves, bad = losses(metrics)
    if not curves:
        return empty_figure("No loss curve", f"Steps taken: {len(metrics)}; losses that are finite: 0.")
    medians = {name: running_median(curve[1]) for name, curve in curves.items()}
    last = np.median([values[-1] for _, values in medians.values()])
    first = np.median([values[0] for _, values in medians.values()])
    many = len(curves) > 1
    what = f"Lines: running median of each of {len(curves)} documents" if many else "Line: running median"
    subtitle = f"{what}; faint: single steps" + (f"; {bad} steps not finite and left out" if bad else "")
    figure = titled_figure(f"Training loss: {first:.2g} → {last:.2g}", subtitle, 3.9)
    axes, colour = figure.subplots(), COLOURS["candidate"][0]
    for name, (steps, loss, _) in curves.items():
        places, values = medians[name]
        axes.plot(steps, loss, color=colour, lw=0.6, alpha=0.08 if many else 0.28)
        axes.plot(steps[places], values, color=colour, lw=1 if many else 2, alpha=0.6 if many else 1)
    everything = np.concatenate([curve[1] for curve in curves.values()])
    positive = everything[everything > 0]
    if len(positive) and positive.max() > 20 * positive.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel("loss per token, nats")
    axes.margins(x=0.01)
    _draw_rate(axes, next(iter(curves.values())))
    return figure


def _draw_rate(axes, curve: np.ndarray) -> None:
    """The learning rate on a second axis; of the first curve, since all curves share one schedule."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    steps, _, rates = curve
    known = np.isfinite(rates)
    if not known.any():
        return
    twin = axes.twinx()
    twin.plot(steps[known], rates[known], color=COLOURS["upper bound"][0], lw=1.1, alpha=0.55, ls=(0, (4, 2)))
    twin.set_ylim(0, rates[known].max() * 1.08 or 1)
    twin.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    twin.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    twin.set_ylabel("learning rate (dashed)", color=FAINT)
    twin.tick_params(axis="y", colors=FAINT, length=0)


def draw_drift(drift: dict) -> "Figure":
    """Perplexity on unrelated text, before and after."""
    before, after = drift.get("perplexity_before"), drift.get("perplexity_after")
    words = drift_words(drift)
    if before is None or after is None:
        return empty_figure("Drift was not measured" if words is None else f"Drift: {words}", "No perplexities.")
    subtitle = "Unrelated text, original and injected weights; less change is better"
    figure = titled_figure(words[0].upper() + words[1:], subtitle, 2.6)
    axes, values = figure.subplots(), [before, after]
    axes.barh([0, 1], values, 0.62, color=[COLOURS["lower bound"][0], COLOURS["candidate"][0]])
    for place, value in enumerate(values):
        style = {"fontsize": 12, "fontweight": "bold" if place else "normal", "va": "center"}
        axes.annotate(f"{value:.2f}", (value, place), xytext=(5, 0), textcoords="offset points", **style)
    axes.set_yticks([0, 1], ["before injection", "after injection"])
    axes.set_xlim(0, max(values) * 1.1 or 1)
    axes.set_ylim(1.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("perplexity")
    return figure
