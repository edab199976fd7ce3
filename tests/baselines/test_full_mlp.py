"""All MLP weights trained instead of an adapter: the step against its own loss, what is kept, and answers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from job_inputs import TEXTS, documents

from selfparam_jax.baselines.full_mlp import SYSTEM, Changed, FullOptions
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.drift import read_general
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.training.full import add_deltas, mlp_student, no_deltas, read_changed
from selfparam_jax.training.recipe import Recipe
from selfparam_jax.training.train_step import Batch

UNRELATED = [record["text"] for record in TEXTS]
RECIPE = Recipe(prompt="plain", epochs=6, batch_size=2, seq_len=128, unrelated_per_epoch=2, checkpoint_every=2)
KERNELS = ("gate_proj", "up_proj", "down_proj")


def setup_for(model, directory=None):
    prompt = Prompt("plain", model.tokenizer, model.end_ids)
    general = read_general(model.decoder(), {"params": model.params}, prompt, UNRELATED)
    options = FullOptions(learning_rate=5e-3, check_every=2)
    return Setup(
        model, prompt, 4, options=options, recipe=RECIPE, unrelated=UNRELATED, general=general, directory=directory
    )


def replaced(params, deltas):
    """The parameters with each kernel of the MLPs replaced by hand."""
    params = jax.tree.map(lambda leaf: leaf, params)
    for name in KERNELS:
        params["layers"]["mlp"][name]["kernel"] = params["layers"]["mlp"][name]["kernel"] + deltas["mlp"][name]
    return params


def test_the_student_is_the_base_with_other_kernels(tiny_model):
    deltas = no_deltas(tiny_model.params)
    assert {name: leaf.shape for name, leaf in deltas["mlp"].items()} == {
        name: tiny_model.params["layers"]["mlp"][name]["kernel"].shape for name in KERNELS
    }
    ids = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) + 5
    positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), (2, 12))
    batch = Batch(ids, positions, jnp.ones((2, 12), jnp.int32), None, None)
    model = tiny_model.decoder()
    read = lambda deltas: read_changed(deltas, tiny_model.params, batch, None, model)  # noqa: E731
    of = lambda params: model.apply({"params": params}, ids, batch.positions, batch.segments)[0]  # noqa: E731
    np.testing.assert_array_equal(read(deltas), of(tiny_model.params))
    keys = iter(jax.random.split(jax.random.key(0), 3))
    deltas = jax.tree.map(lambda leaf: 0.1 * jax.random.normal(next(keys), leaf.shape), deltas)
    np.testing.assert_allclose(read(deltas), of(replaced(tiny_model.params, deltas)), atol=1e-6)
    assert float(jnp.abs(read(deltas) - of(tiny_model.params)).max()) > 0.01


def test_a_low_precision_base_is_rounded_once(tiny_model):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny_model.params)
    deltas = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-4, jnp.float32), no_deltas(params))
    made = add_deltas(params, deltas)["layers"]["mlp"]["up_proj"]["kernel"]
    expected = (params["layers"]["mlp"]["up_proj"]["kernel"].astype(jnp.float32) + 1e-4).astype(jnp.bfloat16)
    assert made.dtype == jnp.bfloat16
    np.testing.assert_array_equal(made, expected)


def test_it_learns_resumes_and_answers_with_the_changed_weights(tiny_model, tmp_path):
    losses, given = [], documents(2)
    setup = setup_for(tiny_model, tmp_path / "run")
    hooks = setup.open_hooks
    setup = dataclasses.replace(setup, open_hooks=lambda *place: Watched(hooks(*place), losses))
    system = SYSTEM.make(setup)
    system.prepare(given)
    assert losses[-1] < 0.8 * losses[0]
    assert system.cost() == {"storage_bytes": 0, "extra_parameters": 0}
    changed = {"params": replaced(tiny_model.params, system.lora)}
    expected = answer_questions(tiny_model.decoder(), changed, setup.prompt, given, False, 4)
    assert system.answer(given) == expected
    assert system.drift(setup.general)["kl"] > 0
    again = SYSTEM.make(setup_for(tiny_model, tmp_path / "run"))
    count = len(losses)
    again.prepare(given)  # nothing is trained again
    assert len(losses) == count
    for name in KERNELS:
        np.testing.assert_array_equal(again.lora["mlp"][name], system.lora["mlp"][name])
    unchanged = Changed(setup, no_deltas(tiny_model.params)).drift(setup.general)
    assert unchanged["kl"] == pytest.approx(0.0, abs=1e-6)


class Watched:
    """Hooks that also keep every step's loss."""

    def __init__(self, context, losses):
        self._context, self._losses = context, losses

    def __enter__(self):
        hooks = self._context.__enter__()
        return dataclasses.replace(hooks, on_step=lambda record: self._losses.append(record["loss"]))

    def __exit__(self, *given):
        return self._context.__exit__(*given)


def test_a_base_in_8_bits_is_refused(tiny_model):
    with pytest.raises(ValueError, match="base_weights = 'int8', expected 'float'"):
        mlp_student(dataclasses.replace(tiny_model, int8=True), RECIPE)
