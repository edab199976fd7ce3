"""Writing some contexts into an adapter: target sentences, teacher, training; what every job is made of.

It stops and resumes at any step: the teacher's states and the checkpoints lie in the injection's directory.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import signal
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from tqdm import tqdm

from selfparam_jax import evaluate, files, hub, targets, teacher, trainer
from selfparam_jax import mesh as meshes
from selfparam_jax.agreement import agreeing_contexts
from selfparam_jax.attention import BLOCKS, SPLASH
from selfparam_jax.checkpoint import Checkpoints
from selfparam_jax.contexts import Context, QAPair
from selfparam_jax.endpoint import EndpointConfig
from selfparam_jax.generator import GeneratorConfig
from selfparam_jax.lora import LoraConfig, init_lora
from selfparam_jax.model import Decoder, head_weight
from selfparam_jax.pairs import answer_shape
from selfparam_jax.processes import is_first, preempted, progressed, several
from selfparam_jax.prompts import Prompt
from selfparam_jax.rehearsal import Rehearsal
from selfparam_jax.workdir import MetricsLog

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class SequentialConfig:
    """How contexts follow one another, and what is done against forgetting; see configs/base.py."""

    length: int = 20
    sequences: int = 1
    teacher: str = "current"
    rehearsal_pairs: int = 0
    rehearsal_per_epoch: int = 0
    rehearsal_weight: float = 1.0
    imagined_per_epoch: int = 0
    orthogonal: bool = False
    fresh_texts: bool = False

    def __post_init__(self):
        for name in ("length", "sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"sequential.{name} = {getattr(self, name)}, expected at least 1")
        for name in ("rehearsal_pairs", "rehearsal_per_epoch", "rehearsal_weight", "imagined_per_epoch"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"sequential.{name} = {getattr(self, name)}, expected at least 0")
        if self.teacher not in ("current", "original"):
            raise ValueError(f"sequential.teacher = {self.teacher!r}, expected 'current' or 'original'")
        if bool(self.rehearsal_pairs) != bool(self.rehearsal_per_epoch):
            raise ValueError(
                f"sequential.rehearsal_pairs = {self.rehearsal_pairs} and rehearsal_per_epoch = "
                f"{self.rehearsal_per_epoch}, expected both 0 or both more: how many pairs of each context are kept, "
                "and how many of all kept ones an epoch goes over"
            )


class Interrupted(KeyboardInterrupt):
    """A stop was asked for; everything is saved."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked configuration: plain values and the dataclasses that pure code takes."""

    job: str
    seed: int
    model: str
    dtype: str
    base_weights: str
    remat: str
    attention: str
    prompt: str
    mesh: meshes.MeshConfig
    stall_limit_s: float
    targets: targets.TargetConfig
    generator: GeneratorConfig
    endpoint: EndpointConfig | None
    sequential: SequentialConfig
    lora: LoraConfig
    train: trainer.TrainConfig
    checkpoint_every: int
    eval_batch: int
    export_dtype: str

    def __post_init__(self):
        config = self.sequential
        again = config.rehearsal_pairs or config.imagined_per_epoch
        if self.job == "sequential" and self.train.teacher == "online" and again:
            raise ValueError(
                "train.teacher = 'online' with rehearsal or imagined pairs, expected 'stored': the model that read "
                "them is not there any more; leave train.teacher as it is, or set sequential.rehearsal_pairs, "
                "rehearsal_per_epoch and imagined_per_epoch to 0"
            )

    @property
    def int8(self) -> bool:
        """Whether the base's kernels are rounded to 8 bits."""
        return self.base_weights == "int8"


