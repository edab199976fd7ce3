"""The teacher's states: stored equals online equals one plain row per sentence; its files are right or remade."""

import dataclasses
import functools
import io
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax.data.packing import NO_SLOT
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.inference import prefix
from selfparam_jax.models.decoder import Decoder, apply_head, head_weight
from selfparam_jax.models.lora import LoraConfig, init_lora, merge_lora
from selfparam_jax.models.registry import model_config_from_hf
from selfparam_jax.targets.sentences import Reading, Sentence, context_groups, first_slots
from selfparam_jax.training import teacher, teacher_states

HEAD = (1, 7)
LONGEST = 160  # tokens of the longest context and sentence together
OWN = (20, 33, 100)  # tokens of each context after what they have in common


def ids_of(rng, length):
    return tuple(int(i) for i in rng.integers(3, tiny.SIZES["vocab_size"], length))


def qa(context, ids, weights=None, supervision=()):
    return Sentence("qa", context, ids, weights or (1.0,) * len(ids), None, {}, supervision)


def tail(context, ids, start, length):
    return Sentence("tail", context, ids[start : start + length], (1.0,) * length, start, {})


def otherwise(rng, context):
    """Two questions and answers in turn that the teacher reads with other questions, and with another end."""
    first, second = ids_of(rng, 4), ids_of(rng, 3)
    ids = ids_of(rng, 5) + first + ids_of(rng, 7) + second + (8,)
    weights = (0.0,) * 5 + (1.0,) * 4 + (0.0,) * 7 + (0.5,) * 3 + (0.0,)
    supervision = (0.0,) * 5 + (0.25,) * 4 + (0.0,) * 7 + (0.25,) * 4
    taught = ids_of(rng, 2) + first + ids_of(rng, 3) + second + (9,)
    reading = Reading(taught, (2, 3, 4, 5, 9, 10, 11, 12))
    return Sentence("qa", context, ids, weights, None, {}, supervision, None, ids_of(rng, 6), reading)


def make_prefixes(rng):
    common = HEAD + ids_of(rng, 40)
    return [common + ids_of(rng, length) for length in OWN]


def make_sentences(rng, prefixes):
    """All kinds, many lengths (one token, too), several weightings, in an order that mixes the contexts."""
    sentences = []
    for context, ids in enumerate(prefixes):
        sentences += [qa(context, ids_of(rng, length)) for length in (1, 2, 7, 12, 5)]
        sentences.append(qa(context, ids_of(rng, 9), (0.0,) * 5 + (1.0, 2.0, 0.0, 0.5)))
        sentences.append(qa(context, ids_of(rng, 4), (0.0,) * 4, (0.0, 0.0, 1.0, 0.5)))
        sentences.append(qa(context, ids_of(rng, 6), (0.0,) * 6))
        # Tails: the last tokens, some within what the contexts have in common, and some across its end.
        sentences += [tail(context, ids, start, 6) for start in (len(ids) - 6, 3, 39)]
        sentences.append(Sentence("unrelated", context, ids_of(rng, 3), (0.5,) * 3, None, {}))
        sentences.append(otherwise(rng, context))
    ids = ids_of(rng, 7)  # of a conversation: it begins with something else than the prompt's start
    sentences.append(Sentence("chat", None, ids, (0.0,) * 3 + (1.0,) * 4, None, {}, before=ids_of(rng, 5)))
    sentences.append(Sentence("chat", None, ids, (0.0,) * 3 + (1.0,) * 4, None, {}, before=()))
    for length in (11, 1, 8):
        sentences.append(Sentence("unrelated", None, ids_of(rng, length), (0.5,) * length, None, {}))
    return [sentences[i] for i in rng.permutation(len(sentences))]


