"""Retrieval before a question: which passages, in which order, what counts as a hit, and what does not fit."""

import dataclasses

import jax
import pytest

from selfparam_jax.baselines._retrieved import RetrievalOptions
from selfparam_jax.baselines.bm25 import SYSTEM
from selfparam_jax.baselines.selfparam_bm25 import SYSTEM as BOTH
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.passages import Passage
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.questions import answer_with_texts
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.reports.systems import hits_cell

RIVER, FOUNDER = "Ava lies on the wide river Om.", "Ava was founded by Lu Ka in the year 1204."
DOCUMENTS = [
    Document(f"{RIVER}\n\n{FOUNDER}", "Ava", "ava", (Question("Who founded Ava?", ("Lu Ka",)),)),
    Document("Bor has a mill.", "Bor", "bor", (Question("What has Bor?", ("a mill",)), Question("Zzz?", ("x",)))),
]


def setup_for(model, **changes):
    options = RetrievalOptions(**({"passages": 2, "passage_tokens": 64} | changes))
    return Setup(model, Prompt("plain", model.tokenizer, model.end_ids), 4, options=options)


def test_passages_and_their_order(tiny_model):
    system = SYSTEM.make(setup_for(tiny_model))
    system.prepare(DOCUMENTS)
    assert system.sources == ["ava", "ava", "bor"]
    assert [RIVER in text for text in system.texts] == [True, False, False]
    assert system.retrieve("Who founded Ava?")[0] == 1
    assert system.retrieve("What has Bor?")[0] == 2
    size = sum(len(text.encode()) for text in system.texts)
    cost = system.cost()
    assert cost["storage_bytes"] > size and cost["passages"] == 3 and cost["extra_parameters"] == 0
    assert cost["retrieved"] == 2 and hits_cell(0.5, cost["retrieved"]) == "0.50 (k = 2)"
    assert hits_cell(None, 2) == hits_cell(None, None) != hits_cell(0.5, None) == "0.50"


def test_the_best_passage_stands_next_to_the_question(tiny_model):
    setup = setup_for(tiny_model)
    system = SYSTEM.make(setup)
    system.prepare(DOCUMENTS)
    found = system.answer(DOCUMENTS)
    texts = [
        ["\n\n".join(system.texts[place] for place in reversed(system.retrieve(question.question)))
         for question in document.questions]
        for document in DOCUMENTS
    ]  # fmt: skip
    assert texts[0][0].endswith(FOUNDER)
    expected = answer_with_texts(
        tiny_model.decoder(), {"params": tiny_model.params}, setup.prompt, DOCUMENTS, texts, 4
    )
    assert [[{k: v for k, v in each.items() if k != "hit"} for each in group] for group in found] == expected
    assert found[0][0]["hit"] == 1.0
    one = SYSTEM.make(setup_for(tiny_model, passages=1))
    one.prepare(DOCUMENTS)
    # Nothing matches the last question: the first passage is read, which is of the other document.
    assert [[each["hit"] for each in group] for group in one.answer(DOCUMENTS)] == [[1.0], [1.0, 0.0]]


def test_a_question_of_two_documents_needs_both(tiny_model):
    system = SYSTEM.make(setup_for(tiny_model, passages=1))
    system.prepare(DOCUMENTS)
    both = dataclasses.replace(DOCUMENTS[0], questions=(Question("Who founded Ava?", ("x",), "", ("ava", "bor")),))
    assert system.answer([both])[0][0]["hit"] == 0.0
    more = SYSTEM.make(setup_for(tiny_model, passages=3))
    more.prepare(DOCUMENTS)
    assert more.answer([both])[0][0]["hit"] == 1.0


def test_a_passage_of_a_long_document_counts_as_that_document(tiny_model):
    parts = [Passage(text, "Ava", f"ava#{n}", source="ava") for n, text in enumerate((RIVER, FOUNDER), start=1)]
    group = Passage(f"{RIVER}\n\n{FOUNDER}", "Ava", "ava#1+2", source="ava", parts=("ava#1", "ava#2"))
    asked = dataclasses.replace(parts[0], questions=(Question("Who founded Ava?", ("Lu Ka",)),))
    system = SYSTEM.make(setup_for(tiny_model, passages=1))
    system.prepare([asked, parts[1], group])
    assert system.sources == ["ava", "ava"]  # what is read together is there already
    assert system.answer([asked])[0][0]["hit"] == 1.0


def test_what_the_model_cannot_read_is_left_out_and_said(tiny_model, caplog):
    config = dataclasses.replace(tiny_model.config, max_position_embeddings=150)
    model = dataclasses.replace(tiny_model, config=config)
    system = SYSTEM.make(setup_for(model, passages=3))
    with caplog.at_level("WARNING"):
        system.prepare(DOCUMENTS)
        found = system.answer(DOCUMENTS[:1])
    assert found[0][0]["tokens"] <= 150 - 24 and found[0][0]["hit"] == 1.0
    assert "of 3 passages fit into the model's 150 tokens" in caplog.text


def test_the_injected_model_with_passages_is_not_the_base_with_them(tiny_model):
    config = LoraConfig(rank=4, alpha=64.0)
    lora = init_lora(jax.random.key(0), tiny_model.params, config)
    lora = jax.tree.map(lambda leaf: leaf + 0.3, lora)
    setup = dataclasses.replace(setup_for(tiny_model), lora=lora, lora_scale=config.scale)
    made = []
    for entry in (SYSTEM, BOTH):
        system = entry.make(setup)
        system.prepare(DOCUMENTS)
        made.append(system.answer(DOCUMENTS))
        texts = [[system._joined(system._fitting(q)) for q in document.questions] for document in DOCUMENTS]
    assert made[0] != made[1]
    variables = {"params": tiny_model.params, "lora": lora}
    expected = answer_with_texts(
        tiny_model.decoder(lora_scale=config.scale), variables, setup.prompt, DOCUMENTS, texts, 4
    )
    assert [[each["answer"] for each in group] for group in made[1]] == [
        [each["answer"] for each in group] for group in expected
    ]


@pytest.mark.parametrize(("field", "value"), [("passages", 0), ("passage_tokens", 8)])
def test_settings_outside_their_range(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}, expected a whole number from"):
        RetrievalOptions(**{field: value})
