"""Plain fine-tuning: what it trains on, that it learns, and that it resumes."""

import contextlib

import numpy as np
import pytest
from job_inputs import DOCUMENTS, TEXTS, assert_same_adapter, flat_adapter

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.training.finetune import context_sentences, fine_tune, target_sentences
from selfparam_jax.training.inject import Hooks, Interrupted
from selfparam_jax.training.recipe import Recipe

RECIPE = Recipe(
    prompt="plain", epochs=3, batch_size=2, seq_len=64, unrelated_per_epoch=1, checkpoint_every=1, learning_rate=1e-2
)


def documents():
    return [
        Document(record["context"], "", record["id"], (), tuple(QAPair(**pair) for pair in record["qa_pairs"][:1]))
        for record in DOCUMENTS
    ]


@pytest.fixture(scope="module")
def prompt(tiny_model):
    return Prompt("plain", tiny_model.tokenizer, tiny_model.end_ids)


def test_contexts_are_cut_into_rows_and_every_token_is_supervised(prompt):
    document = Document("word " * 40, id="long")
    sentences = context_sentences([document], prompt, RECIPE)
    assert len(sentences) > 1
    assert [token for sentence in sentences for token in sentence.ids] == list(prompt.text(document.text))
    for sentence in sentences:
        assert len(prompt.start_ids) + len(sentence.ids) <= 64
        assert sentence.supervision == (1.0,) * len(sentence.ids) and not any(sentence.weights)


def test_target_sentences_are_those_of_an_injection_with_every_token_supervised(prompt):
    sentences = target_sentences(documents(), prompt, RECIPE, [record["text"] for record in TEXTS])
    assert [sentence.kind for sentence in sentences] == ["qa"] * 3 + ["unrelated"] * 3
    for sentence in sentences:
        assert set(sentence.supervision) == {1.0} and set(sentence.weights) == {0.0}


def test_the_loss_falls_and_a_stopped_run_resumes_to_the_same_adapter(tiny_model, prompt, tmp_path):
    sentences, losses = context_sentences(documents(), prompt, RECIPE), []
    whole = fine_tune(
        tiny_model, sentences, RECIPE, hooks=Hooks(on_step=lambda record: losses.append(record["loss"]))
    )
    assert whole.steps == len(losses) and losses[-1] < losses[0]
    assert np.isclose(losses[0], np.log(272), rtol=0.5)  # a next-token loss of a model that knows nothing
    seen = []
    stop = Hooks(on_step=seen.append, stop_requested=lambda first: contextlib.nullcontext(lambda: len(seen) >= 2))
    with pytest.raises(Interrupted, match=f"of {whole.steps}; the same command resumes"):
        fine_tune(tiny_model, sentences, RECIPE, tmp_path, stop)
    resumed = fine_tune(tiny_model, sentences, RECIPE, tmp_path)
    assert 0 < resumed.resumed_from < whole.steps
    assert_same_adapter(flat_adapter(resumed.lora), flat_adapter(whole.lora))
    again = fine_tune(tiny_model, sentences, RECIPE, tmp_path)  # finished: nothing is trained
    assert again.resumed_from == again.steps == whole.steps
    with pytest.raises(ValueError, match="holds another fine-tuning"):
        fine_tune(tiny_model, sentences[:-1], RECIPE, tmp_path)
