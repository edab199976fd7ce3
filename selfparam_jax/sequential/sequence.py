"""Documents injected one after another into the same weights, and what is left of each after every injection.

After every injection all documents' questions are asked: row i of the matrices is the model after i injections (row
0: the base), column j is document j. The model after i injections is `W0 + sum of i deltas`, computed in float32 and
rounded once, so merging often loses nothing; the deltas are the entries of a ledger.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Source, group_passages
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import drift, questions
from selfparam_jax.evaluation.likelihood import question_log_likelihoods
from selfparam_jax.models.lora import DeltaSum, merge_adapters
from selfparam_jax.sequential.config import SequentialConfig
from selfparam_jax.sequential.ledger import Entry, Ledger
from selfparam_jax.sequential.replay import (
    generate_replay_pairs,
    join_replays,
    keep_replay,
    read_replay,
    self_generated_sentences,
    take_turns,
)
from selfparam_jax.targets.choose_pairs import choose_pairs, fits
from selfparam_jax.targets.dates import superseded
from selfparam_jax.training.inject import ContinualState, Hooks, Replay, inject, read_teacher, teacher_reader
from selfparam_jax.training.other_teacher import OtherTeacher
from selfparam_jax.training.recipe import Recipe
from selfparam_jax.training.teacher import read_without_context
from selfparam_jax.training.train_step import orthonormal_basis

# Given the steps of an injection by its directory and a label, what observes and stops it.
OpenHooks = Callable[[pathlib.Path, str], contextlib.AbstractContextManager[Hooks]]


@dataclasses.dataclass(frozen=True)
class DocumentSequence:
    """One sequence of a job.

    Attributes:
      number: 0 for the first.
      documents: in the order of injection; a long one as its passages, which are injected together.
      directory: where its ledger, injections and evaluations are kept.
    """

    number: int
    documents: tuple[Document, ...]
    directory: pathlib.Path

    @functools.cached_property
    def sources(self) -> list[Source]:
        """The documents with their passages: an injection each."""
        return group_passages(self.documents)

    def injection_directory(self, index: int) -> pathlib.Path:
        """Where one injection keeps its work."""
        return self.directory / "injections" / f"{index:03d}"

    def ledger(self, base: Model) -> Ledger:
        """The ledger of the injections, on this base."""
        return Ledger.open(self.directory / "ledger", base.fingerprint)


@dataclasses.dataclass(frozen=True)
class SequenceSetup:
    """What all injections of a job's sequences share.

    Attributes:
      base: the untouched model.
      recipe: of every injection.
      config: what is done against forgetting.
      unrelated: texts that keep the model what it was.
      general: texts that drift is measured on; () measures none.
      batch_size: questions decoded together.
      record: the recipe as every ledger entry states it, plain values.
      open_hooks: progress and stops of an injection.
      teacher: another model that teaches; None where `config` says which.
    """

    base: Model
    recipe: Recipe
    config: SequentialConfig
    unrelated: Sequence[str] = ()
    general: Sequence[str] = ()
    batch_size: int = 16
    record: dict = dataclasses.field(default_factory=dict)
    open_hooks: OpenHooks = lambda directory, label: contextlib.nullcontext(Hooks())
    teacher: OtherTeacher | None = None

    @functools.cached_property
    def prompt(self) -> Prompt:
        """The recipe's prompt format, bound to the base's tokenizer."""
        return Prompt(self.recipe.prompt, self.base.tokenizer, self.base.end_ids)

    @functools.cached_property
    def general_text(self) -> drift.General:
        """The general text as the base reads it: once for all models that are measured against it."""
        variables = self.base.variables
        return drift.read_general(self.base.decoder(), variables, self.prompt, self.general)


def split_documents(
    documents: Sequence[Document], config: SequentialConfig, directory: pathlib.Path
) -> list[DocumentSequence]:
    """Cuts documents into sequences, each with a folder of its own below `directory`."""
    sources = group_passages(documents)
    return [
        DocumentSequence(
            number,
            tuple(
                passage
                for source in sources[number * config.length : (number + 1) * config.length]
                for passage in source.passages
            ),
            directory / f"{number:03d}",
        )
        for number in range(config.sequences)
    ]


def run_sequence(setup: SequenceSetup, sequence: DocumentSequence) -> dict:
    """Injects and evaluates; resumes after the last finished step.

    Returns:
      {"rows": what `evaluate_model` gives after each number of injections, the last also "answers" and "documents",
      "entries": ids of the ledger's entries, "notes": time, steps and tokens of each injection}.

    Raises:
      ValueError: an injection has been taken out of the ledger.
      training.inject.Interrupted: a stop was requested; the last step is saved.
    """
    ledger, count = sequence.ledger(setup.base), len(sequence.sources)
    entries = [entry.id for entry in ledger.active()]
    if len(entries) < len(ledger.entries()):
        raise ValueError(
            f"{sequence.directory}: injections have been taken out of this ledger; choose another directory"
        )
    rows, growing = [], GrowingModel(setup.base)
    for done in range(count + 1):
        path = sequence.directory / "evaluations" / f"{done:03d}.json"
        if len(entries) < done:
            growing.add(ledger, entries)
            entries.append(inject_next(setup, sequence, done - 1, growing.model(), ledger, entries[-1:]).id)
        if not path.exists():
            growing.add(ledger, entries[:done])
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, evaluate_model(setup, growing.model(), sequence.documents), sealed=True)
        row = files.read_json(path)
        if rows:  # of all rows they would be the square of the documents
            for name in ("answers", "documents"):
                rows[-1].pop(name, None)
        rows.append(row)
        logging.info("sequence %d, after %d of %d: F1 %s", sequence.number, done, count, _means(rows[-1], done))
    names = [sequence.injection_directory(index) / "injected.json" for index in range(count)]
    notes = [files.read_json(name, keys=NOTES) for name in names]
    return {"rows": rows, "entries": entries[:count], "notes": notes}


# What injected.json holds of an injection.
NOTES = ("seconds", "steps", "fill", "teacher_s", "train_s", "sentence_tokens")


class GrowingModel:
    """The base with added adapters merged; its model is `current_model` of them all, to the bit."""

    def __init__(self, base: Model):
        """Args:
        base: the untouched model.
        """
        self._base, self._model = base, base
        self._sum, self._count = DeltaSum(base.params), 0

    def add(self, ledger: Ledger, ids: Sequence[str]) -> None:
        """Adds those of a ledger's entries that were not among the ids of the call before; the first ones were."""
        for id in ids[self._count :]:
            ((lora, scale),) = ledger.adapters([id])
            self.add_adapter(lora, scale)

    def add_adapter(self, lora: dict, scale: float) -> None:
        """Adds one adapter."""
        self._model = None  # its memory is needed for the next
        self._sum.add(lora, scale)
        self._count += 1

    def model(self) -> Model:
        """The model with all that was added."""
        if self._model is None:
            self._model = dataclasses.replace(self._base, params=self._sum.merged())
        return self._model


def _means(row: dict, done: int) -> str:
    parts = (("all so far", row["f1"][:done]), ("not yet", row["f1"][done:]))
    known = [(name, [value for value in values if value is not None]) for name, values in parts]
    return ", ".join(f"{name} {np.mean(values):.3f}" for name, values in known if values)


def current_model(base: Model, adapters: Sequence[tuple[dict, float]]) -> Model:
    """The base with some adapters merged."""
    if not adapters:
        return base
    return dataclasses.replace(base, params=merge_adapters(base.params, adapters))


def inject_next(
    setup: SequenceSetup,
    sequence: DocumentSequence,
    index: int,
    before: Model,
    ledger: Ledger,
    newest: Sequence[str] = (),
) -> Entry:
    """Injects a document into the model as it stands; the delta becomes the ledger's next entry.

    Args:
      setup: what all injections share.
      sequence: whose document it is.
      index: of the document.
      before: the model with all injections before it.
      ledger: of the sequence.
      newest: the id of the injection before it; () for the first.

    Returns:
      the entry.
    """
    began = time.perf_counter()
    document, directory = sequence.sources[index], sequence.injection_directory(index)
    config = setup.config
    # Hidden states are stored under the name of the parameters that made them.
    name = "+".join([setup.base.fingerprint, *newest])
    now = dataclasses.replace(before, fingerprint=name)
    seed = zlib.crc32(f"{setup.recipe.seed} {sequence.number} {index}".encode()) >> 1
    recipe = dataclasses.replace(setup.recipe, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)
    continual = gather_continual_state(setup, now, recipe, sequence, index, ledger)
    chosen = choose_pairs(
        document.passages,
        setup.prompt,
        recipe.targets,
        recipe.train.seq_len,
        functools.partial(_answer_as_teacher, setup, now),
        directory / "teacher_answers.jsonl",
    )
    label = f"{sequence.number + 1}.{index + 1}/{len(sequence.sources)} {document.id}"
    with setup.open_hooks(directory, label) as hooks:
        injection = inject(now, chosen, recipe, setup.unrelated, directory, continual, hooks, setup.teacher)
    if config.replay_pairs and not (directory / "replay" / "states.npy").exists():
        taught = read_teacher(
            now, setup.prompt, chosen, recipe, setup.unrelated, directory, continual, teacher=setup.teacher
        )
        keep_replay(directory / "replay", *taught, config.replay_pairs, seed)
    note = {"seconds": time.perf_counter() - began, "steps": injection.steps, "fill": injection.fill}
    note |= {"teacher_s": injection.teacher_s, "train_s": injection.train_s}
    files.write_json(directory / "injected.json", note | {"sentence_tokens": injection.sentence_tokens}, sealed=True)
    return ledger.append(
        document.id, document.digest, files.digest(directory / "targets.jsonl"), setup.record, injection.lora,
        recipe.lora.scale,
    )  # fmt: skip


def _answer_as_teacher(setup: SequenceSetup, now: Model, documents: Sequence[Document]) -> list[list[dict]]:
    """What the model as it stands, or another that teaches, answers with the document in the prompt."""
    model = now if setup.teacher is None else setup.teacher.model()
    variables = model.variables
    return questions.answer_questions(model.decoder(), variables, setup.prompt, documents, True, setup.batch_size)


def gather_continual_state(
    setup: SequenceSetup,
    now: Model,
    recipe: Recipe,
    sequence: DocumentSequence,
    index: int,
    ledger: Ledger,
) -> ContinualState:
    """What the configured remedies take from the injections before.

    Args:
      setup: what all injections share.
      now: the model as it stands before the injection.
      recipe: of this injection.
      sequence, index: the document that is injected next.
      ledger: of the sequence.

    Returns:
      the teacher if it is not `now`, sentences to go over again, and what the adapter is kept orthogonal to.
    """
    config, epochs = setup.config, recipe.train.epochs
    earlier = [passage for source in sequence.sources[:index] for passage in source.passages]
    again = []
    if config.replay_per_epoch and index:
        kept = [sequence.injection_directory(i) / "replay" for i in range(index)]
        stale = _stale_questions(sequence.sources[: index + 1])[:index] if recipe.targets.dated else ()
        if replay := read_replay(kept, config.replay_weight, stale):
            again.append(take_turns(replay, config.replay_per_epoch, epochs, recipe.seed))
    if config.self_generated_per_epoch and index:
        pairs = _self_generated_pairs(
            setup, now, config.self_generated_per_epoch * epochs, recipe.seed, sequence.injection_directory(index)
        )
        fitting = [pair for pair in pairs if fits(pair, setup.prompt, recipe.train.seq_len)]
        sentences = self_generated_sentences(
            fitting, setup.prompt, recipe.targets, config.self_generated_per_epoch, epochs
        )
        if sentences:  # read by the current model, whoever teaches the rest: it must not change on them
            states = read_without_context(teacher_reader(now, setup.prompt, recipe), sentences)
            again.append(Replay(sentences, states))
    basis = None
    if config.orthogonal and index:
        width = recipe.lora.rank * (len(sequence.sources) - 1)
        basis = orthonormal_basis([lora for lora, _ in ledger.adapters()], width)
    teaches = setup.base if config.teacher == "original" else None
    return ContinualState(teaches, join_replays(again), basis, documents=tuple(earlier))


def _stale_questions(sources: Sequence[Source]) -> list[set[str]]:
    """For each document the questions of its pairs to which a later one of them gives another answer."""
    stale = superseded([passage for source in sources for passage in source.passages])
    return [
        {pair.question for passage in source.passages for pair in stale.get(passage.id, ())} for source in sources
    ]


def _self_generated_pairs(
    setup: SequenceSetup, now: Model, count: int, seed: int, directory: pathlib.Path
) -> list[QAPair]:
    """Pairs that the model generates by itself; the file that stores them is read if it is there."""
    path = directory / "self_generated.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs = generate_replay_pairs(now.decoder(), now.variables, setup.prompt, count, seed)
        files.write_lines(path, map(dataclasses.asdict, pairs), sealed=True)
    return [QAPair(**line) for line in files.read_lines(path)]


def compare_choices(
    setup: SequenceSetup, sequence: DocumentSequence, before: Sequence[str], after: Sequence[str]
) -> dict:
    """What two choices of a ledger's entries know, and how far they are from the base.

    Args:
      setup: what all injections share.
      sequence: whose ledger it is.
      before, after: ids of entries.

    Returns:
      "contexts": per document its name, "f1" and "log_likelihood" as [before, after]; "kl": [before, after].
    """
    ledger = sequence.ledger(setup.base)
    found = [
        evaluate_model(setup, current_model(setup.base, ledger.adapters(ids)), sequence.documents)
        for ids in (before, after)
    ]
    pairs = {score: list(zip(*(each[score] for each in found), strict=True)) for score in ("f1", "log_likelihood")}
    contexts = [
        {"context": document.id, **{score: list(values[n]) for score, values in pairs.items()}}
        for n, document in enumerate(sequence.sources)
    ]
    return {"contexts": contexts, "kl": [each["drift"]["kl"] for each in found]}


def evaluate_model(setup: SequenceSetup, model: Model, documents: Sequence[Document]) -> dict:
    """Asks a model all questions of all documents, without the documents.

    Returns:
      "documents": their ids; "f1" and "log_likelihood" (of the first gold answer, mean per token in nats), a mean per
      document or None where it has no question; "answers": records that name document and question; "drift" from the
      base; "seconds" that it took.
    """
    began = time.perf_counter()
    variables = model.variables
    answers = questions.answer_questions(
        model.decoder(), variables, setup.prompt, documents, with_context=False, batch_size=setup.batch_size
    )
    reader = teacher_reader(model, setup.prompt, setup.recipe)
    likelihoods = question_log_likelihoods(reader, setup.prompt, documents)
    drifted = drift.NOT_MEASURED
    if setup.general:
        drifted = drift.measure_drift(setup.base.decoder(), setup.general_text, variables)
    sources = group_passages(documents)
    scores = [[answer["f1"] for place in source.places for answer in answers[place]] for source in sources]
    return {
        "documents": [source.id for source in sources],
        "f1": [_mean(group) for group in scores],
        "log_likelihood": [_mean([each for place in s.places for each in likelihoods[place]]) for s in sources],
        "answers": questions.answer_records(documents, answers),
        "drift": drifted,
        "seconds": time.perf_counter() - began,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None
