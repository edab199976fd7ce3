"""What a job works on: read, checked, and bound to its work directory before anything is computed."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence

import jax
from absl import logging
from ml_collections import ConfigDict

from selfparam_jax.checkpoints.default_model import DEFAULT_MODEL, cache_directory
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.peft import load_adapter
from selfparam_jax.checkpoints.tokenizers import today
from selfparam_jax.data import corpora
from selfparam_jax.data.dialogues import dialogue_documents, read_dialogues
from selfparam_jax.data.documents import Document, is_pattern, load_texts, select
from selfparam_jax.data.packing import check_sizes
from selfparam_jax.data.passages import group_passages
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import backend
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.processes import check_shared
from selfparam_jax.evaluation import drift
from selfparam_jax.evaluation.questions import SHORT_TOKENS, text_for
from selfparam_jax.evaluation.reach import read_variants
from selfparam_jax.evaluation.recommendation import read_entities, read_items
from selfparam_jax.jobs.passages import with_passages
from selfparam_jax.jobs.settings import SELF, BaselineOptions, Settings, read_settings
from selfparam_jax.jobs.workdir import bind_workdir, digest_inputs, read_workdir
from selfparam_jax.models.attention import BLOCKS, check_backend, runs_on
from selfparam_jax.reports.tables import counted
from selfparam_jax.targets.choose_pairs import fitting_pairs
from selfparam_jax.targets.distractors import check_room
from selfparam_jax.targets.sentences import lengths_in_rows
from selfparam_jax.targets.write_pairs import needs_writing
from selfparam_jax.targets.writers import check_writer
from selfparam_jax.training.inject import Start, recipe_targets
from selfparam_jax.training.other_teacher import OtherTeacher, named_teacher
from selfparam_jax.training.recipe import Recipe

# How a server is asked does not change what it answers, nor does the machine, or who is told of it, change what is
# computed: these settings may differ when a job is resumed.
FREE = (
    *(f"endpoint.{name}" for name in ["base_url", "key_variable", "concurrency", "retries", "timeout_s"]),
    *(f"endpoint.{name}" for name in ["attempt_s", "budget", "price_in", "price_out", "token_budget"]),
    *(f"mesh.{name}" for name in ["data", "fsdp", "tensor", "stall_limit_s"]),
    "compilation_cache",
    "report_to",
    "eval.sample_every",
    "eval.sample_questions",
    # A finished run may be asked for more systems; each is bound to its own settings.
    "systems",
    *(f"baselines.{name}" for name in flatten(dataclasses.asdict(BaselineOptions()))),
)
# The documents that come with the package, by what follows "examples:".
EXAMPLES = {"": "documents.jsonl", "development": "development.jsonl"}
EXAMPLES |= {name: f"{name}.jsonl" for name in ("two_documents", "over_time")}


@dataclasses.dataclass(frozen=True)
class Job:
    """A job that may start: its settings and all that it reads. Only `jobs` knows it; phases take its parts.

    Attributes:
      settings: as configured.
      recipe: of every injection; its batch size is one that the mesh can split.
      workdir: where everything is written.
      model: the base, on its mesh.
      documents: in the order of the job, with their questions and pairs; long ones as passages.
      unrelated: unrelated texts; () if the model is to draw them first.
      general: texts that drift is measured on.
      start: the adapter that is trained further; None for a fresh one, and where nothing is trained.
      teacher: another model that teaches; None where the base does, and where nothing is trained.
    """

    settings: Settings
    recipe: Recipe
    workdir: pathlib.Path
    model: Model
    documents: list[Document]
    unrelated: list[str]
    general: list[str]
    start: Start | None = None
    teacher: OtherTeacher | None = None

    @functools.cached_property
    def prompt(self) -> Prompt:
        """The prompt format, bound to the model's tokenizer."""
        return Prompt(self.recipe.prompt, self.model.tokenizer, self.model.end_ids)

    @functools.cached_property
    def general_text(self) -> drift.General:
        """The general text as the base reads it: once for all that is measured against it."""
        return drift.read_general(self.model.decoder(), self.model.variables, self.prompt, self.general)

    @property
    def record(self) -> dict:
        """What makes the result, as ledger and results.json state it: the settings of all sections but FREE ones."""
        config = flatten(dataclasses.asdict(self.settings))
        skipped = {"generator.generator", "generator.answer_shape", "generator.seed", "train.seed"}
        found = {name: v for name, v in config.items() if "." in name and name not in FREE and name not in skipped}
        return found | {"train.batch_size": self.recipe.train.batch_size}


