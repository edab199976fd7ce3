"""A text read in pieces, after a beginning that others share: as if it had been read at once and alone."""

import functools
import itertools

import jax
import numpy as np
import pytest
import tiny

from selfparam_jax.inference import prefix
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.masks import EMPTY, SHARED
from selfparam_jax.models.registry import model_config_from_hf

LIMIT = 1024  # max_position_embeddings
READ_PIECE = prefix.read_piece
MODELS = {
    "llama": ("gqa", {}),
    "window_within_a_piece": ("mistral", {"sliding_window": 5}),
    "window_over_pieces": ("mistral", {"sliding_window": 150}),
}
# (length of what all texts begin with, length of each text's own rest)
FAMILIES = {
    "one_cache_size": (40, (1, 1, 2, 50)),
    "one_piece_each": (600, (1, 40, 256)),
    "several_pieces_each": (130, (300, 5, 570, 257)),
    "exact_pieces": (256, (256, 512)),
    "cache_grows": (256, (1, 400, 100, 2)),
}


@pytest.fixture(scope="module")
def models(random_params):
    """A function: name -> (model, variables), made once."""

    @functools.cache
    def make(name):
        case, changes = MODELS[name]
        config = model_config_from_hf(tiny.hf_config(case, max_position_embeddings=LIMIT, **changes))
        return Decoder(config), {"params": random_params(config)}

    return make


@pytest.fixture(params=["llama", "window_over_pieces"])
def setup(request, models):
    return models(request.param)


@pytest.fixture
def llama(models):
    return models("llama")


def text(length, seed=0):
    return tuple(tiny.token_ids(length, 1, seed)[0].tolist())


def family(shared, rests):
    """Texts that begin with the same `shared` ids and differ from the next one on."""
    begin = text(shared)
    return [(*begin, number, *text(rest - 1, seed=number)) for number, rest in enumerate(rests, start=3)]


@functools.partial(jax.jit, static_argnames="model")
def _apply(model, variables, ids, positions, segments):
    return model.apply(variables, ids, positions, segments)


def read_at_once(model, variables, ids, room=None):
    """Hidden states [T, D], keys and values [L, K, T, H] of one row that starts at position 0; no cache."""
    count = len(ids)
    row = np.zeros((1, room or count), np.int32)
    row[0, :count] = ids
    positions = np.arange(row.shape[1], dtype=np.int32)[None]
    hidden, read = _apply(model, variables, row, positions, (positions < count).astype(np.int32))
    return (
        np.asarray(hidden)[0, :count],
        np.asarray(read.keys)[:, 0, :, :count],
        np.asarray(read.values)[:, 0, :, :count],
    )


def assert_close(found, expected):
    """To 1e-5, of the value or of the typical value where that is larger."""
    typical = np.sqrt(np.mean(np.square(expected)))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * typical)


def assert_read(found, setup, ids, room=LIMIT):
    """The prefix holds what one pass over the whole text gives, at its positions, and nothing else is seen."""
    hidden, keys, values = read_at_once(*setup, ids, room)
    count, cache = len(ids), found.key_values
    assert found.length == count
    assert_close(found.states(), hidden)
    np.testing.assert_array_equal(found.last_state(), found.states()[-1])
    assert_close(np.asarray(cache.keys)[:, 0, :, :count], keys)
    assert_close(np.asarray(cache.values)[:, 0, :, :count], values)
    assert np.asarray(cache.positions)[0, :count].tolist() == list(range(count))
    assert np.asarray(cache.segments)[0].tolist() == [SHARED] * count + [EMPTY] * (cache.segments.shape[1] - count)


@pytest.fixture
def calls(monkeypatch):
    """Every call of read_piece as (cache size, piece, real tokens, first position)."""
    seen = []

    def recorded(model, variables, cache, ids, length, at):
        seen.append((cache.positions.shape[1], ids.shape[1], int(length), int(at)))
        return READ_PIECE(model, variables, cache, ids, length, at)

    monkeypatch.setattr(prefix, "read_piece", recorded)
    return seen


@pytest.fixture
def pretended(monkeypatch):
    """The same, but nothing is read."""
    seen = []

    def recorded(model, variables, cache, ids, length, at):
        seen.append((cache.positions.shape[1], ids.shape[1], int(length), int(at)))
        return np.zeros((ids.shape[1], 1)), cache

    monkeypatch.setattr(prefix, "read_piece", recorded)
    return seen


# --- what is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 32, 33, 256, 257, 700])
@pytest.mark.parametrize("name", list(MODELS))
def test_pieces_equal_one_pass(models, name, length):
    ids = text(length)
    assert_read(prefix.read_prefix(*models(name), ids), models(name), ids, room=None)


def test_every_length_of_the_model_can_be_read(llama):
    ids = text(LIMIT)
    assert_read(prefix.read_prefix(*llama, ids), llama, ids)


