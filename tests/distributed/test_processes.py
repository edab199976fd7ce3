"""Starting with others: when, with what, and the error if it fails. Real processes: test_two_processes.py."""

import jax
import pytest

from selfparam_jax.distributed import processes


@pytest.fixture
def asked(monkeypatch):
    """What jax.distributed.initialize is called with; nothing is started."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    for name in processes._CLUSTERS:
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_single_process_starts_nothing(asked):
    processes.start()
    processes.start("off", "host:1", 2, 0)
    assert asked == []
    assert processes.is_main_process() and not processes.is_distributed()


@pytest.mark.parametrize(
    ("name", "alone", "together"),
    [("SLURM_STEP_NUM_TASKS", "1", "16"), ("OMPI_COMM_WORLD_SIZE", "1", "2"), ("TPU_WORKER_HOSTNAMES", "a", "a,b")],
)
def test_the_environment_says_that_there_are_others(asked, monkeypatch, name, alone, together):
    monkeypatch.setenv(name, alone)
    processes.start()
    assert asked == []
    monkeypatch.setenv(name, together)
    processes.start(heartbeat_s=7)
    assert asked == [{"heartbeat_timeout_seconds": 7}]
    processes.start("off")
    assert len(asked) == 1


def test_on_and_explicit(asked):
    processes.start("on")
    processes.start("auto", "host:1", 4, 3)
    explicit = {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}
    assert asked == [{"heartbeat_timeout_seconds": 100}, {**explicit, "heartbeat_timeout_seconds": 100}]


@pytest.mark.parametrize("given", [("host:1", 0, -1), ("", 2, 0), ("host:1", 2, -1)])
def test_half_an_address_is_refused(asked, given):
    with pytest.raises(ValueError, match="expected all three or none"):
        processes.start("auto", *given)
    with pytest.raises(ValueError, match="distributed = 'maybe', expected one of auto, on, off"):
        processes.start("maybe")


def test_those_who_do_not_come_are_reported(monkeypatch, asked):
    def never(**_):
        raise RuntimeError("Barrier timed out\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", never)
    with pytest.raises(
        ValueError, match=r"did not find each other: Barrier timed out\. Start all of them within five minutes"
    ):
        processes.start("on")


def test_files_of_the_first_and_of_the_others(tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(processes, "barrier", met.append)
    with processes.written_by_main_process(tmp_path / "a") as place:
        place.write_text("first")
    monkeypatch.setattr(processes, "_index", 1)
    with processes.written_by_main_process(tmp_path / "a") as place:
        assert place != tmp_path / "a"
        place.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert met == ["before a", "after a"] * 2
    assert not place.exists()
