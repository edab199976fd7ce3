"""Writing some documents into an adapter: target sentences, teacher states, training.

It stops and resumes at any step where it has a directory for the teacher's states and the checkpoints.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging

from selfparam_jax.checkpoints.export import digest_arrays
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, digest_documents, digest_texts
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.models.decoder import Decoder, output_head
from selfparam_jax.models.lora import extend_lora, init_lora
from selfparam_jax.models.parameters import tree_leaves
from selfparam_jax.models.unstacked import layers_apart, trains_apart
from selfparam_jax.targets.distractors import among_others, check_room
from selfparam_jax.targets.kinds import make_targets
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.training import batches, optimizer, train_step, trainer
from selfparam_jax.training.checkpoints import Checkpoints
from selfparam_jax.training.other_teacher import OtherTeacher
from selfparam_jax.training.recipe import Recipe, chosen_remat
from selfparam_jax.training.teacher import Online, Reader, Teacher, answer_confidence, confident
from selfparam_jax.training.teacher_states import teacher_store


class Interrupted(KeyboardInterrupt):
    """A stop was asked for; everything is saved."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Sentences of earlier injections, and the teacher's states of all their loss tokens in order, [tokens, D]."""

    sentences: tuple[Sentence, ...]
    states: np.ndarray


@dataclasses.dataclass(frozen=True)
class Start:
    """An adapter that training starts from, instead of a fresh one.

    Attributes:
      lora: its factors; projections and ranks may be others than the recipe's (`lora.extend_lora`).
      scale: of its products.
      documents: sha256 of every document in it, by id, where that is known.
    """

    lora: dict
    scale: float
    documents: dict[str, str] = dataclasses.field(default_factory=dict)

    def record(self) -> dict:
        """What it is, as JSON values: a digest of what it computes, and its documents."""
        arrays = {"/".join(path): leaf for path, leaf in tree_leaves(self.lora).items()}
        return {"digest": digest_arrays({**arrays, "scale": np.float64(self.scale)}), "documents": self.documents}


@dataclasses.dataclass(frozen=True)
class ContinualState:
    """What an injection takes from those before it.

    Attributes:
      original: the model that teaches, if it is not the one that learns.
      replay: further sentences with the states that their own teacher had.
      basis: what the adapter is kept orthogonal to (`train_step.project_lora`).
      start: the adapter that training starts from; None for a fresh one.
      documents: that were injected, with their pairs; for `targets.dated`.
    """

    original: Model | None = None
    replay: Replay | None = None
    basis: dict | None = None
    start: Start | None = None
    documents: tuple[Document, ...] = ()


def _nothing(*_) -> None:
    """The default of every hook."""


@dataclasses.dataclass(frozen=True)
class Hooks:
    """What a caller wants to know, or decide, while an injection runs.

    Attributes:
      on_teacher: called with (sentences read, sentences in all) as the teacher reads.
      on_start: called with (steps done before, steps in all) before the first step.
      on_step: called with the record of every step: step, loss, grad_norm, seconds, learning_rate, sentence_tokens.
      stop_requested: a function that makes one, given the steps done before: called after every step, True ends
        training after a checkpoint.
      sample_every, on_sample: `on_sample` is called with (steps done, model, adapter) every `sample_every` steps; 0:
        never. The adapter is only lent, and what is computed with it changes no step.
    """

    on_teacher: Callable[[int, int], None] = _nothing
    on_start: Callable[[int, int], None] = _nothing
    on_step: Callable[[dict], None] = _nothing
    stop_requested: Callable[[int], contextlib.AbstractContextManager[Callable[[], bool]]] = dataclasses.field(
        default=lambda first: contextlib.nullcontext(lambda: False)
    )
    sample_every: int = 0
    on_sample: Callable[[int, Model, dict], None] = _nothing


@dataclasses.dataclass(frozen=True)
class Injection:
    """What training on some documents gave.

    Attributes:
      lora: the adapter's tree, or that of another student.
      steps: optimizer steps in all.
      resumed_from: steps that were done before this call.
      teacher_s, train_s: seconds of the teacher's reading (0 if it was done before) and of training.
      sentence_tokens: tokens of target sentences that were trained on, padding and prompt not counted.
      fill: share of the training rows' positions that held a token.
    """

    lora: dict
    steps: int
    resumed_from: int
    teacher_s: float
    train_s: float
    sentence_tokens: int
    fill: float


