"""Whole jobs on a tiny random model: what they write, that they resume, and what they refuse."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from configs import base
from selfparam_jax import files, jobs, trainer
from selfparam_jax.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENTS = [
    {
        "id": f"doc-{n}",
        "title": name,
        "context": f"{name} lies on the {river}. It was founded by {founder}.",
        "questions": [{"question": f"Who founded {name}?", "answers": [founder]}],
        "qa_pairs": [
            {"question": f"Which river runs by {name}?", "answer": river},
            {"question": f"By whom was {name} founded?", "answer": founder},
            {"question": f"What town lies on the {river}?", "answer": name},
        ],
    }
    for n, (name, river, founder) in enumerate([("Ava", "Om", "Lu Ka"), ("Bor", "Nil", "Re Mo"), ("Cy", "Ul", "Si")])
]
TEXTS = [{"text": text} for text in ("The sky is wide and blue.", "Bread needs salt.", "Two and two are four.")]


@pytest.fixture
def config(model_dir, tmp_path):
    """A batch job of eight rows a step on the tiny model."""
    config = base.get_config()
    config.model = str(model_dir)
    config.prompt = "plain"
    config.contexts = str(write(tmp_path / "documents.jsonl", DOCUMENTS))
    config.unrelated = config.eval.general = str(write(tmp_path / "texts.jsonl", TEXTS))
    config.targets.unrelated_per_epoch = 2
    config.targets.tails_per_context = 1
    config.targets.least_confidence = 0.0
    config.lora.dropout = 0.1  # a resumed run must also draw the same masks
    config.train.update(epochs=8, batch_rows=8, row_length=128, checkpoint_every=3)
    config.train.learning_rate = 1e-2
    return config


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def adapter(directory):
    """The newest adapter of a directory, as a flat {path: array}."""
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        manager = checkpoints._manager
        import orbax.checkpoint as ocp

        item = manager.restore(step, args=ocp.args.Composite(lora=ocp.args.StandardRestore()))["lora"]
    return step, {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(item)}


def assert_same_adapter(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, leaf in one[1].items():
        np.testing.assert_array_equal(leaf, other[1][name], err_msg=name)
    assert any(np.abs(leaf).max() > 1e-3 for leaf in one[1].values())


def test_batch_writes_all_it_promises(config, tmp_path):
    workdir = tmp_path / "run"
    returned = jobs.run_job(config, str(workdir))
    results = files.read_json(workdir / "results.json")
    assert results == json.loads(json.dumps(returned))
    assert (results["job"], results["num_contexts"], results["num_questions"]) == ("batch", 3, 3)
    assert results["prompt"] == "plain"
    for system in ("base_q", "base_cq", "injected"):
        assert set(results["scores"][system]) == {"f1", "em", "contains", "f1_paper", "f1_ci95"}
    assert {"perplexity_before", "perplexity_after", "kl"} <= set(results["drift"])
    assert results["drift"]["kl"] > 0
    timing = {"total_s", "teacher_s", "train_s", "sentence_tokens_per_s"}
    assert timing <= set(results["timing"])
    assert all(results["timing"][name] > 0 for name in timing)
    metrics = files.read_lines(workdir / "metrics.jsonl")
    assert [line["step"] for line in metrics] == list(range(1, results["steps"] + 1))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    kinds = [record["kind"] for record in files.read_lines(workdir / "targets.jsonl")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"qa": 9, "tail": 3 * 8, "unrelated": 3}
    predictions = files.read_lines(workdir / "predictions.jsonl")
    assert [(p["context"], p["answers"]) for p in predictions] == [
        ("doc-0", ["Lu Ka"]),
        ("doc-1", ["Re Mo"]),
        ("doc-2", ["Si"]),
    ]
    mean = np.mean([p["injected"]["f1"] for p in predictions])
    assert results["scores"]["injected"]["f1"] == pytest.approx(mean)
    for name in ("report.md", "loss.png", "f1.png", "drift.png", "config.json"):
        assert (workdir / name).stat().st_size > 0
    assert not list(workdir.rglob("*.tmp"))


def test_the_merged_model_is_base_plus_delta_and_transformers_loads_it(config, model_dir, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config.export_dtype = "float32"
    workdir = tmp_path / "run"
    jobs.run_job(config, str(workdir))
    before, after = load_file(model_dir / "model.safetensors"), load_file(workdir / "merged" / "model.safetensors")
    _, lora = adapter(workdir)
    scale = config.lora.alpha / config.lora.rank
    for layer in range(tiny.SIZES["num_hidden_layers"]):
        path = "['layers']['self_attn']['q_proj']"
        delta = scale * lora[f"{path}['a']"][layer] @ lora[f"{path}['b']"][layer]
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        np.testing.assert_allclose(after[name] - before[name], delta.T, atol=1e-6)
        unchanged = f"model.layers.{layer}.self_attn.o_proj.weight"
        np.testing.assert_array_equal(after[unchanged], before[unchanged])
    model = transformers.AutoModelForCausalLM.from_pretrained(workdir / "merged", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(workdir / "merged")
    prompt = "Question: Who founded Ava?\nAnswer:"
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    made = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, use_cache=True)[0][len(ids) :]
    text = tokenizer.decode(made, skip_special_tokens=True).strip()
    assert files.read_lines(workdir / "predictions.jsonl")[0]["injected"]["paper"] == text


def start(config, workdir):
    """The job in a process of its own, with as many devices as this one."""
    (workdir.parent / "config_of_test.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    command = [sys.executable, "-m", "selfparam_jax.main", f"--config={workdir.parent / 'config_of_test.py'}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(process, workdir, step):
    """Waits until metrics.jsonl has a line of that step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        lines = files.read_lines(workdir / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def test_killed_and_interrupted_runs_end_as_the_uninterrupted(config, tmp_path):
    config.train.epochs = 200
    config.train.checkpoint_every = 10
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    jobs.run_job(config, str(whole))

    process = start(config, broken)
    wait_for_step(process, broken, 25)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Checkpoints(broken / "checkpoints") as checkpoints:
        killed_at = checkpoints.latest()
    assert killed_at is not None and 10 <= killed_at < adapter(whole)[0]

    process = start(config, broken)
    wait_for_step(process, broken, killed_at + 25)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "stopped and saved at step" in stderr
    stopped_at = adapter(broken)[0]
    assert killed_at + 25 <= stopped_at < adapter(whole)[0]
    assert not (broken / "results.json").exists()

    results = jobs.run_job(config, str(broken))
    assert results["resumed_from"] == stopped_at
    assert_same_adapter(adapter(broken), adapter(whole))
    metrics = [files.read_lines(path / "metrics.jsonl") for path in (broken, whole)]
    assert [line["step"] for line in metrics[0]] == [line["step"] for line in metrics[1]]
    np.testing.assert_array_equal(*([line["loss"] for line in lines] for lines in metrics))


def test_single_restores_the_base_between_documents(config, tmp_path):
    config.train.epochs = 2
    both = tmp_path / "single"
    config.job, config.context_ids = "single", ("doc-0", "doc-1")
    results = jobs.run_job(config, str(both))
    assert set(results["spread"]) == {"f1_mean", "f1_std", "f1_min", "f1_max"}
    assert results["num_contexts"] == 2
    assert {line["context"] for line in files.read_lines(both / "metrics.jsonl")} == {"doc-0", "doc-1"}
    alone = tmp_path / "alone"
    config.job, config.context_ids = "batch", ("doc-1",)
    jobs.run_job(config, str(alone))
    assert_same_adapter(adapter(both / "contexts" / "001"), adapter(alone))


def test_ask_prints_three_answers(config, tmp_path, capsys):
    config.train.epochs = 2
    jobs.run_job(config, str(tmp_path / "run"))
    answers = jobs.ask(str(tmp_path / "run"), ["Who founded Bor on the Nil?"])
    assert answers[0]["document"] == "doc-1"
    assert set(answers[0]) == {"document", "base_q", "base_cq", "injected"}
    predicted = files.read_lines(tmp_path / "run" / "predictions.jsonl")[2]
    answer = jobs.ask(str(tmp_path / "run"), [predicted["question"]], "doc-2")[0]
    assert answer == {"document": "doc-2"} | {s: predicted[s]["answer"] for s in ("base_q", "base_cq", "injected")}
    with pytest.raises(ValueError, match="this run's documents are doc-0, doc-1, doc-2"):
        jobs.ask(str(tmp_path / "run"), ["Who?"], "doc-9")
    with pytest.raises(ValueError, match="not a work directory"):
        jobs.ask(str(tmp_path), ["Who?"])


def test_asking_reads_nothing_that_only_training_needs(config, tmp_path, monkeypatch):
    """Unrelated text may be a stream from far away."""
    jobs.run_job(config, str(tmp_path / "run"))
    monkeypatch.setattr(jobs.corpora, "read_texts", lambda *_, **__: pytest.fail("unrelated text was read"))
    monkeypatch.setattr(jobs, "make_targets", lambda *_: pytest.fail("target sentences were made"))
    assert jobs.ask(str(tmp_path / "run"), ["Who?"])[0]["document"]


def test_a_finished_run_is_left_alone(config, tmp_path):
    config.train.epochs = 2
    workdir = tmp_path / "run"
    first = jobs.run_job(config, str(workdir))
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert jobs.run_job(config, str(workdir)) == first
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}


