"""Order, packing, loss, devices and steps: every fast path equals the obvious one."""

import dataclasses
import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from selfparam_jax.data.packing import NO_SLOT
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models.decoder import Decoder, head_weight
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.models.masks import PADDING
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.targets.sentences import Reading, Sentence, first_slots
from selfparam_jax.training import teacher_states, train_step, trainer
from selfparam_jax.training.batches import Plan, batches, make_batch, student_piece
from selfparam_jax.training.optimizer import (
    TrainConfig,
    learning_rate_schedule,
    learning_rates,
    make_optimizer,
    set_learning_rate,
)

HEAD = (1, 7)
LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj", "down_proj"))
ROW = 48
PLAIN, SHARP = train_step.LossConfig(), train_step.LossConfig(temperature=0.5)
# What the loss is made of: with a teacher, with supervision.
KINDS = {"kl": (True, False), "next token": (False, True), "both": (True, True)}


def ids_of(rng, length):
    return tuple(int(i) for i in rng.integers(3, tiny.SIZES["vocab_size"], length))


def make_sentences(rng, prefixes):
    """QA, tails and unrelated texts of many lengths (one token, too), with several weightings, contexts mixed."""
    sentences = []
    for context, prefix in enumerate(prefixes):
        for length in (1, 2, 7, 12):
            sentences.append(Sentence("qa", context, ids_of(rng, length), (1.0,) * length, None, {}))
        weighted = (0.0,) * 5 + (1.0, 2.0, 1.0, 0.5)
        sentences.append(Sentence("qa", context, ids_of(rng, 9), weighted, None, {}, (0.0,) * 6 + (0.5, 0.25, 2.0)))
        sentences.append(Sentence("qa", context, ids_of(rng, 4), (0.0,) * 4, None, {}, (1.0, 0.0, 0.0, 1.0)))
        sentences.append(Sentence("qa", context, ids_of(rng, 6), (0.0,) * 6, None, {}))
        start = len(prefix) - 6
        sentences.append(Sentence("tail", context, prefix[start:], (1.0,) * 6, start, {}))
        # The teacher reads the same three tokens after another question.
        ids, taught = ids_of(rng, 8), ids_of(rng, 4)
        reading, before = Reading(taught + ids[5:], (4, 5, 6)), ids_of(rng, 4)
        weighted = (0.0,) * 5 + (1.0, 2.0, 0.5)
        sentences.append(Sentence("qa", context, ids, weighted, None, {}, before=before, reading=reading))
        sentences.append(Sentence("qa", context, ids, weighted, None, {}, before=()))
    sentences.append(Sentence("unrelated", None, ids_of(rng, 11), (0.5,) * 11, None, {}))
    return [sentences[i] for i in rng.permutation(len(sentences))]


@dataclasses.dataclass(eq=False)
class Setup:
    model: Decoder
    params: dict
    lora: dict  # not zero, on the host: a step gives its state's memory away
    sentences: list
    first: np.ndarray
    states: np.ndarray  # the teacher's, by slot

    @property
    def student(self):
        return self.model.clone(lora_scale=LORA.scale)

    @property
    def store(self):
        half = len(self.states) // 2
        return teacher_states.Store([self.states[:half], self.states[half:]])

    def plan(self, **changes):
        return Plan(self.sentences, self.first, HEAD, train_config(**changes), 1)


def train_config(**changes):
    defaults = {"learning_rate": 1e-2, "seq_len": ROW, "batch_size": 8, "epochs": 1}
    defaults |= {"schedule": "constant", "warmup": 0.0, "final_fraction": 0.0, "clip_norm": 0.0, "beta2": 0.999}
    return TrainConfig(**{**defaults, **changes})


def mesh_of(devices):
    return meshes.make_mesh(jax.devices()[:devices])


@functools.partial(jax.jit, static_argnames="model")
def _read(model, variables, ids, positions, segments):
    return model.apply(variables, ids, positions, segments)[0]


def read(model, variables, texts, length=64):
    """Final hidden states [texts, length, D]: each text a row of its own from position 0."""
    ids = np.zeros((len(texts), length), np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), ids.shape)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    segments = positions < np.asarray([len(text) for text in texts])[:, None]
    return _read(model, variables, ids, positions, segments.astype(np.int32))


@pytest.fixture(scope="module")
def setups(random_params):
    @functools.cache
    def make(case):
        changes = {"sliding_window": 8} if case == "mistral" else {}
        config = model_config_from_hf(tiny.hf_config(case, max_position_embeddings=64, **changes))
        model, params, rng = Decoder(config), random_params(config), np.random.default_rng(0)
        prefixes = [HEAD + ids_of(rng, length) for length in (20, 33)]
        sentences = make_sentences(rng, prefixes)
        lora, noise = jax.device_get(init_lora(jax.random.key(1), params, LORA)), np.random.default_rng(2)
        lora = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape, np.float32), lora)
        # The teacher's states from plain rows; that the stored ones are equal is proved in test_teacher.py.
        first = first_slots(sentences)
        before = [HEAD if s.context is None else prefixes[s.context][: s.start] for s in sentences]
        texts = [ids + (s.reading.ids if s.reading else s.ids) for ids, s in zip(before, sentences, strict=True)]
        hidden = np.asarray(read(model, {"params": params}, texts))
        states = np.zeros((sum(len(s.loss_tokens) for s in sentences), config.hidden_size), np.float32)
        for i, s in enumerate(sentences):
            at = [len(before[i]) + j - 1 for j in (s.reading.loss_tokens if s.reading else s.loss_tokens)]
            states[first[i] : first[i] + len(at)] = hidden[i, at]
        return Setup(model, params, lora, sentences, first, states)

    return make


