"""The adapter bank: which adapter answers a question, and that the document is not read."""

import dataclasses

import jax
import numpy as np
import pytest

from selfparam_jax.baselines.bank import SYSTEM
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.passages import Passage
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.models.lora import LoraConfig, init_lora

DOCUMENTS = [
    Document("The hand of it.", "Ant", "ant", (Question("Where is the ant?", ("x",)), Question("The inn?", ("x",)))),
    Passage("The land is old.", "Land", "land#1", (Question("Who?", ("x",)),), source="land", source_title="Land"),
    Passage("The inn is in it.", "Land", "land#2", (Question("What hand?", ("x",)),), source="land"),
]  # fmt: skip


def adapter(model, seed):
    lora = init_lora(jax.random.key(seed), model.params, LoraConfig(rank=2))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), lora)


def test_each_question_is_answered_with_the_adapter_of_the_document_that_matches_it(tiny_model):
    prompt, read = Prompt("plain", tiny_model.tokenizer), []
    adapters = [adapter(tiny_model, seed) for seed in (1, 2)]

    def load(place):
        read.append(place)
        return adapters[place]

    setup = Setup(tiny_model, prompt, 4, lora_scale=0.5, adapters=load)
    bank = SYSTEM.make(setup)
    bank.prepare(DOCUMENTS)
    found = bank.answer(DOCUMENTS)
    assert sorted(read) == [0, 1], "each adapter is read once"
    # By their words, not by whose questions they are; one that matches nothing goes to the first.
    places = [[0, 1], [0], [0]]
    for document, group, chosen in zip(DOCUMENTS, found, places, strict=True):
        for question, answer, place in zip(document.questions, group, chosen, strict=True):
            alone = [dataclasses.replace(document, questions=(question,))]
            variables = {"params": tiny_model.params, "lora": adapters[place]}
            decoder = tiny_model.decoder(lora_scale=0.5)
            assert answer_questions(decoder, variables, prompt, alone, False, 4) == [[answer]]


def test_a_bank_without_adapters_is_refused(tiny_model):
    bank = SYSTEM.make(Setup(tiny_model, Prompt("plain", tiny_model.tokenizer)))
    bank.prepare(DOCUMENTS)
    with pytest.raises(ValueError, match="an adapter for each document, which job 'single' makes"):
        bank.answer(DOCUMENTS)