@dataclasses.dataclass(frozen=True)
class Student:
    """What is trained beside the frozen base, and how it is read with it.

    Attributes:
      decoder: the student's module.
      start: gives the tree that training starts from, float32.
      forward: how the decoder reads rows with such a tree.
      name: what is trained, in the record of an injection.
      frozen: whether the base's weights stay; False if what is trained is added to them before they are multiplied.
    """

    decoder: Decoder
    start: Callable[[], dict]
    forward: train_step.Forward = train_step.read_adapted
    name: str = ""
    frozen: bool = True


def inject(
    model: Model,
    documents: Sequence[Document],
    recipe: Recipe,
    unrelated: Sequence[str] = (),
    directory: pathlib.Path | None = None,
    continual: ContinualState = ContinualState(),
    hooks: Hooks = Hooks(),
    teacher: OtherTeacher | None = None,
    student: Student | None = None,
) -> Injection:
    """Writes documents into a new adapter of a model, or into one that is given (`ContinualState.start`).

    Args:
      model: the frozen base; it teaches if no other does, and its adapted copy learns.
      documents: with the pairs to train on.
      recipe: how.
      unrelated: texts that keep the model what it was.
      directory: where teacher states, checkpoints and target sentences are kept; a call that finds its own unfinished
        work there resumes it. None keeps everything in memory.
      continual: what is taken from earlier injections.
      hooks: progress, and the request to stop.
      teacher: another model that teaches.
      student: what is trained; None for an adapter.

    Returns:
      the adapter, or what else is trained, and what it took.

    Raises:
      ValueError: the directory belongs to another injection, there is nothing to learn, or the teacher has another
        vocabulary.
      Interrupted: a stop was requested; the last step is saved.
      trainer.NotFiniteError: the loss is not finite.
    """
    if directory is not None:
        record = injection_record(model, documents, recipe, unrelated, teacher)
        if continual.start is not None:
            record["adapter"] = continual.start.record()
        if recipe.targets.dated:
            record["earlier"] = digest_documents(continual.documents)
        if student is not None:
            record["student"] = student.name
        bind_directory(directory / "injection.json", record, "injection")

    def read() -> tuple[list[Sentence], np.ndarray, Teacher]:
        prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
        found = read_teacher(model, prompt, documents, recipe, unrelated, directory, continual, hooks, teacher)
        if directory is not None:
            files.write_lines(directory / "targets.jsonl", (sentence.record for sentence in found[0]))
        return found

    return train_adapter(model, recipe, read, directory, continual, hooks, teacher=teacher, student=student)


def injection_record(
    model: Model,
    documents: Sequence[Document],
    recipe: Recipe,
    unrelated: Sequence[str],
    teacher: OtherTeacher | None = None,
) -> dict:
    """What the work in a directory belongs to (`bind_directory`).

    Args:
      model, documents, recipe, unrelated, teacher: of an injection.

    Returns:
      their digests and settings, as JSON values.
    """
    record = {
        "base": model.fingerprint,
        "int8": model.int8,
        "documents": digest_documents(documents),
        "unrelated": digest_texts(unrelated),
        "recipe": recipe.record(),
    }
    return record if teacher is None else record | {"teacher": teacher.record()}


