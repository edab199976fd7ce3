"""Facts in long texts: where they stand, the rows of both readers on a tiny model, and the table by hand."""

import pytest
import tiny

infllm_length = tiny.benchmark("infllm_length")


def test_every_fact_stands_at_its_depth():
    text = infllm_length.make_text(4000, ["word " * 40, "other " * 20], len)
    assert 4000 <= len(text) < 4400
    for depth, fact, _, answer in infllm_length.FACTS:
        assert text.count(fact) == 1 and answer in fact
        assert text.index(fact) / len(text) == pytest.approx(depth, abs=0.06)
    assert not any(answer in text for text in infllm_length.filler() for *_, answer in infllm_length.FACTS)


def test_both_readers_on_a_tiny_model(tiny_model, monkeypatch):
    """A text that fits and that no token has left: the same answers."""
    for name, value in (("PROMPT", "plain"), ("LOCAL", 1024)):
        monkeypatch.setattr(infllm_length, name, type("Flag", (), {"value": value}))
    monkeypatch.setattr(infllm_length, "filler", lambda: ["Words."])
    blocks, full = infllm_length.measure(tiny_model, 400)
    assert [answer["paper"] for answer in blocks["answers"]] == [answer["paper"] for answer in full["answers"]]
    assert blocks["tokens"] == full["tokens"] > 400
    assert blocks["read_s"] > 0 and full["answer_s"] > 0 and blocks["host_bytes"] == full["host_bytes"] == 0
    alone = infllm_length.measure(tiny_model, 960)
    assert [row["reader"] for row in alone] == ["InfLLM"], "full attention has no room for the questions"


def test_the_table_by_hand():
    answers = [{"contains": 1.0}, {"contains": 0.0}]
    row = {"reader": "InfLLM", "tokens": 2000, "read_s": 3.0, "answer_s": 5.0, "answers": answers}
    row |= {"device_bytes": 2_000_000, "host_bytes": 0}
    assert infllm_length.table_row(row) == "| 2,000 | InfLLM | 1.50 | 2.50 | 2 MB | 0 MB | yes | no |"
