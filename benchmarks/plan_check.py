"""Whether `plan` is right about memory: what it says of a training step, and what a process holds while it runs one.

    python -m benchmarks.plan_check --out=plan_check.json

Each case is a process of its own on the CPU (Linux): it compiles the step for the embedded model's shapes, notes its
resident memory, makes random weights, adapter, optimizer and a batch, and runs two steps. What it holds at most above
the note is compared with the plan's total.
"""

import ctypes
import gc
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks.memory import status_bytes
from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models.lora import init_lora
from selfparam_jax.plan.machines import Chip, Machine
from selfparam_jax.plan.memory import batch_shapes, compile_training_step, laid_out_params
from selfparam_jax.plan.plan import make_plan
from selfparam_jax.plan.workload import Workload
from selfparam_jax.training import train_step
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).")
CASE = flags.DEFINE_string("case", None, "Set by the driver only.")

CASES = {
    "remat=none": {},
    "remat=layers": {"remat": "layers"},
    "train.accumulate=4": {"accumulate": 4},
    "train.batch_size=16": {"batch_size": 16},
    "train.loss_chunk=512": {"loss_chunk": 512},
}
HERE = Machine("this-1", Chip(1e11, 2**40, 1e10, 1e9), 1)


def workload_of(case: str) -> Workload:
    """The training step of a case."""
    train = {"batch_size": 8, "seq_len": 288, **CASES[case]}
    return Workload(remat=train.pop("remat", "none"), train=TrainConfig(**train))


def filled(like, key: jax.Array):
    """An array of a shape, written to: memory that is only promised would not be counted."""
    if like.dtype == jnp.int32:
        return jnp.ones(like.shape, jnp.int32)
    return 0.02 * jax.random.normal(key, like.shape, like.dtype)


def measure(case: str) -> dict:
    """Bytes that the plan says and that this process holds."""
    workload, config = workload_of(case), load_model(DEFAULT_MODEL).config
    one = meshes.make_mesh(jax.devices()[:1], workload.mesh)
    said = make_plan(workload, config, HERE, jax.devices()[:1])
    shapes = laid_out_params(config, one)
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), shapes, workload.lora))
    step = compile_training_step(workload, config, one, shapes, lora)
    fill = (
        jax.jit(lambda key: jax.tree.map(lambda leaf: filled(leaf, key), shapes)).lower(jax.random.key(0)).compile()
    )
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_bytes("VmRSS")
    params = jax.block_until_ready(fill(jax.random.key(0)))
    optimizer = make_optimizer(workload.train, 100)
    state = train_step.init_state(init_lora(jax.random.key(0), params, workload.lora), optimizer)
    state = meshes.put_same(one, jax.tree.map(lambda leaf: leaf + 0, state))
    batch = jax.tree.map(lambda leaf: filled(leaf, jax.random.key(1)), batch_shapes(workload, config, one))
    batch = jax.block_until_ready(batch)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the most that was resident starts again from here
    for _ in range(2):
        state, metrics = step(state, params, batch, jax.random.key(0))
        jax.block_until_ready(metrics)
    held = status_bytes("VmHWM") - before
    return {"case": case, "said": said["total"], "held": held, "ratio": held / said["total"]}


def main(argv: list[str]) -> None:
    """Measures every case in a process of its own and prints a table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if CASE.value:
        print(json.dumps(measure(CASE.value)))
        return
    rows = []
    for case in CASES:
        command = [sys.executable, "-m", "benchmarks.plan_check", f"--case={case}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    if OUT.value:
        files.write_json(OUT.value, rows)
    print("| step | plan says | process holds | ratio |")
    print("| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['case']} | {row['said'] / 1e6:.0f} MB | {row['held'] / 1e6:.0f} MB | {row['ratio']:.2f} |")


if __name__ == "__main__":
    app.run(main)