@dataclasses.dataclass
class Setup:
    model: Decoder
    params: dict
    prefixes: list
    sentences: list
    first: np.ndarray
    expected: np.ndarray  # states of all slots, each sentence read on its own

    def reader(self, **changes):
        defaults = {
            "model": self.model,
            "variables": {"params": self.params},
            "identity": "base",
            "start_ids": HEAD,
            "mesh": meshes.make_mesh(jax.devices()[:1]),
            "rows": 2,
            "seq_len": 32,
        }
        return teacher.Reader(**{**defaults, **changes})

    def store(self, directory, reader=None, **changes):
        return teacher_states.teacher_store(
            reader or self.reader(), self.prefixes, self.sentences, directory, **changes
        )

    def online(self, reader=None):
        return teacher.Online(reader or self.reader(), self.prefixes, self.sentences, self.first)


@functools.partial(jax.jit, static_argnames="model")
def _read(model, variables, row, positions, segments):
    return model.apply(variables, row, positions, segments)[0][0]


def read(model, variables, ids):
    """Final hidden states [T, D] of one plain row from position 0, padded so that it compiles once."""
    row, positions = np.zeros((1, LONGEST), np.int32), np.arange(LONGEST, dtype=np.int32)[None]
    row[0, : len(ids)] = ids
    return np.asarray(_read(model, variables, row, positions, (positions < len(ids)).astype(np.int32)))[: len(ids)]


def before(sentence, prefixes):
    """What the teacher reads before a sentence."""
    if sentence.context is None:
        return HEAD if sentence.before is None else sentence.before
    return prefixes[sentence.context][: sentence.start]


def plain_states(model, params, prefixes, sentences):
    """For each sentence, the states [loss tokens, D] that predict its loss tokens: token j from one before it."""
    states = []
    for sentence in sentences:
        ids = before(sentence, prefixes)
        if sentence.reading is not None:
            hidden = read(model, {"params": params}, ids + sentence.reading.ids)
            states.append(hidden[[len(ids) + j - 1 for j in sentence.reading.loss_tokens]])
            continue
        hidden = read(model, {"params": params}, ids + sentence.ids)
        supervision = sentence.supervision or (0.0,) * len(sentence.ids)
        both = zip(sentence.weights, supervision, strict=True)
        states.append(
            hidden[[len(ids) + j - 1 for j, (kl, next_token) in enumerate(both) if kl > 0 or next_token > 0]]
        )
    return states


def by_slot(states, first):
    """The states of all sentences in the order of their slots."""
    expected = np.full((sum(map(len, states)), states[0].shape[1]), np.nan, np.float32)
    for start, mine in zip(first, states, strict=True):
        expected[start : start + len(mine)] = mine
    return expected


@pytest.fixture(scope="module")
def setups(random_params):
    @functools.cache
    def make(case):
        # The window is shorter than what the contexts have in common.
        changes = {"sliding_window": 8} if case == "mistral" else {}
        config = model_config_from_hf(tiny.hf_config(case, max_position_embeddings=LONGEST, **changes))
        rng = np.random.default_rng(0)
        params, prefixes = random_params(config), make_prefixes(rng)
        sentences = make_sentences(rng, prefixes)
        first = first_slots(sentences)
        states = plain_states(Decoder(config), params, prefixes, sentences)
        return Setup(Decoder(config), params, prefixes, sentences, first, by_slot(states, first))

    return make


@pytest.fixture(params=["gqa", "mistral"])
def setup(request, setups):
    return setups(request.param)


@pytest.fixture
def llama(setups):
    return setups("gqa")


