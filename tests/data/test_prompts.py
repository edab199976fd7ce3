import datetime
import functools
import hashlib
import re

import pytest
import sentencepiece_tokenizers as pieces
import tiny

from selfparam_jax.checkpoints import tokenizers
from selfparam_jax.data import chat_templates
from selfparam_jax.data.chat_templates import conversation_ids, render_conversation
from selfparam_jax.data.prompts import FEW_SHOT_EXAMPLES, FORMATS, Prompt

# Like tiny.CHAT_TEMPLATE, with a default system turn in front.
CHAT_TEMPLATE = (
    "{{ '<s>system: Be short.</s>' }}"
    "{% for m in messages %}{{ '<s>' + m['role'] + ':\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
)
CONTEXT, QUESTION, ANSWER = "The inn and the 12 ants.", "Who ran 12 miles?", "the ant"
READ_FIRST = "Read this text. I will ask short questions about it.\n\n"


def tiny_tokenizer(chat_template=CHAT_TEMPLATE):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = chat_template
    return tokenizer


@pytest.fixture(params=["tiny", pytest.param("default", marks=pytest.mark.default_model)])
def tokenizer(request):
    if request.param == "tiny":
        return tiny_tokenizer()
    return request.getfixturevalue("default_model").tokenizer


def expected_texts(name, tokenizer):
    """(before the context, context, question, answer) as text; the head of text formats is a BOS."""
    bos = tokenizer.bos_token
    if name == "plain":
        texts = (bos, f"Passage: {CONTEXT}\n", f"Question: {QUESTION}\nAnswer:", f" {ANSWER}\n")
    elif name == "few_shot":
        texts = (
            bos,
            f"{FEW_SHOT_EXAMPLES}Passage: {CONTEXT}\n",
            f"Question: {QUESTION}\nAnswer:",
            f" {ANSWER}\n",
        )
    elif name == "paper":
        texts = (bos, f"Context: {CONTEXT}", f"Question: {QUESTION} Answer:", f" {ANSWER}")
    elif name == "sentence":
        examples = FORMATS["sentence"].examples
        texts = (bos, f"{examples}Passage: {CONTEXT}\n", f"Question: {QUESTION}\nAnswer:\n", f"{ANSWER}\n")
    elif name == "bare":
        texts = (bos, f"{FORMATS['bare'].examples}Passage: {CONTEXT}\n", f"{QUESTION}\n", f"{ANSWER}\n")
    elif bos == "<s>":
        texts = (
            "<s>system: Be short.</s>",
            f"<s>user:\n{READ_FIRST}{CONTEXT}</s>\n<s>assistant:\nGo on.</s>\n",
            f"<s>user:\n{QUESTION}</s>\n<s>assistant:\n",
            f"{ANSWER}</s>\n",
        )
    else:
        texts = (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
            f"<|im_start|>user\n{READ_FIRST}{CONTEXT}<|im_end|>\n<|im_start|>assistant\nGo on.<|im_end|>\n",
            f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
            f"{ANSWER}<|im_end|>\n",
        )
    return texts


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_part_is_tokenised_apart(name, tokenizer):
    prompt = Prompt(name, tokenizer)
    head, context, question, answer = expected_texts(name, tokenizer)

    def ids(text):
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    assert prompt.start_ids == ids(head)
    prefix = prompt.context_prefix(CONTEXT)
    assert prefix[: len(prompt.start_ids)] == prompt.start_ids
    assert tokenizer.decode(list(prefix)) == head + context
    assert tokenizer.decode(list(prompt.question(QUESTION))) == question
    assert tokenizer.decode(list(prompt.answer(ANSWER))) == answer
    assert prompt.question(QUESTION) == ids(question)
    assert prompt.answer(ANSWER) == ids(answer)
    examples = FORMATS[name].examples
    assert prefix == prompt.start_ids + ids(examples) + ids(context.removeprefix(examples))
    # What comes first does not change what follows.
    assert prompt.context_prefix(CONTEXT + " More.")[: len(prompt.start_ids)] == prompt.start_ids
    assert prompt.text(CONTEXT) == prompt.encode(CONTEXT) == ids(CONTEXT)
    assert prompt.decode(prompt.text(CONTEXT)) == CONTEXT


