"""Reach in a report: the same facts asked in many ways, and what must not change."""

from selfparam_jax.reports.tables import NOT_MEASURED, markdown_cell, markdown_table, number_cell

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


def reach_parts(reach: dict | None) -> list[str]:
    """The paragraphs of a report about reach; [] where it was not measured.

    Args:
      reach: the table of `evaluation.reach.measure_reach`.
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