def train_adapter(
    model: Model,
    recipe: Recipe,
    read: Callable[[], tuple[Sequence[Sentence], np.ndarray, Teacher | None]],
    directory: pathlib.Path | None = None,
    continual: ContinualState = ContinualState(),
    hooks: Hooks = Hooks(),
    student: Student | None = None,
    teacher: OtherTeacher | None = None,
) -> Injection:
    """Trains an adapter of a model on sentences, resuming from the newest checkpoint.

    Args:
      model: the frozen base.
      recipe: adapter, optimizer, batches and epochs.
      read: gives the sentences, the first slot of each, and the teacher; None for a teacher leaves the KL out. Not
        called if training is finished.
      directory: where checkpoints are kept; None keeps none.
      continual: what the adapter starts from, and is kept orthogonal to.
      hooks: progress, and the request to stop.
      student: what is trained instead of an adapter; None for the adapter.
      teacher: another model, whose head turns the states that `read` gives into distributions.

    Returns:
      the adapter and what it took.

    Raises:
      Interrupted: a stop was requested; the last step is saved if there is a directory.
      trainer.NotFiniteError: the loss is not finite.
    """
    train = recipe.train
    if student is None:
        student = Student(student_decoder(model, recipe), lambda: first_adapter(model, recipe, continual.start))
    with _open_checkpoints(directory) as checkpoints:
        first = (checkpoints.latest() or 0) if checkpoints else 0
        done = {"train_s": 0.0, "sentence_tokens": 0, "steps": None}
        if first:
            done = checkpoints.read_record(first)
        if first == done["steps"]:
            lora = _finished(checkpoints.read_adapter(first, meshes.replicated(model.mesh)), continual)
            return Injection(lora, first, first, 0.0, done["train_s"], done["sentence_tokens"], done["fill"])
        began = time.perf_counter()
        sentences, slots, signal = read()
        teacher_s = time.perf_counter() - began if signal is not None else 0.0
        start_ids = Prompt(recipe.prompt, model.tokenizer, model.end_ids).start_ids
        plan = batches.Plan(sentences, slots, start_ids, train, recipe.targets.unrelated_per_epoch)
        logging.info(
            "%d sentences, %d steps of %d rows x %d tokens (%.0f%% filled); teacher read them in %.0f s",
            len(sentences), plan.steps, train.batch_size, train.seq_len, 100 * plan.fill, teacher_s,
        )  # fmt: skip
        supervised = signal is None or recipe.supervised  # without a teacher it is all there is to learn
        adamw = optimizer.make_optimizer(train, plan.steps)
        state = meshes.put_same(model.mesh, train_step.init_state(student.start(), adamw))
        if first:
            saved = checkpoints.restore(first, lora=state.lora, optimizer=state.opt_state)
            step = meshes.put_same(model.mesh, np.int32(first))
            state = train_step.TrainState(saved["lora"], saved["optimizer"], step)
            logging.info("resuming from step %d of %d", first, plan.steps)
        rates = optimizer.learning_rates(train, plan.steps)
        logger = TrainLogger(plan, rates, done, hooks.on_step)
        hooks.on_start(first, plan.steps)
        stopped = False

        def asked_to_stop() -> bool:
            nonlocal stopped
            stopped = stop_requested()
            return stopped

        with hooks.stop_requested(first) as stop_requested:
            state = trainer.fit(
                state,
                _frozen_params(model, student),
                _step_function(model, recipe, adamw, continual, student, teacher),
                batches.batches(plan, signal, model.mesh, supervised, first, train.accumulate),
                jax.random.key(recipe.seed),
                logger.on_metrics,
                functools.partial(_save, checkpoints, logger),
                train.checkpoint_every,
                asked_to_stop,
                learning_rates=rates,
                sample_every=hooks.sample_every,
                on_sample=lambda step, state: hooks.on_sample(step, model, _finished(state.lora, continual)),
            )
    # Also after the last step: a job has more to do, which the stop is to keep it from.
    if int(state.step) < plan.steps or (stopped and directory is not None):
        done = f"step {int(state.step)} of {plan.steps}"
        if directory is None:
            raise Interrupted(f"stopped at {done}; nothing was saved, as no directory was given")
        raise Interrupted(f"stopped and saved at {done}; the same command resumes from there")
    lora = _finished(state.lora, continual)
    return Injection(lora, plan.steps, first, teacher_s, logger.train_s, logger.sentence_tokens, plan.fill)


def _open_checkpoints(directory: pathlib.Path | None) -> contextlib.AbstractContextManager[Checkpoints | None]:
    return contextlib.nullcontext() if directory is None else Checkpoints(directory / "checkpoints")


def _save(checkpoints: Checkpoints | None, logger: "TrainLogger", step: int, state: train_step.TrainState) -> None:
    if checkpoints:
        checkpoints.save(step, state.lora, state.opt_state, logger.record())


def bind_directory(path: pathlib.Path, record: dict, what: str) -> None:
    """Says in a JSON file what its directory's work belongs to, or checks that it is the same.

    Raises:
      ValueError: it is another (`what` it is called); the differences are listed.
    """
    record = json.loads(json.dumps(record))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, record)
        return
    found = files.read_json(path)
    different = files.differences(files.flatten(found), files.flatten(record))
    if not different and list(found.get("documents", ())) != list(record.get("documents", ())):
        different = ["  the order of the documents"]
    if different:
        raise ValueError(
            f"{path.parent} holds another {what}; these differ:\n" + "\n".join(different) + "\n"
            "Choose another directory, or repeat that one with its own inputs"
        )


