"""From the tokens of answers to their text, as far as that is certain: answers are sent on while they are made."""

import asyncio
import dataclasses
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from selfparam_jax.inference.batches import Continuation, Variant
from selfparam_jax.inference.engine import Busy, Engine, Piece
from selfparam_jax.inference.openai_requests import ApiError, Limits, Wanted

LOOK_S = 1.0  # how often a handler looks whether its client is still there
HALF = "�"  # what a tokenizer gives for a character of which the last bytes are still to come


@dataclasses.dataclass
class ReplyText:
    """The text of an answer that grows.

    Attributes:
      decode: text of token ids, without special tokens.
      end_ids: ids of end of text or turn; they and what follows are no part of the answer.
      stop: texts that end it, left out of it.
      strip: whether white space around the answer is left out.
    """

    decode: Callable[[Sequence[int]], str]
    end_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    strip: bool = False
    _ids: list[int] = dataclasses.field(default_factory=list, init=False)
    _given: str = dataclasses.field(default="", init=False)
    _ended: bool = dataclasses.field(default=False, init=False)

    @property
    def count(self) -> int:
        """Tokens so far, those of an end included."""
        return len(self._ids)

    @property
    def ended(self) -> bool:
        """Whether an end or a stop was found; what follows is left out."""
        return self._ended

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """The text that is certain with these further tokens and was not before.

        Args:
          tokens: further ids.
          last: whether no more will come.

        Returns:
          what to append to the text given so far.
        """
        if self._ended:
            return ""
        text = self._read(tokens)
        found = [place for mark in self.stop if (place := text.find(mark)) >= 0]
        if found:
            text, self._ended = text[: min(found)], True
        elif not (last or self._ended):
            text = self._certain(text)
        if self.strip:
            text = text.strip()
        if not text.startswith(self._given):  # a decoder that rewrites a word when the next one is known
            return ""
        new, self._given = text[len(self._given) :], text
        return new

    def _read(self, tokens: Sequence[int]) -> str:
        """Text of all tokens up to an end."""
        for token in tokens:
            self._ids.append(token)
            if token in self.end_ids:
                self._ended = True
                break
        return self.decode(self._ids[: len(self._ids) - self._ended])

    def _certain(self, text: str) -> str:
        """The text without what may still become another: half a character, spaces, the beginning of a stop."""
        text = text.rstrip(HALF).rstrip()  # some tokenizers take the space before a full stop back
        held = 0
        for mark in self.stop:
            for size in range(min(len(mark) - 1, len(text)), held, -1):
                if text.endswith(mark[:size]):
                    held = size
                    break
        return text[: len(text) - held]


@dataclasses.dataclass(frozen=True)
class Texts:
    """How text becomes the token ids of a model, and back.

    Attributes:
      encode: ids of a completion's prompt, its beginning of text included.
      decode: text of ids, without special tokens.
      converse: ids of a conversation up to where the answer begins; raises ValueError for one that the chat template
        refuses. None for a model without a chat template.
      end_ids: ids of end of text and end of turn.
      end_texts: the same as texts, where an end is no token of its own.
    """

    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[Sequence[int]], str]
    converse: Callable[[list[dict]], tuple[int, ...]] | None
    end_ids: tuple[int, ...]
    end_texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is to be answered, in ids.

    Attributes:
      variant: who answers.
      prompts: one or several.
      wanted: how.
      stop_ids: ids that end an answer.
      stop: texts that do, those of the request included.
      strip: whether white space around an answer is left out.
    """

    variant: Variant
    prompts: tuple[tuple[int, ...], ...]
    wanted: Wanted
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]
    strip: bool = False


class Answers:
    """The answers to one request, while they are made: for each prompt, as many as were asked for."""

    def __init__(self, engine: Engine, asked: Asked, texts: Texts, limits: Limits):
        """Hands the work to the engine; call it in the server's event loop.

        Args:
          engine: decodes.
          asked: what is to be answered.
          texts: from ids to text.
          limits: the length of an answer where the request does not say.

        Raises:
          ApiError: what is asked for does not fit the model, or too much waits.
        """
        wanted, self.asked = asked.wanted, asked
        most = asked.variant.decoder.config.max_position_embeddings
        seed = secrets.randbelow(2**32) if wanted.seed is None else wanted.seed % 2**32
        self._loop, self._pieces = asyncio.get_running_loop(), asyncio.Queue()
        continuations = []
        for prompt in asked.prompts:
            room = most - len(prompt)
            new_tokens = min(limits.default_tokens, room) if wanted.new_tokens is None else wanted.new_tokens
            if new_tokens < 1 or new_tokens > room:
                raise ApiError(
                    400,
                    f"the prompt has {len(prompt)} tokens and {wanted.new_tokens or 1} new ones are wanted, but the "
                    f"model reads at most {most}; shorten the prompt or lower max_tokens",
                    "messages or prompt",
                    "context_length_exceeded",
                )
            for number in range(wanted.answers):
                continuations.append(Continuation(prompt, new_tokens, asked.stop_ids, wanted.sampling, seed, number))
        self.replies = [
            ReplyText(texts.decode, frozenset(asked.stop_ids), asked.stop, asked.strip) for _ in continuations
        ]
        listeners = [functools.partial(self._hear, index) for index in range(len(continuations))]
        try:
            self._rows = engine.submit(asked.variant, continuations, listeners)
        except Busy as error:
            raise ApiError(429, str(error), code="server_busy") from error

    def _hear(self, index: int, piece: Piece) -> None:
        """Called in the engine's thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

    async def pieces(self, request: Any) -> AsyncIterator[tuple[int, str, str | None]]:
        """(answer's number, further text, reason why it has ended or None) until all have ended.

        Ends early, and the work with it, when the client is gone.

        Raises:
          ApiError: it could not be decoded.
        """
        open_answers = set(range(len(self._rows)))
        try:
            while open_answers:
                try:
                    index, piece = await asyncio.wait_for(self._pieces.get(), LOOK_S)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    continue
                if piece.error:
                    status = {ValueError: 400, Busy: 503}.get(type(piece.error), 500)
                    told = isinstance(piece.error, ValueError | Busy)
                    raise ApiError(status, str(piece.error) if told else "decoding failed")
                if index not in open_answers:
                    continue
                reply = self.replies[index]
                text = reply.add(piece.tokens, piece.done)
                reason = "stop" if reply.ended else "length" if piece.done else None
                if reason:
                    open_answers.discard(index)
                    self._rows[index].cancel()
                if text or reason:
                    yield index, text, reason
        finally:
            for row in self._rows:
                row.cancel()

    def usage(self) -> dict[str, int]:
        """Numbers of tokens."""
        read, made = sum(map(len, self.asked.prompts)), sum(reply.count for reply in self.replies)
        return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
