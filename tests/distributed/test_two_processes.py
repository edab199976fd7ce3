"""Several real processes, each with a CPU device of its own: together they do what one process does."""

import pathlib
import signal
import socket
import time

import numpy as np
import processes
import pytest
from job_inputs import job_flags
from safetensors.numpy import load_file

from selfparam_jax.distributed import files

pytestmark = pytest.mark.processes

LIMIT_S = 600  # a machine of two cores may be busy with other things


@pytest.fixture(scope="module")
def command(model_dir, tmp_path_factory):
    """A batch job of 8 rows a step as a command line without its work directory."""
    directory = tmp_path_factory.mktemp("given")
    changes = {
        "targets.least_confidence": 1e-6,  # asks the store, and leaves nothing out
        "train.epochs": 16,
        "train.checkpoint_every": 3,
    }
    return ["selfparam_jax.main", *job_flags(model_dir, directory, changes)]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def start(command, workdir, count, *more, own=None, devices=1):
    """The processes of a job; what they print is in WORKDIR.INDEX.log.

    Args:
      own: the work directory of each, if they have not the same.
      devices: how many each has.
    """
    together = [f"--coordinator_address=localhost:{free_port()}", f"--process_count={count}", "--heartbeat_s=10"]
    if count == 1:
        together = []
    started = []
    for index in range(count):
        which = [f"--process_index={index}"] if count > 1 else []
        line = [*command, f"--workdir={own[index] if own else workdir}", *together, *which, *more]
        log = workdir.with_name(f"{workdir.name}.{index}.log")
        log.unlink(missing_ok=True)
        started.append(processes.start(line, log, devices=devices))
    return started


def log_of(workdir, index):
    return workdir.with_name(f"{workdir.name}.{index}.log").read_text(errors="replace")


def finish(started, workdir):
    codes = [process.wait(timeout=LIMIT_S) for process in started]
    assert codes == [0] * len(started), "\n".join(log_of(workdir, index)[-3000:] for index in range(len(started)))


@pytest.fixture(scope="module")
def alone(command, tmp_path_factory):
    """The work directory of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(command, workdir, 1), workdir)
    return workdir


def assert_same_model(found, expected):
    """Merged weights of one job and of the other, in bfloat16: within two roundings."""
    one, other = (load_file(run / "merged" / "model.safetensors") for run in (found, expected))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        np.testing.assert_allclose(
            tensor.astype(np.float32), other[name].astype(np.float32), rtol=2**-7, atol=1e-4, err_msg=name
        )


def assert_same_job(found, expected, steps_from=0):
    """Files of one job and of the other: numbers to 1e-4, all else equal."""
    metrics, wanted = (files.read_lines(run / "metrics.jsonl") for run in (found, expected))
    assert [line["step"] for line in metrics] == [line["step"] for line in wanted]
    for name in ("loss", "grad_norm", "learning_rate"):
        np.testing.assert_allclose([m[name] for m in metrics], [w[name] for w in wanted], rtol=1e-4, err_msg=name)
    assert_same_model(found, expected)
    asked = sorted(path.relative_to(expected) for path in (expected / "answers").glob("*.jsonl"))
    assert asked, "the base model has answered"
    for name in (pathlib.Path("targets.jsonl"), *asked):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    answers, wanted = (
        [line["injected"] for line in files.read_lines(r / "predictions.jsonl")] for r in (found, expected)
    )
    assert answers == wanted
    drift, wanted = (files.read_json(run / "results.json")["drift"] for run in (found, expected))
    np.testing.assert_allclose(list(drift.values()), list(wanted.values()), rtol=1e-3)


def test_a_job_compiles_few_programs(alone):
    """Step, teacher, decoding and drift in their few shapes; whatever is small counts as well."""
    compilations = files.read_json(alone / "results.json")["compilations"]
    assert 5 < compilations["programs"] <= 32
    assert f"{compilations['programs']} programs compiled" in log_of(alone, 0)


MESH = "--config.mesh.data=2", "--config.mesh.fsdp=2"


def assert_shared(workdir, alone, count):
    """One process wrote and printed; each kept its share of the teacher's states, all of them together."""
    for said in ("report:", "F1  base_q"):
        assert [said in log_of(workdir, index) for index in range(count)] == [True] + [False] * (count - 1)
    shares = [sorted((workdir / "teacher" / f"{index}-of-{count}").glob("*.npy")) for index in range(count)]
    whole = sorted((alone / "teacher").glob("*.npy"))
    assert all([path.name for path in share] == [path.name for path in whole] for share in shares)
    for *parts, all_of_it in zip(*shares, whole, strict=True):
        together = np.concatenate([np.load(part) for part in parts])
        np.testing.assert_allclose(together, np.load(all_of_it), rtol=1e-4, atol=1e-5)
    assert not list(workdir.parent.glob(".*.shared")) and not list(workdir.rglob("*.tmp"))


def test_several_processes_are_as_one(command, alone, tmp_path):
    """Two processes of two devices, as 2 x 2: weights, rows and the teacher's states are split between the hosts."""
    workdir = tmp_path / "together"
    finish(start(command, workdir, 2, *MESH, devices=2), workdir)
    assert_same_job(workdir, alone)
    assert_shared(workdir, alone, 2)


