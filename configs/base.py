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


def set_reading_recipe(config: ConfigDict) -> None:
    """The recipe whose pairs are all read in the reading format: less is learned, with fewer steps.

    What it taught is there in that format, less so in a conversation. The measurements that name `batch:reading`, and
    those of the jobs sequential, recommend and of the comparison of systems, were made with it.

    Args:
      config: changed in place.
    """
    config.targets.formats = "reading"
    config.targets.by_confidence = False
    config.targets.contrast_per_epoch = config.targets.chat_per_epoch = 0
    config.targets.unrelated_per_epoch = 12
    config.train.epochs = 5
    config.train.learning_rate = 4e-3
