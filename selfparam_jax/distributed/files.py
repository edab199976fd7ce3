"""Files that are complete or not there at all: written under a temporary name, then renamed.

Of several processes the main one writes them; all must call the same functions (`processes.written_by_main_process`).
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import pathlib
import tempfile
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging
from flax import traverse_util

from selfparam_jax.distributed.processes import written_by_main_process


class StorageError(OSError):
    """A disk does not keep what is written; says where and what to do."""


# What the operating system reports for a full, broken or missing disk.
DISK_ERRORS = {
    errno.ENOSPC: "no space is left on its disk",
    errno.EDQUOT: "the quota of its disk is used up",
    errno.EFBIG: "a file is larger than its disk allows",
    errno.EROFS: "its disk can no longer be written",
    errno.EIO: "its disk reports an error of reading or writing",
    errno.ESTALE: "its disk is no longer there",
    errno.ENOTCONN: "its disk is no longer there",
    errno.ENODEV: "its disk is no longer there",
}

# The same in the words of libraries, whose errors have no number.
DISK_WORDS = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)}


def disk_error(error: BaseException) -> tuple[int, str] | None:
    """The number (of DISK_ERRORS) and the file, "" if it is not known, where a disk is why something failed."""
    chain, seen = error, []
    while chain is not None and chain not in seen:
        seen.append(chain)
        number = chain.errno if isinstance(chain, OSError) else None
        number = number or next((found for words, found in DISK_WORDS.items() if words in str(chain)), None)
        if number in DISK_ERRORS:
            return number, str(getattr(chain, "filename", None) or "")
        chain = chain.__cause__ or chain.__context__
    return None


def refuse_folder(folder: str | os.PathLike, attempt: bool = True) -> str:
    """Why nothing can be written into a folder, which is there or is to be made; "" if nothing speaks against it.

    Nothing is left behind. Without `attempt` nothing is made either, so that only what permissions tell is found.

    Raises:
      OSError: its disk is full or broken.
    """
    folder = pathlib.Path(folder)
    there = folder.absolute()
    try:
        while not _is_there(there):
            there = there.parent
        if not there.is_dir():
            found = "it is" if there == folder.absolute() else f"{there} is"
            return f"{folder} cannot be a directory: {found} a file; choose another path"
        if not os.access(there, os.W_OK | os.X_OK):
            return f"{folder} cannot be written: {there} is read-only here; choose a directory that can be written"
        if attempt and there != folder.absolute():
            os.rmdir(tempfile.mkdtemp(prefix=".selfparam-", dir=there))
    except OSError as error:
        if error.errno in DISK_ERRORS:
            raise
        return f"{folder} cannot be made ({error.strerror}); choose a directory that can be written"
    return ""


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Within it, an error of the operating system that names no file names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def refuse_other_than_file(path: pathlib.Path) -> None:
    """Raises ValueError if a directory, a pipe or a device is at a path where a file is to be."""
    if os.path.exists(path) and not os.path.isfile(path):  # these do not mind a name that is too long
        raise ValueError(f"{path}: is a directory or a device, expected a file; choose another path")


def check_output(path: str | os.PathLike) -> None:
    """Raises ValueError if a file cannot be written at a path: what is there is no file, or its folder is missing."""
    refuse_other_than_file(path := pathlib.Path(path))
    if not path.absolute().parent.is_dir():
        raise ValueError(
            f"{path}: its folder does not exist, expected an existing one; make it or choose another path"
        )


def check_own_json(path: str | os.PathLike, keys: Collection[str]) -> None:
    """Checks a path at which a command is to write JSON, before its work; its folder may still be made.

    Args:
      path: where it will be written.
      keys: what every such file has, by which one of an earlier run is known.

    Raises:
      ValueError: nothing can be written there, or another file is there.
    """
    refuse_other_than_file(path := pathlib.Path(path))
    if problem := refuse_folder(path.absolute().parent):
        raise ValueError(f"{path}: {problem}")
    if path.exists() and path.stat().st_size and not _has_keys(path, keys):
        raise ValueError(
            f"{path}: is another file than one that this command wrote, and would be lost; choose another path"
        )


def _has_keys(path: pathlib.Path, keys: Collection[str]) -> bool:
    try:
        return isinstance(found := json.loads(path.read_bytes()), dict) and set(keys) <= found.keys()
    except (ValueError, RecursionError):  # not even JSON
        return False


def _is_there(path: pathlib.Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A temporary name beside `path` that becomes `path` if the block succeeds and is removed if not."""
    with written_by_main_process(path) as place, replacing_own(place) as temporary:
        yield temporary


