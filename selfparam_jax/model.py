"""Llama and Mistral as one Flax Linen decoder that returns hidden states; the head is applied apart.

Axis legend, used in every einsum and shape comment of the project:
  B batch, T query positions, S key positions, D model, N query heads, K key/value heads, G = N / K,
  H head dimension, F feed-forward, V vocabulary, L layers, R adapter rank.

Teacher and student are this one module. `{'params': base}` is the frozen teacher; `{'params': base,
'lora': adapter}` is the student. Parameters are plain nested dicts with Hugging Face's names; those of
the layers are stacked on a leading L axis and scanned over, or apart in a tuple of L trees.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.attention import BLOCKS, attended, sight, way_of

# What the backward pass computes again: nothing; all of a layer but its input; all but its weights' products.
REMAT = {
    "none": None,
    "layers": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of the rotary embedding: `linear`, or `llama3` (Llama 3.1 and later)."""

    rope_type: str
    factor: float
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None

    def __post_init__(self):
        llama3 = (self.low_freq_factor, self.high_freq_factor, self.original_max_position_embeddings)
        if self.rope_type == "llama3" and None in llama3:
            raise ValueError(f"rope_type 'llama3' needs all of its fields, got {self}")
        if self.rope_type == "linear" and llama3 != (None, None, None):
            raise ValueError(f"rope_type 'linear' has a factor only, got {self}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a Llama or Mistral checkpoint; the names are those of Hugging Face's config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"

    def __post_init__(self):
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window = {self.sliding_window}, expected at least 1, or None for none")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even for rotary embeddings")
        if self.hidden_act != "silu":
            raise ValueError(f"hidden_act = {self.hidden_act!r} is not supported; Llama and Mistral use 'silu'")
        if self.rope_scaling and self.rope_scaling.rope_type not in ("linear", "llama3"):
            raise ValueError(
                f"rope_type = {self.rope_scaling.rope_type!r} is not supported; "
                "expected 'default', 'linear' or 'llama3'"
            )


