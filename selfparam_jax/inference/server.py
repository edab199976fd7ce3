"""An HTTP server that speaks OpenAI's protocol: chat completions, completions, models; whole answers or streams.

One process answers as every model of a catalogue. It is made for trying things out on one machine: it has no users,
no quotas and no encryption. FastAPI and uvicorn come with the extra `serve`.
"""

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from selfparam_jax.inference.batches import Variant
from selfparam_jax.inference.engine import Engine
from selfparam_jax.inference.guard import Guard, import_serving
from selfparam_jax.inference.openai_requests import (
    ApiError,
    Limits,
    parse_body,
    read_messages,
    read_prompts,
    read_wanted,
    refuse,
)
from selfparam_jax.inference.replies import Answers, Asked, Texts


class Catalogue(Protocol):
    """The models that a server answers as. They share one tokenizer."""

    texts: Texts
    fingerprint: str

    def names(self) -> list[str]:
        """Names to list."""

    def find(self, name: str, text: str = "") -> Variant:
        """The model of a name, the same object every time; raises ValueError for a name that means none.

        A name may mean one of several models, by the text that is to be answered.
        """


@dataclasses.dataclass(frozen=True)
class Shape:
    """How answers are written in JSON.

    Attributes:
      prefix: of a response's id.
      whole, part: values of "object", of a whole response and of a stream's chunks.
      message: the content of a whole choice from its text.
      delta: the content of a chunk's choice from further text; None where there is none.
      first: the content of a choice's first chunk; None for none.
    """

    prefix: str
    whole: str
    part: str
    message: Callable[[str], dict]
    delta: Callable[[str], dict]
    first: dict | None = None


