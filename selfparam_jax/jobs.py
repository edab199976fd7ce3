"""The jobs, from a configuration to a work directory. The only module that touches a ConfigDict.

    load -> bounds -> targets -> teacher -> train -> evaluate -> merge -> report

Every phase leaves its result in a file, or in a checkpoint; the same command goes on where it stopped.
"""

import collections
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from selfparam_jax import (
    authoring,
    backend,
    corpora,
    evaluate,
    files,
    hub,
    report,
    sequential,
    sequential_report,
    targets,
    trainer,
)
from selfparam_jax import mesh as meshes
from selfparam_jax.attention import ATTENTION, BLOCKS, check_backend, runs_on
from selfparam_jax.checkpoint import Checkpoints
from selfparam_jax.contexts import Context, Question, load_texts
from selfparam_jax.endpoint import EndpointConfig
from selfparam_jax.examination import ask_everything, evaluate_injected, measure_bounds
from selfparam_jax.export import export_merged
from selfparam_jax.generator import GeneratorConfig, read_written, sift, with_written_pairs, written_about
from selfparam_jax.injection import (
    DTYPES,
    Run,
    SequentialConfig,
    Settings,
    fitting_pairs,
    fresh_adapter,
    inject,
    make_targets,
    texts_wanted,
)
from selfparam_jax.inspection import inspect_pairs
from selfparam_jax.ledger import Ledger
from selfparam_jax.lora import LoraConfig
from selfparam_jax.model import REMAT
from selfparam_jax.packing import check_sizes
from selfparam_jax.processes import Watchdog, check_shared
from selfparam_jax.prompts import Prompt
from selfparam_jax.workdir import claim, flatten

SYSTEMS = ("base_q", "base_cq", "injected")
# How a server is asked does not change what it answers: these may differ when a job goes on.
_HOW_TO_ASK = "base_url key_variable concurrency retries timeout_s budget price_in price_out token_budget"
# Nor does where it runs.
_WHERE = ("mesh.data", "mesh.fsdp", "mesh.tensor", "mesh.stall_limit_s")
FREE = (*(f"endpoint.{name}" for name in _HOW_TO_ASK.split()), *_WHERE)
SELF = "self"  # config.unrelated: the model draws the texts itself


def read_settings(config) -> Settings:
    """Checks a ConfigDict. Raises ValueError for a value that is not possible."""
    if config.job not in JOBS:
        raise ValueError(f"job = {config.job!r}, expected one of {', '.join(sorted(JOBS))}")
    for name, value, allowed in (
        ("dtype", config.dtype, tuple(DTYPES)),
        ("export_dtype", config.export_dtype, (*DTYPES, "")),
        ("base_weights", config.base_weights, ("float", "int8")),
        ("remat", config.remat, tuple(REMAT)),
        ("attention", config.attention, ATTENTION),
    ):
        if value not in allowed:
            raise ValueError(f"{name} = {value!r}, expected one of {allowed}")
    if config.base_weights == "int8" and config.job == "sequential":
        raise ValueError(
            "base_weights = 'int8' with job 'sequential', expected 'float': every injection is merged into the "
            "weights that teach the next one, and 8 bits would lose it"
        )
    wanted, train = config.targets.to_dict(), config.train.to_dict()
    generator_name = wanted.pop("generator")
    generator_fields = {**config.generator, "kinds": tuple(config.generator.kinds)}
    server = {**config.endpoint, "omit": tuple(config.endpoint.omit)}
    checkpoint_every = train.pop("checkpoint_every")
    sizes = config.mesh.to_dict()
    stall_limit_s = sizes.pop("stall_limit_s")
    settings = Settings(
        job=config.job,
        seed=config.seed,
        model=config.model,
        dtype=config.dtype,
        base_weights=config.base_weights,
        remat=config.remat,
        attention=config.attention,
        prompt=config.prompt,
        mesh=meshes.MeshConfig(**sizes),
        stall_limit_s=stall_limit_s,
        targets=targets.TargetConfig(**wanted),
        generator=GeneratorConfig(
            generator_name, **generator_fields, answer_shape=config.targets.answer_shape, seed=config.seed
        ),
        endpoint=EndpointConfig(**server) if generator_name == "endpoint" else None,
        sequential=SequentialConfig(**config.sequential),
        lora=LoraConfig(**{**config.lora, "targets": tuple(config.lora.targets)}),
        train=trainer.TrainConfig(**train, seed=config.seed),
        checkpoint_every=checkpoint_every,
        eval_batch=config.eval.batch_size,
        export_dtype=config.export_dtype,
    )
    trainer.learning_rate_schedule(settings.train, 1)
    return settings


