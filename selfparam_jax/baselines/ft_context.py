"""FT(C): an adapter that was fine-tuned on the documents themselves, with the next-token loss."""

from collections.abc import Sequence

from selfparam_jax.baselines._finetuned import FineTuned, TrainedOptions
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.evaluation.systems import SystemEntry
from selfparam_jax.targets.sentences import Sentence
from selfparam_jax.training.finetune import context_sentences


class FineTunedOnContext(FineTuned):
    """FT(C)."""

    label = "FT(C)"

    def sentences(self, documents: Sequence[Document]) -> list[Sentence]:
        return context_sentences(documents, self.setup.prompt, self.recipe)


SYSTEM = SystemEntry(
    "ft_c",
    "FT(C)",
    "question only; fine-tuned on the documents",
    "baseline",
    FineTunedOnContext,
    trained=True,
    options=TrainedOptions,
)
RECOMMENDER = RecommenderEntry(
    "ft_c",
    "FT(C)",
    "fine-tuned on the dialogues",
    "baseline",
    ModelRecommender,
    sentences=lambda documents, prompt, recipe, unrelated: context_sentences(documents, prompt, recipe),
)
