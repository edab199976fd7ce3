"""The jobs, from a configuration to a work directory. The only module that touches a ConfigDict.

    load -> bounds -> targets -> teacher -> train -> evaluate -> merge -> report

Every phase leaves its result in a file, or in a checkpoint; the same command goes on where it stopped.
"""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import signal
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from selfparam_jax import evaluate, files, hub, report, targets, teacher, trainer, weights
from selfparam_jax import mesh as meshes
from selfparam_jax.checkpoint import Checkpoints
from selfparam_jax.contexts import Context, Question, load_contexts, load_texts
from selfparam_jax.lora import LoraConfig, init_lora, merge_lora
from selfparam_jax.model import PADDING, Decoder, head_weight
from selfparam_jax.packing import check_sizes
from selfparam_jax.prompts import Prompt
from selfparam_jax.workdir import MetricsLog, claim, flatten

SYSTEMS = ("base_q", "base_cq", "injected")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class Interrupted(KeyboardInterrupt):
    """A stop was asked for; everything is saved."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """A checked configuration: plain values and the dataclasses that pure code takes."""

    job: str
    seed: int
    model: str
    dtype: str
    remat: bool
    prompt: str
    targets: targets.TargetConfig
    lora: LoraConfig
    train: trainer.TrainConfig
    checkpoint_every: int
    eval_batch: int
    export_dtype: str


@dataclasses.dataclass(frozen=True)
class Run:
    """All that the phases of a job share."""

    settings: Settings
    recipe: dict
    workdir: pathlib.Path
    mesh: jax.sharding.Mesh
    base: hub.Pretrained
    prompt: Prompt
    contexts: list[Context]
    unrelated: list[str]
    general: list[str]

    @property
    def teacher(self) -> Decoder:
        return Decoder(self.base.config, DTYPES[self.settings.dtype])

    @property
    def student(self) -> Decoder:
        lora = self.settings.lora
        return self.teacher.clone(remat=self.settings.remat, lora_scale=lora.scale, lora_dropout=lora.dropout)


@dataclasses.dataclass(frozen=True)
class Injection:
    """What training on some contexts gave."""

    lora: dict
    steps: int
    resumed_from: int
    teacher_s: float
    train_s: float
    sentence_tokens: int


def read_settings(config) -> Settings:
    """Checks a ConfigDict. Raises ValueError for a value that is not possible."""
    if config.job not in JOBS:
        raise ValueError(f"job = {config.job!r}, expected one of {', '.join(sorted(JOBS))}")
    for name, value, allowed in (
        ("dtype", config.dtype, tuple(DTYPES)),
        ("export_dtype", config.export_dtype, (*DTYPES, "")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}, expected one of {allowed}")
    train = config.train.to_dict()
    checkpoint_every = train.pop("checkpoint_every")
    settings = Settings(
        job=config.job,
        seed=config.seed,
        model=config.model,
        dtype=config.dtype,
        remat=config.remat,
        prompt=config.prompt,
        targets=targets.TargetConfig(**config.targets),
        lora=LoraConfig(**{**config.lora, "targets": tuple(config.lora.targets)}),
        train=trainer.TrainConfig(**train, seed=config.seed),
        checkpoint_every=checkpoint_every,
        eval_batch=config.eval.batch_size,
        export_dtype=config.export_dtype,
    )
    trainer.learning_rate_schedule(settings.train, 1)
    return settings


def prepare(config, workdir: str) -> Run:
    """Reads and checks all input, loads the model, and only then touches the work directory."""
    settings = read_settings(config)
    contexts = load_contexts(config.contexts, config.limit, tuple(config.context_ids))
    general = load_texts(config.eval.general) if config.eval.general else []
    unrelated = load_texts(config.unrelated) if settings.targets.unrelated_per_epoch else []
    mesh = meshes.make_mesh()
    meshes.check_rows(mesh, settings.train.batch_rows, "train.batch_rows")
    base = hub.load_pretrained(settings.model, DTYPES[settings.dtype], lambda path: meshes.replicated(mesh))
    prompt = Prompt(settings.prompt, base.tokenizer)
    recipe = {name: value for name, value in flatten(config.to_dict()).items() if "." in name}
    run = Run(settings, recipe, pathlib.Path(workdir), mesh, base, prompt, contexts, unrelated, general)
    check_lengths(run)
    for together in [contexts] if settings.job == "batch" else [[context] for context in contexts]:
        pieces = trainer.student_pieces(make_targets(run, together), prompt.head)
        check_sizes(pieces, settings.train.row_length, settings.train.loss_length)
    claim(run.workdir, config.to_dict(), base.fingerprint)
    return run


def check_lengths(run: Run) -> None:
    """Raises ValueError for a context that does not fit into the model together with its questions."""
    limit = run.base.config.max_position_embeddings
    for context in run.contexts:
        prefix = len(run.prompt.context_prefix(context.context))
        sentences = [len(run.prompt.question(p.question) + run.prompt.answer(p.answer)) for p in context.qa_pairs]
        asked = [len(run.prompt.question(q.question)) + evaluate.SHORT_TOKENS for q in context.questions]
        longest = max([0, *sentences, *asked])
        if prefix + longest > limit:
            raise ValueError(
                f"context {context.id!r}: {prefix} tokens of context (prompt format included) and {longest} of "
                f"question and answer exceed the model's limit of {limit} (max_position_embeddings); shorten it "
                "or split it into several contexts"
            )


def make_targets(run: Run, contexts: Sequence[Context]) -> list[targets.Sentence]:
    """The target sentences of one injection, of all kinds."""
    config, seed = run.settings.targets, run.settings.seed
    sentences = targets.qa_sentences(contexts, run.prompt, config)
    if config.tails_per_context:
        longest = min(run.settings.train.row_length - len(run.prompt.head), run.settings.train.loss_length)
        sentences += targets.tail_sentences(contexts, run.prompt, config, seed, longest)
    if not sentences:
        raise ValueError(
            "there is nothing to learn: no context has qa_pairs and targets.tails_per_context is 0; "
            "add qa_pairs to the contexts or set --config.targets.tails_per_context=16"
        )
    if config.unrelated_per_epoch:
        wanted = config.unrelated_per_epoch * run.settings.train.epochs
        count = max(min(wanted, len(run.unrelated)), config.unrelated_per_epoch)
        sentences += targets.unrelated_sentences(run.unrelated, run.prompt, config, count, len(contexts), seed)
    return sentences


@contextlib.contextmanager
def deferred_stop():
    """Within it, Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once."""
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


def inject(run: Run, contexts: Sequence[Context], directory: pathlib.Path, label: str = "") -> Injection:
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
            lora = checkpoints.restore(first, lora=fresh_adapter(run))["lora"]
            return Injection(lora, first, first, 0.0, done["train_s"], done["sentence_tokens"])
        began = time.perf_counter()
        sentences, store = read_teacher(run, contexts)
        teacher_s = time.perf_counter() - began
        files.write_lines(directory / "targets.jsonl", (sentence.record for sentence in sentences))
        rows = trainer.plan_rows(sentences, run.prompt.head, settings.train, settings.targets.unrelated_per_epoch)
        steps = len(rows.input_ids) // settings.train.batch_rows
        logging.info(
            "%d sentences, %d steps of %d rows x %d tokens (%.0f%% filled); teacher read them in %.0f s",
            len(sentences), steps, settings.train.batch_rows, settings.train.row_length, 100 * rows.fill, teacher_s,
        )  # fmt: skip
        optimizer = trainer.make_optimizer(settings.train, steps)
        state = jax.device_put(trainer.init_state(fresh_adapter(run), optimizer), meshes.replicated(run.mesh))
        if first:
            saved = checkpoints.restore(first, lora=state.lora, optimizer=state.opt_state)
            state = trainer.TrainState(saved["lora"], saved["optimizer"], put_step(run.mesh, first))
            logging.info("resuming from step %d of %d", first, steps)
        step_function = trainer.compile_step(
            run.student, optimizer, run.mesh, settings.train.temperature, settings.targets.answer_supervision > 0
        )
        data = trainer.batches(rows, store, settings.train, run.mesh, first)
        watch = Watch(run, rows, steps, first, done, directory / "metrics.jsonl", label)
        with watch, deferred_stop() as stop_requested:
            state = trainer.fit(
                state, base.params, step_function, data, jax.random.key(settings.seed), watch.on_metrics,
                lambda step, state: checkpoints.save(step, state.lora, state.opt_state, watch.record()),
                settings.checkpoint_every, stop_requested,
            )  # fmt: skip
    if int(state.step) < steps:
        raise Interrupted(
            f"stopped and saved at step {int(state.step)} of {steps}; the same command goes on from there"
        )
    return Injection(state.lora, steps, first, teacher_s, watch.train_s, watch.sentence_tokens)


def put_step(mesh, step: int) -> jax.Array:
    """A step number on the mesh, as TrainState holds it."""
    return jax.device_put(np.int32(step), meshes.replicated(mesh))


def fresh_adapter(run: Run) -> dict:
    """The adapter that every injection starts from, on the mesh: a function of the seed."""
    key = jax.random.fold_in(jax.random.key(run.settings.seed), 1)
    return jax.device_put(init_lora(key, run.base.params, run.settings.lora), meshes.replicated(run.mesh))


def read_teacher(run: Run, contexts: Sequence[Context]) -> tuple[list[targets.Sentence], np.ndarray]:
    """The target sentences, and the teacher's hidden states for their loss tokens, with a progress bar."""
    sentences = make_targets(run, contexts)
    prefixes = [run.prompt.context_prefix(context.context) for context in contexts]
    with tqdm(total=len(sentences), desc="teacher", unit="sentence", leave=False) as bar:
        store = teacher.teacher_states(
            run.teacher, {"params": run.base.params}, prefixes, run.prompt.head, sentences,
            run.settings.train.row_length, progress=bar.update,
        )  # fmt: skip
    least = run.settings.targets.least_confidence
    if least > 0:
        confidence = teacher.answer_confidence(head_weight(run.base.params), store, sentences)
        kept, store = teacher.keep_confident(sentences, store, confidence, least)
        logging.info(
            "the teacher is confident of %d of %d sentences; the others are left out", len(kept), len(sentences)
        )
        sentences = kept
    return sentences, store


