"""Titles in a catalogue: the names of entities, and the entity name that is nearest to a line of text.

The names and the distance are those of the LLM conversational-recommendation benchmark (arXiv 2308.10053). Of
several names at the same distance the benchmark takes any; here it is the first in alphabetical order.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from selfparam_jax.data.extras import import_extra

_CHUNK = 2**23  # distances in memory at a time
_PARENTHESES = re.compile(r"\([^()]*\)")
_NOT_A_LETTER = str.maketrans("_->", "   ")


def without_parentheses(text: str) -> str:
    """The text without parentheses and what stands in them; of nested ones the inner pair goes."""
    return _PARENTHESES.sub("", text)


def squeeze(text: str) -> str:
    """The text with every run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def entity_name(uri: str) -> str:
    """The name of an entity: "<http://dbpedia.org/resource/Heat_(1995_film)>" is "Heat"."""
    return squeeze(without_parentheses(uri.rsplit("/", 1)[-1].translate(_NOT_A_LETTER)))


@dataclasses.dataclass(frozen=True)
class Match:
    """The name in a catalogue that is nearest to a line.

    Attributes:
      name: the nearest name; of several, the first in alphabetical order.
      distance: edits (insert, remove, replace a character) between the two in lower case.
      tied: whether other names are as near.
    """

    name: str
    distance: int
    tied: bool


def nearest_names(lines: Iterable[str], names: Iterable[str]) -> dict[str, Match]:
    """Finds the nearest name of every line, exactly.

    Names whose length differs from the line's by more than the distance found so far are not compared: every edit
    changes the length by one at most.

    Args:
      lines: any texts; the same one is looked up once.
      names: of the catalogue, at least one.

    Returns:
      the match of every line.

    Raises:
      ValueError: there is no name, or the extra `synthesis` is not installed.
    """
    catalogue = sorted(set(names), key=lambda name: (len(name.lower()), name))
    if not catalogue:
        raise ValueError("got no names, expected at least one; check the entities file")
    lowered = [name.lower() for name in catalogue]
    lengths = np.asarray([len(name) for name in lowered])
    rank = np.empty(len(catalogue), np.int64)
    rank[sorted(range(len(catalogue)), key=catalogue.__getitem__)] = np.arange(len(catalogue))
    in_order = sorted(catalogue)
    lines = set(lines)
    wanted = sorted({line.lower() for line in lines}, key=lambda line: (len(line), line))
    found = {}
    for length, group in itertools.groupby(wanted, key=len):
        same_length = list(group)
        for line, first, distance, count in zip(
            same_length, *_nearest(same_length, length, lowered, lengths, rank), strict=True
        ):
            found[line] = Match(in_order[first], int(distance), bool(count > 1))
    return {line: found[line.lower()] for line in lines}


def _nearest(
    queries: Sequence[str], length: int, names: Sequence[str], lengths: np.ndarray, rank: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For queries of one length: lowest rank of the nearest names, their distance, and how many they are.

    Args:
      queries: in lower case.
      length: of each, in characters.
      names: in lower case, ascending in length.
      lengths: of the names [N].
      rank: place of each name in alphabetical order [N].

    Returns:
      three int64 arrays [queries].
    """
    best = np.full(len(queries), np.iinfo(np.int64).max)
    first, count = np.full(len(queries), len(names)), np.zeros(len(queries), np.int64)
    low = high = int(np.searchsorted(lengths, length))
    done, reach = -1, 1  # names whose length differs by `done` or less were compared
    while True:
        below = int(np.searchsorted(lengths, length - reach))
        above = int(np.searchsorted(lengths, length + reach, side="right"))
        ring = np.concatenate([np.arange(below, low), np.arange(high, above)])
        open_ = np.flatnonzero(best > done)
        if ring.size and open_.size:
            near = [names[place] for place in ring]
            size = max(1, _CHUNK // len(near))
            for begin in range(0, len(open_), size):
                chosen = open_[begin : begin + size]
                distances = _distances([queries[n] for n in chosen], near)
                nearest = distances.min(axis=1).astype(np.int64)
                same = distances == nearest[:, None]
                earliest = np.where(same, rank[ring][None, :], len(names)).min(axis=1)
                closer, equal = nearest < best[chosen], nearest == best[chosen]
                count[chosen] = np.where(closer, 0, count[chosen]) + np.where(closer | equal, same.sum(axis=1), 0)
                first[chosen] = np.where(
                    closer, earliest, np.where(equal, np.minimum(first[chosen], earliest), first[chosen])
                )
                best[chosen] = np.minimum(best[chosen], nearest)
        low, high, done = below, above, reach
        if (low == 0 and high == len(names)) or not (best > reach).any():
            return first, best, count
        reach = max(reach + 1, reach * 3 // 2)


def _distances(queries: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Edit distances [queries, names]."""
    process, distance = (
        import_extra(f"rapidfuzz.{name}", "synthesis", "scoring recommendations needs")
        for name in ("process", "distance")
    )
    longest = max(max(map(len, queries)), max(map(len, names)))
    dtype = np.uint8 if longest < 2**8 else np.uint16 if longest < 2**16 else np.uint32
    return process.cdist(queries, names, scorer=distance.Levenshtein.distance, dtype=dtype, workers=-1)
