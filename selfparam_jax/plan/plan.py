"""The plan of a workload on a machine: memory, work and time, and what to change if it does not fit.

The real training step is compiled for the model's real shapes on virtual CPU devices, as many as the machine has; or
all programs of a job are, for the machine's own devices by their own compiler. What each device holds, computes and
sends is read from the compiled programs. No weights are needed.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence

import jax
from jax.sharding import Mesh

from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models.decoder import ModelConfig, head_weight
from selfparam_jax.plan.compilers import compile_program, machine_devices
from selfparam_jax.plan.costs import Costs, costs
from selfparam_jax.plan.machines import USABLE, Chip, Machine
from selfparam_jax.plan.memory import (
    adapter_shapes,
    compile_training_step,
    gathered_layer,
    held_bytes,
    laid_out_params,
    teacher_needs,
)
from selfparam_jax.plan.programs import Program, job_programs
from selfparam_jax.plan.workload import Workload


def make_plan(
    workload: Workload,
    config: ModelConfig,
    machine: Machine,
    devices: Sequence | None = None,
    context_tokens: int = 0,
) -> dict:
    """What a training step needs on each device of a machine.

    A batch size that the mesh cannot split is rounded up, as jobs do.

    Args:
      workload: what is trained.
      config: the model's architecture.
      machine: whose peak numbers are taken.
      devices: devices to compile for, as many as the machine has; None means all that JAX sees.
      context_tokens: tokens of the longest context (prompt format included); 0 leaves out what reading it takes.

    Returns:
      "machine", "mesh", "batch_size", "requested_batch_size", "seq_len", "remat", "base_weights"; bytes on a device
      ("parameters", "adapter", "optimizer", "batch", "activations", "gathered_ahead", "teacher_head", "total",
      "memory") and "fits", where "gathered_ahead" is of weights that the device's compiler gathers before they are
      needed, and "teacher_head" is what stays of a teacher that is another model; "teacher": what `teacher_needs`
      gives and "weights", those of such a teacher while it reads, or None; "teacher_store_per_token", bytes; "flops"
      and "sent" (bytes by kind of collective) per step; "compute_s", "read_s", "send_s": the least time of each by
      the published peaks; "step_s": the largest of them; "sentence_tokens_per_s" with full rows.

    Raises:
      ValueError: model and mesh do not go together.
    """
    mesh = meshes.make_mesh(devices, workload.mesh)
    requested, workload = workload.train.batch_size, rounded_up(workload, mesh).settled(config)
    train, bytes_each, row_shards = workload.train, workload.item_bytes, meshes.shards(mesh, "rows")
    params = laid_out_params(config, mesh, workload.int8)
    weights = held_bytes(params, bytes_each)
    lora = adapter_shapes(workload, params, mesh)
    adapter = 4.0 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(lora))
    compiled = compile_training_step(workload, config, mesh, params, lora)
    positions = train.batch_size // train.accumulate // row_shards * train.seq_len  # of a part, on a device
    chunk = min(train.loss_chunk, positions)
    # Logits of teacher and student and their gradient stay float32; everything else has the job's dtype.
    logits = 3 * 4.0 * chunk * config.vocab_size / meshes.shards(mesh, "vocabulary")
    temporary = compiled.memory_analysis().temp_size_in_bytes
    activations = max(temporary - logits, 0) * bytes_each / 4 + logits
    tokens = train.batch_size * train.seq_len
    teacher = workload.teacher or config
    batch = tokens / row_shards * (4 * 5 + bytes_each * teacher.hidden_size)
    work = costs(compiled.as_text(), math.ceil(positions / chunk), bytes_each)
    sizes = {"parameters": weights, "adapter": adapter, "optimizer": 2 * adapter, "batch": batch}
    sizes["activations"] = activations
    sizes["gathered_ahead"] = machine.chip.layers_ahead * gathered_layer(workload, params, mesh)
    theirs = laid_out_params(teacher, mesh, workload.teacher_int8) if workload.teacher else None
    sizes["teacher_head"] = held_bytes(head_weight(theirs), bytes_each) if workload.teacher else 0.0
    total, chip = sum(sizes.values()), machine.chip
    reading = {}
    if context_tokens:
        reader = dataclasses.replace(workload, int8=workload.teacher_int8) if workload.teacher else workload
        reading = teacher_needs(reader, teacher, mesh, params if theirs is None else theirs, context_tokens)
        reading["weights"] = 0.0 if theirs is None else held_bytes(theirs, bytes_each)
    most = max(total, weights + sum(reading.values()))
    passes = 3 if workload.remat == "layers" else 2
    # Weights that a device reads in one pass: its own and those gathered from others.
    read = passes * weights * mesh.shape["fsdp"] + 2 * activations
    return {
        "machine": machine.name,
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "batch_size": train.batch_size,
        "requested_batch_size": requested,
        "seq_len": train.seq_len,
        "remat": workload.remat,
        "base_weights": workload.base_weights,
        **sizes,
        "total": total,
        "memory": chip.memory,
        "fits": bool(most <= USABLE * chip.memory),
        "teacher": {"context_tokens": context_tokens, **reading} if reading else None,
        "teacher_store_per_token": teacher.hidden_size * bytes_each,
        **least_times(work, chip, bytes_each, read, tokens),
    }


def rounded_up(workload: Workload, mesh: Mesh) -> Workload:
    """The workload with a batch size that the mesh can split evenly, as jobs round it up."""
    rows = meshes.round_up_rows(mesh, workload.train.batch_size, workload.train.accumulate)
    return dataclasses.replace(workload, train=dataclasses.replace(workload.train, batch_size=rows))


def compiled_plan(
    workload: Workload,
    config: ModelConfig,
    machine: Machine,
    compiler: str,
    context_tokens: int = 0,
    names: tuple[str, ...] = (),
    on_program: Callable[[str], None] = lambda name: None,
) -> dict:
    """What the programs of a job need on each device, from the device's own compiler.

    Args:
      workload: what is trained.
      config: the model's architecture.
      machine: what is compiled for.
      compiler: of `compilers.COMPILERS`.
      context_tokens: tokens of the longest context (prompt format included); 0 leaves out what reading it takes.
      names: only programs whose name begins with one of these; () means all.
      on_program: called with a program's name before it is compiled, which may take minutes.

    Returns:
      "machine", "compiler", "mesh", "batch_size", "requested_batch_size", "seq_len", "remat", "attention", "dtype",
      "base_weights", "memory" (bytes of a device), "fits", and "programs", a list of what `describe_program` gives,
      or "name" and "error" for a program that the compiler finds too large.

    Raises:
      ValueError: the compiler is not installed or not the machine's, or model and mesh do not go together.
    """
    mesh = meshes.make_mesh(machine_devices(machine, compiler), workload.mesh)
    requested, workload = workload.train.batch_size, rounded_up(workload, mesh).settled(config)
    found = []
    for program in job_programs(workload, config, mesh, context_tokens, names):
        on_program(program.name)
        began = time.perf_counter()
        try:
            compiled = compile_program(program.trace, compiler)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            found.append({"name": program.name, "error": str(error).splitlines()[0]})
            continue
        seconds = time.perf_counter() - began
        found.append({**describe_program(program, compiled, workload, machine), "compile_s": round(seconds, 1)})
    return {
        "machine": machine.name,
        "compiler": compiler,
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "batch_size": workload.train.batch_size,
        "requested_batch_size": requested,
        "seq_len": workload.train.seq_len,
        "remat": workload.remat,
        "attention": workload.attention,
        "dtype": workload.dtype,
        "base_weights": workload.base_weights,
        "memory": machine.chip.memory,
        "fits": all("error" not in each and each["total"] <= USABLE * machine.chip.memory for each in found),
        "programs": found,
    }


def describe_program(program: Program, compiled: jax.stages.Compiled, workload: Workload, machine: Machine) -> dict:
    """What one run of a compiled program holds, computes, moves and sends on each device.

    Args:
      program: what was compiled.
      compiled: the result.
      workload: its dtype decides the peak.
      machine: its published numbers are taken.

    Returns:
      "name"; bytes: "arguments" (weights among them), "results" (beside those that take an argument's place),
      "temporary", "code", "total"; "flops"; "moved", bytes from and to the device's memory; "sent" and "exposed",
      bytes by kind of collective, all and those that the program waits for; "collectives", what `costs.Collective`
      has and "times"; "compute_s", "read_s", "send_s", "step_s", "sentence_tokens_per_s" as `least_times` has them;
      "cycles_s", the compiler's own estimate: its cycles, and the transfers that are waited for (None from a compiler
      that makes none); "kernels", how often it runs one of Pallas, which is in none of the estimates.
    """
    memory = compiled.memory_analysis()
    sizes = {
        "arguments": memory.argument_size_in_bytes + program.beside,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    work, chip = costs(compiled.as_text(), program.unknown_trips), machine.chip
    transfers = [{**dataclasses.asdict(each), "times": times} for each, times in work.collectives.items()]
    waiting = sum(work.exposed.values()) / chip.link
    least = least_times(work, chip, workload.item_bytes, work.bytes, program.tokens)
    return {
        "name": program.name,
        **sizes,
        "total": sum(sizes.values()),
        **least,
        "moved": work.bytes,
        "exposed": work.exposed,
        "collectives": sorted(transfers, key=lambda each: -each["sent"] * each["times"]),
        "kernels": work.kernels,
        "cycles_s": work.cycles / chip.clock + waiting if work.cycles else None,
    }


def least_times(work: Costs, chip: Chip, bytes_each: int, read: float, tokens: int) -> dict:
    """Least times of a step by the published peaks.

    Args:
      work: what the program computes and sends on one device.
      chip: the device.
      bytes_each: bytes of a weight; float32 products are taken to be half as fast as bfloat16 ones.
      read: bytes that a device reads from its memory.
      tokens: of a step, on all devices.

    Returns:
      the entries of `make_plan` from "flops" on.
    """
    sent = work.sent
    least = {
        "compute_s": work.flops / chip.flops * (1 if bytes_each == 2 else 2),
        "read_s": read / chip.bandwidth,
        "send_s": sum(sent.values()) / chip.link,
    }
    step_s = max(least.values())
    return {"flops": work.flops, "sent": sent, **least, "step_s": step_s, "sentence_tokens_per_s": tokens / step_s}


def alternatives(workload: Workload, machine: Machine) -> list[tuple[str, Workload]]:
    """Changes that need less memory, each on top of those before it: the flags, and the workload with them."""
    train = workload.train
    spread = dataclasses.replace(workload.mesh, data=1, fsdp=-1, tensor=1)
    fewer = min(machine.count, train.batch_size // train.accumulate) * train.accumulate  # whole parts
    choices = [
        ("--config.mesh.data=1 --config.mesh.fsdp=-1", "mesh", spread),
        ("--config.remat=layers", "remat", "layers"),
        (f"--config.train.batch_size={fewer}", "train", dataclasses.replace(train, batch_size=fewer)),
    ]
    if not workload.merges:
        choices.append(("--config.base_weights=int8", "int8", True))
    found, flags, changed = [], [], workload
    for flag, field, value in choices:
        if getattr(changed, field) != value:
            flags.append(flag)
            changed = dataclasses.replace(changed, **{field: value})
            found.append((" ".join(flags), changed))
    return found


def suggestion(
    workload: Workload,
    config: ModelConfig,
    machine: Machine,
    devices: Sequence | None = None,
    context_tokens: int = 0,
) -> str:
    """Flags with which a job that does not fit would fit, or what else to do; arguments as for `make_plan`.

    Args:
      workload, config, machine, devices, context_tokens: as `make_plan` has them.

    Returns:
      one line.
    """
    for flags, changed in alternatives(workload.settled(config), machine):
        try:
            if make_plan(changed, config, machine, devices, context_tokens)["fits"]:
                return f"it would fit with {flags}"
        except ValueError:  # sizes that this mesh cannot split
            continue
    return "no mesh, remat, batch size or 8-bit base makes it fit this machine; use more devices"
