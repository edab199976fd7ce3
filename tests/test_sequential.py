"""Job sequential: the matrix, the ledger behind it, the remedies, and runs that are killed."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import base
from selfparam_jax import files, hub, injection, jobs, rehearsal, sequential, served
from selfparam_jax.checkpoint import Checkpoints
from selfparam_jax.contexts import QAPair
from selfparam_jax.ledger import Ledger
from selfparam_jax.lora import merge_adapters
from selfparam_jax.prompts import Prompt

NAMES = ("ada", "bo", "cy")


@pytest.fixture
def config(model_dir, tmp_path):
    config = base.get_config()
    config.job, config.model, config.prompt = "sequential", str(model_dir), "plain"
    records = [
        {
            "id": name,
            "context": f"{name} has a red mill. It was built in 1{number}00.",
            "questions": [{"question": f"What does {name} own?", "answers": ["mill"]}],
            "qa_pairs": [
                {"question": f"When was the mill of {name} built?", "answer": f"1{number}00"},
                {"question": f"What has {name}?", "answer": "a red mill"},
            ],
        }
        for number, name in enumerate(NAMES)
    ]
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Rain fell on day {n} of the year."}) + "\n" for n in range(4)))
    config.contexts, config.unrelated, config.eval.general = str(path), str(texts), str(texts)
    config.targets.unrelated_per_epoch = 1
    config.sequential.length = 3
    config.lora.rank = 2
    config.train.update(epochs=2, batch_rows=8, row_length=96, checkpoint_every=1)
    return config


def test_what_a_matrix_says():
    matrix = np.asarray([[0.95, 0.1, 0.2], [0.8, 0.1, 0.2], [0.9, 0.6, 0.3], [0.4, 0.5, 0.7]])
    found = sequential.summarize_matrix(matrix)
    curves = found.pop("curves")
    assert found == pytest.approx(
        {
            "just_injected": 0.7,
            "final": 1.6 / 3,
            "retention": 1.6 / 2.1,
            "forgetting": (0.5 + 0.1) / 2,
            "backward_transfer": (-0.4 - 0.1) / 2,
            "before": (0.95 + 0.1 + 0.3) / 3,
        }
    )
    assert curves["just_injected"] == [None, 0.8, 0.6, 0.7]
    assert curves["all_so_far"] == [None, 0.8, 0.75, pytest.approx(1.6 / 3)]
    assert curves["not_yet"] == [pytest.approx(1.25 / 3), pytest.approx(0.15), 0.3, None]
    alone = sequential.summarize_matrix(np.asarray([[0.0], [0.0]]))
    assert alone["retention"] is None and alone["forgetting"] == alone["backward_transfer"] == 0.0


def test_every_finished_sequence_is_reported_at_once(config, tmp_path, monkeypatch):
    config.sequential.update(length=1, sequences=2)
    run_course = sequential.run_course

    def stopped(run, course):
        if course.number:
            raise KeyboardInterrupt
        return run_course(run, course)

    monkeypatch.setattr(sequential, "run_course", stopped)
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job(config, str(tmp_path / "run"))
    assert "1 sequences of 1 contexts" in (tmp_path / "run" / "sequential.md").read_text()
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_whole_run(config, tmp_path):
    workdir = tmp_path / "run"
    config.sequential.fresh_texts = True
    results = jobs.run_job(config, str(workdir))
    found = results["sequential"]
    assert np.shape(found["f1"]["matrices"]) == np.shape(found["log_likelihood"]["matrices"]) == (1, 4, 3)
    ledger = Ledger.open(workdir / "sequences" / "000" / "ledger")
    assert [entry.name for entry in ledger.active()] == list(NAMES) and ledger.verify() == []
    assert found["entries"] == [[entry.id for entry in ledger.active()]]
    # The matrix is what the merged models give when they are asked anew.
    run = jobs.prepare(config, str(workdir))
    for done in range(4):
        adapters = ledger.adapters()[:done]
        params = merge_adapters(run.base.params, adapters) if adapters else run.base.params
        again = sequential.examine(run, dataclasses.replace(run.base, params=params), run.contexts)
        assert again["log_likelihood"] == found["log_likelihood"]["matrices"][0][done]
    likelihood = np.asarray(found["log_likelihood"]["matrices"][0])
    assert (np.diff(likelihood, axis=0) != 0).all(), "every injection changes every answer's likelihood"
    kinds = [line["kind"] for line in files.read_lines(workdir / "targets.jsonl")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"qa": 6, "unrelated": 6}
    texts = {line["text"] for line in files.read_lines(workdir / "targets.jsonl") if line["kind"] == "unrelated"}
    assert len(texts) > 2, "every injection draws two of all that are there"
    config.sequential.fresh_texts = False
    assert len(jobs.read_unrelated(config, jobs.read_settings(config))) == 2, "else all have the same two"
    assert found["perplexity_after"][0][0] == pytest.approx(results["drift"]["perplexity_before"])
    assert results["scores"]["injected"]["f1"] == pytest.approx(np.mean(found["f1"]["matrices"][0][-1]))
    text = (workdir / "sequential.md").read_text()
    assert "1 sequences of 3 contexts" in text and "backward transfer" in text
    for picture in ("matrix.png", "curves.png", "f1.png"):
        assert (workdir / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # An examination that is missing is made again, of the model as it was then.
    course = sequential.courses_of(run)[0]
    path = course.directory / "examinations" / "001.json"
    path.unlink()
    sequential.run_course(run, course)
    assert files.read_json(path)["log_likelihood"] == likelihood[1].tolist()
    # Exported is the base with all deltas, rounded once.
    merged = merge_adapters(run.base.params, ledger.adapters())
    wanted = np.asarray(merged["layers"]["mlp"]["up_proj"]["kernel"][0].T.astype("bfloat16"))
    from safetensors import safe_open

    with safe_open(workdir / "merged" / "model.safetensors", "flax") as file:
        assert (np.asarray(file.get_tensor("model.layers.0.mlp.up_proj.weight")) == wanted).all()


def test_asking_a_finished_or_a_running_sequence(config, tmp_path, monkeypatch):
    config.sequential.update(length=1, sequences=2)
    with monkeypatch.context() as stopped:
        stopped.setattr(sequential, "examine", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            jobs.run_job(config, str(tmp_path / "run"))
    with pytest.raises(ValueError, match="has no"):
        jobs.ask(str(tmp_path / "run"), ["What does ada own?"])
    jobs.run_job(config, str(tmp_path / "run"))
    asked = []
    ask = jobs.ask_everything
    monkeypatch.setattr(
        jobs, "ask_everything", lambda run, *rest, **named: asked.append(run) or ask(run, *rest, **named)
    )
    found = jobs.ask(str(tmp_path / "run"), ["What does bo own?"])
    assert found[0]["document"] == "bo"
    base, _, learned = (np.asarray(run.base.params["layers"]["mlp"]["up_proj"]["kernel"]) for run in asked)
    ledger = Ledger.open(tmp_path / "run" / "sequences" / "001" / "ledger")
    merged = merge_adapters(asked[0].base.params, ledger.adapters())["layers"]["mlp"]["up_proj"]["kernel"]
    assert (learned == np.asarray(merged)).all() and (learned != base).any()


def test_what_an_undo_would_change(config, tmp_path):
    jobs.run_job(config, str(tmp_path / "run"))
    ledger = Ledger.open(tmp_path / "run" / "sequences" / "000" / "ledger")
    rows = files.read_json(tmp_path / "run" / "results.json")["sequential"]["log_likelihood"]["matrices"][0]
    first, _, last = ledger.entries()
    found = served.measure_undo(ledger, last.id[:6])
    assert found["undone"] == "cy"
    assert [line["context"] for line in found["contexts"]] == list(NAMES)
    assert [line["log_likelihood"] for line in found["contexts"]] == [
        list(pair) for pair in zip(rows[3], rows[2], strict=True)
    ]
    earlier = served.measure_undo(ledger, first.id)
    assert [line["log_likelihood"][0] for line in earlier["contexts"]] == rows[3]
    assert all(line["log_likelihood"][0] != line["log_likelihood"][1] for line in earlier["contexts"])
    assert earlier["kl"][0] == found["kl"][0] != earlier["kl"][1]
    assert len(ledger.active()) == 3, "nothing is undone by measuring"
    command = [sys.executable, "-m", "selfparam_jax.ledger", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([*command, "undo", first.id, "--measure"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    likelihoods = [[f"{value:.3f}" for value in line["log_likelihood"]] for line in earlier["contexts"]]
    assert [line[-2:] for line in lines if line[0].lstrip("*") in NAMES] == likelihoods
    assert f"undone: {first.id} (ada)" in done.stdout and "*ada" in done.stdout
    assert [entry.name for entry in ledger.active()] == ["bo", "cy"]
    assert f"{tmp_path / 'run' / 'merged'} is still the model before" in done.stdout
    written = tmp_path / "models" / "without-ada"
    done = subprocess.run([*command, "export", f"--out={written}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and f"{written}: W0 + 2 of 3 deltas" in done.stdout, done.stderr
    expected = merge_adapters(
        jobs.reopen(tmp_path / "run").base.params, ledger.adapters([e.id for e in ledger.active()])
    )
    found = hub.load_pretrained(str(written)).params
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-8, atol=1e-6)  # exported in bfloat16
    with pytest.raises(ValueError, match="is there already"):
        served.export_ledger(ledger, str(written))


def test_sequences_are_independent(config, tmp_path):
    config.sequential.length, config.sequential.sequences, config.limit = 1, 2, 0
    both = jobs.run_job(config, str(tmp_path / "both"))["sequential"]
    assert np.shape(both["f1"]["matrices"]) == (2, 2, 1)
    config.sequential.sequences = 1
    first = jobs.run_job(config, str(tmp_path / "first"))["sequential"]
    assert first["log_likelihood"]["matrices"][0] == both["log_likelihood"]["matrices"][0]
    assert both["log_likelihood"]["matrices"][0][0] != both["log_likelihood"]["matrices"][1][0], "other contexts"


def comparable(workdir):
    """All that must not depend on when a run was stopped."""
    results = files.read_json(workdir / "results.json")["sequential"]
    ledger = Ledger.open(workdir / "sequences" / "000" / "ledger")
    results.pop("seconds")
    return results, [dataclasses.asdict(entry) for entry in ledger.entries()], ledger.verify()


REMEDIES = {
    "none": {},
    "all": {
        "sequential.rehearsal_pairs": 1,
        "sequential.rehearsal_per_epoch": 1,
        "sequential.imagined_per_epoch": 1,
        "sequential.orthogonal": True,
        "sequential.teacher": "original",
    },
}
STOPS = ("inject", "keep_rehearsal", "examine", "imagine_pairs")


@pytest.mark.parametrize("remedies", REMEDIES)
def test_a_run_that_fails_at_every_step_ends_as_one_that_does_not(config, tmp_path, monkeypatch, remedies):
    config.update_from_flattened_dict(REMEDIES[remedies])
    jobs.run_job(config, str(tmp_path / "whole"))
    failed = []

    def failing(name, function, when):
        """Fails once per call before or after the real work."""
        seen = set()

        def call(*args, **named):
            made = function(*args, **named) if when == "after" else None
            place = len([entry for entry in failed if entry[0] == (name, when)])
            if place < 3 and (name, when, place) not in seen:
                seen.add((name, when, place))
                failed.append(((name, when), place))
                raise RuntimeError("killed")
            return made if when == "after" else function(*args, **named)

        return call

    for when in ("before", "after"):
        for name in STOPS:
            monkeypatch.setattr(sequential, name, failing(name, getattr(sequential, name), when))
        monkeypatch.setattr(Ledger, "append", failing("append", Ledger.append, when))
    for _ in range(60):
        try:
            jobs.run_job(config, str(tmp_path / "stopped"))
            break
        except RuntimeError:
            continue
    assert len(failed) >= (18 if remedies == "none" else 24)
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


CLIENT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from ml_collections import ConfigDict
from selfparam_jax import files, jobs
jobs.run_job(ConfigDict(files.read_json(sys.argv[1])), sys.argv[2])
"""


