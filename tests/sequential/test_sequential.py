"""Job sequential: the matrix, the ledger behind it, the remedies, and runs that are killed."""

import dataclasses
import json
import os
import re
import signal
import time

import jax
import numpy as np
import processes
import pytest
import tiny
from selfparam_jax.configs import base

from selfparam_jax.baselines import base_cq, base_q
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.peft import load_adapter
from selfparam_jax.checkpoints.round_trip import read_logits
from selfparam_jax.data.documents import QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import backend, files
from selfparam_jax.jobs import ledger_model
from selfparam_jax.jobs.ask import ask
from selfparam_jax.jobs.export import export_workdir
from selfparam_jax.jobs.inputs import prepare, read_unrelated, reopen
from selfparam_jax.jobs.run import run_job
from selfparam_jax.jobs.sequential import sequence_setup, sequences_of
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.models.lora import compose_lora, merge_adapters
from selfparam_jax.sequential import replay
from selfparam_jax.sequential import sequence as sequences
from selfparam_jax.sequential.ledger import Ledger, write_composed
from selfparam_jax.sequential.summary import summarize_matrix, summarize_sequences
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.training import inject as injection
from selfparam_jax.training import train_step
from selfparam_jax.training.checkpoints import Checkpoints

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
    config.train.update(epochs=2, batch_size=8, seq_len=96, checkpoint_every=1)
    return config


def test_what_a_matrix_says():
    matrix = np.asarray([[0.95, 0.1, 0.2], [0.8, 0.1, 0.2], [0.9, 0.6, 0.3], [0.4, 0.5, 0.7]])
    found = summarize_matrix(matrix)
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
    alone = summarize_matrix(np.asarray([[0.0], [0.0]]))
    assert alone["retention"] is None and alone["forgetting"] == alone["backward_transfer"] == 0.0


def test_documents_without_questions_count_in_no_mean():
    whole = np.asarray([[0.1, 0.2], [0.6, 0.3], [0.6, 0.3], [0.5, 0.7]])
    with_gap = np.insert(whole, 1, np.nan, axis=1)
    found, without = summarize_matrix(with_gap), summarize_matrix(whole[[0, 1, 3]])
    names = ("just_injected", "final", "retention", "forgetting", "backward_transfer")
    assert {name: found[name] for name in names} == pytest.approx({name: without[name] for name in names})
    assert found["curves"]["just_injected"] == [None, 0.6, None, 0.7]
    assert found["curves"]["not_yet"] == [pytest.approx(0.15), 0.3, 0.3, None]
    unknown = summarize_matrix(np.full((2, 1), np.nan))
    assert unknown["final"] is unknown["retention"] is None and unknown["curves"]["not_yet"] == [None, None]
    rows = [{"f1": [0.5, None], "log_likelihood": [None, None], "drift": {"perplexity_after": 1.0, "kl": 0.0}}] * 3
    made = summarize_sequences([{"rows": rows, "entries": [], "notes": [{"seconds": 1.0}] * 2}])
    assert made["f1"]["matrices"] == [[[0.5, None]] * 3] and json.dumps(made, allow_nan=False)
    assert sequences._means({"f1": [0.5, None]}, 0) == "not yet 0.500"


