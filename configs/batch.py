"""Several documents into one set of weights, then all their questions without the documents.

python -m selfparam_jax.main --config=configs/batch.py --workdir=/tmp/batch
python -m selfparam_jax.main --config=configs/batch.py:quick --workdir=/tmp/quick
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" (four documents), "all" (every example document), "quick" (two documents, a few steps)."""
    if arg not in ("", "all", "quick"):
        raise ValueError(f"configs/batch.py takes '', 'all' or 'quick', got {arg!r}")
    config = base.get_config()
    config.job = "batch"
    config.limit = {"": 4, "all": 0, "quick": 2}[arg]
    if arg == "quick":
        config.train.epochs = 1
    return config
