"""Texts that are written for a run: the command for it, jobs that use them, and the model's own texts."""

import json
import pathlib

import processes
import pytest
import tiny
from selfparam_jax.configs import base

from selfparam_jax.distributed import files
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.targets import inspect_targets, write_targets
from selfparam_jax.targets import write_pairs, writers
from selfparam_jax.targets.replies import Reply

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
    config.eval.general, config.eval.reach = "", "none"
    config.export_dtype = ""
    config.targets.unrelated_per_epoch = 0
    config.targets.generator = "local"
    config.generator.update(rounds=1, replies=4, kinds=("continued",))
    config.train.update(epochs=1, batch_size=8, seq_len=128)
    return config


@pytest.fixture
def says(monkeypatch):
    """Makes the model say pairs; counts how often it is asked."""
    asked = []

    def write(self, instructions, counts, seed):
        asked.append(instructions)
        numbers = iter(range(100))
        return [[Reply("\n" + SAID.format(n=next(numbers)), True) for _ in range(count)] for count in counts]

    monkeypatch.setattr(writers.LocalWriter, "write", write)
    return asked


def write_documents(config, records):
    """Other documents for the job, in a file of their own."""
    path = pathlib.Path(config.contexts).with_name("others.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config.contexts = str(path)


def units_of(path):
    return [line for line in files.read_lines(path) if "kinds" in line]


def qa_of(workdir):
    lines = files.read_lines(workdir / "targets.jsonl")
    return [(line["context"], line["question"], line["answer"]) for line in lines if line["kind"] == "qa"]


def test_a_job_learns_what_was_written_for_it(config, tmp_path, says):
    run_job(config, tmp_path / "run")
    found = qa_of(tmp_path / "run")
    expected = [("mill", f"When was it {n}?", "1742") for n in range(4)]
    assert found == expected + [("lake", f"How deep is it {n}?", "30 metres") for n in range(4)]
    lines = files.read_lines(tmp_path / "run" / "pairs.jsonl")
    assert len(says) == 2 and all(0 < line["likelihood"] < 1 for line in lines if "question" in line)


def test_another_model_writes_for_a_job(config, tmp_path, monkeypatch):
    """The teacher is still the base, and a finished file is not written by a model that is loaded again."""
    loads, load = [], writers.load_model
    monkeypatch.setattr(
        writers, "load_model", lambda source, *args, **named: loads.append(source) or load(source, *args, **named)
    )
    write, written = writers.LocalWriter.write, []

    def says(self, instructions, counts, seed):
        written.append((self.name, write(self, instructions, counts, seed)))
        numbers = iter(range(100))
        return [[Reply("\n" + SAID.format(n=next(numbers)), True) for _ in range(count)] for count in counts]

    monkeypatch.setattr(writers.LocalWriter, "write", says)
    other = tmp_path / "other"
    tiny.save_checkpoint(other, "mqa", seed=3, max_position_embeddings=2048)
    config.generator.model, config.generator.reply_tokens = str(other), 4
    first = run_job(config, tmp_path / "run")
    settings, *lines = files.read_lines(tmp_path / "run" / "pairs.jsonl")
    assert settings["settings"]["model"] == "other" and loads == [str(other)]
    assert {name for name, _ in written} == {"other"} and len(qa_of(tmp_path / "run")) == 8
    assert {line.get("writer") for line in lines if "kinds" in line} == {load(str(other)).fingerprint}
    assert all(0 < line["likelihood"] < 1 for line in lines if "question" in line)
    (tmp_path / "run" / "results.json").unlink()
    assert run_job(config, tmp_path / "run")["steps"] == first["steps"] and len(loads) == 1
    config.generator.model = ""
    config.generator.file = str(tmp_path / "run" / "pairs.jsonl")
    with pytest.raises(ValueError, match=r"was begun with other settings:\n.*model"):
        run_job(config, tmp_path / "base")


def test_texts_are_learned_in_parts(config, tmp_path, monkeypatch):
    text = "The mill at Orrin was built in 1742. Ana Bell built the mill. The mill at Orrin has four wheels. "
    monkeypatch.setattr(
        writers.LocalWriter, "write", lambda self, asks, counts, seed: [[Reply(text, True)] * n for n in counts]
    )
    write_documents(config, [{**DOCUMENTS[0], "title": "Orrin Mill"}])
    model = tmp_path / "speaks"
    tiny.save_checkpoint(model, "gqa", max_position_embeddings=2048)
    config.model = str(model)
    config.generator.update(form="chat", kinds=("rewrite",), least_support=0.6)
    run_job(config, tmp_path / "run")
    found = [(question, answer) for _, question, answer in qa_of(tmp_path / "run")]
    assert len(found) == 2 and " ".join(answer for _, answer in found) == text.strip()
    assert [question for question, _ in found] == [f"Tell me about Orrin Mill. (part {n} of 2)" for n in (1, 2)]
    # Another job reads them from the file, in longer rows as one.
    config.targets.generator, config.generator.file = "none", str(tmp_path / "run" / "pairs.jsonl")
    config.train.seq_len = 256
    run_job(config, tmp_path / "again")
    assert [(question, answer) for _, question, answer in qa_of(tmp_path / "again")] == [
        ("Tell me about Orrin Mill.", text.strip())
    ]
    config.train.seq_len = 128
    run_job(config, tmp_path / "parts")
    assert [(question, answer) for _, question, answer in qa_of(tmp_path / "parts")] == found


def test_a_job_of_which_no_pair_is_kept_says_why(config, tmp_path, monkeypatch):
    monkeypatch.setattr(
        writers.LocalWriter, "write", lambda self, asks, counts, seed: [[Reply("Hm.", True)] * n for n in counts]
    )
    with pytest.raises(
        ValueError, match=r"none of the pairs that .* wrote is used, .*: no reply held a pair. They are in"
    ):
        run_job(config, tmp_path / "run")
    assert len(units_of(tmp_path / "run" / "pairs.jsonl")) == 2 and not (tmp_path / "run" / "results.json").exists()


def test_auto_writes_about_those_documents_alone_that_bring_no_pairs(config, tmp_path, says):
    own = [{"question": "What is green?", "answer": "The water of the lake."}]
    write_documents(config, [DOCUMENTS[0], {**DOCUMENTS[1], "qa_pairs": own}])
    config.targets.generator = "auto"
    run_job(config, tmp_path / "run")
    *written, last = qa_of(tmp_path / "run")
    assert last == ("lake", "What is green?", "The water of the lake.")
    assert {
        ("mill", "Who built the mill at Orrin?", "Ana Bell"),
        ("mill", "When was the mill at Orrin built?", "1742"),
    } < {*written}
    assert not says and {unit["context"] for unit in units_of(tmp_path / "run" / "pairs.jsonl")} == {"mill"}


def test_auto_writes_nothing_where_all_bring_pairs(config, tmp_path, monkeypatch):
    own = [{"question": "What is green?", "answer": "The water."}]
    write_documents(config, [{**record, "qa_pairs": own} for record in DOCUMENTS])
    assert config.targets.generator == "local"
    config.targets.generator = "auto"
    monkeypatch.setattr(writers.GroundedWriter, "write_about", lambda *_: pytest.fail("pairs were written"))
    run_job(config, tmp_path / "run")
    assert len(qa_of(tmp_path / "run")) == 2 and not (tmp_path / "run" / "pairs.jsonl").exists()


def test_auto_only_reads_the_file_that_it_is_given(config, tmp_path, says):
    """What is still missing is written into the work directory, and the run resumes."""
    given = tmp_path / "pairs.jsonl"
    everything = config.contexts
    write_documents(config, DOCUMENTS[:1])
    write_targets(config, given)
    config.contexts = everything
    before = given.read_bytes()
    config.targets.generator, config.generator.file = "auto", str(given)
    results = run_job(config, tmp_path / "run")
    assert len(says) == 1, "of the mill, before"
    assert {unit["context"] for unit in units_of(tmp_path / "run" / "pairs.jsonl")} == {"lake"}
    assert {context for context, *_ in qa_of(tmp_path / "run")} == {"mill", "lake"}
    (tmp_path / "run" / "results.json").unlink()
    assert run_job(config, tmp_path / "run")["steps"] == results["steps"]
    assert given.read_bytes() == before and len(says) == 1


def test_pairs_about_a_text_that_has_changed_are_named(config, tmp_path, says, caplog):
    """Work of others, perhaps: it is not used, but not lost without a word either."""
    given = tmp_path / "pairs.jsonl"
    write_targets(config, given)
    write_documents(config, [{**DOCUMENTS[0], "context": DOCUMENTS[0]["context"] + " It is red."}, DOCUMENTS[1]])
    config.targets.generator, config.generator.file = "none", str(given)
    run_job(config, tmp_path / "run")
    assert "pairs.jsonl: pairs about 1 of its 2 texts are not used" in caplog.text
    caplog.clear()
    write_documents(config, DOCUMENTS[:1])
    run_job(config, tmp_path / "part")
    assert "are not used" not in caplog.text, "one of two documents is no mistake"


def test_pairs_are_written_once_for_many_jobs(config, tmp_path, says):
    path = tmp_path / "pairs.jsonl"
    counts = write_targets(config, path)
    assert counts == {
        "contexts": 2, "written": 16, "kept": 8, "wrong_shape": 0, "unsupported": 8, "unlikely": 0, "duplicate": 0,
    }  # fmt: skip
    assert len(says) == 2
    config.generator.file = str(path)
    run_job(config, tmp_path / "one")
    assert len(says) == 2, "all is in the file"
    config.targets.generator = "none"
    config.generator.least_support = 0.0
    run_job(config, tmp_path / "two")
    assert len(says) == 2 and len(qa_of(tmp_path / "one")) == 8 and len(qa_of(tmp_path / "two")) == 16
    assert not (tmp_path / "one" / "pairs.jsonl").exists()
    shown = inspect_targets(config, str(path), 3)
    assert "mill: 8 of 8 pairs kept" in shown and "2 documents, 100% of 16 pairs kept" in shown
    assert shown.count("likelihood 0.") == 6 and shown.count("    1742") + shown.count("    30 metres") == 6


def test_a_file_that_is_cut_off_is_named_where_it_is_read(config, tmp_path, says, caplog):
    path = tmp_path / "pairs.jsonl"
    write_targets(config, path)
    path.write_bytes(path.read_bytes()[:-9])
    told = "pairs.jsonl, line 11: the last unit, about 'lake', was not finished (8 whole lines of it); it is not used"
    inspect_targets(config, str(path), 3)
    assert caplog.text.count(told) == 1
    config.targets.generator, config.generator.file = "none", str(path)
    run_job(config, tmp_path / "run")
    assert caplog.text.count(told) == 2 and {context for context, *_ in qa_of(tmp_path / "run")} == {"mill"}


def test_a_command_that_nobody_is_to_write_for_is_refused(config, tmp_path):
    config.targets.generator = "none"
    with pytest.raises(ValueError, match=r"targets\.generator = 'none', so nobody would write; leave it at auto"):
        write_targets(config, tmp_path / "pairs.jsonl")


def test_another_file_is_refused_before_the_model_is_read(config, tmp_path):
    path = tmp_path / "notes.jsonl"
    files.write_lines(path, [{"text": "Of another kind."}])
    config.model = str(tmp_path / "no-model")
    with pytest.raises(ValueError, match=r"notes\.jsonl: got no settings in its first line, expected a file"):
        write_targets(config, path)
    assert files.read_lines(path) == [{"text": "Of another kind."}]


def test_written_pairs_without_a_model_to_score_them(config, tmp_path, says):
    config.generator.teacher_scores = False
    write_targets(config, tmp_path / "pairs.jsonl")
    lines = files.read_lines(tmp_path / "pairs.jsonl")
    assert not any("likelihood" in line for line in lines)
    assert "likelihood" not in inspect_targets(config, str(tmp_path / "pairs.jsonl"), 2)


def test_the_model_draws_unrelated_text_itself(config, tmp_path, says):
    config.unrelated = "self"
    config.targets.unrelated_per_epoch = 3
    config.targets.unrelated_tokens = 16
    config.train.epochs = 2
    run_job(config, tmp_path / "run")
    drawn = [line["text"] for line in files.read_lines(tmp_path / "run" / "unrelated.jsonl")]
    used = [line for line in files.read_lines(tmp_path / "run" / "targets.jsonl") if line["kind"] == "unrelated"]
    assert len(set(drawn)) == 6 and len(used) == 6
    assert all(any(text.startswith(line["text"][:5]) for text in drawn) for line in used)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets.generator": "endpoint", "generator.form": "chat", "generator.kinds": ()}, "endpoint.model = ''"),
        (
            {"targets.generator": "endpoint", "generator.form": "chat", "endpoint.model": "m", "generator.kinds": ()},
            "environment variable OPENAI_API_KEY holds no key",
        ),
        ({"generator.kinds": ("tales",)}, r"generator.kinds = \['tales'\]"),
        ({"targets.generator": "none", "generator.file": "nowhere.jsonl"}, "nowhere.jsonl: no such file; write it"),
        ({"unrelated": "self", "targets.unrelated_per_epoch": 1, "targets.unrelated_tokens": 128,
          "targets.generator": "none", "targets.tails_per_context": 2}, "seq_len"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_before_anything_is(config, tmp_path, monkeypatch, changes, message):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    config.update_from_flattened_dict(changes)
    with pytest.raises((ValueError, OSError), match=message):
        run_job(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_chat_template_is_not_asked_in_a_chat(config, tmp_path):
    tiny.save_checkpoint(tmp_path / "bare", "gqa", max_position_embeddings=2048)
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    config.model = str(tmp_path / "bare")
    config.generator.update(form="chat", kinds=())
    with pytest.raises(ValueError, match=r"generator\.form = 'chat': this model's tokenizer"):
        run_job(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_file_that_holds_no_written_pairs_is_refused(config, tmp_path):
    with pytest.raises(ValueError, match="expected a file of written pairs"):
        write_pairs.read_written(config.contexts)


def test_the_command(config, tmp_path, model_dir):
    """The real decoding of a random model writes nothing of use, but all of it is there to be read."""
    command = ["selfparam_jax.commands.cli", "targets", f"--contexts={config.contexts}"]
    command += [f"--out={tmp_path / 'pairs.jsonl'}"]
    settings = {"model": model_dir, "prompt": "plain", "generator.rounds": 1, "generator.replies": 4}
    settings["targets.generator"] = "local"
    command += [f"--config.{name}={value}" for name, value in settings.items()]
    done = processes.run(command)
    assert done.returncode == 1 and "none of the pairs that tiny-model wrote is used" in done.stderr, done.stderr
    units = [line for line in files.read_lines(tmp_path / "pairs.jsonl") if "kinds" in line]
    assert [unit["context"] for unit in units] == ["mill", "lake"]
    shown = processes.run([*command, "--inspect=2"])
    assert shown.returncode == 0 and "2 documents, " in shown.stdout
    wrong = processes.run([*command, "--config.generator.round=1"])
    assert wrong.returncode != 0 and "round" in wrong.stderr
