"""Replies from an OpenAI-compatible server; each is on disk as soon as it has arrived.

Every sample is a request of its own, so that none is lost with another, and is kept under a digest of all that
decides it. What is on disk is not asked for again.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import email.utils
import hashlib
import json
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from absl import logging

from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, import_synthesis
from selfparam_jax.targets.replies import Account, Reply, ReplyFile, Stopped, Tokens

_FIRST_PAUSE_S = 0.5  # before the second attempt; doubles from one attempt to the next
_LONGEST_BACKOFF_S = 60.0
_LONGEST_PAUSE_S = 600.0  # a server that asks for more is not waited for
_CUT_OFF = ("length", "content_filter")  # finish_reason of a reply that the model did not end itself
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")  # of httpx: no request has left
_NO_REPLY = "an answer of the server that is not a chat completion"
_MOST_BYTES = 16 << 20  # of one answer; the longest reply of any model is far below
_SILENT = ("length", "content_filter")  # finish_reason of a message that may well have no text


class EndpointError(OSError):
    """The server cannot be used, or one request failed for good; the text says what to do."""


class _Passing(Exception):
    """A failure that another attempt may avoid."""

    def __init__(self, text: str, pause_s: float = 0.0, charged: bool = False):
        """The next attempt waits at least `pause_s` seconds; `charged`: the model may have worked for this one."""
        super().__init__(text)
        self.pause_s, self.charged = pause_s, charged


def _read_key(variable: str) -> str:
    """The key from the environment; "" if none is needed. No error shows it."""
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"the environment variable {variable} holds no key; set it, or set endpoint.key_variable to '' for a "
            "server that needs none"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ValueError(f"the environment variable {variable} holds characters that no key has; set it again")
    return key


def check_endpoint(config: EndpointConfig) -> None:
    """Checks that a server could be asked; nothing is sent.

    Raises:
      ValueError: no model is named, the environment does not hold the key, a package is missing.
    """
    if not config.model:
        raise ValueError("endpoint.model = '', expected the model's name at the server; set endpoint.model")
    _read_key(config.key_variable)
    for package in ("openai", "tenacity"):
        import_synthesis(package)


def _estimate(text: str) -> int:
    """About the tokens of a text, rather too many: few texts in any language have less than two bytes a token."""
    return len(text.encode("utf-8", "surrogatepass")) // 2 + 32


@dataclasses.dataclass(frozen=True)
class Usage:
    """What was asked and what it cost.

    Attributes:
      requests, retries: attempts of this writer, and how many of them were repetitions.
      from_file: replies that this writer had on disk and did not ask for.
      lost: attempts in the file, earlier runs included, whose answer did not arrive whole although the server may
        have charged for it. They are counted at their worst case.
      prompt_tokens, completion_tokens, cost: of the whole file, earlier runs included, at the present prices.
    """

    requests: int
    retries: int
    from_file: int
    lost: int
    prompt_tokens: int
    completion_tokens: int
    cost: float

    def describe(self) -> str:
        """One line for a log."""
        cost = f", cost about {self.cost:.4f}" if self.cost else ""
        return (
            f"{self.requests} requests ({self.retries} repeated), {self.from_file} replies from the file; in all "
            f"{self.prompt_tokens} tokens in, {self.completion_tokens} out{cost} ({self.lost} answers lost)"
        )


class _Unreadable(Exception):
    """An answer that is not read to its end."""


class _Bounded:
    """A body as it arrives, up to a number of bytes."""

    def __init__(self, stream: Any):
        """Args:
        stream: of httpx.
        """
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for data in self._stream:
            count += len(data)
            if count > _MOST_BYTES:
                raise _Unreadable(f"an answer of more than {_MOST_BYTES >> 20} MiB")
            yield data

    def close(self) -> None:
        """Lets go of the connection."""
        self._stream.close()


class _Deadline:
    """Ends the connections of an attempt when its time is over, whatever they wait for; a context manager.

    The client's own limits are those of one read: a server that sends a byte now and then would never meet them.
    """

    def __init__(self, seconds: float):
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_) -> None:
        self._timer.cancel()
        with self._lock:
            for each in self._sockets:
                each.close()
            self._sockets.clear()

    def on_event(self, name: str, info: dict) -> None:
        """What httpcore tells of a request: a connection that it has made."""
        if name.endswith(".connect_tcp.complete"):
            with self._lock:
                # A handle of our own: theirs is given to TLS, and may be closed and be another's by then.
                self._sockets.append(info["return_value"].get_extra_info("socket").dup())
            if self.passed:
                self._end()

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            for each in self._sockets:
                with contextlib.suppress(OSError):  # the server has ended it
                    each.shutdown(socket.SHUT_RDWR)


def _bounded_client(openai: Any, attempt_s: float) -> Any:
    """OpenAI's client of HTTP: reads no answer for longer than this, none beyond `_Bounded`, none compressed."""
    library = sys.modules[openai.DefaultHttpxClient.__base__.__module__]  # httpx, or httpx2 of later versions

    class Stream(_Bounded, library.SyncByteStream):
        pass

    class Client(openai.DefaultHttpxClient):
        def send(self, request: Any, **options: Any) -> Any:
            with _Deadline(attempt_s) as deadline:
                request.extensions["trace"] = deadline.on_event
                try:
                    return super().send(request, **options)
                except library.TransportError:
                    if not deadline.passed:
                        raise
            raise _Unreadable(f"an answer that had not ended after {attempt_s:g} s (endpoint.attempt_s)")

    def bound(response: Any) -> None:
        # A few bytes can stand for gigabytes, and none was asked for.
        if (coding := response.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise _Unreadable(f"an answer that is compressed ({_excerpt(coding)}), which was not asked for")
        response.stream = Stream(response.stream)

    # A connection for each attempt: which one of those kept open a request takes is not told.
    limits = library.Limits(max_connections=None, max_keepalive_connections=0)
    # A server that sends on to another address could name one that only this machine reaches.
    return Client(event_hooks={"response": [bound]}, limits=limits, follow_redirects=False)


class _Answer(NamedTuple):
    """What a server sent; `tokens` is None if it did not count them."""

    text: str
    finish: str
    tokens: Tokens | None


def _read_answer(content: bytes, key: str = "") -> _Answer:
    """Raises _Passing for what is not a chat completion with text.

    Without text is only a reply that says why: it was cut off, filtered or refused.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    choices = body.get("choices") if isinstance(body, dict) and not body.get("error") else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) and not choice.get("error") else None
    if not isinstance(message, dict):
        raise _Passing(f"{_NO_REPLY}: {_excerpt(content, key)}", charged=True)
    finish, usage = choice.get("finish_reason"), body.get("usage")
    text = _text_of(message.get("content"))
    if text is None and (finish in _SILENT or isinstance(message.get("refusal"), str)):
        text = ""
    if text is None:
        raise _Passing(f"an answer of the server without text: {_excerpt(content, key)}", charged=True)
    usage = usage if isinstance(usage, dict) else {}
    tokens = Tokens(usage.get("prompt_tokens"), usage.get("completion_tokens"))
    counted = all(type(count) is int and count >= 0 for count in tokens)
    return _Answer(text, finish if isinstance(finish, str) else "", tokens if counted else None)


def _text_of(content: object) -> str | None:
    """The text of a message's content, which may come in parts, of which only some are text; None of no text."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts else None
    return content if isinstance(content, str) else None


def _excerpt(said: bytes | str, key: str = "") -> str:
    """One short line of what a server said, without the key."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    text = text.replace(key, "[key]") if key else text
    text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())[:200] or "(nothing)"


def _retry_after(text: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 for what cannot be read."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if seconds > 0 else 0.0


class EndpointWriter:
    """A `writers.Writer` that asks a server. For several threads; `with` or `close` ends it.

    Attributes:
      name: the model's.
      concurrency: requests under way at once; as many threads may well call `write`.
    """

    fingerprint = ""  # a server does not tell which weights it has

    def __init__(self, config: EndpointConfig, generator: GeneratorConfig, path: str | os.PathLike):
        """Opens a file of replies; nothing is asked yet.

        Args:
          config: the server.
          generator: for temperature, top_p and reply_tokens.
          path: the JSONL file that grows reply by reply. One writer at a time.

        Raises:
          ValueError: no model named, no key in the environment, a package missing; a file with something else in it.
        """
        check_endpoint(config)
        openai = import_synthesis("openai")
        self.name, self.concurrency = config.model, config.concurrency
        self._config, self._generator = config, generator
        self._key = _read_key(config.key_variable)
        timeout = openai.Timeout(config.timeout_s, connect=min(config.timeout_s, 20.0))
        # Its own retries are off: they leave malformed answers and pauses of more than a minute out, hide which
        # attempts may have been charged for, do not end when another request has failed, and their delays are fixed.
        self._client = openai.OpenAI(
            api_key=self._key or "none",
            base_url=config.base_url,
            timeout=timeout,
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},
            http_client=_bounded_client(openai, config.attempt_s),
        )
        self._file = ReplyFile(path)
        self._account = Account(self._file, config.price_in, config.price_out, config.budget, config.token_budget)
        self._pool = concurrent.futures.ThreadPoolExecutor(config.concurrency, "endpoint")
        self._lock = threading.Lock()
        self._pending: dict[str, concurrent.futures.Future] = {}
        self._running: set[threading.Event] = set()  # one per call of `write`; set to stop it
        self._counts = collections.Counter()

    def __enter__(self) -> "EndpointWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Waits for the requests under way and keeps their replies; others are not begun."""
        with self._lock:
            for stopped in self._running:
                stopped.set()
        self._pool.shutdown(wait=True)
        self._client.close()
        self._file.close()

    def usage(self) -> Usage:
        """What was asked up to now."""
        with self._lock:
            counts = [self._counts[name] for name in ("requests", "retries", "from_file")]
        spent = self._file.spent
        return Usage(*counts, self._file.lost, *spent, self._account.cost(spent))

    def write(self, instructions: Sequence[str], counts: Sequence[int], seed: int) -> list[list[Reply]]:
        """Samples replies; those in the file are not asked for again.

        When a request fails for good, those under way are waited for and their replies kept before the error is
        raised; after Ctrl-C `close` does this.

        Args:
          instructions: what is asked.
          counts: how many replies to each instruction.
          seed: decides together with the instruction what is sampled.

        Returns:
          the replies, a list for each instruction.

        Raises:
          BudgetError: the next request could exceed the budget.
          EndpointError: a request was refused, or failed more often than `retries` allows.
          ValueError: an instruction that cannot be sent.
        """
        stopped = threading.Event()
        futures, ours = [], []
        with self._lock:
            self._running.add(stopped)
        try:
            for key, request in self._samples(instructions, counts, seed):
                future, mine = self._begin(key, request, stopped)
                futures.append(future)
                ours += [future] if mine else []
            concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        finally:
            stopped.set()  # those that are waiting for their turn end with Stopped
            with self._lock:
                self._running.discard(stopped)
        concurrent.futures.wait(ours)
        ended = [future for future in futures if future.done()]
        failures = [error for future in ended if (error := future.exception())]
        if causes := [error for error in failures if not isinstance(error, Stopped)]:
            raise causes[0]
        if failures:
            raise EndpointError(
                "not all replies were asked for: the writer was closed, or another thread met an error"
            )
        replies = iter([future.result() for future in futures])
        return [[next(replies) for _ in range(count)] for count in counts]

    def _samples(self, instructions, counts, seed: int) -> list[tuple[str, dict]]:
        """Key and request of every sample; samples of equal instructions are numbered through."""
        made, numbers = [], collections.Counter()
        for instruction, count in zip(instructions, counts, strict=True):
            try:
                instruction.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    "an instruction holds half of a character (a lone surrogate), which cannot be sent; clean the "
                    f"document that contains {_excerpt(ascii(instruction))}"
                ) from None
            for _ in range(count):
                number = numbers[instruction]
                numbers[instruction] += 1
                request = {
                    "model": self._config.model,
                    "messages": [{"role": "user", "content": instruction}],
                    "temperature": self._generator.temperature,
                    "top_p": self._generator.top_p,
                    self._config.limit_name: self._generator.reply_tokens,
                    # Some servers read it as a signed number of 32 bits.
                    "seed": zlib.crc32(f"{seed} {number}".encode()) & 0x7FFFFFFF,
                }
                request = {name: value for name, value in request.items() if name not in self._config.omit}
                decides = json.dumps([request, seed, number], sort_keys=True)
                made.append((hashlib.sha256(decides.encode()).hexdigest()[:32], request))
        return made

    def _begin(self, key: str, request: dict, stopped: threading.Event) -> tuple[concurrent.futures.Future, bool]:
        """A reply to come, and whether this call has asked for it; another thread may want the same one."""
        with self._lock:
            if pending := self._pending.get(key):
                return pending, False
            record = self._file.get(key)
            if record is not None:
                self._counts["from_file"] += 1
                future = concurrent.futures.Future()
                future.set_result(Reply(record["text"], record["complete"]))
                return future, False
            future = self._pending[key] = self._pool.submit(self._ask, key, request, stopped)
        return future, True

    def _ask(self, key: str, request: dict, stopped: threading.Event) -> Reply:
        """One reply, after as many attempts as it takes and `retries` allows."""
        tenacity = import_synthesis("tenacity")
        backoff = tenacity.wait_exponential(_FIRST_PAUSE_S, _LONGEST_BACKOFF_S)
        backoff += tenacity.wait_random(0, _FIRST_PAUSE_S)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_after_attempt(self._config.retries + 1) | tenacity.stop_when_event_set(stopped),
            wait=lambda state: max(backoff(state), state.outcome.exception().pause_s),
            sleep=tenacity.sleep_using_event(stopped),
            before_sleep=self._note_retry,
            reraise=True,
        )
        try:
            return retrying(self._attempt, key, request, stopped)
        except _Passing as error:
            last = str(error)
        except BaseException:
            stopped.set()  # here: until `write` learns of it another request would have begun
            raise
        finally:
            with self._lock:
                del self._pending[key]
        # Not inside `except`: what the client raised is not to be shown with it.
        if stopped.is_set():
            raise Stopped
        stopped.set()
        raise EndpointError(
            f"{self._config.base_url} has not answered after {self._config.retries + 1} attempts, the last time: "
            f"{last}. What has arrived is kept in {self._file.path}; see that the server runs and is not overloaded "
            "(endpoint.concurrency, timeout_s, retries), and run the same command again"
        )

    def _note_retry(self, state: Any) -> None:
        with self._lock:
            self._counts["retries"] += 1
        logging.info("endpoint: %s; again in %.2f s", state.outcome.exception(), state.next_action.sleep)

    def _attempt(self, key: str, request: dict, stopped: threading.Event) -> Reply:
        """Asks once; the reply is on disk and in the account when this returns."""
        prompt = request["messages"][0]["content"]
        most = Tokens(_estimate(prompt), self._generator.reply_tokens)
        with self._account.reserved(most, stopped):
            with self._lock:
                self._counts["requests"] += 1
            began = time.monotonic()
            try:
                answer = _read_answer(self._send(request), self._key)
            except _Passing as passing:
                if passing.charged:
                    self._file.add({"lost": key, **most.fields()})
                raise
            if not answer.text.strip():
                self._note_silence(answer.finish)
            reply = Reply(answer.text, answer.finish not in _CUT_OFF)
            tokens = answer.tokens or Tokens(most.prompt, min(most.completion, _estimate(reply.text)))
            record = {"key": key, **dataclasses.asdict(reply), "finish": answer.finish}
            seconds = round(time.monotonic() - began, 2)
            self._file.add({**record, **tokens.fields(), "estimated": answer.tokens is None, "seconds": seconds})
        return reply

    def _note_silence(self, finish: str) -> None:
        """Says once what to do about replies without text."""
        with self._lock:
            self._counts["silent"] += 1
            first = self._counts["silent"] == 1
        if not first:
            return
        advice = "it has sent none, perhaps because a filter took it"
        if finish == "length":
            advice = (
                f"its reasoning used up the {self._generator.reply_tokens} tokens of a reply: raise "
                "generator.reply_tokens, or have the server reason less"
            )
        logging.warning("%s: a reply of %s holds no text; %s", self._config.base_url, self.name, advice)

    def _send(self, request: dict) -> bytes:
        """The body of the server's answer, to be read by us: the client takes any shape of it for a completion."""
        openai = import_synthesis("openai")
        try:
            return self._client.chat.completions.with_raw_response.create(**request).http_response.content
        except _Unreadable as error:
            failure = _Passing(str(error), charged=True)
        except openai.APIConnectionError as error:  # timeouts among them
            cause = type(error.__cause__).__name__
            what = f"no answer within {self._config.timeout_s:g} s" if "Timeout" in cause else "no connection"
            if isinstance(error.__cause__, _Unreadable):  # which earlier versions of the client wrap
                what = str(error.__cause__)
            failure = _Passing(f"{what} ({cause})", charged=cause not in _NOT_SENT)
        except openai.APIStatusError as error:
            failure = self._refusal(error.response, error.body)
        raise failure

    def _refusal(self, response, body) -> Exception:
        """What to raise for an answer of status 3xx, 4xx or 5xx."""
        status, body = response.status_code, body if isinstance(body, dict) else {}
        said = body["message"] if isinstance(body.get("message"), str) else response.text
        said = _excerpt(said, self._key)
        advice = "see what the server says, and run the same command again"
        if status in (401, 403):
            # What a server says about a key may contain it, in whatever form.
            said, name = "the key is not accepted", self._config.key_variable
            advice = f"check the environment variable {name}" if name else "it needs a key: set endpoint.key_variable"
        elif status < 400:
            said = f"it sends on to {_excerpt(response.headers.get('location', 'nowhere'), self._key)}"
            advice = "it is not followed there; correct endpoint.base_url"
        elif status == 404:
            advice = f"check endpoint.base_url (it usually ends in /v1) and endpoint.model ({self._config.model})"
        elif status in (400, 413, 422):
            advice = (
                "a field it does not know can be left out (endpoint.omit, endpoint.limit_name); a document that is "
                "too long must be split"
            )
        passing = status in (408, 409, 429) or status >= 500
        if body.get("code") == "insufficient_quota":
            passing, advice = False, "the account has no credit left; add some, and run the same command again"
        pause_s = _retry_after(response.headers.get("retry-after", ""))
        if passing and pause_s > _LONGEST_PAUSE_S:
            passing, advice = False, f"it asks to wait {pause_s:.0f} s; run the same command again after that"
        if passing and response.headers.get("x-should-retry") != "false":
            return _Passing(f"status {status}: {said}", pause_s)
        return EndpointError(
            f"{self._config.base_url} answered with status {status}: {said}; {advice}. What has arrived is kept in "
            f"{self._file.path}"
        )
