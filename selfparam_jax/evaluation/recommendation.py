"""Scores of recommended titles: recall, NDCG and MRR of every target title, as the benchmark has them.

The LLM conversational-recommendation benchmark (arXiv 2308.10053) scores a row per target title of a turn. Targets
that were mentioned before in the dialogue are "discussion", the others "recommendation". Four variants: predictions
that are farther than two edits from a name are dropped or not, predictions that were mentioned before are or are not.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from selfparam_jax.distributed import files
from selfparam_jax.evaluation.replies import Reply, benchmark_lines, repeats, strict_lines
from selfparam_jax.evaluation.titles import Match, entity_name, nearest_names

CUTOFFS = (1, 5, 10, 20)
COLUMNS = tuple(f"{metric}@{k}" for k in CUTOFFS for metric in ("recall", "ndcg", "mrr"))
CONDITIONS = ("recommendation", "discussion", "all")
VARIANTS = tuple((filtered, exclude_seen) for filtered in (False, True) for exclude_seen in (False, True))
EDITS = 2  # a line that is farther from every name is out of the catalogue
Z95 = 1.96  # the benchmark's interval is mean +- this many standard errors


@dataclasses.dataclass(frozen=True)
class Turn:
    """A turn at which titles are to be recommended.

    Attributes:
      targets: names of the titles to recommend.
      seen: names of all that was mentioned before.
      dialogue_id: of the dialogue the turn is in; turns of one dialogue are not independent.
      dialogue: the text up to the turn.
    """

    targets: tuple[str, ...]
    seen: frozenset[str]
    dialogue_id: str
    dialogue: str = ""


ADVICE = "correct it, or copy it again"


def read_entities(path: str | os.PathLike) -> dict[int, str]:
    """Names of all entities by id, from a JSON object {URI: id}; of several URIs with one id the last names it.

    Raises:
      ValueError, OSError: no such file, or another layout.
    """
    found = files.read_json(path, advice=ADVICE)
    if not found or not all(isinstance(value, int) for value in found.values()):
        raise ValueError(f"{path}: expected a JSON object of entity names and whole numbers, as entity2id.json")
    return {number: entity_name(uri) for uri, number in found.items()}


def read_items(path: str | os.PathLike, entities: Mapping[int, str]) -> set[str]:
    """Names of the entities that are titles, from a JSON list of ids.

    Raises:
      ValueError, OSError: no such file, another layout, or an id that no entity has.
    """
    found = files.read_json(path, list, advice=ADVICE)
    if not found:
        raise ValueError(f"{path}: expected a JSON list of entity ids, as item_ids.json")
    if unknown := [number for number in found if number not in entities]:
        raise ValueError(f"{path}: got the id {unknown[0]!r}, which no entity has; give its entities file")
    return {entities[number] for number in found}


def read_turns(path: str | os.PathLike, entities: Mapping[int, str]) -> list[Turn]:
    """The turns of a JSONL file of records with "rec" and "prev_entity", lists of ids.

    Raises:
      ValueError: another layout, an id that no entity has.
      OSError: there is no such file.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; check the path")
    turns = []
    for number, record in enumerate(files.read_lines(path), start=1):
        where = f"{path}, record {number}"
        names = {}
        for field in ("rec", "prev_entity"):
            ids = record.get(field)
            if not isinstance(ids, list):
                raise ValueError(f"{where}: got {ids!r:.40} as {field!r}, expected a list of entity ids")
            if unknown := [each for each in ids if each not in entities]:
                raise ValueError(f"{where}: {field!r} has the id {unknown[0]!r}, which no entity has")
            names[field] = tuple(entities[each] for each in ids)
        dialogue_id = str(record.get("dialog_id", f"record {number}"))
        turns.append(Turn(names["rec"], frozenset(names["prev_entity"]), dialogue_id, record.get("input", "")))
    if not turns:
        raise ValueError(f"{path}: got no record, expected one a line; check the path")
    return turns


@dataclasses.dataclass(frozen=True)
class Rows:
    """Scores of one variant, a row per target title.

    Attributes:
      turn: index of the turn, int [N].
      seen: whether the target was mentioned before, bool [N].
      values: scores [N, columns], in the order of `COLUMNS`.
    """

    turn: np.ndarray
    seen: np.ndarray
    values: np.ndarray

    def of(self, condition: str) -> "Rows":
        """The rows of one of `CONDITIONS`."""
        if condition == "all":
            return self
        chosen = self.seen == (condition == "discussion")
        return Rows(self.turn[chosen], self.seen[chosen], self.values[chosen])