def given_contexts(config, load: Callable[[], hub.Pretrained]) -> list[Context]:
    """The contexts of a configuration, as their source has them.

    Args:
      load: loads the model; only called for a data set that is chosen by the length of its answers.
    """

    def count_tokens(text: str) -> int:
        return len(load().tokenizer(text, add_special_tokens=False)["input_ids"])

    return corpora.read_contexts(config.contexts, config.limit, tuple(config.context_ids), count_tokens)


def prepare(config, workdir: str) -> Run:
    """Reads and checks all input, loads the model, and only then touches the work directory."""
    settings = read_settings(config)
    check_backend(settings.attention, jax.default_backend())
    unrelated = read_unrelated(config, settings)
    mesh = meshes.make_mesh(config=settings.mesh)
    each = settings.train.batch_rows // settings.train.accumulate
    meshes.check_rows(mesh, each, "train.batch_rows / train.accumulate")
    run = dataclasses.replace(load_run(config, settings, workdir, mesh), unrelated=unrelated)
    check_targets(run)
    check_shared(run.workdir)
    claim(run.workdir, config.to_dict(), run.base.fingerprint, FREE)
    return run


def load_run(config, settings: Settings, workdir: str, mesh: jax.sharding.Mesh) -> Run:
    """The contexts and the model, without what only training reads."""
    load = model_loader(settings, mesh)
    contexts = given_contexts(config, load)
    if settings.job == "sequential":
        contexts = contexts_in_sequences(settings.sequential, contexts)
    if settings.generator.generator == "none" and settings.generator.file:  # written before, by whatever model
        contexts = with_written_pairs(contexts, read_written(settings.generator.file), settings.generator)
    general = load_texts(config.eval.general) if config.eval.general else []
    base = load()
    prompt = Prompt(settings.prompt, base.tokenizer)
    # What makes the result: the same injection elsewhere is the same entry of a ledger.
    recipe = {name: v for name, v in flatten(config.to_dict()).items() if "." in name and name not in FREE}
    run = Run(settings, recipe, pathlib.Path(workdir), mesh, base, prompt, contexts, [], general)
    if settings.targets.long_pairs == "skip":
        run = dataclasses.replace(run, contexts=[fitting_pairs(run, context) for context in contexts])
        before, after = (sum(len(c.qa_pairs) for c in each) for each in (contexts, run.contexts))
        logging.info("%d of %d pairs are longer than a row and left out", before - after, before)
    check_lengths(run)
    return run


def contexts_in_sequences(config: SequentialConfig, contexts: list[Context]) -> list[Context]:
    """As many contexts as the sequences need."""
    needed = config.length * config.sequences
    if len(contexts) < needed:
        raise ValueError(
            f"{config.sequences} sequences of {config.length} contexts need {needed}, but there are {len(contexts)}; "
            "lower sequential.length or sequential.sequences, or give more contexts"
        )
    return contexts[:needed]


def model_loader(settings: Settings, mesh) -> Callable[[], hub.Pretrained]:
    """Loads the model at the first call."""
    return functools.cache(
        lambda: hub.load_pretrained(settings.model, DTYPES[settings.dtype], mesh, int8=settings.int8)
    )


def read_unrelated(config, settings: Settings) -> list[str]:
    """The unrelated texts of all epochs, or as many as there are; none yet if the model is to draw them itself."""
    each = settings.targets.unrelated_per_epoch
    if not each or config.unrelated == SELF:
        return []
    return corpora.read_texts(config.unrelated, texts_wanted(settings), settings.seed, fewest=each)


