"""Plans: what is read from a compiled program is what can be worked out by hand, and is what real arrays take."""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from configs import base
from configs.models import llama3_8b, mistral_7b, openllama_3b
from selfparam_jax import jobs, mesh, plan, teacher, trainer, weights
from selfparam_jax.lora import init_lora
from selfparam_jax.model import Decoder
from selfparam_jax.prefix import read_prefix
from selfparam_jax.program_costs import costs, item_bytes
from selfparam_jax.sharding import parameter_shardings

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "num_hidden_layers": 3}


def text_of(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().as_text()


def over(sizes, names):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))


# --- what a program costs ------------------------------------------------------------------------------


def test_products_in_a_loop_count_as_often_as_it_runs():
    x, w = jnp.ones((6, 16)), jnp.ones((5, 16, 16))

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert costs(text_of(layers, x, w)).flops == 5 * 2 * 6 * 16 * 16
    twice = costs(text_of(lambda x, w: layers(layers(x, w), w) @ w[0, :, :4], x, w))
    assert twice.flops == 2 * 5 * 2 * 6 * 16 * 16 + 2 * 6 * 16 * 4


def test_a_loop_that_does_not_say_how_often_it_runs():
    w = jnp.ones((8, 8))

    def loop(x, w, count):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ w), x)

    text = text_of(loop, jnp.ones((4, 8)), w, 3)
    assert costs(text).flops == 2 * 4 * 8 * 8
    assert costs(text, unknown_trips=7).flops == 7 * 2 * 4 * 8 * 8


def test_batched_products():
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 6))
    assert costs(text_of(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), a, b)).flops == 3 * 2 * 4 * 5 * 6


def test_what_crosses_devices():
    devices = over((2, 4), ("a", "b"))

    def put(shape, *split):
        return jax.device_put(jnp.ones(shape), NamedSharding(devices, PartitionSpec(*split)))

    x, w = put((8, 64), "a", "b"), put((64, 32), "b", None)
    # Summed over the four that share the inner axis: [4, 32] of float32, twice 3/4 of it.
    assert costs(text_of(jnp.matmul, x, w)).sent == {"all-reduce": 2 * 0.75 * 4 * 32 * 4}

    def gathered(x):
        return jax.lax.with_sharding_constraint(x, NamedSharding(devices, PartitionSpec("a")))

    assert costs(text_of(gathered, x)).sent == {"all-gather": 0.75 * 4 * 64 * 4}


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2,3},{4,5,6,7}}", 4), ("[4,2]<=[8]", 2), ("mesh['x'=4,'y'=2] {'x'}, dimensions={0}", 4),
     ("mesh['x'=4,'y'=2] {'x','y'}", 8)],
)  # fmt: skip
def test_the_ways_to_write_groups(groups, size):
    text = (
        "ENTRY %main (p: f32[10]) -> f32[10] {\n"
        "  %p = f32[10]{0} parameter(0)\n"
        f"  ROOT %r = f32[10]{{0}} all-reduce(%p), channel_id=1, replica_groups={groups}, to_apply=%sum\n}}\n"
    )
    assert costs(text).sent["all-reduce"] == pytest.approx(2 * 40 * (size - 1) / size)
    with pytest.raises(ValueError, match=r"program_costs\.py must learn"):
        costs(text.replace(groups, "<new>"))


def test_bytes_of_types():
    assert [item_bytes(name) for name in ("f32", "bf16", "s4", "pred", "u8", "f8e4m3fn")] == [4, 2, 0.5, 1, 1, 1]


# --- plans ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config():
    return weights.model_config_from_hf(tiny.hf_config("gqa", **SIZES))


def settings_of(**changes):
    given = base.get_config()
    given.train.update(batch_rows=8, row_length=32, loss_chunk=16)
    given.update_from_flattened_dict(changes)
    return jobs.read_settings(given)


