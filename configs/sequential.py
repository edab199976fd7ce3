"""Contexts one after another into the same weights; after each, all their questions.

python -m selfparam_jax.main --config=configs/sequential.py --workdir=/tmp/sequential
python -m selfparam_jax.main --config=configs/sequential.py:published --workdir=/tmp/published
python -m selfparam_jax.main --config=configs/sequential.py:quick --workdir=/tmp/quick
"""

from ml_collections import ConfigDict
from selfparam_jax.configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The sequential job on the example documents.

    Args:
      arg: "" (what forgets least: replay, the original as teacher, small steps), "published" (nothing against
        forgetting but unrelated text after the context, as the paper has it), "quick" (three documents, a few steps).
    """
    if arg not in ("", "published", "quick"):
        raise ValueError(f"configs/sequential.py takes '', 'published' or 'quick', got {arg!r}")
    config = base.get_config()
    base.set_reading_recipe(config)
    config.job = "sequential"
    config.sequential.length = 0  # all documents; 20 in the paper
    if arg == "published":
        config.targets.unrelated_context = True
        return config
    config.sequential.teacher = "original"
    config.sequential.replay_pairs = 16
    config.sequential.replay_per_epoch = 48
    config.targets.unrelated_per_epoch = 24
    config.train.learning_rate = 2e-3  # half of what a single injection bears
    if arg == "quick":
        config.contexts = "examples:3"
        config.train.epochs = 1
    return config
