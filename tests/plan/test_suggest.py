"""Settings that are tried for a machine: every choice is a plan, and the fastest that fits is named."""

import dataclasses
import json
import pathlib

import jax
import pytest
import tiny

from selfparam_jax.commands import plan
from selfparam_jax.commands.plan import define_flags
from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.plan import suggest
from selfparam_jax.plan.machines import Chip, Machine
from selfparam_jax.plan.plan import make_plan
from selfparam_jax.plan.suggest import Choice, estimated_s, fastest, fastest_settings
from selfparam_jax.plan.workload import Workload
from selfparam_jax.reports.plans import choice_records, describe_choices
from selfparam_jax.training.optimizer import TrainConfig

pytestmark = pytest.mark.usefixtures("all_devices")

CONFIG = f"--config={pathlib.Path(__file__).resolve().parents[2] / 'configs' / 'batch.py'}"
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "num_hidden_layers": 3}
CHIP = Chip(1e12, 1e9, 1e11, 1e10)
WORKLOAD = Workload(train=TrainConfig(batch_size=8, seq_len=32, loss_chunk=16), remat="none")


@pytest.fixture(scope="module")
def config():
    return model_config_from_hf(tiny.hf_config("gqa", **SIZES))


def settings_of(text):
    """A configuration's settings with the flags of a choice."""
    values = define_flags(["plan", CONFIG, *text.split()])
    values(["plan", CONFIG, *text.split()])
    return values.config


def test_every_choice_is_the_plan_of_its_settings(config):
    choices = fastest_settings(WORKLOAD, config, Machine("test-4", CHIP, 4))
    assert choices[0].flags == "" and choices[0].workload.mesh == MeshConfig(4, 1, 1)
    assert len({choice.workload for choice in choices}) == len(choices) > 4
    assert {choice.workload.remat for choice in choices} == {"none", "products", "layers"}
    assert {choice.workload.train.loss_chunk for choice in choices} > {16}
    for choice in choices:
        made = make_plan(choice.workload, config, Machine("test-4", CHIP, 4), jax.devices()[:4])
        assert (choice.total, choice.tokens_per_s) == (made["total"], made["sentence_tokens_per_s"])
        assert choice.fits and not choice.note
        found = settings_of(choice.flags)  # the flags make these settings of a job's
        if choice.workload.mesh != choices[0].workload.mesh:
            assert "--config.mesh.data=" in choice.flags
        assert found.mesh.fsdp == choice.workload.mesh.fsdp and found.mesh.tensor == choice.workload.mesh.tensor
        if choice.workload.remat != "none":
            assert found.remat == choice.workload.remat
        if choice.workload.train.loss_chunk != 16:
            assert found.train.loss_chunk == choice.workload.train.loss_chunk
    best = fastest(choices)
    assert all(best.tokens_per_s >= choice.tokens_per_s for choice in choices)


def test_a_job_that_does_not_fit_is_split(config):
    """With memory for a half of what one device would hold, the weights go over several."""
    whole = make_plan(WORKLOAD, config, Machine("test-8", CHIP, 8))["total"]
    split = make_plan(dataclasses.replace(WORKLOAD, mesh=MeshConfig(1, 8, 1)), config, Machine("test-8", CHIP, 8))
    memory = (whole + split["total"]) / 2 / 0.92
    machine = Machine("test-8", dataclasses.replace(CHIP, memory=memory), 8)
    choices = fastest_settings(WORKLOAD, config, machine)
    assert not choices[0].fits and fastest(choices).fits
    assert "--config.mesh.fsdp=" in fastest(choices).flags
    text = describe_choices(machine, "cpu", choices)
    assert "| as it is |" in text and "does not fit |" in text
    assert text.endswith(
        f"the fastest that fits: {fastest(choices).flags} ({fastest(choices).tokens_per_s:,.0f} tokens/s)"
    )
    tight = Machine("test-8", dataclasses.replace(CHIP, memory=1000.0), 8)
    choices = fastest_settings(WORKLOAD, config, tight)
    assert fastest(choices) is None
    assert describe_choices(tight, "cpu", choices).endswith(
        "none of these fits; use more devices, or --config.base_weights=int8"
    )


def test_a_mesh_that_the_model_cannot_be_split_over_is_left_out():
    config = model_config_from_hf(tiny.hf_config("gqa", **SIZES | {"num_key_value_heads": 1}))
    choices = fastest_settings(WORKLOAD, config, Machine("test-2", CHIP, 2))
    (left,) = [choice for choice in choices if choice.workload.mesh.tensor == 2]
    assert left.total is None and not left.fits and "num_key_value_heads 1" in left.note
    with pytest.raises(ValueError, match="does not fit 2 devices"):
        fastest_settings(dataclasses.replace(WORKLOAD, mesh=MeshConfig(3, 1, 1)), config, Machine("test-2", CHIP, 2))