def start_backend(cache: bool) -> backend.Compilations:
    """Sets the process up before anything is computed."""
    return backend.prepare(cache_directory() / "compiled" if cache else None)


def prepare(config: ConfigDict, workdir: str | pathlib.Path) -> Job:
    """Reads and checks all input, loads the model, and only then touches the work directory.

    Raises:
      ValueError, OSError: input that cannot be used, or a work directory of another run.
    """
    settings = with_date(with_whole_paths(read_settings(config)), workdir)
    refuse_workdir_among(settings, workdir)
    check_backend(settings.attention, jax.default_backend())
    mesh = meshes.make_mesh(config=settings.mesh)
    settings, documents, load = read_documents(settings, mesh)
    unrelated = read_unrelated(settings)
    general = read_general(settings)
    check_reach(settings)
    settings_of_mesh = fit_batch(settings, mesh, workdir)
    model, recipe = load(), settings_of_mesh.recipe
    documents = with_passages(documents, recipe, load)
    start = read_start(model, settings.adapter) if settings.adapter else None
    teacher = named_teacher(settings.teacher, model) if settings.teacher.model else None
    job = Job(settings, recipe, pathlib.Path(workdir), model, documents, unrelated, general, start, teacher)
    job = check_job(job)
    check_targets(job)
    check_shared(job.workdir)
    if teacher is not None:
        teacher.check_documents(job.documents, job.prompt)
    bind_job(job, config)
    if teacher is not None:
        teacher.let_go()  # until it reads
    return job


def refuse_workdir_among(settings: Settings, workdir: str | pathlib.Path) -> None:
    """Raises ValueError for a work directory within a folder of documents: its files would be read as documents."""
    place = pathlib.Path(workdir).resolve()
    for source in settings.contexts.split("\n"):
        folder = pathlib.Path(source).resolve()
        if folder not in place.parents or not folder.is_dir():
            continue
        if not any(part.startswith(".") for part in place.relative_to(folder).parts):
            raise ValueError(
                f"{workdir} lies within {source}, all of whose files are read as documents; choose a directory "
                "outside of it, or a hidden one"
            )


def bind_job(job: Job, config: ConfigDict) -> None:
    """Makes the work directory, or checks that it is this job's."""
    inputs = digest_inputs(job.documents, job.unrelated, job.general)
    inputs["batch_size"] = job.recipe.train.batch_size
    if job.start is not None:
        inputs["adapter"] = job.start.record()
    if job.teacher is not None:
        inputs["teacher"] = job.teacher.record()
    bind_workdir(job.workdir, bound_settings(job.settings, config), job.model.fingerprint, inputs, FREE)


def bound_settings(settings: Settings, config: ConfigDict) -> dict:
    """The settings of a job as config.json holds them; `config` is what they were read from."""
    length = read_settings(config).sequential.length  # as it was given: 0 is whatever the documents make it
    found = dataclasses.asdict(
        dataclasses.replace(settings, sequential=dataclasses.replace(settings.sequential, length=length))
    )
    for section, names in (("generator", ("generator", "answer_shape", "seed")), ("train", ("seed",))):
        for name in names:
            del found[section][name]
    return found


def with_date(settings: Settings, workdir: str | pathlib.Path) -> Settings:
    """The settings with the day of the work directory, or today for a new one, unless they name one."""
    if settings.date:
        return settings
    kept = read_workdir(workdir)["config"].get("date", "") if (pathlib.Path(workdir) / "config.json").exists() else ""
    return dataclasses.replace(settings, date=kept or today().isoformat())


def read_start(model: Model, directory: str | os.PathLike) -> Start:
    """The adapter in a directory as the start of training.

    Raises:
      ValueError: it cannot be read, is not a plain LoRA, or belongs to another base.
    """
    lora, scale, record = load_adapter(directory, model)
    return Start(lora, scale, dict((record.get("extra") or {}).get("documents") or {}))