def assert_close(found, expected):
    """To 1e-5, of the value or of the typical value where that is larger."""
    typical = np.sqrt(np.mean(np.square(expected)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * typical)


def all_states(store):
    return store.take(np.arange(len(store)))


# --- which states --------------------------------------------------------------------------------------


def test_the_sentences_are_the_hard_ones(llama):
    """What the other tests rely on: mixed contexts, one-token sentences, a common beginning that is read once."""
    order = [s.context for s in llama.sentences if s.loss_tokens]
    assert sum(a != b for a, b in itertools.pairwise(order)) > 15
    assert any(len(sentence.ids) == 1 for sentence in llama.sentences)
    assert any(not sentence.loss_tokens for sentence in llama.sentences)
    assert prefix.common_length(llama.prefixes) == len(HEAD) + 40
    assert len(np.unique(llama.expected, axis=0)) > 0.7 * len(llama.expected)
    assert np.isfinite(llama.expected).all(), "every slot is filled"


@pytest.mark.parametrize(("devices", "rows", "seq_len"), [(1, 2, 32), (1, 3, 100), (1, 1, 5), (8, 8, 24)])
def test_stored_states_equal_plain_rows_whatever_the_packing(setup, tmp_path, devices, rows, seq_len):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    variables = jax.device_put({"params": setup.params}, meshes.replicated(mesh))
    reader = setup.reader(mesh=mesh, variables=variables, rows=rows, seq_len=seq_len)
    store = setup.store(tmp_path, reader)
    assert len(store) == len(setup.expected)
    assert_close(all_states(store), setup.expected)


@pytest.mark.parametrize(("devices", "rows"), [(1, 2), (8, 8)])
def test_online_states_equal_plain_rows(setup, devices, rows):
    mesh = meshes.make_mesh(jax.devices()[:devices])
    reader = setup.reader(mesh=mesh, rows=rows)
    assert_close(setup.online(reader).take(np.arange(len(setup.expected))), setup.expected)


def test_stored_equals_online(setup, tmp_path):
    store, online = setup.store(tmp_path), setup.online()
    slots = np.random.default_rng(0).permutation(len(store))
    assert_close(store.take(slots), online.take(slots))


def test_rows_are_packed_and_padded(llama, tmp_path, monkeypatch):
    """Several sentences of a context stand in one row, and the last call of a context has an empty row."""
    calls, read_rows = [], teacher.read_rows
    monkeypatch.setattr(teacher, "read_rows", lambda *args: (calls.append(args[1]), read_rows(*args))[1])
    store = llama.store(tmp_path, llama.reader(rows=3))
    groups = context_groups(llama.sentences)
    assert len(calls) == len(groups) == 4
    for rows in calls:
        assert rows.segments.max() > 1
        assert (rows.segments[-1] == 0).all()
        assert len(rows.segments) % 3 == 0
    assert_close(all_states(store), llama.expected)


def test_the_first_token_of_a_sentence_is_predicted_from_the_last_token_before_it(setup, tmp_path):
    store = setup.store(tmp_path)
    for kind, context in [("qa", 0), ("tail", 1), ("unrelated", None), ("unrelated", 2)]:
        i = next(i for i, s in enumerate(setup.sentences) if (s.kind, s.context) == (kind, context) and s.weights[0])
        expected = read(setup.model, {"params": setup.params}, before(setup.sentences[i], setup.prefixes))[-1]
        assert_close(store.take(setup.first[i]), expected)


def test_a_teacher_with_an_adapter(llama, tmp_path):
    """Whatever the reader's variables hold is what reads: a teacher may have learned something already."""
    config, noise = LoraConfig(rank=2, alpha=4.0, dropout=0.0), np.random.default_rng(0)
    lora = init_lora(jax.random.key(0), llama.params, config)
    lora = jax.tree.map(lambda x: x + 0.1 * noise.standard_normal(x.shape).astype(np.float32), lora)
    adapted = llama.model.clone(lora_scale=config.scale)
    reader = llama.reader(model=adapted, variables={"params": llama.params, "lora": lora})
    merged = merge_lora(llama.params, lora, config.scale)
    states = plain_states(llama.model, merged, llama.prefixes, llama.sentences)
    expected = by_slot(states, llama.first)
    assert np.abs(expected - llama.expected).max() > 0.3
    np.testing.assert_allclose(all_states(llama.store(tmp_path, reader)), expected, rtol=1e-5, atol=3e-5)


def test_context_and_sentence_longer_than_the_model_are_refused(llama, tmp_path):
    room = LONGEST - len(llama.prefixes[0])
    fits, too_long = (
        dataclasses.replace(llama, sentences=[qa(0, (5,) * length)], first=np.zeros(1, np.int64))
        for length in (room, room + 1)
    )
    assert len(fits.store(tmp_path)) == len(fits.online().take(np.arange(room))) == room
    message = rf"have {LONGEST + 1} tokens together, .* limit is {LONGEST}"
    with pytest.raises(ValueError, match=message):
        too_long.store(tmp_path)
    with pytest.raises(ValueError, match=message):
        too_long.online().take(np.arange(3))


# --- take ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stored", "online"])
def test_take_gives_any_slots_in_any_shape(llama, tmp_path, kind):
    source = llama.store(tmp_path) if kind == "stored" else llama.online()
    count, width = llama.expected.shape
    rng = np.random.default_rng(0)
    known = np.vstack([llama.expected, np.zeros((1, width), np.float32)])  # [NO_SLOT] is the last row
    for shape in [(), (1,), (7,), (2, 3), (2, 1, 5), (0,), (2, 0)]:
        slots = rng.integers(NO_SLOT, count, shape)
        found = source.take(np.asarray(slots))
        assert found.shape == (*shape, width)
        assert found.dtype == np.float32
        assert_close(np.append(found, known[0]), np.append(known[slots], known[0]))
    slots = np.asarray([[count - 1, 0, 0, NO_SLOT], [5, count - 1, NO_SLOT, 3]], np.int32)
    found = source.take(slots)
    assert_close(found, known[slots])
    assert not found[slots == NO_SLOT].any()
    np.testing.assert_array_equal(found[0, 1], found[0, 2])
    assert not source.take(np.full((2, 2), NO_SLOT)).any()


def test_a_store_over_several_files():
    """Every slot comes from its own part, at the edges between parts, too."""
    rows = np.arange(18, dtype=np.float32).reshape(9, 2) + 1
    store = teacher_states.Store([rows[:1], rows[1:5], rows[5:6], rows[6:]])
    assert len(store) == 9
    np.testing.assert_array_equal(store.take(np.arange(9)), rows)
    slots = np.asarray([[8, 0, NO_SLOT], [5, 1, 4], [6, 6, NO_SLOT]])
    np.testing.assert_array_equal(store.take(slots), np.vstack([rows, [[0, 0]]])[slots])


# --- how sure the teacher is ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stored", "online"])
@pytest.mark.parametrize("chunk", [16, 1000])
def test_confidence_is_the_geometric_mean_probability_of_the_loss_tokens(setup, tmp_path, kind, chunk):
    source = setup.store(tmp_path) if kind == "stored" else setup.online()
    head = np.asarray(head_weight(setup.params), np.float64)
    found = teacher.answer_confidence(head_weight(setup.params), source, setup.sentences, setup.first, chunk)
    expected = []
    for sentence, first in zip(setup.sentences, setup.first, strict=True):
        logits = setup.expected[first : first + len(sentence.loss_tokens)].astype(np.float64) @ head.T
        logits -= logits.max(axis=1, keepdims=True)
        log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        tokens = [sentence.ids[j] for j in sentence.loss_tokens]
        expected.append(np.exp(np.mean(log_probability[np.arange(len(tokens)), tokens])) if tokens else 1.0)
    assert found.dtype == np.float64
    assert found.shape == (len(setup.sentences),)
    np.testing.assert_allclose(found, expected, rtol=5e-5)
    assert len(set(np.round(expected, 9))) > 20
    chosen = [7, 2, 30, 11]  # first slots go with the sentences
    some, first = [setup.sentences[i] for i in chosen], setup.first[chosen]
    part = teacher.answer_confidence(head_weight(setup.params), source, some, first, chunk)
    np.testing.assert_allclose(part, found[chosen], rtol=1e-5)


def test_confident_keeps_all_but_pairs_below_the_bound():
    made = [qa(0, (5,)), Sentence("tail", 0, (5,), (1.0,), 1, {}), qa(1, (6,)), qa(0, (7,))]
    made.append(Sentence("unrelated", None, (5,), (1.0,), None, {}))
    values = np.asarray([0.2, 0.0, 0.5, 0.499, 0.1])
    assert teacher.confident(made, values, 0.5) == [1, 2, 4]
    assert teacher.confident(made, values, 0.0) == [0, 1, 2, 3, 4]
    assert teacher.confident(made, values, 1.0) == [1, 4]


def test_contexts_in_another_format_share_their_own_beginning(llama, monkeypatch):
    """What all contexts of one format begin with is read once for each format."""
    rng, read_texts = np.random.default_rng(4), []
    other = ids_of(rng, 40)
    prefixes = [*llama.prefixes, *(other + ids[-20:] for ids in llama.prefixes)]
    made = [otherwise(rng, context) for context in range(6)]
    setup = dataclasses.replace(llama, prefixes=prefixes, sentences=made, first=first_slots(made))
    whole = prefix.read_prefixes

    def read_prefixes(model, variables, texts):
        read_texts.append(texts)
        return whole(model, variables, texts)

    monkeypatch.setattr(teacher_states, "read_prefixes", read_prefixes)
    states = setup.store(None).take_all(np.arange(6 * 8))
    assert_close(states, np.concatenate(plain_states(llama.model, llama.params, prefixes, made)))
    assert read_texts == [prefixes[:3], prefixes[3:]]


def test_logits_of_the_head_are_used_as_they_are(llama):
    """The teacher's distribution is softmax(head(h)) with h final and normed: nothing is applied in between."""
    head = np.asarray(head_weight(llama.params))
    logits = apply_head(jnp.asarray(llama.expected), head_weight(llama.params))
    assert_close(logits, llama.expected.astype(np.float64) @ head.T.astype(np.float64))


# --- files ---------------------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """Contexts (None for none) of all sentences that are read, in order; one entry per call."""
    seen = []
    with_context, without = teacher.read_context, teacher.read_without_context

    def recorded(reader, prefix, sentences):
        (context,) = {sentence.context for sentence in sentences}
        seen.append(context)
        return with_context(reader, prefix, sentences)

    def recorded_without(reader, sentences):
        assert {sentence.context for sentence in sentences} == {None}
        seen.append(None)
        return without(reader, sentences)

    monkeypatch.setattr(teacher_states, "read_context", recorded)
    monkeypatch.setattr(teacher_states, "read_without_context", recorded_without)
    return seen


def contents(directory):
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in directory.iterdir()}


