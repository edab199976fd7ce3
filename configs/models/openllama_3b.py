"""OpenLLaMA 3B v2 in bfloat16, its weights split over all devices (FSDP).

python -m selfparam_jax.main --config=configs/models/openllama_3b.py --workdir=/shared/run
python -m selfparam_jax.plan --config=configs/models/openllama_3b.py --devices=v5e-16

openllama_3b.json beside this file is its architecture, for planning without the weights.
"""

from ml_collections import ConfigDict
from selfparam_jax.configs.models import large


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: the job, "batch" (also ""), "single" or "sequential"."""
    return large.get_config("openlm-research/open_llama_3b_v2", arg)
