"""Products with the frozen weights in bfloat16, in models whose activations are float32.

Processors with instructions for it (Intel's AMX; AVX-512 BF16, also AMD's since Zen 4) multiply matrices of bfloat16
faster than those of float32. The weights are rounded once and kept beside those in float32, which adapters are merged
into; activations are rounded as they enter a product (`decoder.rounded_product`). Sums, norms, softmax, the adapter
and the loss stay in float32.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from selfparam_jax.distributed.backend import multiplies_bfloat16
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.decoder import Int8Kernel, head_weight
from selfparam_jax.models.parameters import parameter_table

AUTO = "auto"
PRECISIONS = (AUTO, "float32", "bfloat16")
LEAST_BYTES = 64 << 20  # of the weights together: smaller models gain nothing


def check_precision(precision: str, devices: int) -> None:
    """Raises ValueError for a precision that there is not, or not on several devices."""
    if precision not in PRECISIONS:
        raise ValueError(f"matmul_precision = {precision!r}, expected one of {', '.join(map(repr, PRECISIONS))}")
    if precision == "bfloat16" and devices > 1:
        raise ValueError(
            f"matmul_precision = 'bfloat16' on {devices} devices, expected 'auto' or 'float32': it is for one "
            "processor; on accelerators set dtype='bfloat16'"
        )


def rounds_products(precision: str, params: dict, dtype: Any, devices: int = 1) -> bool:
    """Whether products with a model's weights are to be rounded to bfloat16.

    Args:
      precision: of `PRECISIONS`. "auto" rounds where that is faster: on one device that is a processor with
        instructions for products of bfloat16, a model of at least `LEAST_BYTES`.
      params: the model's, or their shapes.
      dtype: of its activations; products of bfloat16 need no rounding.
      devices: that hold the model.

    Returns:
      True if they are.
    """
    if precision == "float32" or jnp.dtype(dtype) != jnp.float32:
        return False
    if precision == "bfloat16":
        return True
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return devices == 1 and size >= LEAST_BYTES and multiplies_bfloat16()


def rounded_params(params: dict) -> dict:
    """A model's parameters as its decoder multiplies with them: kernels and head in bfloat16, the others as they are.

    A head that is the embedding becomes a tensor of its own; tokens are still looked up in float32.
    """
    layers = jax.tree.map(
        _rounded, params["layers"], is_leaf=lambda node: isinstance(node, dict) and "kernel" in node
    )
    return {**params, "layers": layers, "lm_head": {"weight": _to_bfloat16(head_weight(params))}}


def rounded_bytes(config: ModelConfig, int8: bool = False) -> int:
    """Bytes of what `rounded_params` makes beside a model's own parameters; kernels in 8 bits are not copied."""
    kernels = (math.prod(entry.shape) for entry in parameter_table(config) if entry.is_kernel and not int8)
    return 2 * (sum(kernels) + config.vocab_size * config.hidden_size)


def _rounded(node):
    if not isinstance(node, dict):  # of a norm
        return node
    kernel = node["kernel"]
    if isinstance(kernel, Int8Kernel):  # integers of 8 bits are exact in bfloat16
        return {**node, "kernel": kernel.replace(operands="bfloat16")}
    return {**node, "kernel": _to_bfloat16(kernel)}


@jax.jit
def _to_bfloat16(x):
    return x.astype(jnp.bfloat16)
