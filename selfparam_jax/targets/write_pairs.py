"""Question-answer pairs and texts about documents, written by a model and kept as they arrive.

A text (a summary, a list of facts) is a pair, too: its prompt brings the question that it answers (`texts.TextPair`).

The work is cut into units: one document in one round, with a few replies for every kind of prompt. The pairs of a
unit are appended to a JSONL file in one write, with a line about the unit last. A killed run repeats the unit it was
in and no other. All pairs are kept there with their scores; which of them are used is decided afterwards, so other
thresholds cost nothing.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from absl import logging

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.distributed.files import cut_line, differences, read_lines, write_lines
from selfparam_jax.distributed.processes import is_main_process
from selfparam_jax.targets.config import GeneratorConfig
from selfparam_jax.targets.filter_pairs import (
    describe_losses,
    filter_pairs,
    pair_of,
    string_support,
    text_support,
)
from selfparam_jax.targets.grounded.writer import KIND, GroundedWriter
from selfparam_jax.targets.parse_pairs import parse_pairs, parse_text
from selfparam_jax.targets.question_prompts import PromptKind, TextKind, chosen_kinds, replies_per_kind
from selfparam_jax.targets.replies import Reply
from selfparam_jax.targets.texts import TextPair, topic_of
from selfparam_jax.targets.writers import BY_RULES, Writer

MOST_TOLD = 16  # pairs that a prompt names as known: it must not outgrow the document

_DOCUMENT = re.compile(r'"context": ("(?:[^"\\]|\\.)*")')  # in a line that may be cut off
_ANSWER_LINE = re.compile(r"(?m)^(Answer:.*\S.*)\n")

# The teacher's likelihood of each pair's answer with the document in the prompt, and without it.
Score = Callable[[Document, Sequence[QAPair]], Sequence[tuple[float, float]]]


def needs_writing(documents: Sequence[Document], config: GeneratorConfig, qa_weight: float = 1.0) -> list[Document]:
    """The documents about which a model is to write pairs.

    Args:
      documents: with their own pairs and those of `generator.file`.
      config: who writes: "none" nothing, "auto" about documents without a pair, others about all.
      qa_weight: `targets.qa_weight`; with 0 no pair is used, so none is written.
    """
    if config.generator == "none" or not qa_weight:
        return []
    return [document for document in documents if config.generator != "auto" or not document.qa_pairs]


class PairsFile:
    """The pairs that have been written, and the units that are done, in a JSONL file that only grows."""

    def __init__(self, path: str | os.PathLike, settings: dict):
        """Opens a file or begins one; pairs of a unit that was not finished are removed.

        Raises:
          ValueError: it is not a file of pairs, or was begun with other settings; the differing ones are named.
            Nothing is changed then.
        """
        self._path = pathlib.Path(path)
        self._lock = threading.Lock()
        settings = json.loads(json.dumps(settings))
        old, lines = settings, []
        if self._path.exists() and self._path.stat().st_size:
            old, lines = _read_finished(self._path)
            if unfinished := unfinished_unit(self._path):
                logging.info("%s, and is written again", unfinished)
        different = differences(old, settings)
        if different:
            changes = "\n".join(different)
            raise ValueError(
                f"{self._path} was begun with other settings:\n{changes}\nChoose another file, or use these settings"
            )
        self.units = {_key(line): line for line in lines if "kinds" in line}
        self.pairs = by_digest(lines)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Always written again: what is appended must not follow a line that a kill cut off.
        write_lines(self._path, [{"settings": settings}, *lines])

    def append(self, unit: dict, pairs: Sequence[dict]) -> None:
        """Adds a finished unit with its pairs; on disk when this returns.

        Raises:
          ValueError: another model of the same name wrote the file's other units.
        """
        for other in self.units.values():
            if {"writer"} <= unit.keys() & other.keys() and unit["writer"] != other["writer"]:
                raise ValueError(
                    f"{self._path} was begun by another model of the same name: got weights with the fingerprint "
                    f"{unit['writer'][:12]}, expected {other['writer'][:12]}; choose another file, or that model"
                )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*pairs, unit])
        with self._lock:
            if is_main_process():
                with self._path.open("a", encoding="utf-8", newline="\n") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
            self.units[_key(unit)] = unit
            self.pairs.setdefault(unit["digest"], []).extend(pairs)

    def of(self, document: Document, before: int) -> list[dict]:
        """The pairs about a document with its present text, of the rounds before `before`."""
        return [pair for pair in written_about(document, self.pairs) if pair["round"] < before]


_PAIR_FIELDS = ("digest", "round", "prompt", "question", "answer", "support")


def _read_finished(path: pathlib.Path) -> tuple[dict, list[dict]]:
    """The settings of a pairs file, and the lines of its finished units; a unit's own line is its last.

    Raises:
      ValueError: it is another file.
    """
    lines = read_lines(path)
    if not lines or not isinstance(lines[0].get("settings"), dict):
        raise ValueError(
            f"{path}: got no settings in its first line, expected a file of written pairs; check the path, or choose "
            "another file"
        )
    last = max((number for number, line in enumerate(lines) if "kinds" in line), default=0)
    for number, line in enumerate(lines[1:], start=1):
        fields = _PAIR_FIELDS if "kinds" not in line and number < last else _PAIR_FIELDS[:2]
        if missing := [name for name in fields if name not in line]:
            raise ValueError(
                f"{path}, line {number + 1}: got no {', '.join(map(repr, missing))}, expected a written pair; remove "
                "the line, or choose another file"
            )
        for name in {"prompt", "question", "answer"} & set(line):
            if not isinstance(line[name], str) or not line[name].strip():
                raise ValueError(
                    f"{path}, line {number + 1}: got {line[name]!r:.40} as {name!r}, expected text; remove the line"
                )
        for name in {"support", "likelihood", "likelihood_without"} & set(line):
            if not isinstance(line[name], int | float | None):
                raise ValueError(
                    f"{path}, line {number + 1}: got {line[name]!r:.40} as {name!r}, expected a number; correct it"
                )
    return lines[0]["settings"], lines[1 : last + 1]


def text_digest(document: Document) -> str:
    """Of a document's text alone: title, questions and given pairs do not change what is written about it.

    It decides what a writer draws and finds the pairs in their file, so its form (a record without anything but the
    text) must never change.
    """
    record = {"context": document.text, "id": "", "qa_pairs": [], "questions": [], "title": ""}
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def _key(line: dict) -> tuple:
    return line["digest"], line["round"]


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
      ValueError: it is another file.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; write it with `selfparam targets`, or check the path")
    return by_digest(_read_finished(path)[1])


def unfinished_unit(path: str | os.PathLike) -> str:
    """What to say of the last unit of a pairs file if it was not finished, so that it is not read; else ""."""
    lines, (cut, piece) = read_lines(path), cut_line(path)
    begun = list(itertools.takewhile(lambda line: "kinds" not in line, lines[:0:-1]))
    if not begun and not cut:
        return ""
    found = _DOCUMENT.search(json.dumps(begun[-1]) if begun else piece)
    about = f", about {json.loads(found[1])!r}," if found else ""
    first = len(lines) - len(begun) + 1
    return f"{path}, line {first}: the last unit{about} was not finished ({len(begun)} whole lines of it)"


def warn_of_unfinished(path: str | os.PathLike) -> None:
    """Warns if the last unit of a pairs file was not finished: its pairs are not used."""
    if unfinished := unfinished_unit(path):
        logging.warning(
            "%s; it is not used (the command that writes the file writes it again, or give a whole copy)", unfinished
        )


SHOWN = 8  # pairs of a document that a report shows


def describe_written(documents: Sequence[Document], path: str | os.PathLike) -> list[dict]:
    """What the rules made of each document, for its report.

    Args:
      documents: whose texts are looked up.
      path: JSONL file of written pairs; it need not exist.

    Returns:
      a record per document that rules were applied to: "id", "sentences", "covered", "facts", "pairs" (trained on),
      "held_out" (asked only), "uncovered" (sentences without a question) and "sample" ({"question", "answer"}, evenly
      spaced).

    Raises:
      ValueError: it is another file.
    """
    path = pathlib.Path(path)
    lines = _read_finished(path)[1] if path.is_file() else []
    units, pairs = {line["digest"]: line for line in lines if "sentences" in line}, by_digest(lines)
    made = []
    for document in documents:
        unit = units.get(text_digest(document))
        if unit is None or not unit["sentences"]:
            continue
        records = pairs.get(unit["digest"], [])
        trained = [record for record in records if not record.get("held_out")]
        count = min(SHOWN, len(trained))
        shown = [trained[n * len(trained) // count] for n in range(count)]
        made.append(
            {
                "id": document.id,
                **{name: unit[name] for name in ("sentences", "covered", "facts", "uncovered")},
                "pairs": len(trained),
                "held_out": len(records) - len(trained),
                "sample": [{"question": each["question"], "answer": each["answer"]} for each in shown],
            }
        )
    return made


def written_about(document: Document, written: dict[str, list[dict]]) -> list[dict]:
    """The pairs that have been written about a document with its present text."""
    return written.get(text_digest(document), [])


def lost_pairs(documents: Sequence[Document], written: dict[str, list[dict]], config: GeneratorConfig) -> str:
    """Why pairs written about the documents are not used (`describe_losses`)."""
    return describe_losses([(written_about(each, written), each.qa_pairs) for each in documents], config)


def asking_settings(config: GeneratorConfig, writer_name: str, scored: bool) -> dict:
    """The settings that decide what a model is asked; the first line of a pairs file.

    How pairs are chosen is not part of it, nor is the number of rounds: both may differ between runs over one file.
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