@pytest.mark.parametrize("shape", list(FAMILIES))
def test_a_common_beginning_is_read_once_and_changes_nothing(setup, calls, shape):
    shared, rests = FAMILIES[shape]
    texts = family(shared, rests)
    assert prefix.common_length(texts) == shared
    found = list(prefix.read_prefixes(*setup, texts))
    assert sum(real for _, _, real, _ in calls) == shared + sum(rests)
    assert sum(at == 0 for *_, at in calls) == 1
    assert len(found) == len(texts)
    for one, ids in zip(found, texts, strict=True):  # only now: a later text must not have spoiled an earlier one
        assert_read(one, setup, ids)


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([text(200)] * 3, id="identical"),
        pytest.param([text(200), text(90), text(400)[:91]], id="one_begins_another"),
        pytest.param([text(90), text(200)], id="the_shorter_first"),
        pytest.param([text(33), text(34), text(35)], id="each_one_longer"),
        pytest.param([text(300)], id="one"),
        pytest.param([text(40), text(40, seed=1)], id="nothing_in_common"),
        pytest.param([text(200), text(1)], id="a_single_token"),
    ],
)
def test_texts_that_overlap_in_other_ways(setup, texts):
    found = list(prefix.read_prefixes(*setup, texts))
    assert len(found) == len(texts)
    for one, ids in zip(found, texts, strict=True):
        assert_read(one, setup, ids)


def test_ids_may_be_lists_or_arrays(llama):
    expected = prefix.read_prefix(*llama, text(50)).states()
    for ids in (list(text(50)), np.asarray(text(50))):
        np.testing.assert_array_equal(prefix.read_prefix(*llama, ids).states(), expected)


def test_no_texts(llama):
    assert list(prefix.read_prefixes(*llama, [])) == []


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (0, "got a context without tokens, expected at least one"),
        (LIMIT + 1, rf"a context of {LIMIT + 1} tokens .*limit of {LIMIT} .*shorten it"),
    ],
)
@pytest.mark.parametrize("before", [0, 2])
def test_an_empty_or_too_long_text_is_refused_before_anything_is_read(llama, calls, length, message, before):
    texts = [text(60)] * before + [text(length)]
    with pytest.raises(ValueError, match=message):
        next(prefix.read_prefixes(*llama, texts))
    assert not calls


# --- shapes --------------------------------------------------------------------------------------------


def test_split_covers_the_length_with_known_pieces():
    for length in range(1, 2100):
        pieces = prefix.split(length)
        assert set(pieces) <= {prefix.PIECE, prefix.REST}
        assert sum(pieces) >= length
        assert sum(pieces[:-1]) < length, "the last piece has something to read"
        assert sorted(pieces, reverse=True) == pieces
    assert prefix.split(0) == []
    assert prefix.split(32) == [32]
    assert prefix.split(33) == prefix.split(256) == [256]
    assert prefix.split(700) == [256, 256, 256]
    assert prefix.split(513) == [256, 256, 32]


def test_cache_sizes_grow_slowly_and_are_never_too_small():
    sizes = [prefix.cache_size(length) for length in range(1, 5000)]
    assert all(a <= b for a, b in itertools.pairwise(sizes))
    for length, size in enumerate(sizes, start=1):
        assert size >= length
        assert length < 256 or 3 * (size - length) <= size
    assert sorted(set(sizes)) == [32, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([text(100)], 0),
        ([text(100), text(100)], 99),
        ([text(100)] * 3, 99),
        ([text(100), text(60)], 59),
        ([text(60), text(100)], 59),
        (family(50, (3, 1, 9)), 50),
        (family(32, (3, 4)), 32),
        (family(31, (3, 4)), 0),
        ([text(33)] * 2, 32),
        ([text(32)] * 2, 0),
        ([*family(50, (3, 9)), text(40)], 39),
        ([*family(50, (3, 9)), (299, *text(60))], 0),
        ([[*text(50), 9], [*text(50), 8]], 50),
        ([(9, *text(60)), (10, *text(60))], 0),
    ],
)
def test_common_length(texts, expected):
    for order in itertools.islice(itertools.permutations(texts), 6):
        assert prefix.common_length(order) == expected


def test_the_last_piece_never_overruns_the_cache(llama, pretended):
    """Writing past the end would not fail: JAX moves it to the left, over what is there."""
    rng = np.random.default_rng(0)
    families = [(0, (length,)) for length in range(1, LIMIT + 1, 3)]
    for _ in range(150):
        shared = int(rng.integers(32, 900))
        rests = rng.integers(1, LIMIT - shared + 1, rng.integers(2, 4))
        families.append((shared, [int(rest) for rest in rests]))
    for shared, rests in families:
        texts = family(shared, rests) if shared else [text(rests[0])]
        del pretended[:]
        lengths = [one.length for one in prefix.read_prefixes(*llama, texts)]
        assert lengths == [len(ids) for ids in texts]
        assert sum(real for _, _, real, _ in pretended) == shared + sum(rests)
        for size, piece, real, at in pretended:
            assert at + piece <= size
            assert 0 < real <= piece


@pytest.mark.parametrize("shared", [0, 77])
def test_contexts_of_many_lengths_share_a_few_compiled_shapes(llama, calls, shared):
    """Forty lengths below 1000, at most twelve shapes, and no shape is compiled twice."""
    lengths = np.random.default_rng(shared).integers(shared + 1, 1000, 40)
    texts = [(*text(shared), 3 + n, *text(int(length) - shared - 1)) for n, length in enumerate(lengths)]
    assert len({len(ids) for ids in texts}) > 30
    assert prefix.common_length(texts) == shared
    compiled = READ_PIECE._cache_size()
    for _ in prefix.read_prefixes(*llama, texts):
        pass
    shapes = {(size, piece) for size, piece, _, _ in calls}
    assert len(shapes) <= 12
    assert READ_PIECE._cache_size() - compiled <= len(shapes)