def test_every_finished_sequence_is_reported_at_once(config, tmp_path, monkeypatch):
    config.sequential.update(length=1, sequences=2)
    run_sequence = sequences.run_sequence

    def stopped(setup, sequence):
        if sequence.number:
            raise KeyboardInterrupt
        return run_sequence(setup, sequence)

    monkeypatch.setattr(sequences, "run_sequence", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_job(config, tmp_path / "run")
    assert "1 sequence of 1 document" in (tmp_path / "run" / "sequential.md").read_text()
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.pictures
def test_a_whole_run(config, tmp_path, all_devices, monkeypatch):
    workdir = tmp_path / "run"
    config.sequential.fresh_texts = True
    evaluate_model, programs = sequences.evaluate_model, []

    def counted(*given):
        programs.append(backend.prepare(None).programs)
        return evaluate_model(*given)

    with monkeypatch.context() as counting:
        counting.setattr(sequences, "evaluate_model", counted)
        results = run_job(config, workdir)
    assert 0 < programs[0] < programs[1] and programs[2] == programs[3], "the third injection compiles nothing"
    found = results["sequential"]
    assert np.shape(found["f1"]["matrices"]) == np.shape(found["log_likelihood"]["matrices"]) == (1, 4, 3)
    ledger = Ledger.open(workdir / "sequences" / "000" / "ledger")
    assert [entry.name for entry in ledger.active()] == list(NAMES) and ledger.verify() == []
    assert found["entries"] == [[entry.id for entry in ledger.active()]]
    # The matrix is what the merged models give when they are asked again.
    job = prepare(config, workdir)
    setup, base = sequence_setup(job), job.model
    for done in range(4):
        adapters = ledger.adapters()[:done]
        params = merge_adapters(base.params, adapters) if adapters else base.params
        again = sequences.evaluate_model(setup, dataclasses.replace(base, params=params), job.documents)
        assert again["log_likelihood"] == found["log_likelihood"]["matrices"][0][done]
    likelihood = np.asarray(found["log_likelihood"]["matrices"][0])
    assert (np.diff(likelihood, axis=0) != 0).all(), "every injection changes every answer's likelihood"
    kinds = [line["kind"] for line in files.read_lines(workdir / "targets.jsonl")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"qa": 6, "unrelated": 6}
    texts = {line["text"] for line in files.read_lines(workdir / "targets.jsonl") if line["kind"] == "unrelated"}
    assert len(texts) > 2, "every injection draws two of all that are there"
    config.sequential.fresh_texts = False
    assert len(read_unrelated(read_settings(config))) == 2, "else all have the same two"
    assert found["perplexity_after"][0][0] == pytest.approx(results["drift"]["perplexity_before"])
    assert results["scores"]["injected"]["f1"] == pytest.approx(np.mean(found["f1"]["matrices"][0][-1]))
    text = (workdir / "sequential.md").read_text()
    assert "1 sequence of 3 documents" in text and "backward transfer" in text
    for picture in ("matrix.png", "curves.png", "f1.png"):
        assert (workdir / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # An evaluation that is missing is made again, of the model that it was then.
    sequence = sequences_of(job)[0]
    path = sequence.directory / "evaluations" / "001.json"
    path.unlink()
    sequences.run_sequence(setup, sequence)
    assert files.read_json(path)["log_likelihood"] == likelihood[1].tolist()
    # Exported is the base with all deltas, rounded once.
    merged = merge_adapters(base.params, ledger.adapters())
    wanted = np.asarray(merged["layers"]["mlp"]["up_proj"]["kernel"][0].T.astype("bfloat16"))
    from safetensors import safe_open

    with safe_open(workdir / "merged" / "model.safetensors", "flax") as file:
        assert (np.asarray(file.get_tensor("model.layers.0.mlp.up_proj.weight")) == wanted).all()


def test_asking_a_finished_or_a_running_sequence(config, tmp_path, monkeypatch):
    config.sequential.update(length=1, sequences=2)
    with monkeypatch.context() as stopped:
        stopped.setattr(sequences, "evaluate_model", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            run_job(config, tmp_path / "run")
    with pytest.raises(ValueError, match="has no"):
        ask(tmp_path / "run", ["What does ada own?"])
    run_job(config, tmp_path / "run")
    asked = []
    for system in (base_q, base_cq):

        def answer(model, variables, *rest, function=system.answer_questions):
            asked.append(np.asarray(variables["params"]["layers"]["mlp"]["up_proj"]["kernel"]))
            return function(model, variables, *rest)

        monkeypatch.setattr(system, "answer_questions", answer)
    found = ask(tmp_path / "run", ["What does bo own?"])
    assert found[0]["document"] == "bo"
    alone, learned, with_document = asked
    ledger = Ledger.open(tmp_path / "run" / "sequences" / "001" / "ledger")
    base = reopen(tmp_path / "run").model.params
    merged = merge_adapters(base, ledger.adapters())["layers"]["mlp"]["up_proj"]["kernel"]
    assert (learned == np.asarray(merged)).all() and (learned != alone).any()
    np.testing.assert_array_equal(alone, base["layers"]["mlp"]["up_proj"]["kernel"])
    np.testing.assert_array_equal(with_document, alone)


def test_what_an_undo_would_change(config, tmp_path):
    run_job(config, tmp_path / "run")
    ledger = Ledger.open(tmp_path / "run" / "sequences" / "000" / "ledger")
    rows = files.read_json(tmp_path / "run" / "results.json")["sequential"]["log_likelihood"]["matrices"][0]
    first, _, last = ledger.entries()
    found = ledger_model.measure_undo(ledger, last.id[:6])
    assert found["undone"] == "cy"
    assert [line["context"] for line in found["contexts"]] == list(NAMES)
    assert [line["log_likelihood"] for line in found["contexts"]] == [
        list(pair) for pair in zip(rows[3], rows[2], strict=True)
    ]
    earlier = ledger_model.measure_undo(ledger, first.id)
    assert [line["log_likelihood"][0] for line in earlier["contexts"]] == rows[3]
    assert all(line["log_likelihood"][0] != line["log_likelihood"][1] for line in earlier["contexts"])
    assert earlier["kl"][0] == found["kl"][0] != earlier["kl"][1]
    assert len(ledger.active()) == 3, "nothing is undone by measuring"
    command = ["selfparam_jax.commands.cli", "ledger", tmp_path / "run"]
    done = processes.run([*command, "undo", first.id, "--measure"])
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    likelihoods = [[f"{value:.3f}" for value in line["log_likelihood"]] for line in earlier["contexts"]]
    assert [line[-2:] for line in lines if line[0].lstrip("*") in NAMES] == likelihoods
    assert f"undone: {first.id} (ada)" in done.stdout and "*ada" in done.stdout
    assert [entry.name for entry in ledger.active()] == ["bo", "cy"]
    assert f"{tmp_path / 'run' / 'merged'} is still the model before" in done.stdout
    written = tmp_path / "models" / "without-ada"
    done = processes.run([*command, "export", f"--out={written}"])
    assert done.returncode == 0 and f"{written}: W0 + 2 of 3 deltas" in done.stdout, done.stderr
    active = [entry.id for entry in ledger.active()]
    expected = merge_adapters(reopen(tmp_path / "run").model.params, ledger.adapters(active))
    found = load_model(str(written)).params
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2**-8, atol=1e-6)  # exported in bfloat16
    with pytest.raises(ValueError, match="is there already"):
        ledger_model.export_ledger(ledger, str(written))
    check_exports(ledger, tmp_path, config.model)


def check_exports(ledger, folder, base):
    """A ledger with an entry undone, and an adapter composed of two entries, in every format, with a card."""
    active = {entry.name: entry.context_digest for entry in ledger.active()}
    model, ids = load_model(base), tiny.token_ids(20)
    chosen = [entry.id for entry in ledger.entries()][1:]
    write_composed(folder / "composed", ledger, chosen)
    expected = read_logits(model, ids, compose_lora(ledger.adapters(chosen)))
    for form, dtype in (("hf", "float32"), ("peft", None), ("gguf", "float16")):
        for name in ("ledger", "composed"):
            out = folder / f"{name}-{form}"
            if (name, form) == ("ledger", "hf"):  # by the command above
                continue
            if name == "ledger":
                found = ledger_model.export_ledger(ledger, out, form, dtype)
            else:
                found = export_workdir(folder / name, form, out, dtype, base)
            assert found["selfparam_jax"]["max_token_kl"] < (2e-2 if form == "gguf" else 1e-6)
            card, record = (out / "README.md").read_text(), "selfparam.json" if form == "peft" else "export.json"
            assert files.read_json(out / record)["found"]["round_trip"] == found
            assert "## Round trip" in card and "| ada |" not in card
            listed = active if name == "ledger" else {f"entry {id}": id for id in chosen}
            assert all(f"| {title} | `{digest[:16]}` |" in card for title, digest in listed.items())
            if form == "peft":
                lora, scale, record = load_adapter(out, model)
                logits = read_logits(model, ids, lora, scale)
                assert set(record["extra"]["documents"]) == set(listed)
            else:
                logits = read_logits(load_model(next(out.glob("*.gguf")) if form == "gguf" else out), ids)
            np.testing.assert_allclose(logits, expected, atol=0.05 if form == "gguf" else 1e-4)


def test_sequences_are_independent(config, tmp_path):
    config.sequential.length, config.sequential.sequences, config.limit = 1, 2, 0
    both = run_job(config, tmp_path / "both")["sequential"]
    assert np.shape(both["f1"]["matrices"]) == (2, 2, 1)
    config.sequential.sequences = 1
    first = run_job(config, tmp_path / "first")["sequential"]
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
        "sequential.replay_pairs": 1,
        "sequential.replay_per_epoch": 1,
        "sequential.self_generated_per_epoch": 1,
        "sequential.orthogonal": True,
        "sequential.teacher": "original",
    },
}
STOPS = ("inject", "keep_replay", "evaluate_model", "generate_replay_pairs")