def rounds_of(config: GeneratorConfig) -> int:
    """How many rounds each document gets."""
    return 1 if config.generator in BY_RULES else config.rounds


def write_pairs(
    documents: Sequence[Document],
    writer: Writer | GroundedWriter,
    config: GeneratorConfig,
    path: str | os.PathLike,
    progress: Callable[[int], None] = lambda count: None,
    score: Score | None = None,
) -> list[Document]:
    """Has `pairs_per_context` pairs written about each document, or as many as `rounds` rounds give.

    Args:
      documents: what is asked about.
      writer: the model that is asked.
      config: how it is asked and which of its pairs are used.
      path: JSONL file that grows unit by unit; the same call resumes where a killed one stopped.
      progress: called with 1 per document and round, perhaps from several threads.
      score: scores every pair, in addition to its support in the text.

    Returns:
      the documents with the pairs that are used after their own.

    Raises:
      ValueError: a kind that the prompts do not have; a file that is not one of pairs, or of other settings; a
        document that does not fit into the model's context.
    """
    if isinstance(writer, GroundedWriter):
        return _write_by_rules(documents, writer, config, path, progress, score)
    kinds = chosen_kinds(config)
    file = PairsFile(path, asking_settings(config, writer.name, score is not None))

    def work(document: Document, turn: int) -> None:
        _do_unit(document, turn, kinds, writer, config, file, score)
        progress(1)

    for turn in range(config.rounds):
        _for_each(lambda document, turn=turn: work(document, turn), documents, writer.concurrency)
    return with_written_pairs(documents, file.pairs, config)


