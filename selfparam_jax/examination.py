"""What a run asks its models: answers to the held-out questions, and drift on general text."""

from collections.abc import Sequence

from absl import logging

from selfparam_jax import evaluate, files
from selfparam_jax.contexts import Context
from selfparam_jax.injection import Run


def variables_of(run: Run, lora: dict | None) -> dict:
    """What the model is applied to: the one copy of the base, and an adapter beside it if there is one."""
    return {"params": run.base.params} if lora is None else {"params": run.base.params, "lora": lora}


def ask_everything(run: Run, lora: dict | None, contexts: Sequence[Context], with_context: bool):
    """Answers of one system to all questions of some contexts; the adapter is applied, not merged."""
    model = run.teacher if lora is None else run.injected
    return evaluate.answer_questions(
        model, variables_of(run, lora), run.prompt, contexts, with_context, run.settings.eval_batch
    )


def measure_bounds(run: Run) -> dict[str, list[list[dict]]]:
    """Base Q and Base C+Q on every question; kept in bounds.json."""
    path = run.workdir / "bounds.json"
    if path.exists():
        return files.read_json(path)
    bounds = {}
    for system, with_context in (("base_q", False), ("base_cq", True)):
        bounds[system] = ask_everything(run, None, run.contexts, with_context)
        scores = evaluate.summarize(bounds[system])
        if scores:
            logging.info("%s: F1 %.3f over %d contexts", system, scores["f1"], len(run.contexts))
    files.write_json(path, bounds)
    return bounds


def evaluate_injected(run: Run, contexts: Sequence[Context], lora: dict) -> tuple[list[list[dict]], dict]:
    """Answers of the injected model, and its drift from the base."""
    answers = ask_everything(run, lora, contexts, with_context=False)
    if not run.general:
        return answers, {"perplexity_before": None, "perplexity_after": None, "kl": None}
    return answers, evaluate.measure_drift(run.injected, run.general_text, variables_of(run, lora))