def with_whole_paths(settings: Settings) -> Settings:
    """The settings with absolute paths of what exists: a work directory can then be read from anywhere."""

    def whole(value: str) -> str:
        return os.path.abspath(value) if value and os.path.exists(value) else value

    asked = {name: getattr(settings.recommend, name) for name in ("records", "entities", "item_ids")}
    contexts = "\n".join(
        source if _is_name(source) else os.path.abspath(source) if is_pattern(source) else whole(source)
        for source in settings.contexts.split("\n")
    )
    return dataclasses.replace(
        settings,
        model=settings.model if settings.model == DEFAULT_MODEL else whole(settings.model),
        adapter=whole(settings.adapter),
        teacher=dataclasses.replace(
            settings.teacher,
            model=settings.teacher.model
            if settings.teacher.model == DEFAULT_MODEL
            else whole(settings.teacher.model),
        ),
        contexts=contexts,
        unrelated=settings.unrelated if settings.unrelated in ("examples", SELF) else whole(settings.unrelated),
        generator=dataclasses.replace(
            settings.generator,
            model=settings.generator.model
            if settings.generator.model == DEFAULT_MODEL
            else whole(settings.generator.model),
            file=whole(settings.generator.file),
            prompts=whole(settings.generator.prompts),
        ),
        recommend=dataclasses.replace(
            settings.recommend,
            **{name: path if path == "examples" else whole(path) for name, path in asked.items()},
        ),
        eval=dataclasses.replace(
            settings.eval,
            general=settings.eval.general if settings.eval.general == "examples" else whole(settings.eval.general),
        ),
    )


def _is_name(source: str) -> bool:
    """Whether a source of documents is a name, which wins over a path."""
    return source.partition(":")[0] == "examples" or source.partition("@")[0] in corpora.CORPORA


def read_documents(
    settings: Settings, mesh: jax.sharding.Mesh
) -> tuple[Settings, list[Document], Callable[[], Model]]:
    """The documents of a job, as their sources have them; `with_passages` makes of them what the teacher reads.

    Returns:
      the settings, with the length of a sequence that the documents give where it is 0; the documents; and a function
      that loads the model at its first call.

    Raises:
      ValueError, OSError: input that cannot be used.
    """
    load = functools.cache(
        lambda: load_model(
            settings.model,
            settings.dtype,
            mesh,
            int8=settings.int8,
            attention=settings.attention,
            matmul_precision=settings.matmul_precision,
            date=settings.date,
        )
    )
    documents = given_documents(settings, load)
    if settings.job == "sequential":
        settings, documents = share_documents(settings, documents)
    return settings, documents, load


def given_documents(settings: Settings, load: Callable[[], Model]) -> list[Document]:
    """The documents as their source has them.

    Args:
      load: loads the model; only called for a data set that is chosen by the length of its answers.
    """

    def count_tokens(text: str) -> int:
        return len(load().tokenizer(text, add_special_tokens=False)["input_ids"])

    sources = settings.contexts.split("\n")
    if settings.job == "recommend":
        return read_dialogue_documents(settings)
    if len(sources) == 1:
        source, limit = example_documents(settings.contexts)
        return corpora.read_documents(source, settings.limit or limit, settings.context_ids, count_tokens)
    documents = []
    for source in sources:
        documents += corpora.read_documents(*example_documents(source), (), count_tokens)
    names = [document.id for document in documents]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"the document id {twice[0]!r} comes from two of {', '.join(sources)}; rename one of the two"
        )
    return select(documents, settings.limit, settings.context_ids, ", ".join(sources))


def read_dialogue_documents(settings: Settings) -> list[Document]:
    """The dialogues of job "recommend" in which a title is recommended, as documents."""
    entities = read_entities(example_file(settings.recommend.entities, "recommend_entities.json"))
    titles = read_items(example_file(settings.recommend.item_ids, "recommend_item_ids.json"), entities)
    documents, left_out = [], 0
    for source in settings.contexts.split("\n"):
        path = example_file(source, "dialogues.jsonl")
        found, others = dialogue_documents(read_dialogues(path, titles), settings.recommend.prompt)
        documents, left_out = documents + found, left_out + others
    logging.info("%d dialogues recommend a title, %d do not and are left out", len(documents), left_out)
    return select(documents, settings.limit, settings.context_ids, settings.contexts)


def example_file(source: str, name: str) -> str:
    """The packaged file that "examples" means; others are left alone."""
    return str(resource("examples", name)) if source == "examples" else source


