"""Teacher states, row alignment, packing and devices: every fast path equals the obvious one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax import mesh as meshes
from selfparam_jax import targets, teacher, trainer, weights
from selfparam_jax.lora import LoraConfig, init_lora
from selfparam_jax.model import Decoder, apply_head, head_weight
from selfparam_jax.targets import Sentence

HEAD = (1,)
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0)
ROW = 48


def config_of(case, **changes):
    return weights.model_config_from_hf(tiny.hf_config(case, max_position_embeddings=512, **changes))


def make_sentences(rng, vocabulary, prefixes):
    """QA, tails and unrelated texts of many lengths (one token, too), with several weightings."""

    def ids(length):
        return tuple(int(i) for i in rng.integers(3, vocabulary, length))

    sentences = []
    for context in range(len(prefixes)):
        for length in (1, 2, 7, 12):
            sentences.append(Sentence("qa", context, ids(length), (1.0,) * length, None, {}))
        sentences.append(Sentence("qa", context, ids(9), (0.0,) * 5 + (1.0, 2.0, 1.0, 0.5), None, {}))
        start = len(prefixes[context]) - 6
        sentences.append(Sentence("tail", context, prefixes[context][start:], (1.0,) * 6, start, {}))
    sentences.append(Sentence("unrelated", None, ids(11), (0.5,) * 11, None, {}))
    return sentences


@pytest.fixture(params=["gqa", "mistral"])
def setup(request, random_params):
    config = config_of(request.param, **({"sliding_window": 8} if request.param == "mistral" else {}))
    params, rng = random_params(config), np.random.default_rng(0)
    prefixes = [HEAD + tuple(int(i) for i in rng.integers(3, config.vocab_size, n)) for n in (20, 33)]
    lora = init_lora(jax.random.key(1), params, LORA)
    noise = np.random.default_rng(2)
    lora = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), lora)
    return Decoder(config), params, lora, prefixes, make_sentences(rng, config.vocab_size, prefixes)


@functools.partial(jax.jit, static_argnames="model")
def _read(model, variables, row, positions, segments):
    return model.apply(variables, row, positions, segments)[0][0]


def read(model, variables, ids):
    """Final hidden states [T, D] of one plain row, padded to one length so that it compiles once."""
    row, positions = np.zeros((1, 64), np.int32), np.arange(64, dtype=np.int32)[None]
    row[0, : len(ids)] = ids
    segments = (positions < len(ids)).astype(np.int32)
    return np.asarray(_read(model, variables, row, positions, segments))[: len(ids)]


def teacher_ids(sentence, prefixes):
    prefix = HEAD if sentence.context is None else prefixes[sentence.context]
    return prefix[: sentence.start] if sentence.start is not None else prefix


def obvious_states(model, params, prefixes, sentences):
    """Context + sentence read as one row, every sentence on its own; token j is predicted one before it."""
    states = []
    for sentence in sentences:
        before = teacher_ids(sentence, prefixes)
        hidden = read(model, {"params": params}, before + sentence.ids)
        states += [hidden[len(before) + j - 1] for j, weight in enumerate(sentence.weights) if weight > 0]
    return np.stack(states)


def obvious_loss(model, params, lora, prefixes, sentences):
    """Sum and count of weight * KL in float64 from full logits, straight from METHOD section 1."""
    student_variables = {"params": params, "lora": lora}
    head, total, count = np.asarray(head_weight(params), np.float64), 0.0, 0.0

    def log_softmax(hidden):
        logits = hidden.astype(np.float64) @ head.T
        top = logits.max()
        return logits - top - np.log(np.exp(logits - top).sum())

    student = model.clone(lora_scale=LORA.scale)
    for sentence in sentences:
        before = teacher_ids(sentence, prefixes)
        with_context = read(model, {"params": params}, before + sentence.ids)
        without = read(student, student_variables, HEAD + sentence.ids)
        for j, weight in enumerate(sentence.weights):
            p, q = log_softmax(with_context[len(before) + j - 1]), log_softmax(without[len(HEAD) + j - 1])
            total += weight * np.sum(np.exp(p) * (p - q))
            count += weight
    return total, count


def train_config(**changes):
    defaults = {"learning_rate": 1e-2, "row_length": ROW, "loss_length": ROW, "batch_rows": 8, "epochs": 2}
    return trainer.TrainConfig(**{**defaults, **changes})


def states_of(setup):
    model, params, _, prefixes, sentences = setup
    return teacher.teacher_states(model, {"params": params}, prefixes, HEAD, sentences, ROW, rows_per_call=2)


def test_teacher_states_equal_full_rows(setup):
    model, params, _, prefixes, sentences = setup
    expected = obvious_states(model, params, prefixes, sentences)
    np.testing.assert_allclose(states_of(setup), expected, rtol=1e-5, atol=2e-5)


def test_the_first_sentence_token_is_predicted_from_the_last_context_token(setup):
    model, params, _, prefixes, sentences = setup
    assert sentences[0].ids == sentences[0].ids[:1], "the first sentence has one token"
    expected = read(model, {"params": params}, prefixes[0])[-1]
    np.testing.assert_allclose(states_of(setup)[0], expected, rtol=1e-5, atol=2e-5)
    piece = trainer.student_pieces(sentences, HEAD)[0]
    assert piece.predictors == (0,), "the student predicts it from BOS"
    assert piece.ids == HEAD + sentences[0].ids


@pytest.mark.parametrize("pack", [True, False])
def test_the_loss_over_packed_rows_equals_the_definition(setup, pack):
    model, params, lora, prefixes, sentences = setup
    config = train_config(pack=pack, epochs=1)
    rows = trainer.plan_rows(sentences, HEAD, config, unrelated_per_epoch=1)
    assert (len(rows.input_ids) < len(sentences)) == pack
    batch = one_batch(rows, states_of(setup))
    student = model.clone(lora_scale=LORA.scale)
    total, count = loss_of(lora, params, batch, student)
    expected_total, expected_count = obvious_loss(model, params, lora, prefixes, sentences)
    assert float(count) == pytest.approx(expected_count, rel=1e-6)
    assert float(total) == pytest.approx(expected_total, rel=1e-5)


@functools.partial(jax.jit, static_argnames="model")
def loss_of(lora, params, batch, model):
    return trainer.student_loss(lora, params, batch, jax.random.key(0), model, 1.0)


def one_batch(rows, store):
    fields = {name: value for name, value in vars(rows).items() if name != "slots"}
    return trainer.Batch(**fields, teacher=store[rows.slots])


def test_an_untrained_student_without_context_has_no_loss_on_unrelated_text(setup):
    model, params, _, prefixes, sentences = setup
    unrelated = [sentence for sentence in sentences if sentence.kind == "unrelated"]
    store = teacher.teacher_states(model, {"params": params}, prefixes, HEAD, unrelated, ROW)
    rows = trainer.plan_rows(unrelated, HEAD, train_config(epochs=1), unrelated_per_epoch=1)
    fresh = init_lora(jax.random.key(0), params, LORA)
    total, _ = loss_of(fresh, params, one_batch(rows, store), model)
    assert abs(float(total)) < 1e-5


def train(setup, devices, **changes):
    model, params, _, _, sentences = setup
    config = train_config(**changes)
    rows = trainer.plan_rows(sentences, HEAD, config, unrelated_per_epoch=1)
    steps = len(rows.input_ids) // config.batch_rows
    mesh = meshes.make_mesh(jax.devices()[:devices])
    optimizer = trainer.make_optimizer(config, steps)
    state = trainer.init_state(init_lora(jax.random.key(0), params, LORA), optimizer)
    state = jax.device_put(state, meshes.replicated(mesh))
    params = jax.device_put(params, meshes.replicated(mesh))
    student = model.clone(lora_scale=LORA.scale, lora_dropout=0.1)
    step = trainer.compile_step(student, optimizer, mesh)
    losses = []
    state = trainer.fit(
        state,
        params,
        step,
        trainer.batches(rows, states_of(setup), config, mesh, 0),
        jax.random.key(3),
        lambda number, values: losses.append(values["loss"]),
        lambda number, state: None,
    )
    return jax.device_get(state.lora), losses


def test_eight_devices_equal_one(setup):
    assert len(jax.devices()) == 8
    one, losses_one = train(setup, 1, epochs=6, pack=False)
    eight, losses_eight = train(setup, 8, epochs=6, pack=False)
    assert len(losses_one) == len(losses_eight) >= 6
    np.testing.assert_allclose(losses_eight, losses_one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), eight, one)
    # The comparison means something only if training moved the adapter and dropout took part.
    assert losses_one[-1] < losses_one[0]
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(one))


def test_the_step_equals_a_pmap_of_the_same_loss(setup):
    """The data axis is what pmap was: per-device sums, summed over devices, give the same gradient."""
    model, params, lora, _, sentences = setup
    rows = trainer.plan_rows(sentences, HEAD, train_config(epochs=1, pack=False), unrelated_per_epoch=1)
    batch = one_batch(rows, states_of(setup))
    student, key = model.clone(lora_scale=LORA.scale), jax.random.key(0)

    def total(lora, batch):
        return trainer.student_loss(lora, params, batch, key, student, 1.0)[0]

    gradient = jax.jit(jax.grad(total))(lora, batch)
    split = jax.tree.map(lambda x: jnp.asarray(x).reshape(8, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(lambda b: jax.lax.psum(jax.grad(total)(lora, b), "data"), axis_name="data")(split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5), mapped, gradient)


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"train\.batch_rows = 6 .* 8 devices; use a multiple of 8, for example 8"):
        meshes.check_rows(meshes.make_mesh(), 6, "train.batch_rows")


def test_supervision_adds_the_next_token_loss_of_the_supervised_tokens_alone(setup):
    """Against a float64 definition; a sentence with supervision only (no KL) counts, too."""
    model, params, lora, prefixes, sentences = setup
    supervised = [
        dataclasses.replace(sentences[4], supervision=(0.0,) * 5 + (0.5, 0.5, 0.25, 2.0)),
        dataclasses.replace(sentences[3], weights=(0.0,) * 12, supervision=(0.0,) * 8 + (1.0,) * 4),
        sentences[2],
    ]
    store = teacher.teacher_states(model, {"params": params}, prefixes, HEAD, supervised, ROW)
    rows = trainer.plan_rows(supervised, HEAD, train_config(epochs=1), unrelated_per_epoch=0)
    student = model.clone(lora_scale=LORA.scale)
    batch = one_batch(rows, store)
    total, count = trainer.student_loss(lora, params, batch, jax.random.key(0), student, 1.0, supervised=True)
    kl, weight = obvious_loss(model, params, lora, prefixes, [supervised[0], supervised[2]])
    head = np.asarray(head_weight(params), np.float64)
    for sentence in supervised[:2]:
        hidden = read(student, {"params": params, "lora": lora}, HEAD + sentence.ids)
        for j, share in enumerate(sentence.supervision):
            logits = hidden[len(HEAD) + j - 1].astype(np.float64) @ head.T
            kl += share * (np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[sentence.ids[j]])
            weight += share
    assert float(count) == pytest.approx(weight, rel=1e-6)
    assert float(total) == pytest.approx(kl, rel=1e-5)
    pure, _ = trainer.student_loss(lora, params, batch, jax.random.key(0), student, 1.0)
    assert float(pure) < float(total)


def test_unconfident_pairs_are_left_out(setup):
    """Confidence is the geometric mean probability of the sentence's own loss tokens, given the context."""
    model, params, _, prefixes, sentences = setup
    states, head = states_of(setup), np.asarray(head_weight(params), np.float64)
    confidence = teacher.answer_confidence(head_weight(params), states, sentences, chunk=16)
    expected = []
    for sentence in sentences:
        before = teacher_ids(sentence, prefixes)
        hidden = read(model, {"params": params}, before + sentence.ids).astype(np.float64)
        logits = hidden[[len(before) + j - 1 for j in sentence.loss_tokens]] @ head.T
        logits -= logits.max(axis=1, keepdims=True)
        log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        tokens = [sentence.ids[j] for j in sentence.loss_tokens]
        expected.append(np.exp(np.mean(log_probability[np.arange(len(tokens)), tokens])))
    np.testing.assert_allclose(confidence, expected, rtol=1e-3)
    pairs = [value for value, s in zip(expected, sentences, strict=True) if s.kind == "qa"]
    least = float(np.median(pairs))
    kept, kept_states = teacher.keep_confident(sentences, states, confidence, least)
    assert [s for s in sentences if s.kind != "qa"] == [s for s in kept if s.kind != "qa"]
    assert 0 < len(kept) < len(sentences)
    again = teacher.teacher_states(model, {"params": params}, prefixes, HEAD, kept, ROW)
    np.testing.assert_allclose(kept_states, again, rtol=1e-5, atol=2e-5)


