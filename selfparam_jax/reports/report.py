"""The report of a job for a person to read: report.md, with pictures of scores, loss, drift, reach and systems.

Everything in them is read from results.json, metrics.jsonl and predictions.jsonl, so a report can be made again at
any time. results.json lists the systems, their labels and their roles.
"""

import os
import pathlib

import numpy as np

from selfparam_jax.distributed import files
from selfparam_jax.reports import recommend
from selfparam_jax.reports.figures import colours_of, draw_drift, draw_f1, draw_loss
from selfparam_jax.reports.reach import PICTURE as REACH_PICTURE
from selfparam_jax.reports.reach import draw_reach, reach_parts, reach_words
from selfparam_jax.reports.results import (
    Results,
    System,
    check_results,
    drift_words,
    losses,
    read_metrics,
    read_predictions,
    read_results,
    running_median,
)
from selfparam_jax.reports.style import NO_PICTURES, save_figures
from selfparam_jax.reports.systems import PICTURE, draw_systems, forgetting_parts, has_baselines, systems_parts
from selfparam_jax.reports.tables import (
    EMPTY,
    NOT_MEASURED,
    counted,
    interval_cell,
    markdown_cell,
    markdown_table,
    number_cell,
    value_cell,
)
from selfparam_jax.reports.written_pairs import written_parts

SAMPLES = 8  # predictions that are shown
_METRICS = {"em": "exact match", "contains": "gold contained", "f1_paper": "F1, paper's protocol"}


def write_report(workdir: str | os.PathLike, record: dict | None = None) -> None:
    """Writes report.md and its pictures from the results in a work directory.

    metrics.jsonl is a log: where it is missing or damaged there is no picture of the loss. predictions.jsonl may be
    missing if no question was asked. Without matplotlib the pictures are left out, and report.md says how to install
    it.

    Args:
      workdir: of the job.
      record: what results.json is to hold, for a job that is about to write it; None reads that file.

    Raises:
      FileNotFoundError, ValueError: a file is missing or malformed; says which and what to do.
    """
    folder = pathlib.Path(workdir)
    path = folder / "results.json"
    results = read_results(path) if record is None else check_results(record, path)
    metrics = read_metrics(folder / "metrics.jsonl")
    predictions = read_predictions(folder / "predictions.jsonl", results["num_questions"])
    drawings = {
        "f1.png": lambda: draw_f1(results),
        "drift.png": lambda: draw_drift(results["drift"] or {}),
    }
    if metrics or not results["steps"]:
        drawings["loss.png"] = lambda: draw_loss(metrics)
    if has_baselines(results) and results.record.get("measured") and results.scored:
        drawings[PICTURE] = lambda: draw_systems(results, colours_of(results))
    if (reach := results.record.get("reach")) and reach.get("columns"):
        drawings[REACH_PICTURE] = lambda: draw_reach(reach)
    pictures = save_figures(folder, drawings)
    files.write_text(folder / "report.md", _markdown(results, metrics, predictions, pictures))
    if results["job"] == "recommend":
        recommend.write_report(folder, results.record)


