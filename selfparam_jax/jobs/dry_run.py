"""What a job would read and do, and what that takes: nothing is trained, asked or written.

The documents are read and cut as the job does it. Steps are exact where all pairs are there. Pairs that rules make
are made here too, without the teacher's choice; of pairs that a model writes, number and length are guessed. Memory
is that of the compiled training step (`plan`). Times are estimates: the work of each phase over the speed of a matrix
product that is measured here.
"""

import dataclasses
import functools
import itertools
import math
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from selfparam_jax.checkpoints.load import ModelOutline, load_outline
from selfparam_jax.checkpoints.peft import load_adapter
from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import Source, group_passages, is_group, token_counter
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.distributed.files import refuse_folder
from selfparam_jax.jobs.inputs import (
    FREE,
    Job,
    bound_settings,
    check_lengths,
    check_reach,
    check_targets,
    given_documents,
    read_general,
    read_unrelated,
    refuse_workdir_among,
    share_documents,
    used_pairs,
    with_date,
    with_whole_paths,
)
from selfparam_jax.jobs.passages import with_passages
from selfparam_jax.jobs.recommend import read_test
from selfparam_jax.jobs.settings import Settings, read_settings
from selfparam_jax.jobs.synthesis import check_learnable, nothing_made
from selfparam_jax.jobs.tracking import check_trackers
from selfparam_jax.jobs.workdir import check_bound
from selfparam_jax.models.attention import check_backend
from selfparam_jax.models.decoder import param_shapes
from selfparam_jax.models.rounding import rounded_bytes, rounds_products
from selfparam_jax.plan.machines import Chip, Machine
from selfparam_jax.plan.plan import make_plan
from selfparam_jax.plan.workload import Workload
from selfparam_jax.reports.tables import counted
from selfparam_jax.targets.choose_pairs import fits
from selfparam_jax.targets.distractors import check_room
from selfparam_jax.targets.grounded.writer import GroundedWriter
from selfparam_jax.targets.question_prompts import chosen_kinds
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.targets.write_pairs import needs_writing, read_written
from selfparam_jax.targets.writers import BY_RULES, LocalWriter
from selfparam_jax.training.batches import Plan
from selfparam_jax.training.inject import recipe_targets
from selfparam_jax.training.other_teacher import check_tokens, check_vocabulary
from selfparam_jax.training.recipe import Recipe

# Shares of the speed of a large matrix product. Training and reading: the default job's in docs/jobs/batch.md, beside
# the products that benchmarks/RESULTS.md begins with. Replies are drawn token by token: all weights for few rows.
TRAINING_SHARE, READING_SHARE, DRAWING_SHARE = 0.85, 0.7, 0.15
ROUNDED_SHARE = 0.66  # of the time, where products are rounded to bfloat16 (benchmarks/RESULTS.md, the options)
# A pair that is still to be written is taken to be like this one.
STAND_IN = {"question": "What is the name of the founder of the town on the river?", "answer": "Ada Lovelace Byron"}
READ_PER_PAIR = 40  # tokens of a row that the teacher reads to judge a pair, padding included
PRODUCT = 1024  # rows and columns of the product that is measured
LISTED = 40  # documents that are shown


@dataclasses.dataclass(frozen=True)
class Row:
    """One document of the list.

    Attributes:
      id: its id.
      tokens: of its text.
      passages, groups: how many it is read as, and how many groups of related ones.
      pairs, questions: that it brings.
      writing: pairs that are to be written, about; 0 for none.
    """

    id: str
    tokens: int
    passages: int
    groups: int
    pairs: int
    questions: int
    writing: int


def workload_of(settings: Settings) -> Workload:
    """The part of a job's settings that a plan needs; of a teacher that is another model the architecture is read."""
    teacher = settings.teacher
    return Workload(
        dtype=settings.dtype,
        remat=settings.remat,
        attention=settings.attention,
        int8=settings.int8,
        supervised=settings.recipe.supervised,
        merges=settings.job == "sequential",
        lora=settings.lora,
        train=settings.train,
        mesh=settings.mesh,
        questions=settings.eval.batch_size,
        teacher=load_outline(teacher.model).config if teacher.model else None,
        teacher_int8=teacher.base_weights == "int8",
    )


