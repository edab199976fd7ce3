"""Bodies of OpenAI's requests: what is honoured, what changes nothing, and what is refused by name."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from selfparam_jax.inference.decoding import Sampling

# Fields that change no answer, whatever they hold.
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# Fields that are not supported, and the values with which they ask for nothing; null always does.
NEUTRAL: dict[str, tuple] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_logprobs": (0,),
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_STOPS = 4
LEAST_TEMPERATURE = 0.01  # logits divided by less leave float32


class ApiError(Exception):
    """A request that is not answered, as OpenAI's clients expect to hear of it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        """An error.

        Args:
          status: HTTP status.
          message: for the person who asks.
          param: the field that is to blame, or None.
          code: a word for programs, or None.
        """
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict:
        """The JSON of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def refuse(param: str | None, message: str) -> ApiError:
    """The error of a request with a value that cannot be used."""
    return ApiError(400, message, param, "invalid_value")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
      body_bytes: of the whole request.
      new_tokens: of one answer.
      default_tokens: of an answer where the request does not say.
      answers: `n` of a request.
    """

    body_bytes: int = 1 << 20
    new_tokens: int = 1024
    default_tokens: int = 256
    answers: int = 8

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} = {value}, expected at least 1")
        if self.default_tokens > self.new_tokens:
            object.__setattr__(self, "default_tokens", self.new_tokens)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How a request wants to be answered.

    Attributes:
      model: its name.
      new_tokens: the longest answer; None where the request does not say.
      sampling: None takes the most likely token.
      seed: of the draws; None leaves it to the server.
      stop: texts that end an answer.
      answers: how many.
      stream: whether the text is sent while it is made.
      usage: whether a stream ends with the numbers of tokens.
    """

    model: str
    new_tokens: int | None
    sampling: Sampling | None
    seed: int | None
    stop: tuple[str, ...]
    answers: int
    stream: bool
    usage: bool


def parse_body(body: bytes) -> dict:
    """The JSON object that a request holds.

    Raises:
      ApiError: it is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refuse(None, f"the body is not JSON ({type(error).__name__}); send a JSON object") from error
    if not isinstance(found, dict):
        raise refuse(None, "the body is JSON but not an object; send a JSON object")
    return found


def read_wanted(body: dict, own: tuple[str, ...], limits: Limits) -> Wanted:
    """What a request asks for, beside its `own` fields (prompt or messages), which the caller reads.

    Raises:
      ApiError: a field is unknown, not supported, or holds a value that cannot be used.
    """
    known = {*own, "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "n"}
    known |= {"stream", "stream_options"}
    for name, value in body.items():
        if name in known or name in IGNORED or value is None:
            continue
        if name not in NEUTRAL:
            raise ApiError(400, f"{name!r} is not a field of this request; leave it out", name, "unknown_parameter")
        if not any(_same(value, neutral) for neutral in NEUTRAL[name]):
            raise ApiError(400, f"{name!r} is not supported here; leave it out", name, "unsupported_parameter")
    model = body.get("model")
    if not isinstance(model, str) or not model:
        if model not in (None, ""):
            raise refuse("model", "'model' must be a string, one of GET /v1/models")
        raise ApiError(400, "'model' is missing; name one of GET /v1/models", "model", "missing_required_parameter")
    temperature = _number(
        body,
        "temperature",
        0.0,
        lambda value: value == 0 or LEAST_TEMPERATURE <= value <= 2,
        "0 (greedy), or 0.01 to 2",
    )
    top_p = _number(body, "top_p", 1.0, lambda value: 0 < value <= 1, "more than 0 and at most 1")
    options = body.get("stream_options") or {}
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise refuse("stream_options", "'stream_options' may hold 'include_usage' only")
    return Wanted(
        model,
        _new_tokens(body, limits),
        Sampling(temperature, top_p) if temperature else None,
        _integer(body, "seed", None, -(2**63), 2**63 - 1),
        _stop(body.get("stop")),
        _integer(body, "n", 1, 1, limits.answers),
        _flag(body, "stream"),
        _flag(options, "include_usage"),
    )


def read_messages(body: dict) -> list[dict[str, str]]:
    """The conversation of a chat request, as a chat template takes it.

    Raises:
      ApiError: there is none, or a message has another role or other content than text.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        what = "is missing or empty" if messages in (None, []) else "is no list"
        raise refuse("messages", f"'messages' {what}; send a list of {{role, content}}")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise refuse(where, f"{where} is not an object; send {{role, content}}")
    role = message.get("role")
    if role not in ROLES:
        raise refuse(f"{where}.role", f"{where}.role is {role!r:.40}, expected one of {', '.join(ROLES)}")
    if unknown := [name for name, value in message.items() if name not in ("role", "content", "name") and value]:
        raise refuse(f"{where}.{unknown[0]}", f"{where}.{unknown[0]} is not supported here; leave it out")
    content = message.get("content")
    if isinstance(content, list):
        parts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
    if not isinstance(content, str):
        raise refuse(f"{where}.content", f"{where}.content is not text; only text is answered here")
    return {"role": ROLES[role], "content": _whole(content, f"{where}.content")}


def read_prompts(body: dict, vocabulary: int) -> list[str | tuple[int, ...]]:
    """The prompts of a completion request: texts, or token ids.

    Raises:
      ApiError: there is none, or an id is outside the vocabulary.
    """
    given = body.get("prompt")
    several = isinstance(given, list) and given and all(isinstance(each, str | list) for each in given)
    prompts = given if several else [given]
    return [_prompt(prompt, vocabulary) for prompt in prompts]


def _prompt(prompt: Any, vocabulary: int) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return _whole(prompt, "prompt")
    if not isinstance(prompt, list) or not prompt or not all(type(each) is int for each in prompt):
        raise refuse("prompt", "'prompt' is missing or is neither text, nor token ids, nor a list of these")
    if not all(0 <= each < vocabulary for each in prompt):
        raise refuse("prompt", f"'prompt' has a token id outside 0 to {vocabulary - 1}, the model's vocabulary")
    return tuple(prompt)


def _whole(text: str, where: str) -> str:
    """The text; JSON can spell half of a character, which no tokenizer takes."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise refuse(where, f"{where} holds half of a character (a lone surrogate); correct the text")
    return text


def _same(value: Any, neutral: Any) -> bool:
    """Equality that keeps false and 0 apart; 0 and 0.0 are equal."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _number(body: dict, name: str, default: float, allowed: Callable[[float], bool], range_: str) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not allowed(value):
        raise refuse(name, f"{name!r} is {value!r:.40}, expected {range_}")
    return float(value)


def _integer(body: dict, name: str, default: int | None, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if type(value) is not int or not least <= value <= most:
        raise refuse(name, f"{name!r} is {value!r:.40}, expected a whole number from {least} to {most}")
    return value


def _flag(body: dict, name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise refuse(name, f"{name!r} is {value!r:.40}, expected true or false")
    return bool(value)


def _new_tokens(body: dict, limits: Limits) -> int | None:
    given = [name for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None]
    if len(given) == 2 and body[given[0]] != body[given[1]]:
        raise refuse("max_tokens", "'max_tokens' and 'max_completion_tokens' differ; give one")
    if not given:
        return None
    return _integer(body, given[0], None, 1, limits.new_tokens)


def _stop(given: Any) -> tuple[str, ...]:
    texts = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or len(texts) > MOST_STOPS or not all(isinstance(t, str) and t for t in texts):
        raise refuse("stop", f"'stop' is {given!r:.40}, expected a text or up to {MOST_STOPS} of them, none empty")
    return tuple(texts)