def _write_by_rules(
    documents, writer: GroundedWriter, config: GeneratorConfig, path, progress, score
) -> list[Document]:
    """`write_pairs` for the writer that asks nobody: one round, whose unit says what was covered."""
    file = PairsFile(path, writer.settings(score is not None))
    for document in documents:
        unit = {"context": document.id, "digest": text_digest(document), "round": 0}
        if _key(unit) not in file.units:
            began = time.perf_counter()
            summary, made = writer.write_about(document, score)
            lines = [
                {**unit, **line, "support": round(string_support(line["answer"], document.text), 3)} for line in made
            ]
            kinds = dict(collections.Counter(line["prompt"] for line in made))
            file.append({**unit, "kinds": kinds, **summary, "seconds": round(time.perf_counter() - began, 2)}, lines)
        progress(1)
    return with_written_pairs(documents, file.pairs, config)


def _for_each(function: Callable[[Document], None], documents: Sequence[Document], concurrency: int) -> None:
    """Calls the function for every document, several at a time; after a failure no other is begun."""
    if concurrency == 1:  # in this thread, where a stop arrives
        for document in documents:
            function(document)
        return
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(function, document) for document in documents]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def with_written_pairs(
    documents: Sequence[Document], written: dict[str, list[dict]], config: GeneratorConfig
) -> list[Document]:
    """The documents with the pairs written about them (`by_digest`) after their own.

    Of pairs that a model wrote, up to `pairs_per_context`; of those made by rules, all. A document without questions
    gets the pairs that were held out as its questions.
    """
    made = []
    for document in documents:
        records = written_about(document, written)
        kept, _ = filter_pairs(records, document.qa_pairs, config)
        ruled = [pair_of(record) for record in kept if record["prompt"].startswith(KIND)]
        others = [record for record in kept if not record["prompt"].startswith(KIND)]
        pairs = (*document.qa_pairs, *ruled, *choose(others, config.pairs_per_context))
        held_out = tuple(Question(each["question"], (each["answer"],)) for each in records if each.get("held_out"))
        made.append(dataclasses.replace(document, qa_pairs=pairs, questions=document.questions or held_out))
    return made


