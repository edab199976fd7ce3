"""Who may ask a server, from where, and how much; and the socket and the program that serve it."""

import hmac
import socket
from collections.abc import Callable
from typing import Any

from selfparam_jax.inference.openai_requests import ApiError, Limits

GUARDED = ("/v1", "/api")  # what needs the key
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def import_serving() -> tuple[Any, Any]:
    """The packages fastapi and uvicorn. Raises ValueError if one is not installed."""
    try:
        import fastapi
        import uvicorn
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise ValueError(f"serving needs the package {error.name}; run pip install 'selfparam-jax[serve]'") from None
    return fastapi, uvicorn


class Guard:
    """Stands before an app: who may ask, from where, and how much. Pure ASGI, so that streams pass untouched."""

    def __init__(self, app: Callable, key: str | None, limits: Limits):
        """Guards an app.

        Args:
          app: what is guarded.
          key: asked for in `Authorization: Bearer KEY` below GUARDED; None asks for none, and then answers only to
            requests that name this machine as their host, so that no page of another site gets through.
          limits: body_bytes.
        """
        self._app, self._key, self._most = app, key, limits.body_bytes

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        from starlette.responses import JSONResponse

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
            body = await self._read(receive)
        except ApiError as error:
            await JSONResponse(error.body(), error.status)(scope, receive, send)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> dict:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, replay, send)

    def _check(self, scope: dict, headers: dict[str, str]) -> None:
        if self._key is None and _host_name(headers.get("host", "")) not in LOOPBACK:
            raise ApiError(403, "this server answers to localhost only; to open it, start it with a key")
        if self._key is not None and scope["path"].startswith(GUARDED):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key.encode()):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        if scope["method"] == "POST" and headers.get("content-type", "").partition(";")[0] != "application/json":
            raise ApiError(415, "expected a body of content type application/json")
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most:
            raise self._too_long()

    async def _read(self, receive: Callable) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                raise self._too_long()
        return bytes(body)

    def _too_long(self) -> ApiError:
        return ApiError(413, f"the request is longer than {self._most} bytes", code="request_too_large")


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    name, _, port = host.rpartition(":")
    return (name if name and port.isdigit() else host).strip("[]").lower()


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """A socket for the server.

    Args:
      host: an address of this machine, or its name.
      port: 0 takes a free one.
      key: the API key, or None.

    Returns:
      the socket, bound.

    Raises:
      ValueError: an address that other machines reach, and no key.
      OSError: the address is taken or is none.
    """
    if key is None and host not in LOOPBACK:
        raise ValueError(
            f"--host={host} is reached by other machines, and there is no API key; put one into an environment "
            "variable and name it with --key_variable, or leave --host out"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port") from error
    return bound


def make_server(app: Callable) -> Any:
    """A uvicorn server of an app; `run(sockets=[listen(...)])` serves until it is told to end."""
    _, uvicorn = import_serving()
    # Its own set-up of logging closes the handlers of everybody else.
    options = {"log_config": None, "access_log": False, "lifespan": "off"}
    config = uvicorn.Config(app, **options, limit_concurrency=256, timeout_graceful_shutdown=2)
    return uvicorn.Server(config)