def check_targets(run: Run) -> None:
    """Raises ValueError if the target sentences cannot be made, as far as that is known before they are written."""
    settings = run.settings
    if settings.generator.generator != "none":
        authoring.check_writer(run)
        return
    if not run.unrelated:  # not there yet; they are cut to a length that is known
        check_sizes([len(run.prompt.head) + settings.targets.unrelated_tokens], settings.train.row_length)
        known = dataclasses.replace(settings.targets, unrelated_per_epoch=0)
        run = dataclasses.replace(run, settings=dataclasses.replace(settings, targets=known))
    for together in [run.contexts] if settings.job == "batch" else [[context] for context in run.contexts]:
        lengths = [len(run.prompt.head) + len(sentence.ids) for sentence in make_targets(run, together)]
        check_sizes(lengths, settings.train.row_length)


def with_written_texts(config, run: Run) -> Run:
    """The run with all that is written for it: pairs, and unrelated text."""
    if run.settings.generator.generator != "none":
        path = pathlib.Path(run.settings.generator.file or run.workdir / "pairs.jsonl")
        run = dataclasses.replace(run, contexts=authoring.contexts_with_pairs(run, path))
    if config.unrelated == SELF and run.settings.targets.unrelated_per_epoch:
        run = authoring.with_own_unrelated(run, run.workdir / "unrelated.jsonl")
    return run


def write_targets(config, path: str) -> dict:
    """Writes pairs about the configured contexts into a file, without training; goes on with what is in it.

    Returns:
      counts: contexts, and of the pairs those of each verdict (`generator.sift`), "written" being all.

    Raises:
      ValueError, OSError: input that cannot be used.
    """
    settings = read_settings(config)
    if settings.generator.generator == "none":
        settings = dataclasses.replace(settings, generator=dataclasses.replace(settings.generator, generator="local"))
    start_backend(config.compilation_cache)
    mesh = meshes.make_mesh(config=settings.mesh)
    load = model_loader(settings, mesh)
    contexts = given_contexts(config, load)
    needed = settings.generator.generator == "local" or settings.generator.teacher_scores
    base = load() if needed else None
    prompt = Prompt(settings.prompt, base.tokenizer) if base else None
    run = Run(settings, {}, pathlib.Path(path).parent, mesh, base, prompt, contexts, [], [])
    if base:
        check_lengths(run)
    authoring.check_writer(run)
    authoring.contexts_with_pairs(run, pathlib.Path(path))
    written = read_written(path)
    counts = collections.Counter(contexts=len(contexts))
    for context in contexts:
        counts.update(sift(written_about(context, written), context.qa_pairs, settings.generator)[1])
    return dict(counts)


def inspect_targets(config, path: str, count: int) -> str:
    """A readable sample of a pairs file: up to `count` pairs per configured context, with scores and verdicts."""
    settings = read_settings(config)
    contexts = given_contexts(config, model_loader(settings, meshes.make_mesh(config=settings.mesh)))
    return inspect_pairs(contexts, read_written(path), settings.generator, count, settings.seed)


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


def write_results(run: Run, systems: dict, drift: dict, timing: dict, steps: int, fill: float, extra: dict) -> dict:
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
        "fill": fill,
        "compilations": dataclasses.asdict(start_backend(cache=True)),
        "per_context": per_context,
        "recipe": run.recipe,
        **extra,
    }
    files.write_lines(run.workdir / "predictions.jsonl", evaluate.predictions(run.contexts, systems))
    files.write_json(run.workdir / "results.json", results)
    report.write_report(run.workdir)
    return files.read_json(run.workdir / "results.json")


def speed(train_s: float, sentence_tokens: int) -> float:
    """Sentence tokens per second of training."""
    return sentence_tokens / train_s if train_s else 0.0


def run_batch(run: Run, began: float) -> dict:
    """All contexts into one set of weights, then all their questions (METHOD section 3)."""
    loaded = time.perf_counter()
    bounds = measure_bounds(run)
    bounded = time.perf_counter()
    done = inject(run, run.contexts, run.workdir)
    evaluating = time.perf_counter()
    answers, drift = evaluate_injected(run, run.contexts, done.lora)
    evaluated = time.perf_counter()
    if run.settings.export_dtype:
        export_merged(run, [(done.lora, run.settings.lora.scale)])
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
    return write_results(run, {**bounds, "injected": answers}, drift, timing, done.steps, done.fill, extra)


