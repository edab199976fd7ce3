"""Cartridges: what one starts from, which gradient reaches it, and how it is trained, kept and asked."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from job_inputs import TEXTS, assert_same_adapter, documents

from selfparam_jax.baselines.cartridge import SYSTEM, AfterCartridge, CartridgeOptions
from selfparam_jax.baselines.cartridge_quarter import SYSTEM as QUARTER
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.packing import NO_SLOT
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.evaluation.drift import read_general
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.inference.prefix import read_prefix
from selfparam_jax.models import decoder as decoder_module
from selfparam_jax.models.lora import parameter_count
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.models.shardings import parameter_shardings
from selfparam_jax.targets.sentences import Reading, Sentence
from selfparam_jax.training import cartridge as cartridges
from selfparam_jax.training import train_step
from selfparam_jax.training.batches import Plan, make_batch
from selfparam_jax.training.inject import Hooks, Interrupted, first_adapter, read_teacher
from selfparam_jax.training.recipe import Recipe

UNRELATED = [record["text"] for record in TEXTS]
RECIPE = Recipe(
    prompt="plain",
    epochs=2,
    batch_size=2,
    seq_len=128,
    unrelated_per_epoch=2,
    tails_per_context=1,
    checkpoint_every=1,
    learning_rate=1e-2,
)


def prompt_of(model, name="plain"):
    return Prompt(name, model.tokenizer, model.end_ids)


def whole_length(model):
    return len(prompt_of(model).context_prefix(documents()[0].text))


def train(model, docs, tokens=12, start="document", **changes):
    given = {"recipe": RECIPE, "unrelated": UNRELATED} | changes
    return cartridges.train_cartridge(model, docs, tokens=tokens, start=start, **given)


def one_batch(model, docs, recipe=RECIPE):
    """All sentences of an epoch in one batch, read after a cartridge, and the rows that it is made from."""
    sentences, slots, signal = read_teacher(model, prompt_of(model), docs, recipe, UNRELATED)
    after = [cartridges.without_start(*each) for each in zip(sentences, slots, strict=True)]
    config = dataclasses.replace(recipe.train, batch_size=8, epochs=1)
    plan = Plan([each for each, _ in after], np.asarray([slot for _, slot in after]), (), config, 2)
    assert plan.steps == 1
    return make_batch(plan.rows(0), signal, model.mesh, recipe.supervised), plan.rows(0)


def loss_of(model, tree, batch):
    total, count = jax.jit(train_step.student_loss, static_argnames=("model", "loss", "forward"))(
        tree, model.params, batch, jax.random.key(0), model=model.decoder(), loss=train_step.LossConfig(),
        forward=cartridges.read_after,
    )  # fmt: skip
    return float(total / count)


# --- what it starts from -------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["document", "first"])
def test_the_cache_of_the_whole_document_is_the_teacher(tiny_model, start):
    """Before any step, a student after all of its document has the teacher's states wherever there is a loss."""
    changes = {"unrelated_context": True, "tails_per_context": 0, "answer_supervision": 0.0}
    recipe = dataclasses.replace(RECIPE, targets=dataclasses.replace(RECIPE.targets, **changes))
    docs, tokens = documents(1), whole_length(tiny_model)
    cartridge = cartridges.first_cartridge(tiny_model, docs, prompt_of(tiny_model), tokens, start)
    assert cartridge["keys"].shape[3] == tokens
    batch, rows = one_batch(tiny_model, docs, recipe)
    found = cartridges.read_after(cartridge, tiny_model.params, batch, jax.random.key(0), tiny_model.decoder())
    used = int(batch.signal.used[0])
    assert used == np.sum(rows.slots != NO_SLOT) > 20
    states = np.asarray(found).reshape(-1, found.shape[-1])[np.asarray(batch.index)[0, :used]]
    np.testing.assert_allclose(states, np.asarray(batch.signal.teacher)[0, :used], atol=1e-4)
    # The test can fail: another start does not have them.
    other = cartridges.first_cartridge(tiny_model, docs, prompt_of(tiny_model), tokens, "random")
    assert other["keys"].shape == cartridge["keys"].shape
    assert loss_of(tiny_model, cartridge, batch) < 1e-5 < 0.01 < loss_of(tiny_model, other, batch)