def test_a_process_that_is_killed_again_and_again(config, tmp_path):
    """SIGKILL at moments spread over the run, checkpoint writes included, and a SIGTERM, before which it saves."""
    config.sequential.update(rehearsal_pairs=1, rehearsal_per_epoch=1)
    config.export_dtype = ""
    config.train.update(epochs=24, pack=False)  # a dozen steps an injection
    jobs.run_job(config, str(tmp_path / "whole"))
    files.write_json(tmp_path / "config.json", config.to_dict())
    command = [sys.executable, "-c", CLIENT, str(tmp_path / "config.json"), str(tmp_path / "killed")]

    def kill_at(mark, number=signal.SIGKILL):
        """Starts the job and kills it as soon as a path like that is there; whether that path is left."""
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            # os.walk passes over what has just been renamed.
            found = (
                os.path.join(folder, name)
                for folder, folders, names in os.walk(tmp_path / "killed")
                for name in (*folders, *names)
            )
            if path := next((path for path in found if re.search(mark, path)), None):
                break
            time.sleep(0.002)
        assert process.poll() is None, f"it was over before {mark} was there"
        os.kill(process.pid, number)
        process.wait()
        return os.path.exists(path)

    # Inside the write of a checkpoint: what it is written to is still there under its temporary name.
    assert any(kill_at(r"injections/000/checkpoints/.*orbax-checkpoint-tmp") for _ in range(5))
    kill_at(r"ledger/.*[0-9a-f]{12}")
    kill_at("examinations/001.json")
    assert any(kill_at(r"injections/001/checkpoints/.*orbax-checkpoint-tmp") for _ in range(5))
    folder = tmp_path / "killed" / "sequences" / "000" / "injections" / "002"
    assert kill_at(r"injections/002/checkpoints/1$", signal.SIGTERM)
    assert "stopped and saved at step" in (tmp_path / "log").read_text()
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() == files.read_lines(folder / "metrics.jsonl")[-1]["step"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert comparable(tmp_path / "killed") == comparable(tmp_path / "whole")


# --- remedies ------------------------------------------------------------------------------------------


def spans(ledger):
    return [np.asarray(lora["layers"]["mlp"]["up_proj"]["a"]) for lora, _ in ledger.adapters()]


def test_orthogonal_adapters_read_nothing_of_the_earlier_ones(config, tmp_path):
    overlaps = {}
    for orthogonal in (False, True):
        config.sequential.orthogonal = orthogonal
        workdir = tmp_path / str(orthogonal)
        jobs.run_job(config, str(workdir))
        one, two, three = spans(Ledger.open(workdir / "sequences" / "000" / "ledger"))
        products = [np.einsum("ldr,lds->lrs", x, y) for x, y in ((one, two), (one, three), (two, three))]
        overlaps[orthogonal] = max(np.abs(product).max() for product in products)
        assert min(np.abs(one - two).max(), np.abs(two - three).max()) > 0.1, "each begins from another draw"
    assert overlaps[True] < 1e-5 and overlaps[False] > 1e-2


def test_rehearsal_goes_over_what_earlier_teachers_said(config, tmp_path):
    config.sequential.update(rehearsal_pairs=1, rehearsal_per_epoch=1, rehearsal_weight=0.5)
    jobs.run_job(config, str(tmp_path / "run"))
    folder = tmp_path / "run" / "sequences" / "000" / "injections"
    kept = [files.read_lines(folder / f"{n:03d}" / "rehearsal" / "sentences.jsonl") for n in range(3)]
    assert [len(lines) for lines in kept] == [1, 1, 1]
    asked = [[line["record"]["question"] for line in lines] for lines in kept]
    assert all(name in question for name, (question,) in zip(NAMES, asked, strict=True))
    again = [
        [
            line["question"]
            for line in files.read_lines(folder / f"{n:03d}" / "targets.jsonl")
            if line["kind"] == "rehearsal"
        ]
        for n in range(3)
    ]
    assert again == [[], asked[0], asked[0] + asked[1]]
    # The states are those of the model that taught then, with the context in view.
    found = rehearsal.read_rehearsal([folder / "000" / "rehearsal"], 0.5)
    run = jobs.prepare(config, str(tmp_path / "run"))
    sentences, first, signal = injection.read_teacher(run, run.contexts[:1], folder / "000")
    (index,) = [i for i, s in enumerate(sentences) if s.record.get("question") == asked[0][0]]
    slots = first[index] + np.arange(len(sentences[index].loss_tokens))
    np.testing.assert_array_equal(found.states, signal.take(slots))
    # And these are what the later injection compares with, behind those of its own sentences.
    earlier = injection.Earlier(rehearsal=found)
    more, slots, signal = injection.read_teacher(run, run.contexts[1:2], folder / "001", earlier)
    assert more[-1] == found.sentences[0] and len(more) == len(slots)
    states = signal.take(slots[-1] + np.arange(len(more[-1].loss_tokens)))
    np.testing.assert_array_equal(states, found.states)
    assert found.sentences[0].weights == tuple(0.5 * weight for weight in sentences[index].weights)
    assert found.sentences[0].supervision == tuple(0.5 * weight for weight in sentences[index].supervision)


def test_the_original_teacher_stays_the_same(config, tmp_path, monkeypatch):
    seen = []
    read = injection.teacher.teacher_store
    monkeypatch.setattr(
        injection.teacher,
        "teacher_store",
        lambda reader, *args, **named: seen.append(reader.identity) or read(reader, *args, **named),
    )
    jobs.run_job(config, str(tmp_path / "current"))
    config.sequential.teacher = "original"
    jobs.run_job(config, str(tmp_path / "original"))
    assert len(set(seen[:3])) == 3 and len({*seen[3:], seen[0]}) == 1


def test_imagined_pairs_are_read_by_the_model_as_it_stands(config, tmp_path, monkeypatch):
    """Whoever teaches the rest: the original knows nothing of what they are to keep."""
    monkeypatch.setattr(sequential, "imagine_pairs", lambda *args: [QAPair("Who?", "Ada"), QAPair("When?", "1742")])
    config.sequential.update(imagined_per_epoch=1, teacher="original", length=2)
    jobs.run_job(config, str(tmp_path / "run"))
    run = jobs.prepare(config, str(tmp_path / "run"))
    course = sequential.courses_of(run)[0]
    ledger = Ledger.open(course.directory / "ledger", run.base.fingerprint)
    before = sequential.current_model(run, ledger.adapters()[:1])
    now = dataclasses.replace(run, base=before)
    earlier = sequential.gather_earlier(now, run.base, course, 1, ledger)
    assert earlier.original is run.base and len(earlier.rehearsal.sentences) == 2
    read = sequential.read_without_context
    expected, other = (
        read(injection.teacher_reader(run, base), earlier.rehearsal.sentences) for base in (before, run.base)
    )
    np.testing.assert_array_equal(earlier.rehearsal.states, expected)
    assert np.abs(expected - other).max() > 1e-4
    kinds = [line["kind"] for line in files.read_lines(sequential.injection_directory(course, 1) / "targets.jsonl")]
    assert kinds.count("rehearsal") == 2


def test_no_rehearsal_with_an_online_teacher(config):
    config.train.teacher = "online"
    jobs.read_settings(config)
    config.sequential.imagined_per_epoch = 1
    with pytest.raises(ValueError, match="'online' with rehearsal or imagined pairs, expected 'stored'"):
        jobs.read_settings(config)


def test_imagined_pairs(tiny_model):
    """They are read out of what the model says; whatever it is, each is a sentence of its own without supervision."""
    prompt = Prompt("plain", tiny_model.tokenizer)
    config = injection.targets.TargetConfig(loss_tokens="answer", answer_supervision=0.5, qa_per_context=7)
    pairs = [QAPair("Who?", "Ada"), QAPair("When?", "1742"), QAPair("Why?", "rain")]
    made = rehearsal.imagined_sentences(pairs, prompt, config, 2, 2)
    assert [sentence.epochs for sentence in made] == [(0, 1), (0,), (1,)]
    assert all(s.kind == "rehearsal" and s.context is None and not any(s.supervision) for s in made)
    assert all(sum(s.weights) == len(prompt.answer(p.answer)) for s, p in zip(made, pairs, strict=True))
    with pytest.raises(ValueError, match="pairs can only be imagined in a text format"):
        chat = dataclasses.replace(prompt.format, chat=True)
        rehearsal.imagine_pairs(None, {}, type("P", (), {"format": chat})(), 1, 0)


def test_what_the_model_imagines_is_read(tiny_model, monkeypatch):
    prompt = Prompt("plain", tiny_model.tokenizer)
    said = [
        " Who made it?\nAnswer: Ana\nQuestion: What now?\nAnswer: no",
        " Who made it?\nAnswer: Ana\n",
        " hm",
        " When?\nAnswer: now\n",
    ]
    calls = []

    def generate(model, variables, prefix, rows, *args, **named):
        calls.append((prefix, rows, named["seed"]))
        return [list(prompt.encode(text)) for text in said]

    monkeypatch.setattr(rehearsal, "generate", generate)
    found = rehearsal.imagine_pairs(None, {}, prompt, 4, 9)
    assert found == [QAPair("Who made it?", "Ana"), QAPair("When?", "now")]
    assert calls == [(prompt.head, [prompt.encode("Question:")] * 4, 9)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequential.length": 4}, "1 sequences of 4 contexts need 4, but there are 3"),
        ({"sequential.length": 0}, "sequential.length = 0"),
        ({"sequential.teacher": "other"}, "sequential.teacher = 'other'"),
        ({"sequential.rehearsal_pairs": 2}, "expected both 0 or both more"),
        ({"sequential.rehearsal_weight": -1.0}, "rehearsal_weight = -1.0"),
    ],
)
def test_impossible_settings_are_refused(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        jobs.run_job(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_no_more_directions_than_there_are(config, tmp_path):
    config.lora.rank, config.sequential.orthogonal = 16, True
    with pytest.raises(ValueError, match="32 directions are to be kept free of 32"):
        jobs.run_job(config, str(tmp_path / "run"))


def test_the_basis_spans_what_the_adapters_read():
    rng = np.random.default_rng(0)
    adapters = [
        {"layers": {"mlp": {"up_proj": {"a": rng.standard_normal((2, 8, 2)), "b": np.zeros((2, 2, 3))}}}}
        for _ in range(2)
    ]
    basis = np.asarray(injection.trainer.orthonormal_basis(adapters, 6)["layers"]["mlp"]["up_proj"]["basis"])
    assert basis.shape == (2, 8, 6) and (basis[:, :, 4:] == 0).all()
    lora = jax.tree.map(
        np.asarray, {"layers": {"mlp": {"up_proj": {"a": rng.standard_normal((2, 8, 5)), "b": np.ones((2, 5, 3))}}}}
    )
    projected = injection.trainer.project_lora(lora, {"layers": {"mlp": {"up_proj": {"basis": basis}}}})
    for adapter in adapters:
        reads = adapter["layers"]["mlp"]["up_proj"]["a"]
        overlap = np.einsum("lds,ldr->lsr", reads, projected["layers"]["mlp"]["up_proj"]["a"])
        np.testing.assert_allclose(overlap, 0, atol=1e-5)
    twice = injection.trainer.project_lora(projected, {"layers": {"mlp": {"up_proj": {"basis": basis}}}})
    np.testing.assert_allclose(
        twice["layers"]["mlp"]["up_proj"]["a"], projected["layers"]["mlp"]["up_proj"]["a"], atol=1e-5
    )
    np.testing.assert_array_equal(projected["layers"]["mlp"]["up_proj"]["b"], 1)
