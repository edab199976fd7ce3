"""A comparison as files: compare.json (everything), compare.md, norms.png and pairs.png."""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from selfparam_jax.compare.answers import RIGHT_F1
from selfparam_jax.compare.factors import OVERLAP_RANK
from selfparam_jax.distributed import files
from selfparam_jax.models.lora import MODULES
from selfparam_jax.reports.style import NO_PICTURES, new_figure, save_figures
from selfparam_jax.reports.tables import (
    EMPTY,
    NOT_MEASURED,
    interval_cell,
    markdown_cell,
    markdown_table,
    number_cell,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN_FLIPS = 20  # of a pair and a direction; compare.json has all

_EXPLANATIONS = f"""\
- *Delta*: a kernel less the base's kernel. Its size is the Frobenius norm, also given as a share of the base kernel's
  norm. Totals treat all kernels as one.
- *Effective rank*: exp of the entropy of a delta's singular values as shares of their sum; mean over the kernels
  that have a delta. The error of rounding a model to bfloat16 is part of its delta, and has a high rank.
- *Cosine*: of two deltas as vectors of all their elements.
- *Overlap*: mean squared cosine of the principal angles between the spans of the largest singular directions of two
  deltas, at most {OVERLAP_RANK} of them, on the side of the kernels' input and of their output. In brackets: the
  value for random directions. Adapters drawn with one seed begin with the same input directions and keep some.
- *KL(P, Q)*: KL(P || Q) in nats, mean per token of the probe texts; the expectation is over P.
- *F1*: SQuAD's token F1 of the injected model's answers, averaged over a document's questions, then over documents,
  with a 95 % bootstrap interval. A difference is the second model's F1 less the first's. Its interval is paired:
  documents, then their questions, are resampled, the same for both. An answer is right if its F1 is at least
  {RIGHT_F1}."""


FILES = ("compare.json", "compare.md", "norms.png", "pairs.png")


def check_folder(folder: pathlib.Path) -> None:
    """Raises ValueError if `write_comparison` could not write into a folder, or would replace another's files."""
    if problem := files.refuse_folder(folder):
        raise ValueError(problem)
    files.check_own_json(folder / FILES[0], ("base", "dtype", "probe", "kl", "candidates", "pairs"))
    for name in FILES[1:]:
        files.refuse_other_than_file(folder / name)
        if (folder / name).exists() and not (folder / FILES[0]).exists():
            raise ValueError(
                f"{folder / name}: is there without a {FILES[0]}, so it is of no earlier comparison, and would be "
                "lost; choose another folder"
            )


def write_comparison(record: dict, folder: pathlib.Path) -> None:
    """Writes the four files. Without matplotlib the pictures are left out, and compare.md says how to install it.

    Args:
      record: the result of `compare.compare_models`.
      folder: made if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"norms.png": lambda: _draw_norms(record), "pairs.png": lambda: _draw_pairs(record)}
    pictures = save_figures(folder, drawings)
    files.write_text(folder / "compare.md", comparison_markdown(record, pictures))
    files.write_json(folder / "compare.json", record)


# --- pictures -----------------------------------------------------------------------------------------


def _draw_norms(record: dict) -> "Figure":
    """A heat map per candidate, modules by layers, on one scale of colours."""
    candidates = record["candidates"]
    maps = []
    for candidate in candidates:
        sizes = [[r["relative"] or 0.0 for r in candidate["kernels"] if r["module"] == name] for name in MODULES]
        maps.append(100 * np.asarray(sizes))
    figure = new_figure(9.3, 0.9 + 1.9 * len(maps))
    axes = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for one, values, candidate in zip(axes, maps, candidates, strict=True):
        top = max(map(np.max, maps)) or 1.0
        image = one.imshow(values, aspect="auto", cmap="viridis", vmin=0.0, vmax=top, interpolation="nearest")
        one.set_title(f"{candidate['label']}  {candidate['name'][-70:]}", loc="left")
        one.set_yticks(range(len(MODULES)), list(MODULES), fontsize=7)
    axes[-1].set_xlabel("layer")
    figure.colorbar(image, ax=axes, label="norm of the delta, % of the kernel's")
    return figure


def _draw_pairs(record: dict) -> "Figure":
    """Matrices of all pairs: the cosine of the deltas, and the KL if it was measured."""
    labels = [candidate["label"] for candidate in record["candidates"]]
    cosines = np.diag([1.0 if candidate["delta"]["norm"] else np.nan for candidate in record["candidates"]])
    for pair in record["pairs"]:
        at = labels.index(pair["a"]), labels.index(pair["b"])
        cosines[at] = cosines[at[::-1]] = np.nan if pair["cosine"] is None else pair["cosine"]
    kl = record["kl"]
    size = max(3.0, 0.6 * (len(labels) + 1))
    figure = new_figure((2 if kl else 1) * (size + 1.2), size + 0.6)
    axes = figure.subplots(1, 2 if kl else 1, squeeze=False)[0]
    _draw_matrix(axes[0], "cosine of the deltas", cosines, labels, "RdBu_r", -1.0, 1.0)
    if kl:
        values = np.asarray(kl["mean_per_token"])
        _draw_matrix(axes[1], "KL(row || column), nats per token", values, kl["order"], "Oranges", 0.0, values.max())
    return figure


def _draw_matrix(axes, title: str, values: np.ndarray, labels: Sequence[str], colours: str, low, high) -> None:
    axes.imshow(values, cmap=colours, vmin=low, vmax=high or 1.0)
    axes.set_title(title, loc="left")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    for (row, column), value in np.ndenumerate(values):
        dark = np.isfinite(value) and abs(value) > 0.6 * (high or 1.0)
        text = NOT_MEASURED if np.isnan(value) else f"{value:.2g}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")


# --- text ---------------------------------------------------------------------------------------------


def comparison_markdown(record: dict, pictures: bool = True) -> str:
    """The Markdown of a comparison.

    Args:
      record: the result of `compare.compare_models`.
      pictures: whether norms.png and pairs.png lie beside it.
    """
    base, probe = record["base"], record["probe"]
    probed = "No probe texts were given, so the KL was not measured."
    if probe:
        probed = f"KL on {probe['tokens']} tokens of {probe['texts']} texts, {markdown_cell(probe['source'])}, "
        probed += f"each after the start of the prompt format `{probe['prompt']}`."
    parts = [
        f"# Comparison of {len(record['candidates'])} models",
        f"Base: {markdown_cell(base['name'])} (fingerprint {base['fingerprint'][:12]}), {record['dtype']}. {probed}",
        "" if pictures else NO_PICTURES,
        summary_table(record),
        *_note_parts(record),
        "## Pairs",
        _pair_table(record),
        *(
            f"{pair['a']} and {pair['b']}: {markdown_cell(pair['answers_note'], 600)}."
            for pair in record["pairs"]
            if pair["answers_note"]
        ),
        "![Cosine and KL of all pairs](pairs.png)" if pictures else "",
        "## Deltas by module",
        _module_table(record),
        _module_pair_table(record),
        "![Norms by layer and module](norms.png)" if pictures else "",
        *_flip_parts(record),
        "## What the numbers mean",
        _EXPLANATIONS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_table(record: dict) -> str:
    """The main table: a candidate a row."""
    rows = []
    for number, candidate in enumerate(record["candidates"], start=1):
        delta, answers = candidate["delta"], candidate["answers"] or {}
        kl = record["kl"]["mean_per_token"] if record["kl"] else None
        away, back = (kl[0][number], kl[number][0]) if kl else (None, None)
        rows.append(
            (
                candidate["label"], markdown_cell(candidate["name"]),
                _significant(delta["norm"]), _percent(delta["relative"]),
                number_cell(delta["effective_rank"], 2), _significant(away), _significant(back),
                number_cell(answers.get("f1")), interval_cell(answers.get("f1_ci95")),
            )
        )  # fmt: skip
    header = (
        "",
        "model",
        "delta",
        "of the kernels",
        "effective rank",
        "KL(base, model)",
        "KL(model, base)",
        "F1",
        "95 %",
    )
    return markdown_table(header, rows)


def _note_parts(record: dict) -> list[str]:
    lines = []
    for candidate in record["candidates"]:
        lines += [f"- {candidate['label']}: {markdown_cell(note, 400)}." for note in candidate["notes"]]
    rows = [
        (candidate["label"], f"`{path}`", _significant(size["norm"]), _percent(size["relative"]))
        for candidate in record["candidates"]
        for path, size in candidate["outside"].items()
    ]
    header = ("", "parameter", "norm of the difference", "of the base's")
    return ["## Beware", "\n".join(lines), markdown_table(header, rows)] if lines else []


def _pair_table(record: dict) -> str:
    rows = []
    order = record["kl"]["order"] if record["kl"] else []
    for pair in record["pairs"]:
        there = back = None
        if record["kl"]:
            a, b = order.index(pair["a"]), order.index(pair["b"])
            there, back = record["kl"]["mean_per_token"][a][b], record["kl"]["mean_per_token"][b][a]
        answers = pair["answers"] or {}
        counts = (str(len(answers[name])) if answers else NOT_MEASURED for name in ("gained", "lost"))
        rows.append(
            (
                f"{pair['a']}, {pair['b']}", number_cell(pair["cosine"], 4), *_overlaps(pair), _significant(there),
                _significant(back), _signed(answers.get("f1")), interval_cell(answers.get("f1_ci95")), *counts,
            )
        )  # fmt: skip
    header = ("pair", "cosine", "overlap, inputs", "overlap, outputs", "KL(1st, 2nd)", "KL(2nd, 1st)")
    return markdown_table((*header, "F1, 2nd less 1st", "95 %", "became right", "became wrong"), rows)


def _overlaps(found: dict) -> tuple[str, str]:
    made = []
    for side in ("in", "out"):
        overlap, chance = found[f"overlap_{side}"], found[f"chance_{side}"]
        made.append(NOT_MEASURED if overlap is None else f"{overlap:.3f} ({chance:.3f})")
    return made[0], made[1]


def _module_table(record: dict) -> str:
    """A module a row, a candidate a column: norm, share of the kernels' norm, effective rank."""
    rows = []
    for module in MODULES:
        cells = []
        for candidate in record["candidates"]:
            delta = candidate["modules"][module]
            rank = f"rank {delta['effective_rank']:.2f}"
            cells.append(
                f"{_significant(delta['norm'])} ({_percent(delta['relative'])}, {rank})" if delta["norm"] else "0"
            )
        rows.append((f"`{module}`", *cells))
    return markdown_table(("module", *(f"{candidate['label']}: delta" for candidate in record["candidates"])), rows)


def _module_pair_table(record: dict) -> str:
    pairs = record["pairs"]
    rows = [
        (f"`{module}`", *(number_cell(pair["modules"][module]["cosine"], 4) for pair in pairs)) for module in MODULES
    ]
    return markdown_table(("module", *(f"cosine of {pair['a']} and {pair['b']}" for pair in pairs)), rows)


def _flip_parts(record: dict) -> list[str]:
    parts = []
    for pair in record["pairs"]:
        for name, word in (("gained", "right"), ("lost", "wrong")):
            flips = (pair["answers"] or {}).get(name)
            if not flips:
                continue
            rows = [
                [markdown_cell(flip[key]) or EMPTY for key in ("context", "question", "before", "after")]
                for flip in flips[:SHOWN_FLIPS]
            ]
            for row, flip in zip(rows, flips[:SHOWN_FLIPS], strict=True):
                row.insert(2, markdown_cell(flip["answers"][0]))
            title = f"### {len(flips)} that {pair['b']} has {word} and {pair['a']} does not"
            shown = f"The first {SHOWN_FLIPS}; compare.json has all." if len(flips) > SHOWN_FLIPS else ""
            parts += [title, shown, markdown_table(("document", "question", "gold", pair["a"], pair["b"]), rows)]
    return ["## Questions that flipped", *parts] if parts else []


def _significant(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3g}"


def _signed(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:+.3f}"


def _percent(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{100 * value:.2f} %"
