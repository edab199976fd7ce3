"""Whole batch jobs on a tiny random model: what they write, that they resume, and that they stop in good order."""

import json
import pathlib
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import tiny
from extras import require
from job_inputs import assert_same_adapter, modified, newest_adapter
from safetensors.numpy import load_file

from selfparam_jax.distributed import files
from selfparam_jax.evaluation import questions
from selfparam_jax.jobs import batch, inputs
from selfparam_jax.jobs.ask import ask
from selfparam_jax.jobs.evaluation import answer_with_document
from selfparam_jax.jobs.run import run_job
from selfparam_jax.training import train_step, trainer
from selfparam_jax.training.checkpoints import Checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.pictures
def test_batch_writes_all_it_promises(config, tmp_path, monkeypatch, all_devices):
    workdir = tmp_path / "run"
    begins, ends, write, interval = [], [], batch.write_results, questions.bootstrap_interval
    monkeypatch.setattr(
        batch, "write_results", lambda job, began, *rest: (begins.append(began), write(job, began, *rest))[1]
    )
    monkeypatch.setattr(
        questions, "bootstrap_interval", lambda groups: (interval(groups), ends.append(time.perf_counter()))[0]
    )
    returned = run_job(config, workdir)
    results = files.read_json(workdir / "results.json")
    assert results == json.loads(json.dumps(returned))
    assert (results["job"], results["num_contexts"], results["num_questions"]) == ("batch", 3, 3)
    assert results["prompt"] == "plain"
    assert [(each["name"], each["role"]) for each in results["systems"]] == [
        ("base_q", "lower bound"),
        ("injected", "candidate"),
        ("base_cq", "upper bound"),
    ]
    for system in ("base_q", "base_cq", "injected"):
        assert set(results["scores"][system]) == {"f1", "em", "contains", "f1_paper", "f1_ci95"}
    assert {"perplexity_before", "perplexity_after", "kl"} <= set(results["drift"])
    assert results["drift"]["kl"] > 0
    assert results["timing"]["total_s"] > ends[-1] - begins[0], "the intervals of the scores are counted"
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

    before = modified(workdir)
    assert run_job(config, workdir) == returned
    assert modified(workdir) == before, "a finished run is left alone"


def test_the_merged_model_is_base_plus_delta_and_transformers_loads_it(config, model_dir, tmp_path):
    transformers, torch = require("transformers"), require("torch")
    config.export_dtype = "float32"
    workdir = tmp_path / "run"
    run_job(config, workdir)
    before, after = load_file(model_dir / "model.safetensors"), load_file(workdir / "merged" / "model.safetensors")
    _, lora = newest_adapter(workdir)
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


def test_an_export_is_kept_if_it_is_the_same_and_refused_if_not(config, tmp_path):
    """A job that was stopped after its export writes none again; in place of another's it writes nothing at all."""
    config.train.epochs, config.eval.general = 1, ""
    workdir = tmp_path / "run"
    run_job(config, workdir)
    (workdir / "results.json").unlink()
    before = modified(workdir / "merged")
    assert before and run_job(config, workdir)["steps"]
    assert modified(workdir / "merged") == before
    weights = workdir / "merged" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"merged/model\.safetensors is missing or not as .*; delete"):
        run_job(config, workdir)  # although the job is complete
    weights.write_bytes(whole)
    assert run_job(config, workdir)["steps"]
    (workdir / "results.json").unlink()
    other = tmp_path / "other"
    config.seed = 1
    run_job(config, other)
    (workdir / "merged").rename(tmp_path / "moved")
    (other / "merged").rename(workdir / "merged")
    before = modified(workdir / "merged")
    config.seed = 0
    with pytest.raises(ValueError, match="merged"):
        run_job(config, workdir)
    assert modified(workdir / "merged") == before and not (workdir / "results.json").exists()
    (workdir / "merged").rename(tmp_path / "gone")
    (workdir / "merged").mkdir()
    (workdir / "merged" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="merged"):
        run_job(config, workdir)
    assert [path.name for path in (workdir / "merged").iterdir()] == ["thesis.txt"]


