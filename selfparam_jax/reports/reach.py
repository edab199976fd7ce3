"""Reach in a report: the same facts asked in many ways, and what must not change."""

from typing import TYPE_CHECKING

from selfparam_jax.reports.style import COLOURS, GRID, share_axis, titled_figure
from selfparam_jax.reports.tables import NOT_MEASURED, markdown_cell, markdown_table, number_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE = "reach.png"

_SYSTEMS = {"base": "Base", "base_cq": "Base with the document", "injected": "Injected"}
_FORMS = {"reading": "reading format", "chat": "chat template", "bare": "bare"}
_UNCHANGED = {
    "as_before": "unrelated questions answered as before",
    "as_before_or_right": "the same, or rightly where the base is wrong",
    "same": "word for word",
    "bleed": "answers to unrelated and invented questions with names of the documents",
    "bleed_invented": "of invented ones alone",
    "instructions_before": "instructions followed by the base",
    "instructions_after": "instructions followed by the injected model",
}


def reach_words(reach: dict | None) -> str:
    """How much of what was asked is known in a conversation, beside the reading format; "" where it was not asked."""
    found = ((reach or {}).get("systems") or {}).get("injected", {})
    chat, reading = found.get("chat"), found.get("reading")
    if chat is None or reading is None:
        return ""
    return (
        f"Through the chat template {chat:.3f} of its answers contain the right one, in the reading format "
        f"{reading:.3f}."
    )


def draw_reach(reach: dict) -> "Figure":
    """A row for each way of asking, with the share of the base, the base with the document and the injected model.

    Args:
      reach: the table of `evaluation.reach.measure_reach`, with at least one column.
    """
    columns, found = reach["columns"], reach["systems"]
    height = 1.75 + 0.3 * len(columns)
    figure = titled_figure(
        _headline(found.get("injected", {})), "Share of answers that contain the right one, by how one asks", height
    )
    axes = figure.subplots()
    for place, column in enumerate(columns):
        known = [found[name][column["name"]] for name in _SYSTEMS if _is_known(found, name, column)]
        axes.plot([min(known, default=0), max(known, default=0)], [place, place], color=GRID, lw=3, zorder=1)
    for number, (name, label) in enumerate(_SYSTEMS.items()):
        points = [(found[name][c["name"]], n) for n, c in enumerate(columns) if _is_known(found, name, c)]
        colour = COLOURS[("lower bound", "upper bound", "candidate")[number]][0]
        style = {"s": 30 + 18 * number, "marker": "oDo"[number], "zorder": 2 + number, "clip_on": False}
        axes.scatter([x for x, _ in points], [y for _, y in points], color=colour, label=label, **style)
    labels = [f"{column['what']} ({_FORMS.get(column['form'], column['form'])})" for column in columns]
    axes.set_yticks(range(len(columns)), labels, fontsize=8.5)
    axes.tick_params(axis="y", length=0, pad=9)
    axes.set_ylim(len(columns) - 0.5, -0.5)
    share_axis(axes)
    figure.legend(loc="outside lower center", ncols=len(_SYSTEMS), fontsize=9)
    return figure


def _is_known(found: dict, name: str, column: dict) -> bool:
    return found.get(name, {}).get(column["name"]) is not None


def _headline(injected: dict) -> str:
    shares = [f"{injected[name]:.2f} {_FORMS[name]}" for name in _FORMS if injected.get(name) is not None]
    return f"Injected: {', '.join(shares)}" if shares else "What is known, however one asks"


def reach_parts(reach: dict | None, pictures: bool = False) -> list[str]:
    """The paragraphs of a report about reach; [] where it was not measured.

    Args:
      reach: the table of `evaluation.reach.measure_reach`.
      pictures: whether `draw_reach` is in the report's folder.
    """
    if not reach or not reach.get("columns"):
        return []
    rows = []
    for column in reach["columns"]:
        values = [number_cell(reach["systems"].get(name, {}).get(column["name"])) for name in _SYSTEMS]
        form = _FORMS.get(column["form"], column["form"])
        rows.append((markdown_cell(column["what"]), markdown_cell(form), str(column["questions"]), *values))
    parts = [
        "## Reach",
        "Share of answers that contain the gold answer (of claims: judged rightly; of what is told: facts named), by "
        "how one asks; the mean over documents.",
        *([f"![Reach]({PICTURE})"] if pictures else []),
        markdown_table(("asked", "form", "questions", *_SYSTEMS.values()), rows),
    ]
    if sum("/" not in column["name"] for column in reach["columns"]) <= len(_FORMS):
        parts.append(
            "Other wordings, claims and what must not change are asked with `eval.reach=all`; of documents of your "
            "own it needs other wordings of their questions (`eval.reach_file`)."
        )
    if unchanged := reach.get("unchanged"):
        kept = [(label, _share(unchanged.get(name))) for name, label in _UNCHANGED.items()]
        parts += ["What must not change, asked through the chat template:", markdown_table(("what", "share"), kept)]
    return parts


def _share(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.0f} %"
