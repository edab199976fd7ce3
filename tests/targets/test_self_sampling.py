"""Unrelated text from the model itself: what is drawn, drawn again, refused, and kept."""

import dataclasses
import functools
import json

import pytest
import tiny

from selfparam_jax.data.documents import load_texts
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.inference.decoding import Sampling, generate
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.targets import self_sampling as selfsample
from selfparam_jax.targets.self_sampling import sample_texts, self_sampled

END = 1  # </s>


@pytest.fixture(scope="module")
def model(tiny_model):
    return Decoder(tiny_model.config)


@pytest.fixture(scope="module")
def variables(tiny_model):
    return {"params": tiny_model.params}


@pytest.fixture(scope="module")
def prompt():
    return Prompt("plain", tiny.tokenizer())


# --- drawn by a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 4])
def test_what_follows_nothing_is_what_follows_the_row_alone(tiny_model, variables, window):
    model = Decoder(dataclasses.replace(tiny_model.config, sliding_window=window))
    rows = [[0], [0, 7, 30], [9, 5, 4, 40, 41, 42, 43]]
    found = generate(model, variables, (), rows, 9)
    assert found == [tiny.continued(model, variables, row, 9) for row in rows]
    assert len({tuple(answer) for answer in found}) == 3


def test_texts_follow_the_head(model, variables):
    """At hardly any temperature the text is what a greedy reader makes of the head; the head is read."""
    tokenizer = tiny.tokenizer()
    texts = []
    for first in (40, 41):
        prompt = Prompt("plain", tokenizer)
        prompt.start_ids = (0, first)
        made = tiny.continued(model, variables, prompt.start_ids, 12)
        assert not set(made) & {*prompt.end_ids, 0}
        expected = prompt.decode(made).rstrip("\ufffd").strip()
        assert expected
        assert sample_texts(model, variables, prompt, 1, 12, seed=3, temperature=1e-4) == [expected]
        texts.append(expected)
    assert texts[0] != texts[1]


def test_the_seed_decides_and_the_batch_size_does_not(model, variables, prompt):
    draw = functools.partial(sample_texts, model, variables, prompt, 7, 6, temperature=0.7)
    texts = draw(seed=5)
    assert texts == draw(seed=5, batch_size=3) == draw(seed=5)
    assert len(set(texts)) == 7
    assert not set(texts) & set(draw(seed=6))
    assert all(text and text == text.strip() for text in texts)


def test_a_temperature_of_zero_is_refused(model, variables, prompt):
    with pytest.raises(ValueError, match="temperature = 0"):
        sample_texts(model, variables, prompt, 1, 6, seed=0, temperature=0.0)


@pytest.mark.parametrize(("count", "tokens"), [(0, 6), (-1, 6), (3, 0)])
def test_no_texts_and_no_tokens_are_refused(model, variables, prompt, count, tokens):
    with pytest.raises(ValueError, match=f"{count} texts of {tokens} tokens.*at least 1 of each"):
        sample_texts(model, variables, prompt, count, tokens, seed=0)


# --- what becomes of the draws -------------------------------------------------------------------------


class Script:
    """In place of `generate`: gives out these replies (ids), round by round, and keeps what it was asked."""

    def __init__(self, *rounds):
        self.rounds, self.asked = list(rounds), []

    def __call__(self, model, variables, prefix, prompts, new_tokens, stop_ids, batch_size, sampling, seed):
        assert prefix == ()
        self.asked.append((list(prompts), new_tokens, stop_ids, batch_size, sampling, seed))
        replies = self.rounds.pop(0) if len(self.rounds) > 1 else self.rounds[0]
        return [*replies, *[[60] * 3] * (len(prompts) - len(replies))]  # what fills a batch up


@pytest.fixture
def scripted(monkeypatch, model, prompt):
    def sample(rounds, *args, **options):
        script = Script(*rounds)
        monkeypatch.setattr(selfsample, "generate", script)
        return script, lambda: sample_texts(model, {}, prompt, *args, **options)

    return sample


