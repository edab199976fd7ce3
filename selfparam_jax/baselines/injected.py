"""The model that the documents were written into, asked the question alone: the adapter is applied, not merged."""

from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.drift import General
from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.evaluation.systems import BaseSystem, SystemEntry, answer_adapted, drift_adapted


class Injected(BaseSystem):
    """The candidate; merged, it needs nothing that the base does not need."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        setup = self.setup
        if setup.lora is None:
            raise ValueError("the injected model needs an adapter, but the setup has none; inject first")
        return answer_adapted(setup, setup.lora, setup.lora_scale, documents)

    def drift(self, general: General) -> dict:
        return drift_adapted(self.setup, self.setup.lora, self.setup.lora_scale, general)


SYSTEM = SystemEntry(
    "injected", "Injected", "question only", "candidate", Injected, needs_injection=True, also=("selfparam",)
)
RECOMMENDER = RecommenderEntry("injected", "Injected", "dialogue only", "candidate", ModelRecommender)