def dry_run(config: ConfigDict, workdir: str | os.PathLike | None = None) -> Iterator[str]:
    """Says line by line what a job would do.

    Args:
      config: of the job.
      workdir: where it would be run; None where that is not known yet.

    Raises:
      ValueError, OSError: input or a work directory that the job could not use either.
    """
    settings = with_whole_paths(read_settings(config))
    if workdir is not None:
        if problem := refuse_folder(workdir, attempt=False):
            raise ValueError(problem)
        refuse_workdir_among(settings, workdir)
        settings = with_date(settings, workdir)
    mesh = meshes.make_mesh(config=settings.mesh)
    load = functools.cache(lambda: load_outline(settings.model))
    given = given_documents(settings, load)
    if settings.job == "sequential":
        settings, given = share_documents(settings, given)
    recipe = settings.recipe.fit_to(mesh)
    documents = with_passages(given, recipe, load)
    model = load()
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
    documents = used_pairs(documents, prompt, recipe)
    if workdir is not None:
        check_bound(pathlib.Path(workdir), bound_settings(settings, config), documents, FREE)
    count = token_counter(model.tokenizer)
    filled = with_expected_pairs(documents, recipe, prompt)
    by_rules = recipe.generator.generator in BY_RULES and not recipe.targets.tails_per_context
    if by_rules and not any(document.qa_pairs for document in filled):
        raise nothing_made(given)
    check_learnable(filled, settings.job, recipe)
    job = Job(
        settings,
        recipe,
        pathlib.Path(workdir or ""),
        model,
        documents,
        read_unrelated(settings),
        read_general(settings),
    )
    turns = check_inputs(job, workdir)
    rows = document_rows(given, documents, filled, count([document.text for document in given]))
    yield from _table(rows)
    if settings.job == "recommend":
        yield f"job recommend: titles at {counted(turns, 'turn')}; what it trains on and asks is not estimated"
        return
    writing = sum(row.writing for row in rows)
    steps, tokens, reading = count_steps(settings, recipe, filled, prompt, job.unrelated)
    about = "about " if writing else ""
    yield (
        f"training: {about}{steps:,} steps of {recipe.train.batch_size} rows x {recipe.train.seq_len} tokens in "
        f"{recipe.train.epochs} epochs, {about}{tokens:,} tokens of sentences"
    )
    longest = max(len(prompt.context_prefix(document.text)) for document in documents)
    yield f"teacher: reads {reading:,} tokens, at most {longest:,} before a sentence (prompt format included)"
    yield from _costs(settings, recipe, model, mesh, (steps, reading, longest), (writing, documents))
    yield "dry run: nothing was started and nothing was written"


def check_inputs(job: Job, workdir: str | os.PathLike | None) -> int:
    """Checks what the documents' list does not show: the rest of what the job reads, and whether it can be used.

    Args:
      job: with an outline for its model, so that the adapter that training starts from and the other teacher are
        still to be looked at.
      workdir: where it would be run; None where that is not known yet.

    Returns:
      how many turns job "recommend" would ask at; 0 in other jobs.

    Raises:
      ValueError, OSError: as the job.
    """
    settings, recipe, outline = job.settings, job.recipe, job.model
    check_backend(settings.attention, jax.default_backend())
    check_trackers(settings)
    check_lengths(outline, job.prompt, job.documents)
    check_room(job.documents, job.prompt, recipe.targets, recipe.seed, outline.config.max_position_embeddings)
    check_reach(settings)
    if settings.adapter:
        load_adapter(settings.adapter, outline)
    if settings.teacher.model:
        teacher = load_outline(settings.teacher.model)
        check_vocabulary(teacher, outline)
        check_tokens(teacher, outline, [document.text for document in job.documents])
    config = recipe.generator
    if config.file and config.generator != "auto" and os.path.exists(config.file) and os.path.getsize(config.file):
        read_written(config.file)
    if config.generator == "local" and needs_writing(job.documents, config, recipe.targets.qa_weight):
        chosen_kinds(config)
        writer = load_outline(config.model) if config.model else outline
        LocalWriter(writer.name, None, {}, writer.tokenizer, config, writer.end_ids)
    else:
        check_targets(job)
    if settings.job != "recommend":
        return 0
    return len(read_test(settings, None if workdir is None else pathlib.Path(workdir))[2])


