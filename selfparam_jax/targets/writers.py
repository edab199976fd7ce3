"""What writes question-answer pairs: rules, a model in memory, or a server. `WRITERS` lists them by name."""

import contextlib
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from absl import logging

from selfparam_jax.checkpoints.load import load_model, load_outline
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.processes import is_distributed
from selfparam_jax.inference.decoding import Sampling, generate
from selfparam_jax.inference.prefix import common_ids
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.targets.config import EndpointConfig, GeneratorConfig, import_synthesis
from selfparam_jax.targets.endpoint import EndpointWriter, check_endpoint
from selfparam_jax.targets.grounded.writer import GroundedWriter
from selfparam_jax.targets.question_prompts import chosen_kinds
from selfparam_jax.targets.replies import Reply

# Those that make pairs by rules: nobody is asked, one round is all, and no question is there twice.
BY_RULES = ("auto", "grounded")


class Writer(Protocol):
    """A model that follows instructions, or continues texts.

    Attributes:
      name: of the model; pairs of different models are not mixed in one file.
      concurrency: how many documents may be worked on at a time.
      fingerprint: of its weights, known once it has written; "" where nothing tells it.
    """

    name: str
    concurrency: int
    fingerprint: str

    def write(self, instructions: Sequence[str], counts: Sequence[int], seed: int) -> list[list[Reply]]:
        """Samples `counts[n]` replies to each instruction n; the seed decides what is drawn."""


class LocalWriter:
    """A model in memory with our own decoding, asked through its chat template or as plain text to continue.

    The common beginning of instructions (the same document) is read once, and their replies are decoded together.
    """

    concurrency = 1  # the devices are shared

    def __init__(
        self,
        name: str,
        model: Decoder,
        params: dict,
        tokenizer,
        config: GeneratorConfig,
        end_ids: Sequence[int] = (),
        fingerprint: str = "",
    ):
        """Raises ValueError for form "chat" and a tokenizer without a chat template.

        Args:
          name: of the model.
          model: the decoder, without an adapter.
          params: its weights.
          tokenizer: of the model.
          config: form, reply_tokens, temperature and top_p.
          end_ids: further ids that end a reply.
          fingerprint: of the weights.
        """
        self.name, self.fingerprint = name, fingerprint
        self._model, self._variables = model, {"params": params}
        self._prompt = _prompt_for(config, tokenizer, end_ids)
        self._tokens = config.reply_tokens
        self._sampling = Sampling(config.temperature, config.top_p)

    def write(self, instructions: Sequence[str], counts: Sequence[int], seed: int) -> list[list[Reply]]:
        """Samples `counts[n]` replies to each instruction n; the seed decides what is drawn."""
        rows, made = [self._ids(instruction) for instruction in instructions], []
        for begin, end in _alike(rows):
            # A row needs at least one token of its own to continue from.
            shared = common_ids(rows[begin:end])
            repeated = [row[shared:] for n, row in enumerate(rows[begin:end], begin) for _ in range(counts[n])]
            made += generate(
                self._model, self._variables, rows[begin][:shared], repeated, self._tokens, self._prompt.end_ids,
                sampling=self._sampling, seed=zlib.crc32(f"{seed} {begin}".encode()),
            )  # fmt: skip
        replies = map(self._reply, made)
        return [[next(replies) for _ in range(count)] for count in counts]

    def _ids(self, instruction: str) -> tuple[int, ...]:
        chat = self._prompt.format.chat
        return self._prompt.start_ids + (
            self._prompt.question(instruction) if chat else self._prompt.text(instruction)
        )

    def _reply(self, ids: Sequence[int]) -> Reply:
        return Reply(*self._prompt.reply(ids))


class OtherWriter:
    """Another model than the base as a `Writer`: loaded when it is first asked, and let go with `close`."""

    concurrency = 1  # the devices are shared

    def __init__(self, config: GeneratorConfig, base: Model):
        """Reads the model's small files only.

        Raises:
          ValueError: `config.model` is no model, or has no chat template for form "chat".
        """
        outline = load_outline(config.model)
        _prompt_for(config, outline.tokenizer, outline.end_ids)
        self.name, self.fingerprint = outline.name, ""
        self._config, self._base = config, base
        self._writer: LocalWriter | None = None

    def write(self, instructions: Sequence[str], counts: Sequence[int], seed: int) -> list[list[Reply]]:
        """Samples `counts[n]` replies to each instruction n; the seed decides what is drawn."""
        if self._writer is None:
            base = self._base
            logging.info("loading %s, which writes", self.name)
            precision = base.matmul_precision
            model = load_model(self._config.model, base.dtype, base.mesh, int8=base.int8, matmul_precision=precision)
            model.tokenizer.conversation_date = getattr(base.tokenizer, "conversation_date", None)
            self._writer, self.fingerprint = _writer_of(model, self._config), model.fingerprint
        return self._writer.write(instructions, counts, seed)

    def close(self) -> None:
        """Forgets the weights."""
        self._writer = None


