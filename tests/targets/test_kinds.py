"""The kinds of target sentences: which tokens they have, and which of them carry which loss."""

import dataclasses
import itertools
import random
import time
import types

import pytest
import tiny

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.targets import kinds
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.kinds import make_targets
from selfparam_jax.targets.sentences import context_groups, first_slots

CONTEXTS = [
    Document(
        id="a",
        title="A",
        text="The old mill stands by the river.",
        questions=(),
        qa_pairs=(QAPair("Where?", "by the river"), QAPair("What?", "mill")),
    ),
    Document(
        id="b",
        title="B",
        text="Rain fell on the hills all day.",
        questions=(),
        qa_pairs=(QAPair("On what?", "the hills"),),
    ),
]


def config_of(**changes):
    """Plain losses, the reading format, and nothing that only keeps the model, whatever the defaults are."""
    plain = {"loss_tokens": "all", "answer_supervision": 0.0, "formats": "reading"}
    plain |= {"unrelated_per_epoch": 0, "unrelated_weight": 1.0, "contrast_per_epoch": 0, "chat_per_epoch": 0}
    return TargetConfig(**{**plain, **changes})


@pytest.fixture(params=["plain", "few_shot", "paper", "chat"])
def prompt(request):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{{ '<pad>' }}" + tiny.CHAT_TEMPLATE  # something stands before the first turn
    return Prompt(request.param, tokenizer)


@pytest.mark.parametrize(
    ("loss_tokens", "on_question", "on_answer"),
    [("all", 1.0, 1.0), ("answer", 0.0, 1.0), ("0.25,2", 0.25, 2.0), ("0,0", 0.0, 0.0)],
)
def test_loss_tokens(prompt, loss_tokens, on_question, on_answer):
    config = config_of(loss_tokens=loss_tokens, answer_supervision=0.5)
    made = kinds.qa_sentences(CONTEXTS, prompt, config)
    assert [(s.context, s.record["question"]) for s in made] == [(0, "Where?"), (0, "What?"), (1, "On what?")]
    question, answer = prompt.question("Where?"), prompt.answer("by the river")
    assert made[0].ids == question + answer
    assert made[0].weights == (on_question,) * len(question) + (on_answer,) * len(answer)
    assert made[0].supervision == (0.0,) * len(question) + (0.5,) * len(answer)
    first = 0 if on_question else len(question)
    assert made[0].loss_tokens == list(range(first, len(made[0].ids)))


def test_the_weight_of_pairs(prompt):
    config = config_of(loss_tokens="0.25,2", answer_supervision=0.5, qa_weight=3.0)
    one, other = kinds.qa_sentences(CONTEXTS, prompt, config), len(prompt.question("Where?"))
    assert one[0].weights == (0.75,) * other + (6.0,) * (len(one[0].ids) - other)
    assert one[0].supervision == (0.0,) * other + (1.5,) * (len(one[0].ids) - other)
    assert kinds.qa_sentences(CONTEXTS, prompt, config_of(qa_weight=0.0)) == []


def test_fewer_pairs_than_asked_for_once_they_are_chosen(prompt):
    """What is left after choosing is not known before; what a file brings is."""
    with pytest.raises(ValueError, match="qa_per_context = 2, but document 'b' has 1"):
        kinds.qa_sentences(CONTEXTS, prompt, config_of(qa_per_context=2))
    made = kinds.qa_sentences(CONTEXTS, prompt, config_of(qa_per_context=2, agreement="keep"))
    assert [sentence.context for sentence in made] == [0, 0, 1]


def test_unsupervised_answers_without_weight_carry_no_loss(prompt):
    made = kinds.qa_sentences(CONTEXTS, prompt, config_of(loss_tokens="0,0"))
    assert [sentence.loss_tokens for sentence in made] == [[], [], []]
    assert context_groups(made) == {}
    assert first_slots(made).tolist() == [0, 0, 0]


TALE = Document(
    id="c",
    title="C",
    text='Dr. Lee built it in 1907. "It burned," said J. Roe of the U.S. Army. Who knew?\n\n the end came. 12 died.',
)
TALE_STARTS = ("Dr. Lee", '"It burned', "Who knew", "the end", "12 died")
CUTS = pytest.mark.parametrize("cut", ["random", "sentence"])


def tails_of(prompt, contexts=(*CONTEXTS, TALE), count=3, epochs=1, seed=0, longest=500, **changes):
    config = config_of(tails_per_context=count, **changes)
    return kinds.tail_sentences(contexts, prompt, config, seed, longest, epochs)


