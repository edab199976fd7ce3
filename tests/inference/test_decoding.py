import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from extras import require

from selfparam_jax.inference import decoding
from selfparam_jax.inference.decoding import (
    ARGMAX_BLOCK,
    PROMPT_BUCKET,
    SHORT_PREFIX,
    NotFiniteLogits,
    Sampling,
    _with_room,
    answering,
    generate,
    highest,
    most_likely,
)
from selfparam_jax.inference.prefix import read_prefix, round_up
from selfparam_jax.models.decoder import Decoder, KeyValues
from selfparam_jax.models.lora import LoraConfig, init_lora
from selfparam_jax.models.masks import EMPTY, SHARED
from selfparam_jax.models.unstacked import layers_apart

NEW = 9


def texts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 259, length).tolist() for length in lengths]


PREFIX, *PROMPTS = texts(13, 1, 7, PROMPT_BUCKET + 3, 4, 7)


@pytest.fixture(scope="module")
def model(tiny_model):
    return Decoder(tiny_model.config)


@pytest.fixture(scope="module")
def variables(tiny_model):
    return {"params": tiny_model.params}


@pytest.fixture(scope="module")
def free(model, variables):
    """What each prompt gives without stops."""
    return generate(model, variables, PREFIX, PROMPTS, NEW)


@pytest.mark.parametrize(
    "window, prefix_length, apart",
    [
        (None, 1, True),
        (None, 13, False),
        (4, 13, True),
        (4, 1, False),
        (None, 45, True),
        (40, 45, True),
        (40, 45, False),
    ],
)
def test_equals_reading_everything_again(tiny_model, variables, window, prefix_length, apart, monkeypatch):
    """A prefix in the rows' own block or apart, layers scanned or apart."""
    monkeypatch.setattr(decoding, "copies_slices", lambda: apart)
    model = Decoder(dataclasses.replace(tiny_model.config, sliding_window=window))
    prefix = (4 * PREFIX)[:prefix_length]
    assert (prefix_length > SHORT_PREFIX) == (prefix_length == 45)
    found = generate(model, variables, prefix, PROMPTS, NEW)
    assert found == [tiny.continued(model, variables, prefix + prompt, NEW) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in found}) == len(PROMPTS)
    assert len({token for answer in found for token in answer}) > 10  # not one token over and over


@pytest.mark.parametrize("apart", [True, False])
def test_with_an_adapter(tiny_model, variables, free, apart, monkeypatch):
    monkeypatch.setattr(decoding, "copies_slices", lambda: apart)
    config = LoraConfig(rank=2, alpha=32.0, dropout=0.1)
    model = Decoder(tiny_model.config, lora_scale=config.scale)
    lora = jax.tree.map(lambda x: x + 0.05, init_lora(jax.random.key(0), tiny_model.params, config))
    found = generate(model, {**variables, "lora": lora}, PREFIX, PROMPTS[:2], NEW)
    assert found == [tiny.continued(model, {**variables, "lora": lora}, PREFIX + p, NEW) for p in PROMPTS[:2]]
    assert found != free[:2]


