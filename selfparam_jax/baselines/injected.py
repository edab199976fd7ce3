"""The model that the documents were written into, asked the question alone: the adapter is applied, not merged."""

from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.evaluation.systems import BaseSystem, SystemEntry


class Injected(BaseSystem):
    """The candidate; merged, it needs nothing that the base does not need."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        setup = self.setup
        if setup.lora is None:
            raise ValueError("the injected model needs an adapter, but the setup has none; inject first")
        variables = {"params": setup.model.params, "lora": setup.lora}
        decoder = setup.model.decoder(lora_scale=setup.lora_scale)
        return answer_questions(decoder, variables, setup.prompt, documents, False, setup.batch_size)


SYSTEM = SystemEntry("injected", "Injected", "question only", "candidate", Injected)
RECOMMENDER = RecommenderEntry("injected", "Injected", "dialogue only", "candidate", ModelRecommender)