@pytest.mark.parametrize("remedies", REMEDIES)
def test_a_run_that_fails_at_every_step_ends_as_one_that_does_not(config, tmp_path, monkeypatch, remedies):
    config.update_from_flattened_dict(REMEDIES[remedies])
    run_job(config, tmp_path / "whole")
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
            monkeypatch.setattr(sequences, name, failing(name, getattr(sequences, name), when))
        monkeypatch.setattr(Ledger, "append", failing("append", Ledger.append, when))
    for _ in range(60):
        try:
            run_job(config, tmp_path / "stopped")
            break
        except RuntimeError:
            continue
    assert len(failed) >= (18 if remedies == "none" else 24)
    assert comparable(tmp_path / "stopped") == comparable(tmp_path / "whole")


def test_a_process_that_is_killed_again_and_again(config, tmp_path):
    """SIGKILL at moments spread over the run, checkpoint writes included, and a SIGTERM, before which it saves."""
    config.sequential.update(replay_pairs=1, replay_per_epoch=1)
    config.export_dtype = ""
    config.train.update(epochs=24, pack=False)  # a dozen steps an injection
    run_job(config, tmp_path / "whole")
    (tmp_path / "config_of_test.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    line = ["selfparam_jax.main", f"--config={tmp_path / 'config_of_test.py'}", f"--workdir={tmp_path / 'killed'}"]

    def kill_at(mark, number=signal.SIGKILL):
        """Starts the job and kills it as soon as a path like that is there; whether that path is left."""
        process = processes.start(line, tmp_path / "log")
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
            time.sleep(0.005)
        assert process.poll() is None, f"it was over before {mark} was there"
        os.kill(process.pid, number)
        process.wait()
        return os.path.exists(path)

    # Inside the write of a checkpoint: what it is written to is still there under its temporary name.
    assert any(kill_at(r"injections/000/checkpoints/.*orbax-checkpoint-tmp") for _ in range(5))
    kill_at(r"ledger/.*[0-9a-f]{12}")
    kill_at("evaluations/001.json")
    assert any(kill_at(r"injections/001/checkpoints/.*orbax-checkpoint-tmp") for _ in range(5))
    folder = tmp_path / "killed" / "sequences" / "000" / "injections" / "002"
    assert kill_at(r"injections/002/checkpoints/1$", signal.SIGTERM)
    assert "stopped and saved at step" in (tmp_path / "log").read_text()
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert checkpoints.latest() == files.read_lines(folder / "metrics.jsonl")[-1]["step"]
    done = processes.run(line)
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
        run_job(config, workdir)
        one, two, three = spans(Ledger.open(workdir / "sequences" / "000" / "ledger"))
        products = [np.einsum("ldr,lds->lrs", x, y) for x, y in ((one, two), (one, three), (two, three))]
        overlaps[orthogonal] = max(np.abs(product).max() for product in products)
        assert min(np.abs(one - two).max(), np.abs(two - three).max()) > 0.1, "each begins from another draw"
    assert overlaps[True] < 1e-5 and overlaps[False] > 1e-2


def test_replay_goes_over_what_earlier_teachers_said(config, tmp_path):
    config.sequential.update(replay_pairs=1, replay_per_epoch=1, replay_weight=0.5)
    run_job(config, tmp_path / "run")
    folder = tmp_path / "run" / "sequences" / "000" / "injections"
    kept = [files.read_lines(folder / f"{n:03d}" / "replay" / "sentences.jsonl") for n in range(3)]
    assert [len(lines) for lines in kept] == [1, 1, 1]
    asked = [[line["record"]["question"] for line in lines] for lines in kept]
    assert all(name in question for name, (question,) in zip(NAMES, asked, strict=True))
    again = [
        [
            line["question"]
            for line in files.read_lines(folder / f"{n:03d}" / "targets.jsonl")
            if line["kind"] == "replay"
        ]
        for n in range(3)
    ]
    assert again == [[], asked[0], asked[0] + asked[1]]
    # The states are those of the model that taught then, with the document in the prompt.
    found = replay.read_replay([folder / "000" / "replay"], 0.5)
    job = prepare(config, tmp_path / "run")

    def read(documents, directory, *continual):
        given = job.model, job.prompt, documents, job.recipe, job.unrelated, directory
        return injection.read_teacher(*given, *continual)

    sentences, first, signal = read(job.documents[:1], folder / "000")
    (index,) = [i for i, s in enumerate(sentences) if s.record.get("question") == asked[0][0]]
    slots = first[index] + np.arange(len(sentences[index].loss_tokens))
    np.testing.assert_array_equal(found.states, signal.take(slots))
    # And these are what the later injection compares with, behind those of its own sentences.
    earlier = injection.ContinualState(replay=found)
    more, slots, signal = read(job.documents[1:2], folder / "001", earlier)
    assert more[-1] == found.sentences[0] and len(more) == len(slots)
    states = signal.take(slots[-1] + np.arange(len(more[-1].loss_tokens)))
    np.testing.assert_array_equal(states, found.states)
    assert found.sentences[0].weights == tuple(0.5 * weight for weight in sentences[index].weights)
    assert found.sentences[0].supervision == tuple(0.5 * weight for weight in sentences[index].supervision)


def test_the_original_teacher_stays_the_same(config, tmp_path, monkeypatch):
    seen = []
    read = injection.teacher_store
    monkeypatch.setattr(
        injection,
        "teacher_store",
        lambda reader, *args, **named: seen.append(reader.identity) or read(reader, *args, **named),
    )
    run_job(config, tmp_path / "current")
    config.sequential.teacher = "original"
    run_job(config, tmp_path / "original")
    assert len(set(seen[:3])) == 3 and len({*seen[3:], seen[0]}) == 1


def test_self_generated_pairs_are_read_by_the_model_that_they_keep_unchanged(config, tmp_path, monkeypatch):
    """Whoever teaches the rest: the original knows nothing of what they are to keep."""
    monkeypatch.setattr(
        sequences, "generate_replay_pairs", lambda *args: [QAPair("Who?", "Ada"), QAPair("When?", "1742")]
    )
    config.sequential.update(self_generated_per_epoch=1, teacher="original", length=2)
    run_job(config, tmp_path / "run")
    job = prepare(config, tmp_path / "run")
    setup, sequence, base = sequence_setup(job), sequences_of(job)[0], job.model
    ledger = sequence.ledger(base)
    now = sequences.current_model(base, ledger.adapters()[:1])
    continual = sequences.gather_continual_state(setup, now, job.recipe, sequence, 1, ledger)
    assert continual.original is base and len(continual.replay.sentences) == 2
    read = sequences.read_without_context
    expected, other = (
        read(injection.teacher_reader(model, job.prompt, job.recipe), continual.replay.sentences)
        for model in (now, base)
    )
    np.testing.assert_array_equal(continual.replay.states, expected)
    assert np.abs(expected - other).max() > 1e-4
    kinds = [line["kind"] for line in files.read_lines(sequence.injection_directory(1) / "targets.jsonl")]
    assert kinds.count("replay") == 2


def test_no_replay_with_an_online_teacher(config):
    config.train.teacher = "online"
    read_settings(config)
    config.sequential.self_generated_per_epoch = 1
    with pytest.raises(ValueError, match="'online' with replay or self-generated pairs, expected 'stored'"):
        read_settings(config)


def test_self_generated_pairs(tiny_model):
    """They are read out of what the model says; whatever it is, each is a sentence of its own without supervision."""
    prompt = Prompt("plain", tiny_model.tokenizer)
    config = TargetConfig(loss_tokens="answer", answer_supervision=0.5, qa_per_context=7)
    pairs = [QAPair("Who?", "Ada"), QAPair("When?", "1742"), QAPair("Why?", "rain")]
    made = replay.self_generated_sentences(pairs, prompt, config, 2, 2)
    assert [sentence.epochs for sentence in made] == [(0, 1), (0,), (1,)]
    assert all(s.kind == "replay" and s.context is None and not any(s.supervision) for s in made)
    assert all(sum(s.weights) == len(prompt.answer(p.answer)) for s, p in zip(made, pairs, strict=True))
    with pytest.raises(ValueError, match="pairs can be generated in a text format only"):
        chat = dataclasses.replace(prompt.format, chat=True)
        replay.generate_replay_pairs(None, {}, type("P", (), {"format": chat})(), 1, 0)


def test_what_the_model_generates_is_read(tiny_model, monkeypatch):
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

    monkeypatch.setattr(replay, "generate", generate)
    found = replay.generate_replay_pairs(None, {}, prompt, 4, 9)
    assert found == [QAPair("Who made it?", "Ana"), QAPair("When?", "now")]
    assert calls == [(prompt.start_ids, [prompt.encode("Question:")] * 4, 9)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequential.length": 4}, "1 sequences of 4 contexts need 4, but there are 3"),
        ({"sequential.length": -1}, r"sequential.length = -1, expected 0 \(all documents\) or a whole number"),
        ({"sequential.length": 0, "sequential.sequences": 2}, "3 documents cannot be shared evenly among 2"),
        ({"sequential.teacher": "other"}, "sequential.teacher = 'other'"),
        ({"sequential.replay_pairs": 2}, "expected both 0 or both more"),
        ({"sequential.replay_weight": -1.0}, "replay_weight = -1.0"),
    ],
)
def test_impossible_settings_are_refused(config, tmp_path, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        run_job(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_more_directions_than_there_are(config, tmp_path):
    config.lora.rank, config.sequential.orthogonal = 16, True
    with pytest.raises(ValueError, match="32 directions are to be kept free of 32"):
        run_job(config, tmp_path / "run")


def test_the_basis_spans_what_the_adapters_read():
    rng = np.random.default_rng(0)
    adapters = [
        {"layers": {"mlp": {"up_proj": {"a": rng.standard_normal((2, 8, 2)), "b": np.zeros((2, 2, 3))}}}}
        for _ in range(2)
    ]
    basis = np.asarray(train_step.orthonormal_basis(adapters, 6)["layers"]["mlp"]["up_proj"]["basis"])
    assert basis.shape == (2, 8, 6) and (basis[:, :, 4:] == 0).all()
    lora = jax.tree.map(
        np.asarray, {"layers": {"mlp": {"up_proj": {"a": rng.standard_normal((2, 8, 5)), "b": np.ones((2, 5, 3))}}}}
    )
    projected = train_step.project_lora(lora, {"layers": {"mlp": {"up_proj": {"basis": basis}}}})
    for adapter in adapters:
        reads = adapter["layers"]["mlp"]["up_proj"]["a"]
        overlap = np.einsum("lds,ldr->lsr", reads, projected["layers"]["mlp"]["up_proj"]["a"])
        np.testing.assert_allclose(overlap, 0, atol=1e-5)
    twice = train_step.project_lora(projected, {"layers": {"mlp": {"up_proj": {"basis": basis}}}})
    np.testing.assert_allclose(
        twice["layers"]["mlp"]["up_proj"]["a"], projected["layers"]["mlp"]["up_proj"]["a"], atol=1e-5
    )
    np.testing.assert_array_equal(projected["layers"]["mlp"]["up_proj"]["b"], 1)
