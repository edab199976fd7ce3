"""A loaded model: the value that every phase takes."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from selfparam_jax.distributed.mesh import activation_sharding, make_mesh
from selfparam_jax.models.attention import ATTENTION, BLOCKS, SPLASH, check_softcap
from selfparam_jax.models.decoder import Decoder, ModelConfig
from selfparam_jax.models.rounding import AUTO, check_precision, rounded_params, rounds_products


@dataclasses.dataclass(frozen=True)
class Model:
    """A model ready for use.

    Attributes:
      name: short and without folders; names results.
      config: the architecture.
      params: the parameter tree of `Decoder`, as jax.Arrays on the mesh.
      tokenizer: a transformers fast tokenizer; its `chat_template` is None if the model has none.
      hf_config: the transformers config, for exporting the model again.
      fingerprint: hex SHA-256 of architecture and weights, see `tensors.fingerprint`.
      mesh: the devices that hold the parameters; None means the first local device.
      attention: its implementation in training, of `attention.ATTENTION`.
      int8: whether the kernels of the layers are rounded to 8 bits.
      source: what `load_model` was given; "" if it was not loaded.
      end_ids: ids that end a text, of config.json, generation_config.json or a GGUF file's metadata.
      files: directory of the checkpoint's files in Hugging Face's layout; "" if there is none.
      matmul_precision: of products with the weights where activations are float32, of `rounding.PRECISIONS`.

    Raises:
      ValueError: `attention` is unknown, or cannot serve the architecture; `matmul_precision` is unknown, or
        bfloat16 on several devices.
    """

    name: str
    config: ModelConfig
    params: dict
    tokenizer: Any
    hf_config: Any
    fingerprint: str
    mesh: Mesh | None = None
    attention: str = BLOCKS
    int8: bool = False
    source: str = ""
    end_ids: tuple[int, ...] = ()
    files: str = ""
    matmul_precision: str = AUTO

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise ValueError(f"attention = {self.attention!r}, expected one of {', '.join(ATTENTION)}")
        check_softcap(self.attention, self.config.attn_logit_softcapping)
        if self.mesh is None:
            object.__setattr__(self, "mesh", make_mesh(jax.local_devices()[:1]))
        check_precision(self.matmul_precision, self.mesh.size)

    @property
    def dtype(self) -> np.dtype:
        """Of the parameters that are not in 8 bits, and of activations."""
        return np.dtype(self.params["embed_tokens"]["embedding"].dtype)

    @property
    def matmul_dtype(self) -> str:
        """The dtype that activations and weights are multiplied in, "float32" or "bfloat16"."""
        rounded = rounds_products(self.matmul_precision, self.params, self.dtype, self.mesh.size)
        return "bfloat16" if rounded else self.dtype.name

    @functools.cached_property
    def variables(self) -> dict:
        """{"params"} as `decoder` takes them: in `matmul_precision`, rounded at first use and then kept.

        An adapter is added as {**variables, "lora": adapter}. `params` are what adapters are merged into.
        """
        return {"params": rounded_params(self.params) if self.matmul_dtype != self.dtype.name else self.params}

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer can write a conversation."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def decoder(self, **changes: Any) -> Decoder:
        """The module that reads contexts and answers questions.

        Args:
          **changes: fields of `Decoder` to set, for example lora_scale, lora_dropout, remat or attention.

        Returns:
          a Decoder in this model's dtype, sharded over its mesh. Implementations of attention that serve
          training only are replaced by our own.
        """
        fields = {
            "dtype": self.dtype,
            "sharding": activation_sharding(self.mesh),
            "attention": SPLASH if self.attention == SPLASH else BLOCKS,
        }
        return Decoder(self.config, **{**fields, **changes})