def with_expected_pairs(documents: Sequence[Document], recipe: Recipe, prompt: Prompt) -> list[Document]:
    """The documents with pairs like those that are to be written, as far as a row holds them, after their own."""
    config = recipe.generator
    wanting = {each.id for each in needs_writing(documents, config, recipe.targets.qa_weight)}
    rules = GroundedWriter(config) if config.generator in BY_RULES else None
    made = []
    for document in documents:
        pairs: tuple[QAPair, ...] = ()
        if document.id in wanting:
            lines = rules.write_about(document)[1] if rules else [STAND_IN] * config.pairs_per_context
            found = (QAPair(line["question"], line["answer"]) for line in lines if not line.get("held_out"))
            pairs = tuple(pair for pair in found if fits(pair, prompt, recipe.train.seq_len))
        made.append(dataclasses.replace(document, qa_pairs=document.qa_pairs + pairs))
    return made


def document_rows(
    given: Sequence[Document], documents: Sequence[Document], filled: Sequence[Document], tokens: Sequence[int]
) -> list[Row]:
    """The list of documents.

    Args:
      given: as they were read.
      documents: the same as the teacher reads them.
      filled: these with the pairs that are to be written.
      tokens: of each given document.

    Returns:
      a row per given document.
    """
    sources = {source.id: source for source in group_passages(documents)}
    expected = {source.id: source for source in group_passages(filled)}
    rows = []
    for document, size in zip(given, tokens, strict=True):
        members = sources[document.id].passages
        groups = sum(is_group(each) for each in members)
        writing = sum(len(each.qa_pairs) for each in expected[document.id].passages)
        pairs, questions = (sum(len(getattr(each, name)) for each in members) for name in ("qa_pairs", "questions"))
        rows.append(Row(document.id, size, len(members) - groups, groups, pairs, questions, writing - pairs))
    return rows


def _table(rows: Sequence[Row]) -> Iterator[str]:
    names = ("tokens", "passages", "groups", "pairs", "questions", "writing")
    header = ("document", "tokens", "passages", "groups", "pairs", "questions", "pairs to write")
    shown = list(rows[:LISTED])
    total = Row(counted(len(rows), "document"), *(sum(getattr(row, name) for row in rows) for name in names))
    cells = [header, *((row.id, *(f"{getattr(row, name):,}" for name in names)) for row in [*shown, total])]
    widths = [max(len(row[n]) for row in cells) for n in range(len(header))]
    for number, row in enumerate(cells):
        if number == len(cells) - 1 and len(rows) > len(shown):
            yield f"... and {len(rows) - len(shown)} more"
        yield row[0].ljust(widths[0]) + "".join(
            f"  {cell.rjust(w)}" for cell, w in zip(row[1:], widths[1:], strict=True)
        )
    if total.writing:
        yield "pairs to write: about; how many are kept is known once they are written"


def count_steps(
    settings: Settings, recipe: Recipe, filled: Sequence[Document], prompt: Prompt, unrelated: Sequence[str] = ()
) -> tuple[int, int, int]:
    """Steps of all injections, tokens of the sentences that they go over, and tokens that the teacher reads once.

    Args:
      settings: the job.
      recipe: of its injections.
      filled: the documents as the teacher reads them, with all pairs.
      prompt: turns them into ids.
      unrelated: unrelated texts; () for others like them, which the model is still to draw.

    Returns:
      the three numbers.
    """
    wanted = recipe.targets.unrelated_per_epoch * recipe.train.epochs
    unrelated = unrelated or [f"{n} {' word' * recipe.targets.unrelated_tokens}" for n in range(wanted)]
    steps = tokens = reading = 0
    for members in _injections(settings, group_passages(filled)):
        sentences = recipe_targets(members, prompt, recipe, unrelated)
        plan = Plan(
            sentences, first_slots(sentences), prompt.start_ids, recipe.train, recipe.targets.unrelated_per_epoch
        )
        steps += plan.steps
        tokens += round(plan.fill * plan.steps * recipe.train.batch_size * recipe.train.seq_len)
        reading += _read_tokens(members, sentences, prompt)
    return steps, tokens, reading