class Watch:
    """Progress bar, metrics.jsonl and running totals of one training run."""

    def __init__(self, run, rows, steps, first, done, path, label):
        self._rate = trainer.learning_rate_schedule(run.settings.train, steps)
        # A sentence token is one that belongs to a sentence: padding and each sentence's head do not count.
        heads = len(run.prompt.head) * rows.segments.max(axis=1)
        per_row = (rows.segments != PADDING).sum(axis=1) - heads
        self._tokens = per_row.reshape(steps, -1).sum(axis=1)
        self.train_s, self.sentence_tokens = done["train_s"], done["sentence_tokens"]
        self._label, self._steps, self._first, self._path = label, steps, first, path

    def __enter__(self):
        self._log = MetricsLog(self._path, self._first)
        self._bar = tqdm(total=self._steps, initial=self._first, desc=self._label or "train", unit="step")
        return self

    def __exit__(self, *_):
        self._bar.close()
        self._log.close()

    def on_metrics(self, step: int, values: dict) -> None:
        """One line and one tick per step."""
        tokens = int(self._tokens[step - 1])
        self.train_s += values["seconds"]
        self.sentence_tokens += tokens
        rate = float(self._rate(step - 1))
        self._log.write({"step": step, **values, "learning_rate": rate, "sentence_tokens": tokens})
        speed = f"{self.sentence_tokens / self.train_s:.0f}"
        self._bar.set_postfix({"loss": f"{values['loss']:.3f}", "sentence tokens/s": speed}, refresh=False)
        self._bar.update()

    def record(self) -> dict:
        """What a checkpoint keeps beside the state."""
        return {"train_s": self.train_s, "sentence_tokens": self.sentence_tokens, "steps": self._steps}


