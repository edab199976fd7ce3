"""What a job recorded: results.json, metrics.jsonl and predictions.jsonl, and the numbers that are read from them."""

import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from absl import logging

from selfparam_jax.distributed import files
from selfparam_jax.evaluation.systems import ROLES

_KEYS = ("job", "model", "prompt", "systems", "num_contexts", "num_questions", "scores", "drift", "timing", "steps")
_KEYS += ("recipe", "per_context")


@dataclasses.dataclass(frozen=True)
class System:
    """One of the systems that were asked.

    Attributes:
      name: its key in the records.
      label: what a reader calls it.
      meaning: what it is given, such as "question only".
      role: "lower bound", "upper bound", "baseline" or "candidate".
    """

    name: str
    label: str
    meaning: str
    role: str


@dataclasses.dataclass(frozen=True)
class Results:
    """The content of results.json.

    Attributes:
      record: all of it.
      systems: the systems in the order to draw, whether they have scores or not.
    """

    record: dict
    systems: tuple[System, ...]

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def score(self, system: System) -> dict:
        """All scores of a system; empty if it was not asked anything."""
        return (self.record["scores"] or {}).get(system.name) or {}

    def f1(self, system: System) -> float | None:
        """The mean F1 of a system."""
        return self.score(system).get("f1")

    def interval(self, system: System) -> list[float] | None:
        """The 95 % interval of a system's F1."""
        return self.score(system).get("f1_ci95")

    @property
    def scored(self) -> list[System]:
        """The systems that have an F1."""
        return [system for system in self.systems if self.f1(system) is not None]

    @property
    def candidate(self) -> System:
        """The system that the headline is about: the first candidate that has an F1, else the first candidate."""
        return self.first("candidate") or next(each for each in self.systems if each.role == "candidate")

    def first(self, role: str) -> System | None:
        """The first system of a role that has an F1."""
        return next((system for system in self.scored if system.role == role), None)

    @property
    def share(self) -> float | None:
        """The candidate's F1 as a share of the upper bound's; None where that is 0 or was not measured."""
        upper, value = self.first("upper bound"), self.f1(self.candidate)
        return value / self.f1(upper) if value is not None and upper and self.f1(upper) else None


def read_results(path: pathlib.Path) -> Results:
    """Reads and checks results.json.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not the record of a finished job; says what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the work directory of a finished run")
    return check_results(files.read_json(path, keys=_KEYS, advice="remove it and run again"), path)


def check_results(record: dict, path: pathlib.Path) -> Results:
    """The content of a results.json, which has all of its keys, as `Results`; see `read_results`."""
    systems = tuple(_read_system(path, entry) for entry in record["systems"])
    names = [system.name for system in systems]
    if len(set(names)) < len(names) or not any(system.role == "candidate" for system in systems):
        raise ValueError(f"{path}: got systems {names}, expected different names and at least one candidate")
    if unknown := sorted(set(record["scores"] or {}) - set(names)):
        raise ValueError(f"{path}: got scores of {', '.join(unknown)}, expected only those of {', '.join(names)}")
    return Results(record, systems)


def _read_system(path: pathlib.Path, entry: object) -> System:
    names = [field.name for field in dataclasses.fields(System)]
    if not isinstance(entry, dict) or not set(names) <= set(entry):
        raise ValueError(f"{path}: got the system {entry!r}, expected an object with {', '.join(names)}; run again")
    if entry["role"] not in ROLES:
        raise ValueError(
            f"{path}: got the role {entry['role']!r} of {entry['name']}, expected one of {', '.join(ROLES)}"
        )
    return System(*(entry[name] for name in names))


def read_predictions(path: pathlib.Path, questions: int) -> list[dict]:
    """Reads predictions.jsonl.

    Args:
      path: the file; it need not exist where no question was asked.
      questions: how many were asked: a line each.

    Raises:
      FileNotFoundError: it does not exist, although questions were asked.
      ValueError: a line is not a JSON object, or lines are missing; says which or how many.
    """
    advice = "remove results.json and run again: nothing is trained again"
    if not path.is_file():
        if questions:
            raise FileNotFoundError(f"{path}: no such file, although results.json counts on it; {advice}")
        return []
    rows = files.read_lines(path)
    if len(rows) < questions:
        raise ValueError(f"{path}: got {len(rows)} whole lines, expected {questions}, one a question; {advice}")
    return rows


def read_metrics(path: pathlib.Path) -> list[dict]:
    """The steps that metrics.jsonl tells of; damaged lines are left out, and a file that is not there has none."""
    rows = files.read_log(path)
    good = [row for row in rows if _is_number(row.get("step")) and _is_number(row.get("loss", 0.0) or 0.0)]
    if len(good) < len(rows):
        logging.warning("%s: %d lines without a step or a loss are left out", path, len(rows) - len(good))
    return good


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def drift_words(drift: dict, arrow: str = "→") -> str | None:
    """Says what happened to unrelated text, or None if it was not measured."""
    before, after, kl = (drift.get(key) for key in ("perplexity_before", "perplexity_after", "kl"))
    words = []
    if before and after is not None:
        words.append(f"perplexity {before:.2f} {arrow} {after:.2f} ({after / before - 1:+.1%})".replace("%", " %"))
    if kl is not None:
        words.append(f"KL {kl:.4f} nats per token" if kl >= 1e-4 or kl == 0 else f"KL {kl:.1e} nats per token")
    return ", ".join(words) or None


def losses(metrics: list[dict]) -> tuple[dict[str, np.ndarray], int]:
    """The loss curves of a job.

    Args:
      metrics: rows of metrics.jsonl. A batch is one curve; the single job starts at step 1 again for each document.

    Returns:
      (steps, losses, learning rates) of each curve as an array [3, steps], and how many losses were not finite.
    """
    curves, bad = {}, 0
    for row in metrics:
        loss, rate = row.get("loss"), row.get("learning_rate")
        if loss is None or not math.isfinite(loss):
            bad += 1
            continue
        rate = rate if _is_number(rate) else math.nan
        curves.setdefault(str(row.get("context", "")), []).append((row["step"], loss, rate))
    return {name: np.array(rows, float).T for name, rows in curves.items()}, bad


def running_median(values: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Places (at most `points` of them) and the medians of windows centred there; windows are cut at the ends."""
    half = max(2, len(values) // 40)
    places = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    medians = [np.median(values[max(0, place - half) : place + half + 1]) for place in places]
    return places, np.array(medians)
