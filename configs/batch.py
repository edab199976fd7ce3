"""Several documents into one set of weights, then all their questions without the documents.

python -m selfparam_jax.main --config=configs/batch.py --workdir=/tmp/batch
python -m selfparam_jax.main --config=configs/batch.py:quick --workdir=/tmp/quick
"""

from ml_collections import ConfigDict
from selfparam_jax.configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The batch job.

    Args:
      arg: "" (the first four example documents), "all" (all eight that are reported on), "development" (four of those
        on which the recipe was chosen), "quick" (two documents, a few steps), "reading" (pairs in the reading format
        alone: `base.set_reading_recipe`). With documents of your own (`--config.contexts=PATH`) all of them are used.
    """
    contexts = {"": "examples:4", "all": "examples", "development": "examples:development:4", "quick": "examples:2"}
    contexts["reading"] = contexts[""]
    if arg not in contexts:
        raise ValueError(f"configs/batch.py takes one of {', '.join(map(repr, contexts))}, got {arg!r}")
    config = base.get_config()
    config.job = "batch"
    config.contexts = contexts[arg]
    if arg == "reading":
        base.set_reading_recipe(config)
    if arg == "quick":
        config.train.epochs = 1
    return config
