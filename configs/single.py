"""Each document on its own, from the untouched base every time: mean and spread over documents.

python -m selfparam_jax.main --config=configs/single.py --workdir=/tmp/single
python -m selfparam_jax.main --config=configs/single.py:quick --workdir=/tmp/quick
"""

from ml_collections import ConfigDict
from selfparam_jax.configs import base


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" (every example document), "quick" (two documents, a few steps)."""
    if arg not in ("", "quick"):
        raise ValueError(f"configs/single.py takes '' or 'quick', got {arg!r}")
    config = base.get_config()
    config.job = "single"
    if arg == "quick":
        config.contexts = "examples:2"
        config.train.epochs = 1
    return config
