"""What a compiled program computes, moves and sends on each device, with loops counted as often as they run.

XLA's own cost analysis counts a loop's body once. Here the program's text is read, of the CPU's, the GPU's and the
TPU's compiler. The TPU's also writes how many cycles it expects of each operation.
"""

import collections
import dataclasses
import itertools
import math
import re

from selfparam_jax.plan.hlo import Array, Instruction, Program, arrays, item_bytes, parts, read_program

_LISTED = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_CYCLES = re.compile(r'"estimated_cycles":"(\d{1,15})"')  # longer: the largest number there is, for "not known"
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_STARTED = 'custom_call_target="AsyncCollectiveStart"'  # within a fusion of the TPU's compiler
# Operations that move nothing by themselves; the ends of transfers were counted where they began.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
_FREE |= {"after-all", "partition-id", "replica-id", "opt-barrier", "async-start", "async-update", "async-done"}
_VIEWS = ("bitcast", "reshape", "copy", "convert")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices.

    Attributes:
      kind: of `COLLECTIVES`.
      largest: elements of the largest array that it makes on a device.
      sent: bytes that a device sends in one run of it, if it is done in a ring.
      overlaps: whether the program computes something else between its start and its end.
    """

    kind: str
    largest: int
    sent: float
    overlaps: bool


@dataclasses.dataclass
class Costs:
    """Costs of one run of a program, on one device.

    Attributes:
      flops: of all matrix products, two per multiplication and addition.
      bytes: read from and written to the device's main memory.
      cycles: that the compiler expects of the core; 0 from compilers that do not say.
      kernels: how often it runs a kernel of which the compiler knows neither operations nor cycles (Pallas).
      collectives: how often each transfer runs.
    """

    flops: float = 0.0
    bytes: float = 0.0
    cycles: float = 0.0
    kernels: float = 0.0
    collectives: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Costs", times: float) -> None:
        """Adds the costs of something that runs `times` times."""
        self.flops += other.flops * times
        self.bytes += other.bytes * times
        self.cycles += other.cycles * times
        self.kernels += other.kernels * times
        for each, count in other.collectives.items():
            self.collectives[each] += count * times

    @property
    def sent(self) -> dict[str, float]:
        """Bytes that a device sends, by the kind of collective."""
        return self._sent(self.collectives)

    @property
    def exposed(self) -> dict[str, float]:
        """The part of `sent` during which the program waits."""
        return self._sent(each for each in self.collectives if not each.overlaps)

    def _sent(self, chosen) -> dict[str, float]:
        found: collections.Counter = collections.Counter()
        for each in chosen:
            found[each.kind] += each.sent * self.collectives[each]
        return dict(sorted(found.items()))


def _dot_flops(instruction: Instruction, known: dict[str, Instruction]) -> float:
    """2 x the elements of the result x the length of the axes that are summed over."""
    left = known[instruction.operands[0]].arrays[0].sizes
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)
    summed = math.prod(left[int(n)] for n in contracted[1].split(",") if n) if contracted else 1
    return 2.0 * instruction.arrays[0].elements * summed


def _convolution_flops(instruction: Instruction, known: dict[str, Instruction]) -> float:
    """A convolution, as which the TPU's compiler writes products: only the taps that fall onto the operand count."""
    left, right = (known[name].arrays[0].sizes for name in instruction.operands[:2])
    out = instruction.arrays[0].sizes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    on_left, on_right, on_out = labels.groups()
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", found[1])) if (found := _window(instruction.rest)) else {}
    summed = right[on_right.index("i")]
    pairs = 1
    for n, axis in enumerate(label for label in on_out if label.isdigit()):
        sizes = left[on_left.index(axis)], right[on_right.index(axis)], out[on_out.index(axis)]
        pairs *= _taps(*sizes, *_window_of(window, n))
    groups = re.search(r"batch_group_count=(\d+)", instruction.rest)
    kept = out[on_out.index("b")] * out[on_out.index("f")]
    return 2.0 * kept * summed * pairs / (int(groups[1]) if groups else 1)


def _window(rest: str) -> re.Match | None:
    return re.search(r"window=\{([^}]*)\}", rest)


def _window_of(window: dict[str, str], n: int) -> tuple[int, int, int, int]:
    """stride, padding before, dilation of the operand, dilation of the window along one axis."""

    def number(name, default):
        return window[name].split("x")[n] if name in window else default

    pad = str(number("pad", "0_0")).split("_")[0]
    return int(number("stride", 1)), int(pad), int(number("lhs_dilate", 1)), int(number("rhs_dilate", 1))


def _taps(size, window, out, stride, pad, dilation, window_dilation) -> int:
    """Pairs of an output and a window's element for which there is an element of the operand."""
    count = 0
    for n in range(out):
        for k in range(window):
            place = n * stride + k * window_dilation - pad
            count += 0 <= place <= (size - 1) * dilation and place % dilation == 0
    return count