@pytest.mark.parametrize("case", ["gqa", "mistral"])
def test_equals_transformers(case, from_hf):
    torch = require("torch")
    theirs = tiny.hf_model(case)
    theirs.generation_config.eos_token_id = None  # both make all tokens
    config, params = from_hf(theirs)
    prefix, *prompts = texts(11, 3, 8, seed=4)
    found = generate(Decoder(config), {"params": params}, prefix, prompts, 12)
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prefix + prompt])
        with torch.no_grad():
            made = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=2
            )
        assert answer == made[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batches_and_padding_change_nothing(model, variables, free, batch_size):
    assert generate(model, variables, PREFIX, PROMPTS, NEW, batch_size=batch_size) == free


def test_order_and_company_change_nothing(model, variables, free):
    assert generate(model, variables, PREFIX, PROMPTS[::-1], NEW) == free[::-1]
    # Without the long prompt the rows are padded less.
    short = [p for p in PROMPTS if len(p) <= PROMPT_BUCKET]
    expected = [a for p, a in zip(PROMPTS, free, strict=True) if len(p) <= PROMPT_BUCKET]
    assert generate(model, variables, PREFIX, short, NEW) == expected


def test_the_border_between_prefix_and_prompt_changes_nothing(model, variables, free):
    moved = generate(model, variables, PREFIX[:5], [PREFIX[5:] + prompt for prompt in PROMPTS], NEW)
    assert moved == free


def test_prompts_that_nothing_precedes(model, variables):
    found = generate(model, variables, (), PROMPTS, NEW)
    assert found == [tiny.continued(model, variables, prompt, NEW) for prompt in PROMPTS]


def test_few_programs(model, variables):
    """Short beginnings, numbers of prompts and of new tokens share programs."""
    decoding.decode.clear_cache()
    for prefix, count, tokens in ((PREFIX, 3, 5), (PREFIX[:1], 4, 40), ((), 3, 24)):
        generate(model, variables, prefix, (2 * PROMPTS)[1:2] * count, tokens)
    assert decoding.decode._cache_size() == 1


def test_fewer_tokens_are_a_prefix_of_more(model, variables, free):
    assert generate(model, variables, PREFIX, PROMPTS, 1) == [answer[:1] for answer in free]


def made_before_stop(answer, stop_ids):
    """An answer up to and with its first stop."""
    end = next((n for n, token in enumerate(answer) if token in stop_ids), len(answer) - 1)
    return answer[: end + 1]


@pytest.mark.parametrize("least_tokens", [1, 4, NEW])
def test_stops(model, variables, free, least_tokens):
    """A batch goes on until its last row has stopped; nothing that was not computed is in an answer."""
    stop_ids = sorted({answer[1 + n % 2] for n, answer in enumerate(free)})
    cut = [made_before_stop(answer, stop_ids) for answer in free]
    steps = max(least_tokens, *(len(answer) for answer in cut))
    assert max(len(answer) for answer in cut) < 4
    found = generate(model, variables, PREFIX, PROMPTS, NEW, stop_ids, least_tokens)
    assert [made_before_stop(answer, stop_ids) for answer in found] == cut
    assert [answer[:steps] for answer in found] == [answer[:steps] for answer in free]


@pytest.mark.parametrize("batch_size", [1, 16])
def test_an_answer_holds_only_tokens_that_were_made(model, variables, free, batch_size):
    stop_ids = sorted({answer[1 + n % 2] for n, answer in enumerate(free)})
    found = generate(model, variables, PREFIX, PROMPTS, NEW, stop_ids, batch_size=batch_size)
    for answer, whole in zip(found, free, strict=True):
        assert len(answer) >= len(made_before_stop(whole, stop_ids))
        assert answer == whole[: len(answer)]


def test_stops_that_never_come(model, variables, free):
    never = next(token for token in range(272) if not any(token in answer for answer in free))
    assert generate(model, variables, PREFIX, PROMPTS, NEW, (never,)) == free


def test_room_is_empty_and_behind_what_was_read():
    keys = jnp.arange(1.0, 2 * 3 * 5 * 4 * 2 + 1).reshape(2, 3, 5, 4, 2)  # [L, B, K, S, H]
    positions = jnp.arange(12).reshape(3, 4)
    segments = jnp.where(positions % 4 < 3, SHARED, EMPTY)
    longer = _with_room(KeyValues(keys, -keys, positions, segments), 6)
    assert longer.keys.shape == longer.values.shape == (2, 3, 5, 10, 2)
    assert longer.positions.shape == longer.segments.shape == (3, 10)
    np.testing.assert_array_equal(longer.keys[:, :, :, :4], keys)
    np.testing.assert_array_equal(longer.values[:, :, :, :4], -keys)
    np.testing.assert_array_equal(longer.positions[:, :4], positions)
    np.testing.assert_array_equal(longer.segments[:, :4], segments)
    assert (longer.segments[:, 4:] == EMPTY).all()  # else the zeros there would be attended to


def test_layers_apart_are_views_of_the_stacked_ones(tiny_model):
    apart = layers_apart({"params": tiny_model.params})["params"]
    assert apart["norm"] is tiny_model.params["norm"] and isinstance(apart["layers"], tuple)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *apart["layers"])
    jax.tree.map(np.testing.assert_array_equal, stacked, tiny_model.params["layers"])
    host = layers_apart({"params": jax.device_get(tiny_model.params)})["params"]
    jax.tree.map(np.testing.assert_array_equal, host["layers"], apart["layers"])
    kernel = tiny_model.params["layers"]["mlp"]["down_proj"]["kernel"]
    second = apart["layers"][1]["mlp"]["down_proj"]["kernel"]
    if jax.default_backend() == "cpu":  # no second copy of the weights
        assert second.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer() + second.nbytes


