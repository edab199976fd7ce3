"""The teacher's likelihood of answers, held against one plain reading of the whole text."""

import jax
import numpy as np
import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import mesh
from selfparam_jax.evaluation.likelihood import answer_likelihoods, question_log_likelihoods
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.training.teacher import Reader

PAIRS = [QAPair("How many wheels?", "four"), QAPair("When?", "in 1742"), QAPair("Who built the old mill?", "Ana B")]


@pytest.fixture
def reader(tiny_model):
    devices = mesh.make_mesh()
    variables = {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    return prompt, Reader(Decoder(tiny_model.config), variables, "x", prompt.start_ids, devices, 8, 64)


def plain(reader, before, question, answer):
    logits = tiny.plain_logits(reader.model, reader.variables, [*before, *question, *answer])
    values = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    first = len(before) + len(question)
    return np.exp(np.mean([values[first + n - 1, token] for n, token in enumerate(answer)]))


def test_both_likelihoods_are_those_of_one_plain_reading(reader):
    prompt, reader = reader
    context = Document(id="mill", title="", text="The mill at Orrin was built in 1742. It has four wheels.")
    found = answer_likelihoods(reader, prompt, context, PAIRS)
    assert found.shape == (3, 2)
    for pair, likelihoods in zip(PAIRS, found, strict=True):
        question, answer = prompt.question(pair.question), prompt.answer(pair.answer)
        for before, likelihood in zip(
            (prompt.context_prefix(context.text), prompt.start_ids), likelihoods, strict=True
        ):
            np.testing.assert_allclose(likelihood, plain(reader, before, question, answer), rtol=1e-5)
    assert len(set(found.ravel())) == 6


def test_log_likelihoods_of_held_out_answers(reader):
    prompt, reader = reader
    asked = [
        (),
        (Question("How many?", ("four", "4")), Question("When?", ("in 1742",))),
        (Question("Who?", ("Ana",)),),
    ]
    contexts = [Document(id=str(n), title="", text="Text.", questions=questions) for n, questions in enumerate(asked)]
    found = question_log_likelihoods(reader, prompt, contexts)
    assert [len(group) for group in found] == [0, 2, 1]
    for questions, values in zip(asked, found, strict=True):
        for question, value in zip(questions, values, strict=True):
            ids = prompt.question(question.question), prompt.answer(question.answers[0])
            np.testing.assert_allclose(value, np.log(plain(reader, prompt.start_ids, *ids)), rtol=1e-5)
    assert question_log_likelihoods(reader, prompt, contexts[:1]) == [[]]


@pytest.mark.default_model
def test_the_embedded_teacher_believes_what_the_context_says(default_model):
    """A right answer is likely with the context and not without; a wrong one is not likely with it."""
    prompt = Prompt("few_shot", default_model.tokenizer)
    devices, variables = mesh.make_mesh(jax.devices()[:1]), {"params": default_model.params}
    reader = Reader(Decoder(default_model.config), variables, "x", prompt.start_ids, devices, 2, 64)
    text = "The mill at Orrin was built in 1742 by Ana Bell. It has four wheels and a red door."
    pairs = [QAPair("Who built the mill at Orrin?", "Ana Bell"), QAPair("Who built the mill at Orrin?", "Tom Carver")]
    (right, right_without), (wrong, _) = answer_likelihoods(
        reader, prompt, Document(id="mill", title="", text=text), pairs
    )
    assert right > 0.5 and right_without < 0.2 and wrong < 0.2