@pytest.fixture
def llama(setups):
    return setups("gqa")


def assert_close(found, expected):
    """To 1e-5, of the value or of the typical value where that is larger; for whole trees."""

    def close(found, expected):
        typical = np.sqrt(np.mean(np.square(expected)))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * typical)

    jax.tree.map(close, found, expected)


# --- the loss ------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def loss_and_gradient(lora, params, batch, model, loss):
    def total(lora):
        return train_step.student_loss(lora, params, batch, jax.random.key(0), model, loss)

    (value, count), gradient = jax.value_and_grad(total, has_aux=True)(lora)
    return value, count, gradient


@functools.cache
def sums_of(setup, kind, loss, **changes):
    """Loss, weight and gradient, summed over the steps of one epoch."""
    with_teacher, supervised = KINDS[kind]
    plan = setup.plan(**changes)
    data = batches(plan, setup.store if with_teacher else None, mesh_of(1), supervised)
    student = setup.student
    parts = [jax.device_get(loss_and_gradient(setup.lora, setup.params, batch, student, loss)) for batch in data]
    assert len(parts) == plan.steps
    return jax.tree.map(lambda *leaves: np.sum(np.asarray(leaves, np.float64), axis=0), *parts)


def definition(setup, kind, temperature):
    """The same, straight from METHOD section 1: full logits of one plain row per sentence.

    The loss is float64 given the hidden states; the gradient is what JAX derives from the plain expression.
    """
    with_teacher, supervised = KINDS[kind]
    rows, at, slots, tokens, kl_weights, token_weights = [], [], [], [], [], []
    for i, sentence in enumerate(setup.sentences):
        for n, j in enumerate(sentence.loss_tokens):
            rows.append(i)
            at.append(len(sentence.start_ids(HEAD)) + j - 1)
            slots.append(setup.first[i] + n)
            tokens.append(sentence.ids[j])
            kl_weights.append(sentence.weights[j] if with_teacher else 0.0)
            token_weights.append(sentence.supervision[j] if supervised and sentence.supervision else 0.0)
    head, texts = head_weight(setup.params), [s.start_ids(HEAD) + s.ids for s in setup.sentences]

    def total(hidden, head, xp, dtype):
        def log_softmax(states, temperature):
            logits = states.astype(dtype) @ head.astype(dtype).T / temperature
            logits = logits - logits.max(axis=1, keepdims=True)
            return logits - xp.log(xp.exp(logits).sum(axis=1, keepdims=True))

        student = hidden[np.asarray(rows), np.asarray(at)]
        p, q = log_softmax(xp.asarray(setup.states[slots]), temperature), log_softmax(student, temperature)
        kl = (xp.exp(p) * (p - q)).sum(axis=1)
        next_token = -log_softmax(student, 1.0)[np.arange(len(tokens)), np.asarray(tokens)]
        return (xp.asarray(kl_weights, dtype) * kl + xp.asarray(token_weights, dtype) * next_token).sum()

    def of_adapter(lora):
        return total(read(setup.student, {"params": setup.params, "lora": lora}, texts), head, jnp, jnp.float32)

    hidden = np.asarray(read(setup.student, {"params": setup.params, "lora": setup.lora}, texts))
    value = total(hidden, np.asarray(head), np, np.float64)
    return value, sum(kl_weights) + sum(token_weights), jax.device_get(jax.jit(jax.grad(of_adapter))(setup.lora))


@pytest.mark.parametrize(
    ("case", "kind", "loss"),
    [("gqa", "both", SHARP), ("gqa", "next token", PLAIN), ("mistral", "kl", PLAIN)],
)
def test_packed_equals_unpacked_equals_the_definition(setups, case, kind, loss):
    setup = setups(case)
    packed, unpacked = (sums_of(setup, kind, loss, pack=pack) for pack in (True, False))
    expected = definition(setup, kind, loss.temperature)
    assert setup.plan(pack=True).steps == 1 < setup.plan(pack=False).steps
    assert expected[0] > 1
    assert_close(packed, expected)
    assert_close(unpacked, expected)
    assert_close(packed, unpacked)


SHAPES = [
    (1, {"batch_size": 1}),
    (3, {"batch_size": 3, "seq_len": 14}),
    (10**6, {"batch_size": 40, "seq_len": 90}),
    (SHARP.chunk, {"seed": 5}),
]


@pytest.mark.parametrize(("chunk", "changes"), SHAPES)
def test_padding_the_shape_of_a_batch_and_the_size_of_a_chunk_change_nothing(llama, chunk, changes):
    found = sums_of(llama, "both", dataclasses.replace(SHARP, chunk=chunk), **changes)
    assert_close(found, sums_of(llama, "both", SHARP))


def test_an_untrained_student_without_context_has_no_loss_on_unrelated_text(setups):
    mistral = setups("mistral")
    chosen = [i for i, sentence in enumerate(mistral.sentences) if sentence.kind == "unrelated"]
    some, lora = [mistral.sentences[i] for i in chosen], init_lora(jax.random.key(0), mistral.params, LORA)
    alone = dataclasses.replace(mistral, sentences=some, first=mistral.first[chosen], lora=lora)
    value, count, _ = sums_of(alone, "kl", PLAIN)
    assert count == pytest.approx(5.5)
    assert abs(value) < 1e-5


