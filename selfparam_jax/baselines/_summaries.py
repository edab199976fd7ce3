"""Summaries of texts, written by a model in memory and kept in a file, so that a stopped run can resume."""

import hashlib
import json
import pathlib
import re
import time
from collections.abc import Sequence

from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.inference.decoding import generate

INSTRUCTION = "Write a summary of the following, including as many key details as possible:\n\n{text}"
# A model without a chat template continues a text.
CONTINUED = "\n\nSummary:"
SHORTEST = 512  # tokens of the shortest texts that are read together
BATCH_TOKENS = 8192
MARGIN = 16  # tokens of a whole are those of its parts or fewer, as a rule


class Summarizer:
    """The setup's own model, asked for summaries; it takes the most likely token."""

    def __init__(self, setup: Setup, new_tokens: int):
        """Reads the summaries that are there.

        Args:
          setup: model, and the directory of summaries.jsonl (None keeps them in memory).
          new_tokens: of the longest summary.
        """
        self._setup, self._new_tokens = setup, new_tokens
        chat = setup.prompt.has_chat_template
        self._prompt = Prompt("chat" if chat else "plain", setup.model.tokenizer, setup.model.end_ids)
        self._path: pathlib.Path | None = setup.directory and setup.directory / "summaries.jsonl"
        records = [] if self._path is None else files.read_lines(self._path)
        self._records = {record["key"]: record for record in records}
        self.earlier_s = sum(record["seconds"] for record in records)
        self.read_tokens = self.made_tokens = 0

    @property
    def room(self) -> int:
        """Tokens of the longest text that the model can read and sum up; below 1 if it can read none."""
        used = len(self._prompt.start_ids) + len(self._ids("")) + self._new_tokens + MARGIN
        return self._setup.model.config.max_position_embeddings - used

    def write(self, texts: Sequence[str]) -> list[str]:
        """A summary of each text, "" where the model says nothing; one that is too long ends with a sentence."""
        prompts = [self._ids(text) for text in texts]
        keys = [self._key(prompt) for prompt in prompts]
        for places in _alike([len(prompt) for prompt in prompts]):
            # Together as in a run that was not stopped.
            if not all(keys[place] in self._records for place in places):
                self._write_batch([prompts[place] for place in places], [keys[place] for place in places])
        found = [self._records[key] for key in keys]
        self.read_tokens += sum(map(len, prompts))
        self.made_tokens += sum(record["tokens"] for record in found)
        return [record["text"] for record in found]

    def _write_batch(self, prompts: Sequence[tuple[int, ...]], keys: Sequence[str]) -> None:
        model, prompt, began = self._setup.model, self._prompt, time.perf_counter()
        rows = max(1, min(self._setup.batch_size, BATCH_TOKENS // max(map(len, prompts))))
        made = generate(
            model.decoder(), model.variables, prompt.start_ids, prompts, self._new_tokens, prompt.end_ids,
            batch_size=rows,
        )  # fmt: skip
        share = (time.perf_counter() - began) / len(prompts)
        for key, ids in zip(keys, made, strict=True):
            text = whole_sentences(*prompt.reply(ids))
            self._records[key] = {"key": key, "text": text, "tokens": len(ids), "seconds": round(share, 3)}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            files.write_lines(self._path, self._records.values())

    def _ids(self, text: str) -> tuple[int, ...]:
        asked = INSTRUCTION.replace("{text}", text)
        return self._prompt.question(asked) if self._prompt.format.chat else self._prompt.text(asked + CONTINUED)

    def _key(self, prompt: tuple[int, ...]) -> str:
        made = json.dumps([self._setup.model.fingerprint, self._new_tokens, prompt])
        return hashlib.sha256(made.encode()).hexdigest()[:16]


def whole_sentences(text: str, ended: bool) -> str:
    """A reply without spaces around it; one that was cut off, up to its last whole sentence if it has one."""
    text = text.strip()
    if ended or not (whole := re.match(r".*(?:[.!?](?=\s|$)|[。！？])", text, re.DOTALL)):
        return text
    return whole[0]


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Places by length, such that those of a group have one program: within a factor of two."""
    groups: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        width = SHORTEST
        while width < length:
            width *= 2
        groups.setdefault(width, []).append(place)
    return [groups[width] for width in sorted(groups)]