def test_a_second_call_reads_the_files_and_computes_nothing(setup, tmp_path, monkeypatch):
    expected = all_states(setup.store(tmp_path / "deep" / "down"))

    def refuse(*_):
        raise AssertionError("this was read already")

    for module, name in (
        (teacher_states, "read_context"),
        (teacher_states, "read_without_context"),
        (teacher, "read_rows"),
    ):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(prefix, "read_piece", refuse)
    files = contents(tmp_path / "deep" / "down")
    again = setup.store(tmp_path / "deep" / "down", setup.reader(rows=3, seq_len=50))
    np.testing.assert_array_equal(all_states(again), expected)
    assert contents(tmp_path / "deep" / "down") == files
    with pytest.raises(AssertionError, match="read already"):
        setup.store(tmp_path / "empty")


def with_sentence(setup, context, token=None, weight=None, record=None):
    """The setup with another first token, first weight or record of one sentence of a context."""
    at = next(i for i, s in enumerate(setup.sentences) if s.context == context and s.kind != "tail" and s.weights[0])
    sentences, old = list(setup.sentences), setup.sentences[at]
    first_token, first_weight = old.ids[0] if token is None else token, old.weights[0] if weight is None else weight
    sentences[at] = dataclasses.replace(
        old, ids=(first_token, *old.ids[1:]), weights=(first_weight, *old.weights[1:]), record=record or {}
    )
    return dataclasses.replace(setup, sentences=sentences, first=first_slots(sentences))