@pytest.mark.parametrize(
    ("program", "seconds"),
    [
        ({"cycles_s": 0.5, "exposed": {"all-gather": 1e10}, "compute_s": 9.0, "read_s": 1.0}, 0.5),
        ({"cycles_s": None, "exposed": {"all-gather": 2e10}, "compute_s": 0.75, "read_s": 0.25}, 2.75),
        ({"cycles_s": None, "exposed": {}, "compute_s": 0.25, "read_s": 0.5}, 0.5),
    ],
)
def test_seconds_of_a_program(program, seconds):
    assert estimated_s(program, Machine("test-1", CHIP, 1)) == seconds


def test_programs_of_a_device_s_own_compiler(config, monkeypatch):
    """Its estimate decides, and a program that it refuses is no choice."""
    times = {"none": 4.0, "products": 2.0, "layers": 3.0}

    def compiled_plan(workload, config, machine, compiler, names):
        assert (compiler, names) == ("tpu", ("training",))
        program = {"total": 10.0, "cycles_s": times[workload.remat], "exposed": {}}
        if workload.train.loss_chunk > 16:
            program = {"error": "RESOURCE_EXHAUSTED: too much"}
        return {"batch_size": 8, "seq_len": 32, "fits": "error" not in program, "programs": [program]}

    monkeypatch.setattr(suggest, "compiled_plan", compiled_plan)
    choices = fastest_settings(WORKLOAD, config, Machine("test-1", CHIP, 1), "tpu")
    best = fastest(choices)
    assert (best.flags, best.tokens_per_s) == ("--config.remat=products", 128.0)
    refused = [choice for choice in choices if choice.workload.train.loss_chunk > 16]
    assert [choice.note for choice in refused] == ["RESOURCE_EXHAUSTED: too much"]
    text = describe_choices(Machine("test-1", CHIP, 1), "tpu", choices)
    assert text.endswith("the fastest that fits: --config.remat=products (128 tokens/s, 2.00 times the job as it is)")
    assert choice_records(refused)[0]["note"] == refused[0].note


def test_each_change_is_made_on_top_of_the_best_so_far(config, monkeypatch):
    """Larger chunks are tried with the `remat` that was faster, and as long as each is faster than the one before."""

    def compiled_plan(workload, config, machine, compiler, names):
        seconds = {"none": 4.0, "products": 2.0, "layers": 3.0}[workload.remat] / workload.train.loss_chunk
        program = {"total": 10.0, "cycles_s": seconds, "exposed": {}}
        return {"batch_size": 8, "seq_len": 32, "fits": True, "programs": [program]}

    monkeypatch.setattr(suggest, "compiled_plan", compiled_plan)
    flags = [choice.flags for choice in fastest_settings(WORKLOAD, config, Machine("test-1", CHIP, 1), "tpu")]
    chunks = [f"--config.remat=products --config.train.loss_chunk={size}" for size in (32, 64, 128)]
    assert flags[:6] == ["", "--config.remat=products", "--config.remat=layers", *chunks]


def test_the_job_itself_may_be_the_fastest():
    choices = [Choice("", WORKLOAD, 10.0, 5.0, True), Choice("--config.remat=layers", WORKLOAD, 9.0, 4.0, True)]
    text = describe_choices(Machine("test-1", CHIP, 1), "gpu", choices)
    assert text.endswith("the job as it is is the fastest of those that fit")


def test_the_command(tmp_path, capsys, monkeypatch):
    made = [Choice("", WORKLOAD, 2.0**30, 5.0, True)]
    monkeypatch.setattr(plan, "fastest_settings", lambda *_: made)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    line = [CONFIG.replace("batch.py", "models/openllama_3b.py"), "--devices=v5e-1", "--suggest"]
    plan.main([*line, f"--out={tmp_path / 'tried.json'}"])
    assert "| as it is | 1.00 | 5 | fits |" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "tried.json").read_text())
    assert record == {"machine": "v5e-1", "compiler": "cpu", "choices": choice_records(made)}
    with pytest.raises(SystemExit) as end:
        plan.main([*line, "--context_tokens=5"])
    assert end.value.code == 1
    assert capsys.readouterr().err.startswith("error: --suggest compiles the training step alone; leave out")
