"""Question-answer pairs about documents, written by an instruct model and kept as they arrive.

The work is cut into units: one context in one round, with a few replies for every kind of prompt. What a unit gave
is appended to a JSONL file in one write, its pairs first and a line about the unit last. A killed run repeats the
unit it was in and no other. All pairs are kept there with their scores; which of them are used is decided after
that, so other thresholds cost nothing.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import re
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Protocol

from selfparam_jax import pairs as qa
from selfparam_jax.contexts import Context, QAPair, digest
from selfparam_jax.files import read_lines, write_lines
from selfparam_jax.generate import Sampling, generate
from selfparam_jax.model import Decoder
from selfparam_jax.prefix import common_ids
from selfparam_jax.processes import is_first
from selfparam_jax.prompts import Prompt
from selfparam_jax.question_prompts import FORMS, PromptKind, load_prompts
from selfparam_jax.workdir import differences

GENERATORS = ("none", "local", "endpoint")
MOST_TOLD = 16  # pairs that a prompt names as known: it must not outgrow the document

_ANSWER_LINE = re.compile(r"(?m)^(Answer:.*\S.*)\n")

# The teacher's likelihood of each pair's answer with the context in view, and without it.
Score = Callable[[Context, Sequence[QAPair]], Sequence[tuple[float, float]]]


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """Who writes pairs, how many and of which kinds; see configs/base.py for what each field does."""

    generator: str = "none"
    form: str = "chat"
    file: str = ""
    pairs_per_context: int = 40
    rounds: int = 3
    replies: int = 8
    pairs_per_reply: int = 6
    reply_tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    prompts: str = ""
    kinds: tuple[str, ...] = ()
    teacher_scores: bool = True
    answer_shape: str = "any"
    least_support: float = 0.6
    least_likelihood: float = 0.0
    least_gain: float = 0.0
    duplicate_threshold: float = 90.0
    seed: int = 0

    def __post_init__(self):
        for name, value, allowed in (
            ("targets.generator", self.generator, GENERATORS),
            ("generator.form", self.form, FORMS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} = {value!r}, expected one of {', '.join(allowed)}")
        for name in ("pairs_per_context", "rounds", "replies", "pairs_per_reply", "reply_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"generator.{name} = {getattr(self, name)}, expected at least 1")
        if self.generator == "endpoint" and self.form != "chat":
            raise ValueError(
                f"generator.form = {self.form!r}, but an endpoint answers chats only; "
                "set --config.generator.form=chat"
            )
        if not self.teacher_scores and (self.least_likelihood > 0 or self.least_gain > 0):
            raise ValueError(
                "generator.least_likelihood and generator.least_gain need the teacher's scores; "
                "set --config.generator.teacher_scores=True"
            )
        Sampling(self.temperature, self.top_p)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a model answered; `complete` is False if it was cut off at the limit of tokens."""

    text: str
    complete: bool


class Writer(Protocol):
    """A model that follows instructions, or continues texts.

    Attributes:
      name: of the model; pairs of another one are not mixed with its own.
      concurrency: how many contexts may be worked on at a time.
    """

    name: str
    concurrency: int

    def write(self, instructions: Sequence[str], counts: Sequence[int], seed: int) -> list[list[Reply]]:
        """For every instruction so many sampled replies."""


class LocalWriter:
    """Our own decoding of a model that is in memory, through its chat template or as plain text that goes on.

    What instructions begin with (the same document) is read once, and their replies are decoded together.
    """

    concurrency = 1  # the devices are shared

    def __init__(self, name: str, model: Decoder, params: dict, tokenizer, config: GeneratorConfig):
        """Raises ValueError for form "chat" and a tokenizer without a chat template."""
        self.name = name
        self._model, self._variables = model, {"params": params}
        try:
            self._prompt = Prompt("chat" if config.form == "chat" else "plain", tokenizer)
        except ValueError as error:
            raise ValueError(
                f"generator.form = {config.form!r}: this model's tokenizer does not serve for it ({error}); "
                "set --config.generator.form=completion, or choose another model"
            ) from error
        self._tokens = config.reply_tokens
        self._sampling = Sampling(config.temperature, config.top_p)

    def write(self, instructions: Sequence[str], counts: Sequence[int], seed: int) -> list[list[Reply]]:
        """For every instruction so many sampled replies; the seed decides what is drawn."""
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
        return self._prompt.head + (self._prompt.question(instruction) if chat else self._prompt.text(instruction))

    def _reply(self, ids: Sequence[int]) -> Reply:
        end = next((n for n, token in enumerate(ids) if token in self._prompt.end_ids), None)
        return Reply(self._prompt.decode(ids[:end]), end is not None)


