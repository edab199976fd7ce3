"""The table of the measurement on documents without pairs."""

import tiny

own = tiny.benchmark("own_documents")


def row(f1, upper):
    scores = {f"{name} {metric}": 0.25 for name in own.SYSTEMS for metric in ("f1", "contains")}
    scores |= {"injected f1": f1, "base_cq f1": upper}
    return {
        **scores, "teacher_s": 1.0, "train_s": 60.0, "total_s": 90.0,
        "steps": 5, "drift": {}, "documents": ["a", "b"],
        "pairs": 70, "sentences": 20, "covered": 19, "write_s": 12.0,
    }  # fmt: skip


def test_the_table_has_a_line_for_each_job_and_their_mean():
    lines = own.table([row(0.6, 0.5), row(0.2, 0.3)]).splitlines()
    assert lines[2].startswith("| a, b | 70 | 19 of 20 | 0.250 | 0.500 | 0.600 | 1.20 |")
    assert lines[-1].startswith("| mean | 70 | 19 of 20 | 0.250 | 0.400 | 0.400 | 1.00 |")
    assert lines[-1].endswith("| 12 s | 60 s | 90 s |")


def test_settings_are_numbers_where_they_can_be():
    assert [own._value(text) for text in ("2", "0.5", "true", "grounded")] == [2, 0.5, True, "grounded"]
