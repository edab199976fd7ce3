"""What is said of a job that has not ended."""

import pytest
from job_inputs import batch_config

from selfparam_jax.commands import cli, command
from selfparam_jax.jobs import run, workdir
from selfparam_jax.jobs.settings import default_config


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


def test_a_job_stopped_before_its_first_checkpoint_says_so(model_dir, tmp_path, monkeypatch, capsys):
    def stopped(job, began):
        raise KeyboardInterrupt

    monkeypatch.setitem(run.RUNS, "batch", stopped)
    config = batch_config(model_dir, tmp_path)
    with pytest.raises(SystemExit) as ended:
        command.run(run.run_job, config, tmp_path / "run")
    said = capsys.readouterr().err
    assert ended.value.code == 130 and "stopped before the first checkpoint; the same command keeps" in said
