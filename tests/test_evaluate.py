import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from selfparam_jax import evaluate, prefix
from selfparam_jax.contexts import Context, Question
from selfparam_jax.evaluate import (
    answer_questions,
    best,
    bootstrap_interval,
    contains,
    exact_match,
    measure_drift,
    normalize,
    read_general,
    score_answer,
    short_answer,
    summarize,
    token_f1,
)
from selfparam_jax.generate import generate
from selfparam_jax.lora import LoraConfig, init_lora, merge_lora
from selfparam_jax.model import Decoder, apply_head, head_weight
from selfparam_jax.prompts import Prompt

# --- scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick, brown\tfox!", "quick brown fox"),
        ("an apple a day", "apple day"),
        ("Theatre and another", "theatre and another"),  # articles are whole words
        ("U.S.A.", "usa"),
        ("it's 3.5 %", "its 35"),
        ("well-known", "wellknown"),
        ("the", ""),
        (" \n", ""),
        ("A. The", ""),  # punctuation goes before articles
        ("Süd, 12 €", "süd 12 €"),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("prediction", "gold", "f1", "em", "contained"),
    [
        ("The village of Pelsin.", "village of Pelsin", 1.0, 1.0, 1.0),
        ("in the village of Pelsin", "Pelsin", 2 * (1 / 4) * 1 / (1 / 4 + 1), 0.0, 1.0),
        ("green", "red", 0.0, 0.0, 0.0),
        ("one two two three", "two two two", 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3), 0.0, 0.0),
        ("two", "two two", 2 * 1 * 0.5 / 1.5, 0.0, 0.0),
        ("b a c", "c b", 1.0, 0.0, 0.0),  # `a` is an article; F1 knows no order
        ("", "green", 0.0, 0.0, 0.0),
        ("green", "", 0.0, 0.0, 0.0),
        ("the", "", 1.0, 1.0, 1.0),
        ("1981, in June", "198", 0.0, 0.0, 0.0),  # whole words
        ("held in June 1981", "June, 1981", 2 * 0.5 / 1.5, 0.0, 1.0),
    ],
)
def test_scores(prediction, gold, f1, em, contained):
    assert token_f1(prediction, gold) == pytest.approx(f1)
    assert token_f1(gold, prediction) == pytest.approx(f1)
    assert exact_match(prediction, gold) == em
    assert contains(prediction, gold) == contained


def test_best_over_golds():
    assert best(exact_match, "green", ["red", "Green."]) == 1.0
    assert best(token_f1, "dark green", ["red", "green"]) == pytest.approx(2 / 3)
    assert best(token_f1, "blue", ["red", "green"]) == 0.0


# --- means and intervals ------------------------------------------------------------------------------


def answers(*f1, other=0.0):
    return [{"f1": value, "em": other, "contains": 1.0 - other, "f1_paper": value / 2} for value in f1]


def test_summarize_averages_questions_then_contexts():
    found = summarize([answers(1.0, 0.0, 0.5, 0.5), answers(0.2, other=1.0), []])
    assert found.pop("f1_ci95") == bootstrap_interval([[1.0, 0.0, 0.5, 0.5], [0.2]])
    expected = {"f1": (0.5 + 0.2) / 2, "em": 0.5, "contains": 0.5, "f1_paper": 0.175}
    assert found == pytest.approx(expected)  # 0.44 would be the mean over all questions
    assert summarize([[], []]) is None
    assert summarize([]) is None


def test_bootstrap_interval():
    groups = [list(np.random.default_rng(n).random(3 + n)) for n in range(6)]
    low, high = bootstrap_interval(groups)
    assert low < np.mean([np.mean(group) for group in groups]) < high
    assert bootstrap_interval(groups) == [low, high]
    assert bootstrap_interval(groups, seed=1) != [low, high]
    assert bootstrap_interval([[0.25] * 3, [0.25]]) == [0.25, 0.25]


def test_bootstrap_interval_resamples_contexts_and_questions():
    # Two contexts, 0 and 1: the mean is 0, 0.5 or 1, the outer ones with probability 1/4 each.
    assert bootstrap_interval([[0.0, 0.0], [1.0, 1.0]]) == [0.0, 1.0]
    # One context: only its questions can vary. 100 of them at 1/2: a standard error of 0.05.
    low, high = bootstrap_interval([[0.0, 1.0] * 50])
    assert low == pytest.approx(0.402, abs=0.02)
    assert high == pytest.approx(0.598, abs=0.02)


