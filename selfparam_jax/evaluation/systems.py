"""What answers questions, behind one protocol: the base, the base with a document, the injected model, ...

The registry is `baselines.registry.SYSTEMS`: every system is a file of its own there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt

ROLES = ("lower bound", "upper bound", "baseline", "candidate")


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a system is made from.

    Attributes:
      model: the base.
      prompt: the format, bound to the model's tokenizer.
      batch_size: questions decoded together.
      lora, lora_scale: an adapter that was trained on the documents, and its scale; None where there is none.
      adapters: gives the adapter of each document by its place, where each has its own of that scale; None elsewhere.
    """

    model: Model
    prompt: Prompt
    batch_size: int = 16
    lora: dict | None = None
    lora_scale: float = 1.0
    adapters: Callable[[int], dict] | None = None


class System(Protocol):
    """Something that answers questions about documents."""

    def prepare(self, documents: Sequence[Document]) -> None:
        """Reads, indexes or trains on the documents; called once, before any question."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        """Answers the documents' held-out questions, as `questions.answer_questions` does."""

    def cost(self) -> dict:
        """What it takes beside the base: {"storage_bytes", "extra_parameters"}."""


@dataclasses.dataclass(frozen=True)
class SystemEntry:
    """A system in the registry.

    Attributes:
      name: what settings and records call it.
      label, meaning: what reports call it, and what it reads, in a few words.
      role: one of ROLES; reports compare the candidate with the bounds.
      make: makes the system from a `Setup`.
      needs_adapters: whether it needs an adapter for each document (`Setup.adapters`), which job "single" makes.
    """

    name: str
    label: str
    meaning: str
    role: str
    make: Callable[[Setup], System]
    needs_adapters: bool = dataclasses.field(default=False, kw_only=True)

    def record(self) -> dict:
        """What results.json holds of it."""
        return {"name": self.name, "label": self.label, "meaning": self.meaning, "role": self.role}


NO_COST = {"storage_bytes": 0, "extra_parameters": 0}
