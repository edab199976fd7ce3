"""Plans: what is read from a compiled program is what real arrays take on each device."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax.distributed import mesh
from selfparam_jax.inference.prefix import read_prefix
from selfparam_jax.models.decoder import Decoder, param_shapes
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.models.shardings import parameter_shardings
from selfparam_jax.plan.machines import USABLE, Chip, Machine, read_machine
from selfparam_jax.plan.memory import batch_shapes
from selfparam_jax.plan.plan import make_plan, suggestion
from selfparam_jax.plan.programs import job_programs
from selfparam_jax.plan.workload import Workload
from selfparam_jax.reports.plans import describe_plan, plan_table
from selfparam_jax.training import teacher, train_step
from selfparam_jax.training.optimizer import TrainConfig, make_optimizer

pytestmark = pytest.mark.usefixtures("all_devices")

SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "num_hidden_layers": 3}


@pytest.fixture(scope="module")
def config():
    return model_config_from_hf(tiny.hf_config("gqa", **SIZES))


def workload_of(**changes):
    """A small workload: `mesh` as three sizes, `rank` of the adapter, other fields by name."""
    own = {name: changes.pop(name) for name in ("dtype", "attention", "remat", "int8", "merges") if name in changes}
    sizes = mesh.MeshConfig(*changes.pop("mesh", (-1, 1, 1)))
    lora = LoraConfig(rank=changes.pop("rank", 8))
    return Workload(lora=lora, mesh=sizes, train=TrainConfig(**{**SMALL, **changes}), **own)


SMALL = {"batch_size": 8, "seq_len": 32, "loss_chunk": 16}
MACHINE = Machine("test-8", Chip(1e12, 1e9, 1e11, 1e10), 8)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_plan_is_what_real_arrays_take(config, random_params, sizes):
    workload = workload_of(mesh=sizes)
    found = make_plan(workload, config, MACHINE)
    devices = mesh.make_mesh(config=workload.mesh)
    params = jax.device_put(random_params(config), parameter_shardings(devices, config))
    first = jax.devices()[0]

    def held(tree):
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == first)

    lora = mesh.put_same(devices, init_lora(jax.random.key(0), params, workload.lora))
    optimizer = make_optimizer(workload.train, 10)
    state = mesh.put_same(devices, train_step.init_state(lora, optimizer))
    assert found["parameters"] == held(params)
    assert found["adapter"] == held(lora)
    assert held(state.opt_state) == pytest.approx(found["optimizer"], abs=64)
    # The program of the plan is the program that runs: as much memory for what lives within a step.
    remat, sharding = workload.settled(config).remat, mesh.activation_sharding(devices)
    model = Decoder(config, remat=remat, lora_scale=workload.lora.scale, sharding=sharding)
    step = train_step.compile_step(model, optimizer, devices, train_step.LossConfig(chunk=16))
    batch = jax.tree.map(
        lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding),
        batch_shapes(workload, config, devices),
    )
    real = step.lower(state, params, batch, jax.random.key(0)).compile().memory_analysis()
    assert found["activations"] == real.temp_size_in_bytes
    assert found["total"] == sum(found[n] for n in ("parameters", "adapter", "optimizer", "batch", "activations"))
    assert found["gathered_ahead"] == 0.0
    assert found["teacher_store_per_token"] == 4 * config.hidden_size


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_what_the_teacher_needs_is_what_it_reserves(config, random_params, sizes):
    """While rows are read after a context of 40 tokens, whose cache has 256 places."""
    # The teacher reads whole batches, whatever training does.
    workload, count = workload_of(mesh=sizes, accumulate=2), math.prod(sizes)
    found = make_plan(workload, config, MACHINE, jax.devices()[:count], context_tokens=40)["teacher"]
    devices = mesh.make_mesh(jax.devices()[:count], workload.mesh)
    params = jax.device_put(random_params(config), parameter_shardings(devices, config))
    model = Decoder(config, sharding=mesh.activation_sharding(devices))
    prefix = read_prefix(model, {"params": params}, list(range(3, 43))).key_values
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in (prefix.keys, prefix.values))
    assert found["context"] == held == 2 * 4 * 3 * 4 * 256 * 8 / sizes[2]  # layers, heads, places, width
    rows = mesh.put_rows(devices, (np.zeros((8, 32), np.int32),) * 3)
    real = teacher.states_of_rows.lower(model, {"params": params}, *rows, (prefix,)).compile().memory_analysis()
    assert found["reading"] == real.temp_size_in_bytes + real.output_size_in_bytes


def test_another_teacher_is_held_whole_while_it_reads_and_its_head_in_training(config):
    other = dataclasses.replace(config, hidden_size=64, num_hidden_layers=2)
    taught = dataclasses.replace(workload_of(), teacher=other)
    alone, found = (make_plan(each, config, MACHINE, jax.devices()[:1], 40) for each in (workload_of(), taught))
    weights = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(other)))
    assert found["teacher"]["weights"] == 4 * weights and alone["teacher"]["weights"] == 0
    assert found["teacher_head"] == 4 * 64 * config.vocab_size and alone["teacher_head"] == 0
    assert found["parameters"] == alone["parameters"]
    states = 4 * SMALL["batch_size"] * SMALL["seq_len"] * (64 - config.hidden_size)
    assert found["batch"] - alone["batch"] == states
    assert found["total"] > alone["total"] + found["teacher_head"]
    assert "teacher_head" in describe_plan(found) and "its weights 0.00" in describe_plan(found)
    assert "teacher_head" not in describe_plan(alone) and "its weights" not in describe_plan(alone)
    devices = mesh.make_mesh(jax.devices()[:1])
    programs = {each.name: each for each in job_programs(taught, config, devices, 40)}
    assert programs["teacher's rows"].beside == found["parameters"] and programs["training step"].beside == 0


@pytest.mark.parametrize(("merges", "made"), [(False, jnp.bfloat16), (True, jnp.float32)])
def test_the_merge_is_the_program_that_the_job_runs(config, merges, made):
    """A kernel with one delta, or, one document after another, a growing sum of deltas."""
    workload = workload_of(merges=merges, dtype=jnp.bfloat16)
    (merge,) = job_programs(workload, config, mesh.make_mesh(jax.devices()[:1]), names=("merge",))
    assert merge.trace().out_info.dtype == made


def test_a_long_context_may_not_fit_where_a_step_does(config):
    long = dataclasses.replace(config, max_position_embeddings=8192)
    needs = [make_plan(workload_of(), long, MACHINE, context_tokens=n)["teacher"] for n in (1024, 8192)]
    assert needs[1]["context"] == 8 * needs[0]["context"]
    assert needs[1]["reading"] > 4 * needs[0]["reading"]
    kernel = make_plan(workload_of(attention="splash"), long, MACHINE, context_tokens=8192)["teacher"]
    assert kernel["context"] == needs[1]["context"] and kernel["reading"] < 0.1 * needs[1]["reading"]
    step = make_plan(workload_of(), long, MACHINE)
    assert step["teacher"] is None and "teacher, on" not in describe_plan(step)
    between = (step["total"] + step["parameters"] + sum(needs[1].values()) - 8192) / 2 / USABLE
    small = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=between))
    assert make_plan(workload_of(), long, small)["fits"]
    found = make_plan(workload_of(), long, small, context_tokens=8192)
    assert not found["fits"] and "teacher, on a context of 8,192 tokens: " in describe_plan(found)
    with pytest.raises(ValueError, match="--context_tokens=8193 exceeds the model's limit of 8192"):
        make_plan(workload_of(), long, MACHINE, context_tokens=8193)


def test_work_per_device_falls_with_their_number(config):
    """As 1/N along every axis; what is sent is what the axis must send."""
    found = {}
    for sizes in ((1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 2)):
        devices = jax.devices()[: math.prod(sizes)]
        # Adapters are whole on every device of a tensor axis: as narrow as can be, they hardly count.
        found[sizes] = make_plan(workload_of(mesh=sizes, rank=1), config, MACHINE, devices)
    one = found[1, 1, 1]
    assert one["sent"] == {}
    for sizes, each in found.items():
        count = math.prod(sizes)
        assert each["flops"] / one["flops"] == pytest.approx(1 / count, rel=0.03), sizes
    adapter = one["adapter"]
    for count in (2, 4, 8):  # a ring sends the adapter's gradient twice, less its own part; and a few sums
        sent = found[count, 1, 1]["sent"]
        assert set(sent) == {"all-reduce"}
        assert sent["all-reduce"] == pytest.approx(2 * adapter * (count - 1) / count, abs=100)
    # FSDP: every layer's weights once in the forward and once in the backward pass, and the head once.
    table = 4 * config.vocab_size * config.hidden_size
    layers = one["parameters"] - 2 * table
    assert found[1, 4, 1]["sent"]["all-gather"] == pytest.approx(0.75 * (2 * layers + table), rel=0.01)


def test_weights_that_are_gathered_ahead(config, random_params):
    """A GPU's compiler holds a whole layer more than it computes with, where layers are split."""
    ahead = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, layers_ahead=1))
    kernels = [leaf for leaf in jax.tree.leaves(random_params(config)["layers"]) if leaf.ndim == 3]
    for sizes, expected in (((1, 8, 1), sum(leaf.nbytes for leaf in kernels) / 3), ((8, 1, 1), 0.0)):
        found = [make_plan(workload_of(mesh=sizes), config, machine) for machine in (MACHINE, ahead)]
        assert [plan["gathered_ahead"] for plan in found] == [0.0, expected]
        assert found[1]["total"] - found[0]["total"] == found[1]["gathered_ahead"]