def test_chat_is_the_templates_conversation(tokenizer):
    prompt = Prompt("chat", tokenizer)
    exchange = [
        {"role": "user", "content": READ_FIRST + CONTEXT},
        {"role": "assistant", "content": "Go on."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER},
    ]
    sentence = prompt.question(QUESTION) + prompt.answer(ANSWER)
    for messages, ids in (
        (exchange, prompt.context_prefix(CONTEXT) + sentence),
        (exchange[2:], prompt.start_ids + sentence),
    ):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(list(ids)) == text
        assert ids == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_without_bos_the_eos_starts():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert Prompt("plain", tokenizer).start_ids == (1,)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        Prompt("plain", tokenizer)


# --- refusals -----------------------------------------------------------------------------------------


def test_unknown_format():
    with pytest.raises(
        ValueError, match="prompt = 'plane', expected one of bare, chat, few_shot, paper, plain, sentence"
    ):
        Prompt("plane", tiny_tokenizer())


def test_chat_without_a_template():
    with pytest.raises(ValueError, match="no chat template; use 'plain' or 'few_shot'"):
        Prompt("chat", tiny_tokenizer(None))
    Prompt("plain", tiny_tokenizer(None))


@pytest.mark.parametrize(
    "template",
    [
        # Numbers the turns, doubles them, names the first question.
        "<s>{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}",
        "<s>{% for m in messages %}{{ m['content'] ~ m['content'] }}{% endfor %}",
        "<s>{% for m in messages %}{{ 'first' if loop.first else 'more' }}{{ m['content'] }}{% endfor %}",
        # Leaves all but the last exchange out.
        "<s>{% for m in messages[-2:] %}{{ m['content'] }}{% endfor %}",
    ],
)
def test_chat_templates_that_cannot_be_split_are_refused(template):
    with pytest.raises(ValueError, match="renders a turn differently depending on the turns before it"):
        Prompt("chat", tiny_tokenizer(template))


def test_a_template_without_the_last_message_is_refused():
    """Every question would have the same answer; a template that changes the text is another matter."""
    turns = [{"role": "user", "content": "Who founded Bor?"}]
    with pytest.raises(ValueError, match="the chat template of the tokenizer leaves out the last message"):
        conversation_ids(tiny_tokenizer("no message at all"), turns)
    tokenizer = tiny_tokenizer("{{ messages[0]['content'] | upper }}")
    assert tokenizer.decode(conversation_ids(tokenizer, turns)) == "WHO FOUNDED BOR?"


def test_a_template_that_fails_without_a_word_is_told_by_its_kind(monkeypatch):
    tokenizer = tiny_tokenizer("{{ messages[0]['content'] }}")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(tokenizer, "apply_chat_template", fail)
    with pytest.raises(ValueError, match=r"user and assistant \(MemoryError\); set prompt to"):
        conversation_ids(tokenizer, [{"role": "user", "content": "Who?"}])


def test_a_template_that_refuses_the_conversation_is_refused():
    with pytest.raises(ValueError, match=r"refuses a conversation of user and assistant \(No\.\); set prompt to 'p"):
        Prompt("chat", tiny_tokenizer("{{ raise_exception('No.') }}"))
    assert Prompt("plain", tiny_tokenizer("{{ raise_exception('No.') }}")).end_ids == (1, 2)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ ''.__class__.__mro__ }}", "attribute '__class__' of 'str' object is unsafe"),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
        ("{% for i in range(1000000000) %}{% endfor %}", "Range too big"),
        ("{% include '/etc/passwd' %}", "no loader for this environment"),
        ("{{ messages[", "unexpected"),
        ("{{ raise_exception('line\n' * 999) }}", "line line"),
    ],
)
def test_a_template_reaches_nothing_and_its_errors_are_one_line(template, told):
    with pytest.raises(ValueError, match=told) as caught:
        Prompt("chat", tiny_tokenizer(template))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# --- the kinds of chat templates -----------------------------------------------------------------------

