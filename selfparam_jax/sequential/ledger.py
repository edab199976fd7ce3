"""The ledger of a work directory: every injection that was made, its adapter, and which ones the model has.

    ledger/ledger.json                the base's fingerprint and, in the order of injection, {id: "active" | "undone"}
    ledger/ID/entry.json              what was injected and how
    ledger/ID/adapter.safetensors     its adapter, float32, "layers.self_attn.q_proj.a"

An entry's id is a digest of all else in it, the id of the entry before it included, so that no entry can be changed,
and none but the last left out, unnoticed. No times are kept: the same injections give the same bytes. The model
of a ledger is the base with the active adapters, `lora.merge_adapters(base, ledger.adapters())`.
"""

import dataclasses
import difflib
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence

import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from selfparam_jax.distributed import files
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.processes import written_by_main_process
from selfparam_jax.models.lora import compose_lora, recompress_lora

ACTIVE, UNDONE = "active", "undone"
ADAPTER = "adapter.safetensors"
COMPOSED = "adapter.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One injection.

    number: 1 for the first.
    name: the context's id.
    settings: the recipe, plain values.
    parent: id of the entry before it, undone or not; "" for the first.
    rank: the largest of the adapter's ranks.
    adapter_digest: see `adapter_digest`.
    """

    id: str
    number: int
    name: str
    context_digest: str
    targets_digest: str
    settings: dict
    base_fingerprint: str
    parent: str
    scale: float
    rank: int
    adapter_digest: str


FIELDS = tuple(field.name for field in dataclasses.fields(Entry))
_ID = re.compile("[0-9a-f]{12}")


def entry_id(record: dict) -> str:
    """First 12 hex digits of the SHA-256 of an entry's fields other than its id, as canonical JSON."""
    content = {name: value for name, value in record.items() if name != "id"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


def adapter_digest(arrays: dict[str, np.ndarray]) -> str:
    """Hex SHA-256 of the arrays' names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode() + arrays[name].tobytes())
    return digest.hexdigest()


class Ledger:
    """The ledger in a directory; see `open`. Nothing is kept in memory: every call reads the files.

    One process at a time writes it. Wherever the id of an entry is asked for, a part from its start will do
    if it is the start of no other.
    """

    def __init__(self, directory: pathlib.Path, base_fingerprint: str):
        self.directory, self.base_fingerprint = directory, base_fingerprint

    @classmethod
    def open(cls, directory: str | os.PathLike, base_fingerprint: str | None = None) -> "Ledger":
        """Opens the ledger, or, if a base is given and the directory is new, begins one.

        Raises:
          ValueError: it belongs to another base, is damaged, or there is none and no base is given.
        """
        directory = pathlib.Path(directory)
        path = directory / "ledger.json"
        if not path.exists():
            if base_fingerprint is None:
                raise ValueError(f"{directory} has no ledger.json; give the directory of a sequential job")
            if any(_directories(directory)):
                raise ValueError(
                    f"{directory} has entries but no ledger.json; restore it from a copy or choose another directory"
                )
            directory.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"base_fingerprint": base_fingerprint, "entries": {}})
        found = _read_ledger(path)["base_fingerprint"]
        if base_fingerprint not in (None, found):
            raise ValueError(
                f"{path} belongs to another base model (fingerprint {found} there, {base_fingerprint} now); "
                "give that model or choose another directory"
            )
        return cls(directory, found)

    def append(
        self, name: str, context_digest: str, targets_digest: str, settings: dict, lora: dict, scale: float
    ) -> Entry:
        """Adds an injection; on disk as a whole when this returns, and not at all if it was stopped before.

        The same injection again (all arguments equal, the adapter to the bit) changes nothing while its entry is
        active; after it was undone it is a new entry.

        Args:
          settings: the recipe; what JSON can hold.
          lora: the adapter; kept in float32.
          scale: of the adapter, `LoraConfig.scale`.

        Returns:
          the entry.
        """
        arrays = _arrays(lora)
        content = {
            "name": name,
            "context_digest": context_digest,
            "targets_digest": targets_digest,
            "settings": json.loads(json.dumps(settings)),
            "base_fingerprint": self.base_fingerprint,
            "scale": float(scale),
            "rank": _rank(arrays),
            "adapter_digest": adapter_digest(arrays),
        }
        statuses, parent, id_at = self._statuses(), "", _ids(content)
        for number, (id, status) in enumerate(statuses.items(), 1):  # no file of an entry is read: there may be many
            if status == ACTIVE and id_at(number, parent) == id:
                return self._read_entry(id)
            parent = id
        entry = _entry(len(statuses) + 1, parent, content)
        target = self.directory / entry.id
        shutil.rmtree(target, ignore_errors=True)  # of an append that was stopped before ledger.json named it
        write_adapter(target, "entry.json", dataclasses.asdict(entry), arrays)
        self._write(statuses | {entry.id: ACTIVE})
        return entry

    def entries(self) -> list[Entry]:
        """All entries in the order of injection.

        Raises:
          ValueError, OSError: one is damaged or missing.
        """
        return [self._read_entry(id) for id in self._statuses()]

    def active(self) -> list[Entry]:
        """The entries that the model has, in the order of injection; raises as `entries` does."""
        return [self._read_entry(id) for id, status in self._statuses().items() if status == ACTIVE]

    def check_active(self) -> None:
        """Raises ValueError if the model has no entry: none was made yet, or all are undone."""
        statuses = self._statuses()
        if not statuses:
            raise ValueError(f"{self.directory.parent} has no finished injection; run the job first")
        if ACTIVE not in statuses.values():
            raise ValueError(
                f"all injections of {self.directory.parent} are undone, so its model is the base; expected at least "
                "one that is not (`selfparam ledger WORKDIR list` shows them)"
            )

    def find(self, id: str) -> Entry:
        """The entry of this id.

        Raises:
          ValueError: there is none, or more than one begins like this.
        """
        ids = list(self._statuses())
        found = [each for each in ids if id and each.startswith(id)]
        if len(found) == 1:
            return self._read_entry(found[0])
        if found:
            raise ValueError(f"{len(found)} entries begin with {id!r}: {', '.join(found)}; give more of the id")
        close = difflib.get_close_matches(id, [each[: len(id)] for each in ids], n=1)
        meant = [each for each in ids if close and each.startswith(close[0])]
        hint = f"did you mean {' or '.join(meant)}?" if meant else f"there are {', '.join(ids) or 'no entries yet'}"
        raise ValueError(f"got {id!r}, expected an entry's id or the start of one; {hint}")

    def adapter(self, id: str) -> dict:
        """The adapter of an entry, float32 NumPy arrays.

        Raises:
          ValueError, OSError: no such entry, or its files are damaged or missing.
        """
        return self._adapter_of(self.find(id))

    def _adapter_of(self, entry: Entry) -> dict:
        path = self.directory / entry.id / ADAPTER
        try:
            arrays = load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} cannot be read: {error}; restore it from a copy") from error
        found = adapter_digest(arrays)
        if found != entry.adapter_digest:
            raise ValueError(
                f"{path} was changed: its digest is {found[:12]}, expected {entry.adapter_digest[:12]}; "
                "restore it from a copy"
            )
        return _tree(arrays)

    def adapters(self, ids: Sequence[str] | None = None) -> list[tuple[dict, float]]:
        """(adapter, scale) of these entries, by default of the active ones, for `lora.merge_adapters`."""
        chosen = self.active() if ids is None else [self.find(id) for id in ids]
        return [(self._adapter_of(entry), entry.scale) for entry in chosen]

    def compose(self, ids: Sequence[str], max_rank: int = 0) -> tuple[dict, dict]:
        """One adapter of scale 1 in place of several, recompressed where its rank is above `max_rank` (0: nowhere).

        Returns:
          the adapter and the error as `lora.recompress_lora` gives it; {} if nothing was recompressed.

        Raises:
          ValueError: an id is given twice or is unknown.
        """
        chosen = [self.find(id).id for id in ids]
        twice = sorted({id for id in chosen if chosen.count(id) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} is given more than once, and would count as often; give it once")
        lora = compose_lora(self.adapters(chosen))
        return recompress_lora(lora, max_rank) if 0 < max_rank < _rank(_arrays(lora)) else (lora, {})

    def undo(self, id: str) -> Entry:
        """Takes an injection out of the model; its entry and adapter stay on disk.

        Raises:
          ValueError: no such entry, or it is undone already.
        """
        entry, statuses = self.find(id), self._statuses()
        if statuses[entry.id] == UNDONE:
            active = ", ".join(each for each in statuses if statuses[each] == ACTIVE) or "none"
            raise ValueError(f"{entry.id} ({entry.name}) is undone already; active are: {active}")
        self._write(statuses | {entry.id: UNDONE})
        return entry

    def verify(self) -> list[str]:
        """A line for everything that is missing, changed, out of order or of another base; [] if all is well."""
        problems, parent = [], ""
        statuses = self._statuses()
        for number, id in enumerate(statuses, 1):
            try:
                entry = self._read_entry(id)
                if (entry.number, entry.parent) != (number, parent):
                    problems.append(
                        f"{id}: broken chain: it is number {entry.number} after {entry.parent or 'nothing'}, but "
                        f"ledger.json has it as number {number} after {parent or 'nothing'}"
                    )
                if entry.base_fingerprint != self.base_fingerprint:
                    problems.append(
                        f"{id}: foreign base: fingerprint {entry.base_fingerprint}, the ledger's is "
                        f"{self.base_fingerprint}"
                    )
                self.adapter(id)
            except FileNotFoundError as error:
                problems.append(f"{id}: {error.filename or error} is missing; restore it from a copy")
            except (ValueError, OSError) as error:
                problems.append(f"{id}: {error}")
            parent = id
        for path in _directories(self.directory):
            if path.name not in statuses:
                problems.append(f"{path.name}: not in ledger.json: its writing was stopped, or it was removed there")
        return problems

    def _statuses(self) -> dict[str, str]:
        """{id: status} in the order of injection."""
        return _read_ledger(self.directory / "ledger.json")["entries"]

    def _write(self, statuses: dict[str, str]) -> None:
        record = {"base_fingerprint": self.base_fingerprint, "entries": statuses}
        files.write_json(self.directory / "ledger.json", record)

    def _read_entry(self, id: str) -> Entry:
        path = self.directory / id / "entry.json"
        record = _read_object(path)
        if set(record) != set(FIELDS) or record["id"] != id or entry_id(record) != id:
            raise ValueError(f"{path} was changed: its digest is not {id}; restore it from a copy")
        return Entry(**record)


def write_adapter(directory: pathlib.Path, name: str, record: dict, arrays: dict[str, np.ndarray]) -> None:
    """A new directory with an adapter and its JSON, which appears whole or not at all; it may be there if empty.

    Args:
      directory: new, or empty.
      name: of the JSON file.
      record: its content.
      arrays: the adapter's, float32, by name.
    """
    with written_by_main_process(directory) as place:
        temporary = place.with_name(f".{place.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)  # what a kill left
        temporary.mkdir(parents=True)
        try:
            files.write_json(temporary / name, record)
            with files.replacing(temporary / ADAPTER) as path:
                save_file(arrays, path)
                path.chmod(0o644)  # safetensors keeps it to the owner, but a server may be another user
            os.replace(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_composed(out: str | os.PathLike, ledger: Ledger, ids: Sequence[str], max_rank: int = 0) -> dict:
    """Writes what `Ledger.compose` gives, with adapter.json beside it.

    Args:
      out: a new directory.
      ledger: of a sequence.
      ids: of the entries, or their beginnings.
      max_rank: ranks above it are recompressed to it; 0 for none.

    Returns:
      the content of adapter.json: base_fingerprint, entries (their ids), scale (1), rank, error.

    Raises:
      ValueError: `out` is there and not an empty directory, or an id cannot be used.
    """
    out = pathlib.Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, expected a new or an empty directory; choose another --out")
    chosen = [ledger.find(id).id for id in ids]
    lora, error = ledger.compose(chosen, max_rank)
    arrays = _arrays(lora)
    record = {
        "base_fingerprint": ledger.base_fingerprint,
        "entries": chosen,
        "scale": 1.0,
        "rank": _rank(arrays),
        "error": error,
    }
    write_adapter(out, COMPOSED, record, arrays)
    return record


def read_composed(path: str | os.PathLike) -> tuple[dict, dict] | None:
    """The content of adapter.json and the adapter that `write_composed` wrote; None if there is no adapter.json.

    Raises:
      ValueError: one of the two files is damaged or missing.
    """
    path = pathlib.Path(path)
    if not (path / COMPOSED).is_file():
        return None
    record = _read_object(path / COMPOSED)
    if not {"base_fingerprint", "scale"} <= set(record):
        raise ValueError(f'{path / COMPOSED}: expected "base_fingerprint" and "scale"; compose the adapter again')
    try:
        arrays = load_file(path / ADAPTER)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path / ADAPTER} cannot be read: {error}; compose the adapter again") from error
    return record, _tree(arrays)


def _entry(number: int, parent: str, content: dict) -> Entry:
    record = {**content, "number": number, "parent": parent}
    return Entry(id=entry_id(record), **record)


def _ids(content: dict) -> Callable[[int, str], str]:
    """Gives `_entry(number, parent, content).id`; what does not change from one place to another is hashed once."""
    places = ("number", "parent")  # neighbours in the order of keys
    before, after = (
        json.dumps({name: value for name, value in content.items() if within(name)}, sort_keys=True, allow_nan=False)
        for within in (lambda name: name < places[0], lambda name: name > places[1])
    )
    begun = hashlib.sha256(f"{before[:-1]}, ".encode())

    def id_at(number: int, parent: str) -> str:
        digest = begun.copy()
        digest.update(f"{json.dumps({'number': number, 'parent': parent})[1:-1]}, {after[1:]}".encode())
        return digest.hexdigest()[:12]

    return id_at


def _arrays(lora: dict) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array, np.float32) for name, array in flatten(lora).items()}


def _rank(arrays: dict[str, np.ndarray]) -> int:
    """The largest rank of an adapter."""
    return max(array.shape[2] for name, array in arrays.items() if name.endswith(".a"))


def _tree(arrays: dict[str, np.ndarray]) -> dict:
    tree: dict = {}
    for name, array in arrays.items():
        *path, leaf = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = array
    return tree


def _directories(directory: pathlib.Path) -> list[pathlib.Path]:
    """The entries' directories, whether ledger.json has them or not."""
    found = directory.iterdir() if directory.exists() else ()
    return sorted(path for path in found if path.is_dir() and not path.name.startswith("."))


def _read_object(path: pathlib.Path) -> dict:
    return files.read_json(path, advice="restore it from a copy")


def _read_ledger(path: pathlib.Path) -> dict:
    record = _read_object(path)
    entries = record.get("entries")
    # The ids become paths.
    if set(record) != {"base_fingerprint", "entries"} or not (
        isinstance(record["base_fingerprint"], str)
        and isinstance(entries, dict)
        and all(_ID.fullmatch(id) and entries[id] in (ACTIVE, UNDONE) for id in entries)
    ):
        raise ValueError(
            f'{path}: expected {{"base_fingerprint": "...", "entries": {{ID: "{ACTIVE}" or "{UNDONE}"}}}} '
            "with ids of 12 hex digits; restore it from a copy"
        )
    return record
