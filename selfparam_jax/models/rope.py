"""Rotary position embeddings."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.models.architecture import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig, local: bool = False) -> np.ndarray:
    """Inverse frequencies of the rotary embedding, float32 [H / 2], scaling applied.

    Args:
      config: the architecture.
      local: those of the layers with a window, if they have their own.
    """
    theta = config.local_rope_theta if local else config.rope_theta
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(theta) ** exponent).astype(np.float32)
    scaling = None if local else config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / np.float32(scaling.factor)
    if scaling.rope_type == "longrope":
        return (frequencies / np.asarray(scaling.short_factor, np.float32)).astype(np.float32)
    kept = _yarn_kept(scaling, config) if scaling.rope_type == "yarn" else _llama3_kept(scaling, frequencies)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).astype(np.float32)


def _llama3_kept(scaling: RopeScaling, frequencies: np.ndarray) -> np.ndarray:
    """1 where a frequency is kept, 0 where it is divided by `factor`: by its turns in the original length."""
    wavelengths = 2 * np.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return np.clip((turns - low) / (high - low), 0.0, 1.0)


def _yarn_kept(scaling: RopeScaling, config: ModelConfig) -> np.ndarray:
    """The same, linear in the number of the dimension between two bounds (https://arxiv.org/abs/2309.00071)."""

    def dimension(turns: float) -> float:
        """The index of the frequency that makes this many turns over the original length."""
        length = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.head_dim * math.log(length) / (2 * math.log(config.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    high += 0.001 if low == high else 0
    return np.float32(1) - np.clip((np.arange(config.head_dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)


def rotary_angles(config: ModelConfig, positions: jax.Array, rope: str = "global") -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotations.

    Args:
      config: the architecture.
      positions: int32 [B, T].
      rope: which rotary embedding, as in `LayerKind`.

    Returns:
      cosine and sine, each float32 [B, T, H / 2]. For "none" they rotate by nothing.
    """
    if rope == "none":
        shape = (*positions.shape, config.head_dim // 2)
        return jnp.ones(shape), jnp.zeros(shape)
    frequencies = jnp.asarray(rope_frequencies(config, rope == "local"))
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rope == "global" and config.rope_scaling and config.rope_scaling.attention_factor is not None:
        return cos * config.rope_scaling.attention_factor, sin * config.rope_scaling.attention_factor
    return cos, sin


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, T, heads, H]; first and second half of H are the two components, as in Hugging Face's weights."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