def with_prefix(setup, context):
    prefixes = list(setup.prefixes)
    prefixes[context] = (*prefixes[context][:-10], 9, *prefixes[context][-9:])
    return dataclasses.replace(setup, prefixes=prefixes)


def with_moved_tail(setup, context):
    sentences = list(setup.sentences)
    at = next(i for i, s in enumerate(sentences) if s.context == context and s.kind == "tail")
    sentences[at] = dataclasses.replace(sentences[at], start=sentences[at].start - 1)
    return dataclasses.replace(setup, sentences=sentences)


def with_another_epsilon(setup):
    config = dataclasses.replace(setup.model.config, rms_norm_eps=1e-3)
    return dataclasses.replace(setup, model=setup.model.clone(config=config))


def in_bfloat16(setup):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), setup.params)
    return dataclasses.replace(setup, model=setup.model.clone(dtype=jnp.bfloat16), params=params)


EVERYTHING = {0, 1, 2, None}
CHANGES = {
    "a token": (lambda s: with_sentence(s, 1, token=9), {}, {1}),
    "a token without context": (lambda s: with_sentence(s, None, token=9), {}, {None}),
    "which tokens carry loss": (lambda s: with_sentence(s, 2, weight=0.0), {}, {2}),
    "how much loss they carry": (lambda s: with_sentence(s, 2, weight=3.0), {}, set()),
    "where a tail begins": (lambda s: with_moved_tail(s, 1), {}, {1}),
    "the record": (lambda s: with_sentence(s, 0, record={"question": "?"}), {}, set()),
    "a context": (lambda s: with_prefix(s, 0), {}, {0}),
    "the parameters": (lambda s: s, {"identity": "base, another adapter"}, EVERYTHING),
    "the start": (lambda s: s, {"start_ids": (1, 8)}, {None}),
    "the shape of the rows": (lambda s: s, {"rows": 5, "seq_len": 40}, set()),
    "the architecture": (with_another_epsilon, {}, EVERYTHING),
    "the dtype": (in_bfloat16, {}, EVERYTHING),
    "remat": (lambda s: dataclasses.replace(s, model=s.model.clone(remat="layers")), {}, set()),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_change_recomputes_what_depends_on_it_and_nothing_else(llama, tmp_path, computed, change):
    make, reader_changes, expected = CHANGES[change]
    llama.store(tmp_path)
    old = contents(tmp_path)
    assert len(old) == 4
    computed.clear()
    changed = make(llama)
    store = changed.store(tmp_path, changed.reader(**reader_changes))
    assert sorted(computed, key=str) == sorted(expected, key=str)
    new = contents(tmp_path)
    assert (len(new), len(new.items() & old.items())) == (4, 4 - len(expected)), "what is kept is not written again"
    if expected:
        fresh = changed.store(tmp_path / "fresh", changed.reader(**reader_changes))
        found, alone = all_states(store).astype(np.float32), all_states(fresh).astype(np.float32)
        np.testing.assert_allclose(found, alone, rtol=1e-5, atol=3e-5)


def test_contexts_that_change_places_keep_their_files(llama, tmp_path, computed):
    """A file is known by what it depends on, not by the number of its context."""
    llama.store(tmp_path)
    computed.clear()
    order, new = [2, 0, 1], {2: 0, 0: 1, 1: 2, None: None}
    renamed = [dataclasses.replace(sentence, context=new[sentence.context]) for sentence in llama.sentences]
    moved = dataclasses.replace(llama, prefixes=[llama.prefixes[i] for i in order], sentences=renamed)
    store = moved.store(tmp_path)
    assert computed == []
    assert_close(all_states(store), llama.expected)


def test_contexts_that_are_the_same_share_a_file(llama, tmp_path):
    made = [qa(context, (9, 8, 7)) for context in (0, 1, 2)]
    same = dataclasses.replace(llama, prefixes=[llama.prefixes[i] for i in (0, 1, 0)], sentences=made)
    states = all_states(same.store(tmp_path))
    assert len(contents(tmp_path)) == 2
    np.testing.assert_array_equal(states[:3], states[6:])
    assert_close(states, np.concatenate(plain_states(llama.model, llama.params, same.prefixes, made)))


def test_files_that_belong_to_nothing_are_removed(llama, tmp_path):
    llama.store(tmp_path)
    kept = contents(tmp_path)
    np.save(tmp_path / f"{'0' * 40}.npy", np.zeros((3, 32), np.float32))
    (tmp_path / "old.npy").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("mine")
    llama.store(tmp_path)
    assert set(contents(tmp_path)) == {*kept, "notes.txt"}
    fewer = dataclasses.replace(llama, sentences=[s for s in llama.sentences if s.context in (0, None)])
    fewer.store(tmp_path)
    assert len(contents(tmp_path).keys() & kept.keys()) == 2


def npy(array):
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def changed_npy(change):
    return lambda whole: npy(change(np.load(io.BytesIO(whole))))


GARBAGE = {
    "empty": lambda whole: b"",
    "cut in the data": lambda whole: whole[:-1],
    "cut after the header": lambda whole: whole[:128],
    "cut in the header": lambda whole: whole[:50],
    "cut in the magic": lambda whole: whole[:3],
    "text": lambda whole: b"this is no array\n",
    "zeros": lambda whole: bytes(len(whole)),
    "a broken header": lambda whole: whole[:10] + b"(" * 118 + whole[128:],
    "a zip file": lambda whole: b"PK\x03\x04" + whole[4:],
    "a pickle": changed_npy(lambda states: np.asarray([None, "state"], object)),
    "too few rows": changed_npy(lambda states: states[:-1]),
    "too narrow": changed_npy(lambda states: states[:, :-1]),
    "another dtype": changed_npy(lambda states: states.astype(np.float64)),
    "200 zeroed bytes": lambda whole: whole[:1500] + bytes(200) + whole[1700:],
    "one bit of the last state": lambda whole: whole[:-33] + bytes([whole[-33] ^ 1]) + whole[-32:],
    "one bit of the checksum": lambda whole: whole[:-1] + bytes([whole[-1] ^ 1]),
    "no checksum": lambda whole: whole[:-32],
    "bits of bfloat16": changed_npy(lambda states: states.astype(np.uint16)),
}


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_a_file_that_is_not_whole_is_computed_again(llama, tmp_path, computed, kind):
    expected = all_states(llama.store(tmp_path))
    whole = contents(tmp_path)
    computed.clear()
    name = sorted(whole)[0]
    (tmp_path / name).write_bytes(GARBAGE[kind](whole[name][1]))
    assert_close(all_states(llama.store(tmp_path)), expected)
    assert len(computed) == 1
    assert set(contents(tmp_path)) == set(whole)
    assert len(contents(tmp_path)[name][1]) == len(whole[name][1])


@pytest.mark.parametrize("where", ["in progress", "while reading", "while writing"])
def test_interrupted_it_goes_on_after_the_last_finished_context(llama, tmp_path, monkeypatch, computed, where):
    calls = {"progress": 0, "saved": 0}

    def progress(count):
        calls["progress"] += 1
        if where == "in progress" and calls["progress"] == 1:
            raise InterruptedError

    def stop_at_the_second(function):
        def stopping(*args):
            if len(computed) == 1:
                raise InterruptedError
            return function(*args)

        return stopping

    def save(file, *args, **options):
        if where == "while writing" and calls["saved"] == 1:
            file.write(b"half a file")
            raise InterruptedError
        calls["saved"] += 1
        np_save(file, *args, **options)

    np_save = np.save
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        if where == "while reading":
            for name in ("read_context", "read_without_context"):
                patch.setattr(teacher_states, name, stop_at_the_second(getattr(teacher_states, name)))
        with pytest.raises(InterruptedError):
            llama.store(tmp_path, progress=progress)
    (first, *others), finished = context_groups(llama.sentences), contents(tmp_path)
    assert len(finished) == 1, "one finished context and nothing half done"
    assert computed[0] == first
    computed.clear()
    store = llama.store(tmp_path)
    assert computed == others
    assert finished.items() <= contents(tmp_path).items()
    assert_close(all_states(store), llama.expected)


def test_progress_counts_the_sentences_of_every_context(llama, tmp_path):
    sizes = [len(members) for members in context_groups(llama.sentences).values()]
    seen = []
    for _ in range(2):  # computed, then found
        llama.store(tmp_path, progress=seen.append)
    assert seen == 2 * sizes


@pytest.mark.parametrize(("make", "dtype"), [(lambda setup: setup, jnp.float32), (in_bfloat16, jnp.bfloat16)])
def test_many_states_stay_on_the_disk(llama, tmp_path, make, dtype):
    """Above the limit the parts are memory-mapped; below it they are arrays; the values are the same."""
    total = llama.expected.size * np.dtype(dtype).itemsize
    stores = [make(llama).store(tmp_path, memory_limit=limit) for limit in (0, total - 1, total, 1 << 30)]
    kinds = [{isinstance(part, np.memmap) for part in store._parts} for store in stores]
    assert kinds == [{True}, {True}, {False}, {False}]
    for store in stores:
        found = all_states(store)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found.view(np.uint8), all_states(stores[0]).view(np.uint8))


