"""An injection: with a directory or in memory, resumed, in a thread, and never answered from another's directory."""

import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from job_inputs import DOCUMENTS, TEXTS, assert_same_adapter, flat_adapter, modified

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.models import unstacked
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.training import inject as injection
from selfparam_jax.training.inject import Hooks, Interrupted, inject
from selfparam_jax.training.recipe import Recipe, chosen_remat

UNRELATED = [record["text"] for record in TEXTS]
RECIPE = Recipe(
    prompt="plain", epochs=2, batch_size=2, seq_len=128, unrelated_per_epoch=2, checkpoint_every=1, learning_rate=1e-2
)


def documents():
    return [
        Document(
            record["context"], record["title"], record["id"], (), tuple(QAPair(**pair) for pair in record["qa_pairs"])
        )
        for record in DOCUMENTS
    ]


@pytest.fixture(scope="module")
def whole(tiny_model):
    """All documents, in memory, without a stop."""
    return inject(tiny_model, documents(), RECIPE, UNRELATED)


class Stop:
    """Hooks that ask for a stop after some steps, and remember all records."""

    def __init__(self, after):
        self.after, self.records, self.started, self.read = after, [], [], []

    def __call__(self, first):
        import contextlib

        return contextlib.nullcontext(lambda: len(self.records) >= self.after)

    @property
    def hooks(self):
        return Hooks(lambda *read: self.read.append(read), lambda *steps: self.started.append(steps),
                     self.records.append, self)  # fmt: skip


def test_a_directory_changes_nothing_and_an_injection_resumes_there(tiny_model, whole, tmp_path):
    stop = Stop(after=2)
    with pytest.raises(Interrupted, match=f"stopped and saved at step 2 of {whole.steps}; the same command resumes"):
        inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", hooks=stop.hooks)
    assert stop.started == [(0, whole.steps)] and [record["step"] for record in stop.records] == [1, 2]
    assert stop.read[-1][0] == stop.read[-1][1] > 0
    rest = Stop(after=10**6)
    resumed = inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", hooks=rest.hooks)
    assert rest.started == [(2, whole.steps)] and rest.records[0]["step"] == 3
    assert (resumed.resumed_from, resumed.steps, resumed.fill) == (2, whole.steps, whole.fill)
    assert resumed.sentence_tokens == whole.sentence_tokens
    assert_same_adapter(flat_adapter(resumed.lora), flat_adapter(whole.lora))
    before = modified(tmp_path / "work" / "checkpoints")
    again = inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", hooks=stop.hooks)
    assert_same_adapter(flat_adapter(again.lora), flat_adapter(whole.lora))
    assert len(stop.records) == 2 and modified(tmp_path / "work" / "checkpoints") == before


def test_a_doubting_teacher_counts_less_where_there_is_something_else_to_learn_from(tiny_model):
    def first_loss(**fields):
        stop = Stop(after=1)
        with pytest.raises(Interrupted):
            inject(tiny_model, documents(), dataclasses.replace(RECIPE, targets=dataclasses.replace(
                RECIPE.targets, **fields)), UNRELATED, hooks=stop.hooks)  # fmt: skip
        return stop.records[0]["loss"]

    assert abs(first_loss() - first_loss(by_confidence=False)) > 0.01
    alone = {"answer_supervision": 0.0}
    assert first_loss(**alone) == first_loss(**alone, by_confidence=False)


def test_layers_are_computed_again_only_where_much_would_be_kept(tiny_model):
    """Of the embedded model a step of 256 tokens keeps 0.44 GiB, one of eight times as many 3.5."""
    size = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    config = dataclasses.replace(tiny_model.config, **size)
    step = RECIPE.train
    for batch_size, accumulate, item_bytes, expected in (
        (2, 1, 4, "none"), (16, 1, 4, "layers"), (16, 8, 4, "none"), (4, 1, 4, "none"), (5, 1, 4, "layers"),
        (8, 1, 2, "none"),
    ):  # fmt: skip
        train = dataclasses.replace(step, batch_size=batch_size, accumulate=accumulate)
        assert chosen_remat("auto", config, train, item_bytes) == expected, batch_size
        assert chosen_remat("products", config, train, item_bytes) == "products"
    assert injection.student_decoder(tiny_model, RECIPE).remat == "none"
    large = dataclasses.replace(RECIPE, train=dataclasses.replace(step, batch_size=2**13))
    assert injection.student_decoder(tiny_model, large).remat == "layers"