def test_a_killed_process_ends_the_others_and_four_go_on(command, alone, tmp_path):
    """A checkpoint of two processes is read by four, on another mesh, and the job ends like one never stopped."""
    workdir = tmp_path / "run"

    def start_until(steps):
        started, deadline = start(command, workdir, 2), time.monotonic() + LIMIT_S
        while len(files.read_lines(workdir / "metrics.jsonl")) < steps:
            assert time.monotonic() < deadline and all(each.poll() is None for each in started), log_of(workdir, 0)
            time.sleep(0.02)
        return started

    # Preempted: one is told to end, all save and stop after the same step.
    started = start_until(2)
    started[1].send_signal(signal.SIGTERM)
    assert [process.wait(timeout=LIMIT_S) for process in started] == [130, 130]
    messages = [log_of(workdir, index).splitlines()[-1] for index in (0, 1)]
    assert messages[0] == messages[1] and messages[0].startswith("stopped and saved at step ")
    started = start_until(len(files.read_lines(workdir / "metrics.jsonl")) + 4)
    started[1].send_signal(signal.SIGKILL)
    assert started[0].wait(timeout=LIMIT_S) not in (0, None)
    assert started[1].wait() == -signal.SIGKILL
    said = log_of(workdir, 0)  # who is missing: by us, or by JAX if it is faster, in one of two ways
    by_jax = "task:1" in said.replace(" ", "").lower() or "unhealthy (stopped sending heartbeats):\n1\n" in said
    assert "process 1 on " in said or by_jax, said[-6000:]
    done = len(files.read_lines(workdir / "metrics.jsonl"))
    total = len(files.read_lines(alone / "metrics.jsonl"))
    assert 6 <= done < total
    finish(start(command, workdir, 4, *MESH), workdir)
    assert files.read_json(workdir / "results.json")["resumed_from"] >= 3
    assert_same_job(workdir, alone)
    assert_shared(workdir, alone, 4)


def wait_until_under_way(started, workdir, index):
    """Until a process has finished the second of what the watchdog counts."""
    sign, deadline = workdir / "processes" / str(index), time.monotonic() + LIMIT_S
    while not sign.exists() or sign.read_text().startswith(("0 ", "1 ")) or not sign.read_text():
        assert time.monotonic() < deadline and all(each.poll() is None for each in started), log_of(workdir, 0)
        time.sleep(0.02)


def test_a_stalled_process_ends_the_others_with_its_name(command, tmp_path):
    """It is stopped, not dead, before training has begun; nobody's heart stops beating."""
    workdir = tmp_path / "run"
    started = start(command, workdir, 2, "--heartbeat_s=600", "--config.mesh.stall_limit_s=20")
    wait_until_under_way(started, workdir, 1)
    started[1].send_signal(signal.SIGSTOP)
    try:
        assert not (workdir / "metrics.jsonl").exists()
        assert started[0].wait(timeout=LIMIT_S) == 1
    finally:
        started[1].kill()
        started[1].wait()
    said = log_of(workdir, 0)
    assert "process 0: nothing was finished for 20 s" in said and "process 1 on" in said


def test_without_the_coordinator_nobody_waits(command, tmp_path):
    """The first process, where the others meet, is killed; JAX ends them and says so."""
    workdir = tmp_path / "run"
    started = start(command, workdir, 2)
    wait_until_under_way(started, workdir, 1)
    started[0].kill()
    started[0].wait()
    try:
        assert started[1].wait(timeout=120) not in (0, None)
    finally:
        started[1].kill()
    assert "leader task" in log_of(workdir, 1)


def test_a_directory_that_is_not_shared_is_refused(command, tmp_path):
    """Each process is given a place of its own, as on hosts without common storage."""
    own = [tmp_path / f"host{index}" / "run" for index in (0, 1)]
    for workdir in own:
        workdir.parent.mkdir()
    started = start(command, tmp_path / "log", 2, own=own)
    assert [process.wait(timeout=LIMIT_S) for process in started] == [1, 1]
    for index, workdir in enumerate(own):
        message = log_of(tmp_path / "log", index)
        assert f"error: process 1 of 2 does not see {workdir} as the main process does" in message
        assert not workdir.exists() and not list(workdir.parent.iterdir())


def test_a_sequence_by_two_processes(command, tmp_path):
    """Pairs that the model writes, unrelated text that it draws, and two injections, the second with replay."""
    settings = {
        "job": "sequential",
        "sequential.length": 2,
        "sequential.replay_pairs": 2,
        "sequential.replay_per_epoch": 2,
        "sequential.self_generated_per_epoch": 2,
        "unrelated": "self",
        "targets.generator": "local",
        "generator.rounds": 1,
        "generator.replies": 4,
        "generator.reply_tokens": 16,
        "train.epochs": 3,
    }
    more = [f"--config.{name}={value}" for name, value in settings.items()]
    one, two = tmp_path / "one", tmp_path / "two"
    finish(start(command, one, 1, *more), one)
    finish(start(command, two, 2, *more, "--config.mesh.data=1", "--config.mesh.tensor=2"), two)
    for name in ("pairs.jsonl", "unrelated.jsonl", "sequences/000/injections/001/targets.jsonl"):
        lines = [[{**line, "seconds": 0} for line in files.read_lines(run / name)] for run in (one, two)]
        assert lines[0] and lines[0] == lines[1], name
    kinds = {line["kind"] for line in files.read_lines(one / "sequences/000/injections/001/targets.jsonl")}
    assert {"qa", "unrelated", "replay"} <= kinds
    for done in range(3):
        evaluated = [files.read_json(run / f"sequences/000/evaluations/{done:03d}.json") for run in (one, two)]
        assert evaluated[0]["f1"] == evaluated[1]["f1"]
        np.testing.assert_allclose(evaluated[0]["log_likelihood"], evaluated[1]["log_likelihood"], rtol=1e-3)
    assert_same_model(two, one)
