"""Tasks of lm-evaluation-harness, asked of a job's base and injected model side by side, or of any model."""

import dataclasses
import difflib
import importlib.util
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from selfparam_jax.checkpoints.export import check_weights
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.distributed import files
from selfparam_jax.distributed.ranges import Range, check_kinds, ranges_of
from selfparam_jax.jobs.bars import announced, open_bar
from selfparam_jax.jobs.candidates import find_run, is_adapter, run_candidate, saved_candidate
from selfparam_jax.jobs.evaluation import INJECTED
from selfparam_jax.jobs.inputs import start_backend

BASE = "base"
LIMIT, FEWSHOT, BATCH = Range(1, 10**9, also={0: "all"}), Range(0, 1000), Range(1, 2**16)


@dataclasses.dataclass(frozen=True)
class HarnessConfig:
    """How tasks are asked.

    Attributes:
      tasks: names of tasks or groups.
      include_path: a folder of task files (.yaml) of one's own; "" for none.
      limit: only the first of each task's examples, at most this many; 0 means all.
      num_fewshot: worked examples before each; None leaves it to the task.
      chat: whether prompts go through the model's chat template.
      batch_size: rows that are read, or answers that are made, together.
      dtype: of a MODEL's weights; a work directory has its own.
      bootstrap: draws for the standard errors of scores that have no formula.

    Raises:
      ValueError: a value outside its range.
    """

    tasks: tuple[str, ...]
    include_path: str = ""
    limit: Annotated[int, LIMIT] = 0
    num_fewshot: int | None = None
    chat: bool = False
    batch_size: Annotated[int, BATCH] = 16
    dtype: str = "float32"
    bootstrap: Annotated[int, Range(1, 10**7)] = 1000

    def __post_init__(self):
        check_kinds(HarnessConfig, vars(self), "--")
        if not self.tasks:
            raise ValueError("--tasks is missing, expected names of tasks, separated by commas")
        if self.include_path and not os.path.isdir(self.include_path):
            raise ValueError(f"--include_path={self.include_path}: no such folder, expected one with task files")
        for name, (kind, within) in ranges_of(HarnessConfig).items():
            within.check(f"--{name}", getattr(self, name), kind)
        if self.num_fewshot is not None:
            FEWSHOT.check("--num_fewshot", self.num_fewshot, int)


def evaluate_tasks(source: str, config: HarnessConfig, base: str = "", unfinished: bool = False) -> dict:
    """Asks tasks of a model, or of a work directory's base and injected model.

    Args:
      source: a work directory (or WORKDIR@STEP, WORKDIR/contexts/000, WORKDIR/sequences/000), an adapter's folder, or
        a model as `load_model` takes it.
      config: which tasks, and how.
      base: the model below an adapter's folder.
      unfinished: whether a model whose training has not ended may be asked, with a warning.

    Returns:
      {"source", "models": names in order, "tasks": {task: {"examples", "num_fewshot", "version", "scores": {metric:
      {model: value}}, "stderr": {metric: {model: value or None}}}}, "config"}.

    Raises:
      ValueError, OSError: the extra `eval` is missing, there is no such task or model, or a task cannot be asked.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("tasks need lm-evaluation-harness: run pip install 'selfparam-jax[eval]'")
    from lm_eval import simple_evaluate

    manager = _open_tasks(config)
    start_backend(cache=True)
    with announced(f"loading {source}"):
        models = _load(source, base, config, unfinished)
    found = {}
    for name, (model, lora) in models.items():
        lm = _harness_model(model, lora, name, config)
        found[name] = simple_evaluate(
            lm,
            tasks=list(config.tasks),
            num_fewshot=config.num_fewshot,
            limit=config.limit or None,
            bootstrap_iters=config.bootstrap,
            task_manager=manager,
            apply_chat_template=config.chat,
            log_samples=False,
        )
    return {
        "source": source,
        "models": list(found),
        "tasks": _collect(found),
        "config": dataclasses.asdict(config),
        "fingerprint": next(iter(models.values()))[0].fingerprint,
    }


def _open_tasks(config: HarnessConfig) -> Any:
    """The harness's registry of tasks. Raises ValueError for a name that is not in it."""
    from lm_eval.tasks import TaskManager

    if config.include_path:  # the harness's own list is long; one's own tasks do without it
        manager = TaskManager(include_path=config.include_path, include_defaults=False)
        if set(config.tasks) <= set(manager.all_subtasks):
            return manager
    with announced("reading the harness's list of tasks"):
        manager = TaskManager(include_path=config.include_path or None)
    for name in config.tasks:
        if not manager.match_tasks([name]):
            close = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]}?" if close else "`lm-eval ls tasks` lists those that exist;"
            raise ValueError(f"--tasks: there is no task {name!r}; {hint} --include_path=FOLDER adds one's own")
    return manager


