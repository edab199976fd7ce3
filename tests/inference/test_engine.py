"""The thread that decodes what waits together."""

import threading

import pytest

from selfparam_jax.inference import engine as engines
from selfparam_jax.inference.batches import Continuation, Variant
from selfparam_jax.inference.engine import Busy, Engine


class FakeBatch:
    """Makes one token a turn, as many as wanted; prompt 13 cannot be read, prompt 14 cannot be continued."""

    made = []
    gate = threading.Event()

    def __init__(self, variant, wanted, texts):
        if wanted[0].prompt == (13,):
            raise ValueError("unlucky")
        FakeBatch.made.append((variant.name, [each.prompt[0] for each in wanted]))
        self.size, self.done, self._wanted, self._step = len(wanted), [False] * len(wanted), wanted, 0

    def end(self, row):
        self.done[row] = True

    def advance(self):
        FakeBatch.gate.wait()
        if self._wanted[0].prompt == (14,):
            raise RuntimeError("out of memory")
        self._step += 1
        found = [[] if done else [each.prompt[0]] for done, each in zip(self.done, self._wanted, strict=True)]
        self.done = [
            done or self._step >= each.new_tokens for done, each in zip(self.done, self._wanted, strict=True)
        ]
        return found


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(engines, "Batch", FakeBatch)
    FakeBatch.made, FakeBatch.gate = [], threading.Event()
    yield FakeBatch
    FakeBatch.gate.set()


ONE, TWO = (Variant(name, None, {}) for name in ("one", "two"))


class Heard:
    """A listener that remembers."""

    def __init__(self):
        self.tokens, self.error, self.done = [], None, threading.Event()

    def __call__(self, piece):
        self.tokens += piece.tokens
        self.error = piece.error
        if piece.done:
            self.done.set()


def submit(engine, variant, *wanted):
    heard = [Heard() for _ in wanted]
    rows = engine.submit(variant, [Continuation((prompt,), new) for prompt, new in wanted], heard)
    return heard, rows


def test_what_waits_together_is_decoded_together_by_variant(fake):
    with Engine(most_rows=4) as engine:
        first, _ = submit(engine, ONE, (1, 2))
        while not fake.made:
            pass
        second, _ = submit(engine, TWO, (2, 1))
        third, _ = submit(engine, ONE, (3, 3), (4, 1), (5, 1))
        fake.gate.set()
        assert all(each.done.wait(10) for each in [*first, *second, *third])
    assert [each.tokens for each in [*first, *second, *third]] == [[1, 1], [2], [3, 3, 3], [4], [5]]
    # Four rows at most: 5 had to wait.
    assert sorted(fake.made) == [("one", [1]), ("one", [3, 4]), ("one", [5]), ("two", [2])]


def test_too_many_are_refused_and_none_of_them_is_added(fake):
    with Engine(most_rows=1, most_waiting=2) as engine:
        running, _ = submit(engine, ONE, (1, 1))
        while not fake.made:
            pass
        waiting, rows = submit(engine, ONE, (2, 1))
        with pytest.raises(Busy, match="1 answers wait already, at most 2 may"):
            submit(engine, ONE, (3, 1), (4, 1))
        rows[0].cancel()
        more, _ = submit(engine, ONE, (5, 1), (6, 1))  # there is room again
        fake.gate.set()
        assert all(each.done.wait(10) for each in [*running, *more])
    assert waiting[0].tokens == [] and not waiting[0].done.is_set()
    assert fake.made == [("one", [1]), ("one", [5]), ("one", [6])]


def test_a_cancelled_row_ends_and_its_batch_goes_on(fake):
    with Engine() as engine:
        heard, rows = submit(engine, ONE, (1, 10**6), (2, 3))
        while not fake.made:
            pass
        rows[0].cancel()
        fake.gate.set()
        assert heard[1].done.wait(10)
    assert heard[0].tokens == [] and heard[1].tokens == [2, 2, 2]


def test_errors_are_told_to_those_who_asked_and_the_engine_goes_on(fake):
    fake.gate.set()
    with Engine() as engine:
        for prompt, kind in ((13, ValueError), (14, RuntimeError)):
            heard, _ = submit(engine, ONE, (prompt, 2))
            assert heard[0].done.wait(10) and isinstance(heard[0].error, kind)
        with pytest.raises(ValueError, match="unlucky"):
            list(engine.stream(ONE, Continuation((13,), 1)))
        assert list(engine.stream(ONE, Continuation((7,), 2))) == [((7,), False), ((7,), True)]


def test_closing_tells_those_who_wait(fake):
    engine = Engine(most_rows=1)
    heard = submit(engine, ONE, (1, 10**6))[0] + submit(engine, ONE, (2, 1))[0]
    while not fake.made:
        pass
    threading.Timer(0.05, fake.gate.set).start()
    engine.close()
    assert all(isinstance(each.error, Busy) for each in heard)
    with pytest.raises(Busy, match="ending"):
        submit(engine, ONE, (3, 1))


def test_numbers_that_cannot_work():
    with pytest.raises(ValueError, match="most_rows = 0, expected at least 1"):
        Engine(most_rows=0)
