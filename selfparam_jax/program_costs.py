"""What a compiled program does on each device: products and communication, loops counted as often as they run.

XLA's own cost analysis counts a loop's body once; here its text is read, where every loop over layers says how often
it runs.
"""

import collections
import dataclasses
import math
import re

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(pred|[subf]\w*?\d+\w*)\[([\d,]*)\]")
_CALLS = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count[":{\\]+n[":\\]+(\d+)')
_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass
class Costs:
    """Of one run of a program, on one device.

    Attributes:
      flops: of all matrix products, two per multiplication and addition.
      sent: bytes that each kind of collective sends over the device's links, as rings do it.
    """

    flops: float = 0.0
    sent: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Costs", times: float) -> None:
        """Adds what runs so many times."""
        self.flops += other.flops * times
        for kind, count in other.sent.items():
            self.sent[kind] += count * times


def item_bytes(dtype: str) -> float:
    """Bytes of one element of an HLO type."""
    return 1 if dtype == "pred" else max(int(re.search(r"\d+", dtype)[0]) / 8, 0.5)


def _shapes(text: str) -> list[tuple[str, list[int]]]:
    return [(dtype, [int(n) for n in sizes.split(",") if n]) for dtype, sizes in _SHAPE.findall(text)]


def _size(text: str, float_bytes: float) -> float:
    return sum(
        (float_bytes if dtype == "f32" else item_bytes(dtype)) * math.prod(sizes) for dtype, sizes in _shapes(text)
    )


def _dot_flops(result: str, rest: str, known: dict[str, str]) -> float:
    """2 x the elements of the result x those that are summed over."""
    first = re.match(r"(?:[\w\[\]{},:()*]+ )?%?([\w.\-]+)", rest)[1]
    (_, left), *_ = _shapes(known[first])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", rest)
    summed = math.prod(left[int(n)] for n in contracted[1].split(",") if n) if contracted else 1
    return 2.0 * math.prod(_shapes(result)[0][1]) * summed


def _group_size(rest: str) -> int:
    """How many devices a collective joins: in each of the ways in which XLA writes that."""
    if listed := _LISTED.search(rest):
        return len(listed[1].split(","))
    if counted := _COUNTED.search(rest):
        return int(counted[1])
    if named := _NAMED.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", named[2]))
    raise ValueError(f"a collective without groups that are known: {rest[:200]}; program_costs.py must learn them")


def _sent(kind: str, result: str, rest: str, float_bytes: float) -> float:
    size = _size(result, float_bytes)
    if kind == "collective-permute":
        return size
    count = _group_size(rest)
    others = (count - 1) / count
    if kind == "all-reduce":
        return 2 * size * others
    if kind == "reduce-scatter":
        return size * count * others
    return size * others


def costs(text: str, unknown_trips: int = 1, float_bytes: float = 4) -> Costs:
    """Costs of a compiled program's text (`compiled.as_text()`).

    Args:
      unknown_trips: how often a loop is taken to run that does not say it.
      float_bytes: what a float32 element counts where it is sent (2: as if the program were in bfloat16).
    """
    own: dict[str, Costs] = {}
    calls: dict[str, list[tuple[str, float]]] = {}
    entry = name = ""
    known: dict[str, str] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, known = header[1], {}
            own[name], calls[name] = Costs(), []
            entry = name if line.startswith("ENTRY") else entry
        elif name and (found := _INSTRUCTION.match(line)):
            target, result, kind, rest = found.groups()
            known[target] = result
            if kind == "dot":
                own[name].flops += _dot_flops(result, rest, known)
            elif kind in COLLECTIVES:
                own[name].sent[kind] += _sent(kind, result, rest, float_bytes)
            trips = 1.0
            if kind == "while":
                said = _TRIPS.search(rest)
                trips = float(said[1]) if said else float(unknown_trips)
            called = _CALLS.findall(rest) if kind != "all-reduce" and kind != "reduce-scatter" else []
            if branches := _BRANCHES.search(rest):
                called += [branch.strip().lstrip("%") for branch in branches[1].split(",")]
            calls[name] += [(callee, trips) for callee in called]

    totals: dict[str, Costs] = {}

    def total(name: str) -> Costs:
        if name not in totals:
            totals[name] = Costs(own[name].flops, collections.Counter(own[name].sent))
            for callee, trips in calls[name]:
                if callee in own:
                    totals[name].add(total(callee), trips)
        return totals[name]

    return total(entry)
