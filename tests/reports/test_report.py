"""report: the numbers in the text are the numbers in the files, and a run with gaps still reports."""

import copy
import json
import math
import re
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

from selfparam_jax.distributed import files
from selfparam_jax.reports import figures, report, sequence
from selfparam_jax.reports.results import Results, System, losses, running_median
from selfparam_jax.reports.tables import markdown_cell

pytestmark = pytest.mark.pictures

LISTED = [
    {"name": "base_q", "label": "Base Q", "meaning": "question only", "role": "lower bound"},
    {"name": "injected", "label": "Injected", "meaning": "question only", "role": "candidate"},
    {"name": "base_cq", "label": "Base C+Q", "meaning": "document in the prompt", "role": "upper bound"},
]
SYSTEMS = tuple(entry["name"] for entry in LISTED)
INSTALL = "pip install 'selfparam-jax[report]'"


def _score(f1, ci=None):
    return {"f1": f1, "em": f1 / 2, "contains": f1, "f1_paper": f1 / 4, "f1_ci95": ci}


RESULTS = {
    "job": "batch",
    "model": "org/tiny_model",
    "prompt": "few_shot",
    "systems": LISTED,
    "num_contexts": 2,
    "num_questions": 16,
    "scores": {
        "base_q": _score(0.1, [0.05, 0.15]),
        "base_cq": _score(0.8, [0.7, 0.9]),
        "injected": _score(0.6, [0.512, 0.688]),
    },
    "drift": {"perplexity_before": 20.0, "perplexity_after": 21.0, "kl": 0.0123},
    "timing": {"total_s": 1234.5, "train_s": 200.0, "sentence_tokens_per_s": 1834.25},
    "steps": 60,
    "recipe": {"rank": 8, "learning_rate": 0.001, "note": "a|b", "odd|key": None},
    "per_context": [
        {"id": "one", "title": "First | $x_1$", "base_q": 0.1, "base_cq": 0.9, "injected": 0.7},
        {"id": "two", "title": "", "base_q": 0.1, "base_cq": 0.7, "injected": 0.5},
    ],
}


def _prediction(number, em):
    answer = {"answer": "gold" if em else "bad", "f1": float(em), "em": float(em), "contains": float(em)}
    answers = {system: {**answer, "paper": "x", "f1_paper": 0.0} for system in SYSTEMS}
    return {"context": "one", "question": f"Question {number}?", "answers": ["gold", "other"], **answers}


PREDICTIONS = [_prediction(number, number % 3 != 0) for number in range(16)]
METRICS = [
    {
        "step": step,
        "loss": 2 / step,
        "learning_rate": 0.001,
        "grad_norm": 1,
        "sentence_tokens": 9,
        "seconds": 1,
    }
    for step in range(1, 61)
]


def _run(folder, results=RESULTS, metrics=METRICS, predictions=PREDICTIONS):
    """Writes a work directory (None leaves a file out), makes the report and returns its text."""
    (folder / "results.json").write_text(json.dumps(results))
    for name, rows in (("metrics.jsonl", metrics), ("predictions.jsonl", predictions)):
        if rows is not None:
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report.write_report(folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def _changed(**changes):
    return {**copy.deepcopy(RESULTS), **changes}


def _read(record):
    """What `read_results` makes of a record."""
    return Results(record, tuple(System(**entry) for entry in record["systems"]))


def _rows(text, first):
    """The cells of the table whose header starts with `first`; a bar that is escaped ends no cell."""
    lines = text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first} |"))
    end = lines.index("", start)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[start:end]]


