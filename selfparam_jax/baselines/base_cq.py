"""The base model, asked with the question's document in its prompt: the upper bound."""

from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.systems import BaseSystem, SystemEntry


class BaseWithContext(BaseSystem):
    """Base C+Q."""

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        setup = self.setup
        return answer_questions(
            setup.model.decoder(), setup.model.variables, setup.prompt, documents, True, setup.batch_size
        )


SYSTEM = SystemEntry("base_cq", "Base C+Q", "document in the prompt", "upper bound", BaseWithContext)
