"""Every system on the same questions: quality, cost and drift in one table.

python -m selfparam_jax.main --config=configs/compare.py --workdir=/tmp/compare
python -m selfparam_jax.main --config=configs/compare.py:all --config.systems=base,base_cq,bm25,selfparam
python -m selfparam_jax.main --config=configs/compare.py:sequential --workdir=/tmp/forgetting
"""

from ml_collections import ConfigDict
from selfparam_jax.configs import base

# What a model that came with nothing but its weights can be compared with.
SYSTEMS = ("base", "base_cq", "ft_c", "ft_s", "bm25", "selfparam")


def get_config(arg: str = "") -> ConfigDict:
    """The comparison.

    Args:
      arg: "" (the first four example documents in one set of weights), "all" (all eight), "single" (each of the eight
        alone), "sequential" (ten documents one after another, and what each system that is trained forgets), "quick"
        (two documents, a few steps). `--config.systems` chooses others; `docs/jobs/compare.md` lists them.
    """
    contexts = {"": "examples:4", "all": "examples", "single": "examples", "quick": "examples:2"}
    contexts["sequential"] = "examples\nexamples:development:2"
    if arg not in contexts:
        raise ValueError(f"configs/compare.py takes one of {', '.join(map(repr, contexts))}, got {arg!r}")
    config = base.get_config()
    base.set_reading_recipe(config)
    config.job = arg if arg in ("single", "sequential") else "batch"
    config.contexts = contexts[arg]
    config.systems = SYSTEMS
    config.eval.reach = "none"
    if arg == "sequential":
        config.systems = ("base", "base_cq", "ft_c", "ft_s", "selfparam")
        config.sequential.length = 0  # all ten
    if arg == "quick":
        config.train.epochs = 1
    return config
