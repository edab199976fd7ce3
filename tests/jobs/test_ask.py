"""Questions to a work directory: every system's answer, from the files of the run alone."""

import pytest

from selfparam_jax.data import corpora
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.questions import check_question
from selfparam_jax.evaluation.reach import Asker
from selfparam_jax.jobs import ask as asking
from selfparam_jax.jobs import inputs
from selfparam_jax.jobs.ask import ANSWER_TOKENS, ask
from selfparam_jax.jobs.inputs import reopen
from selfparam_jax.jobs.run import run_job


def test_ask_gives_the_answer_of_every_system(config, tmp_path, monkeypatch):
    config.train.epochs = 2
    run_job(config, tmp_path / "run")
    # Unrelated text may be a stream from far away, and only training needs it.
    monkeypatch.setattr(corpora, "read_texts", lambda *_, **__: pytest.fail("unrelated text was read"))
    monkeypatch.setattr(inputs, "recipe_targets", lambda *_, **__: pytest.fail("target sentences were made"))
    answers = ask(tmp_path / "run", ["Who founded Bor on the Nil?"])
    assert answers[0]["document"] == "doc-1"
    assert set(answers[0]) == {"document", "base_q", "base_cq", "injected"}
    predicted = files.read_lines(tmp_path / "run" / "predictions.jsonl")[2]
    answer = ask(tmp_path / "run", [predicted["question"]], "doc-2", form="reading")[0]
    assert answer == {"document": "doc-2"} | {s: predicted[s]["answer"] for s in ("base_q", "base_cq", "injected")}
    assert ask(tmp_path / "run", [predicted["question"]], "doc-2")[0] == answer  # as it was trained
    # As servers ask: through the chat template; the bare question on request.
    model = reopen(tmp_path / "run").model
    asked = [(predicted["question"], None)]
    by_chat = ask(tmp_path / "run", [predicted["question"]], "doc-2", "chat")[0]
    base = Asker(model.decoder(), {"params": model.params}, Prompt("plain", model.tokenizer, model.end_ids))
    assert by_chat["base_q"] == base.ask(asked, "chat", ANSWER_TOKENS)[0] != answer["base_q"]
    assert by_chat["injected"] != by_chat["base_q"] != by_chat["base_cq"]
    assert ask(tmp_path / "run", [predicted["question"]], "doc-2", "bare")[0]["base_q"] == base.ask(asked, "bare")[0]
    with pytest.raises(ValueError, match="this run; its documents are doc-0, doc-1, doc-2"):
        ask(tmp_path / "run", ["Who?"], "doc-9")
    with pytest.raises(ValueError, match="not a work directory"):
        ask(tmp_path, ["Who?"])


def test_half_of_a_character_is_no_question():
    with pytest.raises(ValueError, match="question: got half of a character"):
        check_question("Who\udcff?")


def test_a_question_that_cannot_be_answered_is_refused_before_any_is(config, tmp_path, monkeypatch):
    inputs.prepare(config, tmp_path / "run")
    monkeypatch.setattr(asking, "injected_model", lambda *_: pytest.fail("a model is asked"))
    for form, before, most in (("reading", 1, 24), ("chat", 1, 64), ("bare", 0, 24)):
        with pytest.raises(
            ValueError, match=rf"the question has \d+ tokens, {before} are read before it \(prompt fo"
        ) as e:
            ask(tmp_path / "run", ["Who?", "word " * 5000], form=form)
        assert f"may take {most}, but the model reads at most 2048" in str(e.value)
    # Alone it fits, with the document it does not.
    size = 2048 - 24 - len("Question: \nAnswer:") - 1
    with pytest.raises(ValueError, match="prompt format and document 'doc-1'"):
        ask(tmp_path / "run", ["x" * size], "doc-1", form="reading")
    monkeypatch.setattr(asking, "reopen", lambda _: pytest.fail("the model is loaded"))
    for blank in ("", " \n"):
        with pytest.raises(ValueError, match="got an empty question, expected words"):
            ask(tmp_path / "run", ["Who?", blank])


def test_asking_before_anything_is_trained(config, tmp_path):
    inputs.prepare(config, tmp_path / "run")
    with pytest.raises(
        ValueError, match="has no checkpoints: nothing was trained yet, or they were deleted; run the job"
    ):
        ask(tmp_path / "run", ["Who?"])


def test_a_run_whose_documents_have_changed_is_not_asked(config, tmp_path):
    inputs.prepare(config, tmp_path / "run")
    path = tmp_path / "documents.jsonl"
    path.write_text(path.read_text().replace("lies on the Nil", "lies on the Om"))
    with pytest.raises(ValueError, match="document 'doc-1' has changed"):
        ask(tmp_path / "run", ["Who?"])
