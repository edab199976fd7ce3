"""Whether a job fits a machine, and how long a step would take, without the machine.

    python -m selfparam_jax.plan --config=configs/models/llama3_8b.py --devices=v5e-16

Compiles the real training step for the model's real shapes on as many pretended CPU devices, and reads from it what
each device holds, computes and sends. Needs no weights, only the architecture: from `--architecture` (a config.json),
a .json of the configuration's name beside it, or the model itself.
"""

import dataclasses
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from selfparam_jax import hub, jobs, teacher, trainer
from selfparam_jax import mesh as meshes
from selfparam_jax.attention import SPLASH
from selfparam_jax.lora import init_lora
from selfparam_jax.model import Decoder, Int8Kernel, KeyValues, ModelConfig, param_shapes
from selfparam_jax.objective import Signal
from selfparam_jax.prefix import cache_size
from selfparam_jax.program_costs import Costs, costs
from selfparam_jax.sharding import parameter_shardings


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peak numbers of one device.

    flops: bfloat16 products a second, dense. memory: bytes. bandwidth: of the memory, bytes a second.
    link: bytes a second that it sends to its neighbours, all links together, one direction.
    per_device: what the makers' name counts for one device (v4 and v5p count cores, two each).
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    per_device: int = 1


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 150e9, 2),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 100e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 300e9, 2),
    "v6e": Chip(918e12, 32 * 2**30, 1640e9, 224e9),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9),
    "b200": Chip(2250e12, 180e9, 8000e9, 900e9),
}
USABLE = 0.92  # share of the memory that a program gets; the rest is the runtime's


@dataclasses.dataclass(frozen=True)
class Machine:
    """So many devices of a kind."""

    name: str
    chip: Chip
    count: int


def read_machine(name: str) -> Machine:
    """A machine by its name.

    Raises:
      ValueError: the kind is not known, or the number is not possible.
    """
    found = re.fullmatch(r"(\w+?)-(\d+)", name)
    kind = found[1].replace("v5litepod", "v5e") if found else ""
    if kind not in CHIPS:
        raise ValueError(f"devices = {name!r}, expected KIND-COUNT with a kind of {', '.join(CHIPS)}, as v5e-16")
    chip, number = CHIPS[kind], int(found[2])
    if not number or number % chip.per_device:
        raise ValueError(f"devices = {name!r}: {kind} counts cores, {chip.per_device} a chip; use a multiple of that")
    return Machine(name, chip, number // chip.per_device)


def read_architecture(path: str, config_file: str, model: str) -> ModelConfig:
    """The architecture from a config.json, a .json beside the configuration, or the model itself."""
    beside = pathlib.Path(config_file.split(":")[0]).with_suffix(".json")
    if path or beside.is_file():
        return hub.read_architecture(path or beside)
    return hub.load_pretrained(model).config


def pretended_batch(settings, config: ModelConfig, mesh) -> trainer.Batch:
    """Shapes of a step's batch, laid out on the mesh."""
    train, groups = settings.train, meshes.shards(mesh, "rows")
    parts = (train.accumulate,) if train.accumulate > 1 else ()
    rows = train.batch_rows // train.accumulate, train.row_length
    positions = groups, rows[0] // groups * train.row_length

    def array(shape, dtype):
        sharding = meshes.split_rows(mesh, len(parts))
        return jax.ShapeDtypeStruct((*parts, *shape), dtype, sharding=sharding)

    numbers, weights = array(positions, jnp.int32), array(positions, jnp.float32)
    states = array((*positions, config.hidden_size), jobs.DTYPES[settings.dtype])
    signal = Signal(array((groups,), jnp.int32), states, weights)
    if settings.targets.answer_supervision:
        signal = signal.replace(targets=numbers, supervision=weights)
    ids = array(rows, jnp.int32)
    return trainer.Batch(ids, ids, ids, numbers, signal)


def pretended_params(config: ModelConfig, mesh, int8: bool = False) -> dict:
    """Shapes of the parameters (float32, or kernels in 8 bits), laid out on the mesh."""

    def array(leaf, sharding):
        if isinstance(sharding, Int8Kernel):
            layers, _, outputs = leaf.shape
            scale = jax.ShapeDtypeStruct((layers, 1, outputs), jnp.float32, sharding=sharding.scale)
            return Int8Kernel(jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=sharding.values), scale)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(array, param_shapes(config), parameter_shardings(mesh, config, int8))