def test_bfloat16_states_come_back_bit_for_bit(llama, tmp_path, monkeypatch):
    half, made = in_bfloat16(llama), []
    for name in ("read_context", "read_without_context"):
        function = getattr(teacher_states, name)
        keep = functools.partial(lambda function, *args: (made.append(function(*args)), made[-1])[1], function)
        monkeypatch.setattr(teacher_states, name, keep)
    for _ in range(2):  # from the first call, and from the files alone
        found = all_states(half.store(tmp_path))
        assert len(made) == 4
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found.view(np.uint16), np.concatenate(made).view(np.uint16))
    # The same states, with the error of bfloat16.
    assert 0 < np.mean(np.abs(found.astype(np.float32) - llama.expected)) < 0.05


def test_sentences_without_any_loss_need_no_teacher(llama, tmp_path):
    none = dataclasses.replace(llama, sentences=[qa(0, (9, 8), (0.0, 0.0))], first=np.zeros(1, np.int64))
    assert len(none.store(tmp_path)) == 0
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("make", [lambda setup: setup, in_bfloat16])
def test_without_a_directory_the_same_states_stay_in_memory(llama, tmp_path, monkeypatch, make):
    setup, seen = make(llama), []
    on_disk = all_states(setup.store(tmp_path / "states"))
    files = contents(tmp_path / "states")
    for name in ("_save", "_open", "_own_directory"):
        monkeypatch.setattr(teacher_states, name, lambda *_: pytest.fail("a file was touched"))
    in_memory = setup.store(None, memory_limit=0, progress=seen.append)
    np.testing.assert_array_equal(all_states(in_memory).view(np.uint8), on_disk.view(np.uint8))
    assert seen == [len(members) for members in context_groups(llama.sentences).values()]
    assert contents(tmp_path / "states") == files


def test_a_store_in_memory_takes_further_states(llama):
    more = np.full((3, llama.expected.shape[1]), 2.0, np.float32)
    store = llama.store(None).with_states(more)
    assert_close(all_states(store), np.concatenate([llama.expected, more]))
