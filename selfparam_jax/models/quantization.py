"""A frozen base in 8 bits: half the memory of bfloat16.

Only the kernels of the layers are rounded (by qwix, to the nearest of 255 multiples of a scale; each layer and output
channel has its own). Embedding, head, norms and biases keep their dtype, and the adapter stays in float32.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
from jax import lax

from selfparam_jax.models.decoder import Int8Kernel


def round_kernel(kernel: jax.Array, shardings: Int8Kernel) -> Int8Kernel:
    """A kernel [L, D, F] in 8 bits.

    Args:
      kernel: float, of any dtype.
      shardings: of the values and of the scales.

    Raises:
      ValueError: qwix is not installed.
    """
    return _round(kernel, shardings.values, shardings.scale)


@functools.partial(jax.jit, static_argnames=("values", "scale"))
def _round(kernel, values, scale):
    # The scale in float32, whatever the kernel's dtype: rounded itself, it would double the error.
    found = _qwix().quantize(kernel.astype(jnp.float32), jnp.int8, channelwise_axes=(0, 2))
    return Int8Kernel(
        lax.with_sharding_constraint(found.qvalue, values), lax.with_sharding_constraint(found.scale, scale)
    )


def _qwix():
    try:
        return importlib.import_module("qwix")
    except ImportError as error:
        raise ValueError(
            "base_weights = 'int8' rounds weights with the package qwix, which is not installed; "
            "pip install 'selfparam-jax[int8]', or set --config.base_weights=float"
        ) from error
