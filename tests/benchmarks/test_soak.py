"""The soak benchmark and the campaign of faults: what is counted, and the tables by hand."""

import pytest
import tiny

soak, faults = tiny.benchmark("soak"), tiny.benchmark("faults")


def test_the_process_is_looked_at_after_every_quarter(monkeypatch):
    sizes = iter([100 << 10, 200 << 10, 210 << 10, 220 << 10])
    monkeypatch.setattr(soak, "held", lambda: {"memory": next(sizes), "maps": 5, "handles": 0, "programs": 7})
    clock = iter([11.0, 15.0, 16.0, 18.0])
    monkeypatch.setattr(soak.time, "process_time", lambda: next(clock))
    meter = soak.Meter(8)
    for seconds in (9.0, 7.0, 1.0, 3.0, 2.0, 2.0, 4.0, 6.0):
        meter.item(seconds)
    assert [quarter["items"] for quarter in meter.quarters] == [2, 2, 2, 2]
    assert [quarter["item_s"] for quarter in meter.quarters] == [8.0, 2.0, 2.0, 5.0]
    lines = soak.table_of([{"part": "p", "items": 8, "quarters": meter.quarters}]).splitlines()
    assert lines[2] == "| p | 8 | 3rd | 1.050 | 1.000 |  | 1.000 | 1.000 | 0.250 | 5.0 |"
    assert lines[3] == "| p | 8 | 4th | 1.100 | 1.000 |  | 1.000 | 2.500 | 0.500 | 5.0 |"
    assert len({line.count("|") for line in lines}) == 1


def test_what_a_process_holds():
    found = soak.held()
    assert all(found[name] > 0 for name in ("memory", "maps", "handles"))
    assert {name: list(part) for name, part in (("whole", soak.WHOLE), ("short", soak.SHORT))} == {
        "whole": list(soak.PARTS), "short": list(soak.PARTS),
    }  # fmt: skip


def test_documents_of_the_soak_have_one_length():
    documents = [soak.document(number, number == 3) for number in (0, 3, 99, 4999)]
    assert (
        len({len(document.text) for document in documents}) == len({document.id for document in documents}) / 4 == 1
    )
    assert [len(document.questions) for document in documents] == [0, 1, 0, 0]


def test_outcomes_are_counted_together_with_earlier_ones():
    before = [{"fault": "kill -9", "where": "job a", "outcomes": {"went on": 2}}]
    lines = [
        {"fault": "kill -9", "where": "job a", "outcome": "went on"},
        {"fault": "damaged", "where": "b.json", "outcome": "refused"},
        {"fault": "damaged", "where": "b.json", "outcome": "made again"},
    ]
    rows = faults.count(lines, before)
    assert rows[0]["outcomes"] == {"went on": 3}
    assert faults.table_of(rows).splitlines()[2:] == [
        "| damaged | b.json | 2 | 1 made again, 1 refused |",
        "| kill -9 | job a | 3 | 3 went on |",
    ]


def test_the_committed_table_is_that_of_its_counts():
    rows = faults.files.read_json(faults.ROOT / "benchmarks" / "FAULTS.json")["rows"]
    assert (faults.ROOT / "benchmarks" / "FAULTS.md").read_text() == faults.table_of(rows)
    assert {row["fault"] for row in rows} >= {"kill -9", "damaged", "random changes"}


def test_unknown_parts_are_refused(monkeypatch):
    for module in (soak, faults):
        monkeypatch.setattr(module, "ONLY", type("Flag", (), {"value": ["other"]}))
        monkeypatch.setattr(module, "QUICK", type("Flag", (), {"value": True}), raising=False)
        with pytest.raises(ValueError, match="--only has other, expected some of "):
            module.measure_all()
