"""Our model in lm-evaluation-harness gives the numbers of the harness's own `hf` model."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import need, require
from harness_tasks import write_tasks

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.inference.decoding import NotFiniteLogits

lm_eval, instance, tasks = need("lm_eval"), need("lm_eval.api.instance"), need("lm_eval.tasks")
harness = need("selfparam_jax.evaluation.harness")

LENGTH = 64  # all that the tiny model reads
LONG = "The river and the town of the thing in the land and another 12 the and. " * 4


def instances(kind, arguments):
    return [instance.Instance(kind, {}, each, 0) for each in arguments]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("harness") / "model"
    tiny.save_checkpoint(directory, "gqa", max_position_embeddings=LENGTH)
    return directory


@pytest.fixture(scope="module")
def ours(checkpoint):
    return harness.HarnessModel(load_model(checkpoint), batch_size=4)


@pytest.fixture(scope="module")
def theirs(checkpoint):
    require("torch")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4)


def test_lengths_and_special_tokens_are_theirs(ours, theirs):
    for name in ("max_length", "prefix_token_id", "eot_token_id", "max_gen_toks", "tokenizer_name"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.max_length == LENGTH


def test_likelihoods_are_theirs(ours, theirs):
    asked = instances(
        "loglikelihood",
        [
            ("", "the town"),
            ("a town", " the river"),
            ("the river ", "Om"),  # the space belongs to the continuation
            (LONG, " and Om"),  # cut off on the left
            ("<s>the", " and"),  # begins with BOS itself
            ("12", "12"),  # one token of both together
            ("a town", " and the land"),
        ],
    )
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_weights_that_overflow_have_no_likelihood(checkpoint):
    model = load_model(checkpoint)
    weight = jnp.full_like(model.params["norm"]["weight"], 3e38)
    huge = harness.HarnessModel(dataclasses.replace(model, params={**model.params, "norm": {"weight": weight}}))
    with pytest.raises(NotFiniteLogits, match=r"^model 'model' gives logits that are not finite"):
        huge.loglikelihood(instances("loglikelihood", [("", "the town")]))


def test_the_likeliest_of_all_tokens_is_the_greedy_one(ours):
    context = ours.tok_encode("Om the")
    found = ours._loglikelihood_tokens([(None, context, [token]) for token in range(tiny.SIZES["vocab_size"])])
    scores = np.array([score for score, _ in found])
    assert [token for token, (_, greedy) in enumerate(found) if greedy] == [scores.argmax()]
    assert np.exp(scores).sum() == pytest.approx(1.0, abs=1e-4)


def test_whole_texts_are_read_in_their_windows(ours, theirs):
    asked = instances("loglikelihood_rolling", [(LONG,), ("the town",), ("Om",)])
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours.loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-2)


def test_answers_are_theirs(ours, theirs):
    asked = [
        ("the river", {"until": ["t"], "max_gen_toks": 12}),
        (LONG, {"until": ["t"], "max_gen_toks": 12}),  # cut off on the left
        ("<s>a", {"until": "\n\n", "max_gen_toks": 20}),
        ("Om the", {"until": ["an", "\n\n"], "max_gen_toks": 30, "do_sample": False}),
        ("zz", {"until": ["</s>"], "max_gen_toks": 20, "temperature": 0.0}),
        *[(text, {"until": ["N"], "max_gen_toks": 25}) for text in ("one", "two", "three four", "five six seven")],
    ]
    found = ours.generate_until(instances("generate_until", asked))
    assert found == theirs.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert len(set(found)) > 5


@pytest.mark.parametrize("generation", [True, False])
def test_conversations_are_theirs(ours, theirs, generation):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    turns = turns[:1] if generation else turns
    assert ours.apply_chat_template(turns, generation) == theirs.apply_chat_template(turns, generation)


def test_what_cannot_be_asked_is_refused(ours):
    for given, message in (
        ({"num_beams": 4, "max_gen_toks": 8}, "sets num_beams"),
        ({"max_gen_toks": LENGTH}, "asks for 64 new tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.generate_until(instances("generate_until", [("a", given)]))
    with pytest.raises(ValueError, match="continuation has"):
        ours.loglikelihood(instances("loglikelihood", [("a", LONG)]))


def test_tasks_have_their_scores(ours, theirs, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_tasks(tmp_path)
    scores = []
    for model in (ours, theirs):
        manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
        names = ["local_choice", "local_answer"]
        found = lm_eval.simple_evaluate(
            model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False
        )
        scores.append({(task, name): value for task, row in found["results"].items() for name, value in row.items()})
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():  # the Brier score averages probabilities of float32
        assert value == (pytest.approx(scores[1][name], rel=1e-6) if "brier_score,none" in name else scores[1][name])
    assert 0 < scores[0]["local_choice", "acc,none"] < 1 and scores[0]["local_answer", "chrf,none"] > 0