# --- from ids to an answer ----------------------------------------------------------------------------

WORDS = {0: "", 1: " the", 2: " town", 3: ".\n", 4: "\n", 5: " Question", 6: " x", 7: "</s>"}
STUB = types.SimpleNamespace(stop_ids=(0, 3, 4), end_ids=(0,), decode=lambda ids: "".join(WORDS[i] for i in ids))


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ([1, 2, 4, 5, 6], "the town"),
        ([1, 2, 3, 5], "the town."),  # the line break is inside a token
        ([2, 0, 5], "town"),  # end of text
        ([1, 2], "the town"),  # never stops
        ([4, 2], ""),
        ([], ""),
    ],
)
def test_short_answer(ids, expected):
    assert short_answer(STUB, ids) == expected


def test_paper_decoding_is_ten_tokens_and_knows_no_line_break():
    assert evaluate.PAPER_TOKENS == 10
    found = score_answer(STUB, [2, 4, 5] + [6] * 10, ["town", "x"])
    assert found["answer"] == "town"
    assert (found["f1"], found["em"], found["contains"]) == (1.0, 1.0, 1.0)
    assert found["paper"] == "town\n Question" + " x" * 7
    assert found["f1_paper"] == pytest.approx(0.2)  # 9 words, one of them right
    # Nothing after the end of the text is an answer.
    assert score_answer(STUB, [2, 0] + [6] * 10, ["town"])["paper"] == "town"
    assert score_answer(STUB, [2] * 9 + [0] + [6] * 5, ["town"])["paper"] == " ".join(["town"] * 9)


# --- answering ----------------------------------------------------------------------------------------

CONTEXTS = [
    Context(
        "a",
        "",
        "The ant and the inn.",
        (
            Question("Who?", ("the ant", "ant")),
            Question("Where is the hand?", ("the inn",)),
            Question("12?", ("12",)),
        ),
    ),
    Context("none", "", "Nothing is asked."),
    Context("b", "", "In the land of 12.", (Question("What land is in the?", ("12",)),)),
]


@pytest.mark.parametrize("with_context", [True, False])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_answers_equal_one_by_one(tiny_model, with_context, batch_size):
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    found = answer_questions(model, variables, prompt, CONTEXTS, with_context, batch_size)
    assert [len(group) for group in found] == [3, 0, 1]
    for context, group in zip(CONTEXTS, found, strict=True):
        prefix = prompt.context_prefix(context.context) if with_context else prompt.head
        for question, answer in zip(context.questions, group, strict=True):
            # Without stops: all 24 tokens, whatever the others do.
            (ids,) = generate(model, variables, prefix, [prompt.question(question.question)], 24)
            assert answer == score_answer(prompt, ids, question.answers)
            assert answer["paper"]
    flat = [answer["paper"] for group in found for answer in group]
    assert len(set(flat)) == 4


def test_a_context_is_read_once_for_all_its_questions(tiny_model, monkeypatch):
    """And what all contexts begin with once for all: counted in tokens that go through the model."""
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    read, read_piece = [], prefix._read_piece

    def counted(model, variables, cache, input_ids, length, at):
        read.extend(input_ids[0, :length].tolist())
        return read_piece(model, variables, cache, input_ids, length, at)

    monkeypatch.setattr(prefix, "_read_piece", counted)
    begun = "The hand in the land and the ant. " * 4
    contexts = [dataclasses.replace(each, context=begun + each.context) for each in CONTEXTS]
    answer_questions(model, variables, prompt, contexts, with_context=True)
    texts = [tuple(prompt.context_prefix(each.context)) for each in contexts if each.questions]
    shared = prefix.common_length(texts)
    assert shared >= prefix.LEAST_SHARED
    assert sorted(read) == sorted([*texts[0][:shared], *texts[0][shared:], *texts[1][shared:]])


def test_the_context_matters(tiny_model):
    model, variables = Decoder(tiny_model.config), {"params": tiny_model.params}
    prompt = Prompt("plain", tiny_model.tokenizer)
    with_it, without = (answer_questions(model, variables, prompt, CONTEXTS, flag) for flag in (True, False))
    assert with_it != without