def test_padding_rows_change_nothing(setup):
    model, params, lora, _, sentences = setup
    store = states_of(setup)
    student = model.clone(lora_scale=LORA.scale)
    sums = []
    for batch_rows in (1, 64):
        rows = trainer.plan_rows(sentences, HEAD, train_config(epochs=1, batch_rows=batch_rows), 1)
        loss = loss_of(lora, params, one_batch(rows, store), student)
        sums.append([float(value) for value in loss])
    assert sums[1] == pytest.approx(sums[0], rel=1e-6)


def test_the_order_is_a_function_of_the_seed_and_every_epoch_has_every_sentence(setup):
    sentences = setup[4]
    plan = [
        trainer.plan_rows(sentences, HEAD, train_config(seed=seed, batch_rows=1), unrelated_per_epoch=1)
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(plan[0].input_ids, plan[1].input_ids)
    assert not np.array_equal(plan[0].input_ids, plan[2].input_ids)
    slots = plan[0].slots[plan[0].weights > 0]
    total = targets.slot_starts(sentences)[-1]
    assert sorted(slots.tolist()) == sorted(list(range(total)) * 2)


def test_unrelated_texts_take_turns_over_epochs():
    texts = [Sentence("unrelated", None, (20 + n,) * 4, (1.0,) * 4, None, {}) for n in range(5)]
    seen = []
    for epochs in (1, 2, 3):
        rows = trainer.plan_rows(texts, HEAD, train_config(epochs=epochs, batch_rows=1), 2)
        seen.append([int(np.sum(rows.input_ids == 20 + n)) // 4 for n in range(5)])
    assert seen == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [2, 1, 1, 1, 1]]


def test_a_sentence_longer_than_a_row_is_refused(setup):
    with pytest.raises(ValueError, match=r"has 13 tokens.*a row holds 12"):
        trainer.plan_rows(setup[4], HEAD, train_config(row_length=12), unrelated_per_epoch=1)


def test_b_ratio_scales_only_b(setup):
    lora = init_lora(jax.random.key(0), setup[1], LORA)
    gradient = jax.tree.map(jnp.ones_like, lora)
    updates = []
    for ratio in (1.0, 4.0):
        optimizer = trainer.make_optimizer(train_config(b_ratio=ratio), 10)
        updates.append(optimizer.update(gradient, optimizer.init(lora), lora)[0])
    for path, once in jax.tree_util.tree_leaves_with_path(updates[0]):
        scaled = updates[1]
        for key in path:
            scaled = scaled[key.key]
        factor = 4.0 if path[-1].key == "b" else 1.0
        np.testing.assert_allclose(scaled, factor * once, rtol=1e-6)


def test_schedules():
    config = train_config(learning_rate=1.0, schedule="cosine", warmup=0.2, final_fraction=0.1)
    rate = trainer.learning_rate_schedule(config, 10)
    values = [float(rate(step)) for step in range(11)]
    assert values[0] == pytest.approx(1 / 3)
    assert values[2] == pytest.approx(1.0)
    assert values[10] == pytest.approx(0.1)
    assert float(trainer.learning_rate_schedule(dataclasses.replace(config, schedule="linear"), 10)(6)) == (
        pytest.approx(0.55)
    )
    with pytest.raises(ValueError, match="expected constant, linear or cosine"):
        trainer.learning_rate_schedule(dataclasses.replace(config, schedule="cosin"), 10)


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint(setup):
    """The step that fails is named, and no state that came after it is handed out for saving."""
    saved, seen = [], []

    def step(state, params, batch, key):
        number = int(state.step) + 1
        loss = jnp.float32(jnp.nan if number == 5 else 1.0)
        return trainer.TrainState({}, (), jnp.int32(number)), {"loss": loss, "grad_norm": jnp.float32(1.0)}

    state = trainer.TrainState({}, (), jnp.int32(0))
    with pytest.raises(trainer.NotFiniteError, match="nan at step 5"):
        trainer.fit(
            state,
            {},
            step,
            iter(range(10)),
            None,
            lambda number, values: seen.append(number),
            lambda number, state: saved.append(number),
            checkpoint_every=1,
        )
    assert saved == seen == [1, 2, 3, 4]


def test_logits_of_the_head_are_used_as_they_are(setup):
    """The teacher's distribution is softmax(head(h)) with h final and normed: nothing is applied in between."""
    model, params, _, prefixes, _ = setup
    hidden = read(model, {"params": params}, prefixes[0])
    logits = apply_head(jnp.asarray(hidden), head_weight(params))
    np.testing.assert_allclose(logits, hidden @ np.asarray(head_weight(params)).T, rtol=2e-4, atol=2e-4)