@pytest.mark.parametrize("devices", [1, 8])
def test_a_batch_holds_what_its_rows_say(llama, devices):
    """Looked up position by position: the next token, its weights, and the teacher's state for it."""
    plan = llama.plan(batch_size=8)
    batch, rows = make_batch(plan.rows(0), llama.store, mesh_of(devices), True), plan.rows(0)
    for name in ("input_ids", "positions", "segments"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(rows, name))
        assert len(getattr(batch, name).sharding.device_set) == devices
    groups = np.split(np.arange(8), devices)
    assert batch.index.shape == (devices, 8 // devices * ROW)
    assert np.asarray(batch.signal.used).tolist() == [int(np.sum(rows.slots[g] != NO_SLOT)) for g in groups]
    signal, seen = jax.device_get(batch.signal), []
    for group, members in enumerate(groups):
        for n in range(signal.used[group]):
            row, at = members[0] + batch.index[group, n] // ROW, batch.index[group, n] % ROW
            assert signal.targets[group, n] == rows.input_ids[row, at + 1]
            assert signal.weights[group, n] == rows.weights[row, at]
            assert signal.supervision[group, n] == rows.supervision[row, at]
            np.testing.assert_array_equal(signal.teacher[group, n], llama.states[rows.slots[row, at]])
            seen.append(int(rows.slots[row, at]))
        assert not signal.weights[group, signal.used[group] :].any()
        assert not signal.teacher[group, signal.used[group] :].any()
    assert sorted(seen) == list(range(len(llama.states)))
    for with_teacher, supervised in KINDS.values():
        part = make_batch(rows, llama.store if with_teacher else None, mesh_of(devices), supervised).signal
        assert [part.teacher is None, part.weights is None] == [not with_teacher] * 2
        assert [part.targets is None, part.supervision is None] == [not supervised] * 2


def test_batches_begin_at_any_step(llama):
    plan = llama.plan(epochs=4, batch_size=3)
    whole = list(batches(plan, llama.store, mesh_of(1), True))
    rest = list(batches(plan, llama.store, mesh_of(1), True, first=2))
    assert len(whole) == plan.steps == len(rest) + 2 > 3
    jax.tree.map(np.testing.assert_array_equal, whole[2:], rest)


def test_a_sentence_as_the_student_reads_it():
    sentence = Sentence("qa", 0, (10, 11, 12, 13), (1.0, 0.0, 0.5, 0.0), None, {}, (0.0, 0.0, 0.25, 2.0))
    piece = student_piece(sentence, HEAD, np.int64(40))
    assert piece.ids == (*HEAD, 10, 11, 12, 13)
    assert piece.first_position == 0
    assert piece.predictors == (1, 3, 4), "the head's last token predicts token 0"
    assert (piece.weights, piece.supervision) == ((1.0, 0.5, 0.0), (0.0, 0.25, 2.0))
    assert piece.slots == (40, 41, 42)
    assert student_piece(dataclasses.replace(sentence, supervision=()), HEAD, 0).supervision == (0.0, 0.0)


def test_a_sentence_that_begins_in_its_own_way_as_the_student_reads_it():
    sentence = Sentence("qa", 0, (10, 11, 12), (0.0, 1.0, 1.0), None, {}, before=(20, 21, 22), reading=None)
    piece = student_piece(sentence, HEAD, 0)
    assert piece.ids == (20, 21, 22, 10, 11, 12)
    assert piece.predictors == (3, 4)
    assert student_piece(dataclasses.replace(sentence, before=()), HEAD, 0).predictors == (0, 1)


# --- which sentence in which row -----------------------------------------------------------------------


def texts_of(lengths, kind="qa"):
    return [Sentence(kind, None, (20 + n,) * length, (1.0,) * length, None, {}) for n, length in enumerate(lengths)]


def plan_of(sentences, unrelated=0, **changes):
    return Plan(sentences, first_slots(sentences), HEAD, train_config(**changes), unrelated)


def rows_of(plan):
    """The sentences of all rows of all steps, in order."""
    return list(itertools.chain.from_iterable(plan.assignment(step) for step in range(plan.steps)))


MANY = texts_of(np.random.default_rng(0).integers(1, 40, 60))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_every_epoch_has_every_sentence_once_and_rows_go_on_across_epochs(pack, batch_size):
    plan = plan_of(MANY, epochs=3, batch_size=batch_size, pack=pack)
    rows = rows_of(plan)
    count = sum(bool(row) for row in rows)
    assert all(rows[:count]), "empty rows come last"
    assert plan.steps == -(-count // batch_size)
    assert len(rows) == plan.steps * batch_size
    done, epochs = 0, []
    for _ in range(3):
        epoch = []
        while len(epoch) < len(MANY):
            epoch += rows[done]
            done += 1
        assert sorted(epoch) == list(range(len(MANY)))
        epochs.append(epoch)
    assert done == count
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    if not pack:
        assert all(len(row) == 1 for row in rows[:count])
        assert count == 3 * len(MANY)
    else:
        assert count < 2 * len(MANY)


@pytest.mark.parametrize("epochs", [1, 3])
def test_fill_and_sentence_tokens_are_what_counting_gives(epochs):
    plan = plan_of(MANY, epochs=epochs, batch_size=5)
    rows = [plan.rows(step) for step in range(plan.steps)]
    used = sum(int(np.sum(part.segments != PADDING)) for part in rows)
    assert plan.fill == pytest.approx(used / (plan.steps * 5 * ROW), rel=1e-12)
    assert 0.5 < plan.fill < 1
    for step, part in enumerate(rows):
        assert part.input_ids.shape == (5, ROW)
        assert plan.sentence_tokens(step) == int(np.sum(part.input_ids >= 20))
    assert sum(map(plan.sentence_tokens, range(plan.steps))) == epochs * sum(len(s.ids) for s in MANY)


def test_a_row_holds_its_sentences_and_their_slots():
    plan = plan_of(MANY, batch_size=4)
    first = first_slots(MANY)
    for step in range(plan.steps):
        rows = plan.rows(step)
        for r, members in enumerate(plan.assignment(step)):
            ids = [token for i in members for token in (*HEAD, *MANY[i].ids)]
            assert rows.input_ids[r].tolist() == ids + [0] * (ROW - len(ids))
            slots = [first[i] + n for i in members for n in range(len(MANY[i].ids))]
            assert rows.slots[r][rows.slots[r] != NO_SLOT].tolist() == slots


def test_the_order_is_a_function_of_seed_and_step():
    plan, again, other = (plan_of(MANY, epochs=4, batch_size=4, seed=seed) for seed in (3, 3, 4))
    expected = [plan.assignment(step) for step in range(plan.steps)]
    for step in np.random.default_rng(0).permutation(2 * plan.steps) % plan.steps:
        assert again.assignment(int(step)) == expected[step]
    assert [other.assignment(step) for step in range(other.steps)] != expected
    assert other.assignment(0) != expected[0]


def test_more_epochs_only_add_steps():
    """The steps that both have are the same, so a run can be planned longer and go on."""
    short, long = (plan_of(MANY, epochs=epochs, batch_size=1) for epochs in (2, 5))
    assert rows_of(long)[: short.steps] == rows_of(short)


@pytest.mark.parametrize(
    ("per_epoch", "expected"),
    [
        (2, [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [2, 1, 1, 1, 1]]),
        (7, [[2, 2, 1, 1, 1], [3, 3, 3, 3, 2], [5, 4, 4, 4, 4]]),
        (0, [[0] * 5] * 3),
    ],
)
def test_unrelated_texts_take_turns_over_epochs(per_epoch, expected):
    texts = texts_of([4] * 5, "unrelated") + texts_of([3, 3])
    for epochs, counts in zip((1, 2, 3), expected, strict=True):
        rows = rows_of(plan_of(texts, per_epoch, epochs=epochs, batch_size=2))
        members = [i for row in rows for i in row]
        assert [members.count(n) for n in range(7)] == [*counts, epochs, epochs]


# What stands in each row of each epoch's sentences: due in every epoch, in some, in none.
DUE = (None, (0,), (1, 2), (0, 2), (), (2,))
OF_EPOCHS = ([0, 1, 3], [0, 2], [0, 2, 3, 5])


def due(epochs=DUE, kind="tail"):
    return [dataclasses.replace(s, epochs=e) for s, e in zip(texts_of([4] * len(epochs), kind), epochs, strict=True)]


def split_epochs(rows, sizes):
    """Sorted members of the epochs, by how many there are in each; what is left is empty rows."""
    members = [i for row in rows for i in row]
    assert len(members) == sum(sizes)
    ends = np.cumsum([0, *sizes])
    return [sorted(members[a:b]) for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_epoch_has_what_is_due_in_it(batch_size):
    plan = plan_of(due(), epochs=3, batch_size=batch_size, pack=False)
    rows = rows_of(plan)
    assert split_epochs(rows, [3, 2, 4]) == [*OF_EPOCHS]
    assert [len(row) for row in rows] == [1] * 9 + [0] * (len(rows) - 9)
    assert plan.steps == -(-9 // batch_size)
    assert plan.fill == pytest.approx(9 * (len(HEAD) + 4) / (plan.steps * batch_size * ROW))
    assert sum(map(plan.sentence_tokens, range(plan.steps))) == 9 * 4


def test_what_is_due_in_an_epoch_and_unrelated_texts_in_turn():
    sentences = texts_of([3] * 3, "unrelated") + due()
    plan = plan_of(sentences, 2, epochs=3, batch_size=2, pack=False)
    in_turn = ([0, 1], [2, 0], [1, 2])
    expected = [sorted(texts + [i + 3 for i in of]) for texts, of in zip(in_turn, OF_EPOCHS, strict=True)]
    assert split_epochs(rows_of(plan), [5, 4, 6]) == expected


def test_an_epoch_in_which_nothing_is_due_has_no_rows():
    plan = plan_of(due([(1,), (1, 3), (3,)]), epochs=5, batch_size=1, pack=False)
    assert split_epochs(rows_of(plan), [0, 2, 0, 2, 0]) == [[], [0, 1], [], [1, 2], []]
    assert plan.steps == 4
    with pytest.raises(ValueError, match="no sentence is left"):
        plan_of(due([(5,), ()]), epochs=5)


def test_a_plan_of_sentences_of_some_epochs_can_be_taken_up_at_any_step():
    sentences = MANY + due([(n % 4, 4 + n % 3) for n in range(30)])
    plan, again = (plan_of(sentences, epochs=7, batch_size=3, seed=5) for _ in range(2))
    expected = [plan.assignment(step) for step in range(plan.steps)]
    for step in reversed(range(plan.steps)):
        assert again.assignment(step) == expected[step]
    members = [i for rows in expected for row in rows for i in row]
    assert [members.count(i) for i in range(90)] == [7] * 60 + [2] * 30


def test_the_plan_of_sentences_of_every_epoch_is_what_it_was():
    """Rows written down before sentences could be of some epochs only: a run of then is taken up as it was."""
    lengths = [9, 11, 8, 11, 11, 7, 21, 11, 5, 30, 11, 8, 12]
    kinds = {8: "tail", 11: "unrelated"}
    sentences = [texts_of([length], kinds.get(length, "qa"))[0] for length in lengths]
    plan = plan_of(sentences, 3, epochs=3, batch_size=2, seed=4)
    assert [plan.assignment(step) for step in range(plan.steps)] == [
        [[5, 8], [9, 12]],
        [[6, 1, 0], [4, 3, 2, 11]],
        [[9, 12], [6, 10, 0]],
        [[5, 8], [1, 7, 2, 11]],
        [[7, 4, 2, 11], [9, 12]],
        [[5, 8], [6, 3, 0]],
    ]


@pytest.mark.parametrize("pack", [True, False])
def test_a_sentence_longer_than_a_row_is_refused(pack):
    with pytest.raises(ValueError, match=r"has 14 tokens.*a row holds 13.*raise train\.seq_len"):
        plan_of(texts_of([12, 3]), seq_len=13, pack=pack)
    assert plan_of(texts_of([12, 3]), seq_len=14, pack=pack).steps == 1


# --- devices -------------------------------------------------------------------------------------------


TRAINING = {"epochs": 16, "schedule": "cosine", "warmup": 0.3, "clip_norm": 0.5, "weight_decay": 0.01}


@functools.cache
def stepper(setup, devices):
    """TRAINING's plan, optimizer and compiled step, with dropout."""
    plan = setup.plan(**TRAINING)
    optimizer = make_optimizer(train_config(**TRAINING), plan.steps)
    step = train_step.compile_step(setup.student.clone(lora_dropout=0.1), optimizer, mesh_of(devices))
    return plan, optimizer, step


def train(setup, devices, until=None, state=None):
    """Trains from the fresh adapter (or a state); returns the state on the host, and the metrics of each step."""
    plan, optimizer, step = stepper(setup, devices)
    if state is None:
        state = train_step.init_state(init_lora(jax.random.key(0), setup.params, LORA), optimizer)
    data, metrics = batches(plan, setup.store, mesh_of(devices), True, int(state.step)), []
    state = trainer.fit(
        jax.device_put(state, meshes.replicated(mesh_of(devices))),
        jax.device_put(setup.params, meshes.replicated(mesh_of(devices))),
        step,
        itertools.islice(data, until),
        jax.random.key(3),
        lambda number, values: metrics.append((number, values["loss"], values["grad_norm"])),
        lambda number, state: None,
        learning_rates=learning_rates(train_config(**TRAINING), plan.steps),
    )
    return jax.device_get(state), metrics


def test_eight_devices_equal_one(llama):
    """A whole training; Adam's division makes more of a rounding error where a gradient is near zero."""
    assert len(jax.devices()) == 8
    one, metrics_one = train(llama, 1)
    eight, metrics_eight = train(llama, 8)
    assert len(metrics_one) == len(metrics_eight) >= 6
    np.testing.assert_allclose(metrics_eight, metrics_one, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), eight.lora, one.lora)
    # The comparison means something only if training moved the adapter.
    assert metrics_one[-1][1] < metrics_one[0][1]
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(one.lora))


@pytest.mark.parametrize("devices", [1, 8])
def test_resumed_equals_uninterrupted(llama, devices):
    """Bit for bit: order, dropout, optimizer and schedule go on where they were."""
    whole, metrics = train(llama, devices)
    begun, first = train(llama, devices, until=3)
    assert int(begun.step) == 3 < int(whole.step) == stepper(llama, devices)[0].steps
    done, rest = train(llama, devices, state=begun)
    assert first + rest == metrics
    jax.tree.map(np.testing.assert_array_equal, done, whole)


def test_every_step_drops_other_inputs(llama):
    plan, optimizer, step = stepper(llama, 1)
    batch, losses = next(batches(plan, llama.store, mesh_of(1), True)), []
    for number in (0, 0, 1):
        state = train_step.init_state(llama.lora, optimizer).replace(step=jnp.int32(number))
        losses.append(float(step(state, llama.params, batch, jax.random.key(3))[1]["loss"]))
    assert losses[0] == losses[1] != losses[2]


def descend(setup, devices, rate, loss=PLAIN, dropout=0.0, **changes):
    """One step of plain descent from the setup's adapter: the new state and the metrics, on the host."""
    mesh = mesh_of(devices)
    batch = next(batches(setup.plan(**changes), setup.store, mesh, True))
    step = train_step.compile_step(setup.student.clone(lora_dropout=dropout), optax.sgd(rate), mesh, loss)
    start = jax.device_put(train_step.init_state(setup.lora, optax.sgd(rate)), meshes.replicated(mesh))
    params = jax.device_put(setup.params, meshes.replicated(mesh))
    return jax.device_get(step(start, params, batch, jax.random.key(3)))


def test_one_step_on_eight_devices_equals_one_to_rounding(setups):
    """The rate is so high that the adapter after the step is the gradient; dropout takes part."""
    one, eight = (descend(setups("mistral"), devices, 1e4, dropout=0.1, pack=False) for devices in (1, 8))
    assert_close(eight, one)
    assert one[1]["grad_norm"] > 1e-2


def test_the_step_reports_the_loss_and_the_gradient_before_it(llama):
    value, count, gradient = sums_of(llama, "both", SHARP)
    state, metrics = descend(llama, 1, 1e4, SHARP)
    assert int(state.step) == 1
    mean = jax.tree.map(lambda leaf: leaf / count, gradient)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(mean)))
    assert_close(metrics, {"loss": value / count, "grad_norm": norm})
    assert_close(state.lora, jax.tree.map(lambda old, leaf: old - 1e4 * leaf, llama.lora, mean))


