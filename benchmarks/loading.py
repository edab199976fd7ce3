"""How much memory each process takes to load its part of a large checkpoint, and how much of the files it reads.

    python -m benchmarks.loading --directory=/tmp/synthetic-3b --processes=4

Writes a checkpoint of random bfloat16 weights in the shapes of `--architecture` once (7 GB for the default), then
starts processes of one CPU device each that load it over an fsdp axis, fingerprint included. What counts is the
process's own (anonymous) memory: pages of the files in the system's cache can be dropped at any time.
"""

import json
import pathlib
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from benchmarks.memory import status_bytes
from selfparam_jax.checkpoints.load import read_architecture
from selfparam_jax.checkpoints.tensors import Index, Source, load_with_fingerprint
from selfparam_jax.checkpoints.weight_files import SafetensorsSource
from selfparam_jax.distributed import files, mesh, processes
from selfparam_jax.models.decoder import ModelConfig
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.models.shardings import parameter_shardings

ARCHITECTURE = flags.DEFINE_string("architecture", "configs/models/openllama_3b.json", "A config.json.")
DIRECTORY = flags.DEFINE_string("directory", None, "Where the checkpoint is, or is written.", required=True)
PROCESSES = flags.DEFINE_integer("processes", 4, "Processes that share the weights.")
ALL = flags.DEFINE_bool("whole", True, "Also measure a single process that loads everything.")
ADDRESS = flags.DEFINE_string("address", "", "Of the first process; set for the processes that are started.")
INDEX = flags.DEFINE_integer("index", -1, "Which process this is.")


def write_checkpoint(config: ModelConfig, directory: pathlib.Path) -> None:
    """Random tensors, a file for every layer and one for the rest, with an index written last."""
    directory.mkdir(parents=True, exist_ok=True)
    names: dict[str, dict[str, tuple]] = {}
    for entry in parameter_table(config):
        for layer, name in enumerate(entry.hf_names()):
            file = f"model-{layer + 1 if entry.stacked else 0:05d}.safetensors"
            names.setdefault(file, {})[name] = entry.hf_shape
    rng = np.random.default_rng(0)
    for file, shapes in names.items():
        tensors = {name: rng.standard_normal(s, np.float32).astype(ml_dtypes.bfloat16) for name, s in shapes.items()}
        save_file(tensors, directory / file)
    where = {name: file for file, shapes in names.items() for name in shapes}
    files.write_json(directory / "model.safetensors.index.json", {"weight_map": where})


class Peak:
    """The most anonymous memory of this process, bytes, sampled while the block runs."""

    def __enter__(self) -> "Peak":
        self.before = self.most = status_bytes("RssAnon")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.most = max(self.most, status_bytes("RssAnon"))


class Counting:
    """A source that counts the bytes that are asked of it."""

    def __init__(self, source: Source):
        self._source, self.bytes, self._lock = source, 0, threading.Lock()

    def names(self) -> list[str]:
        return self._source.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._source.shape(name)

    def read(self, name: str, index: Index) -> np.ndarray:
        values = self._source.read(name, index)
        with self._lock:  # sources are read by several threads
            self.bytes += values.nbytes
        return values


def load() -> dict:
    """Loads this process's part; returns bytes held, read and at the peak, and seconds."""
    config, source = read_architecture(ARCHITECTURE.value), Counting(SafetensorsSource(DIRECTORY.value))
    devices = mesh.make_mesh(config=mesh.MeshConfig(1, -1, 1))
    with Peak() as peak:
        began = time.perf_counter()
        params, _ = load_with_fingerprint(source, config, jnp.bfloat16, parameter_shardings(devices, config))
        jax.block_until_ready(params)
        seconds = time.perf_counter() - began
    held = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    return {"held": held, "read": source.bytes, "peak": peak.most - peak.before, "seconds": seconds}


def start(count: int) -> list[dict]:
    """Starts `count` processes that load together."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    line = [sys.executable, "-m", "benchmarks.loading", f"--architecture={ARCHITECTURE.value}"]
    line += [f"--directory={DIRECTORY.value}", f"--processes={count}", f"--address={address}"]
    started = [
        subprocess.Popen([*line, f"--index={index}"], stdout=subprocess.PIPE, text=True) for index in range(count)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def main(argv: list[str]) -> None:
    """Prints a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if INDEX.value >= 0:
        jax.config.update("jax_platforms", "cpu")
        if PROCESSES.value > 1:
            processes.start("on", ADDRESS.value, PROCESSES.value, INDEX.value)
        print(json.dumps(load()))
        return
    directory = pathlib.Path(DIRECTORY.value)
    if not (directory / "model.safetensors.index.json").exists():
        write_checkpoint(read_architecture(ARCHITECTURE.value), directory)
    print("| processes | weights of each, GB | read from files, GB | most own memory, GB | of the weights | s |")
    print("| --- " * 6 + "|")
    for count in ([1] if ALL.value else []) + [PROCESSES.value]:
        found = start(count)
        most = {name: max(each[name] for each in found) for name in found[0]}
        print(
            f"| {count} | {most['held'] / 1e9:.2f} | {most['read'] / 1e9:.2f} | {most['peak'] / 1e9:.2f} | "
            f"{most['peak'] / most['held']:.2f} | {most['seconds']:.0f} |"
        )


if __name__ == "__main__":
    app.run(main)
