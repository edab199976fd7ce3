"""The work directory: which run it belongs to, and how its files are written so that a kill loses nothing."""

import json
import os
import pathlib
from collections.abc import Iterable


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file under a temporary name and renames it: it is there whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def json_lines(records: Iterable[dict]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)


def read_lines(path: pathlib.Path) -> list[dict]:
    """Records of a JSON lines file; a last line cut off by a kill is left out; [] if there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"lora": {"rank": 8}} -> {"lora.rank": 8}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def claim(workdir: pathlib.Path, config: dict, fingerprint: str) -> None:
    """Makes the work directory, or checks that it belongs to the same configuration and base model.

    Raises:
      ValueError: it belongs to another configuration (the differing fields are listed) or base, or it is
        a directory with other things in it.
    """
    path = workdir / "config.json"
    record = {"config": json.loads(json.dumps(config)), "base_fingerprint": fingerprint}
    if path.exists():
        _check_same(workdir, json.loads(path.read_text(encoding="utf-8")), record)
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no config.json of ours; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(record, indent=2) + "\n")


def _check_same(workdir: pathlib.Path, found: dict, wanted: dict) -> None:
    old, new = flatten(found["config"]), flatten(wanted["config"])
    missing = "(not set)"
    differences = [
        f"  {name}: {old.get(name, missing)!r} there, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]
    if differences:
        raise ValueError(
            f"{workdir} belongs to a run with another configuration:\n" + "\n".join(differences) + "\n"
            "Choose another --workdir, or repeat the run with its own configuration"
        )
    if found["base_fingerprint"] != wanted["base_fingerprint"]:
        raise ValueError(
            f"{workdir} was made with another base model under the same name (fingerprint "
            f"{found['base_fingerprint'][:12]} there, {wanted['base_fingerprint'][:12]} now); choose another --workdir"
        )


class MetricsLog:
    """metrics.jsonl, a line per step; opened again at step s it keeps the lines up to s and goes on."""

    def __init__(self, path: pathlib.Path, first: int):
        write_text(path, json_lines(line for line in read_lines(path) if line["step"] <= first))
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict) -> None:
        """Appends one line; readable at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
