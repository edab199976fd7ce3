"""The work directory: which run it belongs to, and its running log of steps."""

import json
import os
import pathlib
from collections.abc import Collection

from selfparam_jax.files import read_json, read_lines, write_json, write_lines
from selfparam_jax.processes import is_first


def flatten(tree: dict, prefix: str = "") -> dict:
    """{"lora": {"rank": 8}} -> {"lora.rank": 8}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def claim(workdir: pathlib.Path, config: dict, fingerprint: str, free: Collection[str] = ()) -> None:
    """Makes the work directory, or checks that it belongs to the same configuration and base model.

    Args:
      free: names of settings ("endpoint.budget") that may be others than when the directory was made.

    Raises:
      ValueError: it belongs to another configuration (the differing fields are listed) or base, or it is
        a directory with other things in it.
    """
    path = workdir / "config.json"
    record = {"config": json.loads(json.dumps(config)), "base_fingerprint": fingerprint}
    if path.exists():
        _check_same(workdir, read_json(path), record, free)
        return
    if workdir.exists() and any(workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and holds no config.json of ours; choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(path, record)


def differences(old: dict, new: dict) -> list[str]:
    """A line for every setting that two flat dicts do not share."""
    missing = "(not set)"
    return [
        f"  {name}: {old.get(name, missing)!r} there, {new.get(name, missing)!r} now"
        for name in sorted(old.keys() | new.keys())
        if old.get(name, missing) != new.get(name, missing)
    ]


def _check_same(workdir: pathlib.Path, found: dict, wanted: dict, free: Collection[str]) -> None:
    old, new = flatten(found["config"]), flatten(wanted["config"])
    new |= {name: old[name] for name in free if name in old}
    different = differences(old, new)
    if different:
        raise ValueError(
            f"{workdir} belongs to a run with another configuration:\n" + "\n".join(different) + "\n"
            "Choose another --workdir, or repeat the run with its own configuration"
        )
    if found["base_fingerprint"] != wanted["base_fingerprint"]:
        raise ValueError(
            f"{workdir} was made with another base model under the same name (fingerprint "
            f"{found['base_fingerprint'][:12]} there, {wanted['base_fingerprint'][:12]} now); "
            "choose another --workdir"
        )


class MetricsLog:
    """metrics.jsonl, a line per step; opened again at step s it keeps the lines up to s and goes on."""

    def __init__(self, path: pathlib.Path, first: int):
        write_lines(path, [line for line in read_lines(path) if line["step"] <= first])
        self._file = (path if is_first() else pathlib.Path(os.devnull)).open("a", encoding="utf-8")

    def write(self, record: dict) -> None:
        """Appends one line; readable at once."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
