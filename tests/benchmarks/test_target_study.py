"""The study of target sentences: its cells, how they are compared, and one real cell on a tiny model."""

import dataclasses
import json

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair, read_document_files
from selfparam_jax.distributed import files
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.write_pairs import text_digest

study = tiny.benchmark("target_study")


def context(name, pairs):
    return Document(
        id=name, title="", text="Text.", questions=(), qa_pairs=tuple(QAPair(f"{n}?", "x") for n in range(pairs))
    )


@pytest.mark.parametrize("grid", ["small", "full"])
def test_cells(grid):
    cells = study.all_cells(["number", "kinds", "answers", "generator"], grid, 3)
    assert {cell.group for cell in cells} == {0, 1, 2}
    assert len({(cell.part, cell.label, cell.group) for cell in cells}) == len(cells)
    by_name = {}
    for cell in cells:
        by_name.setdefault(cell.name, []).append(cell)
    # One job serves all parts that ask for the same; another setting is another job.
    assert all(
        len({json.dumps([c.changes, c.pairs, c.group, c.source]) for c in same}) == 1 for same in by_name.values()
    )
    assert max(map(len, by_name.values())) == 3


def test_cells_of_texts_and_distractors():
    cells = {cell.label: cell for cell in study.all_cells(["texts", "distractors"], "small", 1)}
    assert list(cells)[:3] == ["questions", "questions and dialogue", "questions and use_it"] and len(cells) == 11
    plain = cells["questions"].changes["generator.kinds"]
    assert cells["questions and rewrite"].changes["generator.kinds"] == (*plain, "rewrite")
    assert cells["questions and rewrite"].source == "documents"
    assert set(cells["questions and all of these"].changes["generator.kinds"]) > {*plain, "strategies", "dialogue"}
    assert {cell.label for cell in cells.values() if cell.part in study.REFERENCE} == set(cells)
    assert [cell.changes["targets.distractors"] for cell in cells.values() if cell.part == "distractors"] == [0, 1]
    assert all(study.REFERENCE[cell.part] in cells for cell in cells.values())


def test_long_answers_are_read_in_fewer_passes():
    short = dataclasses.replace(context("a", 0), qa_pairs=(QAPair("Who was it there?", "Ana Bell"),) * 20)
    long = dataclasses.replace(short, qa_pairs=(QAPair("Who was it there?", "It was she. " * 20),) * 20)
    assert study.epochs_for_words([short], 160) == round(160 * 12 / 120) == 16
    assert study.epochs_for_words([short, long], 160) == round(160 * 12 / ((120 + 1280) / 2)) == 3
    assert study.epochs_for_words([context("a", 0)], 1) == 12 and study.epochs_for_words([long], 80) == 1


def test_a_cell_of_texts_writes_first_and_knows_its_epochs_then(tmp_path, monkeypatch):
    set_flags(monkeypatch, MODEL="", PROMPT="plain", DTYPE="float32", EXPOSURES=160, WRITER="other")
    (cell,) = [each for each in study.all_cells(["texts"], "small", 1) if each.label == "questions and rewrite"]
    asked, given = [], [Document("Text.", title="T", id="a")]
    pairs = {
        "prompt": "rewrite",
        "question": "Tell me about T.",
        "answer": "Text. " * 236,
        "support": 1.0,
        "text": True,
    }

    def write(config, path):
        asked.append((config.generator.kinds, config.generator.model))
        lines = [{**pairs, "digest": text_digest(given[0]), "round": 0}]
        files.write_lines(path, [{"settings": {}}, *lines, {"digest": lines[0]["digest"], "round": 0, "kinds": {}}])

    class Ended(Exception):
        pass

    def prepare(config, directory):
        asked.append((config.train.epochs, config.targets.unrelated_per_epoch, config.generator.file))
        raise Ended

    monkeypatch.setattr(study, "write_targets", write)
    monkeypatch.setattr(study, "prepare", prepare)
    with pytest.raises(Ended):
        study.run_cell(cell, str(tmp_path / "documents.jsonl"), given, tmp_path / "out")
    (kinds, model), (epochs, unrelated, file) = asked
    assert kinds[-1] == "rewrite" and model == "other"
    assert (epochs, unrelated) == (round(160 * 12 / 240), round(60 / 8)) == (8, 8)
    assert file.endswith(f"shared/documents-0/{cell.name}.jsonl")


@pytest.mark.parametrize(
    ("pairs", "there", "epochs"), [(5, 50, 32), (0, 50, 3), (40, 50, 4), (40, 20, 8), (0, 400, 1)]
)
def test_every_cell_sees_as_many_pairs(pairs, there, epochs):
    cell = study.Cell("number", "x", 0, "contexts", {}, pairs)
    assert study.epochs_of(cell, [context("a", there - 5), context("b", there + 5)], 160) == epochs


def record(group, f1, label="5 pairs"):
    numbers = {"f1_cq": 0.5, "perplexity": 0.1, "steps": 10, "seconds": 5.0, "pairs": 20}
    numbers |= {"contains": 0.5, "log_likelihood": -1.0, "answer_words": f1}
    answered = {"f1_by_context": {f"context {group}": [f1, f1]}}
    return {"part": "number", "label": label, "group": group, "f1": f1, **answered, **numbers}


def test_the_summary_by_hand():
    rows = study.summary_of([record(0, 0.25), record(1, 0.75), record(0, 0.5, "all pairs"), record(1, 0, "10 pairs")])
    assert [(row["f1"], row["groups"], row["answer_words"]) for row in rows] == [
        (0.5, 2, 0.5),
        (0.5, 1, 0.5),
        (0, 1, 0),
    ]
    assert rows[0]["f1_ci95"] == [0.25, 0.75] and rows[1]["f1_ci95"] == [0.5, 0.5]
    # Only context 0 was asked of the reference, "all pairs".
    assert [row["f1_difference"] for row in rows] == [-0.25, 0, None]
    assert rows[0]["f1_difference_ci95"] == [-0.25, -0.25]