def test_accumulation_takes_less_memory_for_the_same_work(config):
    whole, parts = (
        make_plan(workload_of(accumulate=n, mesh=(2, 1, 1)), config, MACHINE,
                       jax.devices()[:2])
        for n in (1, 4)
    )  # fmt: skip
    assert parts["activations"] < 0.5 * whole["activations"]
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.01)


def test_what_does_not_fit_says_what_would(config):
    roomy = make_plan(workload_of(), config, MACHINE)
    assert roomy["fits"]
    spread = make_plan(workload_of(mesh=(1, 8, 1)), config, MACHINE)
    between = (roomy["total"] + spread["total"]) / 2 / USABLE
    small = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=between))
    assert not make_plan(workload_of(), config, small)["fits"]
    said = suggestion(workload_of(), config, small)
    assert said == "it would fit with --config.mesh.data=1 --config.mesh.fsdp=-1"
    tight = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=1e4))
    assert "use more devices" in suggestion(workload_of(), config, tight)


def test_a_base_in_8_bits_is_the_last_suggestion(config):
    """A memory that holds the step with all else but not with weights in full."""
    changes = {"mesh": (1, 8, 1), "remat": "layers", "batch_size": 8}
    full, eight = (make_plan(workload_of(int8=b, **changes), config, MACHINE) for b in (False, True))
    between = (full["total"] + eight["total"]) / 2 / USABLE
    small = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=between))
    said = suggestion(workload_of(), config, small)
    assert said.startswith("it would fit with ") and said.endswith(" --config.base_weights=int8")
    assert "use more devices" in suggestion(workload_of(merges=True), config, small)