def ask_everything(run: Run, variables: dict, contexts: Sequence[Context], with_context: bool):
    """Answers of one system to all questions of some contexts."""
    return evaluate.answer_questions(
        run.teacher, variables, run.prompt, contexts, with_context, run.settings.eval_batch
    )


def measure_bounds(run: Run) -> dict[str, list[list[dict]]]:
    """Base Q and Base C+Q on every question; kept in bounds.json."""
    path = run.workdir / "bounds.json"
    if path.exists():
        return files.read_json(path)
    bounds = {}
    for system, with_context in (("base_q", False), ("base_cq", True)):
        bounds[system] = ask_everything(run, {"params": run.base.params}, run.contexts, with_context)
        scores = evaluate.summarize(bounds[system])
        if scores:
            logging.info("%s: F1 %.3f over %d contexts", system, scores["f1"], len(run.contexts))
    files.write_json(path, bounds)
    return bounds


def evaluate_injected(run: Run, contexts: Sequence[Context], merged: dict) -> tuple[list[list[dict]], dict]:
    """Answers of the merged model, and its drift from the base."""
    answers = ask_everything(run, {"params": merged}, contexts, with_context=False)
    if not run.general:
        return answers, {"perplexity_before": None, "perplexity_after": None, "kl": None}
    drift = evaluate.measure_drift(run.teacher, run.base.params, merged, run.prompt, run.general)
    return answers, drift