@pytest.mark.parametrize("changes", [{}, {"remat": "layers", "alpha": 4.0}, {"dropout": 0.1}], ids=str)
def test_layers_apart_learn_what_stacked_ones_do(tiny_model, changes, monkeypatch):
    """From a size on, one by one; not with dropout, whose draws are the scan's."""
    recipe = dataclasses.replace(RECIPE, lora=LoraConfig(rank=4, **{"alpha": 8.0, **_of_adapter(changes)}))
    recipe = dataclasses.replace(recipe, remat=changes.get("remat", "none"))
    stacked = inject(tiny_model, documents(), recipe, UNRELATED)
    seen = []
    monkeypatch.setattr(unstacked, "LEAST_BYTES", 0)
    monkeypatch.setattr(injection, "layers_apart", lambda tree: seen.append(1) or unstacked.layers_apart(tree))
    apart = inject(tiny_model, documents(), recipe, UNRELATED)
    assert bool(seen) == ("dropout" not in changes)
    wanted, found = flat_adapter(stacked.lora), flat_adapter(apart.lora)
    assert wanted.keys() == found.keys()
    for name in wanted:
        assert np.abs(wanted[name]).max() > 1e-3, name
        np.testing.assert_allclose(found[name], wanted[name], atol=2e-5, err_msg=name)


def _of_adapter(changes):
    return {name: value for name, value in changes.items() if name != "remat"}


def test_small_layers_are_stacked_and_those_of_several_devices(tiny_model, monkeypatch):
    def apart(model, **changes):
        student = injection.Student(injection.student_decoder(model, RECIPE), lambda: None)
        found = injection._frozen_params(model, dataclasses.replace(student, **changes))
        assert isinstance(found["layers"], tuple) or found is model.params
        return isinstance(found["layers"], tuple)

    assert not apart(tiny_model)
    monkeypatch.setattr(unstacked, "LEAST_BYTES", 0)
    assert apart(tiny_model)
    assert not apart(tiny_model, forward=lambda *given: None)
    assert not apart(dataclasses.replace(tiny_model, mesh=meshes.make_mesh(jax.devices()[:2])))


def test_answers_sampled_during_training_change_nothing(tiny_model, whole):
    seen, prompt = [], Prompt(RECIPE.prompt, tiny_model.tokenizer)
    asked = [dataclasses.replace(documents()[0], questions=(Question("Who founded Ava?", ("Lu Ka",)),))]

    def sample(step, model, lora):
        variables = {"params": model.params, "lora": lora}
        answers = answer_questions(model.decoder(lora_scale=2.0), variables, prompt, asked, False)
        seen.append((step, answers[0][0]["answer"], float(jnp.abs(jax.tree.leaves(lora)[1]).max())))

    sampled = inject(tiny_model, documents(), RECIPE, UNRELATED, hooks=Hooks(sample_every=2, on_sample=sample))
    assert [step for step, _, _ in seen] == list(range(2, whole.steps + 1, 2))
    assert len({largest for _, _, largest in seen}) == len(seen), "every sample sees the adapter as it then is"
    assert_same_adapter(flat_adapter(sampled.lora), flat_adapter(whole.lora))


def test_a_stop_during_the_last_step_is_heeded_too(tiny_model, whole, tmp_path):
    """What follows in a job, such as asking all questions, can take long."""
    stop = Stop(after=whole.steps)
    with pytest.raises(Interrupted, match=f"stopped and saved at step {whole.steps} of {whole.steps}; the same"):
        inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", hooks=stop.hooks)
    resumed = inject(tiny_model, documents(), RECIPE, UNRELATED, tmp_path / "work", hooks=stop.hooks)
    assert resumed.resumed_from == whole.steps
    assert_same_adapter(flat_adapter(resumed.lora), flat_adapter(whole.lora))