def _library_flops(instruction: Instruction, known: dict[str, Instruction]) -> float:
    """A product by cuBLAS: 2 x the elements of its result x the length of the axes that are summed over."""
    axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.rest)
    if "__cublas" not in instruction.rest or not axes:
        return 0.0
    left = known[instruction.operands[0]].arrays[0].sizes
    return 2.0 * instruction.arrays[0].elements * math.prod(left[int(n)] for n in re.findall(r"\d+", axes[1]))


_FLOPS = {"dot": _dot_flops, "convolution": _convolution_flops, "custom-call": _library_flops}


def _group_size(rest: str) -> int:
    """How many devices a collective joins, in each of the ways in which XLA writes it."""
    if listed := _LISTED.search(rest):
        return len(listed[1].split(","))
    if counted := _COUNTED.search(rest):
        return int(counted[1])
    if named := _NAMED.search(rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        return math.prod(sizes[name] for name in re.findall(r"'([^']+)'", named[2]))
    raise ValueError(
        f"got a collective whose groups are written in an unknown way: {rest[:200]}; plan/costs.py must learn it"
    )


def _made(instruction: Instruction) -> list[Array]:
    """The arrays that a collective makes; one that is only started also has its operands in its result."""
    pieces = parts(instruction.shape[1:-1]) if instruction.shape.startswith("(") else []
    both = len(pieces) > 1 and instruction.kind.endswith("-start") and not instruction.kind.startswith("all-reduce")
    return arrays(pieces[1]) if both else instruction.arrays


def _read_collective(instruction: Instruction, overlaps: bool, float_bytes: float) -> Collective:
    kind, made = instruction.kind.removesuffix("-start"), _made(instruction)
    size = sum(each.elements * (float_bytes if each.dtype == "f32" else item_bytes(each.dtype)) for each in made)
    largest = max((each.elements for each in made), default=0)
    if kind != "collective-permute":
        count = _group_size(instruction.rest)
        others = (count - 1) / count
        size *= {"all-reduce": 2, "reduce-scatter": count}.get(kind, 1) * others
    return Collective(kind, largest, size, overlaps)


def _channel(instruction: Instruction) -> str | None:
    found = re.search(r"channel_id=(\d+)", instruction.rest)
    return found[1] if found else None


def _started_channels(program: Program) -> set[str | None]:
    """Channels of transfers that the TPU's compiler spreads over several fusions."""
    return {
        _channel(each)
        for lines in program.computations.values()
        if any(_STARTED in each.rest for each in lines.values())
        for each in lines.values()
        if each.kind in COLLECTIVES
    }


def _collectives(
    program: Program, computation: str, float_bytes: float, spread: set[str | None]
) -> collections.Counter:
    """The collectives of a computation that is run, those in its fusions included.

    A transfer that the TPU's compiler spreads over several fusions (`spread`: their channels) counts once, where it
    is started: its other parts may be in a loop that runs meanwhile.
    """
    found: dict[object, Collective] = {}
    starting: set[str] = set()  # fusions that start one
    begins: set[object] = set()  # channels of those that are started here

    def read(name: str, started: bool) -> None:
        lines = list(program.computations[name].values())
        for place, each in enumerate(lines):
            kind = each.kind.removesuffix("-start")
            if kind in COLLECTIVES:
                begun = started or _computes_meanwhile(each, lines[place + 1 :])
                key = _channel(each) or (name, each.name)
                if name in starting:
                    begins.add(key)
                begun = begun or (key in found and found[key].overlaps)
                found[key] = _read_collective(each, begun, float_bytes)
            elif each.kind in ("fusion", "async-start"):
                for callee in each.called:
                    if callee in program.computations:
                        own = any(_STARTED in line.rest for line in program.computations[callee].values())
                        if own:
                            starting.add(callee)
                        read(callee, own or _computes_meanwhile(each, lines[place + 1 :]))

    read(computation, False)
    return collections.Counter(each for key, each in found.items() if key not in spread or key in begins)


def _computes_meanwhile(start: Instruction, later: list[Instruction]) -> bool:
    """Whether something is computed between the start of a transfer and its end."""
    if not start.kind.endswith("-start") or '"is_sync":true' in start.rest:
        return False
    meanwhile = itertools.takewhile(lambda each: start.name not in each.operands or "-done" not in each.kind, later)
    return any(each.kind in ("fusion", "custom-call", "dot", "convolution", "while") for each in meanwhile)


def _in_memory(shape: str) -> float:
    """Bytes of a shape's arrays in the device's main memory; scalars do not count."""
    return sum(each.bytes for each in arrays(shape) if each.sizes and not each.on_chip)


def _moved(program: Program, instruction: Instruction, known: dict[str, Instruction]) -> float:
    """Bytes that one instruction reads from and writes to the device's main memory."""
    kind = instruction.kind
    if kind in _FREE or kind.endswith("-done") or kind.endswith("-update"):
        return 0.0
    if kind in ("copy-start", "slice-start"):  # (what is made, where it comes from), or the other way round
        pieces = parts(instruction.shape[1:-1])
        made = arrays(pieces[0] if kind == "copy-start" else pieces[1])[0]
        ends = [made, arrays(pieces[1] if kind == "copy-start" else pieces[0])[0]]
        return made.bytes * sum(not end.on_chip for end in ends)
    read = [_in_memory(known[name].shape) if name in known else 0.0 for name in instruction.operands]
    written = _in_memory(instruction.shape)
    if kind == "dynamic-slice":
        return (written if read[0] else 0.0) + written
    if kind == "dynamic-update-slice":
        return 2 * read[1] if len(read) > 1 else 0.0
    if kind != "fusion" or not instruction.called or instruction.called[0] not in program.computations:
        return sum(read) + written
    body, passes = program.computations[instruction.called[0]], "output_to_operand_aliasing" in instruction.rest
    for each in body.values():
        if each.kind == "parameter" and int(each.inside) < len(read) and read[int(each.inside)]:
            read[int(each.inside)] = min(read[int(each.inside)], _used(program, body, each, passes))
    return sum(read) + min(written, _results(body, program.root(instruction.called[0]), passes))


def _used(program: Program, body: dict[str, Instruction], parameter: Instruction, passes: bool = False) -> float:
    """Bytes that a fusion reads of a parameter: of one that is only sliced, the slices.

    `passes`: results share their place with parameters. A buffer that is only handed on to a result, or filled by a
    transfer meanwhile, is not read.
    """
    total = 0.0
    for user in (each for each in body.values() if parameter.name in each.operands):
        if user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            total += sum(each.bytes for each in user.arrays)
        elif user.kind == "bitcast":
            total += _used(program, body, user)
        elif user.kind == "fusion" and user.called and user.called[0] in program.computations:
            inner = program.computations[user.called[0]]
            places = [place for place, name in enumerate(user.operands) if name == parameter.name]
            total += sum(
                _used(program, inner, each)
                for each in inner.values()
                if each.kind == "parameter" and int(each.inside) in places
            )
        elif passes and user.kind in ("tuple", *COLLECTIVES):
            continue
        elif user.kind != "dynamic-update-slice" or user.operands[0] != parameter.name:
            return math.inf
    return total


def _results(body: dict[str, Instruction], root: Instruction, passes: bool = False) -> float:
    """Bytes that a fusion writes: of an array that is updated in place, the update; `passes` as `_used` has it."""
    if root.kind == "tuple":
        return sum(_results(body, body[name], passes) for name in root.operands if name in body)
    if passes and root.kind in ("parameter", *COLLECTIVES):
        return 0.0
    if root.kind in _VIEWS and root.operands and root.operands[0] in body:
        inner = body[root.operands[0]]
        if inner.kind in (*_VIEWS, "dynamic-update-slice"):
            return _results(body, inner)
    if root.kind == "dynamic-update-slice" and root.operands[1] in body:
        return sum(each.bytes for each in body[root.operands[1]].arrays)
    return sum(each.bytes for each in root.arrays)


def costs(text: str, unknown_trips: int = 1, float_bytes: float = 4) -> Costs:
    """Reads the costs from a compiled program's text.

    Args:
      text: `compiled.as_text()`.
      unknown_trips: rounds of a loop whose text does not give their number.
      float_bytes: bytes that a float32 element counts when it is sent (2: as if the program were in bfloat16).

    Returns:
      the costs of one run of the program on one device.

    Raises:
      ValueError: a collective or a line is written in an unknown way.
    """
    program = read_program(text)
    spread = _started_channels(program)
    flops: dict[str, float] = {}
    totals: dict[str, Costs] = {}

    def flops_of(name: str) -> float:
        """Of a computation within a fusion."""
        if name not in flops:
            known, total = program.computations[name], 0.0
            for each in known.values():
                total += _FLOPS[each.kind](each, known) if each.kind in _FLOPS else 0.0
                if each.kind == "fusion":
                    total += sum(flops_of(callee) for callee in each.called if callee in program.computations)
            flops[name] = total
        return flops[name]

    def total(name: str) -> Costs:
        """Of a computation that is run."""
        if name in totals:
            return totals[name]
        known = program.computations[name]
        found = totals[name] = Costs(flops_of(name), collectives=_collectives(program, name, float_bytes, spread))
        for each in known.values():
            found.bytes += _moved(program, each, known)
            found.kernels += 'custom_call_target="tpu_custom_call"' in each.rest
            if said := _CYCLES.search(each.rest):
                found.cycles += float(said[1])
            if each.kind in ("while", "conditional", "call", "async-start"):
                rounds = program.rounds(each, unknown_trips) if each.kind == "while" else 1
                for callee in each.called:
                    if callee in program.computations:
                        part = total(callee)
                        if each.kind == "async-start":  # its transfers are counted where it stands
                            part = dataclasses.replace(part, collectives=collections.Counter())
                        found.add(part, rounds)
        return found

    return total(program.entry)
