"""What systems with an adapter of their own share: training, a look at the model's health, and answers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.distributed import files
from selfparam_jax.distributed.mesh import fetch, put_same
from selfparam_jax.distributed.ranges import Range, check_ranges
from selfparam_jax.evaluation.drift import General
from selfparam_jax.evaluation.health import is_ruined
from selfparam_jax.evaluation.systems import BaseSystem, answer_adapted, drift_adapted
from selfparam_jax.targets.sentences import Sentence
from selfparam_jax.training.finetune import fine_tune
from selfparam_jax.training.inject import Hooks, Injection
from selfparam_jax.training.recipe import Recipe

RATE = Range(1e-12, 1e3, also={0: "the recipe's"})


@dataclasses.dataclass(frozen=True)
class TrainedOptions:
    """How a system with an adapter of its own is trained, where that differs from the job's recipe.

    Attributes:
      learning_rate: of its training; 0 takes the recipe's.
      check_every: steps from one look at the perplexity on general text to the next.

    Raises:
      ValueError: a value outside its range.
    """

    learning_rate: Annotated[float, RATE] = 0.0
    check_every: Annotated[int, Range(1, 10**9)] = 25

    def __post_init__(self):
        check_ranges(self)


class Trained(BaseSystem):
    """A system that trains an adapter of its own and is asked without the documents.

    A run that ruins the model is said to have collapsed; the adapter of the last step at which it was healthy is
    kept, and asked too (`healthy`).
    """

    label = ""  # of its bar of training

    @property
    def recipe(self) -> Recipe:
        """The job's recipe with the system's own learning rate."""
        recipe, rate = self.setup.recipe, self.setup.options.learning_rate
        return (
            dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, learning_rate=rate))
            if rate
            else recipe
        )

    def train(self, documents: Sequence[Document], hooks: Hooks) -> Injection:
        """Trains the adapter."""
        raise NotImplementedError

    def prepare(self, documents: Sequence[Document]) -> None:
        """Trains, or reads what was trained before."""
        setup = self.setup
        if setup.directory is not None:
            setup.directory.mkdir(parents=True, exist_ok=True)
        self._health = Health(self)
        with setup.open_hooks(setup.directory, self.label) as hooks:
            if setup.general is not None:
                hooks = dataclasses.replace(
                    hooks, sample_every=setup.options.check_every, on_sample=self._health.look
                )
            done = self.train(documents, hooks)
        self.lora, self.steps, self.train_s = done.lora, done.steps, done.teacher_s + done.train_s

    def with_trained(self, lora: dict) -> BaseSystem:
        """The model with what was trained, or with what it was at an earlier step."""
        scale = self.recipe.lora.scale
        return Adapted(dataclasses.replace(self.setup, lora=lora, lora_scale=scale))

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        return self.with_trained(self.lora).answer(documents)

    @functools.cached_property
    def _drift(self) -> dict:
        return self.with_trained(self.lora).drift(self.setup.general)

    def drift(self, general: General) -> dict:
        return self._drift if general is self.setup.general else self.with_trained(self.lora).drift(general)

    def healthy(self) -> tuple[int, BaseSystem] | None:
        """The last step at which the model was healthy, and the model of then; None if it still is, or never was."""
        if self.setup.general is None or not is_ruined(self._drift):
            return None
        return self._health.last()


class Adapted(BaseSystem):
    """The base with a given adapter (`Setup.lora`)."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        return answer_adapted(self.setup, self.setup.lora, self.setup.lora_scale, documents)

    def drift(self, general: General) -> dict:
        return drift_adapted(self.setup, self.setup.lora, self.setup.lora_scale, general)


class Health:
    """Looks at a model while it is trained, and keeps its adapter at the last step at which it was healthy."""

    def __init__(self, system: Trained):
        """Args:
        system: what is trained; its directory keeps health.json and healthy.safetensors.
        """
        self._system, self._arrays = system, None
        self._steps: dict[str, float | None] = {}
        self._directory = system.setup.directory
        if self._directory is not None and (self._directory / "health.json").exists():
            self._steps = files.read_json(self._directory / "health.json", keys=("perplexity",))["perplexity"]

    def look(self, step: int, model: Model, lora: dict) -> None:
        """Measures the model after a step, and keeps its adapter if it is healthy."""
        setup = self._system.setup
        drift = self._system.with_trained(lora).drift(setup.general)
        self._steps[str(step)] = drift["perplexity_after"]
        if not is_ruined(drift):
            self._arrays = {"step": np.array(step), **flatten_dict(jax.tree.map(fetch, lora), sep=".")}
        if self._directory is not None:
            if self._arrays is not None and int(self._arrays["step"]) == step:
                with files.replacing(self._directory / "healthy.safetensors") as path:
                    save_file(self._arrays, path)
            files.write_json(self._directory / "health.json", {"perplexity": self._steps})

    def last(self) -> tuple[int, BaseSystem] | None:
        """The last step at which the model was healthy, and the model of then; None if it never was."""
        arrays, setup = self._arrays, self._system.setup
        if arrays is None and self._directory is not None and (self._directory / "healthy.safetensors").exists():
            arrays = load_file(self._directory / "healthy.safetensors")
        if arrays is None:
            return None
        arrays = dict(arrays)
        step = int(arrays.pop("step"))
        return step, self._system.with_trained(put_same(setup.model.mesh, unflatten_dict(arrays, sep=".")))


class FineTuned(Trained):
    """A system that is fine-tuned with the next-token loss on sentences."""

    def sentences(self, documents: Sequence[Document]) -> list[Sentence]:
        """What it is fine-tuned on."""
        raise NotImplementedError

    def train(self, documents: Sequence[Document], hooks: Hooks) -> Injection:
        setup = self.setup
        return fine_tune(setup.model, self.sentences(documents), self.recipe, setup.directory, hooks)
