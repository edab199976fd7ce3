"""launch/slurm.sbatch with programs in place of Slurm's. On a real Slurm: `python tests/launch/on_slurm.py`."""

import os
import pathlib

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[2] / "launch"
FLAGS = ("--config=c.py", "--workdir=/shared/run")
# What the job's processes do: $JOB_DOES; what a step of `true` on every node does: $NODES_DO.
SRUN = """
case $* in
  *--overlap*) $NODES_DO ;;
  *) echo "$$" >srun.pid; $JOB_DOES ;;
esac
"""
SCONTROL = """
case $1 in
  show)
    echo "   StartTime=2026-01-02T10:00:00 EndTime=Unknown"
    echo "   PreemptEligibleTime=None PreemptTime=$PREEMPTED"
    ;;
  requeue) echo "$*" >>requeued ;;
esac
"""


@pytest.fixture
def job(run, tmp_path):
    """A function: what the processes do, and more -> what the script does in its job 7."""
    texts = {
        "srun": SRUN,
        "scontrol": SCONTROL,
        "sleep": "exec /bin/sleep 0.2",
        "scancel": 'echo "$*" >>signalled\nkill "$(cat srun.pid)"\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / name).chmod(0o755)

    def job(does, nodes="true", preempted="None", **settings):
        environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "2"} | settings
        environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        environment |= {"JOB_DOES": does, "NODES_DO": nodes, "PREEMPTED": preempted}
        done = run("slurm.sbatch", *FLAGS, cwd=tmp_path, **environment)
        return done, (tmp_path / "requeued").exists()

    return job


def test_what_it_runs(shown):
    line = "srun --kill-on-bad-exit=1 --cpus-per-task=12 {}python -m selfparam_jax.main {} --distributed=on"
    then = "# after a signal of Slurm, or if a node does not answer: scontrol requeue JOB"
    assert shown("slurm.sbatch", *FLAGS) == [line.format("", " ".join(FLAGS)), then]
    assert shown("slurm.sbatch", *FLAGS, VENV="/v") == [line.format("/v/bin/", " ".join(FLAGS)), then]


@pytest.mark.parametrize(
    ("does", "given", "status", "again"),
    [
        ("true", {}, 0, False),
        ("exit 1", {}, 1, False),  # a mistake of the user
        ("exit 130", {}, 130, False),  # asked to stop by the user
        ("exit 134", {"nodes": "false"}, 134, True),
        ("exit 134", {"nodes": "false", "SLURM_RESTART_COUNT": "3", "RETRIES": "3"}, 134, False),
        ("exit 130", {"preempted": "2026-01-02T10:30:00"}, 130, True),
        ("exit 1", {"preempted": "2026-01-02T09:30:00"}, 1, False),  # before this start
    ],
)
def test_when_it_is_queued_again(job, does, given, status, again):
    done, queued_again = job(does, **given)
    assert (done.returncode, queued_again) == (status, again), done.stderr


@pytest.mark.parametrize("stop", ["exec /bin/sleep 60", "true"], ids=["saves", "has just ended"])
def test_before_the_time_limit(job, tmp_path, stop):
    """USR1 comes to the script; it tells the processes, and is queued again unless they were at their end."""
    done, queued_again = job(f"eval kill -USR1 $(ps -o ppid= -p $PPID); {stop}")
    assert (tmp_path / "signalled").read_text() == "--signal=TERM 7\n"
    assert "the time limit is near" in done.stderr
    assert (done.returncode, queued_again) == ((143, True) if "sleep" in stop else (0, False))


def test_it_asks_for_a_signal_that_only_the_script_gets():
    assert "#SBATCH --signal=B:USR1@180\n" in (LAUNCH / "slurm.sbatch").read_text()
