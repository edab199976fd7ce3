"""All weights of the MLPs trained instead of an adapter: an option of the released code."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from selfparam_jax.baselines._finetuned import RATE, Trained, TrainedOptions
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.drift import General, measure_drift
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.systems import BaseSystem, Setup, SystemEntry
from selfparam_jax.training.full import add_deltas, mlp_student
from selfparam_jax.training.inject import Hooks, Injection, inject


@dataclasses.dataclass(frozen=True)
class FullOptions(TrainedOptions):
    """How the weights are trained.

    Attributes:
      learning_rate: of its training; 0 takes the recipe's, which is an adapter's and too large for whole weights.
      check_every: steps from one look at the perplexity on general text to the next.

    Raises:
      ValueError: a value outside its range.
    """

    learning_rate: Annotated[float, RATE] = 1e-4


class FullMlp(Trained):
    """The base with other MLP weights: nothing is stored beside it."""

    label = "full MLP"

    def train(self, documents: Sequence[Document], hooks: Hooks) -> Injection:
        setup, recipe = self.setup, self.recipe
        return inject(
            setup.model,
            documents,
            recipe,
            setup.unrelated,
            setup.directory,
            hooks=hooks,
            teacher=setup.teacher,
            student=mlp_student(setup.model, recipe),
        )

    def with_trained(self, lora: dict) -> "Changed":
        return Changed(self.setup, lora)


class Changed(BaseSystem):
    """The base with deltas added to its MLP weights."""

    def __init__(self, setup: Setup, deltas: dict):
        super().__init__(setup)
        self._variables = dataclasses.replace(setup.model, params=add_deltas(setup.model.params, deltas)).variables

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        setup = self.setup
        return answer_questions(
            setup.model.decoder(), self._variables, setup.prompt, documents, False, setup.batch_size
        )

    def drift(self, general: General) -> dict:
        return measure_drift(self.setup.model.decoder(), general, self._variables)


SYSTEM = SystemEntry(
    "full_mlp",
    "Full MLP",
    "question only; all MLP weights trained instead of an adapter",
    "baseline",
    FullMlp,
    trained=True,
    in_sequence=False,
    options=FullOptions,
)