def _do_unit(document: Document, turn: int, kinds, writer: Writer, config: GeneratorConfig, file, score) -> None:
    """One round of a document, unless it is done or there are enough pairs."""
    kept, _ = filter_pairs(file.of(document, before=turn), document.qa_pairs, config)
    unit = {"context": document.id, "digest": text_digest(document), "round": turn}
    if len(kept) >= config.pairs_per_context or _key(unit) in file.units:
        return
    began = time.perf_counter()
    seed = zlib.crc32(f"{config.seed} {text_digest(document)} {turn}".encode())
    known = [pair for pair in [*document.qa_pairs, *map(pair_of, kept)] if not isinstance(pair, TextPair)]
    asks = _planned(_asks(document, turn, kinds, known, config), document, writer, seed)
    if not asks:
        return
    pairs, by_kind = [], {}
    for ask, reply in zip(asks, _replies(asks, writer, seed), strict=True):
        parsed = _read_reply(ask, reply)
        counts = by_kind.setdefault(ask.kind.name, {"replies": 0, "without_pair": 0, "pairs": 0})
        counts["replies"] += 1
        counts["without_pair"] += not parsed
        counts["pairs"] += len(parsed)
        pairs += [(ask.kind.name, pair) for pair in parsed]
    lines = _records(unit, document, pairs, score)
    of = {"writer": writer.fingerprint} if writer.fingerprint else {}
    file.append({**unit, "kinds": by_kind, "seconds": round(time.perf_counter() - began, 2), **of}, lines)


class _Ask(NamedTuple):
    """One reply that is asked for: what kind, how it begins, and the instruction; of a text the question it answers.

    Without an instruction nothing is asked: the model has planned nothing.
    """

    kind: PromptKind
    begin: str
    instruction: str
    question: str = ""


def _replies(asks: Sequence[_Ask], writer: Writer, seed: int) -> list[Reply]:
    """The reply to each ask; an empty one where there is no instruction."""
    together: dict[str, list[int]] = {}  # asks by instruction: the same text is sent once
    for n, ask in enumerate(asks):
        if ask.instruction:
            together.setdefault(f"{ask.instruction}\n{ask.begin}".rstrip("\n"), []).append(n)
    found = writer.write(list(together), [len(places) for places in together.values()], seed) if together else []
    replies = dict(zip(itertools.chain(*together.values()), itertools.chain(*found), strict=True))
    return [replies.get(n, Reply("", True)) for n in range(len(asks))]