def test_no_prompts(model, variables):
    assert generate(model, variables, PREFIX, [], NEW) == []


def test_too_long_is_refused(tiny_model, variables):
    model = Decoder(dataclasses.replace(tiny_model.config, max_position_embeddings=30))
    prompts = texts(2, 8)
    expected = generate(Decoder(tiny_model.config), variables, PREFIX, prompts, 9)
    assert generate(model, variables, PREFIX, prompts, 9) == expected  # 13 + 8 + 9: just fits
    with pytest.raises(ValueError, match=r"13 tokens of context, 8 of question and 10 new.*limit of 30.*shorten"):
        generate(model, variables, PREFIX, prompts, 10)
    with pytest.raises(ValueError, match=r"context of 31 tokens.*limit of 30.*shorten it or split"):
        read_prefix(model, variables, list(range(31)))
    assert read_prefix(model, variables, list(range(30))).states().shape == (30, 32)


def test_round_up():
    assert [round_up(n, 4) for n in (0, 1, 4, 5)] == [0, 4, 4, 8]


# --- sampling -----------------------------------------------------------------------------------------


def first_token_probabilities(model, variables, ids, temperature):
    logits = tiny.plain_logits(model, variables, ids)[-1].astype(np.float64) / temperature
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (3.0, 1.0), (3.0, 0.6)])
def test_tokens_are_drawn_as_often_as_they_are_likely(model, variables, temperature, top_p):
    count = 4000
    drawn = generate(
        model, variables, PREFIX, [PROMPTS[1]] * count, 1, batch_size=count, sampling=Sampling(temperature, top_p)
    )
    found = np.bincount([answer[0] for answer in drawn], minlength=272) / count
    expected = first_token_probabilities(model, variables, PREFIX + PROMPTS[1], temperature)
    if top_p < 1:
        order = np.argsort(-expected)
        kept = order[: int(np.searchsorted(np.cumsum(expected[order]), top_p)) + 1]
        assert 1 < len(kept) < 272
        expected = np.where(np.isin(np.arange(272), kept), expected, 0.0)
        expected /= expected.sum()
        assert set(np.flatnonzero(found)) <= set(kept.tolist())
    deviation = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(found - expected) <= 5 * deviation + 1e-9).all()
    assert np.count_nonzero(found) > 3


def test_a_low_temperature_is_greedy(model, variables, free):
    assert generate(model, variables, PREFIX, PROMPTS, NEW, sampling=Sampling(1e-4)) == free


