"""What a run tells TensorBoard and Weights & Biases: steps, scores, settings, and answers sampled during training.

Every directory that an injection works in is a series of its own; a run that is resumed continues it. Settings hold
no key (`targets.config`), and nothing is recorded of the machine, its environment or the command line.
"""

import contextlib
import dataclasses
import importlib.util
import json
import os
import pathlib
import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.distributed import files
from selfparam_jax.distributed.files import flatten
from selfparam_jax.distributed.processes import is_main_process
from selfparam_jax.jobs.evaluation import answer_injected
from selfparam_jax.jobs.inputs import Job
from selfparam_jax.jobs.settings import Settings
from selfparam_jax.reports.tables import markdown_cell, markdown_table, value_cell

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
PROJECT = "selfparam-jax"  # of Weights & Biases, where WANDB_PROJECT names no other
SAMPLES = "samples.jsonl"
Rows = Sequence[dict[str, str]]


class Tracker(Protocol):
    """Where a series goes."""

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers after a step, by name."""

    def log_rows(self, step: int, name: str, rows: Rows) -> None:
        """A table of texts after a step."""

    def close(self) -> None:
        """Everything is written."""


class TensorBoardTracker:
    """Event files in DIRECTORY/tensorboard."""

    def __init__(self, directory: pathlib.Path, settings: dict[str, object], first: int | None):
        """Args:
        directory: of the series.
        settings: of the run.
        first: steps done before; what was written of later ones is void. None: nothing is.
        """
        from tensorboardX import SummaryWriter

        place = directory / "tensorboard"
        fresh = not place.is_dir()
        purge = {} if first is None or fresh else {"purge_step": first + 1}
        self._writer = SummaryWriter(str(place), **purge)
        if fresh:
            rows = [(markdown_cell(name), value_cell(value)) for name, value in settings.items()]
            self._writer.add_text("settings", markdown_table(("setting", "value"), rows), 0)

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers after a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def log_rows(self, step: int, name: str, rows: Rows) -> None:
        """A table as Markdown."""
        table = [[markdown_cell(text) for text in row.values()] for row in rows]
        self._writer.add_text(name, markdown_table(list(rows[0]), table), step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


class WandbTracker:
    """A run of Weights & Biases; its id is in DIRECTORY/wandb.json, so that a resumed run continues it."""

    def __init__(self, directory: pathlib.Path, settings: dict[str, object], name: str, group: str):
        """Args:
        directory: of the series.
        settings: of the run.
        name: of the run.
        group: what it belongs to.

        Raises:
          ValueError: W&B cannot be reached.
        """
        import wandb

        record = directory / "wandb.json"
        if not record.exists():
            with files.replacing_own(record) as temporary:
                temporary.write_text(json.dumps({"id": secrets.token_hex(4)}) + "\n", encoding="utf-8")
        offline = os.environ.get("WANDB_MODE") == "offline"
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                id=files.read_json(record, keys=("id",))["id"],
                name=name,
                group=group,
                config=settings,
                dir=str(directory),
                resume=None if offline else "allow",  # offline it is `wandb sync` that joins parts of one id
                settings=wandb.Settings(
                    console="off", silent=True, disable_code=True, disable_git=True, save_code=False,
                    x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
                ),
            )  # fmt: skip
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"report_to = wandb: {reason}; run `wandb login`, set WANDB_MODE=offline, or leave wandb out"
            ) from error

    def log_scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers after a step; W&B drops those of a step that it has already."""
        self._run.log(values, step=step)

    def log_rows(self, step: int, name: str, rows: Rows) -> None:
        """A table."""
        import wandb

        self._run.log({name: wandb.Table(list(rows[0]), [list(row.values()) for row in rows])}, step=step)

    def close(self) -> None:
        """Waits until everything is sent, or written where W&B is offline."""
        self._run.finish()


@dataclasses.dataclass(frozen=True)
class Tracking:
    """What is told of a run, and to whom; without trackers and samples it does nothing.

    Attributes:
      trackers: of `Settings.trackers`.
      workdir: of the run; names the series.
      settings: of the run, as they go out.
      sample_every: steps from one sample of answers to the next; 0: none.
      sample: answers of a model with an adapter, a row each with "document", "question", "gold" and "answer".
    """

    trackers: tuple[str, ...] = ()
    workdir: pathlib.Path = pathlib.Path()
    settings: dict[str, object] = dataclasses.field(default_factory=dict)
    sample_every: int = 0
    sample: Callable[[Model, dict], Rows] = lambda model, lora: []

    @contextlib.contextmanager
    def open(self, directory: pathlib.Path, first: int | None) -> Iterator[list[Tracker]]:
        """The trackers of a directory's series; none on other processes than the main one.

        Args:
          directory: the work directory, or one in it.
          first: steps done before; None to add to the series whatever its steps.

        Raises:
          ValueError: a tracker cannot be reached.
        """
        with contextlib.ExitStack() as stack:
            found: list[Tracker] = []
            for name in self.trackers if is_main_process() else ():
                if name == "tensorboard":
                    made: Tracker = TensorBoardTracker(directory, self.settings, first)
                else:
                    made = WandbTracker(directory, self.settings, self._name(directory), self.workdir.resolve().name)
                found.append(stack.enter_context(contextlib.closing(made)))
            yield found

    def _name(self, directory: pathlib.Path) -> str:
        root, inner = self.workdir.resolve(), directory.resolve()
        return str(pathlib.Path(root.name) / inner.relative_to(root))