def test_files_written_and_no_temporary_left(tmp_path):
    _run(tmp_path)
    pictures = ["drift.png", "f1.png", "loss.png"]
    expected = sorted([*pictures, "metrics.jsonl", "predictions.jsonl", "report.md", "results.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    for name in pictures:
        image = matplotlib.image.imread(tmp_path / name)
        assert abs(image.shape[1] - 1400) <= 1
        assert image[..., :3].std() > 0.05  # something is drawn


def test_reach_is_drawn_where_it_was_measured(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "save_figures", lambda folder, drawings: drawn.append(set(drawings)) or True)
    column = {"name": "chat", "what": "held-out questions", "form": "chat", "questions": 2}
    measured = {"columns": [column], "systems": {"injected": {"chat": 0.5}}}
    assert "![Reach](reach.png)" in _run(tmp_path, _changed(reach=measured))
    assert "![Reach](reach.png)" not in _run(tmp_path, _changed(reach={"columns": [], "systems": {}}))
    assert ["reach.png" in names for names in drawn] == [True, False]


def test_summary_holds_the_four_numbers(tmp_path):
    summary = _run(tmp_path).split("\n\n")[1]
    assert "Injected F1 is 0.600" in summary
    assert "75.0 % of the upper bound Base C+Q (0.800)" in summary
    assert "0.500 above Base Q (0.100)" in summary
    assert "perplexity 20.00 to 21.00 (+5.0 %)" in summary and "KL 0.0123" in summary
    assert "\n" not in summary


def test_the_summary_says_what_was_asked_and_how_it_is_known_in_a_conversation(tmp_path):
    plain = _run(tmp_path)
    assert "Through the chat template" not in plain and "Pairs were made" not in plain
    results = _changed()
    results["reach"] = {"columns": [], "systems": {"injected": {"reading": 1.0, "chat": 0.625}}}
    results["num_questions"] = 5
    one = {"id": "a", "facts": 9, "pairs": 20, "uncovered": [], "sample": []}
    results["written_pairs"] = [one | {"covered": 7, "sentences": 9, "held_out": 3}]
    results["written_pairs"] += [one | {"id": "b", "covered": 6, "sentences": 13, "held_out": 2}]
    summary = _run(tmp_path, results).split("\n\n")[1]
    assert (
        "Through the chat template 0.625 of its answers contain the right one, in the reading format 1.000."
        in summary
    )
    assert summary.endswith(
        "Of 5 questions, 5 ask in other words for facts that were trained on. Pairs were made of 13 of 22 sentences."
    )


def test_a_loss_against_base_is_called_one(tmp_path):
    results = _changed()
    results["scores"]["injected"]["f1"] = 0.04
    assert "0.060 below Base Q" in _run(tmp_path, results)


def test_an_upper_bound_of_zero_gives_no_share(tmp_path):
    results = _changed()
    results["scores"]["base_cq"]["f1"] = 0.0
    assert "no share of the upper bound" in _run(tmp_path, results)


def test_score_table(tmp_path):
    rows = _rows(_run(tmp_path), "")
    assert [row[0].split(" (")[0] for row in rows[2:]] == ["Base Q", "Injected", "Base C+Q"]
    assert rows[3][1:] == ["0.600", "0.512 to 0.688", "0.300", "0.600", "0.150"]


def test_a_score_without_an_interval(tmp_path):
    results = _changed()
    for system in SYSTEMS:
        results["scores"][system]["f1_ci95"] = None
    assert _rows(_run(tmp_path, results), "")[3][2] == "–"


def test_kinds_of_questions_have_a_table_where_there_are_kinds(tmp_path):
    assert "## Kinds of questions" not in _run(tmp_path)
    scores = {name: _score(value) for name, value in (("base_q", 0.125), ("base_cq", 0.5), ("injected", 0.25))}
    kinds = [{"kind": "as_of", "questions": 8, "scores": scores | {"base_q": None}}]
    header, _, row = _rows(_run(tmp_path, _changed(kinds=kinds)), "kind")
    assert header[2:5] == ["Base Q F1", "Injected F1", "Base C+Q F1"]
    assert row == ["as\\_of", "8", "–", "0.250", "0.500", "–", "0.250", "0.500"]


def test_document_drift_timing_and_recipe_tables(tmp_path):
    text = _run(tmp_path)
    documents = _rows(text, "document")
    assert documents[2] == [r"First \| \$x\_1\$", "0.100", "0.700", "0.900"]
    assert documents[3][0] == "two"  # no title: the id
    timing = {row[0]: row[1] for row in _rows(text, "phase")}
    assert timing["total, s"] == "1,234.5" and timing["sentence tokens per second"] == "1,834.2"
    recipe = _rows(text, "setting")
    assert [r"learning\_rate", "0.001"] in recipe and ["note", r"a\|b"] in recipe
    assert [r"odd\|key", "null"] in recipe
    for name in ("f1", "loss", "drift"):
        assert f"]({name}.png)" in text


def test_spread_is_shown_only_where_given(tmp_path):
    spread = {"f1_mean": 0.61, "f1_std": 0.123, "f1_min": 0.4, "f1_max": 0.8}
    assert "F1 0.610 ± 0.123 (standard deviation), 0.400 to 0.800" in _run(tmp_path, _changed(spread=spread))
    assert "±" not in _run(tmp_path)


def test_samples_are_half_right_and_half_wrong_and_always_the_same(tmp_path):
    text = _run(tmp_path)
    rows = _rows(text, "question")[2:]
    assert [row[-1] for row in rows].count("right") == 4 and len(rows) == 8
    assert len({row[0] for row in rows}) == 8
    assert {row[1] for row in rows} == {"gold"}
    assert "10 of 16 answers of Injected match a gold answer exactly" in text
    assert _run(tmp_path) == text


@pytest.mark.parametrize(("right", "wrong", "expected"), [(16, 0, 8), (0, 16, 8), (15, 1, 8), (2, 1, 3)])
def test_samples_fill_up_from_the_other_kind(right, wrong, expected):
    predictions = [_prediction(number, number < right) for number in range(right + wrong)]
    candidate = System(**LISTED[1])
    chosen = report._samples(predictions, candidate)
    assert len(chosen) == len({row["question"] for row in chosen}) == expected
    assert sum(not report._is_right(row, candidate) for row in chosen) == min(wrong, 8)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("a|b", r"a\|b"),
        ("a\nb\r\nc\u2028d\te", "a b c d e"),
        ("`x` *y* _z_", r"\`x\` \*y\* \_z\_"),
        ("<pad> & [l](u)", r"&lt;pad&gt; &amp; \[l\](u)"),
        ("a\\|b", r"a\\\|b"),
        ("nul\x00", "nul\ufffd"),
        ("x" * 200, "x" * 159 + "…"),
    ],
)
def test_a_cell_cannot_break_its_table(text, cell):
    assert markdown_cell(text) == cell


