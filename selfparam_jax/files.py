"""Files that are there whole or not at all: written under a temporary name, then renamed.

Of several processes the first writes them, and all must call the same functions (`processes.written_by_first`).
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from selfparam_jax.processes import written_by_first


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds and is removed if not."""
    with written_by_first(path) as place, replacing_own(place) as temporary:
        yield temporary


@contextlib.contextmanager
def replacing_own(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The same for a file that no other process has."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def digest(path: str | os.PathLike) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 with plain line ends."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_lines(path: str | os.PathLike, records: Iterable[dict]) -> None:
    """Writes one JSON object a line; NaN and infinity are refused."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
    write_text(path, "".join(lines))


def read_lines(path: str | os.PathLike) -> list[dict]:
    """Objects of a JSON lines file; a last line cut off by a kill is left out; [] if there is no file."""
    path = pathlib.Path(path)
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def read_json(path: str | os.PathLike) -> dict:
    """The content of a JSON file."""
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))


def write_json(path: str | os.PathLike, obj: object) -> None:
    """Writes JSON for people to read; NumPy values are allowed, NaN and infinity are refused."""
    try:
        text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        where = _not_finite(obj, "")
        if where is None:
            raise
        raise ValueError(
            f"{path}: got a number that is not finite at {where}, expected finite numbers (JSON has no NaN); "
            "find where it arises, or write null if it was not measured"
        ) from error
    write_text(path, text + "\n")


def _plain(value: object) -> object:
    if hasattr(value, "__array__"):  # NumPy and JAX scalars and arrays
        return np.asarray(value).tolist()
    raise TypeError(f"got a {type(value).__name__}, expected what JSON can hold; convert it first")


def _not_finite(obj: object, where: str) -> str | None:
    """Returns the place of the first number that is not finite, like 'scores.base_q.f1'."""
    if hasattr(obj, "__array__"):
        obj = _plain(obj)
    if isinstance(obj, float):
        return None if math.isfinite(obj) else where or "the top"
    items = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, list | tuple) else ()
    places = (_not_finite(value, f"{where}.{key}" if where else str(key)) for key, value in items)
    return next((place for place in places if place), None)