def compile_for(settings, config: ModelConfig, mesh, params: dict, lora: dict) -> Any:
    """The training step, compiled for the shapes of a model that is not there.

    In float32, whatever the job's dtype: CPU programs convert bfloat16 and would show copies that others do not have.
    """
    settings = dataclasses.replace(settings, dtype="float32")
    same = meshes.replicated(mesh)
    layout, lora_config = meshes.layout_of(mesh), settings.lora
    model = Decoder(config, jnp.float32, settings.remat, lora_config.scale, lora_config.dropout, layout)
    optimizer = trainer.make_optimizer(settings.train, 100)
    state = jax.eval_shape(lambda lora: trainer.init_state(lora, optimizer), lora)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=same), state)
    loss = trainer.LossConfig(settings.train.temperature, settings.train.loss_chunk)
    step = trainer.compile_step(
        model, optimizer, mesh, loss, accumulate=settings.train.accumulate, int8=settings.int8
    )
    return step.lower(state, params, pretended_batch(settings, config, mesh), jax.random.key(0)).compile()


def teacher_needs(settings, config: ModelConfig, mesh, params: dict, context_tokens: int) -> dict:
    """What a device holds beside the weights while rows are read after a context of so many tokens.

    Returns:
      bytes: "context", its keys and values; "reading", what the program reserves, as if all of it were float32 (the
      scores are, whatever the job's dtype).

    Raises:
      ValueError: the context is longer than the model allows.
    """
    limit = config.max_position_embeddings
    if context_tokens > limit:
        raise ValueError(
            f"--context_tokens={context_tokens} exceeds the model's limit of {limit} (max_position_embeddings); "
            "give a shorter context"
        )
    size, layout = cache_size(context_tokens), meshes.layout_of(mesh)
    same, bytes_each = meshes.replicated(mesh), np.dtype(jobs.DTYPES[settings.dtype]).itemsize
    shape = (config.num_hidden_layers, 1, config.num_key_value_heads, size, config.head_dim)
    heads = NamedSharding(mesh, meshes.spec(None, None, "heads", None, None))
    keys = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=heads)
    places = jax.ShapeDtypeStruct((1, size), jnp.int32, sharding=same)
    past = KeyValues(keys, keys, places, places)
    rows = settings.train.batch_rows, settings.train.row_length  # all of a batch, whatever its parts in training
    ids = jax.ShapeDtypeStruct(rows, jnp.int32, sharding=meshes.split_rows(mesh))
    # The kernel for TPUs holds no scores: it is as if there were no context to look at.
    seen = () if settings.attention == SPLASH else (past,)
    model = Decoder(config, jnp.float32, layout=layout)
    compiled = teacher.states_of_rows.lower(model, {"params": params}, ids, ids, ids, seen).compile()
    memory = compiled.memory_analysis()
    reading = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return {"context": 2 * _held(keys, bytes_each), "reading": float(reading)}


def _held(tree, float_bytes: int) -> float:
    """Bytes of a tree of shapes on one device; what is float32 in it has so many per element, but scales have 4."""

    def size(leaf):
        return math.prod(leaf.sharding.shard_shape(leaf.shape))

    def held(leaf):
        if isinstance(leaf, Int8Kernel):
            return size(leaf.values) + 4 * size(leaf.scale)
        return size(leaf) * float_bytes

    return float(sum(map(held, jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, Int8Kernel)))))


