"""Distractors: which documents stand beside the right one, and that the teacher reads exactly these."""

import dataclasses

import numpy as np
import pytest
from job_inputs import batch_config, documents

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import Passage
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.jobs.inputs import prepare
from selfparam_jax.jobs.settings import read_settings
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.distractors import check_room, with_distractors
from selfparam_jax.training.inject import read_teacher
from selfparam_jax.training.recipe import Recipe

RECIPE = Recipe(
    prompt="plain", formats="reading", epochs=1, batch_size=2, seq_len=128, unrelated_per_epoch=0,
    tails_per_context=1, distractors=1,
)  # fmt: skip


def test_others_stand_before_and_after_the_document():
    given = documents()
    seen = set()
    for seed in range(40):
        for document, made in zip(given, with_distractors(given, 1, seed), strict=True):
            parts = made.text.split("\n\n")
            assert len(set(parts)) == 2 and document.text in parts
            assert set(parts) <= {each.text for each in given}
            assert dataclasses.replace(made, text=document.text) == document
            seen.add((document.id, *parts))
    assert len(seen) == 3 * 2 * 2, "every other document, on both sides"
    assert with_distractors(given, 1, 5) == with_distractors(given, 1, 5) != with_distractors(given, 1, 6)
    assert {len(made.text.split("\n\n")) for made in with_distractors(given, 2, 0)} == {3}
    with pytest.raises(ValueError, match="distractors = 3, but beside document 'doc-0' there are 2 others; lower it"):
        with_distractors(given, 3, 0)


def test_what_is_read_together_is_no_distractor():
    first, second, third = documents()
    group = Passage(f"{first.text}\n\n{second.text}", id="both", source="x", parts=(first.id, second.id))
    for seed in range(10):
        *_, made = with_distractors([first, second, third, group], 1, seed)
        assert {made.text.replace(group.text, "").strip()} == {third.text}
    with pytest.raises(ValueError, match="beside document 'both' there are 1 others"):
        with_distractors([first, second, third, group], 2, 0)


@pytest.mark.parametrize("teacher", ["stored", "online"])
def test_the_teacher_reads_pairs_as_after_a_document_that_joins_them(tiny_model, teacher):
    prompt = Prompt("plain", tiny_model.tokenizer)
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, teacher=teacher))
    sentences, slots, signal = read_teacher(tiny_model, prompt, documents(), recipe)
    alone = dataclasses.replace(recipe, targets=dataclasses.replace(recipe.targets, distractors=0))
    joined = []
    for document, among in zip(documents(), with_distractors(documents(), 1, recipe.seed), strict=True):
        (other,) = {each.text for each in documents()} & {*among.text.split("\n\n")} - {document.text}
        first = among.text.startswith(document.text)
        texts = (document.text, other) if first else (other, document.text)
        joined.append(Document("\n\n".join(texts), id=document.id, qa_pairs=document.qa_pairs))
    expected = states_of(read_teacher(tiny_model, prompt, joined, alone), "qa")
    found = states_of((sentences, slots, signal), "qa")
    assert len(found) == 9 and found.keys() == expected.keys()
    plain = read_teacher(tiny_model, prompt, documents(), alone)
    for key, states in found.items():
        np.testing.assert_allclose(states, expected[key], rtol=0, atol=1e-5)
        assert np.abs(states - states_of(plain, "qa")[key]).max() > 1e-2, "the others are read, too"
    # Tails follow their own document alone.
    for key, states in states_of((sentences, slots, signal), "tail").items():
        np.testing.assert_allclose(states, states_of(plain, "tail")[key], rtol=0, atol=1e-5)


def states_of(read, kind):
    """The teacher's states of every sentence of a kind, by what it says."""
    sentences, slots, signal = read
    states = {}
    for n, sentence in enumerate(sentences):
        if sentence.kind == kind:
            places = np.arange(slots[n], slots[n] + len(sentence.loss_tokens))
            states[sentence.ids] = np.asarray(signal.take_all(places))
    return states


def test_what_does_not_fit_is_refused_in_one_line(tiny_model):
    prompt, config = Prompt("plain", tiny_model.tokenizer), TargetConfig(formats="reading", distractors=1)
    given = documents()
    wide = with_distractors(given, 1, 0)
    longest = max(
        len(prompt.context_prefix(among.text)) + len(prompt.question(pair.question) + prompt.answer(pair.answer))
        for document, among in zip(given, wide, strict=True)
        for pair in document.qa_pairs
    )
    check_room(given, prompt, config, 0, longest)
    with pytest.raises(
        ValueError, match=rf"targets.distractors = 1: document 'doc-\d' among .* at most {longest - 1} "
    ):
        check_room(given, prompt, config, 0, longest - 1)
    check_room(given, prompt, TargetConfig(), 0, 1)


@pytest.mark.parametrize("job", ["single", "sequential"])
def test_a_job_of_one_document_at_a_time_refuses_them(job):
    with pytest.raises(
        ValueError, match=f"targets.distractors = 2 with job '{job}', expected 0: it reads one document"
    ):
        read_settings({"job": job, "targets": {"distractors": 2}})


def test_a_job_checks_them_before_it_begins(model_dir, tmp_path):
    config = batch_config(model_dir, tmp_path)
    config.targets.distractors = 3
    with pytest.raises(ValueError, match=r"targets\.distractors = 3, but beside document 'doc-0' there are 2 others"):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