def cuts_by_epoch(made, context, epochs):
    """Where the context's tails of each epoch begin, sorted."""
    return [sorted(s.start for s in made if s.context == context and n in s.epochs) for n in range(epochs)]


@CUTS
@pytest.mark.parametrize("longest", [12, 500])
def test_tails_are_tails_of_the_context_and_nothing_else(prompt, cut, longest):
    made = tails_of(prompt, count=12, longest=longest, tail_weight=0.5, tail_cut=cut)
    assert len(made) == (36 if cut == "random" else 4), "the other two contexts are one sentence"
    for sentence in made:
        context = [*CONTEXTS, TALE][sentence.context]
        prefix, (begin, end) = prompt.context_prefix(context.text), prompt.context_span(context.text)
        length = min(longest, end - sentence.start)
        assert begin < sentence.start < end
        assert sentence.ids == prefix[sentence.start : sentence.start + length]
        assert sentence.weights == (0.5,) * length
        assert sentence.supervision == ()
        text = prompt.decode(sentence.ids)
        assert sentence.record == {"kind": "tail", "context": context.id, "text": text, "epochs": [0]}
    assert len({(sentence.context, sentence.start) for sentence in made}) == len(made)
    assert tails_of(prompt, count=12, longest=longest, tail_weight=0.5, tail_cut=cut) == made
    assert tails_of(prompt, count=12, longest=longest, tail_weight=0.5, tail_cut=cut, seed=1) != made


def test_random_tails_begin_in_the_context_and_have_eight_tokens(prompt):
    text = TALE.text
    prefix, (_, end) = prompt.context_prefix(text), prompt.context_span(text)
    cuts = kinds.tail_cuts(text, prompt, "random")
    assert cuts == list(range(cuts[0], end - 7)), "every token but the last ones"
    assert prompt.decode(prefix[cuts[0] - 1 : end]).startswith(text), "the first token is not one"
    assert prompt.decode(prefix[cuts[0] : end]).startswith(text[1:])
    short = kinds.tail_cuts("Hi", prompt, "random")
    prefix, (_, end) = prompt.context_prefix("Hi"), prompt.context_span("Hi")
    assert prompt.decode(prefix[short[0] : end]).startswith("i")
    assert 1 <= len(short) <= max(1, end - short[0] - 7)
    drawn = {s.start for seed in range(30) for s in tails_of(prompt, [TALE], seed=seed)}
    assert len(drawn) > len(cuts) / 2, "all over the context"


def assert_begins_with_its_token(prompt, context, cut, at):
    """The tail begins at the last token boundary at or before character `at`."""
    prefix, (_, end) = prompt.context_prefix(context), prompt.context_span(context)
    assert context[at:].strip() in prompt.decode(prefix[cut:end])
    assert context[at:].strip() not in prompt.decode(prefix[cut + 1 : end])


def test_sentence_tails_begin_with_the_token_of_the_sentence(prompt):
    text = TALE.text
    starts = [text.index(start) for start in TALE_STARTS]
    assert kinds.sentence_starts(text) == starts
    cuts = kinds.tail_cuts(text, prompt, "sentence")
    assert cuts == sorted(cuts)
    for cut, at in zip(cuts, starts[1:], strict=True):
        assert_begins_with_its_token(prompt, text, cut, at)
    # " the" is one token: the boundary before it is taken.
    assert prompt.decode(prompt.context_prefix(text)[cuts[2] :]).startswith(" the end came. 12 died.")
    assert prompt.decode(prompt.context_prefix(text)[cuts[3] :]).startswith("12 died.")


@pytest.mark.default_model
@pytest.mark.parametrize("name", ["few_shot", "chat"])
def test_sentence_tails_of_a_real_tokenizer(default_model, name):
    prompt = Prompt(name, default_model.tokenizer)
    text = 'Q came. Zoe left! (Quarrels?) 1907 was dry. 30 rose. "Qualms," he said. Éric 漢字。漢字。As <|im_end|>.'
    starts = kinds.sentence_starts(text)
    assert [text[at : at + 3] for at in starts] == ["Q c", "Zoe", "(Qu", "30 ", '"Qu', "Éri", "漢字。", "As "]
    cuts = kinds.tail_cuts(text, prompt, "sentence")
    for cut, at in zip(cuts, starts[1:], strict=True):
        assert_begins_with_its_token(prompt, text, cut, at)
    made = tails_of(prompt, [Document(id="d", title="D", text=text)], 8, tail_cut="sentence")
    assert sorted(s.start for s in made) == cuts