def make_plan(settings, config: ModelConfig, machine: Machine, devices=None, context_tokens: int = 0) -> dict:
    """What a step of a job needs on each device of a machine.

    Args:
      context_tokens: tokens of the longest context (prompt format included); 0 leaves out what reading it takes.

    Returns:
      sizes in bytes ("parameters", "adapter", "optimizer", "batch", "activations", "total", "memory"), "fits";
      "teacher": what `teacher_needs` gives, or None;
      "teacher_store_per_token"; "flops" and "sent" (by kind of collective) per step; "compute_s", "read_s", "send_s":
      the least time of each by the published peaks; "step_s": the largest; "sentence_tokens_per_s" at full rows.

    Raises:
      ValueError: model and mesh do not go together.
    """
    mesh = meshes.make_mesh(devices, settings.mesh)
    meshes.check_rows(mesh, settings.train.batch_rows // settings.train.accumulate, "train.batch_rows")
    bytes_each = np.dtype(jobs.DTYPES[settings.dtype]).itemsize
    params = pretended_params(config, mesh, settings.int8)
    weights = _held(params, bytes_each)
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), params, settings.lora))
    adapter = 4.0 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(lora))
    compiled = compile_for(settings, config, mesh, params, lora)
    train, row_shards = settings.train, meshes.shards(mesh, "rows")
    positions = train.batch_rows // train.accumulate // row_shards * train.row_length  # of a part, on a device
    chunk = min(train.loss_chunk, positions)
    # Logits of teacher and student and their slope stay float32; all else is of the job's dtype.
    logits = 3 * 4.0 * chunk * config.vocab_size / meshes.shards(mesh, "vocabulary")
    temporary = compiled.memory_analysis().temp_size_in_bytes
    activations = max(temporary - logits, 0) * bytes_each / 4 + logits
    tokens = train.batch_rows * train.row_length
    batch = tokens / row_shards * (4 * 5 + bytes_each * config.hidden_size)
    work = costs(compiled.as_text(), math.ceil(positions / chunk), bytes_each)
    sizes = {"parameters": weights, "adapter": adapter, "optimizer": 2 * adapter, "batch": batch}
    sizes["activations"] = activations
    total, chip = sum(sizes.values()), machine.chip
    reading = teacher_needs(settings, config, mesh, params, context_tokens) if context_tokens else {}
    most = max(total, weights + sum(reading.values()))
    passes = 3 if settings.remat == "layers" else 2
    # Of the weights, what a device reads in one pass: its own and those gathered from others.
    read = passes * weights * mesh.shape["fsdp"] + 2 * activations
    return {
        "machine": machine.name,
        "mesh": {name: int(size) for name, size in mesh.shape.items()},
        "batch_rows": train.batch_rows,
        "row_length": train.row_length,
        "remat": settings.remat,
        "base_weights": settings.base_weights,
        **sizes,
        "total": total,
        "memory": chip.memory,
        "fits": bool(most <= USABLE * chip.memory),
        "teacher": {"context_tokens": context_tokens, **reading} if reading else None,
        "teacher_store_per_token": config.hidden_size * bytes_each,
        **times(work, chip, bytes_each, read, tokens),
    }


def times(work: Costs, chip: Chip, bytes_each: int, read: float, tokens: int) -> dict:
    """Least times of a step by the published peaks (float32 products are taken to be half as fast)."""
    sent = dict(sorted(work.sent.items()))
    least = {
        "compute_s": work.flops / chip.flops * (1 if bytes_each == 2 else 2),
        "read_s": read / chip.bandwidth,
        "send_s": sum(sent.values()) / chip.link,
    }
    step_s = max(least.values())
    return {"flops": work.flops, "sent": sent, **least, "step_s": step_s, "sentence_tokens_per_s": tokens / step_s}