# ChatML and Zephyr: nothing in front of the first turn.
CHATML = "{% for m in messages %}{{ '<pad>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
# Llama 2: a BOS in front of every exchange, and texts without the white space around them.
INST = (
    "{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Mistral v0.1: one BOS.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Qwen3: only the last answer has a thought, here an empty one.
THOUGHT = (
    "<s>{% for m in messages %}{{ '<pad>' + m['role'] + '\n' }}"
    "{% if loop.last and m['role'] == 'assistant' %}{{ 'think\n\n' }}{% endif %}"
    "{{ m['content'] + '</s>\n' }}{% endfor %}"
)
# Phi-3: an EOS more at the end of the conversation. OLMo 2: a line break more between turns.
ENDED = CHATML.replace("</s>", "<pad>") + "{{ eos_token }}"
BROKEN_LINES = (
    "{{ bos_token }}{% for m in messages %}{{ '<pad>' + m['role'] + '\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '' if loop.last else '\n' }}{% endfor %}"
)
DATED = "<s>{{ 'Today ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML
TEMPLATES = {"chatml": CHATML, "inst": INST, "mistral": MISTRAL, "thought": THOUGHT, "dated": DATED}
TEMPLATES |= {"ended": ENDED, "broken_lines": BROKEN_LINES}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", ["byte_level", *pieces.KINDS, *pieces.UNIGRAM])
def test_chat_ids_are_those_of_the_whole_conversation(kind, template):
    made = tiny.tokenizer() if kind == "byte_level" else pieces.tokenizer(kind)
    made.chat_template = TEMPLATES[template]
    prompt = Prompt("chat", made)
    turns = [READ_FIRST + CONTEXT, "Go on.", QUESTION, ANSWER]
    roles = ("user", "assistant")
    text = chat_templates.render_conversation(
        made, [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    )
    ids = tuple(made(text, add_special_tokens=False)["input_ids"])
    if template in ("chatml", "ended"):  # every prompt starts with something: BOS, where the template has none
        ids = (made.bos_token_id, *ids)
    prefix = prompt.context_prefix(CONTEXT)
    assert prefix + prompt.question(QUESTION) + prompt.answer(ANSWER) == ids
    begin, end = prompt.context_span(CONTEXT)
    assert CONTEXT in prompt.decode(prefix[begin:end]) and "Go on." not in prompt.decode(prefix[begin:end])
    assert prompt.start_ids and prefix[:begin] == prompt.start_ids
    # The sentence alone is a conversation too.
    alone = chat_templates.render_conversation(
        made, [{"role": role, "content": turn} for role, turn in zip(roles, turns[2:], strict=True)]
    )
    assert (
        prompt.decode(prompt.start_ids + prompt.question(QUESTION)).split()
        == prompt.decode(made(alone.split(ANSWER)[0], add_special_tokens=False)["input_ids"]).split()
    )
    assert made.eos_token_id in prompt.end_ids


def test_the_date_of_a_template_is_that_of_the_model(monkeypatch):
    """Whatever day it is; without one it is the day of the process."""
    prompts = []
    for year in (2025, 2031):
        monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", _Day(year))
        tokenizer = tiny_tokenizer(DATED)
        tokenizer.conversation_date = tokenizers.read_date("2024-07-26")
        prompts.append(Prompt("chat", tokenizer))
    assert prompts[0].start_ids == prompts[1].start_ids
    assert "Today 26 Jul 2024" in prompts[0].decode(prompts[0].start_ids)
    days = iter([datetime.date(2030, 5, 4), datetime.date(2030, 5, 5)])
    monkeypatch.setattr(tokenizers, "today", functools.cache(lambda: next(days)))
    for _ in range(2):
        prompt = Prompt("chat", tiny_tokenizer(DATED))
        assert "Today 04 May 2030" in prompt.decode(prompt.start_ids)
    several = tiny_tokenizer({"default": DATED, "tool_use": "{{ 'tools' }}"})
    assert "Today 04 May 2030" in prompt.decode(Prompt("chat", several).start_ids)
    told = tiny_tokenizer("{{ '<s>' + date_string }}" + CHATML)
    assert render_conversation(told, [{"role": "user", "content": "x"}]).startswith("<s>04 May 2030")
    with pytest.raises(ValueError, match="date = '4 May', expected a day such as '2026-11-28', or '' for today"):
        tokenizers.read_date("4 May")


class _Day:
    """A clock that stands still."""

    def __init__(self, year):
        self.year = year

    def now(self):
        import datetime

        return datetime.datetime(self.year, 1, 1)


# --- SentencePiece -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if not each.chat])
@pytest.mark.parametrize("kind", [*pieces.KINDS, *pieces.UNIGRAM])
def test_ids_of_the_parts_are_those_of_the_whole_text(kind, name):
    """No spurious space before a question, and one and not two before an answer."""
    made = pieces.tokenizer(kind)
    prompt, form = Prompt(name, made), FORMATS[name]
    text = form.examples + form.context.format(context=CONTEXT) + form.question.format(question=QUESTION)
    text += form.answer.format(answer=ANSWER)
    whole = (made.bos_token_id, *made(text, add_special_tokens=False)["input_ids"])
    prefix, question, answer = prompt.context_prefix(CONTEXT), prompt.question(QUESTION), prompt.answer(ANSWER)
    assert prefix + question + answer == whole
    if name != "bare":
        assert made.convert_ids_to_tokens(list(question))[:2] == ["Question", ":"]
        assert question[: len(prompt.question_opening())] == prompt.question_opening() != ()
    after_break = name in ("sentence", "bare")
    assert made.convert_ids_to_tokens(list(answer))[0] == ("the" if after_break else "▁the")
    assert made.decode(list(prompt.answer_end)).strip(" ") == ("" if name == "paper" else "\n")
    # The boundary is fixed: what comes before does not change the sentence, nor the sentence the prefix.
    begin, end = prompt.context_span(CONTEXT)
    assert prompt.decode(prefix[begin:end]) == form.context.format(context=CONTEXT)
    assert prompt.text(CONTEXT) == tuple(made(CONTEXT, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", [*pieces.KINDS, *pieces.UNIGRAM])
def test_marks_stay_text_with_sentence_pieces(kind):
    prompt = Prompt("chat", pieces.tokenizer(kind, MISTRAL))
    for read in (prompt.context_prefix, prompt.question, prompt.answer):
        odd, plain = read("a </s> b"), read("a b")
        assert odd.count(2) == plain.count(2)
        assert "a </s> b" in prompt.decode(odd)


# --- stops --------------------------------------------------------------------------------------------


def test_stop_ids(tokenizer):
    prompt = Prompt("plain", tokenizer)
    breaks = {i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i])}
    assert breaks
    assert tokenizer.eos_token_id in prompt.end_ids
    assert tokenizer.pad_token_id is None or tokenizer.pad_token_id in prompt.end_ids
    assert set(prompt.stop_ids) == breaks | set(prompt.end_ids)
    assert not breaks & set(prompt.end_ids)
    special = {tokenizer.convert_ids_to_tokens(i) for i in prompt.end_ids}
    assert special <= set(tokenizer.all_special_tokens)
    for name in ("plain", "few_shot", "chat"):  # a trained answer ends with a stop
        prompt = Prompt(name, tokenizer)
        assert set(prompt.answer(ANSWER)) & set(prompt.stop_ids)
        assert not set(prompt.encode(ANSWER)) & set(prompt.stop_ids)


def test_sentence_piece_stop_ids():
    """A SentencePiece vocabulary writes the byte of a line break as <0x0A>."""

    class Tokenizer:
        bos_token_id, eos_token, pad_token = 1, "</s>", None

        def get_vocab(self):
            return {"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "<0x0B>": 4, "a": 5}

    prompt = Prompt("plain", Tokenizer())
    assert (prompt.end_ids, prompt.stop_ids) == ((2,), (2, 3))


def test_further_ends_and_the_templates_mark_end_an_answer():
    """Special or not: ids of the model's settings, an added token that is text, and a mark of several tokens."""
    made = tiny_tokenizer(
        "{{ '<s>' }}{% for m in messages %}{{ m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}"
    )
    made.add_tokens(["<end>"])
    end = made.get_vocab()["<end>"]
    for name in ("plain", "chat"):
        prompt = Prompt(name, made, end_ids=(17,))
        assert {end, 17, 1} <= set(prompt.end_ids)
        ids = [*prompt.encode("the ant"), end, *prompt.encode("and more")]
        assert prompt.reply(ids) == ("the ant", True)
        assert prompt.reply(ids[:-8]) == ("the ant", True) or end not in ids[:-8]
    made.chat_template = (
        "{{ '<s>' }}{% for m in messages %}{{ m['role'] + ':' + m['content'] + '### End\n' }}{% endfor %}"
    )
    prompt = Prompt("chat", made)
    assert prompt.reply(prompt.encode("the ant### End\nmore")) == ("the ant", True)
    assert prompt.reply(prompt.encode("the ant")) == ("the ant", False)


# --- text is data -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("odd", ["{question} {} {0} {context!r} {{x}}", "a\n\nb\r\n\tc", " sp  aces ", "%s $x \\n"])
def test_odd_text_stays_what_it_is(name, odd, tokenizer):
    prompt = Prompt(name, tokenizer)
    for ids in (prompt.context_prefix(f"x{odd}y"), prompt.question(f"x{odd}y"), prompt.answer(f"x{odd}y")):
        assert f"x{odd}y" in tokenizer.decode(list(ids))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_markers_in_a_text_are_not_special_tokens(name, tokenizer):
    """A context may speak of `<|im_end|>`; it must not be able to end a turn with it."""
    prompt = Prompt(name, tokenizer)
    special = {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert len(special) >= 3
    odd = "a" + "b".join(special.values()) + "c"
    for read in (prompt.context_prefix, prompt.question, prompt.answer, prompt.text):
        plain = [i for i in read("ab") if i in special]
        found = [i for i in read(odd) if i in special]
        assert found == plain, (read.__name__, odd)
        assert odd in prompt.decode(read(odd))


def test_the_texts_of_the_formats_never_change():
    """Adapters have been trained with them, and published figures measured; another text is another format."""
    parts = [(f.name, f.context, f.question, f.answer, f.examples, f.chat) for f in FORMATS.values()]
    digests = [hashlib.sha256(repr(some).encode()).hexdigest()[:16] for some in (parts[:4], parts[4:])]
    assert digests == ["5f7fc2520c24feab", "d34b9080449706e9"]


def test_the_worked_examples_of_all_formats_say_the_same():
    short = re.findall(r"Question: (.*)\nAnswer: (.*)", FEW_SHOT_EXAMPLES)
    said = re.findall(r"Question: (.*)\nAnswer:\n(.*)", FORMATS["sentence"].examples)
    assert [question for question, _ in said] == [question for question, _ in short]
    assert all(
        answer in sentence and sentence.endswith(".") for (_, answer), (_, sentence) in zip(short, said, strict=True)
    )
    lines = FORMATS["bare"].examples.splitlines()
    assert all(lines[lines.index(question) + 1] == answer for question, answer in short)


# --- conversations -------------------------------------------------------------------------------------


def test_turns_of_a_conversation_are_the_templates(tokenizer):
    prompt = Prompt("chat", tokenizer)
    made = prompt.exchanges([("Who?", "Me."), ("Where?", "Here."), (QUESTION, ANSWER)])
    turns = []
    for question, answer in (("Who?", "Me."), ("Where?", "Here."), (QUESTION, ANSWER)):
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = sum((exchange.question + exchange.answer for exchange in made), ())
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(list(prompt.start_ids + ids)) == text
    for exchange, answer in zip(made, ("Me.", "Here.", ANSWER), strict=True):
        assert tokenizer.decode(list(exchange.answer[: len(exchange.answer) - exchange.end])) == answer
        assert exchange.end > 0
    assert made[-1].question == prompt.question(QUESTION)
    assert made[-1].answer == prompt.answer(ANSWER)


def test_a_conversation_with_another_system_turn_or_none(tokenizer):
    prompt = Prompt("chat", tokenizer)
    assert prompt.chat_start() == prompt.start_ids
    assert prompt.chat_start("") == prompt.lone_start
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    start = prompt.chat_start("Be kind.")
    if "Be kind." in text:
        assert text.startswith(tokenizer.decode(list(start)))
        assert "Be kind." in tokenizer.decode(list(start))
    else:
        assert start is None


def test_what_a_tokenizer_puts_before_a_text():
    tokenizer = tiny_tokenizer()
    assert Prompt("bare", tokenizer).lone_start == tuple(tokenizer("x")["input_ids"])[:-1]
    llama = pieces.tokenizer(pieces.KINDS[0])
    whole = tuple(llama("x")["input_ids"])
    assert Prompt("bare", llama).lone_start + tuple(llama("x", add_special_tokens=False)["input_ids"]) == whole