MACHINE = plan.Machine("test-8", plan.Chip(1e12, 1e9, 1e11, 1e10), 8)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_plan_is_what_real_arrays_take(config, random_params, sizes):
    names = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes, strict=True))
    settings = settings_of(**names)
    found = plan.make_plan(settings, config, MACHINE)
    devices = mesh.make_mesh(config=settings.mesh)
    params = jax.device_put(random_params(config), parameter_shardings(devices, config))
    first = jax.devices()[0]

    def held(tree):
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == first)

    lora = mesh.put_same(devices, init_lora(jax.random.key(0), params, settings.lora))
    optimizer = trainer.make_optimizer(settings.train, 10)
    state = mesh.put_same(devices, trainer.init_state(lora, optimizer))
    assert found["parameters"] == held(params)
    assert found["adapter"] == held(lora)
    assert held(state.opt_state) == pytest.approx(found["optimizer"], abs=64)
    # The program of the plan is the program that runs: as much memory for what lives within a step.
    model = Decoder(config, remat=settings.remat, lora_scale=settings.lora.scale, layout=mesh.layout_of(devices))
    step = trainer.compile_step(model, optimizer, devices, trainer.LossConfig(chunk=16))
    batch = jax.tree.map(
        lambda leaf: jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding),
        plan.pretended_batch(settings, config, devices),
    )
    real = step.lower(state, params, batch, jax.random.key(0)).compile().memory_analysis()
    assert found["activations"] == real.temp_size_in_bytes
    assert found["total"] == sum(found[n] for n in ("parameters", "adapter", "optimizer", "batch", "activations"))
    assert found["teacher_store_per_token"] == 4 * config.hidden_size


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_what_the_teacher_needs_is_what_it_reserves(config, random_params, sizes):
    """While rows are read after a context of 40 tokens, whose cache has 256 places."""
    names = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes, strict=True))
    # The teacher reads whole batches, whatever training does.
    settings, count = settings_of(**names, **{"train.accumulate": 2}), math.prod(sizes)
    found = plan.make_plan(settings, config, MACHINE, jax.devices()[:count], context_tokens=40)["teacher"]
    devices = mesh.make_mesh(jax.devices()[:count], settings.mesh)
    params = jax.device_put(random_params(config), parameter_shardings(devices, config))
    model = Decoder(config, layout=mesh.layout_of(devices))
    prefix = read_prefix(model, {"params": params}, list(range(3, 43))).key_values
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in (prefix.keys, prefix.values))
    assert found["context"] == held == 2 * 4 * 3 * 4 * 256 * 8 / sizes[2]  # layers, heads, places, width
    rows = mesh.put_rows(devices, (np.zeros((8, 32), np.int32),) * 3)
    real = teacher.states_of_rows.lower(model, {"params": params}, *rows, (prefix,)).compile().memory_analysis()
    assert found["reading"] == real.temp_size_in_bytes + real.output_size_in_bytes


def test_a_long_context_may_not_fit_where_a_step_does(config):
    long = dataclasses.replace(config, max_position_embeddings=8192)
    needs = [plan.make_plan(settings_of(), long, MACHINE, context_tokens=n)["teacher"] for n in (1024, 8192)]
    assert needs[1]["context"] == 8 * needs[0]["context"]
    assert needs[1]["reading"] > 4 * needs[0]["reading"]
    kernel = plan.make_plan(settings_of(attention="splash"), long, MACHINE, context_tokens=8192)["teacher"]
    assert kernel["context"] == needs[1]["context"] and kernel["reading"] < 0.1 * needs[1]["reading"]
    step = plan.make_plan(settings_of(), long, MACHINE)
    assert step["teacher"] is None and "teacher, on" not in plan.describe(step)
    between = (step["total"] + step["parameters"] + sum(needs[1].values()) - 8192) / 2 / plan.USABLE
    small = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=between))
    assert plan.make_plan(settings_of(), long, small)["fits"]
    found = plan.make_plan(settings_of(), long, small, context_tokens=8192)
    assert not found["fits"] and "teacher, on a context of 8,192 tokens: " in plan.describe(found)
    with pytest.raises(ValueError, match="--context_tokens=8193 exceeds the model's limit of 8192"):
        plan.make_plan(settings_of(), long, MACHINE, context_tokens=8193)


def test_work_per_device_falls_with_their_number(config):
    """As 1/N along every axis; what is sent is what the axis must send."""
    found = {}
    for sizes in ((1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (1, 4, 1), (1, 1, 4), (2, 2, 2)):
        names = dict(zip(("mesh.data", "mesh.fsdp", "mesh.tensor"), sizes, strict=True))
        devices = jax.devices()[: math.prod(sizes)]
        # Adapters are whole on every device of a tensor axis: as narrow as can be, they hardly count.
        found[sizes] = plan.make_plan(settings_of(**names, **{"lora.rank": 1}), config, MACHINE, devices)
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


def test_accumulation_takes_less_memory_for_the_same_work(config):
    whole, parts = (
        plan.make_plan(settings_of(**{"train.accumulate": n, "mesh.data": 2, "mesh.fsdp": 1}), config, MACHINE,
                       jax.devices()[:2])
        for n in (1, 4)
    )  # fmt: skip
    assert parts["activations"] < 0.5 * whole["activations"]
    assert parts["flops"] == pytest.approx(whole["flops"], rel=0.01)


def test_what_does_not_fit_says_what_would(config):
    roomy = plan.make_plan(settings_of(), config, MACHINE)
    assert roomy["fits"]
    spread = plan.make_plan(settings_of(**{"mesh.data": 1, "mesh.fsdp": 8}), config, MACHINE)
    between = (roomy["total"] + spread["total"]) / 2 / plan.USABLE
    small = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=between))
    assert not plan.make_plan(settings_of(), config, small)["fits"]
    said = plan.suggestion(settings_of(), config, small)
    assert said == "it would fit with --config.mesh.data=1 --config.mesh.fsdp=-1"
    tight = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=1e4))
    assert "use more devices" in plan.suggestion(settings_of(), config, tight)