CHAT = Shape(
    "chatcmpl",
    "chat.completion",
    "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    lambda text: {"delta": {"content": text} if text else {}},
    {"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text: {"text": text}
)


@dataclasses.dataclass(frozen=True)
class Service:
    """What the routes share.

    Attributes:
      engine: decodes.
      catalogue: who can answer.
      limits: of a request.
      started: when, seconds since 1970.
    """

    engine: Engine
    catalogue: Catalogue
    limits: Limits
    started: int = dataclasses.field(default_factory=lambda: int(time.time()))

    async def find(self, name: str, text: str = "") -> Variant:
        """The model of a name, for a text; loading one does not hold up other requests.

        Raises:
          ApiError: there is none.
        """
        try:
            return await asyncio.to_thread(self.catalogue.find, name, text)
        except ValueError as error:
            raise ApiError(404, str(error), "model", "model_not_found") from error

    def describe(self, name: str) -> dict:
        """A model as /v1/models has it."""
        return {"id": name, "object": "model", "created": self.started, "owned_by": "selfparam"}

    async def answer(self, request: Any, asked: Asked, shape: Shape) -> Any:
        """The response to a request, whole or as a stream of server-sent events.

        Raises:
          ApiError: it cannot be answered.
        """
        from starlette.responses import JSONResponse, StreamingResponse

        answers = Answers(self.engine, asked, self.catalogue.texts, self.limits)
        begin = {
            "id": f"{shape.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.wanted.model,
            "system_fingerprint": self.catalogue.fingerprint[:12],
        }
        if asked.wanted.stream:
            events = self._events(request, answers, shape, begin)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        texts, reasons = [""] * len(answers.replies), [None] * len(answers.replies)
        async for index, text, reason in answers.pieces(request):
            texts[index] += text
            reasons[index] = reason
        choices = [
            {"index": n, **shape.message(text), "logprobs": None, "finish_reason": reason}
            for n, (text, reason) in enumerate(zip(texts, reasons, strict=True))
        ]
        return JSONResponse({**begin, "object": shape.whole, "choices": choices, "usage": answers.usage()})

    async def _events(self, request: Any, answers: Answers, shape: Shape, begin: dict) -> AsyncIterator[str]:
        def event(choices: list[dict], **more: Any) -> str:
            return _event({**begin, "object": shape.part, "choices": choices, **more})

        def choice(index: int, content: dict, reason: str | None = None) -> dict:
            return {"index": index, **content, "logprobs": None, "finish_reason": reason}

        if shape.first is not None:
            for index in range(len(answers.replies)):
                yield event([choice(index, shape.first)])
        try:
            async for index, text, reason in answers.pieces(request):
                yield event([choice(index, shape.delta(text), reason)])
        except ApiError as error:
            yield _event(error.body())
            return
        if answers.asked.wanted.usage:
            yield event([], usage=answers.usage())
        yield "data: [DONE]\n\n"


def _event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


def make_app(service: Service, key: str | None = None, extend: Callable[[Any], None] | None = None) -> Callable:
    """The server's ASGI app.

    Args:
      service: what its routes need.
      key: the API key; None for a server that only this machine reaches.
      extend: adds routes to the FastAPI app.

    Returns:
      the app, guarded.

    Raises:
      ValueError: FastAPI is not installed.
    """
    fastapi, _ = import_serving()
    from starlette.exceptions import HTTPException
    from starlette.responses import JSONResponse

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # their pages load scripts from elsewhere
    texts = service.catalogue.texts

    @app.exception_handler(ApiError)
    async def refused(_: fastapi.Request, error: ApiError):
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(HTTPException)
    async def not_served(_: fastapi.Request, error: HTTPException):
        return JSONResponse(ApiError(error.status_code, str(error.detail)).body(), error.status_code)

    @app.exception_handler(OSError)
    async def not_there(_: fastapi.Request, error: OSError):
        message = (
            f"what this server answers from can no longer be read ({error.strerror}: {error.filename}); if its "
            "directory was moved or removed, bring it back, or start the server again"
        )
        return JSONResponse(ApiError(503, message, code="files_not_there").body(), 503)

    @app.exception_handler(Exception)
    async def failed(_: fastapi.Request, error: Exception):
        return JSONResponse(ApiError(500, f"the server failed ({type(error).__name__})").body(), 500)

    @app.get("/health")
    async def health():
        return {"status": "ok"}

    @app.get("/v1/models")
    async def list_models():
        names = await asyncio.to_thread(service.catalogue.names)
        return {"object": "list", "data": [service.describe(name) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def show_model(name: str):
        await service.find(name)
        return service.describe(name)

    @app.post("/v1/chat/completions")
    async def chat(request: fastapi.Request):
        body = parse_body(await request.body())
        wanted = read_wanted(body, ("messages",), service.limits)
        messages = read_messages(body)
        if texts.converse is None:
            message = "this model has no chat template, so it has no chat completions; use /v1/completions"
            raise ApiError(400, message, "messages", "no_chat_template")
        asked = next((each["content"] for each in reversed(messages) if each["role"] == "user"), "")
        variant = await service.find(wanted.model, asked)
        try:
            ids = texts.converse(messages)
        except ValueError as error:
            raise refuse("messages", str(error)) from error
        stop = wanted.stop + texts.end_texts
        return await service.answer(request, Asked(variant, (ids,), wanted, texts.end_ids, stop, strip=True), CHAT)

    @app.post("/v1/completions")
    async def complete(request: fastapi.Request):
        body = parse_body(await request.body())
        wanted = read_wanted(body, ("prompt",), service.limits)
        given = body.get("prompt")
        variant = await service.find(wanted.model, given if isinstance(given, str) else "")
        prompts = read_prompts(body, variant.decoder.config.vocab_size)
        if len(prompts) * wanted.answers > service.limits.answers:
            raise refuse("prompt", f"{len(prompts)} prompts and n = {wanted.answers} are more than "
                                   f"{service.limits.answers} answers, the most of a request")  # fmt: skip
        ids = tuple(texts.encode(each) if isinstance(each, str) else each for each in prompts)
        stop = wanted.stop + texts.end_texts
        return await service.answer(request, Asked(variant, ids, wanted, texts.end_ids, stop), COMPLETION)

    if extend is not None:
        extend(app)
    return Guard(app, key, service.limits)
