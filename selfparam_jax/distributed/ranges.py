"""Ranges of numbers, declared beside the field they belong to, and the one function that checks them.

    rank: Annotated[int, Range(1, 16384)] = 8

A dataclass calls `check_ranges(self, "lora")` in its `__post_init__`. An upper bound is there so that nonsense (a
size that no machine can allocate, a weight that is infinite in float32) is refused before anything is read; it is far
above what is of use.
"""

import dataclasses
import functools
import math
import numbers
import typing

LARGEST = 1e6  # of a weight, a factor or a price: its products stay far inside of float32


@dataclasses.dataclass(frozen=True)
class Range:
    """Finite numbers that a field may have.

    Attributes:
      least: the smallest.
      most: the largest.
      open_least: whether `least` itself is left out.
      open_most: whether `most` itself is left out.
      also: numbers outside of these that are possible, each with what it means: {0: "all"}.
    """

    least: float
    most: float
    open_least: bool = False
    open_most: bool = False
    also: typing.Mapping[float, str] = dataclasses.field(default_factory=dict)

    def has(self, value: object, kind: type) -> bool:
        """Whether a value is an int or float, as `kind` says, and within the range. NaN is in no range."""
        wanted = numbers.Integral if kind is int else numbers.Real
        if isinstance(value, bool) or not isinstance(value, wanted):
            return False
        above = value > self.least if self.open_least else value >= self.least
        below = value < self.most if self.open_most else value <= self.most
        return (above and below) or value in self.also

    def words(self, kind: type) -> str:
        """What is expected, such as "0 (all) or a whole number from 16 to 4096"."""
        what = "a whole number" if kind is int else "a number"
        least, most = _plain(self.least), _plain(self.most)
        if self.open_least:
            bounds = f"above {least} and {'below' if self.open_most else 'at most'} {most}"
        else:
            bounds = f"from {least} to {'below ' if self.open_most else ''}{most}"
        others = [f"{_plain(value)} ({meaning})" for value, meaning in self.also.items()]
        return " or ".join([*others, f"{what} {bounds}"])

    def check(self, name: str, value: object, kind: type) -> None:
        """Raises ValueError, with the name and what is expected, for a value outside the range."""
        if not self.has(value, kind):
            raise ValueError(f"{name} = {shown(value)}, expected {self.words(kind)}")


# Ranges that many fields have.
SHARE = Range(0, 1)
LIKELIHOOD = Range(0, 1, open_most=True)  # no model gives an answer the probability 1, so nothing would be left
WEIGHT = Range(0, LARGEST)
FACTOR = Range(1e-6, LARGEST)  # may be divided by
SEED = Range(0, 2**32 - 1)


def _plain(number: float) -> str:
    return str(int(number)) if isinstance(number, int) or number.is_integer() else f"{number:g}"


def shown(value: object) -> str:
    """A value for a message, on one short line."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no whole number of more than 4,300 digits
        text = f"a number of {math.floor(math.log10(abs(value))) + 1} digits"
    return text if len(text) <= 60 else f"{text[:60]}..."


@functools.cache
def ranges_of(section: type) -> dict[str, tuple[type, Range | None]]:
    """Type and range of every numeric field of a dataclass, by name; None for a field without a range."""
    found = {}
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        kind, *notes = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        if kind in (int, float):
            found[name] = kind, next((note for note in notes if isinstance(note, Range)), None)
    return found


def check_ranges(settings: object, section: str = "") -> None:
    """Checks the numeric fields of a dataclass instance against the ranges declared beside them.

    Args:
      settings: the instance.
      section: stands before a field's name in a message, as in "lora.rank"; "" for the name alone.

    Raises:
      ValueError: a value is no number of the field's type, not finite, or outside its range.
    """
    for name, (kind, within) in ranges_of(type(settings)).items():
        if within is not None:
            within.check(f"{section}.{name}" if section else name, getattr(settings, name), kind)