def _planned(asks: Sequence[_Ask], document: Document, writer: Writer, seed: int) -> list[_Ask]:
    """The asks, those of kinds with a plan with the instruction that follows from what the model has planned."""
    planning = [ask for ask in asks if isinstance(ask.kind, TextKind) and ask.kind.plan]
    replies = iter(_replies(planning, writer, zlib.crc32(f"{seed} plan".encode())))
    made = []
    for ask in asks:
        if isinstance(ask.kind, TextKind) and ask.kind.plan:
            reply = next(replies)
            plan = parse_text(reply.text, reply.complete)
            ask = ask._replace(instruction=ask.kind.render(document.text, 1, plan=plan) if plan else "")
        made.append(ask)
    return made


def _read_reply(ask: _Ask, reply: Reply) -> list[QAPair]:
    """The pairs of a reply, or its text as one."""
    if isinstance(ask.kind, TextKind):
        text = parse_text(ask.begin + reply.text if reply.text else "", complete=reply.complete)
        return [TextPair(ask.question, text)] if text else []
    # A completion's answers are one line each, whatever line follows.
    completed = ask.kind.form == "completion"
    text = _ANSWER_LINE.sub(r"\1\n\n", ask.begin + reply.text) if completed else reply.text
    return parse_pairs(text, complete=reply.complete)[: ask.kind.taken or None]


def _asks(
    document: Document, turn: int, kinds: Sequence[PromptKind], known: Sequence[QAPair], config: GeneratorConfig
) -> list[_Ask]:
    """What one round asks for, reply by reply; no text about a document of which nothing says what it is about."""
    about = any(isinstance(kind, TextKind) for kind in kinds)
    topic = topic_of(document) if about else ""
    if about and not topic:
        logging.warning("document %r: no title says what it is about, so no text is asked for", document.id)
    kinds = [kind for kind in kinds if (topic if isinstance(kind, TextKind) else known or not kind.builds_on_pairs)]
    counts = replies_per_kind(kinds, config.replies) if kinds else {}
    asks = []
    for kind in kinds:
        for n in range(counts[kind.name]):
            number = turn * counts[kind.name] + n  # each round continues where the one before stopped
            begin = kind.begin[number % len(kind.begin)]
            if isinstance(kind, TextKind):
                asks.append(_Ask(kind, begin, kind.first_instruction(document.text), kind.question(topic, number)))
                continue
            told = known[-(kind.told or MOST_TOLD) :]
            if kind.told and kind.form == "completion":
                told = [known[(number * kind.told + i) % len(known)] for i in range(min(kind.told, len(known)))]
            questions = [pair.question for pair in told]
            asks.append(_Ask(kind, begin, kind.render(document.text, config.pairs_per_reply, questions, told)))
    return asks


def _records(unit: dict, document: Document, pairs: Sequence[tuple[str, QAPair]], score: Score | None) -> list[dict]:
    """The lines of a unit's pairs."""
    scores = score(document, [pair for _, pair in pairs]) if score and pairs else [None] * len(pairs)
    lines = []
    for (kind, pair), likelihoods in zip(pairs, scores, strict=True):
        line = {**unit, "prompt": kind, "question": pair.question, "answer": pair.answer}
        line |= {"text": True} if isinstance(pair, TextPair) else {}
        if isinstance(pair, TextPair):  # it may well name the title
            line["support"] = round(text_support(pair.answer, f"{document.title}\n{document.text}"), 3)
        else:
            line["support"] = round(string_support(pair.answer, document.text), 3)
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
    return tuple(pair_of(record) for record, _ in zip(turns, range(count), strict=False))