def test_hostile_answers_keep_the_table_whole(tmp_path):
    predictions = copy.deepcopy(PREDICTIONS)
    for row in predictions:
        row["injected"]["answer"] = "1 | 2\n| --- |\n`"
        row["base_q"]["answer"] = "\n"
    rows = _rows(_run(tmp_path, predictions=predictions), "question")
    assert {len(row) for row in rows} == {7}
    assert rows[2][2] == "*(empty)*" and rows[2][3] == r"1 \| 2 \| --- \| \`"


def test_documents_without_questions(tmp_path):
    unasked = [{**row, **dict.fromkeys(SYSTEMS)} for row in RESULTS["per_context"]]
    for scores in (None, dict.fromkeys(SYSTEMS), {system: _score_null() for system in SYSTEMS}):
        results = _changed(scores=scores, num_questions=0, per_context=unasked)
        text = _run(tmp_path, results, predictions=[])
        assert "No questions were asked" in text.split("\n\n")[1]
        assert "f1.png" not in text and "## Scores" not in text and "## Sample" not in text
        assert (tmp_path / "f1.png").exists()  # replaces the picture of an earlier run


def _score_null():
    return dict.fromkeys(("f1", "em", "contains", "f1_paper", "f1_ci95"))


def test_one_document_without_questions_among_others(tmp_path):
    results = _changed()
    results["per_context"][1].update(dict.fromkeys(SYSTEMS))
    assert _rows(_run(tmp_path, results), "document")[3] == ["two", "–", "–", "–"]


@pytest.mark.parametrize("metrics", [[], None])
def test_zero_steps(tmp_path, metrics):
    text = _run(tmp_path, _changed(steps=0), metrics)
    assert "No training steps were recorded" in text and "loss.png" not in text


def test_drift_not_measured(tmp_path):
    text = _run(tmp_path, _changed(drift=None))
    assert "drift on unrelated text was not measured" in text and "drift.png" not in text


def test_losses_that_are_not_finite_are_counted_and_said(tmp_path):
    metrics = copy.deepcopy(METRICS)
    metrics[3]["loss"], metrics[7]["loss"] = math.nan, None
    assert "**2 steps had a loss that is not finite.**" in _run(tmp_path, metrics=metrics)
    text = _run(tmp_path, metrics=[{**row, "loss": math.inf} for row in METRICS])
    assert "**60 steps" in text and "loss.png" not in text


