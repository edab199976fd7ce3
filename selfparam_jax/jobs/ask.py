"""Questions to a finished or running job: the base, the base with a document, and the injected model side by side."""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.passages import group_passages
from selfparam_jax.data.retrieval import Retriever
from selfparam_jax.evaluation.questions import SHORT_TOKENS, check_question, check_room
from selfparam_jax.evaluation.reach import Asker
from selfparam_jax.evaluation.systems import System
from selfparam_jax.inference.decoding import answering
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.evaluation import INJECTED, answer_injected
from selfparam_jax.jobs.inputs import Job, reopen
from selfparam_jax.jobs.sequential import sequences_of
from selfparam_jax.jobs.single import injection_directory, read_adapter
from selfparam_jax.jobs.systems import measured_path, read_measured, system_names, system_setup
from selfparam_jax.jobs.workdir import check_whole
from selfparam_jax.sequential.sequence import current_model
from selfparam_jax.targets.formats.forms import trained_form

ANSWER_TOKENS = 64  # of an answer through the chat template


def source_place(job: Job, index: int) -> int:
    """Which document, counted without their passages, one of the job's documents or passages belongs to."""
    return next(n for n, source in enumerate(group_passages(job.documents)) if index in source.places)


def injected_directory(job: Job, index: int) -> pathlib.Path:
    """Where the model is that was injected with a document."""
    if job.settings.job == "single":
        return injection_directory(job.workdir, source_place(job, index))
    if job.settings.job == "sequential":
        return sequences_of(job)[source_place(job, index) // job.settings.sequential.length].directory
    return job.workdir


def injected_model(job: Job, index: int, unfinished: bool = False) -> tuple[Model, dict | None]:
    """The model that was injected with a document: a base and an adapter beside it, or merged and None.

    Raises:
      ValueError: nothing is injected yet, or not all is, and `unfinished` is False.
    """
    directory = injected_directory(job, index)
    if job.settings.job != "sequential":
        return job.model, read_adapter(job, directory, unfinished)
    sequence = sequences_of(job)[source_place(job, index) // job.settings.sequential.length]
    ledger = sequence.ledger(job.model)
    ledger.check_active()
    adapters = ledger.adapters()
    check_whole(directory, len(ledger.entries()), len(sequence.sources), "injection", unfinished)
    return current_model(job.model, adapters), None


def _asker(job: Job, name: str, model: Model, lora: dict | None) -> Asker:
    """The base, the base with a document, or the injected model (an adapter beside it, or merged and `lora` None)."""
    if name != INJECTED:
        return Asker(job.model.decoder(), job.model.variables, job.prompt, 1, with_document=name == "base_cq")
    if lora is None:
        return Asker(model.decoder(), model.variables, job.prompt, 1)
    decoder = model.decoder(lora_scale=job.recipe.lora.scale)
    return Asker(decoder, {**model.variables, "lora": lora}, job.prompt, 1)


def _check_length(job: Job, question: str, document: Document, form: str) -> None:
    """Raises ValueError for a question that the base, or the base with the document, cannot read to its end."""
    prompt = job.prompt if form == "reading" else job.prompt.with_format(form)
    asked, most = len(prompt.question(question)), ANSWER_TOKENS if form == "chat" else SHORT_TOKENS
    limit, start = job.model.config.max_position_embeddings, prompt.lone_start if form == "bare" else prompt.start_ids
    check_room(asked, len(start), most, limit)
    if "base_cq" in system_names(job):
        read = len(prompt.context_prefix(document.text))
        check_room(asked, read, most, limit, f"prompt format and document {document.id!r}")


def _prepared(job: Job, name: str, lora: dict | None) -> System | None:
    """A system of the job, prepared for all its documents; None for one that is trained, or that was not measured."""
    entry, folder = SYSTEMS[name], measured_path(job.workdir, name).parent
    setup = dataclasses.replace(system_setup(job, entry, folder), lora=lora)
    if entry.role == "baseline":
        measured = read_measured(job.workdir, name) or {"unavailable": "not measured"}
        if entry.trained or job.settings.job != "batch" or "unavailable" in measured:
            return None
    system = entry.make(setup)
    system.prepare(job.documents)
    return system


def ask(
    workdir: str | pathlib.Path,
    questions: Sequence[str],
    document_id: str | None = None,
    form: str = "",
    unfinished: bool = False,
) -> list[dict]:
    """Answers of every system that the job asks, and of the injected model.

    Args:
      workdir: of a job that has at least one checkpoint.
      questions: asked one after another.
      document_id: the document that a system with a document reads, or one of a long document's passages; None: of
        all, the one that matches the question best (BM25).
      form: "chat": the base, with and without the document, and the injected model are asked through the model's chat
        template; "reading": in the job's prompt format, with short answers; "bare": the question and a line break;
        "": "chat" where pairs were trained on in conversations (`targets.formats`), else "reading". Other systems are
        always asked in the job's prompt format; those that were trained beside the injected model are not asked.
      unfinished: whether a model whose training has not ended may be asked, with a warning.

    Returns:
      per question {system name: answer, ..., "document": id}.

    Raises:
      ValueError: not a work directory, nothing trained yet, training has not ended, no document of that id, no chat
        template, or a question that is empty or too long for the model.
    """
    for question in questions:
        check_question(question)
    with announced(f"loading the model of {workdir}"):
        job = reopen(workdir)
    ids = [document.id for document in job.documents]
    sources = {source.id: source.places for source in group_passages(job.documents)}
    if document_id is not None and document_id not in {*ids, *sources}:
        raise ValueError(f"document {document_id!r} is not in this run; its documents are {', '.join(sources)}")
    places = range(len(ids))
    if document_id is not None:
        places = sources.get(document_id) or (ids.index(document_id),)
    form = form or trained_form(job.prompt, job.recipe.targets)
    if form == "chat" and not job.model.has_chat_template:
        raise ValueError("form = 'chat', but the model has no chat template; ask with form 'reading'")
    answers, models, systems = [], {}, {}
    retriever = Retriever([f"{job.documents[place].title}\n\n{job.documents[place].text}" for place in places])
    found_at = [places[int(np.argmax(retriever.scores(question)))] for question in questions]
    for question, index in zip(questions, found_at, strict=True):  # before the first is answered
        _check_length(job, question, job.documents[index], form)
    with answering(job.model.name):
        for question, index in zip(questions, found_at, strict=True):
            directory = injected_directory(job, index)
            if directory not in models:  # one for all questions of a batch
                models = {directory: injected_model(job, index, unfinished)}
            asked = [dataclasses.replace(job.documents[index], questions=(Question(question, ("",)),))]
            found = {}
            for name in system_names(job):
                if SYSTEMS[name].needs_adapters:  # the injected model is that of the document that was found
                    continue
                if form != "reading" and name in ("base_q", "base_cq", INJECTED):
                    asker = _asker(job, name, *models[directory])
                    (found[name],) = asker.ask([(question, asked[0])], form, ANSWER_TOKENS if form == "chat" else 0)
                    continue
                if name == INJECTED:
                    made = answer_injected(job, asked, *models[directory])
                else:
                    if name not in systems:
                        systems[name] = _prepared(job, name, models[directory][1])
                    if systems[name] is None:
                        continue
                    made = systems[name].answer(asked)
                found[name] = made[0][0]["answer"]
            answers.append(found | {"document": ids[index]})
    return answers
