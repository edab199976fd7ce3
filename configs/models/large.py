"""What the large models have in common."""

from ml_collections import ConfigDict
from selfparam_jax.configs import base


def get_config(model: str, job: str = "batch") -> ConfigDict:
    """A job on a model of billions of parameters, on accelerators.

    Args:
      model: hub id or directory.
      job: "batch" (also ""), "single" or "sequential".
    """
    if job not in ("", "batch", "single", "sequential"):
        raise ValueError(f"got {job!r} after the colon, expected batch, single or sequential")
    config = base.get_config()
    base.set_reading_recipe(config)
    config.job = job or "batch"
    config.model = model
    config.dtype = "bfloat16"
    config.prompt = "paper"  # these read a context without worked examples
    config.mesh.data = 1
    config.mesh.fsdp = -1
    # The released recipe's rank and the rate of a larger model; the objective is the paper's.
    config.lora.alpha = 32.0
    config.targets.answer_supervision = 0.0
    config.targets.unrelated_tokens = 256
    config.train.learning_rate = 2e-4
    config.train.batch_size = 16
    config.train.seq_len = 512
    config.train.loss_chunk = 256
    config.eval.batch_size = 64
    return config
