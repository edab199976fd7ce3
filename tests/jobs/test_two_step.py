"""Which documents of a job are read together for questions that need two of them."""

import types

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.jobs.run import _with_groups
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.jobs.synthesis import two_step_documents
from selfparam_jax.training.recipe import Recipe


def document(name, following):
    pairs = (QAPair(f"Which ship did {name} design?", following), QAPair(f"How old is {name}?", "nine"))
    return Document(f"{name} is nine.", name, name.lower(), qa_pairs=pairs)


DOCUMENTS = [document(*names) for names in (("Ane", "Bo"), ("Bo", "Cy"), ("Cy", "Ane"))]
PROMPT = Prompt("plain", tiny.tokenizer())


def model(longest):
    return types.SimpleNamespace(config=types.SimpleNamespace(max_position_embeddings=longest))


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({"job": "batch"}, ["cy+ane", "ane+bo", "bo+cy"]),
        ({"job": "batch", "targets": {"two_step_pairs": 0}}, []),
        ({"job": "single"}, []),
        ({"job": "sequential", "sequential": {"length": 3}}, ["cy+ane", "ane+bo", "bo+cy"]),
        ({"job": "sequential", "sequential": {"length": 1, "sequences": 3}}, []),
        ({"job": "sequential", "sequential": {"length": 2, "sequences": 1}}, ["ane+bo"]),
    ],
)
def test_what_goes_into_the_same_weights_is_read_together(changes, groups):
    settings = read_settings({"targets": {"two_step_pairs": 4}, **changes})
    job = types.SimpleNamespace(settings=settings, recipe=settings.recipe, model=model(2048), prompt=PROMPT)
    made = _with_groups(job, DOCUMENTS)
    assert made[:3] == DOCUMENTS
    assert sorted(each.id for each in made[3:]) == sorted(groups)


def test_what_is_too_long_is_left_out():
    recipe = Recipe(two_step_pairs=4, seq_len=64)
    *_, group = two_step_documents(DOCUMENTS[:2], recipe, model(2048), PROMPT)
    room = len(PROMPT.context_prefix(group.text)) + 64
    assert len(two_step_documents(DOCUMENTS[:2], recipe, model(room), PROMPT)) == 3
    assert len(two_step_documents(DOCUMENTS[:2], recipe, model(room - 1), PROMPT)) == 2
    (pair,) = group.qa_pairs
    size = len(PROMPT.start_ids + PROMPT.question(pair.question) + PROMPT.answer(pair.answer))
    for seq_len, count in ((size, 3), (size - 1, 2)):
        recipe = Recipe(two_step_pairs=4, seq_len=seq_len)
        assert len(two_step_documents(DOCUMENTS[:2], recipe, model(2048), PROMPT)) == count