@contextlib.contextmanager
def replacing_own(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The same for a file that no other process has. Of a symbolic link, the file that it leads to is replaced."""
    path = pathlib.Path(os.path.realpath(path)) if os.path.islink(path) else pathlib.Path(path)
    if path.is_symlink():  # still: it leads back to itself
        raise ValueError(f"{path}: is a symbolic link that leads nowhere, expected a file; choose another path")
    refuse_other_than_file(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk's does not say of which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # of a disk that is gone
            temporary.unlink()


def digest(path: str | os.PathLike) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 with plain line ends."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


# In a file that a later run computes from: sha256 of its contents without this entry, or of the lines before it.
CHECKSUM = "checksum"


def write_lines(path: str | os.PathLike, records: Iterable[dict], sealed: bool = False) -> None:
    """Writes one JSON object a line; NaN and infinity are refused. `sealed` adds a line with a checksum."""
    text = "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
    write_text(path, text + (json.dumps({CHECKSUM: _sha256(text.encode())}) + "\n" if sealed else ""))


def read_lines(path: str | os.PathLike) -> list[dict]:
    """Objects of a JSON lines file; [] if there is no file.

    A last line without a line break is read if it is whole. If it does not parse, a kill cut it off, and it is left
    out.

    Raises:
      ValueError: another line is not a JSON object, or has text that is not Unicode; the checksum is of other lines.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    records = [_read_line(line, f"{path}, line {n}") for n, line in enumerate(lines, start=1) if line.strip()]
    if last.strip() and _parses(last):
        records.append(_read_line(last, f"{path}, line {len(lines) + 1}"))
    if records and records[-1].keys() == {CHECKSUM}:
        _check_seal(path, records.pop()[CHECKSUM], b"".join(line + b"\n" for line in lines[:-1]), RESTORE)
    return records


def cut_line(path: str | os.PathLike) -> tuple[int, str]:
    """Number and text of the last line of a file if `read_lines` leaves it out as cut off; (0, "") if it does not."""
    *lines, last = pathlib.Path(path).read_bytes().split(b"\n")
    if not last.strip() or _parses(last):
        return 0, ""
    return len(lines) + 1, last.decode("utf-8", "replace")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check_seal(path: str | os.PathLike, seal: object, content: bytes, advice: str) -> None:
    if seal != _sha256(content):
        raise ValueError(
            f"{path}: the checksum in it is that of other contents, so it was damaged or edited; {advice}"
        )


def read_log(path: str | os.PathLike) -> list[dict]:
    """As `read_lines`, for a file that only tells what happened: lines that are damaged are left out with a warning.

    Such a file never stops a job from resuming or a report from being written.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    if not path.is_file():
        logging.warning("%s: got a directory or a device, expected a log; it is left out", path)
        return []
    records, bad = [], []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(_read_line(line, f"{path}, line {number}"))
        except ValueError:
            bad.append(number)
    if bad:
        logging.warning("%s: damaged lines are left out, from line %d on: %d", path, bad[0], len(bad))
    return records


def write_log(path: str | os.PathLike, records: Iterable[dict]) -> None:
    """As `write_lines`, for a log: a number that is not finite may be in it, although JSON has none."""
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def parse_json(text: str | bytes, where: str, expected: str, make_object: Callable | None = None) -> Any:
    """What a JSON text holds.

    Args:
      text: UTF-8 where it is bytes.
      where: names the file, and the line, in a message.
      expected: what it should be, and what to do if it is not; ends the message.
      make_object: makes an object of its (key, value) pairs; None makes a dict.

    Returns:
      a value without halves of characters.

    Raises:
      ValueError: it is empty, cut off, no JSON, nested too deeply, or has a number or text that nothing can hold.
    """
    if not text.strip():
        raise ValueError(f"{where}: got nothing, expected {expected}")
    try:
        whole = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(whole, object_pairs_hook=make_object)
        refuse_surrogates(value, where)
    except RecursionError:
        raise ValueError(f"{where}: got JSON that is nested too deeply, expected {expected}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: got malformed JSON ({error}), expected {expected}") from None
    except UnicodeDecodeError as error:
        reason = f"malformed JSON (byte {error.start} is not UTF-8)"
        raise ValueError(f"{where}: got {reason}, expected {expected}") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError(f"{where}: got a number of thousands of digits, expected {expected}") from None
    return value


def _parses(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_line(line: bytes, where: str) -> dict:
    record = parse_json(line, where, "one JSON object a line")
    if not isinstance(record, dict):
        raise ValueError(f"{where}: got {line[:40].decode('utf-8', 'replace')!r}, expected one JSON object a line")
    return record


JSON_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def kind_of(value: object) -> str:
    """The kind of a JSON value, as messages name it."""
    return JSON_KINDS.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


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


RESTORE = "restore it from a copy, or remove it: the command that wrote it makes it again"


def read_json(path: str | os.PathLike, kind: type = dict, keys: Collection[str] = (), advice: str = RESTORE) -> Any:
    """The content of a JSON file.

    Args:
      path: the file.
      kind: what its value must be: dict or list.
      keys: what an object must have.
      advice: what to do with a file that is damaged.

    Returns:
      the value.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: it is empty, cut off, no JSON, or of another shape; says in a line which file, and what to do.
    """
    shape = f"a JSON {'object' if kind is dict else 'list'}"
    if keys:
        shape += f" with {', '.join(map(repr, keys))}"
    value = parse_json(pathlib.Path(path).read_bytes(), str(path), f"{shape}; {advice}")
    if not isinstance(value, kind):
        raise ValueError(f"{path}: got {kind_of(value)}, expected {shape}; {advice}")
    if missing := [key for key in keys if key not in value]:
        raise ValueError(f"{path}: got no {missing[0]!r}, expected {shape}; {advice}")
    if kind is dict and CHECKSUM in value:
        _check_seal(path, value.pop(CHECKSUM), _to_text(value, path).encode(), advice)
    return value


def write_json(path: str | os.PathLike, obj: object, sealed: bool = False) -> None:
    """Writes JSON for people to read; NumPy values are allowed, NaN and infinity are refused.

    `sealed` adds a checksum to an object, which `read_json` checks and leaves out.
    """
    if sealed:
        obj = as_read(path, obj)
        obj = {**obj, CHECKSUM: _sha256(_to_text(obj, path).encode())}
    write_text(path, _to_text(obj, path) + "\n")


def as_read(path: str | os.PathLike, obj: object) -> Any:
    """What `read_json` would give of what `write_json` would write at `path`; refuses the same."""
    return json.loads(_to_text(obj, path))


def _to_text(obj: object, path: str | os.PathLike) -> str:
    try:
        return json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        where = _not_finite(obj, "")
        if where is None:
            raise
        raise ValueError(
            f"{path}: got a number that is not finite at {where}, expected finite numbers (JSON has no NaN); "
            "find where it arises, or write null if it was not measured"
        ) from error


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


def write_array(path: str | os.PathLike, array: np.ndarray, bound: bytes = b"") -> None:
    """Writes a .npy file that ends with the sha256 of the array's bytes, and of `bound`: what it belongs to.

    Readers of .npy files do not look at what follows the array. Use it within `replacing`.
    """
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        # Handed the file object, NumPy would hide the error of a full disk behind a count of numbers.
        np.save(types.SimpleNamespace(write=file.write), array, allow_pickle=False)
        file.write(_array_digest(array, bound))


def open_array(path: str | os.PathLike, bound: bytes = b"", check: bool = True) -> np.ndarray:
    """The memory-mapped array that `write_array` wrote.

    Args:
      path: the file.
      bound: as it was given to `write_array`.
      check: False for a file that was checked before.

    Returns:
      the array, read-only.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: it is cut off or damaged, or belongs to something else.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged header can raise anything
        raise ValueError(f"{path}: got no whole .npy file ({str(error)[:200]!r})") from error
    if check:
        with open(path, "rb") as file:
            file.seek(-min(os.path.getsize(path), hashlib.sha256().digest_size), os.SEEK_END)
            if file.read() != _array_digest(array, bound):
                raise ValueError(f"{path}: the checksum at its end is that of other contents, so it was damaged")
    return array


def _array_digest(array: np.ndarray, bound: bytes) -> bytes:
    found = hashlib.sha256(bound)
    found.update(memoryview(array).cast("B") if array.size else b"")
    return found.digest()


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
