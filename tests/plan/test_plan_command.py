"""The command: a plan from a configuration file, without weights and without the devices."""

import json
import math
import pathlib

import processes
import pytest
from absl import flags
from selfparam_jax.configs.models import llama3_8b, mistral_7b, openllama_3b

from selfparam_jax.commands.plan import define_flags, main, workload_of
from selfparam_jax.jobs.settings import Settings, read_settings
from selfparam_jax.models.parameters import parameter_table
from selfparam_jax.plan.workload import Workload, read_architecture

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("module", "parameters"), [(llama3_8b, 8.03e9), (mistral_7b, 7.24e9), (openllama_3b, 3.43e9)]
)
def test_architectures_beside_configurations(module, parameters):
    """They are those of the published checkpoints, by their number of parameters."""
    file = pathlib.Path(module.__file__)
    config = read_architecture("", f"{file}:batch", "not asked for")
    count = sum(math.prod(entry.shape) for entry in parameter_table(config))
    assert count == pytest.approx(parameters, rel=2e-3)
    workload = workload_of(read_settings(module.get_config()))
    assert workload.dtype == "bfloat16"
    assert (workload.mesh.data, workload.mesh.fsdp, workload.mesh.tensor) == (1, -1, 1)


def test_a_workload_is_what_the_settings_say():
    assert workload_of(Settings()) == Workload()
    own = {"dtype": "bfloat16", "remat": "none", "attention": "splash", "base_weights": "int8"}
    changed = workload_of(
        read_settings(
            {**own, "targets": {"answer_supervision": 0.0}, "lora": {"rank": 4}, "train": {"batch_size": 32}}
        )
    )
    assert (changed.dtype, changed.remat, changed.attention, changed.int8) == ("bfloat16", "none", "splash", True)
    assert (changed.supervised, changed.merges, changed.lora.rank, changed.train.batch_size) == (False, False, 4, 32)
    assert workload_of(Settings(job="sequential")).merges


def test_the_command(tmp_path):
    """A model of billions, planned without a weight, on more devices than there are."""
    out = tmp_path / "plan.json"
    command = ["selfparam_jax.plan", "--devices=v5e-4", f"--out={out}"]
    config = ["--config=configs/models/openllama_3b.py", "--config.train.batch_size=4"]
    done = processes.run([*command, *config])
    assert done.returncode == 0, done.stderr
    assert "v5e-4: mesh data 1 x fsdp 4 x tensor 1, 4 rows x 512 tokens, remat layers, float base" in done.stdout
    assert "teacher store: 6,400 bytes per sentence token" in done.stdout
    (written,) = json.loads(out.read_text())
    assert written["fits"] and written["parameters"] == pytest.approx(3.43e9 * 2 / 4, rel=1e-2)
    # Two passes of remat and one back, two operations per parameter and token.
    assert written["flops"] == pytest.approx(3 * 2 * 3.4e9 * 512, rel=0.1)
    wrong = [*command, *config, "--config.mesh.tensor=3"]
    done = processes.run(wrong)
    assert done.returncode == 1
    assert "does not fit 4 devices" in done.stderr


CONFIG = f"--config={ROOT / 'configs' / 'batch.py'}"


def test_flags_are_the_commands_own():
    """Two commands in one process, and one command twice, do not define the same flag twice."""
    known = set(flags.FLAGS)
    for rank in (4, 5):
        arguments = ["selfparam plan", CONFIG, f"--config.lora.rank={rank}", "--devices=v5e-4,h100-8"]
        values = define_flags(arguments)
        assert values(arguments) == ["selfparam plan"]
        assert (values.config.lora.rank, values.devices) == (rank, ["v5e-4", "h100-8"])
    assert set(flags.FLAGS) == known


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([CONFIG], "--devices is missing"),
        (["--devices=v5e-4"], "--config is missing"),
        ([CONFIG, "--devices=v5e-4", "more"], "unexpected arguments: more"),
        ([CONFIG, "--devices=v5e-1000000"], "devices = v5e-1000000, expected a number from 1 to 16384"),
        ([CONFIG, "--devices=v5e-4,tpu-3"], "devices = 'tpu-3', expected KIND-COUNT"),
        ([CONFIG, "--devices="], "--devices is missing"),
        ([CONFIG, "--devices=v5e-4", "--out=no-folder/x.json"], "no-folder/x.json: its folder does not exist"),
        ([CONFIG, "--devices=v5e-4", "--out=/dev/null"], "/dev/null: is a directory or a device, expected a file"),
        ([CONFIG, "--devices=v5e-4", "--config.train.batch_rows=4"], "train.batch_rows is called train.batch_size"),
        (["--config=no_such_thing", "--devices=v5e-4"], "--config=no_such_thing: no such file"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and error.startswith("error: ")


def test_help_says_what_it_does_and_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    shown = capsys.readouterr().out
    assert "Example: selfparam plan --config=" in shown and "--context_tokens" in shown
