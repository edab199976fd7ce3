"""FT(S): an adapter that was fine-tuned on the target sentences, with the next-token loss."""

from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.training.finetune import target_sentences

RECOMMENDER = RecommenderEntry(
    "ft_s", "FT(S)", "fine-tuned on the target sentences", "baseline", ModelRecommender, sentences=target_sentences
)