class Series:
    """One injection's series: samples.jsonl, and trackers that are opened before the first step."""

    def __init__(self, tracking: Tracking, directory: pathlib.Path | None):
        """Args:
        tracking: what is told, and to whom.
        directory: of the injection; None tells nothing.
        """
        self._tracking, self._directory = tracking, directory
        self._stack, self._trackers = contextlib.ExitStack(), []

    def start(self, first: int) -> None:
        """Opens the trackers; what was told of steps after `first` is void."""
        if self._directory is None:
            return
        self._trackers = self._stack.enter_context(self._tracking.open(self._directory, first))
        path = self._directory / SAMPLES
        if path.exists():
            files.write_lines(path, [row for row in files.read_log(path) if row.get("step", first + 1) <= first])

    def log_step(self, record: dict) -> None:
        """Tells a step's numbers, as metrics.jsonl has them."""
        for tracker in self._trackers:
            tracker.log_scalars(record["step"], {f"train/{k}": v for k, v in record.items() if k != "step"})

    def log_sample(self, step: int, model: Model, lora: dict) -> None:
        """Asks a few questions of the model as it stands, and tells the answers; all processes must call this."""
        rows = self._tracking.sample(model, lora)
        if not rows or self._directory is None:
            return
        path = self._directory / SAMPLES
        before = files.read_log(path)
        files.write_lines(path, [*before, *({"step": step, **row} for row in rows)])
        for tracker in self._trackers:
            tracker.log_rows(step, "samples", rows)

    def close(self) -> None:
        """Ends the trackers."""
        self._stack.close()


def check_trackers(settings: Settings) -> None:
    """Raises ValueError if a tracker's package or its login is missing."""
    for name in settings.trackers:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"report_to = {name} needs the package {PACKAGES[name]}: run pip install 'selfparam-jax[trackers]'"
            )
    if "wandb" in settings.trackers and is_main_process() and os.environ.get("WANDB_MODE", "online") == "online":
        import wandb

        if not wandb.login(prompt=False):
            raise ValueError(
                "report_to = wandb: nobody is logged in to Weights & Biases; run `wandb login`, set "
                "WANDB_MODE=offline, or leave wandb out"
            )


def job_tracking(job: Job, documents: Sequence[Document]) -> Tracking:
    """What a job tells of an injection.

    Args:
      job: its settings say to whom.
      documents: whose questions are asked during training.
    """
    settings = job.settings
    every, count = settings.eval.sample_every, settings.eval.sample_questions
    asked = first_questions(documents, count) if every else []
    return Tracking(
        settings.trackers,
        job.workdir,
        flatten(dataclasses.asdict(settings)),
        every if asked else 0,
        lambda model, lora: _sample(job, asked, model, lora),
    )


def first_questions(documents: Sequence[Document], count: int) -> list[Document]:
    """Documents with `count` of their questions in all: the first of each, then the second of each, and so on."""
    places = [(n, d) for d, document in enumerate(documents) for n in range(len(document.questions))]
    kept = sorted(places)[:count]
    chosen = []
    for d, document in enumerate(documents):
        if own := tuple(document.questions[n] for n, of in kept if of == d):
            chosen.append(dataclasses.replace(document, questions=own))
    return chosen


def _sample(job: Job, asked: Sequence[Document], model: Model, lora: dict) -> Rows:
    answers = answer_injected(job, asked, model, lora)
    return [
        {"document": document.id, "question": question.question, "gold": question.answers[0], "answer": row["answer"]}
        for document, group in zip(asked, answers, strict=True)
        for question, row in zip(document.questions, group, strict=True)
    ]


def track_results(job: Job, results: dict) -> None:
    """Tells a finished job's scores, drift and seconds."""
    tracking = job_tracking(job, [])
    with tracking.open(job.workdir, None) as trackers:
        for tracker in trackers:
            tracker.log_scalars(results.get("steps") or 0, _numbers(results))


def _numbers(results: dict) -> dict[str, float]:
    parts = {name: results.get(name) or {} for name in ("scores", "drift", "timing")}
    found = {}
    for part, each in parts.items():
        found |= {f"{part}/{name.replace('.', '/')}": value for name, value in flatten(each).items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
