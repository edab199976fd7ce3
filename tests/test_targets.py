"""Target sentences: what is a token of what, and which tokens carry which loss."""

import numpy as np
import pytest
import tiny

from selfparam_jax import targets
from selfparam_jax.contexts import Context, QAPair
from selfparam_jax.prompts import Prompt
from selfparam_jax.targets import Sentence, TargetConfig

CONTEXTS = [
    Context(
        "a", "A", "The old mill stands by the river.", (), (QAPair("Where?", "by the river"), QAPair("What?", "mill"))
    ),
    Context("b", "B", "Rain fell on the hills all day.", (), (QAPair("On what?", "the hills"),)),
]


@pytest.fixture(params=["plain", "worked", "paper", "chat"])
def prompt(request):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ '<pad>' }}" + tiny.CHAT_TEMPLATE  # something stands before the first turn
    return Prompt(request.param, tokenizer)


@pytest.mark.parametrize(
    ("loss_tokens", "on_question", "on_answer"),
    [("all", 1.0, 1.0), ("answer", 0.0, 1.0), ("0.25,2", 0.25, 2.0), ("0,0", 0.0, 0.0)],
)
def test_loss_tokens(prompt, loss_tokens, on_question, on_answer):
    config = TargetConfig(loss_tokens=loss_tokens, answer_supervision=0.5)
    made = targets.qa_sentences(CONTEXTS, prompt, config)
    assert [(s.context, s.record["question"]) for s in made] == [(0, "Where?"), (0, "What?"), (1, "On what?")]
    question, answer = prompt.question("Where?"), prompt.answer("by the river")
    assert made[0].ids == question + answer
    assert made[0].weights == (on_question,) * len(question) + (on_answer,) * len(answer)
    assert made[0].supervision == (0.0,) * len(question) + (0.5,) * len(answer)
    first = 0 if on_question else len(question)
    assert made[0].loss_tokens == list(range(first, len(made[0].ids)))


def test_unsupervised_answers_without_weight_carry_no_loss(prompt):
    made = targets.qa_sentences(CONTEXTS, prompt, TargetConfig(loss_tokens="0,0"))
    assert [sentence.loss_tokens for sentence in made] == [[], [], []]
    assert targets.context_groups(made) == {}
    assert targets.first_slots(made).tolist() == [0, 0, 0]


def test_tails_are_tails_of_the_context_and_nothing_else(prompt):
    made = targets.tail_sentences(CONTEXTS, prompt, TargetConfig(tails_per_context=20, tail_weight=0.5), 0, 12)
    assert len(made) == 40
    for sentence in made:
        prefix = prompt.context_prefix(CONTEXTS[sentence.context].context)
        begin, end = prompt.context_span(CONTEXTS[sentence.context].context)
        assert sentence.ids == prefix[sentence.start : sentence.start + len(sentence.ids)]
        assert begin < sentence.start < sentence.start + len(sentence.ids) <= end
        assert len(sentence.ids) <= 12
        assert set(sentence.weights) == {0.5}
    assert len({sentence.start for sentence in made}) > 5
    again = targets.tail_sentences(CONTEXTS, prompt, TargetConfig(tails_per_context=20, tail_weight=0.5), 0, 12)
    assert again == made


def test_unrelated_texts(prompt):
    texts = [f"Text number {n} is here and it goes on for a while." for n in range(6)]
    config = TargetConfig(unrelated_tokens=7, unrelated_weight=0.5)
    made = targets.unrelated_sentences(texts, prompt, config, 4, len(CONTEXTS), seed=3)
    assert {s.ids for s in made} <= {prompt.text(text)[:7] for text in texts}
    assert len({s.record["text"] for s in made}) <= 4
    assert all(s.context is None and s.weights == (0.5,) * 7 for s in made)
    with_context = TargetConfig(unrelated_context=True)
    made = targets.unrelated_sentences(texts, prompt, with_context, 4, len(CONTEXTS), seed=3)
    assert [s.context for s in made] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="7 unrelated texts are needed, but the file has 6"):
        targets.unrelated_sentences(texts, prompt, config, 7, len(CONTEXTS), seed=3)


def test_fewer_pairs(prompt):
    made = targets.qa_sentences(CONTEXTS, prompt, TargetConfig(qa_per_context=1))
    assert [s.record["answer"] for s in made] == ["by the river", "the hills"]
    with pytest.raises(ValueError, match="context 'b' has 1 qa_pairs"):
        targets.qa_sentences(CONTEXTS, prompt, TargetConfig(qa_per_context=2))
    assert targets.first_slots(made).tolist() == [0, len(made[0].ids)]


def sentence(context, *weights, supervision=()):
    return Sentence("qa", context, (5,) * len(weights), weights, None, {}, supervision)


def test_loss_tokens_carry_kl_or_supervision_or_both():
    assert sentence(0, 0.0, 1.0, 0.5, 0.0).loss_tokens == [1, 2]
    assert sentence(0, 0.0, 1.0, 0.0, 0.0, supervision=(0.0, 0.5, 0.0, 0.5)).loss_tokens == [1, 3]
    assert sentence(0, 0.0, supervision=(0.0,)).loss_tokens == []


def test_groups_and_slots_by_hand():
    made = [
        sentence(1, 1.0, 1.0),
        sentence(None, 0.0, 0.5, 0.5),
        sentence(0, 1.0),
        sentence(2, 0.0),  # no loss: it is in no group and has no slots
        sentence(1, 0.0, 2.0),
        sentence(0, 0.0, 0.0, supervision=(0.0, 1.0)),
        sentence(1, 0.0, 0.0),
        sentence(None, 1.0),
        sentence(1, 1.0, 1.0, 1.0),
    ]
    groups = targets.context_groups(made)
    assert groups == {1: [0, 4, 8], None: [1, 7], 0: [2, 5]}
    assert list(groups) == [1, None, 0]
    first = targets.first_slots(made)
    assert first.dtype == np.int64
    with_loss = [0, 1, 2, 4, 5, 7, 8]
    assert first[with_loss].tolist() == [0, 6, 9, 2, 10, 8, 3]
    assert targets.first_slots([]).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
def test_slots_of_a_context_are_contiguous_and_no_slot_is_shared(seed):
    rng = np.random.default_rng(seed)
    made = [
        sentence([None, 0, 1, 2][rng.integers(4)], *(0.5 * rng.integers(0, 3, rng.integers(1, 6))).tolist())
        for _ in range(60)
    ]
    first, groups = targets.first_slots(made), targets.context_groups(made)
    assert sorted(i for members in groups.values() for i in members) == [
        i for i, s in enumerate(made) if s.loss_tokens
    ]
    assert any(not s.loss_tokens for s in made)
    slot = 0
    for context, members in groups.items():
        assert members == sorted(members)
        for i in members:
            assert made[i].context == context
            assert first[i] == slot
            slot += len(made[i].loss_tokens)
    assert slot == sum(len(s.loss_tokens) for s in made)