def ids(prompt, *texts):
    return [list(prompt.encode(text)) for text in texts]


def test_empty_and_repeated_texts_are_drawn_again(scripted, prompt):
    one, two, three, four, five = ids(prompt, "one", " two\n", "three", "four", "five")
    blank = ids(prompt, " \n")[0]
    script, sample = scripted([[one, blank, two, [END, *three]], [two, one], [three, four, five]], 4, 9, seed=8)
    assert sample() == ["one", "two", "three", "four"]
    assert [len(asked[0]) for asked in script.asked] == [4, 4, 4], "whole batches; two are missing in the last two"
    assert all(set(asked[0]) == {prompt.start_ids} for asked in script.asked)
    assert all(asked[1:5] == (9, prompt.end_ids, 4, Sampling(1.0)) for asked in script.asked)
    seeds = [asked[5] for asked in script.asked]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_other_rounds_than_those_of_the_next_seed(scripted, prompt):
    """Round 1 of a seed is not round 0 of another: two runs do not share texts."""
    seeds = []
    for seed in (0, 1, 2):
        script, sample = scripted([[[]], ids(prompt, "x")], 1, 9, seed=seed)
        assert sample() == ["x"]
        seeds += [asked[5] for asked in script.asked]
    assert len(set(seeds)) == 6


def test_batches_are_full(scripted, prompt):
    texts = [f"text {n}" for n in range(7)]
    script, sample = scripted([[*ids(prompt, *texts[:4]), [], [], []], ids(prompt, *texts[4:])], 7, 9, 0, 1.0, 5)
    assert sample() == texts
    assert [(len(asked[0]), asked[3]) for asked in script.asked] == [(10, 5), (5, 5)]


def test_a_text_ends_where_the_model_ends_it(scripted, prompt):
    first, second = ids(prompt, "first", "second")
    e_acute = list(prompt.encode("é"))
    assert len(e_acute) == 2
    replies = [[*first, END, *second], [*second, 0, *first], [*first, *e_acute], [*second, *e_acute, e_acute[0]]]
    _, sample = scripted([replies], 4, 9, seed=0)
    assert sample() == ["first", "secondfirst", "firsté", "secondé"], "no marks, and no half of a character"


def test_it_does_not_draw_for_ever(scripted, prompt):
    script, sample = scripted([ids(prompt, "a", "b", "a"), ids(prompt, "b", "a", "b")], 3, 9, seed=0)
    with pytest.raises(ValueError, match=r"gave 2 different texts in \d+ rounds, expected 3.*higher temperature"):
        sample()
    assert len(script.asked) == selfsample.ROUNDS


# --- kept in a file ------------------------------------------------------------------------------------


def test_texts_are_made_once_and_kept(tmp_path):
    path, calls = tmp_path / "unrelated.jsonl", []
    texts = ["plain", 'two "lines"\nand\ttabs', "odd \u2028 \x85 \x01 <|im_end|> \\n", "grüße 漢字"]

    def make():
        calls.append(1)
        return iter(texts)

    assert self_sampled(path, make) == texts
    before = path.read_bytes()
    assert self_sampled(str(path), make) == texts == load_texts(path)
    assert calls == [1]
    assert path.read_bytes() == before
    assert [json.loads(line) for line in before.decode().split("\n")[:-1]] == [{"text": text} for text in texts]
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_drawing_that_failed(tmp_path):
    def make():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        self_sampled(tmp_path / "unrelated.jsonl", make)
    assert not list(tmp_path.iterdir())
    assert self_sampled(tmp_path / "unrelated.jsonl", lambda: ["a"]) == ["a"]


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "unrelated.jsonl"
    path.write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"unrelated\.jsonl, line 1.*empty string"):
        self_sampled(path, lambda: ["a"])