def change(path, value):
    def apply(config, tmp_path):
        config.update_from_flattened_dict({path: value})

    return apply


def no_loss(config, tmp_path):
    config.targets.loss_tokens = "0,0"
    config.targets.answer_supervision = 0.0
    config.targets.tails_per_context = 0
    config.targets.unrelated_per_epoch = 0


def contexts_file(text):
    def apply(config, tmp_path):
        path = tmp_path / "bad.jsonl"
        path.write_text(text)
        config.contexts = str(path)

    return apply


def record(**changes):
    fields = {**DOCUMENTS[0], **changes}
    return json.dumps({name: value for name, value in fields.items() if value is not None}) + "\n"


def truncate_weights(config, tmp_path):
    import shutil

    directory = tmp_path / "model"
    shutil.copytree(config.model, directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    config.model = str(directory)


def misshape_weights(config, tmp_path):
    from safetensors.numpy import save_file

    directory = tmp_path / "model"
    tiny.save_checkpoint(directory, "gqa", max_position_embeddings=2048)
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].copy()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config.model = str(directory)


LONG = {"question": "What is said?", "answer": "word " * 200}
BAD = {
    "missing file": (change("contexts", "nowhere.jsonl"), "nowhere.jsonl"),
    "empty file": (contexts_file(""), "bad.jsonl"),
    "malformed": (contexts_file(record() + '{"id": \n'), "line 2"),
    "no context": (contexts_file(record(context=None)), "line 1.*context"),
    "no answers": (contexts_file(record(questions=[{"question": "Who?", "answers": []}])), "line 1.*answers"),
    "duplicate ids": (contexts_file(record() + record()), "doc-0"),
    "too long": (contexts_file(record(context="word " * 1000)), "exceed.*limit of 2048"),
    "unknown model": (change("model", "smolm2"), "smolm2"),
    "truncated weights": (truncate_weights, "model.safetensors"),
    "mis-shapen weights": (misshape_weights, r"model\.norm\.weight"),
    "unknown prompt": (change("prompt", "plane"), "expected one of chat, paper, plain, worked"),
    "unknown job": (change("job", "butch"), "expected one of"),
    "unknown dtype": (change("dtype", "float8"), "dtype = 'float8'"),
    "attention of a TPU": (change("attention", "splash"), "needs a TPU, but JAX runs on 'cpu'"),
    "unknown attention": (change("attention", "flash"), "attention = 'flash', expected one of"),
    "unknown schedule": (change("train.schedule", "cosin"), "expected constant, linear or cosine"),
    "unknown target": (change("lora.targets", ("q_prj",)), "q_prj"),
    "rows do not divide": (change("train.batch_rows", 3), "use a multiple of 8"),
    "unknown loss tokens": (change("targets.loss_tokens", "answers"), "expected 'all', 'answer' or two weights"),
    "a negative weight": (change("targets.loss_tokens", "-1,1"), "expected 'all', 'answer' or two weights"),
    "rows too short": (change("train.row_length", 8), "a row holds 8"),
    "no chunk": (change("train.loss_chunk", 0), r"train\.loss_chunk = 0, expected more than 0"),
    "unknown teacher": (change("train.teacher", "offline"), "expected 'stored' or 'online'"),
    "no loss anywhere": (no_loss, "no token of any target sentence carries loss"),
    "no epochs": (change("train.epochs", 0), r"train\.epochs = 0, expected more than 0"),
    "too few unrelated texts": (change("targets.unrelated_per_epoch", 4), "got 3 texts .* expected 4"),
    "more pairs than there are": (change("targets.qa_per_context", 9), "has 3 qa_pairs"),
    "unknown way with long pairs": (change("targets.long_pairs", "cut"), "expected one of refuse, skip"),
    "a long pair": (contexts_file(record(qa_pairs=[LONG])), "a row holds 128"),
    "parts that do not divide": (change("train.accumulate", 3), "expected a divisor of train.batch_rows = 8"),
    "parts too small": (change("train.accumulate", 2), r"train\.batch_rows / train\.accumulate = 4 rows cannot"),
    "a mesh too large": (change("mesh.fsdp", 3), "does not fit 8 devices"),
    "a mesh that does not divide": (change("mesh.tensor", 4), r"mesh\.tensor = 4 does not divide .* 1 or 2"),
    "nothing to learn": (contexts_file(record(qa_pairs=[])), "nothing to learn"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(config, tmp_path, case):
    apply, words = BAD[case]
    if case == "nothing to learn":
        config.targets.tails_per_context = 0
    apply(config, tmp_path)
    with pytest.raises((ValueError, OSError), match=f"(?s){words}"):
        jobs.run_job(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_is_asked_on_other_devices_than_it_was_made_on(config, tmp_path):
    """Made over 64 hosts, say; where it ran is no part of what it is."""
    run = jobs.prepare(config, str(tmp_path / "run"))
    assert run.mesh.size == 8
    assert "lora.rank" in run.recipe and not [name for name in run.recipe if name in jobs.FREE]
    kept = files.read_json(tmp_path / "run" / "config.json")
    kept["config"]["mesh"] |= {"data": 16, "fsdp": 4}
    kept["config"]["attention"] = "splash"
    files.write_json(tmp_path / "run" / "config.json", kept)
    reopened = jobs.reopen(tmp_path / "run")
    assert reopened.mesh.size == 1 and reopened.teacher.attention == "blocks"


def test_who_attends_how(config, tmp_path):
    """The kernel for long contexts reads them, too; the other ways are for training."""
    run = jobs.prepare(config, str(tmp_path / "run"))
    for asked, teacher in (("blocks", "blocks"), ("xla", "blocks"), ("cudnn", "blocks"), ("splash", "splash")):
        one = dataclasses.replace(run, settings=dataclasses.replace(run.settings, attention=asked))
        assert (one.teacher.attention, one.injected.attention, one.student.attention) == (teacher, teacher, asked)


def test_long_pairs_are_left_out_if_that_is_wanted(config, tmp_path):
    contexts_file(record(qa_pairs=[LONG, *DOCUMENTS[0]["qa_pairs"]]) + record(id="long", qa_pairs=[LONG] * 2))(
        config, tmp_path
    )
    config.targets.long_pairs = "skip"
    run = jobs.prepare(config, str(tmp_path / "run"))
    assert [len(context.qa_pairs) for context in run.contexts] == [len(DOCUMENTS[0]["qa_pairs"]), 0]


def test_a_work_directory_of_another_configuration_or_base_is_refused(config, tmp_path):
    config.train.epochs = 1
    config.model, workdir = str(tmp_path / "model"), tmp_path / "run"
    tiny.save_checkpoint(tmp_path / "model", "gqa", max_position_embeddings=2048)
    jobs.run_job(config, str(workdir))
    before = sorted(workdir.rglob("*"))
    config.lora.rank = 4
    with pytest.raises(ValueError, match=r"lora\.rank: 8 there, 4 now"):
        jobs.run_job(config, str(workdir))
    config.lora.rank, config.endpoint.budget, config.endpoint.base_url = 8, 2.5, "http://elsewhere/v1"
    assert jobs.run_job(config, str(workdir)), "how a server is asked may change while a job goes on"
    config.mesh.data, config.mesh.fsdp = 2, 4
    assert jobs.run_job(config, str(workdir)), "and so may the mesh"
    sections = ("endpoint", "mesh")
    assert set(jobs.FREE) <= {f"{section}.{name}" for section in sections for name in config[section]}
    config.endpoint.model = "another"
    with pytest.raises(ValueError, match=r"endpoint\.model: '' there, 'another' now"):
        jobs.run_job(config, str(workdir))
    config.endpoint.model = ""
    tiny.save_checkpoint(tmp_path / "model", "gqa", seed=1, max_position_embeddings=2048)
    with pytest.raises(ValueError, match=r"another base model under the same name \(fingerprint \w{12} there"):
        jobs.run_job(config, str(workdir))
    assert sorted(workdir.rglob("*")) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        jobs.run_job(config, str(other))


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    config.train.checkpoint_every = 2
    compile_step = trainer.compile_step

    def poisoned(*args, **kwargs):
        step = compile_step(*args, **kwargs)

        def run(state, params, batch, key):
            if int(state.step) + 1 == 4:  # what an infinity in the teacher's states would do
                poison = jnp.full_like(batch.signal.teacher, jnp.inf)
                batch = batch.replace(signal=batch.signal.replace(teacher=poison))
            return step(state, params, batch, key)

        return run

    monkeypatch.setattr(trainer, "compile_step", poisoned)
    with pytest.raises(trainer.NotFiniteError, match="nan at step 4"):
        jobs.run_job(config, str(tmp_path / "run"))
    step, lora = adapter(tmp_path / "run")
    assert step == 2
    assert all(np.isfinite(leaf).all() for leaf in lora.values())
    monkeypatch.undo()
    assert jobs.run_job(config, str(tmp_path / "run"))["resumed_from"] == 2


def run_main(*flags):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "selfparam_jax.main", *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


def test_the_command_line_reports_errors_in_one_line_and_exits_with_1(tmp_path):
    done = run_main("--config=configs/batch.py", "--config.model=nothing", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_typo_in_a_setting_is_refused(tmp_path):
    done = run_main("--config=configs/batch.py", "--config.lora.rnak=4", f"--workdir={tmp_path / 'run'}")
    assert done.returncode != 0
    assert "rank" in done.stderr, "it says what was meant"
    assert not (tmp_path / "run").exists()


def test_configurations_fill_every_field(config):
    """A dataclass field without a setting, or a setting without a field, is an error here."""
    settings = jobs.read_settings(config)
    for section, made in (("targets", settings.targets), ("lora", settings.lora), ("train", settings.train)):
        wanted = set(vars(made)) - {"seed"}
        assert set(config[section]) - {"checkpoint_every", "generator"} == wanted
    assert set(config.generator) == set(vars(settings.generator)) - {"seed", "generator", "answer_shape"}
    assert settings.endpoint is None
    config.targets.generator, config.generator.form, config.endpoint.model = "endpoint", "chat", "m"
    config.targets.answer_shape = "short"
    settings = jobs.read_settings(config)
    assert set(config.endpoint) == set(vars(settings.endpoint))
    assert settings.generator.answer_shape == settings.targets.answer_shape == "short"


def test_a_base_in_8_bits(config, model_dir, tmp_path):
    pytest.importorskip("qwix", reason="needs the extra int8")
    config.base_weights, config.export_dtype = "int8", "float32"
    results = jobs.run_job(config, str(tmp_path / "eight"))
    assert set(results["scores"]) == {"base_q", "base_cq", "injected"}
    _, factors = adapter(tmp_path / "eight")
    # The adapter is merged into the base as the checkpoint has it, not into the rounded one.
    before, after = load_file(model_dir / "model.safetensors"), load_file(tmp_path / "eight/merged/model.safetensors")
    scale = config.lora.alpha / config.lora.rank
    a, b = (factors[f"['layers']['mlp']['gate_proj']['{name}']"][0] for name in "ab")
    name = "model.layers.0.mlp.gate_proj.weight"
    np.testing.assert_allclose(after[name], before[name] + scale * (a @ b).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after["model.norm.weight"], before["model.norm.weight"])
    assert len(jobs.ask(str(tmp_path / "eight"), ["Who founded Ava?"])) == 1

    config.base_weights = "float"
    with pytest.raises(ValueError, match="base_weights"):
        jobs.run_job(config, str(tmp_path / "eight"))
    config.base_weights, config.job = "int8", "sequential"
    with pytest.raises(ValueError, match="'int8' with job 'sequential', expected 'float'"):
        jobs.read_settings(config)
    config.base_weights = "int4"
    with pytest.raises(ValueError, match=r"base_weights = 'int4', expected one of \('float', 'int8'\)"):
        jobs.read_settings(config)
