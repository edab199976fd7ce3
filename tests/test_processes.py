"""Starting with others: when, with what, and what is said if it cannot be. Real processes: test_two_processes.py."""

import pathlib
import threading

import jax
import pytest

from selfparam_jax import processes


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
    assert processes.is_first() and not processes.several()


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
    with pytest.raises(ValueError, match=r"did not meet: Barrier timed out\. Start all of them within five minutes"):
        processes.start("on")


def test_files_of_the_first_and_of_the_others(tmp_path, monkeypatch):
    met = []
    monkeypatch.setattr(processes, "meet", met.append)
    with processes.written_by_first(tmp_path / "a") as place:
        place.write_text("first")
    monkeypatch.setattr(processes, "_index", 1)
    with processes.written_by_first(tmp_path / "a") as place:
        assert place != tmp_path / "a"
        place.write_text("second")
    assert (tmp_path / "a").read_text() == "first"
    assert met == ["before a", "after a"] * 2
    assert not place.exists()


def test_a_stall_ends_the_process_and_names_who_is_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_count", 3)
    monkeypatch.setattr(processes, "BEAT_S", 0.03)
    ended = threading.Event()
    codes = []
    watchdog = processes.Watchdog(tmp_path, 0.3, end=lambda code: (codes.append(code), ended.set()))
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / "1").write_text("4 host-b")
    (tmp_path / "processes" / "2").write_text("7 host-c")
    with watchdog:
        for _ in range(5):
            processes.progressed()
            assert not ended.wait(0.1)
        assert ended.wait(5)
    assert codes == [1]
    said = watchdog.complaint()
    assert "behind (after 4): process 1 on host-b." in said
    assert "process 0: nothing was finished for 0 s after 5 pieces of work" in said
    (tmp_path / "processes" / "2").unlink()
    assert "behind (after 0): process 2 on a host unknown" in watchdog.complaint()
    processes.progressed()  # over: nobody counts any more
    assert "after 5 pieces of work" in watchdog.complaint()


def test_those_without_a_sign_of_life_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_count", 3)
    monkeypatch.setattr(processes, "BEAT_S", 0.1)
    said = []
    monkeypatch.setattr(processes.logging, "error", lambda form, *values: said.append(form % values))
    with pytest.raises(RuntimeError), processes.Watchdog(tmp_path, 0):
        processes.progressed()
        (tmp_path / "processes" / "1").write_text("3 host-b")
        (tmp_path / "processes" / "2").write_text("2 host-c")
        stop = threading.Event()

        def live():
            while not stop.wait(0.05):
                (tmp_path / "processes" / "1").touch()

        threading.Thread(target=live).start()
        raise RuntimeError("connection reset")
    stop.set()
    assert said == ["process 2 on host-c: no sign of life; its log says why"]


def test_no_watch_over_a_single_process(tmp_path):
    with processes.Watchdog(tmp_path, 0.01):
        processes.progressed()
    assert not list(pathlib.Path(tmp_path).iterdir())
