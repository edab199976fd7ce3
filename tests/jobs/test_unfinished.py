"""What is said of a job that has not ended."""

import types

import jax
import numpy as np
import pytest
from job_inputs import batch_config

from selfparam_jax.commands import cli, command
from selfparam_jax.distributed.mesh import make_mesh
from selfparam_jax.jobs import results, run, workdir
from selfparam_jax.jobs.candidates import find_run
from selfparam_jax.jobs.settings import default_config
from selfparam_jax.jobs.single import read_adapter
from selfparam_jax.training.checkpoints import Checkpoints


@pytest.fixture
def unfinished(tmp_path):
    """A work directory as `bind_workdir` makes it."""
    workdir.bind_workdir(tmp_path / "run", default_config().to_dict(), "f", workdir.digest_inputs([], [], []))
    return tmp_path / "run"


def test_what_is_said_of_a_stop_depends_on_the_checkpoints(unfinished):
    assert "stopped before the first checkpoint" in workdir.stopped_words(unfinished)
    assert "resumes from" not in workdir.stopped_words(unfinished)
    (unfinished / "checkpoints" / "3.orbax-checkpoint-tmp").mkdir(parents=True)
    assert workdir.last_checkpoint(unfinished) is None
    (unfinished / "checkpoints" / "3").mkdir()
    assert workdir.stopped_words(unfinished).endswith("resumes from the last checkpoint, step 3")


def test_a_report_of_an_unfinished_run_says_how_to_go_on(unfinished, capsys):
    for state in ("no checkpoint yet", "last checkpoint: step 12"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["report", str(unfinished)])
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 1 and len(error.splitlines()) == 1
        assert f"{unfinished} is not finished ({state}); give the command that began it again" in error
        (unfinished / "checkpoints" / "12").mkdir(parents=True, exist_ok=True)


def test_a_job_is_complete_when_its_report_is_there(tmp_path, monkeypatch):
    """results.json says that it is complete: if the report fails, the same command makes both again."""

    def fail(folder, record):
        assert record == {"steps": 1} and not (folder / "results.json").exists()
        raise OSError("disk")

    monkeypatch.setattr(results.report, "write_report", fail)
    with pytest.raises(OSError, match="disk"):
        results.complete(tmp_path, {"steps": np.int32(1)})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(results.report, "write_report", lambda folder, record: None)
    assert results.complete(tmp_path, {"steps": np.int32(1)})["steps"] == 1
    assert (tmp_path / "results.json").exists()


# --- a model whose training has not ended ---------------------------------------------------------------


@pytest.fixture
def halfway(unfinished):
    """The same with a checkpoint after 3 of 9 steps."""
    lora = {
        "layers": {"mlp": {"up_proj": {"a": np.ones((1, 4, 2), np.float32), "b": np.ones((1, 2, 4), np.float32)}}}
    }
    with Checkpoints(unfinished / "checkpoints") as checkpoints:
        checkpoints.save(3, lora, {"count": np.zeros(2, np.float32)}, {"steps": 9, "train_s": 1.0})
    return unfinished


REFUSED = (
    r"run is not finished \(step 3 of 9\); give the command that began it again, or --unfinished to take it as it"
)


def test_a_run_on_its_way_is_compared_only_if_that_is_asked_for(halfway):
    with pytest.raises(ValueError, match=REFUSED):
        find_run(str(halfway))
    assert find_run(str(halfway), unfinished=True).step == find_run(f"{halfway}@3").step == 3


def test_an_adapter_on_its_way_is_read_only_if_that_is_asked_for(halfway):
    """`ask`, `export` and `serve` read it so."""
    job = types.SimpleNamespace(model=types.SimpleNamespace(mesh=make_mesh(jax.devices()[:1])))
    with pytest.raises(ValueError, match=REFUSED):
        read_adapter(job, halfway)
    assert read_adapter(job, halfway, unfinished=True)["layers"]["mlp"]["up_proj"]["a"].shape == (1, 4, 2)


def test_a_finished_training_needs_no_flag(tmp_path):
    workdir.check_whole(tmp_path, 9, 9, "step", False)
    with pytest.raises(ValueError, match=r"is not finished \(injection 3\)"):
        workdir.check_whole(tmp_path, 3, 0, "injection", False)
    workdir.check_whole(tmp_path, 3, 0, "injection", True)


@pytest.mark.parametrize("verb", ["ask", "compare", "export", "eval", "serve", "chat"])
def test_all_verbs_that_take_a_model_have_the_flag(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert "--unfinished" in capsys.readouterr().out


def test_compare_says_how_far_a_run_is(halfway, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["compare", str(halfway), "other"])
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and "(step 3 of 9)" in error.splitlines()[-1]


def test_a_job_stopped_before_its_first_checkpoint_says_so(model_dir, tmp_path, monkeypatch, capsys):
    def stopped(job, began):
        raise KeyboardInterrupt

    monkeypatch.setitem(run.RUNS, "batch", stopped)
    config = batch_config(model_dir, tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.run(run.run_job, config, tmp_path / "run")
    said = capsys.readouterr().err
    assert ended.value.code == 130 and "stopped before the first checkpoint; the same command keeps" in said