def test_the_step_equals_a_pmap_of_the_same_loss(llama):
    """The data axis is what pmap was: per-device sums, summed over devices, give the same gradient."""
    batch = next(batches(llama.plan(pack=False), llama.store, mesh_of(8), True))
    whole = loss_and_gradient(llama.lora, llama.params, batch, llama.student, PLAIN)

    def of_device(lora, params, batch):
        return jax.lax.psum(loss_and_gradient(lora, params, batch, llama.student, PLAIN), "data")

    split = jax.tree.map(lambda x: np.asarray(x).reshape(8, -1, *x.shape[1:]), batch)
    mapped = jax.pmap(of_device, axis_name="data", in_axes=(None, None, 0))(llama.lora, llama.params, split)
    assert_close(jax.tree.map(lambda leaf: np.asarray(leaf[0]), mapped), jax.device_get(whole))


def test_whole_steps_equal_those_of_a_pmap(llama):
    """Optimizer and all, three steps long: the program over the mesh, and the same function a device under pmap."""
    config, mesh = train_config(epochs=3, clip_norm=0.5), mesh_of(8)
    optimizer = make_optimizer(config, 3)
    batch = next(batches(llama.plan(pack=False), llama.store, mesh, True))
    split = jax.tree.map(lambda x: np.asarray(x).reshape(8, -1, *x.shape[1:]), batch)

    def of_device(state, params, rows):
        found = jax.lax.psum(loss_and_gradient(state.lora, params, rows, llama.student, PLAIN), "data")
        gradient = jax.tree.map(lambda leaf: leaf / found[1], found[2])
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.lora)
        state = train_step.TrainState(optax.apply_updates(state.lora, updates), opt_state, state.step + 1)
        return state, {"loss": found[0] / found[1], "grad_norm": optax.tree.norm(gradient)}

    mapped = jax.pmap(of_device, axis_name="data", in_axes=(None, None, 0))
    step = train_step.compile_step(llama.student, optimizer, mesh, PLAIN)
    params = jax.device_put(llama.params, meshes.replicated(mesh))
    ours = jax.device_put(train_step.init_state(llama.lora, optimizer), meshes.replicated(mesh))
    theirs = jax.device_get(ours)
    for _ in range(3):
        ours, metrics = step(ours, params, batch, jax.random.key(0))
        everywhere = mapped(theirs, llama.params, split)
        theirs, wanted = jax.tree.map(lambda leaf: np.asarray(leaf[0]), everywhere)
        assert_close(jax.device_get(metrics), wanted)
    assert_close(jax.device_get(ours.lora), theirs.lora)
    assert int(ours.step) == int(theirs.step) == 3


