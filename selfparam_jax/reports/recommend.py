"""Recommendations as files: the benchmark's CSV files of one system, and what a job compares (recommend.md)."""

import math
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from selfparam_jax.distributed import files
from selfparam_jax.evaluation.recommendation import COLUMNS, CONDITIONS, Rows, Scores, summarize_rows
from selfparam_jax.reports.style import COLOURS, FAINT, NO_PICTURES, save_figures, titled_figure
from selfparam_jax.reports.tables import NOT_MEASURED, markdown_cell, markdown_table, number_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FILES = {"recommendation": "rec", "discussion": "dis", "all": "all"}
_PARTS = ("mean", "se", "ci")
SHOWN = ("recall@1", "recall@5", "recall@10", "recall@20", "ndcg@10", "mrr@10")


def variant_name(filtered: bool, exclude_seen: bool) -> str:
    """The benchmark's name of a variant's directory."""
    return f"filtered_{filtered}_exclude_seen_{exclude_seen}"


def write_scores(scores: Scores, folder: pathlib.Path) -> None:
    """Writes a directory per variant and health.json.

    A variant's directory has summary.csv, and rec.csv, dis.csv and all.csv with a row per target title. Strict scores
    are further columns, "strict_recall@1_mean" and so on.

    Args:
      scores: of `score_replies`.
      folder: made if it does not exist.
    """
    for variant, rows in scores.rows.items():
        strict = scores.strict[variant] if scores.strict else None
        place = folder / variant_name(*variant)
        place.mkdir(parents=True, exist_ok=True)
        files.write_text(place / "summary.csv", _csv(_summary_lines(rows, strict)))
        for condition, name in _FILES.items():
            chosen = strict.of(condition) if strict else None
            files.write_text(place / f"{name}.csv", _csv(_target_lines(rows.of(condition), chosen)))
    files.write_json(folder / "health.json", scores.health)


def _csv(lines: Sequence[Sequence[object]]) -> str:
    return "".join(",".join(map(_cell, line)) + "\n" for line in lines)


def _cell(value: object) -> str:
    return "" if isinstance(value, float) and math.isnan(value) else str(value)


def _summary_lines(rows: Rows, strict: Rows | None) -> list[list[object]]:
    header, lines = ["condition"], [[condition] for condition in CONDITIONS]
    for prefix, found in (("", rows), ("strict_", strict)):
        if found is None:
            continue
        header += [f"{prefix}{name}_{part}" for name in COLUMNS for part in _PARTS]
        summary = summarize_rows(found)
        for line, condition in zip(lines, CONDITIONS, strict=True):
            line += [value for name in COLUMNS for value in summary[condition][name]]
    return [header, *lines]


def _target_lines(rows: Rows, strict: Rows | None) -> list[list[object]]:
    header = ["idx", "condition", *COLUMNS]
    lines = [
        [turn, "dis" if seen else "rec", *_row_cells(values)]
        for turn, seen, values in zip(rows.turn.tolist(), rows.seen.tolist(), rows.values.tolist(), strict=True)
    ]
    if strict is not None:
        header += [f"strict_{name}" for name in COLUMNS]
        lines = [line + _row_cells(values) for line, values in zip(lines, strict.values.tolist(), strict=True)]
    return [header, *lines]


def _row_cells(values: Sequence[float]) -> list[object]:
    """A hit is written as 0 or 1, as the benchmark does."""
    return [int(value) if name.startswith("recall") else value for name, value in zip(COLUMNS, values, strict=True)]


def scores_markdown(scores: Scores) -> str:
    """Tables of all variants for people to read."""
    parts = []
    for label, variants in (("As the benchmark scores", scores.rows), ("Strictly", scores.strict)):
        if variants is None:
            continue
        lines = []
        for variant, rows in variants.items():
            summary = summarize_rows(rows)
            for condition in CONDITIONS:
                cells = [number_and_interval(summary[condition][name]) for name in SHOWN]
                count = str(len(rows.of(condition).turn))
                lines.append([yes_no(variant[0]), yes_no(variant[1]), condition, count, *cells])
        header = ("filtered", "seen titles dropped", "targets", "number", *SHOWN)
        parts += [f"## {label}", markdown_table(header, lines)]
    return "\n\n".join(["# Scores of the replies", *parts, "## Health", health_table({"": scores.health})]) + "\n"


