"""What a job asks: every system's answers to the held-out questions, stored by document and question, and drift."""

import pathlib
from collections.abc import Callable, Sequence

from absl import logging

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import questions
from selfparam_jax.evaluation.drift import NOT_MEASURED, measure_drift
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.passages import join_answers

Answers = list[list[dict]]
INJECTED = "injected"  # the system that a job makes


def system_names(job: Job) -> list[str]:
    """The systems that a job asks, in the order of reports."""
    asked = {*job.settings.eval.systems, INJECTED}
    return [name for name in SYSTEMS if name in asked]


def count_questions(documents: Sequence[Document]) -> int:
    """Held-out questions of all documents."""
    return sum(len(document.questions) for document in documents)


def measure_systems(job: Job) -> dict[str, Answers]:
    """Answers of every configured system that needs no adapter; each is kept in answers/NAME.jsonl."""
    names = (name for name in system_names(job) if name != INJECTED)
    return {name: _measure(job, name) for name in names if not SYSTEMS[name].needs_adapters}


def measure_with_adapters(job: Job, adapters: Callable[[int], dict]) -> dict[str, Answers]:
    """Answers of the configured systems that need an adapter for each document; `adapters` gives it by the place."""
    return {name: _measure(job, name, adapters) for name in system_names(job) if SYSTEMS[name].needs_adapters}


def _measure(job: Job, name: str, adapters: Callable[[int], dict] | None = None) -> Answers:
    path = job.workdir / "answers" / f"{name}.jsonl"
    if path.exists():
        return questions.match_answers(job.documents, files.read_lines(path))
    scale = job.recipe.lora.scale
    setup = Setup(job.model, job.prompt, job.settings.eval.batch_size, lora_scale=scale, adapters=adapters)
    system = SYSTEMS[name].make(setup)
    with announced(f"{name}: answering {count_questions(job.documents)} questions"):
        system.prepare(job.documents)
        answers = system.answer(job.documents)
    joined = join_answers(job.documents, answers)
    if scores := questions.summarize(joined):
        logging.info("%s: F1 %.3f over %d documents", name, scores["f1"], len(joined))
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_lines(path, questions.answer_records(job.documents, answers))
    return answers


def answer_injected(job: Job, documents: Sequence[Document], model: Model, lora: dict | None) -> Answers:
    """Answers of a model with an adapter beside it, or of a merged one (`lora` None), without the documents.

    Args:
      job: prompt format, batch size and scale.
      documents: whose held-out questions are asked.
      model: the base, or a merged model.
      lora: the adapter's tree; None for a merged model.

    Returns:
      per document and question, as `questions.answer_questions` gives them.
    """
    if lora is None:
        setup = Setup(model, job.prompt, job.settings.eval.batch_size)
        return SYSTEMS["base_q"].make(setup).answer(documents)
    setup = Setup(model, job.prompt, job.settings.eval.batch_size, lora, job.recipe.lora.scale)
    return SYSTEMS[INJECTED].make(setup).answer(documents)


def evaluate_injected(job: Job, documents: Sequence[Document], lora: dict) -> tuple[Answers, dict]:
    """Answers of the injected model, and its drift from the base."""
    with announced(f"{INJECTED}: answering {count_questions(documents)} questions"):
        answers = answer_injected(job, documents, job.model, lora)
    if not job.general:
        return answers, NOT_MEASURED
    variables = {"params": job.model.params, "lora": lora}
    decoder = job.model.decoder(lora_scale=job.recipe.lora.scale)
    with announced("measuring drift on general text"):
        return answers, measure_drift(decoder, job.general_text, variables)


def answer_with_document(job: Job, documents: Sequence[Document]) -> Answers:
    """What the base answers with the document in its prompt: the teacher, for `targets.agreement`."""
    with announced(f"the teacher answers {count_questions(documents)} questions of pairs"):
        return SYSTEMS["base_cq"].make(Setup(job.model, job.prompt, job.settings.eval.batch_size)).answer(documents)


def teacher_answers(directory: pathlib.Path) -> pathlib.Path:
    """Where an injection keeps what its teacher answers to the pairs' questions."""
    return directory / "teacher_answers.jsonl"
