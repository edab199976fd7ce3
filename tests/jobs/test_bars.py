"""What is said of work that takes long: bars on a terminal, lines elsewhere, nothing for what is quick."""

import sys
import time

import pytest
from absl import logging
from tqdm import tqdm

from selfparam_jax.jobs import bars, progress


@pytest.fixture
def said(monkeypatch):
    """All lines of the log, with hardly any patience."""
    lines = []
    monkeypatch.setattr(bars, "PATIENCE_S", 0.05)
    monkeypatch.setattr(bars, "LINE_S", 0.05)
    monkeypatch.setattr(logging, "info", lambda message, *values: lines.append(message % values))
    return lines


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_long_work_is_announced_and_its_end_too(said):
    with bars.announced("merging"):
        wait_for(lambda: len(said) >= 2)
    assert said[:2] == ["merging ...", "merging: 0 s so far"] and said[-1] == "merging took 0 s"
    count = len(said)
    time.sleep(0.15)
    assert len(said) == count, "nothing is said of it any more"


def test_quick_work_is_not_announced(said, monkeypatch):
    monkeypatch.setattr(bars, "PATIENCE_S", 60.0)
    with bars.announced("merging"):
        pass
    assert said == []


def test_work_that_fails_is_no_longer_announced(said):
    with pytest.raises(ValueError, match="disk"), bars.announced("merging"):
        wait_for(lambda: said)
        raise ValueError("disk")
    assert said[-1].startswith("merging took")


def test_lines_say_how_much_is_done_and_left(said, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bars, "LINE_S", 30.0)
    monkeypatch.setattr(bars.time, "perf_counter", lambda: now[0])
    lines = bars.Lines(10, "train", "step", initial=2)
    lines.update()
    assert said == []
    now[0] += 40
    lines.set_postfix({"loss": "0.5"})
    lines.update(3)
    lines.update()
    lines.close()
    # 4 steps in 40 s, so the last 4 of 10 take as long.
    assert said == ["train: 6 of 10 steps, about 40 s left, loss 0.5"]


def test_a_bar_is_for_a_terminal(monkeypatch):
    for terminal, shows_info, kind in ((False, True, bars.Lines), (True, True, tqdm), (False, False, tqdm)):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(logging, "level_info", lambda shows=shows_info: shows)
        bar = bars.open_bar(3, "a", "step", initial=1)
        assert type(bar) is kind and bar.n == 1
        bar.close()
    assert bars.open_bar(3, "a", "step", visible=False).disable


def test_compilation_is_announced_until_the_first_step(said):
    record = {"step": 1, "loss": 1.0, "seconds": 0.1, "sentence_tokens": 3}
    log = progress.ProgressLog()
    log.on_teacher(0, 4)
    wait_for(lambda: said)
    log.on_teacher(2, 4)
    assert said[0] == "compiling the teacher's programs, and reading its first document ..."
    log.on_start(0, 2)
    wait_for(lambda: any("training step" in line for line in said))
    log.on_step(record)
    count = len(said)
    time.sleep(0.15)
    assert len(said) == count and said[-1] == "compiling the training step, once for all steps took 0 s"
    log.on_step(record | {"step": 2})
    log.close()


def test_what_is_cut_off_while_compiling_says_no_more(said):
    log = progress.ProgressLog()
    log.on_start(0, 2)
    log.close()
    time.sleep(0.15)
    assert said == []