def yes_no(value: bool) -> str:
    """A cell with a switch."""
    return "yes" if value else "no"


def number_and_interval(found: Sequence[float]) -> str:
    """A cell with a mean and half of its interval."""
    mean, _, half = found
    return NOT_MEASURED if math.isnan(mean) else f"{mean:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


_HEALTH = {
    "empty": "empty replies",
    "lines_per_reply": "lines a reply",
    "repeated": "repeated lines",
    "out_of_catalogue": "out of the catalogue",
    "tied": "tied lines",
}


def health_table(found: dict[str, dict]) -> str:
    """What the replies of several systems look like, a row each, by name."""
    strict = all("strict" in health for health in found.values())
    header = ["", "replies", *_HEALTH.values(), *(["replies without a list"] if strict else [])]
    lines = []
    for name, health in found.items():
        cells = [f"{health[key]:.1f}" if key == "lines_per_reply" else _percent(health[key]) for key in _HEALTH]
        cells += [_percent(health["strict"]["no_list"])] if strict else []
        lines.append([name, str(health["replies"]), *cells])
    return markdown_table(header, lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


# --- a job ----------------------------------------------------------------------------------------------

_VARIANT = variant_name(True, False)  # of the pictures and of the comparison
_EXPLANATIONS = """\
- A row of the scores is a target title of a turn. *Recommendation*: titles not mentioned before in the dialogue;
  *discussion*: titles mentioned before. *Filtered*: predictions farther than two edits from every name are dropped.
- ± is half the 95 % interval of the benchmark, 1.96 standard errors of independent rows.
- *Difference*: the injected model less the other system; its interval is a paired bootstrap over dialogues, p is of
  McNemar's exact test.
- *Strictly*: only titles are candidates, the prompt is removed before parsing, repeated names and empty lines do not
  count, and a reply that is no list hits nothing."""


def write_report(folder: pathlib.Path, record: dict) -> None:
    """Writes recommend.md and recall.png of a job.

    Args:
      folder: the work directory.
      record: results.json of job "recommend".
    """
    pictures = save_figures(folder, {"recall.png": lambda: _draw_recall(record)})
    files.write_text(folder / "recommend.md", _job_markdown(record, pictures))


def _job_markdown(record: dict, pictures: bool) -> str:
    found, labels = record["recommend"], _labels(record)
    parts = [
        f"# Recommendations: {record['num_contexts']} dialogues in {markdown_cell(record['model'])}",
        f"{found['turns']} test turns, {found['targets']} target titles.",
        "" if pictures else NO_PICTURES,
        "## Before and after",
        *(
            part
            for condition in CONDITIONS[:2]
            for part in (f"Targets: {condition} (filtered, seen titles kept).", _systems_table(record, condition))
        ),
        _no_hits(record),
        "![Recall of every system](recall.png)" if pictures else "",
        "## Injected against the others",
        _against_table(record),
        "## Strictly",
        _systems_table(record, "recommendation", "strict"),
        "## Health",
        health_table({markdown_cell(labels[name]): health for name, health in found["health"].items()}),
        _perplexity_table(record),
        "## All variants of the injected model",
        _variants_table(found["scores"]["injected"]),
        "## What the numbers mean",
        _EXPLANATIONS,
        "## Replies",
        *_sample_parts(found["samples"], labels),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _labels(record: dict) -> dict[str, str]:
    return {system["name"]: system["label"] for system in record["systems"]}


def _cells(columns: dict) -> list[str]:
    return [number_and_interval([math.nan if value is None else value for value in columns[name]]) for name in SHOWN]


def _systems_table(record: dict, condition: str, kind: str = "scores") -> str:
    rows = []
    for system in record["systems"]:
        columns = record["recommend"][kind][system["name"]][_VARIANT][condition]
        rows.append([markdown_cell(f"{system['label']} ({system['meaning']})"), *_cells(columns)])
    return markdown_table(("", *SHOWN), rows)


def _no_hits(record: dict) -> str:
    """What the interval of no width means that a system without a single hit has; "" if all have hits."""
    columns = {name: found[_VARIANT]["all"]["recall@20"] for name, found in record["recommend"]["scores"].items()}
    labels, count = _labels(record), record["recommend"]["targets"]
    missed = [markdown_cell(labels[name]) for name, (mean, *_) in columns.items() if mean == 0]
    if not missed:
        return ""
    bound = 1 - 0.05 ** (1 / count)  # exact 95 % upper bound of a rate with no hit in `count` trials
    return (
        f"None of the {count} targets is hit by: {', '.join(missed)}. ± 0.0000 is not certainty: with 95 % "
        f"confidence the recall@20 of such a system is below {bound:.3f}, and these turns cannot tell them apart."
    )


def _against_table(record: dict) -> str:
    labels, rows = _labels(record), []
    for name, variants in record["recommend"]["against_injected"].items():
        for column in ("recall@1", "recall@10", "recall@20"):
            entry = variants[_VARIANT]["recommendation"][column]
            if entry["difference"] is None:
                continue
            low, high = entry["ci95"]
            test = entry["mcnemar"]
            interval = f"{low:+.4f} to {high:+.4f}"
            counts = f"{test['only_second']} / {test['only_first']}"
            rows.append([labels[name], column, f"{entry['difference']:+.4f}", interval, counts, f"{test['p']:.3g}"])
    return markdown_table(("against", "", "difference", "95 %", "hit only by injected / other", "p"), rows)


def _perplexity_table(record: dict) -> str:
    rows = []
    for name, drift in record["recommend"]["drift"].items():
        if drift["perplexity_after"] is not None:
            cells = [number_cell(drift[key], 2) for key in ("perplexity_before", "perplexity_after")]
            rows.append([_labels(record)[name], *cells, number_cell(drift["kl"])])
    return markdown_table(("perplexity on general text", "base", "this model", "KL to the base"), rows)


def _variants_table(variants: dict) -> str:
    rows = [
        [name.replace("_", "\\_"), condition, *_cells(columns)]
        for name, conditions in variants.items()
        for condition, columns in conditions.items()
    ]
    return markdown_table(("variant", "targets", *SHOWN), rows)


def _sample_parts(samples: Sequence[dict], labels: dict[str, str]) -> list[str]:
    parts = []
    for sample in samples:
        rows = [[labels[name], markdown_cell(text, 400) or "*(empty)*"] for name, text in sample["replies"].items()]
        ending = " ".join(sample["dialogue"].split())[-300:]
        parts += [f"... {markdown_cell(ending, 300)}", f"Targets: {markdown_cell(', '.join(sample['targets']))}"]
        parts.append(markdown_table(("system", "reply"), rows))
    return parts


def _draw_recall(record: dict) -> "Figure":
    """Recall at every cutoff, new titles and titles mentioned before, a bar for each system."""
    found, systems = record["recommend"], record["systems"]
    subtitle = f"{found['turns']} test turns, {found['targets']} targets · filtered · error bars: 95 % interval"
    figure = titled_figure("Recall of recommended titles", subtitle, 4.3)
    cutoffs = [name for name in COLUMNS if name.startswith("recall")]
    places = {role: [s["name"] for s in systems if s["role"] == role] for role in {s["role"] for s in systems}}
    for axes, condition in zip(figure.subplots(1, 2), CONDITIONS[:2], strict=True):
        for number, system in enumerate(systems):
            columns = found["scores"][system["name"]][_VARIANT][condition]
            values = [columns[name][0] or 0.0 for name in cutoffs]
            halves = [columns[name][2] or 0.0 for name in cutoffs]
            own = COLOURS[system["role"]]
            colour = own[places[system["role"]].index(system["name"]) % len(own)]
            width = 0.8 / len(systems)
            middles = [n - 0.4 + (number + 0.5) * width for n in range(len(cutoffs))]
            axes.bar(middles, values, width, yerr=halves, color=colour, label=system["label"], error_kw={"lw": 0.8})
        axes.set_xticks(range(len(cutoffs)), cutoffs)
        if not any(found["scores"][system["name"]][_VARIANT][condition][cutoffs[-1]][0] for system in systems):
            axes.set_ylim(top=1)
            axes.text(0.5, 0.5, "no hit", color=FAINT, ha="center", transform=axes.transAxes)
        axes.set_ylim(bottom=0)
        axes.set_title(f"titles {'not ' if condition == 'recommendation' else ''}mentioned before", loc="left")
    axes.legend(fontsize=8)
    return figure
