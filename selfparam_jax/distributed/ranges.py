"""What a setting or an argument may be, and the few functions that check it.

    rank: Annotated[int, Range(1, 16384)] = 8

A dataclass calls `check_ranges(self, "lora")` in its `__post_init__`: the range of a number is declared beside the
field it belongs to. An upper bound is there so that nonsense (a size that no machine can allocate, a weight that is
infinite in float32) is refused before anything is read; it is far above what is of use. The arguments of public
functions are checked one by one, with `check_type` and its like.
"""

import collections.abc
import dataclasses
import functools
import math
import numbers
import os
import typing

import numpy as np

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


def given(value: object) -> str:
    """What was given, for a message: a plain value itself, of others what they are ("a dict")."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, str | bytes | numbers.Number):
        return shown(value)
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def check_type(name: str, value: object, kinds: typing.Any, expected: str, advice: str) -> None:
    """Checks the type of an argument.

    Args:
      name: of the argument.
      value: what was given.
      kinds: a type, or several as `isinstance` takes them.
      expected: these in words, "an Adapter".
      advice: what to do.

    Raises:
      TypeError: it is of another.
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name}: got {given(value)}, expected {expected}; {advice}")


def check_choice(name: str, value: object, allowed: typing.Collection[str]) -> None:
    """Raises TypeError or ValueError for a value that is none of some words."""
    expected = f"one of {', '.join(map(repr, allowed))}"
    check_type(name, value, str, expected, "write it as a string")
    if value not in allowed:
        raise ValueError(f"{name}: got {shown(value)}, expected {expected}; correct it")


def check_number(name: str, value: object, within: Range, kind: type = int) -> None:
    """Checks a number.

    Args:
      name: of the argument.
      value: what was given.
      within: the numbers that are possible.
      kind: int or float.

    Raises:
      TypeError: it is no number of the kind.
      ValueError: it is outside the range.
    """
    if not within.has(value, kind):
        wanted = numbers.Integral if kind is int else numbers.Real
        error = ValueError if isinstance(value, wanted) and not isinstance(value, bool) else TypeError
        raise error(f"{name}: got {given(value)}, expected {within.words(kind)}; correct it")


def check_path(name: str, value: object, expected: str = "a path") -> None:
    """Raises TypeError or ValueError for what is no path, or an empty one, which would be the current directory."""
    check_type(name, value, str | os.PathLike, expected, "give it as a string or a pathlib.Path")
    path = os.fspath(value)
    check_type(name, path, str, expected, "give it as a string or a pathlib.Path")
    if not path.strip():
        raise ValueError(f"{name}: got an empty string, expected {expected}; fill it in")


def check_list(name: str, value: object, kinds: typing.Any, expected: str, advice: str) -> list:
    """The items of a list, a tuple or another iterable that has an order.

    Args:
      name: of the argument.
      value: what was given; one string is no list of characters, and a dict none of its keys.
      kinds: type of the items, or several.
      expected: the whole in words, "a list of strings".
      advice: what to do.

    Returns:
      the items.

    Raises:
      TypeError: it is no list, or an item is of another type, whose place is named.
    """
    one = isinstance(value, str | bytes | collections.abc.Mapping | collections.abc.Set | type)
    if one or not hasattr(value, "__iter__"):
        raise TypeError(f"{name}: got {given(value)}, expected {expected}; {advice}")
    items = list(value)
    for place, item in enumerate(items):
        check_type(f"{name}[{place}]", item, kinds, f"{name} to be {expected}", advice)
    return items


@functools.cache
def ranges_of(section: type) -> dict[str, tuple[type, Range | None]]:
    """Type and range of every numeric field of a dataclass, by name; None for a field without a range."""
    found = {}
    for name, hint in typing.get_type_hints(section, include_extras=True).items():
        kind, *notes = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        if kind in (int, float):
            found[name] = kind, next((note for note in notes if isinstance(note, Range)), None)
    return found


@functools.cache
def kinds_of(section: type) -> dict[str, type]:
    """The type of every field of a dataclass that is True or False, or a settings dataclass itself, by name."""
    hints = typing.get_type_hints(section)
    return {name: kind for name, kind in hints.items() if kind is bool or dataclasses.is_dataclass(kind)}


@functools.cache
def texts_of(section: type) -> dict[str, bool]:
    """Every field of a dataclass that is a string (False) or a tuple of strings (True), by name."""
    hints = typing.get_type_hints(section)
    return {name: kind is not str for name, kind in hints.items() if kind in (str, tuple[str, ...])}


def check_kinds(section: type, values: typing.Mapping[str, object], prefix: str = "") -> None:
    """Raises TypeError for a field of `kinds_of` or `texts_of` with a value of another type.

    A class is no instance of itself, and a string no tuple of its characters.
    """
    for name, several in texts_of(section).items():
        if several:
            check_list(prefix + name, values[name], str, "a tuple of strings", "write it as ('a', 'b')")
        else:
            check_type(prefix + name, values[name], str, "a string", "write it in quotes")
    for name, kind in kinds_of(section).items():
        if kind is bool:
            check_type(prefix + name, values[name], bool, "True or False", "write it without quotes")
        else:
            advice = f"write {kind.__name__}(...) with its fields"
            check_type(prefix + name, values[name], kind, f"an instance of {kind.__name__}", advice)


def check_ranges(settings: object, section: str = "") -> None:
    """Checks a dataclass instance: numbers against the ranges declared beside them, and the types of other fields.

    A number or a truth value of NumPy is made Python's own, and a path a string, which a record in JSON needs; a list
    is made a tuple, which can be hashed.

    Args:
      settings: the instance.
      section: stands before a field's name in a message, as in "lora.rank"; "" for the name alone.

    Raises:
      ValueError: a value is no number of the field's type, not finite, or outside its range.
      TypeError: a field that is text, True or False, or settings of its own, has another value.
    """
    prefix = f"{section}." if section else ""
    for name, (kind, within) in ranges_of(type(settings)).items():
        value = getattr(settings, name)
        if within is not None:
            within.check(prefix + name, value, kind)
            if type(value) not in (int, float):
                object.__setattr__(settings, name, kind(value))
    for name, value in list(vars(settings).items()):
        if isinstance(value, os.PathLike):
            object.__setattr__(settings, name, os.fspath(value))
        elif isinstance(value, np.bool_ | list):
            object.__setattr__(settings, name, tuple(value) if isinstance(value, list) else bool(value))
    check_kinds(type(settings), vars(settings), prefix)