def run_single(run: Run, began: float) -> dict:
    """Each context on its own from the untouched base; mean and spread over contexts (METHOD section 3)."""
    loaded = time.perf_counter()
    bounds = measure_bounds(run)
    bounded = time.perf_counter()
    totals = {"teacher_s": 0.0, "train_s": 0.0, "evaluate_s": 0.0}
    tokens = steps = 0
    injected, drifts, fills = [], [], []
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
        fills.append(part["fill"])
        totals = {name: totals[name] + part[name] for name in totals}
        tokens, steps = tokens + part["sentence_tokens"], steps + part["steps"]
    gather_lines(run, [injection_directory(run, index) for index in range(len(run.contexts))])
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
    return write_results(run, {**bounds, "injected": injected}, drift, timing, steps, float(np.mean(fills)), extra)


def injection_directory(run: Run, index: int) -> pathlib.Path:
    """Where job `single` works on one context."""
    return run.workdir / "contexts" / f"{index:03d}"


def inject_single(run: Run, context: Context, directory: pathlib.Path, label: str) -> dict:
    """One context from the untouched base: trained and asked; what results need of it."""
    done = inject(run, [context], directory, label)
    began = time.perf_counter()
    answers, drift = evaluate_injected(run, [context], done.lora)
    return {
        "answers": answers[0],
        "drift": drift,
        "teacher_s": done.teacher_s,
        "train_s": done.train_s,
        "evaluate_s": time.perf_counter() - began,
        "sentence_tokens": done.sentence_tokens,
        "steps": done.steps,
        "fill": done.fill,
    }


def gather_lines(run: Run, directories: Sequence[pathlib.Path]) -> None:
    """The work directory's targets.jsonl and metrics.jsonl: those of all contexts, one after another."""
    for name in ("targets.jsonl", "metrics.jsonl"):
        lines = []
        for context, directory in zip(run.contexts, directories, strict=True):
            for record in files.read_lines(directory / name):
                lines.append({**record, "context": record.get("context", context.id)})
        files.write_lines(run.workdir / name, lines)


def run_sequential(run: Run, began: float) -> dict:
    """One context after the other into the same weights, all questions after each (METHOD section 3)."""
    loaded = time.perf_counter()
    bounds = measure_bounds(run)
    bounded = time.perf_counter()
    courses = sequential.courses_of(run)
    done = []
    for course in courses:
        done.append(sequential.run_course(run, course))
        sequential_report.write_report(run.workdir, sequential.summarize_courses(done))
    gather_lines(run, [sequential.injection_directory(c, i) for c in courses for i in range(len(c.contexts))])
    notes = [note for course in done for note in course["notes"]]
    totals = {
        name: sum(note[name] for note in notes) for name in ("teacher_s", "train_s", "steps", "sentence_tokens")
    }
    timing = {
        "total_s": time.perf_counter() - began,
        "load_s": loaded - began,
        "bounds_s": bounded - loaded,
        "teacher_s": totals["teacher_s"],
        "train_s": totals["train_s"],
        "evaluate_s": sum(row["seconds"] for course in done for row in course["rows"]),
        "injection_s": float(np.mean([note["seconds"] for note in notes])),
        "sentence_tokens_per_s": speed(totals["train_s"], totals["sentence_tokens"]),
    }
    if run.settings.export_dtype and len(courses) == 1:
        export_merged(run, sequential.adapters_of(run, courses[0]))
    injected = [answers for course in done for answers in course["rows"][-1]["answers"]]
    last = [course["rows"][-1]["drift"] for course in done]
    drift = {name: mean_or_none([entry[name] for entry in last]) for name in last[0]}
    extra = {"sequential": sequential.summarize_courses(done)}
    fill = float(np.mean([note["fill"] for note in notes]))
    return write_results(run, {**bounds, "injected": injected}, drift, timing, totals["steps"], fill, extra)


def mean_or_none(values: list) -> float | None:
    """Mean, or None where nothing was measured."""
    return None if None in values else float(np.mean(values))


JOBS = {"batch": run_batch, "single": run_single, "sequential": run_sequential}