def predictions(contexts: Sequence[Context], systems: dict[str, list[list[dict]]]) -> list[dict]:
    """The records of predictions.jsonl."""
    records = []
    for c, context in enumerate(contexts):
        for q, question in enumerate(context.questions):
            answers = {system: results[c][q] for system, results in systems.items()}
            golds = list(question.answers)
            records.append({"context": context.id, "question": question.question, "answers": golds, **answers})
    return records


def write_results(run: Run, systems: dict, drift: dict, timing: dict, steps: int, extra: dict) -> dict:
    """predictions.jsonl, results.json and the report."""
    per_context = []
    for c, context in enumerate(run.contexts):
        means = {s: (evaluate.summarize([systems[s][c]]) or {"f1": None})["f1"] for s in SYSTEMS}
        per_context.append({"id": context.id, "title": context.title, **means})
    results = {
        "job": run.settings.job,
        "model": run.base.name,
        "prompt": run.settings.prompt,
        "num_contexts": len(run.contexts),
        "num_questions": sum(len(context.questions) for context in run.contexts),
        "scores": {system: evaluate.summarize(systems[system]) for system in SYSTEMS},
        "drift": drift,
        "timing": timing,
        "steps": steps,
        "per_context": per_context,
        "recipe": run.recipe,
        **extra,
    }
    files.write_lines(run.workdir / "predictions.jsonl", predictions(run.contexts, systems))
    files.write_json(run.workdir / "results.json", results)
    report.write_report(run.workdir)
    return files.read_json(run.workdir / "results.json")


def export_merged(run: Run, merged: dict) -> None:
    """The merged model as a Hugging Face directory, WORKDIR/merged."""
    target, temporary = run.workdir / "merged", run.workdir / ".merged.tmp"
    if target.exists():
        return
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    dtype = DTYPES[run.settings.export_dtype]
    weights.save_safetensors(merged, run.base.config, temporary, dtype)
    run.base.hf_config.dtype = run.settings.export_dtype
    run.base.hf_config.save_pretrained(temporary)
    run.base.tokenizer.save_pretrained(temporary)
    temporary.rename(target)


