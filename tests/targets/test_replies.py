"""The file of replies: what a kill, a full disk or a stranger may do to it; and the account of what they cost."""

import json
import threading

import pytest

from selfparam_jax.distributed import files
from selfparam_jax.targets import replies
from selfparam_jax.targets.replies import Account, BudgetError, ReplyFile, Stopped, Tokens


def record(key, text="t"):
    return {"key": key, "text": text, "complete": True, "prompt_tokens": 3, "completion_tokens": 4}


def test_a_line_that_a_kill_has_cut_off_does_not_join_the_next(tmp_path):
    path = tmp_path / "deep" / "replies.jsonl"
    file = ReplyFile(path)
    file.add(record("a"))
    first = path.stat().st_size
    file.add(record("b", "Zürich\n"))
    file.close()
    whole = path.read_bytes()
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        file = ReplyFile(path)
        paid = size == len(whole) - 1  # only the line break is missing
        assert (file.get("b") is not None) == paid and file.get("a") == {"text": "t", "complete": True}
        assert file.spent == ((6, 8) if paid else (3, 4))
        file.add(record("c"))
        file.close()
        assert [line["key"] for line in files.read_lines(path)] == (["a", "b", "c"] if paid else ["a", "c"])
    path.write_bytes(whole + b"\0" * 9)
    ReplyFile(path).close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", ["{", "7", "{}", '{"key": "a"}', json.dumps(record(7)), json.dumps(record("a", None))]
)
def test_a_line_that_is_not_ours_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "replies.jsonl"
    content = f"{json.dumps(record('a'))}\n{line}\n{json.dumps(record('b'))}\n"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"replies.jsonl, line 2: .* remove the line"):
        ReplyFile(path)
    assert path.read_text() == content


@pytest.mark.parametrize(
    "content", [b"my notes", b'{"id": "a", "context": "x"}', b'{"id": "a"', b"7", b'{"settings": {}}', b"\xff"]
)
def test_a_file_of_one_line_that_is_not_ours_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes.txt, line 1: .* choose another file"):
        ReplyFile(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", [1, 5, 8, 12, 40])
def test_a_first_line_that_a_kill_has_cut_off_is_removed(tmp_path, size):
    path = tmp_path / "replies.jsonl"
    for line in (record("a"), {"lost": "a", "prompt_tokens": 1, "completion_tokens": 10}):
        path.write_text(json.dumps(line)[:size])
        ReplyFile(path).close()
        assert path.read_bytes() == b""


def test_a_write_that_fails_leaves_no_half_line(tmp_path, monkeypatch):
    path = tmp_path / "replies.jsonl"
    file = ReplyFile(path)
    file.add(record("a"))
    before = path.read_bytes()

    def no_space(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(replies.os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            file.add(record("b"))
    assert path.read_bytes() == before and file.get("b") is None and file.spent == (3, 4)
    file.add(record("c"))
    file.close()
    assert [line["key"] for line in files.read_lines(path)] == ["a", "c"]


def test_replies_are_synced_one_by_one(tmp_path, monkeypatch):
    path, sizes = tmp_path / "replies.jsonl", []
    file = ReplyFile(path)
    monkeypatch.setattr(replies.os, "fsync", lambda number: sizes.append(path.stat().st_size))
    ends = []
    for key in "abc":
        file.add(record(key))
        assert path.read_bytes().endswith(b"\n")
        ends.append(path.stat().st_size)
    file.close()
    assert sizes == ends and len(set(ends)) == 3


def test_what_is_spent_and_what_is_under_way_count_together(tmp_path):
    file, stopped = ReplyFile(tmp_path / "replies.jsonl"), threading.Event()
    account = Account(file, price_in=2.0, price_out=10.0, budget=0.0, token_budget=20)
    assert account.cost(Tokens(500_000, 100_000)) == 2.0

    def reserve():
        with account.reserved(Tokens(1, 0), stopped):
            pass

    with account.reserved(Tokens(4, 6), stopped), account.reserved(Tokens(10, 0), stopped):
        waiting = threading.Thread(target=reserve, daemon=True)
        waiting.start()
        waiting.join(0.1)
        assert waiting.is_alive(), "twenty are under way, and may turn out to be fewer"
    waiting.join(10)
    assert not waiting.is_alive()
    file.add(record("a") | {"prompt_tokens": 9, "completion_tokens": 8})
    file.add({"lost": "b", "prompt_tokens": 1, "completion_tokens": 1})
    file.close()
    file = ReplyFile(file.path)
    assert file.lost == 1 and file.get("b") is None and file.spent == (10, 9)
    account = Account(file, price_in=2.0, price_out=10.0, budget=0.0, token_budget=20)
    reserve()  # the twentieth fits
    with (
        pytest.raises(BudgetError, match="spent 19 of 20 tokens, and the next request could take 2;"),
        account.reserved(Tokens(1, 1), stopped),
    ):
        pass
    stopped.set()
    with pytest.raises(Stopped):
        reserve()
    file.close()