def alternatives(settings, machine: Machine) -> list[tuple[str, Any]]:
    """Changes that need less memory, one after the other: what to say, and the settings with it."""
    spread, train = meshes.MeshConfig(1, -1, 1), settings.train
    fewer = min(machine.count, train.batch_rows // train.accumulate) * train.accumulate  # whole parts
    found, said, now = [], [], settings
    choices = [
        ("--config.mesh.data=1 --config.mesh.fsdp=-1", "mesh", spread),
        ("--config.remat=layers", "remat", "layers"),
        (f"--config.train.batch_rows={fewer}", "train", dataclasses.replace(train, batch_rows=fewer)),
    ]
    if settings.job != "sequential":  # which merges every adapter into the base
        choices.append(("--config.base_weights=int8", "base_weights", "int8"))
    for flag, field, value in choices:
        if getattr(now, field) != value:
            said.append(flag)
            now = dataclasses.replace(now, **{field: value})
            found.append((" ".join(said), now))
    return found


def suggestion(settings, config: ModelConfig, machine: Machine, devices=None, context_tokens: int = 0) -> str:
    """Flags with which a job that does not fit would, or what else to do."""
    for flags_of_it, changed in alternatives(settings, machine):
        try:
            if make_plan(changed, config, machine, devices, context_tokens)["fits"]:
                return f"it would fit with {flags_of_it}"
        except ValueError:  # rows or sizes that this mesh cannot split
            continue
    return "no mesh, remat, batch or base in 8 bits of this machine makes it fit; use more devices"


def describe(plan: dict) -> str:
    """A plan as text."""
    gib = 2**30
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [f"{plan['machine']}: mesh {mesh}, {plan['batch_rows']} rows x {plan['row_length']} tokens, "
             f"remat {plan['remat']}, {plan['base_weights']} base", "", "per device, GiB:"]  # fmt: skip
    for name in ("parameters", "adapter", "optimizer", "batch", "activations", "total"):
        lines.append(f"  {name:<12} {plan[name] / gib:8.2f}")
    state = "fits" if plan["fits"] else "DOES NOT FIT"
    lines.append(f"  of           {plan['memory'] / gib:8.2f}   {state} ({USABLE:.0%} usable)")
    if reading := plan["teacher"]:
        need = plan["parameters"] + reading["context"] + reading["reading"]
        lines.append(
            f"teacher, on a context of {reading['context_tokens']:,} tokens: {need / gib:.2f} (its keys and values "
            f"{reading['context'] / gib:.2f}, reading rows after it up to {reading['reading'] / gib:.2f})"
        )
    lines += [f"teacher store: {plan['teacher_store_per_token']:,} bytes per sentence token, on disk", ""]
    sent = ", ".join(f"{kind} {size / 1e9:.2f}" for kind, size in plan["sent"].items()) or "nothing"
    lines += [
        f"per step and device: {plan['flops'] / 1e12:.2f} TFLOP in products; sent, GB: {sent}",
        f"least time by published peaks: compute {plan['compute_s']:.3f} s, memory {plan['read_s']:.3f} s, "
        f"links {plan['send_s']:.3f} s",
        f"so at least {plan['step_s']:.3f} s a step, at most {plan['sentence_tokens_per_s']:,.0f} tokens/s",
    ]
    return "\n".join(lines)


def table(plans: list[dict], remarks: list[str]) -> str:
    """Several plans as a Markdown table; sizes in GiB per device."""
    lines = [
        "| devices | mesh | weights | adapter, optimiser | activations | in all | of | sent per step, GB | "
        "least s per step | |",
        "| --- " * 10 + "|",
    ]
    for plan, remark in zip(plans, remarks, strict=True):
        size = {name: value / 2**30 for name, value in plan.items() if name in (
            "parameters", "adapter", "optimizer", "activations", "total", "memory")}  # fmt: skip
        mesh = " x ".join(str(part) for part in plan["mesh"].values())
        lines.append(
            f"| {plan['machine']} | {mesh} | {size['parameters']:.2f} | {size['adapter'] + size['optimizer']:.2f} | "
            f"{size['activations']:.2f} | {size['total']:.2f} | {size['memory']:.0f} | "
            f"{sum(plan['sent'].values()) / 1e9:.1f} | {plan['step_s']:.2f} | {remark} |"
        )
    return "\n".join(lines)
