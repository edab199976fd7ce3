"""Job `single`: every document on its own, from the untouched base."""

import types

import pytest
from job_inputs import DOCUMENTS, assert_same_adapter, documents, newest_adapter, write

from selfparam_jax.distributed import files
from selfparam_jax.jobs import single
from selfparam_jax.jobs.ask import ask
from selfparam_jax.jobs.dry_run import dry_run
from selfparam_jax.jobs.run import run_job


def test_single_restores_the_base_between_documents(config, tmp_path):
    config.train.epochs = 2
    both = tmp_path / "single"
    config.job, config.context_ids = "single", ("doc-0", "doc-1")
    config.systems = ("base_q", "base_cq", "bank")
    results = run_job(config, both)
    assert set(results["spread"]) == {"f1_mean", "f1_std", "f1_min", "f1_max"}
    assert results["num_contexts"] == 2
    assert {line["context"] for line in files.read_lines(both / "metrics.jsonl")} == {"doc-0", "doc-1"}
    # Each question names its document, so the bank answers with the same adapter.
    assert results["scores"]["bank"] == results["scores"]["injected"]
    predicted = files.read_lines(both / "predictions.jsonl")
    assert [line["bank"] for line in predicted] == [line["injected"] for line in predicted]
    assert [each["name"] for each in results["systems"]] == ["base_q", "injected", "base_cq", "bank"]
    (answer,) = ask(both, [predicted[1]["question"]])
    assert (answer["document"], answer["injected"]) == (
        "doc-1",
        predicted[1]["bank"]["answer"],
    ) and "bank" not in answer
    alone = tmp_path / "alone"
    config.job, config.context_ids, config.systems = "batch", ("doc-1",), ("base_q", "base_cq")
    run_job(config, alone)
    (steps, adapter), (wanted_steps, wanted) = newest_adapter(both / "contexts" / "001"), newest_adapter(alone)
    assert steps == wanted_steps
    assert_same_adapter(adapter, wanted)


@pytest.mark.parametrize("job", ["single", "sequential"])
def test_a_document_without_anything_to_learn_is_named_before_training(config, tmp_path, job):
    """In job "batch" the others are learned; here it is an injection of its own."""
    given = [DOCUMENTS[0], {"id": "hm", "context": "Hm, well."}]
    config.job, config.contexts = job, str(write(tmp_path / "mixed.jsonl", given))
    config.sequential.length = 2
    config.targets.tails_per_context, config.generator.teacher_scores = 0, False
    for run in (lambda: list(dry_run(config, tmp_path / "run")), lambda: run_job(config, tmp_path / "run")):
        with pytest.raises(ValueError, match="could be made of the text of 'hm'; expected sentences"):
            run()
    assert not list((tmp_path / "run").rglob("checkpoints"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "got no 'measured', expected a JSON object with 'measured', 'answers'"),
        ("[]", "got a list, expected a JSON object with 'measured', 'answers'"),
        ('{"measured": {', "got malformed JSON"),
    ],
)
def test_what_an_injection_left_has_a_shape(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(single, "measure_systems", lambda _: {})
    job = types.SimpleNamespace(workdir=tmp_path, documents=documents(1))
    path = single.injection_directory(tmp_path, 0) / "injected.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=f"injected.json: {message}"):
        single.run_single(job, 0.0)