def _alike(rows: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Spans of neighbours that have at least half of the shorter one's ids in common at the beginning."""
    starts = [0]
    for n in range(1, len(rows)):
        pair = rows[starts[-1]], rows[n]
        if common_ids(pair) < min(map(len, pair)) // 2:
            starts.append(n)
    return list(zip(starts, [*starts[1:], len(rows)], strict=True))


class PairsFile:
    """The pairs that have been written, and the units that are done, in a JSONL file that only grows."""

    def __init__(self, path: str | os.PathLike, settings: dict):
        """Opens or begins a file; pairs of a unit that was not finished are taken out.

        Raises:
          ValueError: the file was begun with other settings; the differing ones are named.
        """
        self._path = pathlib.Path(path)
        self._lock = threading.Lock()
        lines = read_lines(self._path)
        settings = json.loads(json.dumps(settings))
        different = differences(lines[0].get("settings", {}), settings) if lines else []
        if different:
            changes = "\n".join(different)
            raise ValueError(
                f"{self._path} was begun with other settings:\n{changes}\nChoose another file, or go back"
            )
        lines = _finished(lines[1:])
        self.units = {_key(line) for line in lines if "kinds" in line}
        self.pairs = by_digest(lines)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Always written anew: what is appended must not follow a line that a kill cut off.
        write_lines(self._path, [{"settings": settings}, *lines])

    def append(self, unit: dict, pairs: Sequence[dict]) -> None:
        """Adds a finished unit with its pairs; on disk when this returns."""
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*pairs, unit])
        with self._lock:
            if is_first():
                with self._path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            self.units.add(_key(unit))
            self.pairs.setdefault(unit["digest"], []).extend(pairs)

    def of(self, context: Context, before: int) -> list[dict]:
        """The pairs about a context as it is now, of the rounds before `before`."""
        return [pair for pair in written_about(context, self.pairs) if pair["round"] < before]


def _digest(context: Context) -> str:
    """Of what the pairs are about: title, questions and given pairs of a context do not change them."""
    return digest(Context("", "", context.context))[:16]


def _key(line: dict) -> tuple:
    return line["digest"], line["round"]


def _finished(lines: Sequence[dict]) -> Sequence[dict]:
    """The lines of finished units: a unit's own line is its last."""
    last = max((number for number, line in enumerate(lines, start=1) if "kinds" in line), default=0)
    return lines[:last]


def by_digest(lines: Sequence[dict]) -> dict[str, list[dict]]:
    """The pairs among the lines of a pairs file by the text that they are about, in the order of writing."""
    pairs: dict[str, list[dict]] = {}
    for line in lines:
        if "kinds" not in line:
            pairs.setdefault(line["digest"], []).append(line)
    return pairs


