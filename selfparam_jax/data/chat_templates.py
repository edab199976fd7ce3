"""Chat templates, taken apart into the marks around the turns of a conversation.

A template renders a whole conversation. We need its parts: what stands before the first turn, an exchange that
others follow (the document is put into one), and the last exchange (question and answer).
"""

import dataclasses
import datetime
import re
from collections.abc import Sequence
from typing import Any

from selfparam_jax.checkpoints.tokenizers import date_of, named

_WITHOUT = "set prompt to 'plain' or 'few_shot'"


def render_conversation(tokenizer: Any, messages: Sequence[dict], **options: Any) -> str:
    """The text of a conversation. A template that asks for today's date gets that of the tokenizer (`date_of`).

    It is fixed, so that prompts of a resumed run, of a later evaluation and of another machine are the same.

    Args:
      tokenizer: has the chat template.
      messages: dictionaries with `role` and `content`.
      **options: further variables of the template, for example add_generation_prompt.

    Returns:
      the text, special tokens included.

    Raises:
      ValueError: the template refuses the conversation.
    """
    day = date_of(tokenizer)
    try:
        template = tokenizer.get_chat_template()  # of several, the default one
        if "strftime_now" in template:
            options["chat_template"] = _fixed_day(day) + template
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, date_string=day.strftime("%d %b %Y"), **options
        )
    except Exception as error:  # of Jinja's own kinds, and whatever a template's expressions run into
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"the chat template of {named(tokenizer)} refuses a conversation of user and assistant ({reason}); "
            f"{_WITHOUT}, or correct the template"
        ) from error


def _fixed_day(day: datetime.date) -> str:
    """A macro of the name of the function that transformers gives templates: it comes before the function."""
    replaced = "".join(f"|replace('%{letter}', '{day.strftime('%' + letter)}')" for letter in "dbBYymaAHMSIpj")
    return "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}"


def conversation_ids(tokenizer: Any, messages: Sequence[dict]) -> tuple[int, ...]:
    """Ids of a whole conversation, up to where the next answer begins; any chat template will do.

    The name of a special token inside a message is only text, as in `Prompt`: a message cannot end its own turn.

    Raises:
      ValueError: the template refuses the conversation, leaves its last message out, or does more with a message that
        names a special token than put it in its place.
    """
    text = render_conversation(tokenizer, messages, add_generation_prompt=True)
    *before, last = messages
    if last["content"].strip() not in text:
        other = [*before, {**last, "content": "ANOTHER-TEXT"}]
        if render_conversation(tokenizer, other, add_generation_prompt=True) == text:
            raise ValueError(
                f"the chat template of {named(tokenizer)} leaves out the last message, whatever it says; correct the "
                "template"
            )
    names = [name for name in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens) if name]
    pieces = [(text, True)]
    if any(name in message["content"] for message in messages for name in names):
        pieces = _apart(tokenizer, messages, text)
    return tuple(
        id
        for piece, marks in pieces
        for id in tokenizer(piece, add_special_tokens=False, split_special_tokens=not marks)["input_ids"]
    )


def _apart(tokenizer: Any, messages: Sequence[dict], text: str) -> list[tuple[str, bool]]:
    """The text of a conversation in pieces, and whether each is of the template."""
    stands = [f"CONTENT-OF-MESSAGE-{number}-" for number in range(len(messages))]
    blank = [{**message, "content": stand} for message, stand in zip(messages, stands, strict=True)]
    rest, pieces = render_conversation(tokenizer, blank, add_generation_prompt=True), []
    for message, stand in zip(messages, stands, strict=True):
        before, _, rest = rest.partition(stand)
        pieces += [(before, True), (message["content"], False)]
    pieces.append((rest, True))
    if "".join(piece for piece, _ in pieces) != text:
        pieces = [(piece if marks else piece.strip(), marks) for piece, marks in pieces]
    if "".join(piece for piece, _ in pieces) != text:
        raise ValueError("a message holds the name of one of the model's special tokens; leave the name out")
    return [(piece, marks) for piece, marks in pieces if piece]