def test_draws_follow_the_seed_and_the_prompt_s_place_only(model, variables):
    def drawn(seed, batch_size, prompts=(PROMPTS[1],) * 5):
        sampling = Sampling(2.0, 0.9)
        return generate(model, variables, PREFIX, prompts, NEW, batch_size=batch_size, sampling=sampling, seed=seed)

    first = drawn(1, 5)
    assert first == drawn(1, 2) == drawn(1, 16)
    assert len({tuple(answer) for answer in first}) == 5, "rows of the same prompt differ"
    assert not {tuple(answer) for answer in first} & {tuple(answer) for answer in drawn(2, 5)}
    assert drawn(2**32 - 1, 5) != first


@pytest.mark.parametrize("size", [ARGMAX_BLOCK, 7 * ARGMAX_BLOCK, 7 * ARGMAX_BLOCK + 1])
def test_the_highest_logit_is_the_first_of_equals(size):
    logits = np.random.default_rng(0).integers(0, 6, (200, size)).astype(np.float32)  # most rows have equals
    logits[0, -1] = 9.0
    logits[1] = -np.inf
    found = highest(jnp.asarray(logits))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, logits.argmax(axis=-1))


@pytest.mark.parametrize("sampling", [None, Sampling(1.0, 0.9)])
def test_weights_that_overflow_are_no_answer(model, variables, sampling):
    """Finite weights can give logits that are not; token 0 would follow, which most tokenizers leave out."""
    norm = variables["params"]["norm"]["weight"]
    params = {**variables["params"], "norm": {"weight": jnp.full_like(norm, 3e38)}}
    assert np.isfinite(params["norm"]["weight"]).all()
    told = r"^model 'huge' gives logits that are not finite .*; load it with"
    with pytest.raises(NotFiniteLogits, match=told), answering("huge"):
        generate(model, {"params": params}, PREFIX, PROMPTS[:2], NEW, sampling=sampling)


def test_the_most_likely_tokens_by_hand():
    logits = jnp.log(jnp.asarray([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]))
    stays = {0.4: [[1], [0]], 0.6: [[1, 3], [0]], 0.9: [[1, 2, 3], [0]], 0.98: [[0, 1, 2, 3], [0, 1, 2, 3]]}
    for top_p, expected in stays.items():
        kept = np.isfinite(np.asarray(most_likely(logits, top_p)))
        # The last three of the second row are equally likely: all or none of them stay.
        assert [np.flatnonzero(row).tolist() for row in kept] == expected, top_p
    # Exactly enough is enough: what is as likely as nothing is not drawn from.
    kept = np.isfinite(np.asarray(most_likely(jnp.asarray([[0.0, -200.0, -300.0]]), 1.0)))
    assert kept.tolist() == [[True, False, False]]


@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 0.999999])
def test_the_most_likely_tokens_are_those_that_sorting_finds(top_p):
    random = np.random.default_rng(7)
    ties = random.integers(-3, 3, (2, 5000)).astype(np.float32)  # many equal logits
    far = np.float32(1e30) * random.standard_normal((1, 5000), dtype=np.float32)
    near = np.float32(1e-40) * random.standard_normal((1, 5000), dtype=np.float32)  # denormal: all equally likely
    usual = 4 * random.standard_normal((6, 5000), dtype=np.float32)
    for logits in (usual, usual - 50, usual + 50, -ties, far, near):
        kept = np.isfinite(np.asarray(most_likely(jnp.asarray(logits), top_p)))
        shares = np.exp(np.asarray(logits, np.float64) - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        for row, share, mine in zip(logits, shares, kept, strict=True):
            order = np.argsort(-row, kind="stable")
            before = np.concatenate([[0.0], np.cumsum(share[order])[:-1]])
            least = row[order][before < top_p].min()
            # A token on the very border may fall to either side of it by rounding, and no other.
            doubtful = np.abs(before - top_p) < 1e-6
            differing = (row[order] >= least) != mine[order]
            assert not (differing & ~np.isin(row[order], row[order][doubtful])).any()
            assert mine[order[0]]


@pytest.mark.parametrize("values", [{"temperature": 0.0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_impossible_sampling_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Sampling(**values)
