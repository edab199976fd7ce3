"""The systems of a job side by side: quality and cost, as a table and a picture (systems.png)."""

from typing import TYPE_CHECKING

import numpy as np

from selfparam_jax.evaluation.health import RUINED
from selfparam_jax.reports.results import Results, System
from selfparam_jax.reports.style import FAINT, INK, titled_figure
from selfparam_jax.reports.tables import (
    NOT_MEASURED,
    counted,
    interval_cell,
    markdown_cell,
    markdown_table,
    number_cell,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "systems.png"


def has_baselines(results: Results) -> bool:
    """Whether there is more to compare than the injected model and its bounds."""
    return any(system.role == "baseline" for system in results.systems)


def systems_parts(results: Results, pictures: bool) -> list[str]:
    """The section of a report; [] without baselines."""
    measured = results.record.get("measured") or {}
    if not has_baselines(results) or not measured:
        return []
    rows = [_row(results, system, measured.get(system.name) or {}) for system in results.systems]
    candidate = results.candidate.label
    header = (
        "",
        "F1",
        "95 % interval",
        "gold contained",
        f"less {candidate}",
        "95 %, paired",
        "storage",
        "parameters",
    )
    header += (
        "s to prepare",
        "s a question",
        "tokens a question",
        "retrieval hits",
        "perplexity",
        "empty",
        "repeated",
    )
    explained = (
        "“Storage” and “parameters” are what a system needs beside the base to answer; a merged adapter: nothing. "
        "“To prepare” is reading, indexing or training, for all documents. “Tokens a question” is the prompt, with "
        f"what stands before the question. “Less {candidate}” is the difference of F1; its interval is over the same "
        "samples of questions. “Retrieval hits” is the share of questions for which one of the k passages was of the "
        "question's document. “Empty” and “repeated” are shares of the answers."
    )
    return [
        "## Systems",
        markdown_table(header, rows),
        explained,
        *_health_lines(results, measured),
        f"![Quality and cost]({PICTURE})" if pictures else "",
    ]


def forgetting_parts(results: Results) -> list[str]:
    """What each system that is trained forgets over a sequence; [] for other jobs, and without baselines."""
    others = results.record.get("sequential_systems") or {}
    if not others:
        return []
    found = {results.candidate.name: results["sequential"], **others}
    rows = []
    for system in results.systems:
        if system.name not in found:
            continue
        summary, perplexity = found[system.name], found[system.name]["perplexity_after"]
        f1 = [number_cell(summary["f1"][name]) for name in ("just_injected", "final", "forgetting")]
        f1.insert(2, number_cell(summary["f1"]["retention"], 2))
        ends = [[row[end] for row in perplexity] for end in (0, -1)]
        drift = [number_cell(None if None in end else float(np.mean(end)), 2) for end in ends]
        rows.append((markdown_cell(system.label), *f1, *drift))
    header = ("", "F1 just injected", "F1 at the end", "share kept", "forgetting", "perplexity before", "at the end")
    said = "One document after another into the same weights; after each, the questions of all are asked."
    return ["## Forgetting", said, markdown_table(header, rows)]


def hits_cell(share: float | None, passages: float | None) -> str:
    """The share of questions for which retrieval found the document, and how many passages it may find."""
    if share is None or passages is None:
        return number_cell(share, 2)
    return f"{share:.2f} (k = {passages:g})"


def _row(results: Results, system: System, found: dict) -> tuple[str, ...]:
    title = markdown_cell(f"{system.label} ({system.meaning})")
    if why := found.get("unavailable"):
        return (title, f"not asked: {markdown_cell(why)}", *[NOT_MEASURED] * 13)
    score, cost, health = results.score(system), found.get("cost") or {}, found.get("health") or {}
    against = (results.record.get("against_injected") or {}).get(system.name) or {}
    difference = against.get("f1")
    answer_s, asked = found.get("answer_s"), found.get("questions")
    before, after = ((found.get("drift") or {}).get(f"perplexity_{when}") for when in ("before", "after"))
    return (
        title,
        number_cell(score.get("f1")),
        interval_cell(results.interval(system)),
        number_cell(score.get("contains")),
        NOT_MEASURED if difference is None else f"{difference:+.3f}",
        interval_cell(against.get("ci95")),
        _bytes(cost.get("storage_bytes")),
        NOT_MEASURED if cost.get("extra_parameters") is None else f"{cost['extra_parameters']:,.0f}",
        number_cell(found.get("prepare_s"), 1),
        number_cell(answer_s / asked if asked and answer_s is not None else None, 2),
        NOT_MEASURED if found.get("tokens") is None else f"{found['tokens']:,.0f}",
        hits_cell(found.get("hit"), cost.get("retrieved")),
        f"{after:.2f} ({after / before - 1:+.0%})".replace("%", " %")
        if before and after is not None
        else NOT_MEASURED,
        number_cell(health.get("empty"), 2),
        number_cell(health.get("repeated"), 2),
    )


def _bytes(size: float | None) -> str:
    """A size in the unit that fits."""
    if size is None:
        return NOT_MEASURED
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def _health_lines(results: Results, measured: dict) -> list[str]:
    """A line for each system that training has ruined."""
    lines = []
    for system in results.systems:
        found = measured.get(system.name) or {}
        if not (collapsed := found.get("collapsed")):
            continue
        label = markdown_cell(system.label)
        line = f"**{label} collapsed**: its perplexity on general text is more than {RUINED:g} times the base's"
        if collapsed < found["groups"]:
            line += f" for {collapsed} of {found['groups']} documents"
        if healthy := found.get("healthy"):
            steps = ", ".join(str(each["step"]) for each in healthy)
            f1 = [each["f1"] for each in healthy if each["f1"] is not None]
            mean = number_cell(np.mean(f1) if f1 else None)
            line += f". Its F1 at the last step at which it was not (step {steps}) is {mean}"
        lines.append(line + ".")
    return ["\n\n".join(lines)] if lines else []


def draw_systems(results: Results, colours: dict[str, str]) -> "Figure":
    """F1 of every system with its interval; beside it F1 against the tokens that are read for a question.

    Args:
      results: with "measured".
      colours: by the systems' names.

    Returns:
      the figure.
    """
    systems = sorted(results.scored, key=lambda system: results.f1(system))
    measured = results.record["measured"]
    asked = (
        f"{counted(results['num_questions'], 'held-out question')} on {counted(results['num_contexts'], 'document')}"
    )
    figure = titled_figure(
        "Quality and cost of every system", f"{asked} · error bars: 95 % interval", 2.0 + 0.36 * len(systems)
    )
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for place, system in enumerate(systems):
        value = results.f1(system)
        low, high = results.interval(system) or (value, value)
        left.barh(place, value, 0.66, color=colours[system.name])
        ends = [[max(0.0, value - low)], [max(0.0, high - value)]]
        left.errorbar(value, place, xerr=ends, color=INK, lw=1.0, capsize=3, capthick=1.0)
    left.set_yticks(range(len(systems)), [system.label for system in systems], fontsize=8.5)
    left.set_xlim(0, max(0.1, *(max(results.f1(s), *(results.interval(s) or (0,))) for s in systems)) * 1.05)
    left.tick_params(axis="y", length=0)
    left.set_title("Mean token F1", loc="left", color=FAINT)
    points = [
        (measured[s.name]["tokens"], results.f1(s), s) for s in systems if (measured.get(s.name) or {}).get("tokens")
    ]
    for tokens, value, system in points:
        right.plot(tokens, value, "o", color=colours[system.name], ms=8, markeredgecolor=INK, markeredgewidth=0.5)
    _label_points(right, points)
    right.set_xscale("log")
    right.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    right.xaxis.set_minor_formatter(lambda tokens, _: "")
    right.margins(x=0.25, y=0.15)
    right.set_xlabel("tokens read for a question")
    right.set_title("F1 against the tokens read for a question", loc="left", color=FAINT)
    return figure


def _label_points(axes, points: list[tuple[float, float, System]]) -> None:
    """The systems' labels beside their points; of points that are close together each is put above the one before."""
    top = max([value for _, value, _ in points], default=1.0) or 1.0
    least, last = 0.045 * top, {}
    for tokens, value, system in sorted(points, key=lambda point: point[1]):
        column = round(np.log2(tokens))
        at = max(value, last.get(column, -1.0) + least)
        last[column] = at
        axes.annotate(
            system.label,
            (tokens, value),
            xytext=(tokens * 1.12, at),
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "lw": 0.5} if at > value else None,
        )
