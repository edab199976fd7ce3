"""Rows decoded in pieces: the tokens of `generate`, whatever shares the batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from selfparam_jax.inference import batches, decoding, prefix
from selfparam_jax.inference.batches import PIECE, Batch, Continuation, Variant
from selfparam_jax.inference.decoding import NotFiniteLogits, Sampling, generate
from selfparam_jax.inference.prefix import ReadTexts
from selfparam_jax.models.decoder import Decoder

NEW = 13


def text(length, seed):
    return tuple(np.random.default_rng(seed).integers(3, 259, length).tolist())


PROMPTS = [text(60, 1), text(35, 2), text(50, 3)]


def whole(batch, count=PIECE):
    """All tokens of every row."""
    made = [[] for _ in range(batch.size)]
    while not all(batch.done):
        for row, tokens in zip(made, batch.advance(count), strict=True):
            row.extend(tokens)
    return made


@pytest.fixture(autouse=True)
def layers_stacked(monkeypatch):
    """Programs with the layers apart take longest to compile; one test has them."""
    for module in (batches, decoding):
        monkeypatch.setattr(module, "copies_slices", lambda: False)


@pytest.fixture(scope="module")
def variant(tiny_model):
    return Variant("base", Decoder(tiny_model.config), {"params": tiny_model.params})


def alone(variant, prompt, **options):
    """What `generate` gives for one prompt."""
    return generate(variant.decoder, variant.variables, prompt[:1], [prompt[1:]], NEW, **options)[0]


@pytest.mark.parametrize("apart", [True, False])
def test_pieces_are_the_tokens_of_generate(variant, apart, monkeypatch):
    monkeypatch.setattr(batches, "copies_slices", lambda: apart)
    fresh = Variant(variant.name, variant.decoder, variant.variables)
    assert isinstance(fresh.apart["params"]["layers"], tuple) == apart
    found = whole(Batch(fresh, [Continuation(prompt, NEW) for prompt in PROMPTS]))
    assert found == [alone(variant, prompt) for prompt in PROMPTS]
    assert len({token for row in found for token in row}) > 10  # not one token over and over


def test_a_model_whose_weights_overflow_is_named(variant):
    params = variant.variables["params"]
    params = {**params, "norm": {"weight": jnp.full_like(params["norm"]["weight"], 3e38)}}
    batch = Batch(Variant("huge", variant.decoder, {"params": params}), [Continuation(PROMPTS[0], NEW)])
    with pytest.raises(NotFiniteLogits, match=r"^model 'huge' gives logits that are not finite"):
        batch.advance()


def test_rows_end_at_their_own_stop_or_limit(variant):
    free = alone(variant, PROMPTS[0])
    end = next(n for n, token in enumerate(free) if token not in free[:n] and n > 2)
    wanted = [Continuation(PROMPTS[0], NEW, (free[end],)), Continuation(PROMPTS[0], 3), Continuation(PROMPTS[1], NEW)]
    batch = Batch(variant, wanted)
    assert batch.advance(2) == [free[:2], free[:2], alone(variant, PROMPTS[1])[:2]]
    assert batch.done == [False] * 3
    batch.end(2)  # its asker is gone
    rest = whole(batch, 4)
    assert rest == [free[2 : end + 1], free[2:3], []]


def test_draws_are_those_of_generate_whatever_shares_the_batch(variant):
    sampling = Sampling(1.3, 0.8)
    expected = generate(
        variant.decoder, variant.variables, PROMPTS[0][:1], [PROMPTS[0][1:]] * 3, NEW, sampling=sampling, seed=7
    )
    assert len(set(map(tuple, expected))) == 3
    drawn = [Continuation(PROMPTS[0], NEW, (), sampling, 7, number) for number in (2, 0)]
    hot = Continuation(PROMPTS[1], NEW, (), Sampling(5.0, 1.0), 2**32 - 1)
    found = whole(Batch(variant, [drawn[0], Continuation(PROMPTS[1], NEW), hot, drawn[1]]), 5)
    assert [found[0], found[3]] == [expected[2], expected[0]]
    assert found[1] == alone(variant, PROMPTS[1])  # greedy beside drawn ones
    assert found[2] == alone(variant, PROMPTS[1], sampling=Sampling(5.0, 1.0), seed=2**32 - 1)


def test_what_does_not_fit_is_refused(variant):
    with pytest.raises(ValueError, match="60 tokens of prompt and 965 new ones exceed the model's limit of 1024"):
        Batch(variant, [Continuation(PROMPTS[0], 965)])


def test_a_document_is_read_once(variant, monkeypatch):
    """The same tokens as without; further questions read themselves only, and few texts are held."""
    lengths, read_piece = [], prefix.read_piece

    def counted(model, variables, cache, ids, length, at):
        lengths.append(int(length))
        return read_piece(model, variables, cache, ids, length, at)

    monkeypatch.setattr(prefix, "read_piece", counted)
    one, other, questions = text(50, 4), text(50, 5), [text(9, 6), text(12, 7), text(7, 8)]
    texts = ReadTexts(2)

    def ask(*prompts, model=variant):
        lengths.clear()
        found = whole(Batch(model, [Continuation(prompt, NEW) for prompt in prompts], texts))
        spent = sum(lengths)
        assert found == [alone(model, prompt) for prompt in prompts]
        return spent

    assert ask(one + questions[0]) == 59
    assert ask(one + questions[1], one + questions[2]) == 19
    assert ask(one + questions[1]) == 1  # the same again: its last token
    assert ask(other + questions[0]) == 59
    assert ask(other + questions[2], one + questions[0]) == 16
    assert len(texts._held) == 2
    assert ask(text(50, 9) + questions[0]) == 59  # the oldest goes
    assert ask(other + questions[0]) == 59
    # Another model has states of its own.
    twice = Variant("twice", variant.decoder, {"params": {**variant.variables["params"]}})
    assert ask(text(50, 9) + questions[1], model=twice) == 62