def test_rows_that_do_not_divide_are_refused(all_devices):
    with pytest.raises(
        ValueError, match=r"train\.batch_size = 6 .* 8 devices .*; use a multiple of 8, for example 8"
    ):
        meshes.check_rows(meshes.make_mesh(), 6, "train.batch_size")


# --- steps ---------------------------------------------------------------------------------------------


def test_b_ratio_scales_only_b(llama):
    gradient = jax.tree.map(jnp.ones_like, llama.lora)
    updates = []
    for ratio in (1.0, 4.0):
        optimizer = make_optimizer(train_config(loraplus_ratio=ratio), 10)
        updates.append(optimizer.update(gradient, optimizer.init(llama.lora), llama.lora)[0])
    for path, once in jax.tree_util.tree_leaves_with_path(updates[0]):
        scaled = updates[1]
        for key in path:
            scaled = scaled[key.key]
        factor = 4.0 if path[-1].key == "b" else 1.0
        np.testing.assert_allclose(scaled, factor * once, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_optimizer_is_adamw(llama, schedule):
    """Against optax's own, over a whole schedule; and injections of different length share one update."""
    config = train_config(
        schedule=schedule, warmup=0.3, final_fraction=0.2, clip_norm=0.7, weight_decay=0.1, beta1=0.8, beta2=0.95
    )
    steps, peak = 10, config.learning_rate
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.2 * peak, 7),
        "cosine": optax.cosine_decay_schedule(peak, 7, 0.2),
    }
    rate = optax.join_schedules([optax.linear_schedule(peak / 4, peak, 3), after[schedule]], [3])
    theirs = optax.chain(optax.clip_by_global_norm(0.7), optax.adamw(rate, b1=0.8, b2=0.95, weight_decay=0.1))
    ours, rates = make_optimizer(config, steps), learning_rates(config, steps)
    gradient = jax.tree.map(lambda leaf: jnp.cos(40 * leaf + 1), llama.lora)
    states = [optimizer.init(llama.lora) for optimizer in (ours, theirs)]
    assert states[0].hyperparams["learning_rate"] == rates[0], "the first step has its rate from the start"
    for step in range(steps):
        states[0] = set_learning_rate(states[0], rates[step])
        found = [o.update(gradient, s, llama.lora) for o, s in zip((ours, theirs), states, strict=True)]
        states = [state for _, state in found]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), found[0][0], found[1][0])
        np.testing.assert_allclose(learning_rate_schedule(config, steps)(step), rate(step), rtol=1e-6)
        np.testing.assert_allclose(rates[step], rate(step), rtol=1e-6)
        gradient = jax.tree.map(lambda leaf: leaf * 0.9, gradient)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"seed": 9, "epochs": 4, "checkpoint_every": 7}, True),
        ({"learning_rate": 0.5, "schedule": "linear", "warmup": 0.5, "final_fraction": 0.3}, True),
        ({"beta2": 0.9}, False),
        ({"clip_norm": 0.3}, False),
        ({"weight_decay": 0.2}, False),
        ({"loraplus_ratio": 2.0}, False),
    ],
)
def test_what_does_not_change_the_program_shares_it(llama, changes, same):
    config = train_config()
    one, other = make_optimizer(config, 10), make_optimizer(dataclasses.replace(config, **changes), 55)
    assert (one.update is other.update) == same
    steps = [train_step.compile_step(llama.student, optimizer, mesh_of(1)) for optimizer in (one, other)]
    assert (steps[0] is steps[1]) == same


