"""launch/tpu_pod.sh against a gcloud that keeps state: what it asks for, and what is done on the workers."""

import os
import pathlib
import time

import pytest

FAKE = pathlib.Path(__file__).resolve().parent / "fake_cloud"
ONCE = ["create", "scp", "install", "start"]


class Cloud:
    """A project on a cloud that is empty at first; its folder is described in fake_cloud/gcloud."""

    def __init__(self, run, folder):
        self._run, self.folder, self.workdir = run, folder / "cloud", folder / "share" / "run"
        self.folder.mkdir()
        self.workdir.mkdir(parents=True)
        self.write(minute="0\n")

    def write(self, **texts):
        for name, text in texts.items():
            (self.folder / name).write_text(text)

    def pod(self, *arguments, **settings):
        """What `tpu_pod.sh` does here, with two retries."""
        settings = {"WORKDIR": str(self.workdir), "RETRIES": "2", "CLOUD": str(self.folder)} | settings
        path = f"{FAKE}:{os.environ['PATH']}"
        return self._run("tpu_pod.sh", *arguments, cwd=self.folder.parent, PATH=path, **settings)

    def calls(self):
        """What gcloud was asked to do, without looking."""
        calls = (self.folder / "calls").read_text().splitlines()
        return [call for call in calls if call not in ("describe", "look")]

    def state(self):
        path = self.folder / "state"
        return path.read_text().strip() if path.exists() else None

    def started_from(self):
        """The steps that the job was started from; it is waited for."""
        path = self.workdir / "log"
        while not path.exists():
            time.sleep(0.02)
        return [int(line.split(":")[0].split()[-1]) for line in path.read_text().splitlines()]


@pytest.fixture
def cloud(run, tmp_path):
    made = Cloud(run, tmp_path)
    yield made
    # Whatever still runs on a worker ends.
    made.write(job_ends_with="1")
    (made.workdir / "steps").write_text("5")


def test_preempted_created_again_resumed_collected_and_deleted(cloud):
    cloud.write(plan="6 SUSPENDED\n")
    done = cloud.pod("all", "--config=c.py", SPOT="1")
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == [*ONCE, "delete", *ONCE]
    assert "preempted; attempt 1 of 2" in done.stderr
    assert "the slice selfparam is left there" in done.stderr
    assert "--spot" in (cloud.folder / "flags").read_text()
    first, second = cloud.started_from()
    assert first == 0 < second < 5
    assert done.stdout.endswith("done\n0\n")
    log = (cloud.folder / "workers/1/job.log").read_text()  # the second worker has run the job as well
    assert log == "done\n"
    assert "--config=c.py --workdir=" in (cloud.workdir / "log").read_text()
    assert cloud.pod("collect").returncode == 0
    assert (cloud.folder.parent / "results/steps").read_text() == "5\n"
    assert cloud.pod("delete").returncode == 0 and cloud.state() is None
    assert cloud.pod("delete").returncode == 0  # there is nothing to delete any more
    assert cloud.calls()[9:] == ["collect", "delete"]


def test_a_job_that_is_warned_saves_and_begins_again(cloud):
    cloud.write(plan="6 SUSPENDING\n")
    done = cloud.pod("all", "--config=c.py")
    assert done.returncode == 0, done.stderr
    assert "stopped and saved\n130" in done.stdout
    assert cloud.calls() == [*ONCE, "delete", *ONCE]
    assert cloud.started_from()[1] > 0


def test_a_job_that_fails_is_not_begun_again_and_the_slice_can_be_used_again(cloud):
    cloud.write(job_ends_with="3")
    done = cloud.pod("all", "--config=c.py")
    assert done.returncode == 3 and cloud.calls() == ONCE and cloud.state() == "ACTIVE"
    assert "left there, to be paid for until" in done.stderr
    cloud.write(job_ends_with="0")
    done = cloud.pod("all", "--config=c.py")
    assert done.returncode == 0 and cloud.calls() == [*ONCE, *ONCE[1:]], done.stderr


def test_it_is_not_begun_again_for_ever(cloud):
    cloud.write(plan="".join(f"{minute} SUSPENDED\n" for minute in (4, 8, 12)))
    done = cloud.pod("all", "--config=c.py")
    assert done.returncode == 75 and cloud.calls() == [*ONCE, "delete", *ONCE, "delete", *ONCE]


def test_a_running_job_is_not_started_twice(cloud):
    for command in ("create", "install", "run"):
        done = cloud.pod(command)
        assert done.returncode == 0, done.stderr
    done = cloud.pod("run")
    assert done.returncode != 0
    assert "the job is running on this worker already" in done.stdout + done.stderr
    assert cloud.started_from() == [0]


@pytest.mark.parametrize(
    ("failures", "calls"),
    [
        ("create", ["create"]),
        ("scp", ["create", "scp"]),
        ("install", ["create", "scp", "install"]),
        ("start", ONCE),
    ],
)
def test_a_step_that_fails_ends_it(cloud, failures, calls):
    cloud.write(failures=failures)
    done = cloud.pod("all", "--config=c.py")
    assert (done.returncode, cloud.calls()) == (1, calls)
    assert f"UNAVAILABLE: {failures} failed" in done.stderr


def test_a_slice_that_cannot_be_deleted_ends_it(cloud):
    cloud.write(plan="4 SUSPENDED\n", failures="delete\n")
    done = cloud.pod("all", "--config=c.py")
    assert done.returncode == 75 and cloud.calls() == [*ONCE, "delete"]
    assert "delete failed" in done.stderr


def test_a_slice_that_is_refused_ends_it(cloud):
    cloud.write(first_state="FAILED")
    done = cloud.pod("all", "--config=c.py")
    assert done.returncode == 1 and cloud.calls() == ["create"]
    assert "the queued resource selfparam is FAILED; 'launch/tpu_pod.sh delete'" in done.stderr


def test_a_slice_that_vanishes_is_not_waited_for(cloud):
    cloud.write(first_state="WAITING_FOR_RESOURCES", plan="2 GONE\n")
    done = cloud.pod("create")
    assert done.returncode == 1 and cloud.calls() == ["create"]
    assert "was asked for and is not there any more" in done.stderr


def test_no_answer_from_gcloud_is_no_preemption(cloud):
    """Two calls fail while the job runs; nothing is deleted for it."""
    for command in ("create", "install", "run"):
        assert cloud.pod(command).returncode == 0
    cloud.write(failures="look\ndescribe\n")
    done = cloud.pod("follow")
    assert done.returncode == 0 and cloud.calls() == ONCE
    assert "look failed" in done.stderr and "describe failed" in done.stderr


def test_ten_times_no_answer_is_said(cloud):
    cloud.write(failures="describe\n" * 10)
    done = cloud.pod("create")
    assert done.returncode == 1 and not (cloud.folder / "state").exists()
    assert "error: gcloud did not say ten times in a row" in done.stderr