def _load(source: str, base: str, config: HarnessConfig, unfinished: bool) -> dict[str, tuple[Model, dict | None]]:
    """The models of a source by name, each with an adapter of scale 1 or None."""
    if is_adapter(source):
        if not base:
            raise ValueError(f"{source} is an adapter; give the model below it: --base=MODEL")
        model = load_model(base, config.dtype)
        return _side_by_side(model, saved_candidate(source, model, source).variables["lora"])
    run = find_run(source, unfinished)
    if run is None:
        check_weights(source)
        return {"model": (load_model(source, config.dtype), None)}
    settings = run.settings
    model = load_model(settings.model, settings.dtype, int8=settings.int8, date=settings.date)
    return _side_by_side(model, run_candidate(source, model, run).variables["lora"])


def _side_by_side(model: Model, lora: dict) -> dict[str, tuple[Model, dict | None]]:
    return {BASE: (model, None), INJECTED: (model, lora)}


def _harness_model(model: Model, lora: dict | None, name: str, config: HarnessConfig) -> Any:
    from selfparam_jax.evaluation.harness import HarnessModel

    def progress(label: str, total: int) -> Callable[[int], Any]:
        bar = open_bar(total, f"{name}: {label}", "request", leave=False)

        def finished(count: int) -> None:
            bar.update(count)
            if bar.n == total:
                bar.close()

        return finished

    return HarnessModel(model, lora, 1.0, config.batch_size, progress)


def _collect(found: dict[str, dict]) -> dict[str, dict]:
    """What the harness found of every model, by task and metric."""
    first = next(iter(found.values()))
    tasks = {}
    for task, row in first["results"].items():
        names = [name for name in row if "," in name and "_stderr," not in name]
        scores, errors = {}, {}
        for name in names:
            metric, _, kind = name.partition(",")
            label = metric if kind == "none" else name
            scores[label] = {model: _number(each["results"][task][name]) for model, each in found.items()}
            error = f"{metric}_stderr,{kind}"
            errors[label] = {model: _number(each["results"][task].get(error)) for model, each in found.items()}
        tasks[task] = {
            "examples": (first.get("n-samples", {}).get(task) or {}).get("effective"),
            "num_fewshot": first.get("n-shot", {}).get(task),
            "version": first.get("versions", {}).get(task),
            "scores": scores,
            "stderr": errors,
        }
    return tasks


def _number(value: Any) -> float | None:
    """A score as JSON has it: the harness writes "N/A" for what has no standard error."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def check_scores_file(path: str | os.PathLike) -> None:
    """Raises ValueError if `write_scores` could not write at a path, or would replace another file."""
    files.check_own_json(path, ("source", "models", "tasks", "config", "fingerprint"))


def write_scores(record: dict, path: str | pathlib.Path) -> None:
    """Writes what `evaluate_tasks` gave as JSON."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, record)


def score_rows(record: dict) -> tuple[list[str], Sequence[Sequence[str]]]:
    """A table of `evaluate_tasks`: its header, and a row for every task and metric."""
    models = record["models"]
    rows = []
    for task, found in record["tasks"].items():
        for metric, values in found["scores"].items():
            cells = [_cell(values[name], found["stderr"][metric][name]) for name in models]
            rows.append([task, metric, str(found["examples"] or ""), *cells])
    return ["task", "metric", "examples", *models], rows


def _cell(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"
