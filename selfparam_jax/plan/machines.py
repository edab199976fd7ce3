"""The machines that a job can be planned for: published numbers of their devices, and how they are connected."""

import dataclasses
import math
import re

USABLE = 0.92  # share of the memory that a program gets; the rest is the runtime's
MOST_DEVICES = 16384  # more than any machine of one mesh has


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peak numbers of one device.

    Attributes:
      flops: dense bfloat16 operations per second.
      memory: bytes.
      bandwidth: of the memory, bytes per second.
      link: bytes per second that it sends to its neighbours, all links together, in one direction.
      per_device: what the maker's name counts for one device (v4 and v5p count cores, two to a device).
      cycle_flops: of a TPU, operations of all its matrix units in one cycle of the clock.
      axes: of a TPU, axes of the grid that devices are connected in; 0 for a GPU.
      layers_ahead: how many layers' weights its compiler gathers before they are needed, beside those in use.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    per_device: int = 1
    cycle_flops: float = 0.0
    axes: int = 0
    layers_ahead: int = 0

    @property
    def compiler(self) -> str:
        """The compiler of this device, of `compilers.COMPILERS`."""
        return "tpu" if self.axes else "gpu"

    @property
    def clock(self) -> float:
        """Cycles per second of a TPU, from its published peak."""
        return self.flops / self.cycle_flops


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 150e9, 2, 2 * 8 * 128**2, 3),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 100e9, 1, 2 * 4 * 128**2, 2),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 300e9, 2, 2 * 8 * 128**2, 3),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 224e9, 1, 2 * 4 * 256**2, 2),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, layers_ahead=1),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, layers_ahead=1),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, layers_ahead=1),
    "b200": Chip(2250e12, 180e9, 8000e9, 900e9, layers_ahead=1),
}


@dataclasses.dataclass(frozen=True)
class Machine:
    """Several devices of one kind.

    Attributes:
      name: as the user gave it.
      chip: what each device is.
      count: number of devices.
    """

    name: str
    chip: Chip
    count: int

    @property
    def kind(self) -> str:
        """Of its devices, as in `CHIPS`."""
        return self.name.partition("-")[0].replace("v5litepod", "v5e")

    def grid(self) -> tuple[int, ...]:
        """How many TPUs there are along each axis of the slice: (4, 4) for v5e-16, (2, 2, 1) for v4-8.

        Raises:
          ValueError: there is no slice of this number.
        """
        sizes = [1] * self.chip.axes
        while math.prod(sizes) < self.count:
            least = min(sizes)
            # 2 x 2 before 2 x 4, and 2 x 2 x 4 before 2 x 4 x 4.
            sizes[sizes.index(1) if least == 1 else len(sizes) - 1 - sizes[::-1].index(least)] *= 2
        if math.prod(sizes) != self.count:
            nearest = self.kind, math.prod(sizes) * self.chip.per_device
            raise ValueError(
                f"devices = {self.name}: the TPU's compiler takes slices of a power of two, for example "
                f"{nearest[0]}-{nearest[1]}; --compiler=cpu plans others"
            )
        return tuple(sizes)


def read_machine(name: str) -> Machine:
    """A machine by its name, KIND-COUNT, such as "v5e-16" or "h100-8".

    Raises:
      ValueError: the kind is not known, or the number is not possible.
    """
    found = re.fullmatch(r"(\w+?)-([0-9]+)", name)
    kind = found[1].replace("v5litepod", "v5e") if found else ""
    if kind not in CHIPS:
        raise ValueError(f"devices = {name!r}, expected KIND-COUNT with a kind of {', '.join(CHIPS)}, such as v5e-16")
    chip, digits = CHIPS[kind], found[2].lstrip("0") or "0"
    most = MOST_DEVICES * chip.per_device
    if len(digits) > len(str(most)) or not 1 <= int(digits) <= most:
        shown = digits if len(digits) <= 20 else f"{digits[:20]}..."
        raise ValueError(f"devices = {kind}-{shown}, expected a number from 1 to {most}")
    if int(digits) % chip.per_device:
        raise ValueError(f"devices = {name!r}: {kind} counts cores, {chip.per_device} a chip; use a multiple of that")
    return Machine(name, chip, int(digits) // chip.per_device)
