"""Replies of a model; those that were paid for are kept in a file that only grows, counted, and held to a budget."""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
from collections.abc import Iterator
from typing import NamedTuple

from absl import logging


@dataclasses.dataclass(frozen=True)
class Reply:
    """A model's answer; `complete` is False if it was cut off at the limit of tokens."""

    text: str
    complete: bool


class BudgetError(ValueError):
    """The next request could exceed the budget; the message says what to do."""


# How a line begins: a file's only line, cut off, can be told from the line of another file.
_BEGINNINGS = (b'{"key": ', b'{"lost": ')


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class Stopped(Exception):
    """A request was not begun, or not repeated, because another one had failed for good."""


class Tokens(NamedTuple):
    """Numbers of tokens of prompts and of replies."""

    prompt: int = 0
    completion: int = 0

    def plus(self, other: "Tokens", sign: int = 1) -> "Tokens":
        """The sum, or with sign -1 the difference."""
        return Tokens(self.prompt + sign * other.prompt, self.completion + sign * other.completion)

    def fields(self) -> dict:
        """As they stand in the file."""
        return {"prompt_tokens": self.prompt, "completion_tokens": self.completion}


class ReplyFile:
    """Replies by key, and what was spent, in a JSONL file that only grows. For several threads, not processes.

    Attributes:
      path: the file's.
      spent: the tokens of all its lines.
      lost: how many requests are in it whose answer did not arrive whole.
    """

    def __init__(self, path: str | os.PathLike):
        """Opens a file or begins one; a last line that a kill cut off is removed.

        Raises:
          ValueError: a line is not one of ours; nothing is changed.
        """
        self.path = pathlib.Path(path)
        self._replies: dict[str, dict] = {}
        self.spent, self.lost = Tokens(), 0
        self._lock = threading.Lock()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b", buffering=0)
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise

    def _read(self) -> None:
        self._file.seek(0)
        *lines, last = self._file.read().split(b"\n")
        for number, line in enumerate(lines, 1):
            self._read_line(line, number)
        if not last:
            return
        if _is_whole(last):  # cut off just before its line break, and paid for
            self._read_line(last, len(lines) + 1)
            self._append(b"\n")
        elif lines or last.startswith(_BEGINNINGS) or any(each.startswith(last) for each in _BEGINNINGS):
            logging.info("%s: the last line was cut off and is removed", self.path)
            self._file.truncate(os.fstat(self._file.fileno()).st_size - len(last))
        else:
            self._read_line(last, len(lines) + 1)

    def _read_line(self, line: bytes, number: int) -> None:
        try:
            self._take(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"{self.path}, line {number}: got a line that is no reply ({type(error).__name__}), expected a file "
                "of replies; remove the line, or choose another file"
            ) from None

    def _take(self, record: dict) -> None:
        tokens = Tokens(int(record["prompt_tokens"]), int(record["completion_tokens"]))
        if "lost" in record:
            self.lost += 1
        else:
            key, text, complete = record["key"], record["text"], record["complete"]
            if not (isinstance(key, str) and isinstance(text, str) and isinstance(complete, bool)):
                raise TypeError("key and text are strings, complete is true or false")
            self._replies[key] = {"text": text, "complete": complete}
        self.spent = self.spent.plus(tokens)

    def _append(self, data: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(data) != len(data):
                raise OSError(f"{self.path}: no room for a reply; make some, and run the same command again")
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(size)  # half a line must not join with the next
            raise

    def add(self, record: dict) -> None:
        """Appends one record; on disk when this returns.

        Args:
          record: with `prompt_tokens` and `completion_tokens`, and either `key`, `text` and `complete`, or `lost`,
            the key of a reply that did not arrive whole.
        """
        # Only ASCII: a lone surrogate has no UTF-8, and every control character is escaped.
        data = json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        with self._lock:
            self._append(data)
            self._take(record)

    def get(self, key: str) -> dict | None:
        """The reply of this key, {"text": str, "complete": bool}, if it has arrived."""
        with self._lock:
            return self._replies.get(key)

    def close(self) -> None:
        self._file.close()


class Account:
    """Keeps the sum of what is spent and what the requests under way may cost within the budget."""

    def __init__(self, file: ReplyFile, price_in: float, price_out: float, budget: float, token_budget: int):
        """Args:
        file: the replies that are paid for already.
        price_in, price_out: of a million tokens of prompts and of replies.
        budget: the most that may be spent, in the currency of the prices; 0 is no limit.
        token_budget: the most tokens, prompts and replies together; 0 is no limit.
        """
        self._file, self._prices = file, (price_in, price_out)
        self._budget, self._token_budget = budget, token_budget
        self._reserved = Tokens()
        self._changed = threading.Condition()

    def cost(self, tokens: Tokens) -> float:
        """In the currency of the prices."""
        return sum(count * price for count, price in zip(tokens, self._prices, strict=True)) / 1e6

    @contextlib.contextmanager
    def reserved(self, most: Tokens, stopped: threading.Event) -> Iterator[None]:
        """Sets aside what a request may cost; waits for requests under way if only their worst case forbids it.

        Raises:
          BudgetError: with nothing under way the request could still exceed the budget.
          Stopped: `stopped` was set before it could begin.
        """
        with self._changed:
            while self._exceeded(most) and not stopped.is_set():
                if self._reserved == Tokens():
                    raise BudgetError(self._advice(most))
                self._changed.wait()
            if stopped.is_set():
                raise Stopped
            self._reserved = self._reserved.plus(most)
        try:
            yield
        finally:
            with self._changed:
                self._reserved = self._reserved.plus(most, -1)
                self._changed.notify_all()

    def _exceeded(self, most: Tokens) -> bool:
        total = self._file.spent.plus(self._reserved).plus(most)
        over = self._budget and self.cost(total) > self._budget
        return bool(over or (self._token_budget and sum(total) > self._token_budget))

    def _advice(self, most: Tokens) -> str:
        spent, names = self._file.spent, []
        text = "the endpoint's budget is used up: spent "
        if self._budget:
            text += f"about {self.cost(spent):.6g} of {self._budget:g}, and the next request could cost "
            text += f"{self.cost(most):.3g}; "
            names.append("endpoint.budget")
        if self._token_budget:
            text += f"{sum(spent)} of {self._token_budget} tokens, and the next request could take {sum(most)}; "
            names.append("endpoint.token_budget")
        return (
            f"{text}all replies are kept in {self._file.path}. Raise {' or '.join(names)} and run the same command "
            "again"
        )
