"""Several documents into one set of weights, then all their questions without the documents.

python -m selfparam_jax.main --config=configs/batch.py --workdir=/tmp/batch
python -m selfparam_jax.main --config=configs/batch.py:quick --workdir=/tmp/quick
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The batch job.

    Args:
      arg: "" (four documents), "all" (all eight that are reported on), "development" (four of those on which
        the recipe was chosen), "quick" (two documents, a few steps).
    """
    limits = {"": 4, "all": 0, "development": 4, "quick": 2}
    if arg not in limits:
        raise ValueError(f"configs/batch.py takes one of {', '.join(map(repr, limits))}, got {arg!r}")
    config = base.get_config()
    config.job = "batch"
    config.limit = limits[arg]
    if arg == "development":
        config.contexts = str(base.EXAMPLES / "development.jsonl")
    if arg == "quick":
        config.train.epochs = 1
    return config
