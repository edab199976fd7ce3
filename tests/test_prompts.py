import pytest
import tiny

from selfparam_jax.prompts import FORMATS, WORKED_EXAMPLES, Prompt

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
    elif name == "worked":
        texts = (
            bos,
            f"{WORKED_EXAMPLES}Passage: {CONTEXT}\n",
            f"Question: {QUESTION}\nAnswer:",
            f" {ANSWER}\n",
        )
    elif name == "paper":
        texts = (bos, f"Context: {CONTEXT}", f"Question: {QUESTION} Answer:", f" {ANSWER}")
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

    assert prompt.head == ids(head)
    prefix = prompt.context_prefix(CONTEXT)
    assert prefix[: len(prompt.head)] == prompt.head
    assert tokenizer.decode(list(prefix)) == head + context
    assert tokenizer.decode(list(prompt.question(QUESTION))) == question
    assert tokenizer.decode(list(prompt.answer(ANSWER))) == answer
    assert prompt.question(QUESTION) == ids(question)
    assert prompt.answer(ANSWER) == ids(answer)
    if name == "worked":
        assert prefix == prompt.head + ids(WORKED_EXAMPLES) + ids(context.removeprefix(WORKED_EXAMPLES))
    else:
        assert prefix == prompt.head + ids(context)
    # What comes first does not change what follows.
    assert prompt.context_prefix(CONTEXT + " More.")[: len(prompt.head)] == prompt.head
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
        (exchange[2:], prompt.head + sentence),
    ):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert tokenizer.decode(list(ids)) == text
        assert ids == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_without_bos_the_eos_starts():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert Prompt("plain", tokenizer).head == (1,)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token"):
        Prompt("plain", tokenizer)


# --- refusals -----------------------------------------------------------------------------------------


def test_unknown_format():
    with pytest.raises(ValueError, match="prompt = 'plane', expected one of chat, paper, plain, worked"):
        Prompt("plane", tiny_tokenizer())


def test_chat_without_a_template():
    with pytest.raises(ValueError, match="no chat template; use 'plain' or 'worked'"):
        Prompt("chat", tiny_tokenizer(None))
    Prompt("plain", tiny_tokenizer(None))


@pytest.mark.parametrize(
    "template",
    [
        # Thinks of the last turn only, numbers the turns, names the system turn after the second.
        "<s>{% for m in messages %}{{ m['content'] if not loop.last else 'last ' + m['content'] }}{% endfor %}",
        "<s>{% for m in messages %}{{ loop.index ~ m['content'] }}{% endfor %}",
        "<s>{% for m in messages %}{{ m['content'] ~ m['content'] }}{% endfor %}",
    ],
)
def test_chat_templates_that_cannot_be_split_are_refused(template):
    with pytest.raises(ValueError, match="renders a turn differently depending on the turns before it"):
        Prompt("chat", tiny_tokenizer(template))


def test_chat_without_anything_in_front_is_refused():
    with pytest.raises(ValueError, match="puts nothing before the first turn"):
        Prompt("chat", tiny_tokenizer(tiny.CHAT_TEMPLATE))


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
    for name in ("plain", "worked", "chat"):  # a trained answer ends with a stop
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