def _writer_of(model: Model, config: GeneratorConfig) -> LocalWriter:
    params = model.variables["params"]
    return LocalWriter(model.name, model.decoder(), params, model.tokenizer, config, model.end_ids, model.fingerprint)


def _prompt_for(config: GeneratorConfig, tokenizer: Any, end_ids: Sequence[int]) -> Prompt:
    """How a model is asked. Raises ValueError for form "chat" and a tokenizer without a chat template."""
    try:
        return Prompt("chat" if config.form == "chat" else "plain", tokenizer, end_ids)
    except ValueError as error:
        raise ValueError(
            f"generator.form = {config.form!r}: this model's tokenizer cannot be used for it ({error}); "
            "set generator.form=completion, or choose another model"
        ) from error


def _alike(rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Spans of neighbours that have at least half of the shorter one's ids in common at the beginning."""
    starts = [0]
    for n in range(1, len(rows)):
        pair = rows[starts[-1]], rows[n]
        if common_ids(pair) < min(map(len, pair)) // 2:
            starts.append(n)
    return list(zip(starts, [*starts[1:], len(rows)], strict=True))


def check_writer(config: GeneratorConfig, model: Model | None = None, endpoint: EndpointConfig | None = None) -> None:
    """Checks that the configured model can be asked; nothing is sent or written.

    Args:
      config: who writes, and how it is asked.
      model: the model in memory, for a local writer.
      endpoint: the server, for "endpoint".

    Raises:
      ValueError: unknown kinds of prompts, no chat template, no key, a package of the extra `synthesis` is missing.
    """
    _prepare(config, model, endpoint)


@contextlib.contextmanager
def open_writer(
    config: GeneratorConfig,
    path: str | os.PathLike,
    model: Model | None = None,
    endpoint: EndpointConfig | None = None,
) -> Iterator[Writer | GroundedWriter]:
    """The model that writes pairs into the file `path`; a server's replies are kept beside it.

    Args:
      config: who writes, and how it is asked.
      path: JSONL file of the pairs; the replies of a server go to the same name with the ending .replies.jsonl.
      model: the model in memory, for a local writer.
      endpoint: the server, for "endpoint".

    Returns:
      a context manager that gives the writer.

    Raises:
      ValueError: as `check_writer`.
    """
    with _prepare(config, model, endpoint)(pathlib.Path(path)) as writer:
        yield writer


# From the path of the pairs to the writer.
_Open = Callable[[pathlib.Path], contextlib.AbstractContextManager[Writer | GroundedWriter]]


def _prepare(config: GeneratorConfig, model: Model | None, endpoint: EndpointConfig | None) -> _Open:
    if config.generator not in WRITERS:
        raise ValueError(f"targets.generator = {config.generator!r}, expected one of {', '.join(WRITERS)}")
    if config.generator not in BY_RULES:
        chosen_kinds(config)
        for package in ("rapidfuzz", "json_repair"):  # before hours of work, not after
            import_synthesis(package)
    return WRITERS[config.generator](config, model, endpoint)


def _grounded(config: GeneratorConfig, *_) -> _Open:
    return lambda path: contextlib.nullcontext(GroundedWriter(config))


def _local(config: GeneratorConfig, model: Model | None, _) -> _Open:
    if model is None:
        raise ValueError(f"targets.generator = {config.generator!r} without a model in memory; load one")
    if config.model:
        other = OtherWriter(config, model)
        return lambda path: contextlib.closing(other)
    writer = _writer_of(model, config)
    return lambda path: contextlib.nullcontext(writer)


def _endpoint(config: GeneratorConfig, _, endpoint: EndpointConfig | None) -> _Open:
    endpoint = endpoint or EndpointConfig()
    check_endpoint(endpoint)
    if is_distributed():
        raise ValueError(
            "targets.generator = 'endpoint' with several processes: every one of them would ask the server. Write "
            "the pairs first (selfparam targets) and give them as generator.file"
        )

    @contextlib.contextmanager
    def opened(path: pathlib.Path) -> Iterator[Writer]:
        with EndpointWriter(endpoint, config, path.with_suffix(".replies.jsonl")) as writer:
            try:
                yield writer
            finally:
                logging.info("%s", writer.usage().describe())

    return opened


# By the value of targets.generator: a function that checks what it is given and returns how to open the writer.
WRITERS: dict[str, Callable[..., _Open]] = {
    "auto": _grounded,
    "grounded": _grounded,
    "local": _local,
    "endpoint": _endpoint,
}