def set_flags(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setattr(study, name, type("Flag", (), {"value": value}))


def test_a_study_is_written_as_it_grows_and_what_is_finished_alone(tmp_path, monkeypatch):
    contexts, run, written = tmp_path / "contexts.jsonl", [], []
    files.write_lines(contexts, [{"id": f"{n}", "context": "Text."} for n in range(4)])
    set_flags(
        monkeypatch, OUT=str(tmp_path / "out"), GRID="small", GROUPS=2, SIZE=2, PARTS=["number"],
        CONTEXTS=str(contexts), DOCUMENTS=None, FINISHED=True,
    )  # fmt: skip

    def run_cell(cell, path, group, out):
        run.append((cell.label, [context.id for context in group]))
        (out / "cells" / cell.name).mkdir(parents=True, exist_ok=True)
        (out / "cells" / cell.name / "cell.json").touch()
        return record(cell.group, 0.5, cell.label)

    monkeypatch.setattr(study, "run_cell", run_cell)
    monkeypatch.setattr(study, "draw", lambda rows, path: written.append(len(rows)))
    with pytest.raises(ValueError, match="no finished cell"):
        study.study()
    set_flags(monkeypatch, GROUPS=1, FINISHED=False)
    study.study()
    assert [label for label, _ in run] == [label for label, _, _ in study.settings_of("number", "small")]
    assert {tuple(group) for _, group in run} == {("0", "1")} and written == [1, 2, 3, 4, 5]
    set_flags(monkeypatch, GROUPS=2, FINISHED=True)
    study.study()
    assert len(run) == 10 and {tuple(group) for _, group in run} == {("0", "1")} and written[5:] == [5]
    set_flags(monkeypatch, PARTS=["generator"])
    with pytest.raises(ValueError, match="--documents=FILE"):
        study.study()


@pytest.mark.pictures
def test_a_real_cell(tmp_path, monkeypatch):
    """One group of the answers' part on a tiny model: every label has its row, and nothing is run twice."""
    model = tmp_path / "model"
    tiny.save_checkpoint(model, "gqa", max_position_embeddings=2048)
    contexts = tmp_path / "contexts.jsonl"
    pairs = [{"question": f"Who is number {n}?", "answer": "Ana Bell"} for n in range(4)]
    asked = [{"question": "Who?", "answers": ["Ana"]}]
    lines = [{"id": name, "context": f"Text {name}.", "questions": asked, "qa_pairs": pairs} for name in "ab"]
    contexts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    set_flags(monkeypatch, MODEL=str(model), PROMPT="plain", DTYPE="float32", EXPOSURES=4)
    changes = {"train.batch_size": 8, "eval.general": "", "targets.unrelated_per_epoch": 0}
    cell = study.Cell("answers", "as written; KL", 0, "contexts", changes, 2)
    group = read_document_files(contexts)
    monkeypatch.setattr(study.files, "read_json", lambda path, **_: with_drift(path))

    def with_drift(path):
        found = json.loads(path.read_text())
        if "drift" in found:
            found["drift"] = {"perplexity_before": 10.0, "perplexity_after": 11.0}
        return found

    first = study.run_cell(cell, str(contexts), group, tmp_path / "out")
    directory = tmp_path / "out" / "cells" / cell.name
    assert (
        first["log_likelihood"] < 0
        and first["pairs"] == 4
        and first["perplexity"] == pytest.approx(0.1)
        and first["answer_words"] == 2.0
        and {name: len(found) for name, found in first["f1_by_context"].items()} == {"a": 1, "b": 1}
    )
    assert (
        not (directory / "checkpoints").exists()
        and (tmp_path / "out" / "shared" / "contexts-0" / "answers" / "base_cq.jsonl").exists()
    )
    monkeypatch.setattr(study, "run_job", lambda *_: pytest.fail("it was run again"))
    assert study.run_cell(cell, str(contexts), group, tmp_path / "out") == first
    study.write_report(tmp_path / "out", [first], None)
    text = (tmp_path / "out" / "study.md").read_text()
    assert "| as written; KL | " in text and "+10.0%" in text
    assert (tmp_path / "out" / "study.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_what_the_generator_wrote(tmp_path):
    unit = {"context": "c", "digest": "d", "round": 0}
    kinds = {"facts": {"replies": 4, "without_pair": 1, "pairs": 3}}
    scores = {"prompt": "facts", "support": 1.0}
    pairs = [{**unit, **scores, "question": f"Number {n}?", "answer": "x", "support": n / 2} for n in range(3)]
    lines = [{"settings": {}}, *pairs, {**unit, "kinds": kinds, "seconds": 2.0}]
    files.write_lines(tmp_path / "pairs.jsonl", lines)
    (tmp_path / "shared" / "documents-0").mkdir(parents=True)
    (tmp_path / "pairs.jsonl").rename(tmp_path / "shared" / "documents-0" / "pairs.jsonl")
    assert study.written_counts(tmp_path, GeneratorConfig()) == {
        "contexts": 1, "replies": 4, "replies_without_pair": 1, "seconds": 2.0, "written": 3, "kept": 1,
        "wrong_shape": 0, "unsupported": 2, "unlikely": 0, "duplicate": 0, "pairs_per_s": 1.5,
    }  # fmt: skip
    assert study.written_counts(tmp_path / "none", GeneratorConfig()) is None