def _markdown(results: Results, metrics: list[dict], predictions: list[dict], pictures: bool) -> str:
    count = results["num_contexts"]
    noun = "document" if count == 1 else "documents"
    recipe = [(markdown_cell(key), value_cell(value)) for key, value in (results["recipe"] or {}).items()]
    parts = [
        f"# {str(results['job']).capitalize()} injection: {count} {noun} into {markdown_cell(results['model'])}",
        _summary(results),
        "" if pictures else NO_PICTURES,
        *_score_parts(results, pictures),
        *systems_parts(results, pictures and bool(results.scored)),
        *forgetting_parts(results),
        *_kind_parts(results),
        *_document_parts(results),
        *written_parts(results.record.get("written_pairs") or []),
        *_loss_parts(results, metrics, pictures),
        *reach_parts(results.record.get("reach"), pictures),
        *_drift_parts(results["drift"] or {}, pictures),
        *_timing_parts(results["timing"] or {}),
        "## Recipe",
        markdown_table(("setting", "value"), recipe),
        *_sample_parts(results, predictions),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(results: Results) -> str:
    drift = drift_words(results["drift"] or {}, "to")
    drift = f"on unrelated text, {drift}" if drift else "drift on unrelated text was not measured"
    value = results.f1(results.candidate)
    if value is None:
        return f"No questions were asked (the documents have none), so there are no scores; {drift}."
    lower, upper, share = results.first("lower bound"), results.first("upper bound"), results.share
    words = []
    if share is not None:
        words.append(f"{100 * share:.1f} % of the upper bound {upper.label} ({results.f1(upper):.3f})")
    elif upper:
        words.append(f"no share of the upper bound {upper.label}, which is 0")
    if lower:
        base = results.f1(lower)
        side = "above" if value >= base else "below"
        words.append(f"{abs(value - base):.3f} {side} {lower.label} ({base:.3f})")
    compared = f": {', '.join(words)}" if words else ""
    found = f"{results.candidate.label} F1 is {value:.3f}{compared}; {drift}."
    return " ".join(filter(None, [found, reach_words(results.record.get("reach")), _asked_words(results)]))


def _asked_words(results: Results) -> str:
    """What the scores are of, where rules made the pairs; "" where they did not."""
    written = results.record.get("written_pairs") or []
    if not written:
        return ""
    held_out, covered, sentences = (
        sum(each[key] for each in written) for key in ("held_out", "covered", "sentences")
    )
    count = results["num_questions"]
    asked = f"Of {counted(count, 'question')}, {held_out} ask in other words for facts that were trained on. "
    return f"{asked if held_out else ''}Pairs were made of {covered} of {counted(sentences, 'sentence')}."


def _score_parts(results: Results, pictures: bool) -> list[str]:
    if not results.scored:
        return []
    scores = [results.score(system) for system in results.scored]
    metrics = dict.fromkeys(key for score in scores for key in score if key != "f1" and not key.endswith("_ci95"))
    rows = []
    for system, score in zip(results.scored, scores, strict=True):
        others = [number_cell(score.get(key)) for key in metrics]
        title = markdown_cell(f"{system.label} ({system.meaning})")
        rows.append((title, number_cell(score["f1"]), interval_cell(results.interval(system)), *others))
    header = ("", "F1", "95 % interval", *(_METRICS.get(key, markdown_cell(key)) for key in metrics))
    asked = f"{results['num_questions']} held-out questions, prompt `{results['prompt']}`."
    over = ""
    if spread := results.record.get("spread"):
        keys = ("f1_mean", "f1_std", "f1_min", "f1_max")
        mean, std, low, high = (number_cell(spread.get(key)) for key in keys)
        over = f"Over the documents, each injected alone: F1 {mean} ± {std} (standard deviation), {low} to {high}."
    return ["## Scores", asked, markdown_table(header, rows), over, "![F1](f1.png)" if pictures else ""]


def _kind_parts(results: Results) -> list[str]:
    rows = []
    for entry in results.record.get("kinds") or []:
        scores = [entry["scores"].get(system.name) or {} for system in results.systems]
        cells = [number_cell(score.get(metric)) for metric in ("f1", "contains") for score in scores]
        rows.append((markdown_cell(entry["kind"]), str(entry["questions"]), *cells))
    labels = [markdown_cell(system.label) for system in results.systems]
    header = ("kind", "questions", *(f"{label} F1" for label in labels), *(f"{label} gold" for label in labels))
    said = "F1, and the share of answers that contain the gold answer (“gold”), by the kind of question."
    return ["## Kinds of questions", said, markdown_table(header, rows)] if rows else []


def _document_parts(results: Results) -> list[str]:
    rows = []
    for row in results["per_context"] or []:
        name = markdown_cell(row.get("title") or row["id"])
        rows.append((name, *(number_cell(row.get(system.name)) for system in results.systems)))
        for passage in row.get("passages", ()):
            if passage["questions"]:
                cells = (number_cell(passage.get(system.name)) for system in results.systems)
                rows.append((f"– {markdown_cell(passage['id'])}", *cells))
    header = ("document", *(markdown_cell(f"{system.label} F1") for system in results.systems))
    return ["## Each document", markdown_table(header, rows), _passage_words(results)] if rows else []


def _passage_words(results: Results) -> str:
    """How long documents were read; "" if there are none."""
    split = [row for row in results["per_context"] if row.get("passages")]
    if not split:
        return ""
    groups = [passage for row in split for passage in row["passages"] if "+" in passage["id"].rpartition("#")[2]]
    count = sum(len(row["passages"]) for row in split) - len(groups)
    noun = "document is" if len(split) == 1 else "documents are"
    return (
        f"{len(split)} {noun} longer than `passage_tokens` = {results.record['passages']['tokens']}: read as {count} "
        f"passages, and as {len(groups)} groups of related passages. A system that reads documents reads, for a "
        "question about one of these, the passage in which its gold answer was found (passages without a question "
        "are not shown)."
    )


def _loss_parts(results: Results, metrics: list[dict], pictures: bool) -> list[str]:
    curves, bad = losses(metrics)
    if not metrics:
        reason = "metrics.jsonl is missing or damaged" if results["steps"] else "No training steps were recorded"
        return ["## Training", f"{reason}, so there is no loss curve."]
    last = np.median([running_median(curve[1])[1][-1] for curve in curves.values()]) if curves else None
    text = f"{results['steps']} steps; the loss ends at {number_cell(last)} (running median)."
    if bad:
        text += f" **{bad} steps had a loss that is not finite.**"
    return ["## Training", text, "![Loss](loss.png)" if curves and pictures else ""]


def _drift_parts(drift: dict, pictures: bool) -> list[str]:
    words = drift_words(drift)
    if words is None:
        return ["## Drift", "Drift was not measured."]
    has_bars = drift.get("perplexity_before") is not None and drift.get("perplexity_after") is not None
    return ["## Drift", f"On unrelated text: {words}.", "![Drift](drift.png)" if has_bars and pictures else ""]


def _timing_parts(timing: dict) -> list[str]:
    rows = []
    for key, value in timing.items():
        name = "sentence tokens per second" if key == "sentence_tokens_per_s" else key.removesuffix("_s") + ", s"
        rows.append((markdown_cell(name), NOT_MEASURED if value is None else f"{value:,.1f}"))
    return ["## Timing", markdown_table(("phase", "value"), rows)] if rows else []


# ------------------------------------------------------------------------------------------- samples


def _sample_parts(results: Results, predictions: list[dict]) -> list[str]:
    candidate = results.candidate
    predictions = [row for row in predictions if candidate.name in row]
    if not predictions:
        return []
    right = [row for row in predictions if _is_right(row, candidate)]
    systems = [system for system in results.systems if any(system.name in row for row in predictions)]
    rows = []
    for row in _samples(predictions, candidate):
        answers = [_answer_cell(row, system) for system in systems]
        mark = "right" if _is_right(row, candidate) else "wrong"
        gold = markdown_cell(row["answers"][0])
        rows.append(
            (markdown_cell(row["question"]), gold, *answers, number_cell(row[candidate.name].get("f1")), mark)
        )
    label = markdown_cell(candidate.label)
    header = ("question", "gold", *(markdown_cell(system.label) for system in systems), f"{label} F1", f"{label} is")
    share = f"{len(right)} of {len(predictions)} answers of {label} match a gold answer exactly. "
    rule = "Shown are right and wrong ones, half each where there are enough, evenly spaced through the file."
    return ["## Sample predictions", share + rule, markdown_table(header, rows)]


def _answer_cell(row: dict, system: System) -> str:
    return (markdown_cell(row[system.name]["answer"]) or EMPTY) if system.name in row else NOT_MEASURED


def _is_right(row: dict, candidate: System) -> bool:
    return bool(row[candidate.name].get("em"))


def _samples(predictions: list[dict], candidate: System) -> list[dict]:
    """Picks right and wrong answers, half each where there are enough, evenly spaced and in the file's order."""
    right = [place for place, row in enumerate(predictions) if _is_right(row, candidate)]
    wrong = [place for place, row in enumerate(predictions) if not _is_right(row, candidate)]
    half = SAMPLES // 2
    take = min(len(right), max(half, SAMPLES - len(wrong)))
    chosen = _spaced(right, take) + _spaced(wrong, min(len(wrong), SAMPLES - take))
    return [predictions[place] for place in sorted(chosen)]


def _spaced(places: list[int], count: int) -> list[int]:
    return [places[number * len(places) // count] for number in range(count)]
