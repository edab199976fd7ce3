"""Mistral 7B v0.1 in bfloat16, its weights split over all devices (FSDP).

python -m selfparam_jax.main --config=configs/models/mistral_7b.py --workdir=/shared/run
python -m selfparam_jax.plan --config=configs/models/mistral_7b.py --devices=v5e-16

mistral_7b.json beside this file is its architecture, for planning without the weights.
"""

from ml_collections import ConfigDict
from selfparam_jax.configs.models import large


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: the job, "batch" (also ""), "single" or "sequential"."""
    return large.get_config("mistralai/Mistral-7B-v0.1", arg)
