"""Compilers of devices that are not there: which there are, what is said without them, the programs of a job."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest
import tiny

from selfparam_jax.commands.plan import main
from selfparam_jax.distributed.mesh import MeshConfig, make_mesh
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.plan import compilers
from selfparam_jax.plan.compilers import CompilerMissingError, gpu_target, machine_devices
from selfparam_jax.plan.machines import CHIPS, Chip, Machine, read_machine
from selfparam_jax.plan.memory import held_bytes, laid_out_params
from selfparam_jax.plan.plan import compiled_plan
from selfparam_jax.plan.programs import job_programs, loss_chunks
from selfparam_jax.plan.workload import Workload
from selfparam_jax.reports.plans import describe_compiled
from selfparam_jax.training.optimizer import TrainConfig

CONFIG = Path(__file__).parents[2] / "configs" / "batch.py"
MACHINE = Machine("test-4", Chip(1e12, 1e9, 1e11, 1e10), 4)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("v5e-1", (1, 1)), ("v5e-2", (2, 1)), ("v5e-4", (2, 2)), ("v6e-8", (2, 4)), ("v5e-16", (4, 4)),
     ("v4-2", (1, 1, 1)), ("v4-8", (2, 2, 1)), ("v5p-16", (2, 2, 2)), ("v5p-32", (2, 2, 4)), ("v5p-64", (2, 4, 4))],
)  # fmt: skip
def test_slices_of_tpus(name, grid):
    """Those that Google Cloud offers, of four chips or more."""
    assert read_machine(name).grid() == grid


def test_a_slice_that_is_not():
    with pytest.raises(ValueError, match="slices of a power of two, for example v5p-8; --compiler=cpu plans others"):
        read_machine("v5p-6").grid()


def test_clocks_of_tpus():
    """Published: 1.05 GHz for v4, 1.5 for v5e, 1.75 for v5p."""
    found = {name: chip.clock / 1e9 for name, chip in CHIPS.items() if chip.compiler == "tpu"}
    assert found == pytest.approx({"v4": 1.05, "v5e": 1.5, "v5p": 1.75, "v6e": 1.75}, rel=0.01)


def test_the_gpus_that_are_described():
    for name in ("a100-8", "h100-8", "h200-1", "b200-8"):
        text = gpu_target(read_machine(name))
        assert (
            text.count("{") == text.count("}") == 4 and f"memory_bandwidth: {CHIPS[name[:4]].bandwidth:.0f} " in text
        )


def test_a_compiler_that_is_not_installed(monkeypatch, capsys, tmp_path):
    """One line says which extra brings it, and the plan is the CPU's."""
    found = importlib.util.find_spec
    missing = ("libtpu", "jax_plugins.xla_cuda12")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    for machine, compiler, extra in (("v5e-4", "tpu", "tpu"), ("h100-8", "gpu", "gpu-plan")):
        with pytest.raises(CompilerMissingError, match=rf"not installed; pip install 'selfparam-jax\[{extra}\]'"):
            machine_devices(read_machine(machine), compiler)
    architecture = tmp_path / "config.json"
    architecture.write_text(json.dumps(tiny.hf_config("gqa").to_dict()), encoding="utf-8")

    def plan(*given):
        raise ValueError("the CPU's plan is made")

    monkeypatch.setattr("selfparam_jax.commands.plan.make_plan", plan)
    with pytest.raises(SystemExit):
        main([f"--config={CONFIG}", "--devices=v5e-8", f"--architecture={architecture}", "--compiler=tpu"])
    shown = capsys.readouterr().err
    assert "pip install 'selfparam-jax[tpu]'; planned from this CPU's compiler instead" in shown
    assert shown.endswith("error: the CPU's plan is made\n")


def test_a_compiler_of_other_machines(monkeypatch):
    monkeypatch.setattr(compilers, "check_installed", lambda compiler: None)
    with pytest.raises(ValueError, match="--compiler=tpu does not compile for h100-8, expected --compiler=gpu"):
        machine_devices(read_machine("h100-8"), "tpu")


NAMES = ["context", "teacher's rows", "training step", "answers", "general text", "general text, KL", "merge"]


def test_the_programs_of_a_job():
    """All of them are traced, and two compiled for this CPU: what they hold, and the loops in them."""
    config = model_config_from_hf(tiny.hf_config("gqa", num_key_value_heads=4, max_position_embeddings=512))
    workload = Workload(mesh=MeshConfig(1, 2, 2), questions=3, train=TrainConfig(batch_size=4, seq_len=32))
    programs = job_programs(workload, config, make_mesh(jax.devices()[:4], workload.mesh), 300)
    assert [each.name for each in programs] == NAMES
    assert all(isinstance(each.trace(), jax.stages.Traced) for each in programs)
    plan = compiled_plan(workload, config, MACHINE, "cpu", 300, ("context", "answers"))
    found = {each["name"]: each for each in plan["programs"]}
    assert list(found) == ["context", "answers"] and plan["fits"]
    for each in plan["programs"]:
        sizes = [each[size] for size in ("arguments", "results", "temporary", "code")]
        assert each["total"] == sum(sizes) and each["moved"] > 0 and each["cycles_s"] is None
    # A cache of 512 places for 300 tokens in two pieces: keys and values of 3 layers, split over two devices.
    cache = 4 * 2 * 3 * 4 * 512 * 8 / 2
    assert cache < found["context"]["arguments"] < found["answers"]["arguments"]
    params = laid_out_params(config, make_mesh(jax.devices()[:4], workload.mesh))
    read = held_bytes({name: leaf for name, leaf in params.items() if name != "lm_head"}, 4)
    assert found["context"]["arguments"] == pytest.approx(read + cache + 2 * 4 * 512, abs=4 * 256 + 64)
    text = describe_compiled(plan)
    assert "| context |" in text and "| answers |" in text and "fits" in text


def test_a_program_that_is_too_large_is_said(monkeypatch):
    def refuse(trace, compiler):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm\nmore")

    monkeypatch.setattr("selfparam_jax.plan.plan.compile_program", refuse)
    config = model_config_from_hf(tiny.hf_config("gqa"))
    workload = Workload(train=TrainConfig(batch_size=3, seq_len=32))
    plan = compiled_plan(workload, config, MACHINE, "cpu", names=("training",))
    assert not plan["fits"] and (plan["batch_size"], plan["requested_batch_size"]) == (4, 3)
    shown = describe_compiled(plan)
    assert "training step: the compiler refuses it: RESOURCE_EXHAUSTED: Ran out of memory" in shown
    assert "DOES NOT FIT" in shown and "rounded up to 4" in shown and "more" not in shown


def test_rounds_of_the_loss():
    devices = make_mesh(jax.devices()[:4], MeshConfig(1, 2, 2))
    train = TrainConfig(batch_size=8, seq_len=100, loss_chunk=64, accumulate=2)
    assert loss_chunks(Workload(train=train), devices) == 4  # 8 / 2 / 2 rows of 100 in chunks of 64