def example_documents(source: str) -> tuple[str, int]:
    """The file and the limit that "examples", "examples:4", "examples:development:2" mean; others are left alone."""
    name, _, rest = source.partition(":")
    if name != "examples":
        return source, 0
    which, _, number = ("", "", rest) if rest.isdigit() else rest.partition(":")
    if which not in EXAMPLES or not (number == "" or (number.isdigit() and len(number) < 10)):
        raise ValueError(
            f"contexts = {source[:80]!r}, expected examples, examples:NUMBER, examples:NAME or examples:NAME:NUMBER, "
            f"with NAME one of {', '.join(filter(None, EXAMPLES))}; a folder of that name is ./examples"
        )
    return str(resource("examples", EXAMPLES[which])), int(number or 0)


def share_documents(settings: Settings, documents: list[Document]) -> tuple[Settings, list[Document]]:
    """As many documents as the sequences need, and the settings with their length."""
    config = settings.sequential
    length = config.length or len(documents) // config.sequences
    needed = length * config.sequences
    if not config.length and needed != len(documents):
        raise ValueError(
            f"{counted(len(documents), 'document')} cannot be shared evenly among {config.sequences} sequences; set "
            "sequential.length, or give more or fewer documents"
        )
    if len(documents) < needed:
        raise ValueError(
            f"{config.sequences} sequences of {length} contexts need {needed}, but there are {len(documents)}; "
            "lower sequential.length or sequential.sequences, or give more documents"
        )
    if len(documents) > needed:
        logging.warning(
            "%s of %s: the first %d of %s are used (sequential.length=0 uses all)",
            counted(config.sequences, "sequence"), counted(length, "document"), needed,
            counted(len(documents), "document"),
        )  # fmt: skip
    return dataclasses.replace(settings, sequential=dataclasses.replace(config, length=length)), documents[:needed]


def read_unrelated(settings: Settings) -> list[str]:
    """The unrelated texts of all epochs, or as many as there are; none yet if the model is to draw them itself."""
    each = settings.targets.unrelated_per_epoch
    if not each or settings.unrelated == SELF:
        return []
    return corpora.read_texts(example_texts(settings.unrelated, "train"), settings.texts_wanted, settings.seed, each)


def read_general(settings: Settings) -> list[str]:
    """The general texts that drift is measured on; [] if it is not."""
    return load_texts(example_texts(settings.eval.general, "eval")) if settings.eval.general else []


def check_reach(settings: Settings) -> None:
    """Raises ValueError or OSError for a file of other wordings (`eval.reach_file`) that the job would read."""
    if settings.job == "batch" and settings.eval.reach == "all":
        read_variants(pathlib.Path(example_file(settings.eval.reach_file, "reach.jsonl")))


def example_texts(source: str, part: str) -> str:
    """The file of the texts that come with the package ("examples"), to train on or to evaluate on; or the source."""
    return str(resource("examples", f"general_{part}.jsonl")) if source == "examples" else source