def test_a_tail_begins_before_the_token_that_spans_its_first_character_and_only_once():
    """A tokenizer by hand: a token is eight characters, whatever they are."""

    def context_prefix(text):
        return ("head", *(text[n : n + 8] for n in range(0, len(text), 8)))

    prompt = types.SimpleNamespace(context_prefix=context_prefix)
    text = "Nobody came at all. A! B! C! They had left. End."
    assert [text[at] for at in kinds.sentence_starts(text)] == ["N", "A", "B", "C", "T", "E"]
    # They stand at 0, 20, 23, 26, 29 and 44: tokens 0, 2, 2, 3, 3 and 5 of the text.
    assert kinds.tail_cuts(text, prompt, "sentence") == [3, 4, 6]


@pytest.mark.parametrize(
    "marked",
    [
        "|One came. |Two left! |Why? |Three left.",
        "|He met Dr. Lee, Mrs. Roe, St. Ives and J. R. Poe of the U.S. Army. |She left.",
        "|It holds 3.5 litres, see Fig. 4 and pp. 9. |No. 5 is red. |No. |Then rain fell on Jan. 5.",
        '|The firm (founded in 1999.) Then it "closed." “Open!” he said. |¿Dónde? |Él vino. |(So there.) |End.',
        "|a heading\n\n|and a text, e.g. This one\nthat goes on. |It ends.\n \n \n|• an item\n\n|- another",
        "|Lines. |Lines\nLines.\n|Lines.\r\n|Lines. |- yes",
        "|It ended at 5 p.m. |Then in the U.K. 2020 was dry.",
        "  \n\n|Blank first.  |Two spaces.\t|A tab. \n\n",
        "|Wait... |What? |yes! |Yes?! |No.",
        "|See https://a.b/c.html. |Then ask me@x.org. |1.5 is a number.",
        "|今日は晴れ。|雨は降らない！？|本当。",
        "|晴れ。|iPhone。|「雨。」",
        "|यह घर है। वह नदी है।",  # not a script that the rules for English know: no start rather than a wrong one
        "|He left (for the U.S.) Then he came.",
        "|Was it J? |No, Mr! |Yes.",
        "|In 1 it rained on Jan. 4. |In 2 it rained on Jan. 5. |It was given to Roe in 6. |So it was in 7. |Then 8.",
        "|no mark at all",
        "|.",
        "",
        " \n\n ",
    ],
)
def test_sentence_starts(marked):
    parts = marked.split("|")
    expected = list(itertools.accumulate(map(len, parts[:-1])))
    assert kinds.sentence_starts("".join(parts)) == expected


def test_every_abbreviation_holds_a_sentence_together():
    for word in ("Prof", "mt", "vs", "approx", "al", "Hon", "cf", "ca"):
        assert kinds.sentence_starts(f"By {word}. Ada. Yes.") == [0, len(word) + 10]
    for word in ("No", "pp", "Vol", "Sept", "figs", "Eq", "ch"):
        assert kinds.sentence_starts(f"By {word}. 7. Yes.") == [0, len(word) + 8]
        assert kinds.sentence_starts(f"By {word}. Seven.") == [0, len(word) + 5]