def test_runs_of_the_single_job_are_kept_apart():
    rows = [{**row, "context": name} for name in ("one", "two") for row in METRICS]
    runs, bad = losses(rows)
    assert list(runs) == ["one", "two"] and bad == 0
    np.testing.assert_array_equal(runs["two"][0], np.arange(1, 61))
    np.testing.assert_allclose(runs["two"][1], [row["loss"] for row in METRICS])


def test_running_median_ignores_an_outlier_and_knows_its_place():
    values = np.arange(200.0)
    values[100] = 1e9
    places, medians = running_median(values)
    assert places[0] == 0 and places[-1] == 199
    assert medians[0] == np.median(values[:6]) and medians[-1] == np.median(values[194:])
    # Half window 5 around 100: 95..105 without 100, with 1e9 on top.
    assert medians[100] == 101


def test_loss_axis_is_logarithmic_only_for_a_wide_span():
    def scale(losses):
        rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
        return figures.draw_loss(rows).axes[0].get_yscale()

    assert scale([20.1, 5, 1]) == "log"
    assert scale([19.9, 5, 1]) == "linear"
    assert scale([1.0, 0.0, 0.5]) == "linear"


def test_f1_picture_shows_the_means_and_their_intervals():
    means, groups = figures.draw_f1(_read(RESULTS)).axes
    assert [bar.get_height() for bar in means.patches] == [0.1, 0.6, 0.8]
    assert [text.get_text() for text in means.texts] == ["0.10", "0.60", "0.80"]
    whisker = means.containers[3].lines[2][0].get_segments()[0]  # [2, xy]
    np.testing.assert_allclose(whisker[:, 1], [0.512, 0.688])
    assert [bar.get_width() for bar in groups.patches] == [0.1, 0.1, 0.7, 0.5, 0.9, 0.7]
    assert [label.get_text() for label in groups.get_yticklabels()] == ["First | $x_1$", "two"]


@pytest.mark.filterwarnings("error")  # letters that the font lacks, a title that is no formula
@pytest.mark.parametrize("count", [1, 16, 17, 120])
def test_f1_picture_for_any_number_of_documents(tmp_path, count):
    rows = [
        {**RESULTS["per_context"][0], "id": str(number), "title": r"$\frac$ " + "長い題 " * 30}
        for number in range(count)
    ]
    _run(tmp_path, _changed(per_context=rows, num_contexts=count))
    assert matplotlib.image.imread(tmp_path / "f1.png").shape[0] < 1500


def test_a_mean_outside_its_interval_is_drawn(tmp_path):
    results = _changed()
    results["scores"]["injected"]["f1_ci95"] = [0.61, 0.62]
    _run(tmp_path, results)


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json: no such file"):
        report.write_report(tmp_path)
    _run(tmp_path)
    (tmp_path / "predictions.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions\.jsonl: no such file"):
        _run(tmp_path, predictions=None)
    (tmp_path / "predictions.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(ValueError, match=r"predictions\.jsonl, line 2: got '\[1\]', expected one JSON object"):
        report.write_report(tmp_path)
    _run(tmp_path)
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines(keepends=True)
    for left in (lines[:-1], [*lines[:-1], lines[-1][:20]]):
        (tmp_path / "predictions.jsonl").write_text("".join(left))
        said = rf"predictions\.jsonl: got {len(lines) - 1} whole lines, expected {len(lines)}, one a question; remove"
        with pytest.raises(ValueError, match=said):
            report.write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json: got malformed JSON"):
        report.write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({key: 0 for key in RESULTS if key != "drift"}))
    with pytest.raises(ValueError, match=r"results\.json: got no 'drift', expected a JSON object with 'job'"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    "content", [None, "", "oops", '{"step": 1, "loss": "x"}', '{"loss": 1.0}', "[1]", "\x00" * 90]
)
def test_a_damaged_log_leaves_out_the_picture_of_the_loss(tmp_path, content, monkeypatch):
    """A report is made whatever has become of metrics.jsonl."""
    drawn = []
    monkeypatch.setattr(report, "save_figures", lambda folder, drawings: drawn.append(set(drawings)) or True)
    assert "(loss.png)" in _run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    text = _run(tmp_path, metrics=None)
    assert "metrics.jsonl is missing or damaged, so there is no loss curve" in text
    assert drawn == [{"f1.png", "loss.png", "drift.png"}, {"f1.png", "drift.png"}] and "(loss.png)" not in text