@flax.struct.dataclass
class KeyValues:
    """Keys and values of positions that were read before.

    keys, values: [L, B, K, S, H], or one [B, K, S, H] per layer where the layers are apart; keys already rotated. B
      may be 1: then the rows of a call share them.
    positions, segments: int32 [B, S].
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    positions: jax.Array
    segments: jax.Array


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Inverse frequencies of the rotary embedding, float32 [H / 2], scaling applied."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / np.float32(scaling.factor)
    # llama3: long wavelengths are slowed by `factor`, short ones kept, those between interpolated.
    wavelengths = 2 * np.pi / frequencies
    turns = scaling.original_max_position_embeddings / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).astype(np.float32)


def rotary_angles(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine, each float32 [B, T, H / 2], for positions [B, T]."""
    frequencies = jnp.asarray(rope_frequencies(config))
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates x [B, T, heads, H]; first and second half of H are the two components (HF's layout)."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


@jax.custom_vjp
def low_rank_product(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """x @ a @ b for x [M, D], a [D, R], b [R, F].

    The gradients are those of the plain expression. They are written out because the derived ones contract
    over the long axis with the narrow factor on the right, which costs a third of a layer's time on CPU.
    """
    return (x @ a) @ b


def _low_rank_forward(x, a, b):
    low = x @ a
    return low @ b, (x, low, a, b)


def _low_rank_backward(residuals, gradient):
    x, low, a, b = residuals
    gradient_low = gradient @ b.T  # [M, R]
    return gradient_low @ a.T, (gradient_low.T @ x).T, low.T @ gradient


low_rank_product.defvjp(_low_rank_forward, _low_rank_backward)


def written(old: jax.Array, new: jax.Array, at: jax.Array, axis: int) -> jax.Array:
    """`old` with `new` in place of what stands from `at` on."""
    return lax.dynamic_update_slice_in_dim(old, new, at, axis)


Layout = Callable[..., jax.Array]  # (array, names of its axes) -> the array, laid out over devices


def placed(layout: Layout | None, x: jax.Array, *names: str | None) -> jax.Array:
    """`x` where a layout wants it, by the names of its axes (`mesh.RULES`); None leaves that to the compiler."""
    return x if layout is None else layout(x, *names)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean of squares in float32."""

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones_init(), (x.shape[-1],))
        x32 = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        # Rounded before the weight is applied, as Hugging Face does it: matters in bf16 only.
        return ((x32 * scale).astype(x.dtype) * weight[None, None, :].astype(x.dtype)).astype(x.dtype)


@flax.struct.dataclass
class Int8Kernel:
    """A kernel rounded to 8 bits, `values * scale`.

    Attributes:
      values: int8 [..., D, F].
      scale: float32 [..., 1, F], one per output channel, so that it may follow the product.
    """

    values: jax.Array
    scale: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def int8_product(
    x: jax.Array, values: jax.Array, scale: jax.Array, layout: Layout | None, axes: tuple[str | None, str | None]
) -> jax.Array:
    """x @ (values * scale) in float32: x [B, T, D], and the parts of an `Int8Kernel` [D, F], which get no gradient.

    Its gradient is written out to keep the int8 values for the backward pass; derived, it would keep them converted.
    Both passes gather what is split over FSDP as the 8 bits it is; the compiler would gather what the product makes
    of it.

    Args:
      axes: names of the kernel's axes as the product needs it.
    """
    return _int8_forward(x, values, scale, layout, axes)[0]


def _int8_forward(x, values, scale, layout, axes):
    whole = placed(layout, values, *axes).astype(x.dtype)
    y = jnp.einsum("btd,df->btf", x, whole, preferred_element_type=jnp.float32)
    # x itself is not needed: only its dtype.
    return y * scale[None], (values, scale, jnp.zeros((), x.dtype))


def _int8_backward(layout, axes, residuals, gradient):
    values, scale, like = residuals
    whole = placed(layout, values, *axes).astype(like.dtype)
    scaled = (gradient * scale[None]).astype(like.dtype)
    to_x = jnp.einsum("btf,df->btd", scaled, whole, preferred_element_type=jnp.float32)
    return to_x.astype(like.dtype), None, None


int8_product.defvjp(_int8_forward, _int8_backward)


class Projection(nn.Module):
    """y = x @ kernel (+ bias) (+ scale * dropout(x) @ a @ b where the adapter has this projection)."""

    features: int
    use_bias: bool
    lora_scale: float
    lora_dropout: float
    layout: Layout | None = None
    axes: tuple[str | None, str | None] = (None, None)  # of the kernel, as a product needs it: gathered over FSDP

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
        if isinstance(kernel, Int8Kernel):
            y = int8_product(x, kernel.values, kernel.scale, self.layout, self.axes)
        else:
            y = jnp.einsum("btd,df->btf", x, kernel.astype(x.dtype), preferred_element_type=jnp.float32)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            y = y + bias[None, None, :].astype(jnp.float32)
        if self.has_variable("lora", "a"):
            a, b = self.get_variable("lora", "a"), self.get_variable("lora", "b")
            dropped = nn.Dropout(self.lora_dropout, deterministic=deterministic)(x)
            flat = dropped.astype(jnp.float32).reshape(-1, x.shape[-1])
            y = y + low_rank_product(flat, a, b * self.lora_scale).reshape(y.shape)
        return y.astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention over past blocks and the tokens themselves; also returns their keys and values."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    layout: Layout | None
    attention: str = BLOCKS

    @nn.compact
    def __call__(self, x, cos, sin, seen, past, deterministic, at=None):
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

        def project(name, features, inputs, axes=(None, "heads")):
            adapter = self.lora_scale, self.lora_dropout
            layer = Projection(features, config.attention_bias, *adapter, self.layout, axes, name=name)
            return layer(inputs, deterministic)

        batch, length, model_dim = x.shape

        def split_heads(name, count):
            projected = project(name, count * head_dim, x).reshape(batch, length, count, head_dim)
            return placed(self.layout, projected, "rows", None, "heads", None)

        queries = split_heads("q_proj", heads)
        keys, values = split_heads("k_proj", kv_heads), split_heads("v_proj", kv_heads)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        # [B, K, T, H], as a cache keeps them: a step of decoding reads it without transposing it.
        keys, values = jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)
        if at is not None:
            *past, room = past
            keys, values = (written(old, new, at, 2) for old, new in zip(room, (keys, values), strict=True))
        blocks = [*past, (keys, values)]
        out = attended(self.attention, queries, blocks, seen, config.sliding_window, self.layout)
        out = project("o_proj", model_dim, out.reshape(batch, length, heads * head_dim), ("heads", None))
        return out, (keys, values)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    layout: Layout | None

    @nn.compact
    def __call__(self, x, deterministic):
        def project(name, features, inputs, axes=(None, "inner")):
            adapter = self.lora_scale, self.lora_dropout
            layer = Projection(features, self.config.mlp_bias, *adapter, self.layout, axes, name=name)
            return layer(inputs, deterministic)

        gate = project("gate_proj", self.config.intermediate_size, x)
        up = project("up_proj", self.config.intermediate_size, x)
        inner = placed(self.layout, jax.nn.silu(gate) * up, "rows", None, "inner")
        return project("down_proj", x.shape[-1], inner, ("inner", None))


class DecoderLayer(nn.Module):
    """One block; the signature is that of a scan body: carry x, per-layer past, new (keys, values) out."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    deterministic: bool
    layout: Layout | None
    attention: str = BLOCKS

    @nn.compact
    def __call__(self, x, past, cos, sin, seen, at=None):
        shared = self.config, self.lora_scale, self.lora_dropout, self.layout
        normed = RMSNorm(self.config.rms_norm_eps, name="input_layernorm")(x)
        attention = Attention(*shared, self.attention, name="self_attn")
        attended, key_values = attention(normed, cos, sin, seen, past, self.deterministic, at)
        x = placed(self.layout, x + attended, "rows", None, None)
        normed = RMSNorm(self.config.rms_norm_eps, name="post_attention_layernorm")(x)
        x = x + MLP(*shared, name="mlp")(normed, self.deterministic)
        return placed(self.layout, x, "rows", None, None), key_values


def _scanned(layer, length):
    """Stacked layers, one after another."""
    return nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
        length=length,
    )


def _one_by_one(layer, params, adapters, x, blocks, *shared):
    """What the scan over layers gives, for layers that are apart."""
    read = []
    for n, (own, adapter) in enumerate(zip(params, adapters, strict=True)):
        past = [(keys[n], values[n]) for keys, values in blocks]
        x, key_values = layer.apply({"params": own, "lora": adapter}, x, past, *shared)
        read.append(key_values)
    return x, tuple(zip(*read, strict=True))


class Decoder(nn.Module):
    """Token ids to final normed hidden states.

    Attributes:
      config: the architecture.
      dtype: dtype of activations; matrix products accumulate in float32 whatever it is.
      remat: what the backward pass computes again instead of having kept it, of `REMAT`.
      attention: what computes it where it can (`attention.way_of`), of `attention.ATTENTION`.
      lora_scale, lora_dropout: alpha / rank and input dropout of the adapter, if one is given.
      layout: where activations lie on several devices (`mesh.Layout`); None on one.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    lora_scale: float = 1.0
    lora_dropout: float = 0.0
    layout: Layout | None = None
    attention: str = BLOCKS

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        positions: jax.Array,
        segments: jax.Array,
        past: tuple[KeyValues, ...] = (),
        deterministic: bool = True,
        at: jax.Array | None = None,
    ) -> tuple[jax.Array, KeyValues]:
        """Reads rows of tokens.

        Args:
          input_ids, positions, segments: int32 [B, T]; positions count from the start of the text a
            token belongs to, so they restart within packed rows and go on after a prefix.
          past: blocks of keys and values that the new tokens attend to besides themselves.
          deterministic: False applies the adapter's dropout (needs a 'dropout' key).
          at: int32 [], only where the layers are apart: the tokens are written to the last block of `past` from this
            slot on, instead of being a block of their own.

        Returns:
          hidden [B, T, D] after the final norm, and the KeyValues of the tokens just read (the block that they were
          written to).
        """
        config = self.config
        table, drawn = (config.vocab_size, config.hidden_size), nn.initializers.normal(0.02)
        embed = self.param("embed_tokens", lambda key, shape: {"embedding": drawn(key, shape)}, table)
        if not config.tie_word_embeddings:
            # Declared here so that init makes it and the parameter table finds it; used by `head_weight`.
            self.param("lm_head", lambda key, shape: {"weight": drawn(key, shape)}, table)
        x = jnp.take(embed["embedding"], input_ids, axis=0).astype(self.dtype)  # [B, T, D]
        # As the table lies first, then as rows do: in one go the compiler would put all of it on every device.
        x = placed(self.layout, placed(self.layout, x, "groups", None, "hidden"), "rows", None, None)
        cos, sin = rotary_angles(config, positions)
        blocks = [(block.keys, block.values) for block in past]
        places = [(block.positions, block.segments) for block in past]
        own = positions, segments
        if at is not None:
            own = tuple(written(old, new, at, 1) for old, new in zip(places.pop(), own, strict=True))
        way = way_of(self.attention, input_ids.shape[1], bool(past), at is not None, config.sliding_window)
        seen = sight(way, (positions, segments), [*places, own], config.sliding_window)

        again = functools.partial(nn.remat, prevent_cse=False, policy=REMAT[self.remat])
        layer = DecoderLayer if self.remat == "none" else again(DecoderLayer)
        settings = config, self.lora_scale, self.lora_dropout, deterministic, self.layout, way
        apart = self.get_variable("params", "layers")
        if isinstance(apart, tuple):
            adapters = self.get_variable("lora", "layers", ({},) * len(apart))
            one = layer(*settings, parent=None)
            x, (keys, values) = _one_by_one(one, apart, adapters, x, blocks, cos, sin, seen, at)
        else:
            layers = _scanned(layer, config.num_hidden_layers)(*settings, name="layers")
            x, (keys, values) = layers(x, blocks, cos, sin, seen)
        hidden = RMSNorm(config.rms_norm_eps, name="norm")(x)
        return hidden, place_keys(self.layout, KeyValues(keys, values, *own))


def place_keys(layout: Layout | None, read: KeyValues) -> KeyValues:
    """Keys and values split over heads and, where there are several rows, over rows."""
    if layout is None:
        return read
    keys, values = (layout(x, None, "rows", "heads", None, None) for x in (read.keys, read.values))
    return read.replace(keys=keys, values=values)


def head_weight(params: dict) -> jax.Array:
    """The output head [V, D]: `lm_head` where the checkpoint has one, else the tied embedding."""
    return params["lm_head"]["weight"] if "lm_head" in params else params["embed_tokens"]["embedding"]


def apply_head(hidden: jax.Array, weight: jax.Array) -> jax.Array:
    """Float32 logits [..., V] of hidden states [..., D] under the head [V, D]."""
    return jnp.einsum("...d,vd->...v", hidden, weight.astype(hidden.dtype), preferred_element_type=jnp.float32)


def param_shapes(config: ModelConfig) -> dict:
    """The tree of jax.ShapeDtypeStruct that a checkpoint of this architecture fills (float32)."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), ids, ids, ids)["params"]