@dataclasses.dataclass(frozen=True)
class Marks:
    """Text around the two turns of an exchange.

    Attributes:
      open: before the user's text.
      middle: between the user's text and where the answer begins.
      lead: spaces that the answer begins with. They are not in `middle`, because tokenizers make one token of a
        space and the word after it.
      close: after the assistant's text.
    """

    open: str
    middle: str
    lead: str
    close: str

    def exchange(self, user: str, assistant: str) -> str:
        """The text of an exchange."""
        return self.open + user + self.middle + self.lead + assistant + self.close


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """The parts of a template: a conversation is `start`, any number of `earlier` exchanges, and the `last` one.

    Attributes:
      start: text before the first turn; may be empty.
      earlier: marks of an exchange that another follows.
      last: marks of the last exchange. Some templates write it differently, for example with an empty thought.
      strips: whether the template removes white space around the turns' texts.
    """

    start: str
    earlier: Marks
    last: Marks
    strips: bool


def split_template(tokenizer: Any) -> ChatTemplate:
    """Takes a tokenizer's chat template apart.

    Raises:
      ValueError: it refuses the roles, or renders a turn differently depending on the turns before it.
    """
    texts = ("FIRST-USER-TEXT", "FIRST-ASSISTANT-TEXT", "LAST-USER-TEXT", "LAST-ASSISTANT-TEXT")

    def render(*turns: str) -> str:
        roles = ("user", "assistant")
        return render_conversation(
            tokenizer, [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
        )

    single, both = render(*texts[2:]), render(*texts)
    if any(single.count(text) != 1 for text in texts[2:]) or any(both.count(text) != 1 for text in texts):
        raise ValueError(_REFUSAL)
    close = single[single.index(texts[3]) + len(texts[3]) :]
    before, between = single.split(texts[2])[0], both.split(texts[1])[1].split(texts[2])[0]
    start, closed = _place_cuts(before, between, close, tokenizer.all_special_tokens)
    if not both.startswith(start):
        raise ValueError(_REFUSAL)
    end = both.index(texts[1]) + len(texts[1]) + closed
    earlier, last = _marks(both[len(start) : end], *texts[:2]), _marks(single[len(start) :], *texts[2:])
    expected = start + earlier.exchange(*texts[:2]) + earlier.exchange("U", "A") + last.exchange(*texts[2:])
    if render(*texts[:2], "U", "A", *texts[2:]) != expected:
        raise ValueError(_REFUSAL)
    strips = render(f" {texts[2]} ", f" {texts[3]} ") == single
    return ChatTemplate(start, earlier, last, strips)


def _place_cuts(before: str, between: str, close: str, special: Sequence[str]) -> tuple[str, int]:
    """Where a conversation's first turn begins, and where an exchange that another follows ends.

    A turn mostly ends in the same way everywhere. Some templates write a token more at the very end (Phi-3), others
    white space more between turns (OLMo 2).

    Args:
      before: text before the user's words in a conversation of one exchange: the start, and what opens the turn.
      between: text between the assistant's words and the user's next: what closes a turn, and what opens one.
      close: text after the assistant's words at the end of a conversation.
      special: names of the special tokens.

    Returns:
      the start, and how much of `between` closes the turn.

    Raises:
      ValueError: the turns are opened in different ways.
    """
    closes = [close, *(close.removesuffix(name) for name in special if name and close.endswith(name))]
    cuts = [len(each) for each in closes if between.startswith(each)]
    if between.startswith(close):
        rest = between[len(close) :]
        cuts += range(len(close) + 1, len(between) - len(rest.lstrip()) + 1)
    for cut in cuts:
        if before.endswith(between[cut:]):
            return before[: len(before) - len(between[cut:])], cut
    raise ValueError(_REFUSAL)


def end_of_turn(tokenizer: Any) -> str:
    """What a tokenizer's chat template writes after an assistant's turn: a token's name, or text; "" if nothing.

    A template that cannot be used has no mark; `split_template` says why.
    """
    turns = [{"role": "user", "content": "USER-TEXT"}, {"role": "assistant", "content": "ASSISTANT-TEXT"}]
    try:
        _, found, close = render_conversation(tokenizer, turns).rpartition("ASSISTANT-TEXT")
    except ValueError:
        return ""
    close = close.strip() if found else ""
    tokens = [token for token in (*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens) if token]
    named = [token for token in tokens if close.startswith(token)]
    return max(named, key=len, default=close.split("\n")[0].strip())


def _marks(exchange: str, user: str, assistant: str) -> Marks:
    parts = re.split(f"{user}|{assistant}", exchange)
    if len(parts) != 3:
        raise ValueError(_REFUSAL)
    opened, middle, close = parts
    bare = middle.rstrip(" ")
    return Marks(opened, bare, middle[len(bare) :], close)


_REFUSAL = (
    "prompt = 'chat': this chat template renders a turn differently depending on the turns before it, so a document "
    f"could not be put before a question; {_WITHOUT}"
)