def test_injections_of_different_length_run_one_program(llama):
    """Two trainings, of other lengths, rates and seeds: the step is compiled once."""
    compiled = None
    for epochs, rate, seed in ((1, 1e-2, 0), (3, 1e-3, 4)):
        config = train_config(epochs=epochs, learning_rate=rate, seed=seed, weight_decay=0.03)
        plan = Plan(llama.sentences, llama.first, HEAD, config, 1)
        optimizer, mesh = make_optimizer(config, plan.steps), mesh_of(1)
        step = train_step.compile_step(llama.student, optimizer, mesh)
        state = meshes.put_same(
            mesh, train_step.init_state(init_lora(jax.random.key(0), llama.params, LORA), optimizer)
        )
        trainer.fit(
            state, jax.device_put(llama.params, meshes.replicated(mesh)), step,
            batches(plan, llama.store, mesh, True), jax.random.key(seed), lambda *_: None, lambda *_: None,
            learning_rates=learning_rates(config, plan.steps),
        )  # fmt: skip
        assert step._cache_size() == 1
        assert compiled is None or compiled is step
        compiled = step


def test_the_rate_of_every_step_is_the_one_that_is_used(llama):
    """Without gradient noise: Adam's first updates have the size of the rate, so the adapter shows it."""
    config = train_config(learning_rate=1e-2, schedule="linear", warmup=0.5, clip_norm=0.0, beta1=0.0, beta2=0.0)
    rates, optimizer = learning_rates(config, 6), make_optimizer(config, 6)

    @jax.jit
    def run(state, params, batch, key):
        gradient = jax.tree.map(jnp.ones_like, state.lora)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.lora)
        moved = {"loss": -jax.tree.leaves(updates)[0].reshape(-1)[0], "grad_norm": jnp.float32(1.0)}
        return train_step.TrainState(optax.apply_updates(state.lora, updates), opt_state, state.step + 1), moved

    for first in (0, 2):  # from the start, and resumed with the rate of another step in the state
        seen = []
        state = train_step.init_state(llama.lora, optimizer).replace(step=jnp.int32(first))
        trainer.fit(
            state, {}, run, iter(range(6 - first)), None, lambda _, values, seen=seen: seen.append(values["loss"]),
            lambda *_: None, learning_rates=rates,
        )  # fmt: skip
        np.testing.assert_allclose(seen, rates[first:], rtol=1e-6)
    assert len(set(rates.tolist())) > 4