def _injections(settings: Settings, sources: Sequence[Source]) -> list[list[Document]]:
    """The documents of each injection of a job."""
    groups = [list(source.passages) for source in sources]
    return [list(itertools.chain(*groups))] if settings.job == "batch" else groups


def _read_tokens(documents: Sequence[Document], sentences: Sequence[Sentence], prompt: Prompt) -> int:
    shared = len(prompt.context_prefix("x"))  # worked examples are read once
    contexts = sum(len(prompt.context_prefix(document.text)) - shared for document in documents)
    return shared + contexts + sum(len(sentence.ids) for sentence in sentences if sentence.start is None)


def _costs(
    settings: Settings,
    recipe: Recipe,
    model: ModelOutline,
    mesh: jax.sharding.Mesh,
    work: tuple[int, int, int],
    written: tuple[int, Sequence[Document]],
) -> Iterator[str]:
    """Memory and times.

    Args:
      settings, recipe, model, mesh: the job's.
      work: steps, tokens that the teacher reads, tokens of the longest prompt before a sentence.
      written: pairs to write, and all documents.
    """
    (steps, reading, longest), (writing, documents) = work, written
    if jax.default_backend() != "cpu":
        yield "memory and time: selfparam plan --devices=KIND-COUNT says what a step needs on this kind of device"
        return
    measured = rate = measure_rate()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A plan takes float32 products for half as fast as its chip's; here they are what was measured.
    chip = Chip(rate * (2 if settings.dtype == "float32" else 1), memory / mesh.size, math.inf, math.inf)
    machine = Machine("this machine", chip, mesh.size)
    workload = dataclasses.replace(workload_of(settings), train=recipe.train)
    plan = make_plan(workload, model.config, machine, mesh.devices.flatten().tolist(), longest)
    shapes = param_shapes(model.config)
    rounded = rounds_products(settings.matmul_precision, shapes, settings.dtype, mesh.size)
    beside = rounded_bytes(model.config, settings.int8) if rounded else 0
    reader = plan["parameters"] + sum(plan["teacher"][name] for name in ("weights", "context", "reading"))
    needed, read = plan["total"] + beside, reader + beside
    fits = plan["fits"] and max(needed, read) <= memory / mesh.size
    yield (
        f"memory (plan): {needed / 2**30:.2f} GiB a device in training, {read / 2**30:.2f} GiB while the "
        f"teacher reads; this machine has {memory / 2**30:.1f} GiB: {'fits' if fits else 'DOES NOT FIT'}"
    )
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    per_token = 2.0 * parameters  # operations of a forward pass
    reads = workload.teacher or model.config
    of_teacher = 2.0 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(param_shapes(reads)))
    rate = rate / ROUNDED_SHARE if rounded else rate
    training = steps * plan["flops"] * mesh.size / (rate * TRAINING_SHARE)
    teacher = reading * of_teacher / (rate * READING_SHARE)
    times = {"teacher": teacher, "training": training}
    config = recipe.generator
    wanting = needs_writing(documents, config, recipe.targets.qa_weight)
    if writing and config.generator in BY_RULES:
        read = 2 * writing * READ_PER_PAIR if config.teacher_scores else 0  # with the document, and without
        times = {"judging pairs": read * of_teacher / (rate * READING_SHARE), **times}
    elif writing and config.generator == "endpoint":
        yield f"writing pairs: the server's time, for {counted(len(wanting), 'text')}"
    elif writing:
        drawn = len(wanting) * config.rounds * config.replies * config.reply_tokens
        times = {"writing pairs": drawn * per_token / (rate * DRAWING_SHARE), **times}
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in times.items())
    yield (
        f"time, ESTIMATED (by float32 products of {measured / 1e9:,.0f} GFLOP/s, measured just now; it may be half "
        f"or twice as much): {parts}; together {_duration(sum(times.values()))} and the time to load, compile and "
        "evaluate"
    )


def measure_rate() -> float:
    """Operations per second of a float32 matrix product here, the best of a few."""
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal((PRODUCT, PRODUCT), np.float32))
    product = jax.jit(jnp.dot)
    product(matrix, matrix).block_until_ready()
    best = math.inf
    for _ in range(8):
        began = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2.0 * PRODUCT**3 / best


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