def test_a_base_in_8_bits_is_the_last_suggestion(config):
    """A memory that holds the step with all else but not with weights in full."""
    changes = {"mesh.data": 1, "mesh.fsdp": 8, "remat": "layers", "train.batch_rows": 8}
    full, eight = (plan.make_plan(settings_of(base_weights=b, **changes), config, MACHINE) for b in ("float", "int8"))
    between = (full["total"] + eight["total"]) / 2 / plan.USABLE
    small = dataclasses.replace(MACHINE, chip=dataclasses.replace(MACHINE.chip, memory=between))
    said = plan.suggestion(settings_of(), config, small)
    assert said.startswith("it would fit with ") and said.endswith(" --config.base_weights=int8")
    assert "use more devices" in plan.suggestion(settings_of(job="sequential"), config, small)


def test_half_the_bytes_in_bfloat16(config):
    full, half = (plan.make_plan(settings_of(dtype=d), config, MACHINE) for d in ("float32", "bfloat16"))
    assert half["parameters"] == full["parameters"] / 2
    assert half["adapter"] == full["adapter"]
    assert half["compute_s"] == full["compute_s"] / 2
    logits = 3 * 4 * 16 * config.vocab_size
    assert half["activations"] == pytest.approx((full["activations"] - logits) / 2 + logits)


def test_a_quarter_of_float32s_bytes_in_8_bits(config):
    changes = {"mesh.data": 1, "mesh.fsdp": 4, "mesh.tensor": 2}
    full, eight = (plan.make_plan(settings_of(base_weights=b, **changes), config, MACHINE) for b in ("float", "int8"))
    table = weights.parameter_table(config)
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
    assert plan.read_machine(name).count == count


@pytest.mark.parametrize("name", ["v5e", "tpu-8", "v4-7", "h100-0", ""])
def test_machines_that_are_not(name):
    with pytest.raises(ValueError, match=r"devices = "):
        plan.read_machine(name)


@pytest.mark.parametrize(
    ("module", "parameters"), [(llama3_8b, 8.03e9), (mistral_7b, 7.24e9), (openllama_3b, 3.43e9)]
)
def test_architectures_beside_configurations(module, parameters):
    """They are those of the published checkpoints, by their number of parameters."""
    file = pathlib.Path(module.__file__)
    config = plan.read_architecture("", f"{file}:batch", "not asked for")
    count = sum(math.prod(entry.shape) for entry in weights.parameter_table(config))
    assert count == pytest.approx(parameters, rel=2e-3)
    settings = jobs.read_settings(module.get_config())
    assert (settings.dtype, settings.mesh) == ("bfloat16", mesh.MeshConfig(1, -1, 1))


def test_the_command(tmp_path):
    """A model of billions, planned without a weight, on more devices than there are."""
    out = tmp_path / "plan.json"
    command = [sys.executable, "-m", "selfparam_jax.plan", "--devices=v5e-4", f"--out={out}"]
    config = ["--config=configs/models/openllama_3b.py", "--config.train.batch_rows=4"]
    done = subprocess.run([*command, *config], cwd=ROOT, capture_output=True, text=True, timeout=600, check=True)
    assert "v5e-4: mesh data 1 x fsdp 4 x tensor 1, 4 rows x 512 tokens, remat layers, float base" in done.stdout
    assert "teacher store: 6,400 bytes per sentence token" in done.stdout
    (written,) = json.loads(out.read_text())
    assert written["fits"] and written["parameters"] == pytest.approx(3.43e9 * 2 / 4, rel=1e-2)
    # Two passes of remat and one back, two operations per parameter and token.
    assert written["flops"] == pytest.approx(3 * 2 * 3.4e9 * 512, rel=0.1)
    wrong = [*command, *config, "--config.mesh.tensor=3"]
    done = subprocess.run(wrong, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "does not fit 4 devices" in done.stderr


def test_several_machines_are_a_table(config):
    plans = [plan.make_plan(settings_of(), config, MACHINE) for _ in range(2)]
    head, line, first, second = plan.table(plans, ["fits", "it would not"]).splitlines()
    assert head.count("|") == line.count("|") == first.count("|")
    assert first.startswith("| test-8 | 8 x 1 x 1 | 0.00 |") and first.endswith("| fits |")
    assert second.endswith("| it would not |")


def test_numbers_are_plain(config):
    found = plan.make_plan(settings_of(), config, MACHINE)
    json.dumps(found)
    assert isinstance(found["fits"], bool)
    assert np.isfinite(found["step_s"])