def test_damaged_lines_of_a_log_are_left_out(tmp_path):
    lines = ['{"step": 1, "loss": 2.0}', "{oops", '{"step": 2, "loss": NaN}', '{"step": 3, "loss": 1.0}']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    curves, bad = report.losses(report.read_metrics(tmp_path / "metrics.jsonl"))
    assert bad == 1 and curves[""][:2].tolist() == [[1, 3], [2, 1]]


def test_a_report_of_a_record_that_is_not_written_yet(tmp_path, monkeypatch):
    """A job writes its report first, and then the file that says that it is complete."""
    monkeypatch.setattr(report, "save_figures", lambda *_: True)
    text = _run(tmp_path)
    (tmp_path / "results.json").unlink()
    (tmp_path / "report.md").unlink()
    report.write_report(tmp_path, RESULTS)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text and not (tmp_path / "results.json").exists()


def test_a_failed_report_leaves_the_old_one(tmp_path, monkeypatch):
    text = _run(tmp_path)
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        files.write_json(tmp_path / "results.json", {})
    with pytest.raises(OSError, match="disk"):
        report.write_report(tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == text
    assert json.loads((tmp_path / "results.json").read_text()) == RESULTS
    assert not list(tmp_path.glob(".*"))


# --- systems --------------------------------------------------------------------------------------------


def _with_invented(role="candidate"):
    """The records of a run with a fourth system, before the upper bound."""
    invented = {"name": "invented", "label": "Invented | one", "meaning": "made up", "role": role}
    results = _changed(systems=[*LISTED[:2], invented, LISTED[2]])
    results["scores"]["invented"] = {**_score(0.7, [0.6, 0.75]), "recall": 0.25}
    for row, f1 in zip(results["per_context"], (0.82, 0.58), strict=True):
        row["invented"] = f1
    predictions = copy.deepcopy(PREDICTIONS)
    for row in predictions:
        row["invented"] = {**row["injected"], "answer": "an invented answer"}
    return results, predictions


@pytest.mark.parametrize("role", ["candidate", "baseline"])
def test_a_fourth_system_is_in_tables_and_pictures(tmp_path, role):
    results, predictions = _with_invented(role)
    text = _run(tmp_path, results, predictions=predictions)
    scores = _rows(text, "")
    assert scores[0] == ["", "F1", "95 % interval", "exact match", "gold contained", "F1, paper's protocol", "recall"]
    assert scores[4] == [r"Invented \| one (made up)", "0.700", "0.600 to 0.750", "0.350", "0.700", "0.175", "0.250"]
    assert [row[-1] for row in scores[2:]] == ["–", "–", "0.250", "–"]
    assert [row[3] for row in _rows(text, "document")[2:]] == ["0.820", "0.580"]
    assert {row[4] for row in _rows(text, "question")[2:]} == {"an invented answer"}
    means, groups = figures.draw_f1(_read(results)).axes
    assert [bar.get_height() for bar in means.patches] == [0.1, 0.6, 0.7, 0.8]
    assert "Invented" in means.get_xticklabels()[2].get_text()
    assert [bar.get_width() for bar in groups.patches[4:6]] == [0.82, 0.58]
    assert len({tuple(bar.get_facecolor()) for bar in means.patches}) == 4
    # The headline is about the first candidate.
    assert "Injected F1 is 0.600: 75.0 % of the upper bound" in text
    assert figures.headline(_read(results)) == "F1: Base Q 0.10 → Injected 0.60, 75 % of Base C+Q"


@pytest.mark.parametrize("count", [16, 60])
def test_many_systems_and_many_documents_are_lines(count):
    results, _ = _with_invented()
    results["per_context"] = [{**results["per_context"][0], "id": str(number)} for number in range(count)]
    lines = figures.draw_f1(_read(results)).axes[1].lines
    assert [line.get_label() for line in lines] == ["Base Q", "Injected", "Invented | one", "Base C+Q"]


def test_order_and_roles_come_from_the_records(tmp_path):
    """The first candidate is another one, and there is no lower bound."""
    results, predictions = _with_invented()
    results["systems"] = [results["systems"][place] for place in (3, 2, 1)]
    del results["scores"]["base_q"]
    summary = _run(tmp_path, results, predictions=predictions).split("\n\n")[1]
    assert summary.startswith(r"Invented | one F1 is 0.700: 87.5 % of the upper bound Base C+Q (0.800); on unrelated")
    assert [bar.get_height() for bar in figures.draw_f1(_read(results)).axes[0].patches] == [0.8, 0.7, 0.6]


def test_a_system_that_was_not_asked_is_left_out_of_the_scores(tmp_path):
    results, _ = _with_invented()
    results["scores"]["invented"] = None
    text = _run(tmp_path, results)
    assert len(_rows(text, "")) == 2 + 3
    assert len(figures.draw_f1(_read(results)).axes[0].patches) == 3
    assert _rows(text, "question")[0] == [
        "question", "gold", "Base Q", "Injected", "Base C+Q", "Injected F1", "Injected is",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("systems", "words"),
    [
        (LISTED[:1], "expected different names and at least one candidate"),
        ([*LISTED, LISTED[0]], "expected different names"),
        (LISTED[1:], "got scores of base_q, expected only those of injected, base_cq"),
        ([*LISTED, {"name": "x"}], "expected an object with name, label, meaning, role"),
        ([*LISTED[:2], {**LISTED[2], "role": "ceiling"}], "got the role 'ceiling' of base_cq"),
    ],
)
def test_systems_that_cannot_be_are_refused(tmp_path, systems, words):
    with pytest.raises(ValueError, match=words):
        _run(tmp_path, _changed(systems=systems))


def test_metadata_of_documents_changes_nothing(tmp_path):
    text = _run(tmp_path)
    predictions = [{**row, "metadata": {"source": ["a", {"b": 1}]}} for row in PREDICTIONS]
    assert _run(tmp_path, predictions=predictions) == text


# --- without matplotlib ---------------------------------------------------------------------------------


@pytest.fixture
def no_matplotlib(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def test_without_matplotlib_the_text_is_written(tmp_path, no_matplotlib):
    text = _run(tmp_path)
    assert text.count(INSTALL) == 1 and ".png" not in text
    assert not list(tmp_path.glob("*.png"))
    assert "0.600" in _rows(text, "")[3]


SEQUENCES = {
    "entries": [["x", "y"]],
    "seconds": [[4.0, 6.0]],
    "kl": [[0.0, 0.1, 0.2]],
    "perplexity_after": [[20.0, 21.0, 22.0]],
} | {
    score: {
        "matrices": [[[0.1, 0.2], [0.8, 0.2], [0.7, 0.9]]],
        "curves": [{"just_injected": [None, 0.8, 0.9], "all_so_far": [None, 0.8, 0.8], "not_yet": [0.15, 0.2, None]}],
        **{name: 0.5 for name in ("before", "just_injected", "final", "retention", "forgetting")},
        "backward_transfer": None,
    }
    for score in ("f1", "log_likelihood")
}


def test_the_report_of_a_sequence(tmp_path):
    sequence.write_report(tmp_path, SEQUENCES)
    text = (tmp_path / "sequential.md").read_text()
    assert ["retention (final / just injected)", "0.500", ""] in _rows(text, "")
    assert "An injection took 5 s (median)." in text and "Perplexity on general text +10.0%" in text
    for name in ("matrix.png", "curves.png"):
        assert f"]({name})" in text
        assert matplotlib.image.imread(tmp_path / name)[..., :3].std() > 0.05


def test_the_report_of_a_sequence_without_matplotlib(tmp_path, no_matplotlib):
    sequence.write_report(tmp_path, SEQUENCES)
    text = (tmp_path / "sequential.md").read_text()
    assert text.count(INSTALL) == 1 and ".png" not in text and "just injected | 0.500 | 0.500" in text
    assert [path.name for path in tmp_path.iterdir()] == ["sequential.md"]


def test_matplotlib_is_not_imported_before_it_is_used():
    modules = "comparison, figures, report, sequence, style"
    code = f"import sys; from selfparam_jax.reports import {modules}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
