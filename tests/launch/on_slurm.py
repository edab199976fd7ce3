"""Runs launch/slurm.sbatch on a real Slurm, made of daemons on this machine, and takes its nodes away.

    python tests/launch/on_slurm.py [--install] [--keep]

Debian's packages slurm-wlm and munge are needed (--install gets them), and root: each node is a slurmd in a PID
namespace of its own, so that killing it takes all that runs on it away at once, and the nodes' names stand in
/etc/hosts meanwhile. Nothing of a Slurm that is installed is read or changed. The processes compute on CPUs.

One job begins while its second node is gone, loses its second node and its first, is preempted, and reaches its time
limit; each time it must be queued again by itself and resume. In the end its losses must be those of one process that
was never stopped. Three more jobs must not be queued again: one with a mistake in its settings, one that is asked to
save and stop, and one that is cancelled. Most of its time it waits: Slurm begins a job again after two minutes. The
test command does not run this; tests/launch/test_slurm.py is its part of it.
"""

import argparse
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import tiny  # noqa: E402
from job_inputs import job_flags  # noqa: E402

from selfparam_jax.distributed import files  # noqa: E402

NODES = ("selfparam-node1", "selfparam-node2")
HOSTS = pathlib.Path("/etc/hosts")
LIMIT_S = 1800  # for one thing to happen
EVERY = 20  # steps between checkpoints
TOLERANCE = 1e-5  # of losses, absolute