# --- drift --------------------------------------------------------------------------------------------

TEXTS = ["The hand in the land.", "12 ants and an inn, and then the other one as well.", "in", "Then: and."]
ROW = 30


def drift_ids(prompt):
    """Ids of each text as they are scored, and where its own tokens begin."""
    return [(list(prompt.head) + list(prompt.text(text)))[:ROW] for text in TEXTS], len(prompt.head)


LORA = LoraConfig(rank=2)


def adapter(tiny_model):
    return jax.tree.map(lambda x: x + 0.03, init_lora(jax.random.key(0), tiny_model.params, LORA))


@pytest.fixture(scope="module")
def perturbed(tiny_model):
    return merge_lora(tiny_model.params, adapter(tiny_model), LORA.scale)


def test_no_drift_of_a_model_from_itself(tiny_model):
    prompt = Prompt("plain", tiny_model.tokenizer)
    model, params = Decoder(tiny_model.config), tiny_model.params
    general = read_general(model, {"params": params}, prompt, TEXTS, ROW, 2)
    found = measure_drift(model, general, {"params": params})
    assert found["kl"] == 0.0
    assert found["perplexity_before"] == found["perplexity_after"] > 1.0
    ids, start = drift_ids(prompt)
    assert any(len(row) == ROW for row in ids)  # one text is cut
    assert found["tokens"] == sum(len(row) - start - 1 for row in ids)


def test_drift_by_hand(tiny_model, perturbed):
    prompt = Prompt("plain", tiny_model.tokenizer)
    model = Decoder(tiny_model.config)
    ids, start = drift_ids(prompt)
    nll, kl, head = np.zeros(2), 0.0, head_weight(tiny_model.params)
    for row in ids:
        positions = jnp.arange(len(row))[None]
        logs = []
        for number, params in enumerate((tiny_model.params, perturbed)):
            row_ids = jnp.asarray([row])
            hidden, _ = model.apply({"params": params}, row_ids, positions, jnp.ones_like(row_ids))
            logits = np.asarray(apply_head(hidden, head)[0], np.float64)
            logs.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
            nll[number] -= sum(logs[-1][t, row[t + 1]] for t in range(start, len(row) - 1))
        scored = slice(start, len(row) - 1)
        kl += (np.exp(logs[0]) * (logs[0] - logs[1])).sum(-1)[scored].sum()
    count = sum(len(row) - start - 1 for row in ids)
    before, merged = {"params": tiny_model.params}, {"params": perturbed}
    unmerged = before | {"lora": adapter(tiny_model)}
    for rows_per_call, after in ((1, merged), (4, merged), (4, unmerged)):
        general = read_general(model, before, prompt, TEXTS, ROW, rows_per_call)
        found = measure_drift(model.clone(lora_scale=LORA.scale), general, after)
        assert found["tokens"] == count
        assert found["kl"] == pytest.approx(kl / count, rel=1e-4)
        assert found["kl"] > 0.01
        assert found["perplexity_before"] == pytest.approx(np.exp(nll[0] / count), rel=1e-4)
        assert found["perplexity_after"] == pytest.approx(np.exp(nll[1] / count), rel=1e-4)
        assert found["perplexity_after"] != pytest.approx(found["perplexity_before"], rel=1e-3)


def test_perplexity_equals_torch(from_hf):
    torch = pytest.importorskip("torch")
    theirs = tiny.hf_model("gqa")
    config, params = from_hf(theirs)
    prompt = Prompt("plain", tiny.tokenizer())
    ids, start = drift_ids(prompt)
    losses = []
    for row in ids:
        logits = torch.from_numpy(tiny.hf_logits(theirs, np.array([row])))[0].double()
        targets = torch.tensor(row)
        losses.append(torch.nn.functional.cross_entropy(logits[start:-1], targets[start + 1 :], reduction="none"))
    expected = torch.cat(losses).mean().exp().item()
    general = read_general(Decoder(config), {"params": params}, prompt, TEXTS, ROW)
    found = measure_drift(Decoder(config), general, {"params": params})
    assert found["perplexity_before"] == pytest.approx(expected, rel=1e-4)