Variants = dict[tuple[bool, bool], Rows]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What scoring a file of replies gives.

    Attributes:
      rows: by (filtered, exclude_seen), as the benchmark counts.
      health: shares of the lines and replies, see `score_replies`.
      strict: the same rows with the benchmark's flaws mended; None if it was not asked for.
    """

    rows: Variants
    health: dict
    strict: Variants | None = None


def score_replies(
    replies: Sequence[Reply],
    turns: Sequence[Turn],
    names: set[str],
    items: set[str] | None = None,
    partial: bool = False,
) -> Scores:
    """Scores replies as the benchmark does and, given the titles, also strictly.

    Strictly: only titles are candidates, the prompt is removed before a reply is parsed, a name that is predicted
    again is dropped, empty lines are no predictions, and a reply that is no list hits nothing.

    Args:
      replies: at most one of each turn.
      turns: all turns of the records.
      names: of all entities: the benchmark's candidates.
      items: names of those that are titles; None leaves out the strict scores.
      partial: score the turns that have a reply; else every turn must have one.

    Returns:
      the rows, and the health of the replies: how many there are; the share of "tied" lines, whose nearest name is
      one of several; of "repeated" lines; of lines "out_of_catalogue" (farther than two edits from every candidate);
      of "empty" replies; and, strictly, of "no_list" replies.

    Raises:
      ValueError: a reply to no turn, or turns without a reply.
    """
    _check_indices([reply.index for reply in replies], len(turns), partial)
    answered = [turns[reply.index] for reply in replies]
    parsed = [benchmark_lines(reply.content) for reply in replies]
    health = {"replies": len(replies), "turns": len(turns), "empty": _mean([not r.content.strip() for r in replies])}
    matches = nearest_names((line for lines in parsed for line in lines), names)
    health |= _line_health(parsed, matches)
    rows = _variants(replies, answered, [[matches[line] for line in lines] for lines in parsed])
    if items is None:
        return Scores(rows, health)
    taken = [strict_lines(reply, turn.dialogue) for reply, turn in zip(replies, answered, strict=True)]
    lines = [found if is_list else [] for found, is_list in taken]
    matches = nearest_names((line for each in lines for line in each), items)
    predictions = [_once([matches[line] for line in each]) for each in lines]
    health["strict"] = {"no_list": _mean([not is_list for _, is_list in taken]), **_line_health(lines, matches)}
    return Scores(rows, health, _variants(replies, answered, predictions))


def _check_indices(indices: Sequence[int], count: int, partial: bool) -> None:
    if indices and max(indices) >= count:
        raise ValueError(
            f"got a reply with index {max(indices)}, expected at most {count - 1}, as there are {count} records; "
            "give the records that were answered"
        )
    missing = sorted(set(range(count)) - set(indices))
    if missing and not partial:
        raise ValueError(
            f"{len(missing)} of {count} records have no reply, the first is record {missing[0]} (from 0); ask again, "
            "or score only those that have one with --partial"
        )


def _line_health(parsed: Sequence[Sequence[str]], matches: Mapping[str, Match]) -> dict:
    found = [matches[line] for lines in parsed for line in lines]
    return {
        "lines": len(found),
        "lines_per_reply": len(found) / len(parsed) if parsed else 0.0,
        "tied": _mean([match.tied for match in found]),
        "repeated": _mean([repeats(lines) for lines in parsed]),
        "out_of_catalogue": _mean([match.distance > EDITS for match in found]),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else 0.0


def _once(matches: Sequence[Match]) -> list[Match]:
    """The matches without those of a name that came before; the nearest line of a name keeps its first place."""
    kept: dict[str, Match] = {}
    for match in matches:
        if match.name not in kept or match.distance < kept[match.name].distance:
            kept[match.name] = match
    return list(kept.values())


def _variants(replies: Sequence[Reply], turns: Sequence[Turn], predictions: Sequence[Sequence[Match]]) -> Variants:
    return {
        (filtered, exclude_seen): _rows(
            [reply.index for reply in replies],
            turns,
            [
                kept_names(found, turn.seen, filtered, exclude_seen)
                for found, turn in zip(predictions, turns, strict=True)
            ],
        )
        for filtered, exclude_seen in VARIANTS
    }


def kept_names(matches: Sequence[Match], seen: frozenset[str], filtered: bool, exclude_seen: bool) -> list[str]:
    """Predicted names of one reply in a variant.

    Args:
      matches: of its lines.
      seen: names mentioned before.
      filtered: drop lines that are farther than `EDITS` from their name.
      exclude_seen: drop names mentioned before.

    Returns:
      the names that are left, best first.
    """
    return [
        match.name
        for match in matches
        if not (filtered and match.distance > EDITS) and not (exclude_seen and match.name in seen)
    ]


def _rows(indices: Sequence[int], turns: Sequence[Turn], predicted: Sequence[Sequence[str]]) -> Rows:
    places, seen, values = [], [], []
    for index, turn, names in zip(indices, turns, predicted, strict=True):
        for target in turn.targets:
            places.append(index)
            seen.append(target in turn.seen)
            values.append(score_target(target, names))
    return Rows(np.asarray(places, int), np.asarray(seen, bool), np.asarray(values, float).reshape(-1, len(COLUMNS)))


def score_target(target: str, predicted: Sequence[str]) -> list[float]:
    """Recall, NDCG and MRR of one title at every cutoff, in the order of `COLUMNS`."""
    place = predicted.index(target) if target in predicted else math.inf
    hits = (place < k for k in CUTOFFS)
    return [
        value for hit in hits for value in ((1.0, 1 / math.log2(place + 2), 1 / (place + 1)) if hit else (0.0,) * 3)
    ]


def summarize_rows(rows: Rows) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Mean, standard error and half the 95 % interval, by condition and column.

    The standard error is that of independent rows (n - 1 in its variance), as in the benchmark. What there are too
    few rows for is NaN.
    """
    return {condition: _summary(rows.of(condition).values) for condition in CONDITIONS}


def _summary(values: np.ndarray) -> dict[str, tuple[float, float, float]]:
    count = len(values)
    missing = np.full(len(COLUMNS), np.nan)
    means = values.mean(axis=0) if count else missing
    errors = values.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else missing
    return {
        name: (float(mean), float(error), Z95 * float(error))
        for name, mean, error in zip(COLUMNS, means, errors, strict=True)
    }