def _frozen_params(model: Model, student: Student) -> dict:
    """The base's parameters as the student's steps take them: rounded or not, its layers apart where that is faster.

    Weights that are trained themselves are never rounded. Layers can be apart on one device, for an adapter without
    dropout.
    """
    if not student.frozen:
        return model.params
    adapter = student.forward is train_step.read_adapted and student.decoder.lora_dropout == 0.0
    apart = adapter and student.decoder.sharding is None and trains_apart(model.params)
    return (layers_apart(model.variables) if apart else model.variables)["params"]


def _step_function(
    model: Model, recipe: Recipe, adamw, continual: ContinualState, student: Student, teacher: OtherTeacher | None
) -> Callable:
    """The compiled training step; a basis that the adapter is kept orthogonal to, and a teacher's head, are bound."""
    train = recipe.train
    loss = train_step.LossConfig(train.temperature, train.loss_chunk, recipe.targets.by_confidence)
    orthogonal = continual.basis is not None
    step = train_step.compile_step(
        student.decoder,
        adamw,
        model.mesh,
        loss,
        orthogonal,
        train.accumulate,
        model.int8,
        teacher=None if teacher is None else teacher.config,
        forward=student.forward,
    )
    if teacher is not None:
        head = teacher.head
        return lambda *given: step(*given, continual.basis, head)
    return (lambda *given: step(*given, continual.basis)) if orthogonal else step


def student_remat(model: Model, recipe: Recipe) -> str:
    """What a student's backward pass computes again (`chosen_remat`)."""
    return chosen_remat(recipe.remat, model.config, recipe.train, model.dtype.itemsize)


def student_decoder(model: Model, recipe: Recipe):
    """The module of the student: the model's, with the adapter's scale and dropout."""
    return model.decoder(
        lora_scale=recipe.lora.scale,
        remat=student_remat(model, recipe),
        attention=model.attention,
        lora_dropout=recipe.lora.dropout,
    )


def _finished(lora: dict, continual: ContinualState) -> dict:
    """The adapter as it was used in training."""
    return lora if continual.basis is None else train_step.project_lora(lora, continual.basis)


def first_adapter(model: Model, recipe: Recipe, start: Start | None = None) -> dict:
    """The adapter that an injection starts from, on the mesh: a function of the seed, and of `start`.

    Raises:
      ValueError: `start` is for another model.
    """
    if start is None:
        lora = _draw_adapter(model.params, np.uint32(recipe.seed), recipe.lora)
    else:
        lora = extend_lora(_adapter_key(recipe.seed), model.params, recipe.lora, start.lora, start.scale)
    return meshes.put_same(model.mesh, lora)


def _adapter_key(seed):
    return jax.random.fold_in(jax.random.key(seed), 1)


@functools.partial(jax.jit, static_argnames="config")  # one program, whatever the seed
def _draw_adapter(params, seed, config):
    return init_lora(_adapter_key(seed), params, config)


def recipe_targets(
    documents: Sequence[Document],
    prompt: Prompt,
    recipe: Recipe,
    unrelated: Sequence[str],
    earlier: Sequence[Document] = (),
) -> list[Sentence]:
    """The target sentences that a recipe makes (`targets.kinds.make_targets`).

    Args:
      documents: with their pairs.
      prompt: turns text into ids.
      recipe: which sentences there are, for how many epochs, and how long a training row is.
      unrelated: texts that are read in turn.
      earlier: documents that were injected before.

    Returns:
      the sentences, in an order that the seed does not change.

    Raises:
      ValueError: there is nothing to learn.
    """
    train = recipe.train
    return make_targets(
        documents,
        prompt,
        recipe.targets,
        seed=recipe.seed,
        epochs=train.epochs,
        seq_len=train.seq_len,
        unrelated=unrelated,
        earlier=earlier,
    )


def teacher_reader(model: Model, prompt: Prompt, recipe: Recipe) -> Reader:
    """How a model reads sentences as a teacher, in rows of the shape that training has."""
    identity = f"{model.fingerprint} {'int8' if model.int8 else 'float'}"
    return Reader(
        model.decoder(),
        model.variables,
        identity,
        tuple(prompt.start_ids),
        model.mesh,
        recipe.train.batch_size,
        recipe.train.seq_len,
    )