def test_schedules():
    config = train_config(learning_rate=1.0, schedule="cosine", warmup=0.2, final_fraction=0.1)
    rate = learning_rate_schedule(config, 10)
    values = [float(rate(step)) for step in range(11)]
    assert values[0] == pytest.approx(1 / 3)
    assert values[2] == pytest.approx(1.0)
    assert values[10] == pytest.approx(0.1)
    assert learning_rates(config, 10).tolist() == values[:10]
    linear = learning_rate_schedule(dataclasses.replace(config, schedule="linear"), 10)
    assert float(linear(6)) == pytest.approx(0.55)
    constant = learning_rate_schedule(dataclasses.replace(config, schedule="constant", warmup=0.0), 10)
    assert [float(constant(step)) for step in (0, 9)] == [1.0, 1.0]


def test_the_default_learning_rates_are_what_they_were():
    """float32 bits of 145 steps with the default schedule, as the step computed them before optax's schedules did."""
    rates = learning_rates(TrainConfig(learning_rate=4e-3), 145)
    bits = {0: 973279855, 6: 996499522, 7: 998445679, 24: 998043481, 76: 990486567, 130: 966942665, 144: 961690430}
    assert {step: int(rates[step].view(np.int32)) for step in bits} == bits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, r"train\.schedule = 'cosin', expected 'constant', 'linear' or 'cosine'"),
        ({"teacher": "live"}, r"train\.teacher = 'live', expected 'stored' or 'online'"),
        ({"epochs": 0}, r"train\.epochs = 0, expected a whole number from 1 to 100000"),
        ({"batch_size": 0}, r"train\.batch_size = 0, expected a whole number from 1 to 1048576"),
        ({"accumulate": 0}, r"train\.accumulate = 0, expected a whole number from 1 to 1048576"),
        ({"batch_size": 8, "accumulate": 3}, r"train\.accumulate = 3, expected a divisor of train\.batch_size = 8"),
        ({"seq_len": 0}, r"train\.seq_len = 0, expected a whole number from 1 to 1048576"),
        ({"loss_chunk": 0}, r"train\.loss_chunk = 0, expected a whole number from 1 to 1048576"),
        (
            {"checkpoint_every": -1},
            r"train\.checkpoint_every = -1, expected 0 \(at the end only\) or a",
        ),
        ({"learning_rate": 0.0}, r"train\.learning_rate = 0\.0, expected a number from 1e-12 to 1000"),
        ({"learning_rate": float("nan")}, r"train\.learning_rate = nan, expected a number from 1e-12 to 1000"),
        ({"loraplus_ratio": 0.0}, r"train\.loraplus_ratio = 0\.0, expected a number from 1e-06 to 1000000"),
        ({"temperature": float("inf")}, r"train\.temperature = inf, expected a number from 0.001 to 1000"),
        ({"clip_norm": -1.0}, r"train\.clip_norm = -1\.0, expected 0 \(no clipping\) or a number from 1e-06"),
        ({"weight_decay": float("nan")}, r"train\.weight_decay = nan, expected a number from 0 to 1000"),
        ({"batch_size": 2**14, "seq_len": 2**13}, r"expected at most 67108864 tokens together"),
        ({"warmup": 1.5}, r"train\.warmup = 1\.5, expected a number from 0 to 1"),
        ({"final_fraction": -0.1}, r"train\.final_fraction = -0\.1, expected a number from 0 to 1"),
        ({"beta1": 1.0}, r"train\.beta1 = 1\.0, expected a number from 0 to below 1"),
        ({"beta2": float("nan")}, r"train\.beta2 = nan, expected a number from 0 to below 1"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_every_setting_is_described():
    described = TrainConfig.__doc__.split("Attributes:")[1]
    for field in dataclasses.fields(TrainConfig):
        assert f"\n      {field.name}: " in described


def run_fit(steps, first=0, bad=None, **options):
    """fit over a step that does nothing; what it handed out, in order."""
    events = []

    def step(state, params, batch, key):
        number = int(state.step) + 1
        loss = jnp.float32(jnp.nan if number == bad else number)
        return train_step.TrainState({}, (), jnp.int32(number)), {"loss": loss, "grad_norm": jnp.float32(1.0)}

    def on_metrics(number, values):
        assert set(values) == {"loss", "grad_norm", "seconds"}
        assert values["loss"] == number and values["seconds"] >= 0
        events.append(("metrics", number))

    def on_checkpoint(number, state):
        assert int(state.step) == number
        events.append(("checkpoint", number))

    start, outcome = train_step.TrainState({}, (), jnp.int32(first)), types.SimpleNamespace(events=events, error=None)
    data = iter(range(steps))
    try:
        outcome.state = trainer.fit(
            start, {}, step, data, None, on_metrics, on_checkpoint, learning_rates=None, **options
        )
    except trainer.NotFiniteError as error:
        outcome.error = error
    return outcome


def test_a_loss_that_is_not_finite_stops_before_the_checkpoint():
    """The step that fails is named, and no state that came after it is handed out for saving."""
    done = run_fit(10, bad=5, checkpoint_every=1)
    assert done.error.step == 5
    assert "nan at step 5" in str(done.error)
    assert done.events == [(what, number) for number in (1, 2, 3, 4) for what in ("metrics", "checkpoint")]
    late = run_fit(5, bad=5)  # the last step of all: found out before the state is saved
    assert late.error.step == 5
    assert late.events == [("metrics", number) for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(("every", "checkpoints"), [(0, [7]), (3, [3, 6, 7]), (7, [7]), (1, [1, 2, 3, 4, 5, 6, 7])])
def test_metrics_of_every_step_and_checkpoints_where_asked_for(every, checkpoints):
    done = run_fit(7, checkpoint_every=every)
    assert int(done.state.step) == 7
    assert [number for what, number in done.events if what == "metrics"] == list(range(1, 8))
    assert [number for what, number in done.events if what == "checkpoint"] == checkpoints
    for number in checkpoints:  # its own metrics are known to be finite by then
        assert done.events.index(("metrics", number)) < done.events.index(("checkpoint", number))


def test_fit_goes_on_counting_where_the_state_is():
    done = run_fit(3, first=4, checkpoint_every=5)
    assert done.events == [("metrics", 5), ("checkpoint", 5), ("metrics", 6), ("metrics", 7), ("checkpoint", 7)]
    nothing_left = run_fit(0, first=4)
    assert nothing_left.events == []
    assert int(nothing_left.state.step) == 4


def test_a_stop_ends_after_the_step_with_a_checkpoint():
    asked = iter([False, False, True])
    done = run_fit(10, stop_requested=lambda: next(asked))
    assert int(done.state.step) == 3
    assert done.events == [("metrics", 1), ("metrics", 2), ("metrics", 3), ("checkpoint", 3)]
    once = run_fit(10, checkpoint_every=1, stop_requested=lambda: True)
    assert once.events == [("metrics", 1), ("checkpoint", 1)], "not saved twice"
