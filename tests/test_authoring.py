"""Texts that are written for a run: the command for it, jobs that use them, and the model's own texts."""

import json
import subprocess
import sys

import pytest

from configs import base
from selfparam_jax import files, generator, jobs
from selfparam_jax.generator import Reply

DOCUMENTS = [
    {
        "id": "mill",
        "context": "The mill at Orrin was built in 1742 by Ana Bell. It has four wheels.",
        "questions": [{"question": "Who built it?", "answers": ["Ana Bell"]}],
    },
    {"id": "lake", "context": "Lake Sorrel is 30 metres deep. Its water is green in May."},
]
SAID = "Question: When was it {n}?\nAnswer: 1742\nQuestion: How deep is it {n}?\nAnswer: 30 metres\n"


@pytest.fixture
def config(model_dir, tmp_path):
    config = base.get_config()
    config.model = str(model_dir)
    config.prompt = "plain"
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in DOCUMENTS))
    config.contexts = str(path)
    config.eval.general = ""
    config.export_dtype = ""
    config.targets.unrelated_per_epoch = 0
    config.targets.generator = "local"
    config.generator.update(rounds=1, replies=4, kinds=("continued",))
    config.train.update(epochs=1, batch_rows=8, row_length=128)
    return config


@pytest.fixture
def says(monkeypatch):
    """Makes the model say pairs; counts how often it is asked."""
    asked = []

    def write(self, instructions, counts, seed):
        asked.append(instructions)
        numbers = iter(range(100))
        return [[Reply("\n" + SAID.format(n=next(numbers)), True) for _ in range(count)] for count in counts]

    monkeypatch.setattr(generator.LocalWriter, "write", write)
    return asked


def qa_of(workdir):
    lines = files.read_lines(workdir / "targets.jsonl")
    return [(line["context"], line["question"], line["answer"]) for line in lines if line["kind"] == "qa"]


def test_a_job_learns_what_was_written_for_it(config, tmp_path, says):
    jobs.run_job(config, str(tmp_path / "run"))
    found = qa_of(tmp_path / "run")
    expected = [("mill", f"When was it {n}?", "1742") for n in range(4)]
    assert found == expected + [("lake", f"How deep is it {n}?", "30 metres") for n in range(4)]
    lines = files.read_lines(tmp_path / "run" / "pairs.jsonl")
    assert len(says) == 2 and all(0 < line["likelihood"] < 1 for line in lines if "question" in line)


def test_pairs_are_written_once_for_many_jobs(config, tmp_path, says):
    path = tmp_path / "pairs.jsonl"
    counts = jobs.write_targets(config, str(path))
    assert counts == {
        "contexts": 2, "written": 16, "kept": 8, "wrong_shape": 0, "unsupported": 8, "unlikely": 0, "duplicate": 0,
    }  # fmt: skip
    assert len(says) == 2
    config.generator.file = str(path)
    jobs.run_job(config, str(tmp_path / "one"))
    assert len(says) == 2, "all is in the file"
    config.targets.generator = "none"
    config.generator.least_support = 0.0
    jobs.run_job(config, str(tmp_path / "two"))
    assert len(says) == 2 and len(qa_of(tmp_path / "one")) == 8 and len(qa_of(tmp_path / "two")) == 16
    assert not (tmp_path / "one" / "pairs.jsonl").exists()
    shown = jobs.inspect_targets(config, str(path), 3)
    assert "mill: 8 of 8 pairs kept" in shown and "2 contexts, 100% of 16 pairs kept" in shown
    assert shown.count("likelihood 0.") == 6 and shown.count("    1742") + shown.count("    30 metres") == 6


def test_written_pairs_without_a_model_to_score_them(config, tmp_path, says):
    config.generator.teacher_scores = False
    jobs.write_targets(config, str(tmp_path / "pairs.jsonl"))
    lines = files.read_lines(tmp_path / "pairs.jsonl")
    assert not any("likelihood" in line for line in lines)
    assert "likelihood" not in jobs.inspect_targets(config, str(tmp_path / "pairs.jsonl"), 2)


def test_the_model_draws_unrelated_text_itself(config, tmp_path, says):
    config.unrelated = "self"
    config.targets.unrelated_per_epoch = 3
    config.targets.unrelated_tokens = 16
    config.train.epochs = 2
    jobs.run_job(config, str(tmp_path / "run"))
    drawn = [line["text"] for line in files.read_lines(tmp_path / "run" / "unrelated.jsonl")]
    used = [line for line in files.read_lines(tmp_path / "run" / "targets.jsonl") if line["kind"] == "unrelated"]
    assert len(set(drawn)) == 6 and len(used) == 6
    assert all(any(text.startswith(line["text"][:5]) for text in drawn) for line in used)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets.generator": "endpoint", "generator.form": "chat"}, "endpoint model = ''"),
        (
            {"targets.generator": "endpoint", "generator.form": "chat", "endpoint.model": "m", "generator.kinds": ()},
            "environment variable OPENAI_API_KEY holds no key",
        ),
        ({"generator.form": "chat", "generator.kinds": ()}, "generator.form = 'chat': this model's tokenizer does"),
        ({"generator.kinds": ("tales",)}, r"generator.kinds = \['tales'\]"),
        ({"targets.generator": "none", "generator.file": "nowhere.jsonl"}, "nowhere.jsonl: no such file; write it"),
        ({"unrelated": "self", "targets.unrelated_per_epoch": 1, "targets.unrelated_tokens": 128,
          "targets.generator": "none", "targets.tails_per_context": 2}, "row_length"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_before_anything_is(config, tmp_path, monkeypatch, changes, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, OSError), match=message):
        jobs.run_job(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_file_that_holds_no_written_pairs_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="expected a file of written pairs"):
        generator.read_written(config.contexts)


def test_the_command(config, tmp_path, model_dir):
    """The real decoding of a random model writes nothing of use, but all of it is there to be read."""
    command = [sys.executable, "-m", "selfparam_jax.targets", f"--contexts={config.contexts}"]
    command += [f"--out={tmp_path / 'pairs.jsonl'}"]
    settings = {"model": model_dir, "prompt": "plain", "generator.rounds": 1, "generator.replies": 4}
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pairs kept for 2 documents" in done.stdout
    units = [line for line in files.read_lines(tmp_path / "pairs.jsonl") if "kinds" in line]
    assert [unit["context"] for unit in units] == ["mill", "lake"]
    shown = subprocess.run([*command, "--inspect=2"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0 and "2 contexts, " in shown.stdout
    wrong = subprocess.run([*command, "--config.generator.round=1"], capture_output=True, text=True, check=False)
    assert wrong.returncode != 0 and "round" in wrong.stderr