def run_job(config, workdir: str) -> dict:
    """Runs the configured job in a work directory, going on where an earlier run of it stopped.

    Returns:
      the content of results.json.

    Raises:
      ValueError, OSError: input that cannot be used; nothing was written.
      Interrupted, trainer.NotFiniteError: training stopped; what was done is saved.
    """
    began = time.perf_counter()
    compilations = start_backend(config.compilation_cache)
    run = prepare(config, workdir)
    finished = run.workdir / "results.json"
    if finished.exists():
        logging.info("%s is complete; nothing to do", run.workdir)
        return files.read_json(finished)
    logging.info("%s: %d contexts, model %s", run.settings.job, len(run.contexts), run.base.name)
    run = with_written_texts(config, run)
    with Watchdog(run.workdir, run.settings.stall_limit_s):
        results = JOBS[run.settings.job](run, began)
    logging.info(
        "%d programs compiled or read from the cache (%d of them) in %.0f s",
        compilations.programs, compilations.from_cache, compilations.seconds,
    )  # fmt: skip
    return results


def start_backend(cache: bool) -> backend.Compilations:
    """Sets the process up before anything is computed."""
    return backend.prepare(hub.cache_directory() / "compiled" if cache else None)


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


def injected_directory(run: Run, index: int) -> pathlib.Path:
    """Where the model is that was injected with a context."""
    if run.settings.job == "single":
        return injection_directory(run, index)
    if run.settings.job == "sequential":
        return sequential.courses_of(run)[index // run.settings.sequential.length].directory
    return run.workdir


def injected_model(run: Run, index: int) -> tuple[Run, dict | None]:
    """The model that was injected with a context, as a run of that base and an adapter beside it."""
    directory = injected_directory(run, index)
    if run.settings.job != "sequential":
        return run, read_adapter(run, directory)
    adapters = Ledger.open(directory / "ledger").adapters()
    if not adapters:
        raise ValueError(f"{directory} has no finished injection; run the job first")
    return dataclasses.replace(run, base=sequential.current_model(run, adapters)), None


def mesh_for_questions(settings: Settings) -> jax.sharding.Mesh:
    """The job's mesh where it fits the devices that are here, else a single device."""
    try:
        mesh = meshes.make_mesh(config=settings.mesh)
        meshes.check_rows(mesh, settings.train.batch_rows, "train.batch_rows")
    except ValueError:
        return meshes.make_mesh(jax.devices()[:1])
    return mesh


def reopen(workdir: str | pathlib.Path) -> Run:
    """The run of a work directory, from the configuration that is kept in it."""
    path = pathlib.Path(workdir)
    if not (path / "config.json").exists():
        raise ValueError(f"{workdir} is not a work directory (no config.json); give the --workdir of a job")
    config = ConfigDict(files.read_json(path / "config.json")["config"])
    start_backend(config.compilation_cache)
    settings = read_settings(config)
    if not runs_on(settings.attention, jax.default_backend()):  # trained elsewhere
        settings = dataclasses.replace(settings, attention=BLOCKS)
    run = load_run(config, settings, str(workdir), mesh_for_questions(settings))
    claim(run.workdir, config.to_dict(), run.base.fingerprint)  # refuses another model of the same name
    return run


def ask(workdir: str, questions: Sequence[str], context_id: str | None = None) -> list[dict]:
    """Answers of the base, the base with a document, and the injected model, and the document's id.

    Raises:
      ValueError: not a work directory, nothing trained yet, or no context of that id.
    """
    run = reopen(workdir)
    ids = [context.id for context in run.contexts]
    if context_id is not None and context_id not in ids:
        raise ValueError(f"--context={context_id!r}, but this run's documents are {', '.join(ids)}")
    answers, models = [], {}
    for question in questions:
        index = closest_context(question, run.contexts) if context_id is None else ids.index(context_id)
        directory = injected_directory(run, index)
        if directory not in models:  # one for all questions of a batch
            models = {directory: injected_model(run, index)}
        asked = [dataclasses.replace(run.contexts[index], questions=(Question(question, ("",)),))]
        learned, lora = models[directory]
        results = {
            "base_q": ask_everything(run, None, asked, with_context=False),
            "base_cq": ask_everything(run, None, asked, with_context=True),
            "injected": ask_everything(learned, lora, asked, with_context=False),
        }
        answers.append({name: found[0][0]["answer"] for name, found in results.items()} | {"document": ids[index]})
    return answers