def texts_wanted(settings: Settings) -> int:
    """How many unrelated texts a run has use for."""
    fresh = settings.job == "sequential" and settings.sequential.fresh_texts
    injections = settings.sequential.length if fresh else 1
    return settings.targets.unrelated_per_epoch * settings.train.epochs * injections


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the phases of a job share."""

    settings: Settings
    recipe: dict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    base: hub.Pretrained | None  # None, and no prompt, only where a server writes pairs and nothing scores them
    prompt: Prompt | None
    contexts: list[Context]
    unrelated: list[str]
    general: list[str]

    @property
    def teacher(self) -> Decoder:
        # The kernel that reads long contexts; the other ways are for training only.
        attention = SPLASH if self.settings.attention == SPLASH else BLOCKS
        dtype, layout = DTYPES[self.settings.dtype], meshes.layout_of(self.mesh)
        return Decoder(self.base.config, dtype, layout=layout, attention=attention)

    @property
    def injected(self) -> Decoder:
        return self.teacher.clone(lora_scale=self.settings.lora.scale)

    @functools.cached_property
    def general_text(self) -> evaluate.General:
        """The general text as the base reads it: once for all that is measured against it."""
        return evaluate.read_general(self.teacher, {"params": self.base.params}, self.prompt, self.general)

    @property
    def student(self) -> Decoder:
        settings = self.settings
        return self.injected.clone(
            remat=settings.remat, attention=settings.attention, lora_dropout=settings.lora.dropout
        )


@dataclasses.dataclass(frozen=True)
class Injection:
    """What training on some contexts gave."""

    lora: dict
    steps: int
    resumed_from: int
    teacher_s: float
    train_s: float
    sentence_tokens: int
    fill: float  # share of the training rows' positions that held a token


def make_targets(run: Run, contexts: Sequence[Context]) -> list[targets.Sentence]:
    """The target sentences of one injection, of all kinds."""
    config, seed = run.settings.targets, run.settings.seed
    sentences = targets.qa_sentences(contexts, run.prompt, config)
    if config.tails_per_context:
        longest = run.settings.train.row_length - len(run.prompt.head)
        tails = targets.tail_sentences(contexts, run.prompt, config, seed, longest, run.settings.train.epochs)
        without = len(contexts) - len({tail.context for tail in tails})
        if without:
            logging.warning("%d of %d contexts are one sentence and have no tail", without, len(contexts))
        sentences += tails
    if not sentences and config.tails_per_context:
        raise ValueError(
            "there is nothing to learn: no context has qa_pairs or a second sentence for a tail to begin with; "
            "add qa_pairs to the contexts or set --config.targets.tail_cut=random"
        )
    if not sentences:
        raise ValueError(
            "there is nothing to learn: no context has qa_pairs and targets.tails_per_context is 0; "
            "add qa_pairs to the contexts or set --config.targets.tails_per_context=16"
        )
    if config.unrelated_per_epoch:
        wanted = config.unrelated_per_epoch * run.settings.train.epochs
        count = max(min(wanted, len(run.unrelated)), config.unrelated_per_epoch)
        sentences += targets.unrelated_sentences(run.unrelated, run.prompt, config, count, len(contexts), seed)
    if not targets.context_groups(sentences):
        raise ValueError(
            f"no token of any target sentence carries loss: targets.loss_tokens = {config.loss_tokens!r}, "
            f"answer_supervision = {config.answer_supervision}; give one of them a weight above 0"
        )
    return sentences


def choose_pairs(run: Run, contexts: Sequence[Context], directory: pathlib.Path) -> list[Context]:
    """Contexts with the pairs that are used: of the wanted shape, and as the teacher agrees.

    What the teacher answers is kept in teacher_answers.jsonl.
    """
    config = run.settings.targets
    chosen = list(contexts)
    if config.answer_shape != "any":
        chosen = [
            dataclasses.replace(
                context, qa_pairs=tuple(p for p in context.qa_pairs if answer_shape(p.answer) == config.answer_shape)
            )
            for context in chosen
        ]
    if config.agreement != "none":

        def ask(asked: list[Context]) -> list[list[dict]]:
            base = {"params": run.base.params}
            with_context, batch = True, run.settings.eval_batch
            return evaluate.answer_questions(run.teacher, base, run.prompt, asked, with_context, batch)

        path = directory / "teacher_answers.jsonl"
        chosen = agreeing_contexts(chosen, config.agreement, config.least_agreement, ask, path)
        chosen = [fitting_pairs(run, context) for context in chosen]
    if config.chooses_pairs:
        counts = [sum(len(context.qa_pairs) for context in each) for each in (contexts, chosen)]
        logging.info("%d of %d pairs are used", counts[1], counts[0])
    return chosen


def fitting_pairs(run: Run, context: Context) -> Context:
    """A context without the pairs that are longer than a training row."""

    return dataclasses.replace(context, qa_pairs=tuple(pair for pair in context.qa_pairs if fits(run, pair)))


def fits(run: Run, pair: QAPair) -> bool:
    """Whether a pair is no longer than a training row."""
    sentence = run.prompt.question(pair.question) + run.prompt.answer(pair.answer)
    return len(run.prompt.head) + len(sentence) <= run.settings.train.row_length


@contextlib.contextmanager
def deferred_stop(first: int):
    """Within it, Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once.

    Several processes stop together when one of them gets a SIGTERM; JAX listens for it.

    Args:
      first: steps done before. What this gives must be called once after every further one.
    """
    if several():
        steps = itertools.count(first + 1)
        yield lambda: preempted(next(steps))
        return
    asked: list[int] = []

    def on_signal(number, _):
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.warning("stopping after this step and saving; Ctrl-C again stops at once")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What an injection takes from those before it.

    Attributes:
      original: the model that teaches, if it is not the one that learns.
      rehearsal: further sentences with the states that their own teacher had.
      basis: what the adapter is kept orthogonal to (`trainer.project_lora`).
    """

    original: hub.Pretrained | None = None
    rehearsal: Rehearsal | None = None
    basis: dict | None = None


