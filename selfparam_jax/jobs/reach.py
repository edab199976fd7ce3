"""The reach table of an adapter: its questions asked in many ways, and what must not change."""

import pathlib
from collections.abc import Mapping, Sequence

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import reach
from selfparam_jax.evaluation.questions import answer_records
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.inputs import Job, example_file


def measure_reach(
    model: Model,
    lora: dict,
    scale: float,
    prompt: Prompt,
    documents: Sequence[Document],
    level: str = "all",
    source: str = "examples",
    batch_size: int = 16,
    known: Mapping[str, Sequence[Sequence[dict]]] | None = None,
) -> tuple[dict, list[dict]]:
    """Asks the base, the base with each document, and the injected model.

    Args:
      model: the base.
      lora, scale: the adapter.
      prompt: the reading format, bound to the tokenizer.
      documents: with held-out questions.
      level: of `reach.LEVELS`.
      source: file of other wordings (`eval.reach_file`).
      batch_size: questions decoded together.
      known: answers in the reading format per system, document and question, of systems that have been asked.

    Returns:
      the table and the answers, as `reach.measure_reach` gives them.

    Raises:
      ValueError, OSError: the file of other wordings cannot be used.
    """
    known = known or {}

    def answers_of(system: str) -> dict[tuple[str, str], str]:
        records = answer_records(documents, known[system]) if system in known else []
        return {(record["context"], record["question"]): record["answer"] for record in records}

    decoder, base = model.decoder(), model.variables
    injected = model.decoder(lora_scale=scale), {**base, "lora": lora}
    askers = {
        "base": reach.Asker(decoder, base, prompt, batch_size, known=answers_of("base_q")),
        "base_cq": reach.Asker(decoder, base, prompt, batch_size, True, answers_of("base_cq")),
        "injected": reach.Asker(*injected, prompt, batch_size, known=answers_of("injected")),
    }
    variants, probes = {}, None
    if level == "all":
        variants = reach.read_variants(pathlib.Path(example_file(source, "reach.jsonl")))
        probes = reach.read_probes(
            resource("examples", "unrelated_questions.jsonl"), resource("examples", "reach_probes.jsonl")
        )
    return reach.measure_reach(askers, documents, variants, reach.LEVELS[level], probes)


def job_reach(job: Job, lora: dict, answers: Mapping[str, Sequence[Sequence[dict]]]) -> dict | None:
    """The reach table of a job, whose systems have given `answers` in the reading format; records go to reach.jsonl.

    None if it is not asked for, or if there is no question.
    """
    config = job.settings.eval
    if config.reach == "none" or not any(document.questions for document in job.documents):
        return None
    with announced("reach: asking in other forms"):
        table, records = measure_reach(
            job.model,
            lora,
            job.recipe.lora.scale,
            job.prompt,
            job.documents,
            config.reach,
            config.reach_file,
            config.batch_size,
            answers,
        )
    files.write_lines(job.workdir / "reach.jsonl", records)
    return table