def fit_batch(settings: Settings, mesh: jax.sharding.Mesh, workdir: str | pathlib.Path) -> Settings:
    """The settings with a batch size that the mesh can split: that of the work directory's run, or rounded up."""
    train, asked = settings.train, settings.train.batch_size
    path = pathlib.Path(workdir) / "config.json"
    if path.exists():
        recorded = read_workdir(workdir)["inputs"].get("batch_size", asked)
        if recorded % train.accumulate == 0:
            meshes.check_rows(mesh, recorded // train.accumulate, "the run's batch size / train.accumulate")
            return dataclasses.replace(settings, train=dataclasses.replace(train, batch_size=recorded))
    size = meshes.round_up_rows(mesh, asked, train.accumulate)
    if size == asked:
        return settings
    logging.info("train.batch_size %d is rounded up to %d, which %d devices can split", asked, size, mesh.size)
    return dataclasses.replace(settings, train=dataclasses.replace(train, batch_size=size))


def check_job(job: Job) -> Job:
    """The job without the pairs that it skips.

    Raises:
      ValueError: a document does not fit into the model together with its questions.
    """
    job = dataclasses.replace(job, documents=used_pairs(job.documents, job.prompt, job.recipe))
    check_lengths(job.model, job.prompt, job.documents)
    limit = job.model.config.max_position_embeddings
    check_room(job.documents, job.prompt, job.recipe.targets, job.recipe.seed, limit)
    return job


def used_pairs(documents: list[Document], prompt: Prompt, recipe: Recipe) -> list[Document]:
    """The documents without the pairs that are skipped as longer than a row."""
    if recipe.targets.long_pairs != "skip":
        return documents
    kept = [fitting_pairs(document, prompt, recipe.train.seq_len) for document in documents]
    before, after = (sum(len(d.qa_pairs) for d in each) for each in (documents, kept))
    logging.info("longer than a row and left out: %d of %s", before - after, counted(before, "pair"))
    return kept


def check_lengths(model: Model, prompt: Prompt, documents: Sequence[Document]) -> None:
    """Raises ValueError for a document that does not fit into the model together with its questions.

    And for a question that needs documents which are not there, or which do not fit in together.
    """
    limit = model.config.max_position_embeddings
    for document in documents:
        for question in document.questions:
            if question.documents:
                read = len(prompt.context_prefix(text_for(question, document, documents)))
                size = read + len(prompt.question(question.question)) + SHORT_TOKENS
                if size > limit:
                    raise ValueError(
                        f"document {document.id!r}: the question {question.question!r} with the "
                        f"{len(question.documents)} documents that it needs has {size} tokens (prompt format "
                        f"included), which exceed the model's limit of {limit} (max_position_embeddings); take the "
                        "question out"
                    )
    for document in documents:
        prefix = len(prompt.context_prefix(document.text))
        sentences = [len(prompt.question(p.question) + prompt.answer(p.answer)) for p in document.qa_pairs]
        asked = [len(prompt.question(q.question)) + SHORT_TOKENS for q in document.questions]
        longest = max([0, *sentences, *asked])
        if prefix + longest > limit:
            raise ValueError(
                f"document {document.id!r}: {prefix} tokens of document (prompt format included) and {longest} of "
                f"question and answer exceed the model's limit of {limit} (max_position_embeddings); set "
                "passage_tokens to fewer tokens, or shorten it"
            )


def check_targets(job: Job) -> None:
    """Raises ValueError if the target sentences cannot be made, as far as that is known before they are written."""
    recipe = job.recipe
    if needs_writing(job.documents, recipe.generator, recipe.targets.qa_weight):
        check_writer(recipe.generator, job.model, recipe.endpoint)
        return
    targets = recipe.targets
    if not job.unrelated and targets.unrelated_per_epoch:  # not drawn yet, but cut to a length that is known
        check_sizes([len(job.prompt.start_ids) + targets.unrelated_tokens], recipe.train.seq_len)
        recipe = dataclasses.replace(recipe, targets=dataclasses.replace(targets, unrelated_per_epoch=0))
    together = [job.documents]
    if job.settings.job not in ("batch", "recommend"):
        together = [source.passages for source in group_passages(job.documents)]
    for documents in together:
        sentences = recipe_targets(documents, job.prompt, recipe, job.unrelated)
        lengths_in_rows(sentences, job.prompt.start_ids, recipe.train.seq_len)


def mesh_for_questions(settings: Settings) -> jax.sharding.Mesh:
    """The job's mesh where it fits the devices that are here, else a single device."""
    try:
        return meshes.make_mesh(config=settings.mesh)
    except ValueError:
        return meshes.make_mesh(jax.devices()[:1])


def reopen(workdir: str | pathlib.Path) -> Job:
    """The job of a work directory, from the settings in it, without what only training reads.

    Raises:
      ValueError: no work directory, another base under the same name, or documents that have changed since.
    """
    record = read_workdir(workdir)
    config = ConfigDict(record["config"])
    start_backend(record["config"].get("compilation_cache", True))
    settings = read_settings(config)
    if not runs_on(settings.attention, jax.default_backend()):  # trained elsewhere
        settings = dataclasses.replace(settings, attention=BLOCKS)
    mesh = mesh_for_questions(settings)
    settings, documents, load = read_documents(settings, mesh)
    general = read_general(settings)
    train = dataclasses.replace(
        settings.train, batch_size=record["inputs"].get("batch_size", settings.train.batch_size)
    )
    recipe = dataclasses.replace(settings, train=train).recipe
    documents = with_passages(documents, recipe, load)
    job = check_job(Job(settings, recipe, pathlib.Path(workdir), load(), documents, [], general))
    # What only training reads is not compared.
    inputs = digest_inputs(job.documents, [], job.general) | {
        name: record["inputs"][name]
        for name in ("unrelated", "batch_size", "adapter", "teacher")
        if name in record["inputs"]
    }
    bind_workdir(job.workdir, record["config"], job.model.fingerprint, inputs)
    return job