def inject(
    run: Run, contexts: Sequence[Context], directory: pathlib.Path, label: str = "", earlier: Earlier = Earlier()
) -> Injection:
    """Targets, teacher and training for some contexts together, in a directory of their own; resumes.

    Raises:
      Interrupted: a stop was asked for; the last step is saved.
      trainer.NotFiniteError: the loss is not finite.
    """
    settings, base = run.settings, run.base
    directory.mkdir(parents=True, exist_ok=True)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        first = checkpoints.latest() or 0
        done = checkpoints.read_record(first) if first else {"train_s": 0.0, "sentence_tokens": 0, "steps": None}
        if first == done["steps"]:
            lora = finished(checkpoints.restore(first, lora=fresh_adapter(run))["lora"], earlier)
            return Injection(lora, first, first, 0.0, done["train_s"], done["sentence_tokens"], done["fill"])
        began = time.perf_counter()
        contexts = choose_pairs(run, contexts, directory)
        sentences, first_slots, signal = read_teacher(run, contexts, directory, earlier)
        teacher_s = time.perf_counter() - began
        files.write_lines(directory / "targets.jsonl", (sentence.record for sentence in sentences))
        unrelated = settings.targets.unrelated_per_epoch
        plan = trainer.Plan(sentences, first_slots, run.prompt.head, settings.train, unrelated)
        steps = plan.steps
        logging.info(
            "%d sentences, %d steps of %d rows x %d tokens (%.0f%% filled); teacher read them in %.0f s",
            len(sentences), steps, settings.train.batch_rows, settings.train.row_length, 100 * plan.fill, teacher_s,
        )  # fmt: skip
        optimizer = trainer.make_optimizer(settings.train, steps)
        state = trainer.init_state(fresh_adapter(run), optimizer)
        state = meshes.put_same(run.mesh, state)
        if first:
            saved = checkpoints.restore(first, lora=state.lora, optimizer=state.opt_state)
            state = trainer.TrainState(saved["lora"], saved["optimizer"], put_step(run.mesh, first))
            logging.info("resuming from step %d of %d", first, steps)
        loss = trainer.LossConfig(settings.train.temperature, settings.train.loss_chunk)
        orthogonal = earlier.basis is not None
        parts = settings.train.accumulate
        step_function = trainer.compile_step(run.student, optimizer, run.mesh, loss, orthogonal, parts, settings.int8)
        if orthogonal:
            step_function = functools.partial(lambda step, *given: step(*given, earlier.basis), step_function)
        data = trainer.batches(plan, signal, run.mesh, settings.targets.answer_supervision > 0, first, parts)
        watch = Watch(run, plan, first, done, directory / "metrics.jsonl", label)
        with watch, deferred_stop(first) as stop_requested:
            state = trainer.fit(
                state, base.params, step_function, data, jax.random.key(settings.seed), watch.on_metrics,
                lambda step, state: checkpoints.save(step, state.lora, state.opt_state, watch.record()),
                settings.checkpoint_every, stop_requested,
            )  # fmt: skip
    if int(state.step) < steps:
        raise Interrupted(
            f"stopped and saved at step {int(state.step)} of {steps}; the same command goes on from there"
        )
    lora = finished(state.lora, earlier)
    return Injection(lora, steps, first, teacher_s, watch.train_s, watch.sentence_tokens, plan.fill)


def finished(lora: dict, earlier: Earlier) -> dict:
    """The adapter as it was used in training."""
    return lora if earlier.basis is None else trainer.project_lora(lora, earlier.basis)