def read_teacher(
    model: Model,
    prompt: Prompt,
    documents: Sequence[Document],
    recipe: Recipe,
    unrelated: Sequence[str] = (),
    directory: pathlib.Path | None = None,
    continual: ContinualState = ContinualState(),
    hooks: Hooks = Hooks(),
    teacher: OtherTeacher | None = None,
) -> tuple[list[Sentence], np.ndarray, Teacher]:
    """The target sentences of an injection, and its teacher's states.

    A teacher that is another model is let go when its states are stored; an online one stays.

    Args:
      model, prompt, documents, recipe, unrelated, continual, hooks, teacher: as `inject` has them.
      directory: the states are kept in its folder `teacher`; None: in memory.

    Returns:
      the sentences; the first slot of each, int64 [len]; the teacher: its stored states, or itself if it is online.

    Raises:
      ValueError: there is nothing to learn, a document is longer than the teacher can read, or the teacher has
        another vocabulary.
    """
    sentences = recipe_targets(documents, prompt, recipe, unrelated, continual.documents)
    sentences, prefixes = among_others(sentences, documents, prompt, recipe.targets, recipe.seed)
    slots = first_slots(sentences)
    if teacher is not None:
        teacher.check_texts(documents, unrelated)
        teaches = teacher.model()
    else:
        teaches = dataclasses.replace(continual.original or model, int8=model.int8)
    check_room(documents, prompt, recipe.targets, recipe.seed, teaches.config.max_position_embeddings)
    reader = teacher_reader(teaches, prompt, recipe)
    if recipe.train.teacher == "online":
        signal: Teacher = Online(reader, prefixes, sentences, slots)
    else:
        total, read = sum(bool(sentence.loss_tokens) for sentence in sentences), 0

        def progress(count: int) -> None:
            nonlocal read
            read += count
            hooks.on_teacher(read, total)

        hooks.on_teacher(0, total)
        place = None if directory is None else directory / "teacher"
        signal = teacher_store(reader, prefixes, sentences, place, progress=progress)
    least = recipe.targets.least_confidence
    if least > 0:
        confidence = answer_confidence(
            output_head(teaches.variables["params"], teaches.config), signal, sentences, slots
        )
        chosen = confident(sentences, confidence, least)
        logging.info(
            "the teacher is confident of %d of %d sentences; the others are left out", len(chosen), len(sentences)
        )
        sentences, slots = [sentences[i] for i in chosen], slots[chosen]
        if not any(sentence.kind in ("qa", "tail") for sentence in sentences):
            raise ValueError(
                f"the teacher gives no answer of the documents' pairs a confidence of {least} "
                "(targets.least_confidence), so nothing of them would be learned; lower it"
            )
    if continual.replay is not None:
        again = continual.replay.sentences
        counts = [len(sentence.loss_tokens) for sentence in again]
        slots = np.concatenate([slots, len(signal) + np.cumsum([0, *counts[:-1]])])
        sentences, signal = [*sentences, *again], signal.with_states(continual.replay.states)
    if teacher is not None and recipe.train.teacher != "online":
        teacher.let_go()
    return sentences, slots, signal


class TrainLogger:
    """Running totals of one training run; hands every step's record on."""

    def __init__(self, plan: batches.Plan, rates: np.ndarray, done: dict, on_step: Callable[[dict], None]):
        """Args:
        plan: which sentences stand in which step.
        rates: learning rates, float32 [steps].
        done: the totals of an earlier part: train_s in seconds, sentence_tokens.
        on_step: called with every step's record.
        """
        self._plan, self._rates, self._on_step = plan, rates, on_step
        self.train_s, self.sentence_tokens = done["train_s"], done["sentence_tokens"]

    def on_metrics(self, step: int, values: dict) -> None:
        """Counts one step, given its loss, norm of the gradient and seconds."""
        tokens = self._plan.sentence_tokens(step - 1)
        self.train_s += values["seconds"]
        self.sentence_tokens += tokens
        rate = float(self._rates[step - 1])
        self._on_step({"step": step, **values, "learning_rate": rate, "sentence_tokens": tokens})

    def record(self) -> dict:
        """What a checkpoint keeps beside the state."""
        return {
            "train_s": self.train_s,
            "sentence_tokens": self.sentence_tokens,
            "steps": self._plan.steps,
            "fill": self._plan.fill,
        }
