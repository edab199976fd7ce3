"""FT(S): an adapter that was fine-tuned on the target sentences, with the next-token loss."""

from collections.abc import Sequence

from selfparam_jax.baselines._finetuned import FineTuned, TrainedOptions
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.evaluation.systems import SystemEntry
from selfparam_jax.targets.sentences import Sentence
from selfparam_jax.training.finetune import target_sentences


class FineTunedOnSentences(FineTuned):
    """FT(S)."""

    label = "FT(S)"

    def sentences(self, documents: Sequence[Document]) -> list[Sentence]:
        return target_sentences(documents, self.setup.prompt, self.recipe, self.setup.unrelated)


SYSTEM = SystemEntry(
    "ft_s",
    "FT(S)",
    "question only; fine-tuned on the target sentences",
    "baseline",
    FineTunedOnSentences,
    trained=True,
    options=TrainedOptions,
)
RECOMMENDER = RecommenderEntry(
    "ft_s", "FT(S)", "fine-tuned on the target sentences", "baseline", ModelRecommender, sentences=target_sentences
)