def start(config, workdir):
    """The job in a process of its own."""
    (workdir.parent / "config_of_test.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    line = ["selfparam_jax.main", f"--config={workdir.parent / 'config_of_test.py'}", f"--workdir={workdir}"]
    return processes.start(line, workdir.with_suffix(".log"))


def wait_for_step(process, workdir, step):
    """Waits until metrics.jsonl has a line of that step."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        lines = files.read_lines(workdir / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        assert process.poll() is None, workdir.with_suffix(".log").read_text()
        time.sleep(0.005)
    raise AssertionError(f"step {step} was not reached")


def test_killed_and_interrupted_runs_end_as_the_uninterrupted(config, tmp_path):
    config.train.epochs = 48
    config.train.checkpoint_every = 2
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_job(config, whole)

    process = start(config, broken)
    wait_for_step(process, broken, 5)
    process.kill()
    process.wait()
    with Checkpoints(broken / "checkpoints") as checkpoints:
        killed_at = checkpoints.latest()
    assert killed_at is not None and 2 <= killed_at < newest_adapter(whole)[0]

    process = start(config, broken)
    wait_for_step(process, broken, killed_at + 5)
    process.send_signal(signal.SIGINT)
    code, log = process.wait(), broken.with_suffix(".log").read_text()
    assert code == 130, log
    assert "stopped and saved at step" in log
    stopped_at = newest_adapter(broken)[0]
    assert killed_at + 5 <= stopped_at < newest_adapter(whole)[0]
    assert not (broken / "results.json").exists()

    results = run_job(config, broken)
    assert results["resumed_from"] == stopped_at
    (steps, adapter), (wanted_steps, wanted) = newest_adapter(broken), newest_adapter(whole)
    assert steps == wanted_steps
    assert_same_adapter(adapter, wanted)
    metrics = [files.read_lines(path / "metrics.jsonl") for path in (broken, whole)]
    assert [line["step"] for line in metrics[0]] == [line["step"] for line in metrics[1]]
    np.testing.assert_array_equal(*([line["loss"] for line in lines] for lines in metrics))


def test_a_job_runs_in_a_thread(config, tmp_path):
    """Signals reach the main thread alone, so in another one no handler is installed."""
    config.train.epochs, config.eval.general, config.export_dtype = 1, "", ""
    # With no unrelated text the length of one plays no part.
    config.targets.update(unrelated_per_epoch=0, unrelated_tokens=256)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    found = []
    thread = threading.Thread(target=lambda: found.append(run_job(config, tmp_path / "run")))
    thread.start()
    thread.join()
    assert found and found[0]["steps"] > 0 and found[0]["drift"]["kl"] is None
    kinds = {line["kind"] for line in files.read_lines(tmp_path / "run" / "targets.jsonl")}
    assert kinds == {"qa", "tail"}
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_nan_stops_with_the_step_and_keeps_the_last_good_checkpoint(config, tmp_path, monkeypatch):
    config.train.checkpoint_every = 2
    compile_step = train_step.compile_step

    def poisoned(*args, **kwargs):
        step = compile_step(*args, **kwargs)

        def run(state, params, batch, key):
            if int(state.step) + 1 == 4:  # what an infinity in the teacher's states would do
                poison = jnp.full_like(batch.signal.teacher, jnp.inf)
                batch = batch.replace(signal=batch.signal.replace(teacher=poison))
            return step(state, params, batch, key)

        return run

    monkeypatch.setattr(train_step, "compile_step", poisoned)
    with pytest.raises(trainer.NotFiniteError, match="nan at step 4"):
        run_job(config, tmp_path / "run")
    step, lora = newest_adapter(tmp_path / "run")
    assert step == 2
    assert all(np.isfinite(leaf).all() for leaf in lora.values())
    monkeypatch.undo()
    assert run_job(config, tmp_path / "run")["resumed_from"] == 2


def test_the_untouched_base_is_the_teacher_that_pairs_agree_with(config, tmp_path, monkeypatch):
    """It answers with the document in the prompt, as many questions at a time as the settings say."""
    config.eval.batch_size, config.targets.agreement = 4, "keep"
    job = inputs.prepare(config, tmp_path / "run")
    asked = []
    from selfparam_jax.baselines import base_cq

    monkeypatch.setattr(base_cq, "answer_questions", lambda *given: asked.append(given) or [])
    answer_with_document(job, job.documents)
    ((decoder, variables, prompt, documents, with_document, batch_size),) = asked
    assert decoder.lora_scale == job.model.decoder().lora_scale and list(variables) == ["params"]
    assert variables["params"] is job.model.params and documents is job.documents
    assert (prompt, with_document, batch_size) == (job.prompt, True, 4)


def test_a_base_in_8_bits(config, model_dir, tmp_path):
    require("qwix")
    config.base_weights, config.export_dtype = "int8", "float32"
    results = run_job(config, tmp_path / "eight")
    assert set(results["scores"]) == {"base_q", "base_cq", "injected"}
    _, factors = newest_adapter(tmp_path / "eight")
    # The adapter is merged into the base as the checkpoint has it, not into the rounded one.
    before, after = load_file(model_dir / "model.safetensors"), load_file(tmp_path / "eight/merged/model.safetensors")
    scale = config.lora.alpha / config.lora.rank
    a, b = (factors[f"['layers']['mlp']['gate_proj']['{name}']"][0] for name in "ab")
    name = "model.layers.0.mlp.gate_proj.weight"
    np.testing.assert_allclose(after[name], before[name] + scale * (a @ b).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after["model.norm.weight"], before["model.norm.weight"])
    assert len(ask(tmp_path / "eight", ["Who founded Ava?"])) == 1

    config.base_weights = "float"
    with pytest.raises(ValueError, match="base_weights"):
        run_job(config, tmp_path / "eight")


def test_a_job_is_split_over_all_devices(config, tmp_path, all_devices):
    job = inputs.prepare(config, tmp_path / "run")
    assert job.model.mesh.size == jax.device_count() == 8