# Two cores for each node, whatever the machine has. The partition `urgent` preempts jobs of the other.
SLURM_CONF = """
ClusterName=selfparam
SlurmctldHost=localhost
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
PropagatePrioProcess=1
ReturnToService=2
SlurmdTimeout=60
KillWait=30
MessageTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdLogFile={folder}/%n.log
NodeName={nodes[0]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName={nodes[1]} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=jobs Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def output(*line):
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def free_ports(count):
    with contextlib.ExitStack() as open_ones:
        found = [open_ones.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in found]


class Cluster:
    """A controller and two nodes, stopped at the end of a `with`."""

    def __init__(self, folder):
        self._folder, self._started = folder, {}

    def __enter__(self):
        folder = self._folder
        (folder / "munge").mkdir(mode=0o700)
        (folder / "state").mkdir()
        (folder / "munge/key").write_bytes(os.urandom(1024))
        (folder / "munge/key").chmod(0o600)
        conf = SLURM_CONF.format(
            folder=folder, nodes=NODES, ports=free_ports(3), host=socket.gethostname().split(".")[0]
        )
        (folder / "slurm.conf").write_text(conf)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        self._hosts = HOSTS.read_text()
        HOSTS.write_text(f"{self._hosts.rstrip()}\n127.0.0.1 {' '.join(NODES)}\n")
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={folder}/munge/{name}" for option, name in names.items()]
        self._start("munged", ["munged", "--force", "--foreground", *munge])
        wait_for(lambda: (folder / "munge/socket").exists(), "munge's socket")
        self._start("slurmctld", ["slurmctld", "-D"])
        for node in NODES:
            self.start_node(node)
        return self

    def __exit__(self, *_):
        HOSTS.write_text(self._hosts)
        for process in reversed(self._started.values()):
            process.kill()
            process.wait()

    def _start(self, name, line):
        with (self._folder / f"{name}.out").open("a") as log:
            self._started[name] = subprocess.Popen(line, stdout=log, stderr=log)

    def start_node(self, node):
        say(f"{node} is started")
        self._start(node, ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "slurmd", "-D", "-N", node])
        wait_for(
            lambda: f"{node} idle" in output("sinfo", "-h", "-N", "-p", "jobs", "-o", "%N %t"), f"{node} to be idle"
        )

    def kill_node(self, node):
        say(f"{node} is killed, with all that runs on it")
        self._started[node].kill()
        self._started[node].wait()


class Job:
    """A job of the sbatch script, and what Slurm says of it."""

    def __init__(self, folder, *flags):
        self.folder = folder
        given = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=2", "--time=60"]
        given += ["--parsable", f"--output={folder}/%j.log", str(ROOT / "launch/slurm.sbatch")]
        self.number = output("sbatch", *given, *flags, "--heartbeat_s=60").strip()
        say(f"job {self.number} is submitted")

    def get(self, name):
        return re.search(rf"\b{name}=(\S*)", output("scontrol", "show", "job", self.number))[1]

    def log(self):
        path = self.folder / f"{self.number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def signal(self, name):
        output("scancel", f"--signal={name}", self.number)

    def wait_for(self, happened, what):
        def checked():
            if happened():
                return True
            if self.get("JobState") in ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED"):
                raise SystemExit(
                    f"job {self.number} ended as {self.get('JobState')}; expected {what}\n{self.log()[-6000:]}"
                )
            return False

        try:
            wait_for(checked, what)
        except TimeoutError as error:
            raise SystemExit(
                f"{error}\n{output('scontrol', 'show', 'job', self.number)}\n{self.log()[-6000:]}"
            ) from None

    def wait_until_queued_again(self, times):
        self.wait_for(lambda: int(self.get("Restarts")) >= times, f"the job to be queued again ({times})")
        say(f"job {self.number} was queued again ({self.get('Restarts')}), state {self.get('JobState')}")

    def end(self):
        """(state, exit code) when it has ended."""
        ended = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "COMPLETED")
        wait_for(lambda: self.get("JobState") in ended, f"job {self.number} to end")
        say(f"job {self.number} ended as {self.get('JobState')} {self.get('ExitCode')}")
        return self.get("JobState"), self.get("ExitCode")


def wait_for(happened, what):
    deadline = time.monotonic() + LIMIT_S
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {LIMIT_S} s in vain for {what}")
        time.sleep(0.2)


def inputs(folder):
    """The flags of a batch job of about 270 steps on a tiny model."""
    tiny.save_checkpoint(folder / "model", "gqa", max_position_embeddings=2048)
    return job_flags(folder / "model", folder, {"train.epochs": 200, "train.checkpoint_every": EVERY})


def steps(workdir):
    return len(files.read_lines(workdir / "metrics.jsonl"))


def losses(workdir):
    return np.asarray([line["loss"] for line in files.read_lines(workdir / "metrics.jsonl")])


def lost_and_found(cluster, folder, flags):
    """One job through every way to be stopped; returns its work directory.

    Slurm lets a job wait for two minutes before it begins again. That is not shortened: a node that came back may
    still be told to end what ran there before.
    """
    workdir = folder / "slurm"
    cluster.kill_node(NODES[1])  # Slurm does not know it yet
    job = Job(folder, *flags, f"--workdir={workdir}")

    def under_way():
        """Until some steps after another checkpoint are done."""
        before = steps(workdir)
        wanted = before - before % EVERY + EVERY * 3 // 2
        job.wait_for(lambda: steps(workdir) >= wanted, f"step {wanted}")
        say(f"job {job.number} is at step {steps(workdir)}, on {job.get('NodeList')}, first {job.get('BatchHost')}")

    job.wait_until_queued_again(1)
    assert "a node does not answer: queued again" in job.log(), job.log()[-6000:]
    cluster.start_node(NODES[1])
    under_way()
    for again, node in enumerate(reversed(NODES), start=2):
        cluster.kill_node(node)
        job.wait_until_queued_again(again)
        cluster.start_node(node)
        under_way()
    # Processes that stand still do not reach the end before Slurm has acted.
    before = int(job.get("Restarts"))
    job.signal("STOP")
    output("sbatch", "--partition=urgent", "--nodes=1", "--output=/dev/null", "--wrap=true")
    job.wait_until_queued_again(before + 1)
    assert "stopped and saved at step" in job.log(), job.log()[-6000:]
    under_way()
    job.signal("STOP")
    output("scontrol", "update", f"JobId={job.number}", f"TimeLimit={3 + minutes(job.get('RunTime'))}")
    job.wait_for(lambda: "the time limit is near" in job.log(), "USR1 from Slurm")
    job.signal("CONT")
    job.wait_until_queued_again(before + 2)
    assert job.log().count("stopped and saved at step") >= 2, job.log()[-6000:]
    output("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    assert job.end() == ("COMPLETED", "0:0"), job.log()[-6000:]
    return workdir


def minutes(run_time):
    """Of 00:02:31, 2."""
    hours, full, _ = run_time.split(":")
    return 60 * int(hours) + int(full)


def stay_away(folder, flags):
    """Jobs that must not be queued again."""
    job = Job(folder, *flags, f"--workdir={folder}/mistaken", "--config.train.epochs=0")
    assert (*job.end(), job.get("Restarts")) == ("FAILED", "1:0", "0"), job.log()
    job = Job(folder, *flags, f"--workdir={folder}/saved")
    job.wait_for(lambda: steps(folder / "saved") > 2, "a step")
    job.signal("TERM")
    assert (*job.end(), job.get("Restarts")) == ("FAILED", "130:0", "0"), job.log()
    assert "stopped and saved at step" in job.log()
    job = Job(folder, *flags, f"--workdir={folder}/saved")
    before = steps(folder / "saved")
    job.wait_for(lambda: steps(folder / "saved") > before, "a step")
    output("scancel", job.number)
    state, _ = job.end()
    assert (state, job.get("Restarts")) == ("CANCELLED", "0"), job.log()


def check(folder):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    os.environ["VENV"] = str(pathlib.Path(sys.executable).parents[1])
    flags = inputs(folder)
    with Cluster(folder) as cluster:
        workdir = lost_and_found(cluster, folder, flags)
        stay_away(folder, flags)
    say("the same job by one process")
    output(sys.executable, "-m", "selfparam_jax.main", *flags, f"--workdir={folder}/alone")
    found, expected = losses(workdir), losses(folder / "alone")
    assert found.shape == expected.shape, (found.shape, expected.shape)
    difference = np.abs(found - expected).max()
    between = f"{expected.min():.3f} to {expected.max():.3f}"
    say(f"{len(found)} steps, losses {between}, largest difference {difference:.1e}")
    assert difference <= TOLERANCE, f"got {difference}, expected at most {TOLERANCE}"
    answers = [(run / "predictions.jsonl").read_text() for run in (workdir, folder / "alone")]
    assert files.read_json(workdir / "results.json")["resumed_from"] >= EVERY and answers[0] == answers[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--install", action="store_true", help="install slurm-wlm and munge by apt-get")
    parser.add_argument("--keep", action="store_true", help="keep the files of the cluster and of the jobs")
    given = parser.parse_args()
    if os.geteuid():
        raise SystemExit("error: got an ordinary user, expected root (PID namespaces, /etc/hosts)")
    if given.install:
        packages = ["slurm-wlm", "munge", "util-linux"]
        subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *packages], check=True)
    if missing := [name for name in ("slurmctld", "slurmd", "sbatch", "munged", "unshare") if not shutil.which(name)]:
        raise SystemExit(f"error: {', '.join(missing)} not found; --install gets them on Debian and Ubuntu")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is taken down
    folder = pathlib.Path(tempfile.mkdtemp(prefix="selfparam-slurm-"))
    try:
        check(folder)
        say("passed")
    finally:
        if given.keep:
            say(f"files: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
