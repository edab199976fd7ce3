"""Rows of local files and of data sets from the hub, streamed by the `datasets` library and checked.

Every row comes with its place in words, for messages.
"""

import glob
import importlib.util
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from selfparam_jax.distributed.files import JSON_KINDS, kind_of, refuse_surrogates

# Rows that are shuffled together. A larger buffer mixes better and reads more before the first text.
SHUFFLE_BUFFER = 1000

HUB = "hub:"
# By the end of the file's name: which reader of `datasets` takes it.
READERS = {".parquet": "parquet", ".jsonl": "json", ".jsonl.gz": "json", ".jsonl.zst": "json"}
# Formats of plain data. Others decode pictures or sound, or unpack archives; none of them holds our texts.
_FORMATS = ("arrow", "csv", "json", "parquet", "text")

# A row, and its place in words.
Row = tuple[str, dict]


def hub_rows(source: str, split: str, seed: int | None = None) -> Iterator[Row]:
    """Yields the rows of "hub:ID[[:CONFIG]:SPLIT]"; `split` is read if the source names none."""
    name, *rest = source.removeprefix(HUB).split(":")
    path = pathlib.Path(name).expanduser()
    local = bool(name) and path.is_dir()
    known = local or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name, re.ASCII)
    if not known or len(rest) > 2 or not all(rest):
        raise ValueError(
            f"{source}: got neither a hub id nor an existing directory, expected {HUB}ID, {HUB}ID:SPLIT or "
            f"{HUB}ID:CONFIG:SPLIT, with an ID like DKYoon/SlimPajama-6B or a local directory; correct it"
        )
    config = rest[0] if len(rest) == 2 else ""
    place = path if local else name
    return stream_rows(source, place, rest[-1] if rest else split, seed, name=config or None)


def file_rows(path: pathlib.Path, seed: int | None = None) -> Iterator[Row]:
    """Yields the rows of a local file."""
    ending = ending_of(path)
    if ending not in (*READERS, ".json") and not first_record(path):
        raise ValueError(
            f"{path}: got a file that is not JSON lines, expected one, or .json, {', '.join(READERS)}; convert it"
        )
    if ending == ".jsonl.zst" and not importlib.util.find_spec("zstandard"):
        raise ValueError(f"{path}: got a .zst file, expected the package that reads it; run pip install zstandard")
    # Escaped: `datasets` takes the name for a pattern.
    files = {"train": [glob.escape(str(path.absolute()))]}
    return stream_rows(str(path), path, "train", seed, reader=READERS.get(ending, "json"), data_files=files)


def stream_rows(
    source: str, place: pathlib.Path | str, split: str, seed: int | None, reader: str = "", **how: Any
) -> Iterator[Row]:
    """The rows of one split, shuffled if there is a seed; "" for the split means the only one.

    Args:
      source: what the user wrote, for messages.
      place: a hub id, or a local directory or file.
      split: its name.
      seed: of the order; None keeps the order.
      reader: which of `datasets`' readers takes a file; "" lets it find out by the directory.
      **how: passed to `datasets.load_dataset_builder`.

    Returns:
      an iterator over (place in words, row).

    Raises:
      ValueError: no such data set or split, or no network.
    """
    try:
        datasets = _import_datasets()
        path = reader or (place if isinstance(place, str) else str(place.absolute()))
        builder = datasets.load_dataset_builder(path, **how)
        splits = builder.as_streaming_dataset() if builder.info.builder_name in _FORMATS else None
    except Exception as error:  # the library, the hub's client, HTTP and the operating system have their own
        raise _refusal(source, place, error) from None
    if splits is None:
        raise ValueError(
            f"{source}: got data in the format {builder.info.builder_name!r}, expected one of {', '.join(_FORMATS)}; "
            "convert it to Parquet"
        )
    name = split or (next(iter(splits)) if len(splits) == 1 else "")
    if name not in splits:
        raise ValueError(
            f"{source}: got {f'the split {name!r}' if name else 'no split'}, expected one of {', '.join(splits)}; "
            "name one of these, or give a single file"
        )
    stream = splits[name]
    if seed is not None:
        # One file at a time: the library's own default opens ten and reads a piece of each, over the network too.
        stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER, max_buffer_input_shards=1)
    rows = iter(stream)
    where = f"{source}, " + ("" if reader else f"{name} ") + ("row" if seed is None else "shuffled row")
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise _refusal(source, place, error) from None
        yield f"{where} {number}", row


def _import_datasets() -> Any:
    """Returns the library (two seconds, so only where it is needed), without bars and counting requests."""
    import datasets
    import huggingface_hub.utils

    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    # Otherwise reading a local file asks the network to count it.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    return datasets


def _refusal(source: str, place: pathlib.Path | str, error: Exception) -> ValueError:
    """What went wrong in one line, without addresses and keys: both may carry somebody's token."""
    reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
    reason = re.sub(r"https?://\S+", "(address)", reason)
    reason = re.sub(r"\bhf_\w+|(?<=Bearer )\S+", "(token)", reason)
    if isinstance(place, str):
        copy = f"{HUB}DIRECTORY" if source.startswith(HUB) else f"{source}@PATH"
        return ValueError(
            f"{source}: got no rows from the hub's data set {place} ({reason}), expected a network and a data set of "
            f"that name; check both, log in if it is gated, or give a local copy: {copy}"
        )
    return ValueError(f"{source}: got data that cannot be read ({reason}), expected rows; check {place}")


# --- small checks ----------------------------------------------------------------------------------------


def ending_of(path: pathlib.Path) -> str:
    """The suffix in lower case; with a suffix of compression, the last two."""
    last = path.suffix.lower()
    return (path.with_suffix("").suffix.lower() + last) if last in (".gz", ".zst") else last


def first_record(path: pathlib.Path) -> dict:
    """The first object of a JSONL file; {} if there is none (the reader of the whole file then reports the error)."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            record = json.loads(next((line for line in file if line.strip()), "{}"))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def check_columns(row: dict, columns: tuple[str, ...], where: str) -> None:
    """Raises ValueError if a row lacks a column."""
    if not row.keys() >= set(columns):
        raise ValueError(
            f"{where}: got the columns {', '.join(row) or '(none)'}, expected at least {', '.join(columns)}; "
            "check the source or rename the columns"
        )


def field_of(item: Any, field: str, kind: type, where: str) -> Any:
    """The field of an object; ValueError if it is not of this kind.

    Args:
      item: the object.
      field: its name.
      kind: str, list or dict.
      where: file and place, for the message.

    Returns:
      the field's value.

    Raises:
      ValueError: it is not there, or of another kind.
    """
    return typed(typed(item, dict, "the entry", where).get(field), kind, field, where)


def typed(value: Any, kind: type, field: str, where: str) -> Any:
    """The value; ValueError if it is not of this kind, or a string with half of a character.

    Args:
      value: anything.
      kind: str, list or dict.
      field: its name.
      where: file and place, for the message.

    Returns:
      the value.

    Raises:
      ValueError: it is of another kind, or a string with half of a character.
    """
    if not isinstance(value, kind):
        raise ValueError(f"{where}: {field}: got {kind_of(value)}, expected {JSON_KINDS[kind]}; correct the data")
    if kind is str:
        refuse_surrogates(value, f"{where}: {field}")
    return value