def test_evenly_spaced_tokens_are_moved_to_the_first_positions(random_params):
    """In the first layer keys and values depend on token and place alone: they are those of a shorter text."""
    for case, changes in (("gqa", {}), ("llama3", {}), ("mistral", {"sliding_window": 6})):
        hf_config = tiny.hf_config(case, max_position_embeddings=256, **changes)
        config = model_config_from_hf(hf_config)
        model = Model("tiny", config, random_params(config), tiny.tokenizer(), hf_config, "tiny")
        prompt, docs = prompt_of(model), documents(2)
        texts = [prompt.context_prefix(document.text) for document in docs]
        cartridge = cartridges.first_cartridge(model, docs, prompt, 13, "document")
        # The start counts once; of twelve spans of what follows, the last token of each.
        rest = [*texts[0][1:], *texts[1][1:]]
        picked = [prompt.start_ids[0], *(rest[(n + 1) * len(rest) // 12 - 1] for n in range(12))]
        read = read_prefix(model.decoder(), {"params": model.params}, picked).key_values
        for name in ("keys", "values"):
            expected = np.asarray(getattr(read, name))[:, :, :, :13]
            np.testing.assert_allclose(np.asarray(cartridge[name])[0], expected[0], atol=1e-5)
            # Above it they have seen what lies between.
            assert np.abs(np.asarray(cartridge[name])[1] - expected[1]).max() > 0.1


def test_keys_move_with_a_scaled_embedding_and_where_a_layer_has_none(tiny_model):
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    scaled = model_config_from_hf(tiny.hf_config("gqa", rope_parameters=scaling, max_position_embeddings=256))
    assert scaled.rope_scaling.attention_factor not in (None, 1.0)
    config = dataclasses.replace(scaled, rotated_layers=(True, False, True))
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((3, 5, 2, 8), np.float32)

    def at(positions):
        layers = []
        for keys, kind in zip(plain, config.layer_kinds, strict=True):
            angles = cartridges.rotary_angles(config, jnp.asarray(positions)[None], kind.rope)
            layers.append(jnp.swapaxes(cartridges.rotate(jnp.asarray(keys)[None], *angles), 1, 2))
        return jnp.stack(layers)

    old, new = np.asarray([0, 3, 50, 51, 200], np.int32), np.arange(5, dtype=np.int32)
    found = np.asarray(cartridges.moved_keys(config, at(old), old, new))
    np.testing.assert_allclose(found, np.asarray(at(new)), atol=1e-5)
    assert np.abs(np.asarray(at(old) - at(new))[0]).max() > 0.5
    np.testing.assert_array_equal(np.asarray(at(old))[1], found[1])


def test_a_cartridge_of_first_tokens_is_their_cache_and_one_of_random_tokens_is_drawn_by_the_seed(tiny_model):
    prompt, docs = prompt_of(tiny_model), documents(2)
    ids = (*prompt.context_prefix(docs[0].text), *prompt.context_prefix(docs[1].text)[1:])
    expected = read_prefix(tiny_model.decoder(), {"params": tiny_model.params}, ids).key_values
    first = cartridges.first_cartridge(tiny_model, docs, prompt, 70, "first")
    assert len(prompt.context_prefix(docs[0].text)) < 70 < len(ids), "it reaches into the second document"
    np.testing.assert_allclose(first["keys"], np.asarray(expected.keys)[..., :70, :], atol=1e-5)
    drawn = [cartridges.first_cartridge(tiny_model, docs, prompt, 70, "random", seed) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(*(each["values"] for each in drawn[:2]))
    assert np.abs(drawn[0]["values"] - drawn[2]["values"])[..., 1:, :].max() > 0.1
    np.testing.assert_allclose(drawn[0]["keys"][..., 0, :], first["keys"][..., 0, :], atol=1e-6)


def test_worked_examples_are_no_part_of_a_cartridge(tiny_model):
    plain, few_shot = (
        cartridges.first_cartridge(tiny_model, documents(), prompt_of(tiny_model, name), 40, "first")
        for name in ("plain", "few_shot")
    )
    jax.tree.map(np.testing.assert_array_equal, plain, few_shot)


# --- its storage ---------------------------------------------------------------------------------------


def long_document():
    return [dataclasses.replace(documents(1)[0], text=" ".join(document.text for document in documents()) * 3)]


def test_its_storage_is_that_of_the_adapter_or_a_quarter_within_one_token(tiny_model):
    per_token = cartridges.numbers_per_token(tiny_model.config)
    assert per_token == 2 * 3 * 2 * 8
    adapter = parameter_count(first_adapter(tiny_model, RECIPE))
    for entry, divide in ((SYSTEM, 1), (QUARTER, 4)):
        made = entry.make(setup_of(tiny_model, entry))
        made.prepare(long_document())
        cost = made.cost()
        assert adapter / divide - per_token < cost["extra_parameters"] <= adapter / divide
        assert cost["extra_parameters"] == cost["tokens"] * per_token == parameter_count(made.lora)
        assert cost["storage_bytes"] == 4 * cost["extra_parameters"], "the base is float32"
    options = CartridgeOptions(tokens=7)
    made = SYSTEM.make(setup_of(tiny_model, SYSTEM, options=options))
    made.prepare(long_document())
    assert made.cost()["tokens"] == 7


def test_documents_of_fewer_tokens_have_a_shorter_cartridge(tiny_model):
    for start in ("document", "first"):
        found = cartridges.first_cartridge(tiny_model, documents(1), prompt_of(tiny_model), 500, start)
        assert found["keys"].shape[3] == found["values"].shape[3] == whole_length(tiny_model)


# --- its gradient --------------------------------------------------------------------------------------


def dense_attention(implementation, queries, blocks, masks, window, sharding, softcap=None):
    """Attention written out: every row has a copy of all keys, and one plain softmax; JAX derives its gradient."""
    batch, _, heads, head_dim = queries.shape

    def every_row(x):  # [B or 1, K, S, H] -> [B, S, N, H]
        x = jnp.broadcast_to(x, (batch, *x.shape[1:])).swapaxes(1, 2)
        return jnp.repeat(x, heads // x.shape[2], axis=2)

    keys, values = (jnp.concatenate([every_row(block[n]) for block in blocks], axis=1) for n in (0, 1))
    scores = jnp.einsum("btnh,bsnh->bnts", queries, keys) / np.sqrt(head_dim).astype(np.float32)
    scores = jnp.where(jnp.concatenate(masks, axis=2)[:, None], scores, -1e30)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(scores, axis=-1), values)


@pytest.mark.parametrize("remat", ["none", "layers"])
def test_the_gradient_is_that_of_plain_attention(tiny_model, monkeypatch, remat):
    (batch, _), model = one_batch(tiny_model, documents()), tiny_model.decoder(remat=remat)
    cartridge = cartridges.first_cartridge(tiny_model, documents(), prompt_of(tiny_model), 9, "document")

    def gradient():
        def total(tree):
            loss, key = train_step.LossConfig(), jax.random.key(0)
            given = tree, tiny_model.params, batch, key, model, loss
            return train_step.student_loss(*given, forward=cartridges.read_after)[0]

        return jax.device_get(jax.jit(jax.value_and_grad(total))(cartridge))

    value, found = gradient()
    monkeypatch.setattr(decoder_module, "compute_attention", dense_attention)
    slow_value, expected = gradient()
    np.testing.assert_allclose(value, slow_value, rtol=1e-5)
    for name in ("keys", "values"):
        typical = np.sqrt(np.mean(np.square(expected[name])))
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4 * typical)
        assert not found[name][..., 0, :].any(), "the first token is frozen"
        assert (np.abs(found[name][..., 1:, :]).max(axis=(1, 2, 4)) > 0).all(), "every other learns, in any layer"


def test_the_gradient_is_that_of_finite_differences(tiny_model):
    """Straight from the definition, along a few directions: it knows nothing of how attention is written."""
    (batch, _), rng = one_batch(tiny_model, documents(1)), np.random.default_rng(0)
    cartridge = cartridges.first_cartridge(tiny_model, documents(1), prompt_of(tiny_model), 9, "random")

    @jax.jit
    def total(tree):
        given = tree, tiny_model.params, batch, jax.random.key(0), tiny_model.decoder(), train_step.LossConfig()
        return train_step.student_loss(*given, forward=cartridges.read_after)[0]

    gradient = jax.grad(total)(cartridge)
    for name in ("keys", "values"):
        direction = rng.standard_normal(cartridge[name].shape).astype(np.float32)
        direction[..., 0, :] = 0
        step = np.float32(3e-3)
        ahead, behind = (total({**cartridge, name: cartridge[name] + sign * step * direction}) for sign in (1, -1))
        expected = (float(ahead) - float(behind)) / (2 * step)
        assert float(jnp.sum(gradient[name] * direction)) == pytest.approx(expected, rel=2e-2, abs=1e-2)


MESHES = {
    "8 x 1 x 1": meshes.MeshConfig(),
    "2 x 2 x 2": meshes.MeshConfig(data=2, fsdp=2, tensor=2),
}


@pytest.mark.parametrize("name", MESHES)
def test_a_step_over_several_devices_is_the_step_of_one(tiny_model, name):
    """A step of descent, so fast that the cartridge after it is the gradient."""
    docs, results = documents(), []
    recipe = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, batch_size=8))
    for mesh in (tiny_model.mesh, meshes.make_mesh(config=MESHES[name])):
        params = jax.device_put(jax.device_get(tiny_model.params), parameter_shardings(mesh, tiny_model.config))
        model = dataclasses.replace(tiny_model, params=params, mesh=mesh)
        (batch, _), optimizer = one_batch(model, docs, recipe), optax.sgd(10.0)
        cartridge = cartridges.first_cartridge(model, docs, prompt_of(model), 11, "document")
        step = train_step.compile_step(model.decoder(), optimizer, mesh, forward=cartridges.read_after)
        state = meshes.put_same(mesh, train_step.init_state(cartridge, optimizer))
        state, metrics = step(state, params, batch, jax.random.key(0))
        results.append(jax.device_get((state.lora, metrics)))
    one, several = results

    def close(found, expected):
        typical = np.sqrt(np.mean(np.square(expected)))
        np.testing.assert_allclose(found, expected, rtol=3e-5, atol=3e-5 * typical)

    jax.tree.map(close, several, one)


# --- how it is trained, kept and asked -----------------------------------------------------------------


def test_training_lowers_the_divergence_and_leaves_the_first_token(tiny_model):
    settings = {"epochs": 12, "weight_decay": 0.1, "learning_rate": 0.1}
    targets = dataclasses.replace(RECIPE.targets, answer_supervision=0.0)
    recipe = dataclasses.replace(RECIPE, targets=targets, train=dataclasses.replace(RECIPE.train, **settings))
    batch, _ = one_batch(tiny_model, documents(), recipe)
    start = cartridges.first_cartridge(tiny_model, documents(), prompt_of(tiny_model), 12, "document")
    before, found = loss_of(tiny_model, start, batch), train(tiny_model, documents(), recipe=recipe)
    assert loss_of(tiny_model, found.lora, batch) < 0.7 * before
    for name in ("keys", "values"):
        moved = np.abs(np.asarray(found.lora[name]) - np.asarray(start[name])).max(axis=(0, 1, 2, 4))
        assert moved[0] == 0 < moved[1:].min(), "weight decay would shrink it"


class Stop:
    """A hook that ends training after some steps."""

    def __init__(self, after):
        self.after, self.records, self.started = after, [], []

    @property
    def hooks(self):
        return Hooks(
            on_start=lambda *steps: self.started.append(steps),
            on_step=self.records.append,
            stop_requested=lambda first: contextlib.nullcontext(lambda: len(self.records) >= self.after),
        )


def test_it_resumes_to_the_bit_and_another_ones_directory_is_refused(tiny_model, tmp_path):
    whole, folder = train(tiny_model, documents()), tmp_path / "work"
    assert whole.steps > 2
    with pytest.raises(Interrupted, match=f"stopped and saved at step 2 of {whole.steps}"):
        train(tiny_model, documents(), directory=folder, hooks=Stop(2).hooks)
    rest = Stop(10**6)
    resumed = train(tiny_model, documents(), directory=folder, hooks=rest.hooks)
    assert rest.started == [(2, whole.steps)] and resumed.resumed_from == 2
    assert_same_adapter(resumed.lora, whole.lora)
    again = train(tiny_model, documents(), directory=folder, hooks=rest.hooks)
    assert len(rest.started) == 1, "it is finished"
    assert_same_adapter(again.lora, whole.lora)
    others = {
        r"documents\.doc-2: .*\(not set\)' now": {"docs": documents(2)},
        r"cartridge\.tokens: 12 there, 13 now": {"tokens": 13},
        r"cartridge\.start: 'document' there, 'first' now": {"start": "first"},
        r"recipe\.seed: 0 there, 1 now": {"recipe": dataclasses.replace(RECIPE, seed=1)},
    }
    for message, changes in others.items():
        with pytest.raises(ValueError, match=f"(?s){folder} holds another cartridge; these differ:.*{message}"):
            train(tiny_model, **{"docs": documents(), "directory": folder} | changes)


def test_a_sentence_after_a_cartridge_has_no_start_and_no_loss_on_its_first_token():
    sentence = Sentence("tail", 0, (10, 11, 12), (1.0, 0.0, 1.0), 5, {}, (0.5, 0.0, 0.25))
    found, slot = cartridges.without_start(sentence, np.int64(40))
    assert (found.before, found.weights, found.supervision, slot) == ((), (0.0, 0.0, 1.0), (0.0, 0.0, 0.25), 41)
    answered = Sentence("qa", 0, (10, 11, 12), (0.0, 1.0, 1.0), None, {}, reading=Reading((7, 11, 12), (1, 2)))
    found, slot = cartridges.without_start(answered, np.int64(40))
    assert (found.before, found.weights, found.loss_tokens, slot) == ((), (0.0, 1.0, 1.0), [1, 2], 40)
    chat = dataclasses.replace(answered, before=(5, 6))
    assert cartridges.without_start(chat, 40) == (chat, 40), "a conversation begins in its own way"


def setup_of(model, entry=SYSTEM, **changes):
    train = dataclasses.replace(RECIPE.train, epochs=1)
    given = {"options": entry.options(), "recipe": dataclasses.replace(RECIPE, train=train), "unrelated": UNRELATED}
    return Setup(model, prompt_of(model), 4, **given | changes)


def test_it_is_asked_the_question_alone_and_answers_as_the_base_with_the_document(tiny_model):
    """With the whole document's own cache, untrained."""
    docs, prompt = documents(1), prompt_of(tiny_model)
    lora = cartridges.first_cartridge(tiny_model, docs, prompt, whole_length(tiny_model), "first")
    after = AfterCartridge(setup_of(tiny_model, lora=lora))
    variables = {"params": tiny_model.params}
    (expected,), (found,) = answer_questions(tiny_model.decoder(), variables, prompt, docs, True), after.answer(docs)
    (alone,) = answer_questions(tiny_model.decoder(), variables, prompt, docs, False)
    asked = len(prompt.question(docs[0].questions[0].question))
    assert found == [expected[0] | {"tokens": asked}]
    assert expected[0]["tokens"] == asked + whole_length(tiny_model)
    assert found[0]["paper"] != alone[0]["paper"], "the cartridge is read"


def test_its_drift_is_that_of_text_after_it(tiny_model):
    """Against the base that reads the document and each text in one row."""
    docs, prompt, texts = documents(1), prompt_of(tiny_model), ["The sky is wide and blue.", "Bread needs salt."]
    decoder, variables = tiny_model.decoder(), {"params": tiny_model.params}
    general = read_general(decoder, variables, prompt, texts, seq_len=64)
    lora = cartridges.first_cartridge(tiny_model, docs, prompt, whole_length(tiny_model), "first")
    found = AfterCartridge(setup_of(tiny_model, lora=lora)).drift(general)
    head, losses, divergences = decoder_module.output_head(tiny_model.params, tiny_model.config), [], []
    apply = jax.jit(decoder.apply)

    def log_probabilities(before, ids):
        row = np.asarray([[*before, *ids]], np.int32)
        positions = np.arange(row.shape[1], dtype=np.int32)[None]
        hidden, _ = apply(variables, row, positions, np.ones_like(row))
        logits = decoder_module.apply_head(hidden[0, len(before) : -1], head)
        return np.asarray(jax.nn.log_softmax(logits, axis=-1), np.float64)

    for text in texts:
        ids = prompt.text(text)
        after, before = (log_probabilities(b, ids) for b in (prompt.context_prefix(docs[0].text), prompt.start_ids))
        losses += [-after[n, token] for n, token in enumerate(ids[1:])]
        divergences += np.sum(np.exp(before) * (before - after), axis=1).tolist()
    assert found["tokens"] == len(losses)
    assert found["perplexity_after"] == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-4)
    assert found["kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert found["perplexity_before"] == pytest.approx(float(np.exp(general.nll / general.count)))
    assert found["kl"] > 0.01


def test_the_system_is_trained_measured_and_resumed(tiny_model, tmp_path):
    docs, prompt = documents(2), prompt_of(tiny_model)
    general = read_general(tiny_model.decoder(), {"params": tiny_model.params}, prompt, UNRELATED, seq_len=64)
    options = CartridgeOptions(tokens=10, check_every=2, learning_rate=5e-3)
    setup = setup_of(tiny_model, options=options, general=general, directory=tmp_path / "cartridge")
    made = SYSTEM.make(setup)
    made.prepare(docs)
    recipe = dataclasses.replace(setup.recipe, train=dataclasses.replace(setup.recipe.train, learning_rate=5e-3))
    expected = train(tiny_model, docs, 10, recipe=recipe)
    assert_same_adapter(made.lora, expected.lora)
    assert (tmp_path / "cartridge" / "health.json").exists() and expected.steps >= 2
    answers = made.answer(docs)
    assert [len(group) for group in answers] == [1, 1]
    assert made.drift(general)["kl"] > 0
    again = SYSTEM.make(setup)
    again.prepare(docs)
    assert again.answer(docs) == answers
    assert_same_adapter(again.lora, made.lora)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 1}, "tokens = 1, expected 0 .* or a whole number from 2"),
        ({"divide": 0}, "divide = 0, expected a whole number from 1"),
        ({"start": "last"}, "start = 'last', expected one of document, first, random"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0, expected 0"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CartridgeOptions(**changes)


def test_a_cartridge_that_leaves_no_room_for_a_row_is_refused(tiny_model):
    with pytest.raises(ValueError, match="got a cartridge of 900 tokens, expected 2 to 896: with a training row"):
        train(tiny_model, documents(), 900)
