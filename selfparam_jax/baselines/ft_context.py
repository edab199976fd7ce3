"""FT(C): an adapter that was fine-tuned on the documents themselves, with the next-token loss."""

from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.training.finetune import context_sentences

RECOMMENDER = RecommenderEntry(
    "ft_c",
    "FT(C)",
    "fine-tuned on the dialogues",
    "baseline",
    ModelRecommender,
    sentences=lambda documents, prompt, recipe, unrelated: context_sentences(documents, prompt, recipe),
)
