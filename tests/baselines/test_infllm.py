"""InfLLM as a system: all documents are one text, which is read once, and what it keeps is counted."""

import dataclasses

import pytest
import tiny

from selfparam_jax.baselines.infllm import SYSTEM, InfLLMOptions
from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.questions import answer_with_texts
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.models.registry import model_config_from_hf

DOCUMENTS = [
    Document("Aro is a town in the north.", "Aro", "a", (Question("Where is Aro?", ("north",)),)),
    Document("Belu is a lake.", "Belu", "b", (Question("What is Belu?", ("a lake",)), Question("Who?", ("12",)))),
]
SMALL = InfLLMOptions(initial_tokens=4, local_tokens=24, block_tokens=4, representatives=2, chunk_tokens=8, blocks=2)
WIDE = dataclasses.replace(SMALL, local_tokens=256)


def setup_of(model, options):
    return Setup(model, Prompt("plain", model.tokenizer, model.end_ids), options=options)


def test_a_text_that_fits_is_answered_as_the_base_does_with_all_documents_before_the_question(tiny_model):
    setup = setup_of(tiny_model, WIDE)
    system = SYSTEM.make(setup)
    system.prepare(DOCUMENTS)
    whole = "Aro is a town in the north.\n\nBelu is a lake."
    texts = [[whole], [whole, whole]]
    given = tiny_model.decoder(), {"params": tiny_model.params}, setup.prompt, DOCUMENTS
    expected = answer_with_texts(*given, texts)
    assert system.answer(DOCUMENTS) == expected
    assert system.answer(DOCUMENTS[1:]) == expected[1:], "asked again, the text is as it was"
    # The test can fail: without the first document the answers are others.
    assert answer_with_texts(*given, [[DOCUMENTS[0].text], [DOCUMENTS[1].text] * 2]) != expected
    system.prepare(DOCUMENTS[:1])
    assert system.answer(DOCUMENTS[:1]) == answer_with_texts(*given[:3], DOCUMENTS[:1], [[DOCUMENTS[0].text]])


def test_a_text_longer_than_the_window(random_params):
    hf_config = tiny.hf_config("gqa", max_position_embeddings=128)
    config = model_config_from_hf(hf_config)
    model = Model("tiny", config, random_params(config), tiny.tokenizer(), hf_config, "tiny")
    long = [dataclasses.replace(each, text=" ".join([each.text] * 10)) for each in DOCUMENTS]
    system = SYSTEM.make(setup_of(model, SMALL))
    system.prepare(long)
    cost, answers = system.cost(), system.answer(long)
    prompt = system.setup.prompt
    length = len(prompt.context_prefix("\n\n".join(each.text for each in long)))
    assert cost["tokens"] == length > 128
    asked = [len(prompt.question(question.question)) for each in long for question in each.questions]
    assert [answer["tokens"] for group in answers for answer in group] == [length + each for each in asked]
    # Three layers, 2 heads of keys and of values, 8 numbers each, float32; 4 query heads.
    slots, blocks = 4 + 24 + 3 + 8, (length - 4 - 24) // 4
    assert cost["device_bytes"] == 3 * slots * (2 * 2 * 8 + 4) * 4
    assert cost["host_bytes"] == 3 * blocks * (4 * 2 * 2 * 8 + 4 * 8) * 4
    assert cost["storage_bytes"] == cost["device_bytes"] + cost["host_bytes"]
    assert cost["extra_parameters"] == 0


def test_the_entry(tiny_model):
    assert SYSTEMS["infllm"] is SYSTEM and SYSTEM.label == "InfLLM" and not SYSTEM.trained
    assert SYSTEM.unavailable(setup_of(tiny_model, SMALL)) == ""
    assert "local_tokens = 4096 is more than the model reads" in SYSTEM.unavailable(setup_of(tiny_model, None))
    hf_config = tiny.hf_config("mistral", max_position_embeddings=1024)
    windowed = dataclasses.replace(tiny_model, config=model_config_from_hf(hf_config))
    assert "sliding_window = 5" in SYSTEM.unavailable(setup_of(windowed, SMALL))
    with pytest.raises(ValueError, match="sliding_window = 5"):
        SYSTEM.make(setup_of(windowed, SMALL))
