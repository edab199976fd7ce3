"""The text of a compiled program (XLA's HLO, as `compiled.as_text()` gives it) as instructions in computations."""

import dataclasses
import math
import re
from collections.abc import Iterator

_HEADER = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_SHAPE = re.compile(r"\b(pred|[subf]\w*?\d+\w*)\[([\d,]*)\](\{[^}]*\})?")
_MEMORY = re.compile(r"S\(\d+\)")  # in a layout: a memory on the chip, not the device's main memory
_TRIPS = re.compile(r'known_trip_count[":{\\]+n[":\\]+(\d+)')
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def item_bytes(dtype: str) -> float:
    """Bytes of one element of an HLO type."""
    return 1 if dtype == "pred" else max(int(re.search(r"\d+", dtype)[0]) / 8, 0.5)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result.

    Attributes:
      dtype: as HLO writes it, such as "bf16".
      sizes: of its axes.
      on_chip: whether it is in on-chip memory instead of the device's main memory.
    """

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool = False

    @property
    def elements(self) -> int:
        return math.prod(self.sizes)

    @property
    def bytes(self) -> float:
        return self.elements * item_bytes(self.dtype)


def arrays(shape: str) -> list[Array]:
    """All arrays of a shape, which may be a tuple of tuples."""
    found = []
    for dtype, sizes, layout in _SHAPE.findall(shape):
        numbers = tuple(int(n) for n in sizes.split(",") if n)
        found.append(Array(dtype, numbers, bool(_MEMORY.search(layout))))
    return found


def _closing(text: str, begin: int) -> int:
    """The place of the bracket that closes the one at `begin`."""
    depth = 0
    for place in range(begin, len(text)):
        depth += (text[place] in "({[") - (text[place] in ")}]")
        if not depth:
            return place
    raise ValueError(f"got a line of HLO whose brackets do not close: {text[:200]}; plan/hlo.py must learn it")


def parts(text: str) -> list[str]:
    """What stands between the commas of a list, leaving those within brackets alone."""
    found, depth, begin = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "({[") - (letter in ")}]")
        if letter == "," and not depth:
            found.append(text[begin:place].strip())
            begin = place + 1
    last = text[begin:].strip()
    return [*found, last] if last else found


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: of its result.
      shape: of its result, as text.
      kind: the operation.
      operands: names of the results that it reads.
      inside: the text between the operation's brackets.
      rest: the text after them: attributes, metadata, the compiler's notes.
      is_root: whether it is the computation's result.
    """

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    inside: str
    rest: str
    is_root: bool

    @property
    def arrays(self) -> list[Array]:
        return arrays(self.shape)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs, or that say how it reduces."""
        found = _CALLED.findall(self.rest)
        if branches := _BRANCHES.search(self.rest):
            found += [name.strip().lstrip("%") for name in branches[1].split(",")]
        return found


def _read_line(line: str) -> Instruction | None:
    before, equals, after = line.strip().partition(" = ")
    if not equals:
        return None
    name = before.removeprefix("ROOT ").lstrip("%")
    end = _closing(after, 0) + 1 if after.startswith("(") else after.find(" ")
    shape, call = after[:end], after[end:].lstrip()
    begin = call.find("(")
    if end <= 0 or begin <= 0 or not re.fullmatch(r"[\w\-]+", call[:begin]):
        return None
    close = _closing(call, begin)
    inside = re.sub(r"/\*.*?\*/", "", call[begin + 1 : close])
    operands = tuple(part.split(" ")[-1].lstrip("%") for part in parts(inside))
    return Instruction(name, shape, call[:begin], operands, inside, call[close + 1 :], before.startswith("ROOT "))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: name -> the instructions by name, in their order.
      entry: the computation that is run.
    """

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def root(self, computation: str) -> Instruction:
        """The instruction that gives a computation's result."""
        return next(each for each in self.computations[computation].values() if each.is_root)

    def rounds(self, loop: Instruction, unknown: int) -> int:
        """How often a `while` runs: as its text says, or as its condition counts; `unknown` if neither does."""
        if said := _TRIPS.search(loop.rest):
            return int(said[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.rest)[1]
        root = self.root(condition)
        if root.kind == "compare" and "direction=LT" in root.rest:
            bound = self.computations[condition].get(root.operands[1])
            if bound is not None and bound.kind == "constant":
                return int(bound.inside)
        return unknown


def read_program(text: str) -> Program:
    """Reads a compiled program's text."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, now = "", None
    for line in _whole_lines(text):
        if header := _HEADER.match(line):
            now = computations.setdefault(header[1], {})
            entry = header[1] if line.startswith("ENTRY") else entry
        elif line == "}":
            now = None
        elif now is not None and (instruction := _read_line(line)):
            now[instruction.name] = instruction
    return Program(computations, entry)


def _whole_lines(text: str) -> Iterator[str]:
    """The lines of a program; a kernel's metadata, which goes over several, in one."""
    held = ""
    for line in text.splitlines():
        goes_on = held.startswith("  ") and line != "}" and not line.startswith("  ")
        if held and not goes_on:
            yield held
            held = ""
        held += line
    if held:
        yield held
