"""The table of the measurement on documents without pairs."""

import json

import tiny

own = tiny.benchmark("own_documents")


def row(f1, upper):
    scores = {f"{name} f1": 0.25 for name in own.SYSTEMS}
    scores |= {"injected f1": f1, "base_cq f1": upper}
    scores |= {f"{name} {form}": upper for name in ("base_cq", "injected") for form in own.FORMS}
    return {
        **scores, "injected chat": f1, "rise": 0.0123, "teacher_s": 1.0, "train_s": 60.0, "total_s": 90.0,
        "steps": 5, "drift": {}, "documents": ["a", "b"],
        "pairs": 70, "sentences": 20, "covered": 19, "write_s": 12.0,
    }  # fmt: skip


def test_the_table_has_a_line_for_each_job_and_their_mean():
    lines = own.table([row(0.6, 0.5), row(0.2, 0.3)]).splitlines()
    cells = lines[2].strip("| ").split(" | ")
    assert cells[:7] == ["a, b", "70", "19 of 20", "0.250", "0.500", "0.600", "1.20"]
    assert cells[7:11] == ["0.500 (0.500)", "0.600 (0.500)", "0.500 (0.500)", "+1.2 %"]
    assert lines[-1].startswith("| mean | 70 | 19 of 20 | 0.250 | 0.400 | 0.400 | 1.00 |")
    assert lines[-1].endswith("| 12 s | 60 s | 90 s |")


def test_pairs_by_a_model_do_not_say_which_sentences_they_cover(tmp_path):
    (tmp_path / "run").mkdir()
    lines = [
        {"question": "Q?"},
        {"kinds": {"facts": {}}, "seconds": 2.5},
        {"question": "R?"},
        {"kinds": {}, "seconds": 1},
    ]
    (tmp_path / "run" / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    written = own._written(tmp_path)
    assert written == {"pairs": 2, "write_s": 3.5}
    made = {name: value for name, value in row(0.6, 0.5).items() if name not in ("sentences", "covered")}
    assert own.table([made | written]).splitlines()[2].startswith("| a, b | 2 |  | 0.250 |")


def test_what_a_job_found_as_a_line_of_the_table():
    scores = {name: {"f1": 0.5} for name in own.SYSTEMS}
    asked = {name: dict.fromkeys(own.FORMS, value) for name, value in (("base_cq", 0.5), ("injected", 0.75))}
    results = {
        "scores": scores, "reach": {"systems": asked}, "timing": {"teacher_s": 1, "train_s": 2, "total_s": 3},
        "steps": 4, "drift": {"perplexity_before": 40.0, "perplexity_after": 42.0},
    }  # fmt: skip
    found = own.summarize(results)
    assert (found["injected chat"], found["base_cq bare"], found["injected f1"]) == (0.75, 0.5, 0.5)
    assert abs(found["rise"] - 0.05) < 1e-9 and found["train_s"] == 2


def test_settings_are_numbers_where_they_can_be():
    assert [own._value(text) for text in ("2", "0.5", "true", "grounded")] == [2, 0.5, True, "grounded"]
