"""Files that are complete or not there at all: written under a temporary name, then renamed.

Of several processes the main one writes them; all must call the same functions (`processes.written_by_main_process`).
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from flax import traverse_util

from selfparam_jax.distributed.processes import written_by_main_process


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds and is removed if not."""
    with written_by_main_process(path) as place, replacing_own(place) as temporary:
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
    """Objects of a JSON lines file; [] if there is no file.

    A last line without a line break is read if it is whole. If it does not parse, a kill cut it off, and it is left
    out.

    Raises:
      ValueError: another line is not a JSON object, or has text that is not Unicode.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    records = [_read_line(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if last.strip() and _parses(last):
        records.append(_read_line(last, f"{path}, line {len(lines) + 1}"))
    return records


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _read_line(line: bytes, where: str) -> dict:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: got malformed JSON ({error}), expected one JSON object a line") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: got {line[:40].decode('utf-8', 'replace')!r}, expected one JSON object a line")
    refuse_surrogates(record, where)
    return record


def refuse_surrogates(value: object, where: str) -> None:
    """Raises ValueError if a string in a JSON value holds half of a character, which no file or tokenizer takes.

    Only a JSON escape such as "\\ud800" without its second half can bring one in.
    """
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: got half of a character (the lone surrogate {value[error.start]!a}) at character "
                f"{error.start}, expected text; remove it or write the whole character"
            ) from None
    elif isinstance(value, dict):
        for key, item in value.items():
            refuse_surrogates(key, where)
            refuse_surrogates(item, where)
    elif isinstance(value, list | tuple):
        for item in value:
            refuse_surrogates(item, where)


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


def flatten(tree: dict) -> dict:
    """{"lora": {"rank": 8}} -> {"lora.rank": 8}."""
    return traverse_util.flatten_dict(tree, sep=".")


def differences(old: dict, new: dict) -> list[str]:
    """A line for every setting that two flat dicts do not share."""
    missing = "(not set)"
    return [
        f"  {name}: {old.get(name, missing)!r} there, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]