def speed(train_s: float, sentence_tokens: int) -> float:
    """Sentence tokens per second of training."""
    return sentence_tokens / train_s if train_s else 0.0


def run_batch(run: Run, began: float) -> dict:
    """All contexts into one set of weights, then all their questions (METHOD section 3)."""
    loaded = time.perf_counter()
    bounds = measure_bounds(run)
    bounded = time.perf_counter()
    done = inject(run, run.contexts, run.workdir)
    merged = merge_lora(run.base.params, done.lora, run.settings.lora.scale)
    evaluating = time.perf_counter()
    answers, drift = evaluate_injected(run, run.contexts, merged)
    evaluated = time.perf_counter()
    if run.settings.export_dtype:
        export_merged(run, merged)
    timing = {
        "total_s": time.perf_counter() - began,
        "load_s": loaded - began,
        "bounds_s": bounded - loaded,
        "teacher_s": done.teacher_s,
        "train_s": done.train_s,
        "evaluate_s": evaluated - evaluating,
        "sentence_tokens_per_s": speed(done.train_s, done.sentence_tokens),
    }
    extra = {"resumed_from": done.resumed_from} if done.resumed_from else {}
    return write_results(run, {**bounds, "injected": answers}, drift, timing, done.steps, extra)


def run_single(run: Run, began: float) -> dict:
    """Each context on its own from the untouched base; mean and spread over contexts (METHOD section 3)."""
    loaded = time.perf_counter()
    bounds = measure_bounds(run)
    bounded = time.perf_counter()
    totals = {"teacher_s": 0.0, "train_s": 0.0, "evaluate_s": 0.0}
    tokens = steps = 0
    injected, drifts = [], []
    for index, context in enumerate(run.contexts):
        directory = injection_directory(run, index)
        finished = directory / "injected.json"
        if finished.exists():
            part = files.read_json(finished)
        else:
            part = inject_single(run, context, directory, f"{index + 1}/{len(run.contexts)} {context.id}")
            files.write_json(finished, part)
        injected.append(part["answers"])
        drifts.append(part["drift"])
        totals = {name: totals[name] + part[name] for name in totals}
        tokens, steps = tokens + part["sentence_tokens"], steps + part["steps"]
    gather_single(run)
    timing = {
        "total_s": time.perf_counter() - began,
        "load_s": loaded - began,
        "bounds_s": bounded - loaded,
        **totals,
        "sentence_tokens_per_s": speed(totals["train_s"], tokens),
    }
    f1 = [evaluate.summarize([answers])["f1"] for answers in injected if answers]
    spread = {}
    if f1:
        spread = {"f1_mean": np.mean(f1), "f1_std": np.std(f1), "f1_min": min(f1), "f1_max": max(f1)}
    drift = {name: mean_or_none([entry[name] for entry in drifts]) for name in drifts[0]}
    extra = {"spread": {name: float(value) for name, value in spread.items()}}
    return write_results(run, {**bounds, "injected": injected}, drift, timing, steps, extra)


def injection_directory(run: Run, index: int) -> pathlib.Path:
    """Where job `single` works on one context."""
    return run.workdir / "contexts" / f"{index:03d}"


def inject_single(run: Run, context: Context, directory: pathlib.Path, label: str) -> dict:
    """One context from the untouched base: trained, merged, asked; what results need of it."""
    done = inject(run, [context], directory, label)
    began = time.perf_counter()
    merged = merge_lora(run.base.params, done.lora, run.settings.lora.scale)
    answers, drift = evaluate_injected(run, [context], merged)
    return {
        "answers": answers[0],
        "drift": drift,
        "teacher_s": done.teacher_s,
        "train_s": done.train_s,
        "evaluate_s": time.perf_counter() - began,
        "sentence_tokens": done.sentence_tokens,
        "steps": done.steps,
    }


