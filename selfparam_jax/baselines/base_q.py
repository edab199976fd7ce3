"""The base model, asked the question alone: the lower bound."""

from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.evaluation.systems import BaseSystem, SystemEntry


class Base(BaseSystem):
    """Base Q."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        setup = self.setup
        return answer_questions(
            setup.model.decoder(), setup.model.variables, setup.prompt, documents, False, setup.batch_size
        )


SYSTEM = SystemEntry("base_q", "Base Q", "question only", "lower bound", Base, also=("base",))
RECOMMENDER = RecommenderEntry("base", "Base", "dialogue only", "lower bound", ModelRecommender)
