"""predictions.jsonl, results.json and the report of a job."""

import dataclasses
import pathlib
import time
from collections.abc import Sequence

import numpy as np

from selfparam_jax.baselines.registry import SYSTEMS
from selfparam_jax.data.passages import Passage, group_passages
from selfparam_jax.distributed import files
from selfparam_jax.evaluation import questions
from selfparam_jax.evaluation.metrics import bootstrap_interval
from selfparam_jax.jobs.evaluation import INJECTED
from selfparam_jax.jobs.inputs import Job, start_backend
from selfparam_jax.jobs.passages import join_answers, name_passages, scores_by_kind
from selfparam_jax.jobs.systems import read_measured, system_names
from selfparam_jax.jobs.workdir import refuse_remade
from selfparam_jax.reports import report
from selfparam_jax.targets.write_pairs import describe_written


def write_results(
    job: Job, began: float, answers: dict, drift: dict, timing: dict, training: dict, extra: dict
) -> dict:
    """Writes the results of a job and its report.

    Args:
      job: what was run.
      began: when it was started, by `time.perf_counter`.
      answers: per system its answers, per document and question.
      drift: of `evaluation.drift.measure_drift`.
      timing: seconds of the phases; "total_s" is added to them, the intervals of the scores included.
      training: "steps" and "fill".
      extra: what else belongs into results.json.

    Returns:
      the content of results.json.
    """
    refuse_remade(job.workdir)
    names = [name for name in SYSTEMS if name in answers]
    measured = {name: found for name in system_names(job) if (found := read_measured(job.workdir, name))}
    sources = group_passages(job.documents)
    ordered = {name: answers[name] for name in names}
    joined = {name: join_answers(job.documents, answers[name]) for name in names}
    per_context = []
    for d, source in enumerate(sources):
        row = {"id": source.id, "title": source.title, **_f1({name: joined[name][d] for name in names})}
        if isinstance(source.passages[0], Passage):
            row["passages"] = [
                {
                    "id": job.documents[place].id,
                    "questions": len(job.documents[place].questions),
                    "pairs": len(job.documents[place].qa_pairs),
                    **_f1({name: answers[name][place] for name in names}),
                }
                for place in source.places
            ]
        per_context.append(row)
    split = [row for row in per_context if "passages" in row]
    pairs = job.workdir / "pairs.jsonl"
    written = describe_written(job.documents, pairs if pairs.exists() else job.recipe.generator.file or pairs)
    results = {
        "job": job.settings.job,
        "model": job.model.name,
        "prompt": job.recipe.prompt,
        "matmul_precision": job.model.matmul_dtype,
        "num_contexts": len(sources),
        "num_questions": sum(len(document.questions) for document in job.documents),
        "systems": [_system_record(name, bool(split)) for name in SYSTEMS if name in answers or name in measured],
        "scores": {name: questions.summarize(joined[name]) for name in names},
        "measured": {name: found | _per_question(answers.get(name)) for name, found in measured.items()},
        "against_injected": _against(answers.get(INJECTED), ordered, job),
        "drift": drift,
        "timing": {"total_s": 0.0, **timing},
        **training,
        "compilations": dataclasses.asdict(start_backend(cache=True)),
        "per_context": per_context,
        **({"passages": {"documents": len(split), "tokens": job.recipe.passage_tokens}} if split else {}),
        **({"written_pairs": written} if written else {}),
        **({"kinds": kinds} if (kinds := scores_by_kind(job.documents, ordered)) else {}),
        "recipe": job.record,
        **extra,
    }
    results["timing"]["total_s"] = time.perf_counter() - began
    records = name_passages(job.documents, questions.predictions(job.documents, ordered))
    files.write_lines(job.workdir / "predictions.jsonl", records)
    return complete(job.workdir, results)


def complete(workdir: pathlib.Path, results: dict) -> dict:
    """Writes the report, and then results.json: that file says that the job is complete. Returns its content."""
    path = workdir / "results.json"
    record = files.as_read(path, results)
    report.write_report(workdir, record)
    files.write_json(path, record, sealed=True)
    return record


def _per_question(answers: Sequence[Sequence[dict]] | None) -> dict:
    """Means over all questions of what is counted for each: tokens read, and whether retrieval hit."""
    flat = [answer for group in answers or () for answer in group]
    found = {}
    for name in ("tokens", "hit"):
        having = [answer[name] for answer in flat if answer.get(name) is not None]
        found[name] = float(np.mean(having)) if having else None
    return found


def _against(injected: Sequence[Sequence[dict]] | None, answers: dict, job: Job) -> dict:
    """Every system's F1 less the injected model's, with an interval over the same samples of questions."""
    found = {}
    for name, groups in answers.items():
        if injected is None or name == INJECTED:
            continue
        pairs = zip(join_answers(job.documents, groups), join_answers(job.documents, injected), strict=True)
        changes = [[a["f1"] - b["f1"] for a, b in zip(*pair, strict=True)] for pair in pairs]
        if changes := [group for group in changes if group]:
            difference = float(np.mean([np.mean(group) for group in changes]))
            found[name] = {"f1": difference, "ci95": bootstrap_interval(changes)}
    return found


def _f1(answers: dict[str, list[dict]]) -> dict[str, float | None]:
    """The mean F1 of each system's answers, None where there are none."""
    return {name: (questions.summarize([found]) or {"f1": None})["f1"] for name, found in answers.items()}


def _system_record(name: str, split: bool) -> dict:
    """The entry of a system in results.json; where it reads a long document, it reads a passage of it."""
    record = SYSTEMS[name].record()
    if split and SYSTEMS[name].role == "upper bound":
        record["meaning"] = record["meaning"].replace("document", "document or passage")
    return record


def tokens_per_second(train_s: float, sentence_tokens: int) -> float:
    """Sentence tokens per second of training."""
    return sentence_tokens / train_s if train_s else 0.0