NASTY = (
    "The U.S. Army (est. 1775) won.", "“Go!” she said.", "See p. 9 ff. of it.", "a) one b) two c) three.", "Yes.",
    "1. First. 2. Second. 3. Third.", "He paid $5.25 vs. 6.30 (approx.).", "Was it Mr. Q.?! No…", "• item one",
    "x = y.z; f(a.b)!", "Hello.World", "It cost 3.000.000 yen.", "[sic]", "漢字。漢字「雨。」次", "Ph.D. Roe et al.",
    "?", "...",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_no_start_is_inside_a_word_whatever_the_text(seed):
    draw = random.Random(seed)
    text = "".join(draw.choice(NASTY) + draw.choice([" ", " ", " ", "\n", "\n\n", "  ", ""]) for _ in range(400))
    starts = kinds.sentence_starts(text)
    assert starts == sorted(set(starts)) and starts[0] == 0
    assert len(starts) > 100
    for at in starts[1:]:
        assert not text[at].isspace()
        assert text[at - 1].isspace() or text[at - 1] in "。！？」』”", text[at - 20 : at + 5]


def test_a_long_paragraph_is_cut_like_a_short_one_and_soon():
    """The windows in which it is read leave no trace, and the time grows with the length."""
    sentences = [f"In {n} Dr. Ada Bell of the U.S. Army came to mill No. {n} on Jan. {n % 30}." for n in range(1400)]
    text = " ".join(sentences)
    assert len(text) > 90_000
    began = time.monotonic()
    assert kinds.sentence_starts(text) == list(itertools.accumulate([0, *(len(s) + 1 for s in sentences[:-1])]))
    assert time.monotonic() - began < 5
    word = "x" * 30_000 + ". |Yes."
    assert kinds.sentence_starts(word.replace("|", "")) == [0, word.index("|")]


@CUTS
def test_tails_are_fresh_in_every_epoch(prompt, cut):
    long = Document(id="l", title="L", text=" ".join(f"Sentence number {n} is here." for n in range(30)))
    made = tails_of(prompt, [TALE, long], 3, 8, tail_cut=cut)
    epochs = cuts_by_epoch(made, 1, 8)
    assert [len(set(cuts)) for cuts in epochs] == [3] * 8
    assert len(set(itertools.chain(*epochs))) == 24, "none twice while there are others"
    assert len(made) == len({(s.context, s.start) for s in made}), "one that comes again is the same sentence"
    assert {start for start in itertools.chain(*epochs)} <= set(kinds.tail_cuts(long.text, prompt, cut))
    fewer = tails_of(prompt, [TALE, long], 3, 3, tail_cut=cut)
    for context in (0, 1):  # a longer run begins like a shorter one
        assert cuts_by_epoch(fewer, context, 3) == cuts_by_epoch(made, context, 8)[:3]
    assert all(s.record["epochs"] == list(s.epochs) for s in made)


def test_tails_come_again_when_all_have_been_there(prompt):
    """Four sentences may begin a tail: two epochs of three use them all."""
    made = tails_of(prompt, [TALE], 3, 4, tail_cut="sentence")
    cuts = kinds.tail_cuts(TALE.text, prompt, "sentence")
    assert len(cuts) == len(made) == 4
    assert [sentence.epochs for sentence in made] == [(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)]
    assert sorted(sentence.start for sentence in made) == cuts
    assert [s.start for s in made] != [s.start for s in tails_of(prompt, [TALE], 3, 4, 2, tail_cut="sentence")]


@CUTS
def test_a_context_has_no_more_tails_in_an_epoch_than_it_can(prompt, cut):
    cuts = kinds.tail_cuts(TALE.text, prompt, cut)
    made = tails_of(prompt, [TALE], 1000, 50, tail_cut=cut)
    assert [sentence.epochs for sentence in made] == [tuple(range(50))] * len(cuts)
    assert sorted(sentence.start for sentence in made) == cuts


@pytest.mark.parametrize(
    ("count", "per_epoch", "epochs", "expected"),
    [
        (3, 2, 3, [(0, 1), (0, 2), (1, 2)]),
        (5, 2, 3, [(0, 2), (0,), (1,), (1,), (2,)]),
        (4, 1, 2, [(0,), (1,), (), ()]),
        (2, 5, 2, [(0, 1), (0, 1)]),
        (3, 0, 2, [(), (), ()]),
        (0, 3, 2, []),
    ],
)
def test_turns_by_hand(count, per_epoch, epochs, expected):
    assert kinds.turns(count, per_epoch, epochs) == expected


# --- all kinds of one injection ------------------------------------------------------------------------


def made_of(prompt, documents, epochs=2, texts=(), seed=3, **changes):
    return make_targets(
        documents, prompt, config_of(**changes), seed=seed, epochs=epochs, seq_len=64, unrelated=list(texts)
    )


def without_pairs(*contexts):
    return [Document(id=context.id, title=context.title, text=context.text) for context in contexts]


def test_tails_of_an_injection_are_of_all_its_epochs_and_fit_into_a_row(prompt):
    documents = without_pairs(*CONTEXTS, TALE)
    made = made_of(prompt, documents, tails_per_context=2, epochs=3)
    assert {sentence.kind for sentence in made} == {"tail"}
    for context in range(3):
        assert [len(cuts) for cuts in cuts_by_epoch(made, context, 3)] == [2, 2, 2]
    assert max(len(sentence.ids) for sentence in made) <= 64 - len(prompt.start_ids)
    assert made_of(prompt, documents, tails_per_context=2, epochs=3, seed=4) != made


def test_documents_without_a_tail_are_counted(prompt, monkeypatch):
    said = []
    monkeypatch.setattr(kinds.logging, "warning", lambda text, *values: said.append(text % values))
    made = made_of(prompt, without_pairs(*CONTEXTS, TALE), tails_per_context=2, tail_cut="sentence")
    assert {sentence.context for sentence in made} == {2}
    assert said == ["2 of 3 documents are one sentence and have no tail"]
    said.clear()
    made_of(prompt, [TALE], tails_per_context=2, tail_cut="sentence")
    assert not said


def test_the_only_pair_is_longer_than_a_row(prompt, monkeypatch):
    """A form may leave a pair out that it has no room for; it is not that there was none."""
    monkeypatch.setitem(kinds.TARGET_KINDS, "qa", lambda request: [])
    long = dataclasses.replace(CONTEXTS[0], qa_pairs=(QAPair("Who founded it?", "a word " * 200),))
    with pytest.raises(ValueError, match=r"the pair 'Who founded it\?' is longer than a row of 64 tokens, .*seq_len"):
        made_of(prompt, [long])


def test_nothing_to_learn_says_why(prompt):
    one_sentence = {"tails_per_context": 2, "tail_cut": "sentence", "unrelated_per_epoch": 1, "texts": ["a text"]}
    with pytest.raises(ValueError, match=r"nothing to learn.*second sentence.*tail_cut=random"):
        made_of(prompt, without_pairs(*CONTEXTS), **one_sentence)
    with pytest.raises(ValueError, match=r"nothing to learn.*tails_per_context is 0"):
        made_of(prompt, without_pairs(*CONTEXTS))
    found = [s.kind for s in made_of(prompt, CONTEXTS, **one_sentence)]
    assert found == ["qa"] * 3 + ["unrelated"], "pairs are enough"
    with pytest.raises(ValueError, match=r"no token .* carries loss: targets.loss_tokens = '0,0'"):
        made_of(prompt, CONTEXTS, loss_tokens="0,0")


def test_a_kind_is_an_entry_of_the_registry(prompt, monkeypatch):
    def shout(request):
        return [kinds.qa_sentences(request.documents[:1], request.prompt, request.config)[0]] * request.epochs

    monkeypatch.setitem(kinds.TARGET_KINDS, "shout", shout)
    made = made_of(prompt, CONTEXTS, epochs=4)
    assert len(made) == 3 + 4 and made[3:] == [made[0]] * 4


def test_unrelated_texts_of_an_injection(prompt):
    """Each epoch reads others while there are enough; else they take turns."""
    texts = [f"Text number {n}." for n in range(5)]
    for epochs, count in ((1, 2), (2, 4), (9, 5)):
        made = made_of(prompt, CONTEXTS, epochs, texts, unrelated_per_epoch=2)
        assert sum(s.kind == "unrelated" for s in made) == count
    with pytest.raises(ValueError, match="got 5 unrelated texts, expected 6"):
        made_of(prompt, CONTEXTS, 1, texts, unrelated_per_epoch=6)


# --- unrelated text, pairs, and slots ------------------------------------------------------------------


def test_unrelated_texts(prompt):
    texts = [f"Text number {n} is here and it goes on for a while." for n in range(6)]
    config = config_of(unrelated_tokens=7, unrelated_weight=0.5)
    made = kinds.unrelated_sentences(texts, prompt, config, 4, len(CONTEXTS), seed=3)
    assert {s.ids for s in made} <= {prompt.text(text)[:7] for text in texts}
    assert len({s.record["text"] for s in made}) <= 4
    assert all(s.context is None and s.weights == (0.5,) * 7 for s in made)
    with_context = config_of(unrelated_context=True)
    made = kinds.unrelated_sentences(texts, prompt, with_context, 4, len(CONTEXTS), seed=3)
    assert [s.context for s in made] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="got 6 unrelated texts, expected 7; add texts"):
        kinds.unrelated_sentences(texts, prompt, config, 7, len(CONTEXTS), seed=3)


def test_fewer_pairs(prompt):
    made = kinds.qa_sentences(CONTEXTS, prompt, config_of(qa_per_context=1))
    assert [s.record["answer"] for s in made] == ["by the river", "the hills"]
    with pytest.raises(ValueError, match="document 'b' has 1 qa_pairs"):
        kinds.qa_sentences(CONTEXTS, prompt, config_of(qa_per_context=2))
    assert first_slots(made).tolist() == [0, len(made[0].ids)]