def put_step(mesh, step: int) -> jax.Array:
    """A step number on the mesh, as TrainState holds it."""
    return meshes.put_same(mesh, np.int32(step))


def fresh_adapter(run: Run) -> dict:
    """The adapter that every injection starts from, on the mesh: a function of the seed."""
    drawn = _draw_adapter(run.base.params, np.uint32(run.settings.seed), run.settings.lora)
    return meshes.put_same(run.mesh, drawn)


@functools.partial(jax.jit, static_argnames="config")  # one program, whatever the seed
def _draw_adapter(params, seed, config):
    return init_lora(jax.random.fold_in(jax.random.key(seed), 1), params, config)


def teacher_reader(run: Run, original: hub.Pretrained | None = None) -> teacher.Reader:
    """How the base reads, or another model of its kind."""
    train, base = run.settings.train, original or run.base
    identity = f"{base.fingerprint} {run.settings.base_weights}"
    return teacher.Reader(
        run.teacher, {"params": base.params}, identity, tuple(run.prompt.head),
        run.mesh, train.batch_rows, train.row_length,
    )  # fmt: skip


def read_teacher(
    run: Run, contexts: Sequence[Context], directory: pathlib.Path, earlier: Earlier = Earlier()
) -> tuple[list[targets.Sentence], np.ndarray, trainer.Teacher]:
    """The target sentences, the first slot of each, and the teacher: its stored states, or itself if online."""
    sentences = make_targets(run, contexts)
    first_slots = targets.first_slots(sentences)
    prefixes = [run.prompt.context_prefix(context.context) for context in contexts]
    reader = teacher_reader(run, earlier.original)
    if run.settings.train.teacher == "online":
        signal = teacher.Online(reader, prefixes, sentences, first_slots)
    else:
        with tqdm(
            total=sum(bool(s.loss_tokens) for s in sentences),
            desc="teacher",
            unit="sentence",
            leave=False,
            disable=not is_first(),
        ) as bar:
            signal = teacher.teacher_store(reader, prefixes, sentences, directory / "teacher", progress=bar.update)
    least = run.settings.targets.least_confidence
    if least > 0:
        head = head_weight(run.base.params)
        kept = teacher.confident(sentences, teacher.answer_confidence(head, signal, sentences, first_slots), least)
        logging.info(
            "the teacher is confident of %d of %d sentences; the others are left out", len(kept), len(sentences)
        )
        sentences, first_slots = [sentences[i] for i in kept], first_slots[kept]
    if earlier.rehearsal is not None:
        again = earlier.rehearsal.sentences
        counts = [len(sentence.loss_tokens) for sentence in again]
        first_slots = np.concatenate([first_slots, len(signal) + np.cumsum([0, *counts[:-1]])])
        sentences, signal = [*sentences, *again], signal.with_states(earlier.rehearsal.states)
    return sentences, first_slots, signal


class Watch:
    """Progress bar, metrics.jsonl and running totals of one training run."""

    def __init__(self, run, plan, first, done, path, label):
        self._rate = trainer.learning_rate_schedule(run.settings.train, plan.steps)
        self.train_s, self.sentence_tokens = done["train_s"], done["sentence_tokens"]
        self._label, self._plan, self._first, self._path = label, plan, first, path

    def __enter__(self):
        self._log = MetricsLog(self._path, self._first)
        self._bar = tqdm(
            total=self._plan.steps, initial=self._first, desc=self._label or "train", unit="step",
            disable=not is_first(),
        )  # fmt: skip
        return self

    def __exit__(self, *raised):
        self._bar.close()
        self._log.close()

    def on_metrics(self, step: int, values: dict) -> None:
        """One line and one tick per step."""
        progressed()
        tokens = self._plan.sentence_tokens(step - 1)
        self.train_s += values["seconds"]
        self.sentence_tokens += tokens
        rate = float(self._rate(step - 1))
        self._log.write({"step": step, **values, "learning_rate": rate, "sentence_tokens": tokens})
        speed = f"{self.sentence_tokens / self.train_s:.0f}"
        self._bar.set_postfix({"loss": f"{values['loss']:.3f}", "sentence tokens/s": speed}, refresh=False)
        self._bar.update()

    def record(self) -> dict:
        """What a checkpoint keeps beside the state."""
        return {
            "train_s": self.train_s,
            "sentence_tokens": self.sentence_tokens,
            "steps": self._plan.steps,
            "fill": self._plan.fill,
        }