def test_half_the_bytes_in_bfloat16(config):
    full, half = (make_plan(workload_of(dtype=d), config, MACHINE) for d in ("float32", "bfloat16"))
    assert half["parameters"] == full["parameters"] / 2
    assert half["adapter"] == full["adapter"]
    assert half["compute_s"] == full["compute_s"] / 2
    logits = 3 * 4 * 16 * config.vocab_size
    assert half["activations"] == pytest.approx((full["activations"] - logits) / 2 + logits)


def test_a_quarter_of_float32s_bytes_in_8_bits(config):
    changes = {"mesh": (1, 4, 2)}
    full, eight = (make_plan(workload_of(int8=b, **changes), config, MACHINE) for b in (False, True))
    table = parameter_table(config)
    kernels = [entry for entry in table if entry.is_kernel]
    elements = sum(math.prod(entry.shape) for entry in kernels)
    # Each scale is split as its kernel's outputs are.
    scales = sum(
        entry.shape[0] * entry.shape[2] / {"hidden": 4, "heads": 2, "inner": 2}[entry.axes[2]] for entry in kernels
    )
    assert full["parameters"] - eight["parameters"] == pytest.approx(3 * elements / 8 - 4 * scales)
    assert eight["base_weights"] == "int8"


@pytest.mark.parametrize(
    ("name", "count"), [("v5e-16", 16), ("v5litepod-16", 16), ("v4-8", 4), ("h100-8", 8), ("h200-1", 1)]
)
def test_machines(name, count):
    assert read_machine(name).count == count


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e", "expected KIND-COUNT"),
        ("tpu-8", "expected KIND-COUNT"),
        ("", "expected KIND-COUNT"),
        ("v5e-8.5", "expected KIND-COUNT"),
        ("v4-7", "a multiple of that"),
        ("h100-0", "devices = h100-0, expected a number from 1 to 16384"),
        ("v5e-16385", "expected a number from 1 to 16384"),
        ("v5e-1000000", "devices = v5e-1000000, expected a number from 1 to 16384"),
        ("v5p-1000000", "expected a number from 1 to 32768"),
        ("h100-" + "9" * 5000, r"devices = h100-9{20}\.\.\., expected a number from 1 to 16384"),
    ],
)
def test_machines_that_are_not(name, words):
    with pytest.raises(ValueError, match=f"^devices = .*{words.removeprefix('devices = ')}") as error:
        read_machine(name)
    assert "\n" not in str(error.value)


def test_the_largest_machines():
    assert read_machine("v5e-16384").count == read_machine("v5p-32768").count == 16384


@pytest.mark.parametrize(("given", "parts", "rounded"), [(2, 1, 8), (12, 4, 32), (8, 1, 8)])
def test_a_batch_size_that_cannot_be_split_is_rounded_up(config, given, parts, rounded):
    """As jobs do, and it is said."""
    found, exact = (
        make_plan(workload_of(batch_size=size, accumulate=parts), config, MACHINE) for size in (given, rounded)
    )
    assert (found["batch_size"], found["requested_batch_size"]) == (rounded, given)
    assert {**found, "requested_batch_size": rounded} == exact
    words = f"batch size {given} cannot be split over 8 devices (data x fsdp): rounded up to {rounded}"
    assert (words in describe_plan(found)) == (given != rounded)
    assert "rounded up" not in describe_plan(exact)
    assert (words in plan_table([found], ["fits"])) == (given != rounded)


def test_several_machines_are_a_table(config):
    plans = [make_plan(workload_of(), config, MACHINE) for _ in range(2)]
    head, line, first, second = plan_table(plans, ["fits", "it would not"]).splitlines()
    assert head.count("|") == line.count("|") == first.count("|")
    assert first.startswith("| test-8 | 8 x 1 x 1 | 0.00 |") and first.endswith("| fits |")
    assert second.endswith("| it would not |")


def test_numbers_are_plain(config):
    found = make_plan(workload_of(), config, MACHINE)
    json.dumps(found)
    assert isinstance(found["fits"], bool)
    assert np.isfinite(found["step_s"])