def gather_single(run: Run) -> None:
    """The work directory's targets.jsonl and metrics.jsonl: those of all contexts, one after another."""
    for name in ("targets.jsonl", "metrics.jsonl"):
        lines = []
        for index, context in enumerate(run.contexts):
            for record in files.read_lines(injection_directory(run, index) / name):
                lines.append({**record, "context": record.get("context", context.id)})
        files.write_lines(run.workdir / name, lines)


def mean_or_none(values: list) -> float | None:
    """Mean, or None where nothing was measured."""
    return None if None in values else float(np.mean(values))


JOBS = {"batch": run_batch, "single": run_single}


def run_job(config, workdir: str) -> dict:
    """Runs the configured job in a work directory, going on where an earlier run of it stopped.

    Returns:
      the content of results.json.

    Raises:
      ValueError, OSError: input that cannot be used; nothing was written.
      Interrupted, trainer.NotFiniteError: training stopped; what was done is saved.
    """
    began = time.perf_counter()
    run = prepare(config, workdir)
    finished = run.workdir / "results.json"
    if finished.exists():
        logging.info("%s is complete; nothing to do", run.workdir)
        return files.read_json(finished)
    logging.info("%s: %d contexts, model %s", run.settings.job, len(run.contexts), run.base.name)
    return JOBS[run.settings.job](run, began)


def closest_context(question: str, contexts: Sequence[Context]) -> int:
    """Index of the context that shares the most distinctive words with a question (summed inverse frequency)."""
    documents = [set(evaluate.normalize(f"{context.title} {context.context}").split()) for context in contexts]

    def weight(word: str) -> float:
        return math.log((1 + len(documents)) / (1 + sum(word in document for document in documents)))

    asked = set(evaluate.normalize(question).split())
    scores = [sum(weight(word) for word in asked & document) for document in documents]
    return int(np.argmax(scores))


def read_adapter(run: Run, directory: pathlib.Path) -> dict:
    """The newest adapter of a directory that `inject` worked in."""
    if not (directory / "checkpoints").exists():
        raise ValueError(f"{directory} has no checkpoints yet; run the job first")
    with Checkpoints(directory / "checkpoints") as checkpoints:
        step = checkpoints.latest()
        if step is None:
            raise ValueError(f"{directory / 'checkpoints'} has no complete checkpoint yet; run the job first")
        return checkpoints.restore(step, lora=fresh_adapter(run))["lora"]


def ask(workdir: str, questions: Sequence[str], context_id: str | None = None) -> list[dict]:
    """Answers of the base, the base with a document, and the injected model, and the document's id.

    Raises:
      ValueError: not a work directory, nothing trained yet, or no context of that id.
    """
    path = pathlib.Path(workdir)
    if not (path / "config.json").exists():
        raise ValueError(f"{workdir} is not a work directory (no config.json); give the --workdir of a job")
    run = prepare(ConfigDict(files.read_json(path / "config.json")["config"]), workdir)
    ids = [context.id for context in run.contexts]
    if context_id is not None and context_id not in ids:
        raise ValueError(f"--context={context_id!r}, but this run's documents are {', '.join(ids)}")
    answers, injected = [], {}
    for question in questions:
        index = closest_context(question, run.contexts) if context_id is None else ids.index(context_id)
        directory = path if run.settings.job == "batch" else injection_directory(run, index)
        if directory not in injected:  # one for all questions of a batch
            injected = {directory: merge_lora(run.base.params, read_adapter(run, directory), run.settings.lora.scale)}
        asked = [dataclasses.replace(run.contexts[index], questions=(Question(question, ("",)),))]
        base = {"params": run.base.params}
        results = {
            "base_q": ask_everything(run, base, asked, with_context=False),
            "base_cq": ask_everything(run, base, asked, with_context=True),
            "injected": ask_everything(run, {"params": injected[directory]}, asked, with_context=False),
        }
        answers.append({name: found[0][0]["answer"] for name, found in results.items()} | {"document": ids[index]})
    return answers
