"""Every setting with its default. The other configurations start from here and change a few.

    python -m selfparam_jax.main --config=configs/base.py --workdir=/tmp/run

Any setting can be given on the command line: `--config.lora.rank=16 --config.train.epochs=8`. The defaults and what
each setting does are in the code that uses it; `docs/settings.md` lists them all.
"""

from ml_collections import ConfigDict

from selfparam_jax.jobs.settings import default_config


def get_config(arg: str = "") -> ConfigDict:
    """The defaults. `arg` is what follows the colon in `--config=FILE:arg`; here it must be empty."""
    if arg:
        raise ValueError(f"configs/base.py takes no argument, got {arg!r}")
    return default_config()
