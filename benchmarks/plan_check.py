"""Whether `plan` is right about memory: what it says of a training step, and what a process holds while it runs one.

    python -m benchmarks.plan_check --out=plan_check.json

Each case is a process of its own on the CPU (Linux): it compiles the step for the embedded model's shapes, notes its
resident memory, makes random weights, adapter, optimiser and a batch, and runs two steps. What it holds at most above
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
from configs import base
from selfparam_jax import files, hub, jobs, plan, trainer
from selfparam_jax import mesh as meshes
from selfparam_jax.lora import init_lora

OUT = flags.DEFINE_string("out", None, "Where the results go (JSON).")
CASE = flags.DEFINE_string("case", None, "Set by the driver only.")

CASES = {
    "remat=none": {},
    "remat=layers": {"remat": "layers"},
    "train.accumulate=4": {"train.accumulate": 4},
    "train.batch_rows=16": {"train.batch_rows": 16},
    "train.loss_chunk=512": {"train.loss_chunk": 512},
}
HERE = plan.Machine("this-1", plan.Chip(1e11, 2**40, 1e10, 1e9), 1)


def settings_of(case: str):
    """A job's settings in a case."""
    config = base.get_config()
    config.train.update(batch_rows=8, row_length=288)
    config.remat = "none"
    config.update_from_flattened_dict(CASES[case])
    return jobs.read_settings(config)


def filled(like, key: jax.Array):
    """An array of a shape, written to: memory that is only promised would not be counted."""
    if like.dtype == jnp.int32:
        return jnp.ones(like.shape, jnp.int32)
    return 0.02 * jax.random.normal(key, like.shape, like.dtype)


def measure(case: str) -> dict:
    """Bytes that the plan says and that this process holds."""
    settings, config = settings_of(case), hub.load_pretrained(hub.DEFAULT_MODEL).config
    one = meshes.make_mesh(jax.devices()[:1], settings.mesh)
    said = plan.make_plan(settings, config, HERE, jax.devices()[:1])
    shapes = plan.pretended_params(config, one)
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), shapes, settings.lora))
    step = plan.compile_for(settings, config, one, shapes, lora)
    fill = (
        jax.jit(lambda key: jax.tree.map(lambda leaf: filled(leaf, key), shapes)).lower(jax.random.key(0)).compile()
    )
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status_bytes("VmRSS")
    params = jax.block_until_ready(fill(jax.random.key(0)))
    optimizer = trainer.make_optimizer(settings.train, 100)
    state = trainer.init_state(init_lora(jax.random.key(0), params, settings.lora), optimizer)
    state = meshes.put_same(one, jax.tree.map(lambda leaf: leaf + 0, state))
    batch = jax.tree.map(lambda leaf: filled(leaf, jax.random.key(1)), plan.pretended_batch(settings, config, one))
    batch = jax.block_until_ready(batch)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the most that was resident begins anew
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
