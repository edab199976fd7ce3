"""What answers questions, behind one protocol: the base, the base with a document, the injected model, ...

The registry is `baselines.registry.SYSTEMS`: every system is a file of its own there.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.drift import NOT_MEASURED, General, measure_drift
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.training.inject import Hooks
from selfparam_jax.training.other_teacher import OtherTeacher
from selfparam_jax.training.recipe import Recipe

ROLES = ("lower bound", "upper bound", "baseline", "candidate")
NO_COST = {"storage_bytes": 0, "extra_parameters": 0}


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a system is made from.

    Attributes:
      model: the base.
      prompt: the format, bound to the model's tokenizer.
      batch_size: questions decoded together.
      lora, lora_scale: an adapter that was trained on the documents, and its scale; None where there is none.
      adapters: gives the adapter of each document by its place, where each has its own of that scale; None elsewhere.
      options: the system's own settings, an instance of `SystemEntry.options`; None for a system without any.
      recipe: adapter, optimizer and target sentences, for a system that is trained.
      unrelated: unrelated texts, for a system that is trained on target sentences.
      teacher: another model that teaches; None: the base does.
      general: general text as the base reads it, to see whether training ruins the model; None: not looked at.
      directory: where the system keeps its work and resumes it; None keeps it in memory.
      open_hooks: given a directory and a label, what shows progress of training and stops it.
    """

    model: Model
    prompt: Prompt
    batch_size: int = 16
    lora: dict | None = None
    lora_scale: float = 1.0
    adapters: Callable[[int], dict] | None = None
    options: Any = None
    recipe: Recipe = Recipe()
    unrelated: Sequence[str] = ()
    teacher: OtherTeacher | None = None
    general: General | None = None
    directory: pathlib.Path | None = None
    open_hooks: Callable[[pathlib.Path | None, str], contextlib.AbstractContextManager[Hooks]] = (
        lambda directory, label: contextlib.nullcontext(Hooks())
    )


class System(Protocol):
    """Something that answers questions about documents."""

    def prepare(self, documents: Sequence[Document]) -> None:
        """Reads, indexes or trains on the documents; called once, before any question. Resumes its own work."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        """Answers the documents' held-out questions, as `questions.answer_questions` does."""

    def cost(self) -> dict:
        """What it needs beside the base to answer: {"storage_bytes", "extra_parameters"}; others may follow."""

    def drift(self, general: General) -> dict:
        """How far the model that it changed is from the base on general text; NOT_MEASURED if it changed none."""

    def healthy(self) -> "tuple[int, System] | None":
        """If training has ruined the model: the last step at which it had not, and the model of then."""


@dataclasses.dataclass
class BaseSystem:
    """A system that prepares nothing, keeps nothing and changes no model, but for what its class says otherwise.

    Attributes:
      setup: what it is made from.
      earlier_s: seconds of the work of earlier runs that `prepare` did not have to do again.
    """

    setup: Setup
    earlier_s = 0.0

    def prepare(self, documents: Sequence[Document]) -> None:
        """Nothing is prepared."""

    def cost(self) -> dict:
        """Nothing beside the base."""
        return NO_COST

    def drift(self, general: General) -> dict:
        """The base stays as it is."""
        return NOT_MEASURED

    def healthy(self) -> tuple[int, System] | None:
        """Nothing is trained, or its health is not looked at."""
        return None


def answer_adapted(setup: Setup, lora: dict, scale: float, documents: Sequence[Document]) -> list[list[dict]]:
    """What the base with an adapter beside it answers without the documents.

    Args:
      setup: base, prompt format and batch size.
      lora, scale: the adapter, and the scale of its products.
      documents: whose questions are asked.

    Returns:
      as `questions.answer_questions`.
    """
    decoder, variables = setup.model.decoder(lora_scale=scale), {**setup.model.variables, "lora": lora}
    return answer_questions(decoder, variables, setup.prompt, documents, False, setup.batch_size)


def drift_adapted(setup: Setup, lora: dict, scale: float, general: General) -> dict:
    """How far the base with an adapter beside it is from the base on general text.

    Args:
      setup: the base.
      lora, scale: the adapter, and the scale of its products.
      general: as the base reads it.

    Returns:
      as `drift.measure_drift`.
    """
    return measure_drift(setup.model.decoder(lora_scale=scale), general, {**setup.model.variables, "lora": lora})


@dataclasses.dataclass(frozen=True)
class SystemEntry:
    """A system in the registry.

    Attributes:
      name: what settings and records call it.
      label, meaning: what reports call it, and what it reads, in a few words.
      role: one of ROLES; reports compare the candidate with the bounds.
      make: makes the system from a `Setup`.
      trained: whether preparing it means training, so that it comes after the job's own injection.
      in_sequence: whether job "sequential" can ask it: not if it needs the job's adapter, or learns something that
        is no adapter.
      needs_adapters: whether it needs an adapter for each document (`Setup.adapters`), which job "single" makes.
      needs_injection: whether it needs the adapter that the job trains (`Setup.lora`).
      options: a frozen dataclass of the system's own settings with their defaults, `baselines.NAME` in a
        configuration; None for a system without any.
      also: other names under which settings may ask for it, such as the paper's.
      unavailable: says why the system cannot be asked with the setup's model, "" if it can; its row in the table says
        so instead of a score.
    """

    name: str
    label: str
    meaning: str
    role: str
    make: Callable[[Setup], System]
    trained: bool = dataclasses.field(default=False, kw_only=True)
    in_sequence: bool = dataclasses.field(default=True, kw_only=True)
    needs_adapters: bool = dataclasses.field(default=False, kw_only=True)
    needs_injection: bool = dataclasses.field(default=False, kw_only=True)
    options: type | None = dataclasses.field(default=None, kw_only=True)
    also: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    unavailable: Callable[[Setup], str] = dataclasses.field(default=lambda setup: "", kw_only=True)

    def record(self) -> dict:
        """What results.json holds of it."""
        return {"name": self.name, "label": self.label, "meaning": self.meaning, "role": self.role}