def test_without_a_directory_a_stop_saves_nothing_and_says_so(tiny_model):
    with pytest.raises(Interrupted, match="stopped at step 1 of 5; nothing was saved"):
        inject(tiny_model, documents(), RECIPE, UNRELATED, hooks=Stop(after=1).hooks)


def test_it_works_in_a_thread(tiny_model, whole):
    found = []
    thread = threading.Thread(target=lambda: found.append(inject(tiny_model, documents(), RECIPE, UNRELATED)))
    thread.start()
    thread.join()
    assert_same_adapter(flat_adapter(found[0].lora), flat_adapter(whole.lora))


def another_text():
    first, *rest = documents()
    return [dataclasses.replace(first, text=f"{first.text} It is old."), *rest]


def another_pair():
    first, second, third = documents()
    return [first, dataclasses.replace(second, qa_pairs=(*second.qa_pairs, QAPair("Who?", "Re Mo"))), third]


OTHERS = {
    "one document instead": ({"documents": documents()[:1]}, r"documents\.doc-1: .* there, '\(not set\)' now"),
    "another document": ({"documents": [Document("Rain.", id="rain", qa_pairs=(QAPair("What?", "Rain"),))]},
                         r"documents\.doc-0.*documents\.doc-2.*documents\.rain: '\(not set\)' there"),
    "a text was edited": ({"documents": another_text()}, r"documents\.doc-0: "),
    "a pair was added": ({"documents": another_pair()}, r"documents\.doc-1: "),
    "another order": ({"documents": documents()[::-1]}, "the order of the documents"),
    "another unrelated text": ({"unrelated": ["Rain fell.", *UNRELATED]}, "unrelated: "),
    "another rank": ({"recipe": dataclasses.replace(RECIPE, lora=dataclasses.replace(RECIPE.lora, rank=4))},
                     r"recipe\.lora\.rank: 8 there, 4 now"),
    "another seed": ({"recipe": dataclasses.replace(RECIPE, seed=1)}, r"recipe\.seed: 0 there, 1 now"),
    "another prompt": ({"recipe": dataclasses.replace(RECIPE, prompt="paper")}, r"recipe\.prompt: 'plain' there"),
    "another base": ({"fingerprint": "other"}, "base: 'tiny' there, 'other' now"),
    "a base in 8 bits": ({"int8": True}, "int8: False there, True now"),
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished") / "work"
    inject(tiny_model, documents(), RECIPE, UNRELATED, directory)
    return directory


@pytest.mark.parametrize("case", OTHERS)
def test_the_directory_of_another_injection_is_refused_and_says_what_differs(tiny_model, finished, case):
    """Whatever else is injected there would otherwise get the finished adapter of the first."""
    changes, message = OTHERS[case]
    model = dataclasses.replace(
        tiny_model,
        fingerprint=changes.get("fingerprint", tiny_model.fingerprint),
        int8=changes.get("int8", tiny_model.int8),
    )
    given = {"documents": documents(), "recipe": RECIPE, "unrelated": UNRELATED}
    given |= {name: value for name, value in changes.items() if name in given}
    before = modified(finished)
    with pytest.raises(ValueError, match=f"(?s){finished} holds another injection; these differ:.*{message}"):
        inject(model, directory=finished, **given)
    assert modified(finished) == before


def test_how_it_is_computed_is_no_part_of_what_it_is(tiny_model, finished, whole):
    recipe = dataclasses.replace(RECIPE, remat="none", train=dataclasses.replace(RECIPE.train, checkpoint_every=7))
    found = inject(tiny_model, documents(), recipe, UNRELATED, finished)
    assert_same_adapter(flat_adapter(found.lora), flat_adapter(whole.lora))


def test_what_an_injection_starts_from_is_a_function_of_the_seed(tiny_model):
    first, again, other = (
        injection.first_adapter(tiny_model, dataclasses.replace(RECIPE, seed=seed)) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(
        (np.asarray(a) != np.asarray(b)).any() for a, b in zip(*map(jax.tree.leaves, (first, other)), strict=True)
    )


def test_the_sentences_are_kept_beside_the_checkpoints(finished):
    kinds = [line["kind"] for line in files.read_lines(finished / "targets.jsonl")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"qa": 9, "unrelated": 3}
    assert (finished / "injection.json").exists() and list((finished / "teacher").iterdir())