def read_written(path: str | os.PathLike) -> dict[str, list[dict]]:
    """The pairs of a pairs file, `by_digest`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no pairs file.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; write it with python -m selfparam_jax.targets")
    lines = read_lines(path)
    if not lines or "settings" not in lines[0]:
        raise ValueError(
            f"{path}: got no settings in its first line, expected a file of written pairs; check the path"
        )
    return by_digest(_finished(lines[1:]))


def written_about(context: Context, written: dict[str, list[dict]]) -> list[dict]:
    """What is written about a context as it is now."""
    return written.get(_digest(context), [])


def replies_per_kind(kinds: Sequence[PromptKind], replies: int) -> dict[str, int]:
    """Shares replies among kinds by weight, largest remainders first; a kind may get none."""
    total = sum(kind.weight for kind in kinds)
    shares = {kind.name: replies * kind.weight / total for kind in kinds}
    counts = {name: int(share) for name, share in shares.items()}
    left = replies - sum(counts.values())
    for name in sorted(shares, key=lambda name: counts[name] - shares[name])[:left]:
        counts[name] += 1
    return counts


VERDICTS = ("kept", "wrong_shape", "unsupported", "unlikely", "duplicate")


def verdicts(records: Sequence[dict], known: Sequence[QAPair], config: GeneratorConfig) -> list[str]:
    """One of VERDICTS for every record: whether it is worth using, and if not, why.

    Args:
      records: lines of a pairs file.
      known: pairs that are there already; their questions are not asked again.
    """
    found, first = [], {}
    for n, record in enumerate(records):
        if config.answer_shape not in ("any", qa.answer_shape(record["answer"])):
            found.append("wrong_shape")
        elif record["support"] < config.least_support:
            found.append("unsupported")
        elif not _likely(record, config):
            found.append("unlikely")
        else:
            found.append("duplicate")
            first.setdefault(_pair(record), n)
    kept, _ = qa.drop_near_duplicates(list(first), known, threshold=config.duplicate_threshold)
    for pair in kept:
        found[first[pair]] = "kept"
    return found


def sift(
    records: Sequence[dict], known: Sequence[QAPair], config: GeneratorConfig
) -> tuple[list[dict], dict[str, int]]:
    """The records worth using, in order, and how many there are of each verdict ("written": of all)."""
    found = verdicts(records, known, config)
    counts = {"written": len(records), **{verdict: found.count(verdict) for verdict in VERDICTS}}
    return [record for record, verdict in zip(records, found, strict=True) if verdict == "kept"], counts


def _pair(record: dict) -> QAPair:
    return QAPair(record["question"], record["answer"])


def _likely(record: dict, config: GeneratorConfig) -> bool:
    """Whether the teacher, with the context in view, believes the answer, and more so than without it."""
    if not (config.least_likelihood > 0 or config.least_gain > 0):
        return True
    likelihood, without = record["likelihood"], record["likelihood_without"]
    return likelihood >= config.least_likelihood and likelihood - without >= config.least_gain


def chosen_kinds(config: GeneratorConfig) -> list[PromptKind]:
    """The kinds of prompts that a configuration asks for.

    Raises:
      ValueError: a kind that the file of prompts does not have in this form.
    """
    kinds = {name: kind for name, kind in load_prompts(config.prompts or None).items() if kind.form == config.form}
    unknown = set(config.kinds) - kinds.keys()
    if unknown or not kinds:
        raise ValueError(
            f"generator.kinds = {sorted(unknown)} with form {config.form!r}, expected some of "
            f"{', '.join(kinds) or 'none: the file of prompts has no kind of this form'}"
        )
    return [kind for name, kind in kinds.items() if not config.kinds or name in config.kinds]


def asking_settings(config: GeneratorConfig, writer_name: str, scored: bool) -> dict:
    """What decides what a model is asked, as the first line of a pairs file keeps it.

    How pairs are chosen is not part of it, nor how many rounds there are: both may change over one file.
    """
    names = ("form", "replies", "pairs_per_reply", "reply_tokens", "temperature", "top_p", "seed")
    kinds = chosen_kinds(config)
    return {
        **{name: getattr(config, name) for name in names},
        "model": writer_name,
        "kinds": [kind.name for kind in kinds],
        "instructions": zlib.crc32(repr(kinds).encode()),
        "teacher_scores": scored,
    }


def write_pairs(
    contexts: Sequence[Context],
    writer: Writer,
    config: GeneratorConfig,
    path: str | os.PathLike,
    progress: Callable[[int], None] = lambda count: None,
    score: Score | None = None,
) -> list[Context]:
    """Contexts with `pairs_per_context` written pairs each, or as many as `rounds` rounds gave, after their own.

    Args:
      path: JSONL file that grows unit by unit; the same call goes on where a killed one stopped.
      progress: called with 1 per context and round, perhaps from several threads.
      score: what every pair is scored with beside its support in the text.

    Raises:
      ValueError: a kind that the prompts do not have; a file of other settings; a context that does not fit.
    """
    kinds = chosen_kinds(config)
    file = PairsFile(path, asking_settings(config, writer.name, score is not None))

    def work(context: Context, turn: int) -> None:
        _do_unit(context, turn, kinds, writer, config, file, score)
        progress(1)

    for turn in range(config.rounds):
        _for_each(lambda context, turn=turn: work(context, turn), contexts, writer.concurrency)
    return with_written_pairs(contexts, file.pairs, config)


def _for_each(function: Callable[[Context], None], contexts: Sequence[Context], concurrency: int) -> None:
    """Calls the function for every context, several at a time; after a failure no other is begun."""
    if concurrency == 1:  # in this thread, where a stop arrives
        for context in contexts:
            function(context)
        return
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(function, context) for context in contexts]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def with_written_pairs(
    contexts: Sequence[Context], written: dict[str, list[dict]], config: GeneratorConfig
) -> list[Context]:
    """Contexts with the best use of what has been written about them (`by_digest`), after their own pairs."""
    made = []
    for context in contexts:
        kept, _ = sift(written_about(context, written), context.qa_pairs, config)
        pairs = (*context.qa_pairs, *choose(kept, config.pairs_per_context))
        made.append(dataclasses.replace(context, qa_pairs=pairs))
    return made


def _do_unit(context: Context, turn: int, kinds, writer: Writer, config: GeneratorConfig, file, score) -> None:
    """One round of a context, unless it is done or there are pairs enough."""
    kept, _ = sift(file.of(context, before=turn), context.qa_pairs, config)
    unit = {"context": context.id, "digest": _digest(context), "round": turn}
    if len(kept) >= config.pairs_per_context or _key(unit) in file.units:
        return
    began = time.perf_counter()
    asks = _asks(context, turn, kinds, [*context.qa_pairs, *map(_pair, kept)], config)
    if not asks:
        return
    together: dict[str, list[int]] = {}  # replies by what is asked: the same text is sent once
    for n, (_, begin, instruction) in enumerate(asks):
        together.setdefault(f"{instruction}\n{begin}".rstrip("\n"), []).append(n)
    seed = zlib.crc32(f"{config.seed} {_digest(context)} {turn}".encode())
    found = writer.write(list(together), [len(replies) for replies in together.values()], seed)
    order, made = itertools.chain(*together.values()), itertools.chain(*found)
    replies = dict(zip(order, made, strict=True))
    pairs, by_kind = [], {}
    for n, (kind, begin, _) in enumerate(asks):
        parsed = qa.parse_pairs(_read_text(kind, begin, replies[n].text), complete=replies[n].complete)
        parsed = parsed[: kind.taken or None]
        counts = by_kind.setdefault(kind.name, {"replies": 0, "without_pair": 0, "pairs": 0})
        counts["replies"] += 1
        counts["without_pair"] += not parsed
        counts["pairs"] += len(parsed)
        pairs += [(kind.name, pair) for pair in parsed]
    lines = _records(unit, context, pairs, score)
    file.append({**unit, "kinds": by_kind, "seconds": round(time.perf_counter() - began, 2)}, lines)


def _read_text(kind: PromptKind, begin: str, reply: str) -> str:
    """A reply as text to find pairs in; a completion's answers are one line each, whatever line follows."""
    return _ANSWER_LINE.sub(r"\1\n\n", begin + reply) if kind.form == "completion" else reply


