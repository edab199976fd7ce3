"""Llama 3 8B in bfloat16, its weights split over all devices (FSDP).

python -m selfparam_jax.main --config=configs/models/llama3_8b.py --workdir=/shared/run
python -m selfparam_jax.plan --config=configs/models/llama3_8b.py --devices=v5e-16

llama3_8b.json beside this file is its architecture, for planning without the weights.
"""

from ml_collections import ConfigDict
from selfparam_jax.configs.models import large


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: the job, "batch" (also ""), "single" or "sequential"."""
    return large.get_config("meta-llama/Meta-Llama-3-8B", arg)
