"""What a job asks: every system's answers to the held-out questions, stored by document and question, and drift."""

import pathlib
import time
from collections.abc import Sequence

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.drift import NOT_MEASURED, measure_drift
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.reports.tables import counted
from selfparam_jax.targets.choose_pairs import choose_pairs

Answers = list[list[dict]]
INJECTED = "injected"  # the system that a job makes


def count_questions(documents: Sequence[Document]) -> int:
    """Held-out questions of all documents."""
    return sum(len(document.questions) for document in documents)


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


def evaluate_injected(job: Job, documents: Sequence[Document], lora: dict) -> tuple[Answers, dict, float]:
    """Answers of the injected model, its drift from the base, and the seconds that the answers took."""
    began = time.perf_counter()
    with announced(f"{INJECTED}: answering {counted(count_questions(documents), 'question')}"):
        answers = answer_injected(job, documents, job.model, lora)
    seconds = time.perf_counter() - began
    if not job.general:
        return answers, NOT_MEASURED, seconds
    variables = {**job.model.variables, "lora": lora}
    decoder = job.model.decoder(lora_scale=job.recipe.lora.scale)
    with announced("measuring drift on general text"):
        return answers, measure_drift(decoder, job.general_text, variables), seconds


def answer_with_document(job: Job, documents: Sequence[Document]) -> Answers:
    """What the teacher, the base or another model, answers with the document in its prompt: `targets.agreement`."""
    model = job.model if job.teacher is None else job.teacher.model()
    with announced(f"the teacher answers {counted(count_questions(documents), 'question')} of pairs"):
        return SYSTEMS["base_cq"].make(Setup(model, job.prompt, job.settings.eval.batch_size)).answer(documents)


def chosen_pairs(job: Job, documents: Sequence[Document], directory: pathlib.Path) -> list[Document]:
    """The documents with the pairs that are trained on; the directory keeps what the teacher answers to them."""
    recipe, path = job.recipe, directory / "teacher_answers.jsonl"
    return choose_pairs(
        documents,
        job.prompt,
        recipe.targets,
        recipe.train.seq_len,
        lambda asked: answer_with_document(job, asked),
        path,
    )