def _asks(
    context: Context, turn: int, kinds: Sequence[PromptKind], known: Sequence[QAPair], config: GeneratorConfig
) -> list[tuple[PromptKind, str, str]]:
    """What is asked in one round, reply by reply: kind, how the reply begins, instruction."""
    kinds = [kind for kind in kinds if known or not kind.builds_on_pairs]
    counts = replies_per_kind(kinds, config.replies) if kinds else {}
    asks = []
    for kind in kinds:
        for n in range(counts[kind.name]):
            number = turn * counts[kind.name] + n  # each round goes on where the one before stopped
            told = known[-(kind.told or MOST_TOLD) :]
            if kind.told and kind.form == "completion":
                told = [known[(number * kind.told + i) % len(known)] for i in range(min(kind.told, len(known)))]
            questions = [pair.question for pair in told]
            text = kind.render(context.context, config.pairs_per_reply, questions, told)
            asks.append((kind, kind.begin[number % len(kind.begin)], text))
    return asks


def _records(unit: dict, context: Context, pairs: Sequence[tuple[str, QAPair]], score: Score | None) -> list[dict]:
    """The lines of a unit's pairs."""
    scores = score(context, [pair for _, pair in pairs]) if score and pairs else [None] * len(pairs)
    lines = []
    for (kind, pair), likelihoods in zip(pairs, scores, strict=True):
        line = {**unit, "prompt": kind, "question": pair.question, "answer": pair.answer}
        line["support"] = round(qa.string_support(pair.answer, context.context), 3)
        if likelihoods is not None:
            line["likelihood"], line["likelihood_without"] = (round(float(value), 5) for value in likelihoods)
        lines.append(line)
    return lines


def choose(records: Sequence[dict], count: int) -> tuple[QAPair, ...]:
    """Up to `count` pairs, of every kind in turn, so that a limit cuts no kind off."""
    queues: dict[str, list[dict]] = {}
    for record in records:
        queues.setdefault(record["prompt"], []).append(record)
    longest = max(map(len, queues.values()), default=0)
    turns = (queue[n] for n in range(longest) for queue in queues.values() if n < len(queue))
    return tuple(_pair(record) for record, _ in zip(turns, range(count), strict=False))
