"""What is planned: the part of a job's settings that decides what a step needs, and the model's architecture."""

import dataclasses
import os
import pathlib

import jax.numpy as jnp

from selfparam_jax.checkpoints import load
from selfparam_jax.distributed.mesh import MeshConfig
from selfparam_jax.models.attention import BLOCKS
from selfparam_jax.models.decoder import ModelConfig
from selfparam_jax.models.lora import LoraConfig
from selfparam_jax.training.optimizer import TrainConfig
from selfparam_jax.training.recipe import AUTO, chosen_remat


@dataclasses.dataclass(frozen=True)
class Workload:
    """One kind of training step.

    Attributes:
      dtype: of weights and activations, "float32" or "bfloat16".
      remat: what the backward pass computes again: "layers", "products", "none" or "auto".
      attention: the attention implementation, as in the job's settings.
      int8: whether the kernels of the base are held in 8 bits.
      supervised: whether a next-token loss is taken beside the KL.
      merges: whether adapters are merged into the base while the job runs (job `sequential`), which rules out a base
        in 8 bits.
      lora: shape of the adapter.
      train: batch size, sequence length, parts of a step, optimizer.
      mesh: sizes of the mesh's axes.
      questions: that are answered together.
      teacher: architecture of a teacher that is another model, taken to be in the same dtype; None: the base teaches.
      teacher_int8: whether the kernels of this teacher are held in 8 bits while it reads.
    """

    dtype: str = "float32"
    remat: str = AUTO
    attention: str = BLOCKS
    int8: bool = False
    supervised: bool = True
    merges: bool = False
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    questions: int = 16
    teacher: ModelConfig | None = None
    teacher_int8: bool = False

    @property
    def item_bytes(self) -> int:
        """Bytes of one weight or activation."""
        return jnp.dtype(self.dtype).itemsize

    def settled(self, config: ModelConfig) -> "Workload":
        """The same with what `remat` "auto" is for a model."""
        return dataclasses.replace(self, remat=chosen_remat(self.remat, config, self.train, self.item_bytes))

    @property
    def base_weights(self) -> str:
        """How the base is held, in the words of the settings."""
        return "int8" if self.int8 else "float"


def read_architecture(path: str | os.PathLike, config_file: str | os.PathLike, model: str) -> ModelConfig:
    """The architecture that is planned for; no weights are read unless only the model itself has it.

    Args:
      path: a config.json in Hugging Face's layout; "" for none.
      config_file: the job's configuration file; a .json of the same name beside it is taken next.
      model: name of the model, which is loaded if there is neither.

    Raises:
      ValueError, OSError: the file or the model cannot be read.
    """
    beside = pathlib.Path(str(config_file).split(":")[0]).with_suffix(".json")
    if path or beside.is_file():
        return load.read_architecture(path or beside)
    return load.load_model(model).config
