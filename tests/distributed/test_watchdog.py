"""The watchdog over several processes: whom it names, when it ends a process. Real ones: test_two_processes.py."""

import pathlib
import threading

import pytest

from selfparam_jax.distributed import processes, watchdog


def test_a_stall_ends_the_process_and_names_who_is_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_count", 3)
    monkeypatch.setattr(watchdog, "BEAT_S", 0.03)
    ended = threading.Event()
    codes = []
    dog = watchdog.Watchdog(tmp_path, 0.3, end=lambda code: (codes.append(code), ended.set()))
    (tmp_path / "processes").mkdir()
    (tmp_path / "processes" / "1").write_text("4 host-b")
    (tmp_path / "processes" / "2").write_text("7 host-c")
    with dog:
        for _ in range(5):
            watchdog.progressed()
            assert not ended.wait(0.1)
        assert ended.wait(5)
    assert codes == [1]
    said = dog.complaint()
    assert "behind (after 4): process 1 on host-b." in said
    assert "process 0: nothing was finished for 0 s after 5 pieces of work" in said
    (tmp_path / "processes" / "2").unlink()
    assert "behind (after 0): process 2 on an unknown host" in dog.complaint()
    watchdog.progressed()  # over: nobody counts any more
    assert "after 5 pieces of work" in dog.complaint()


def test_those_without_a_sign_of_life_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_count", 3)
    monkeypatch.setattr(watchdog, "BEAT_S", 0.1)
    said = []
    monkeypatch.setattr(watchdog.logging, "error", lambda form, *values: said.append(form % values))
    with pytest.raises(RuntimeError), watchdog.Watchdog(tmp_path, 0):
        watchdog.progressed()
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
    with watchdog.Watchdog(tmp_path, 0.01):
        watchdog.progressed()
    assert not list(pathlib.Path(tmp_path).iterdir())
