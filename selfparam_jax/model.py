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

# Segment ids. Two positions of one row see each other only if their segments are equal; positive ids
# are sentences. Padding is its own segment, so a padding position always sees itself and no row of the
# softmax is empty.
PADDING = 0
SHARED = -1  # keys that every segment of the row may see: a context prefix
EMPTY = -2  # keys that nothing may see: unused slots of a cache

# What the backward pass computes again: nothing; all of a layer but its input; all but its weights' products.
REMAT = {
    "none": None,
    "layers": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
BLOCKS = "blocks"
ATTENTION = (BLOCKS, "xla", "cudnn")


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


def visible(
    query_positions: jax.Array,
    query_segments: jax.Array,
    key_positions: jax.Array,
    key_segments: jax.Array,
    window: int | None,
) -> jax.Array:
    """Boolean mask [B, T, S]: causal, within the sliding window, same segment or a shared key."""
    query_positions, key_positions = query_positions[:, :, None], key_positions[:, None, :]
    query_segments, key_segments = query_segments[:, :, None], key_segments[:, None, :]
    mask = (key_segments == query_segments) | (key_segments == SHARED)
    mask &= key_positions <= query_positions
    if window is not None:
        mask &= key_positions > query_positions - window
    return mask


def attend(queries: jax.Array, blocks: list[tuple[jax.Array, jax.Array]], masks: list[jax.Array]) -> jax.Array:
    """One softmax over several blocks of keys, without concatenating the keys.

    Args:
      queries: [B, T, N, H].
      blocks: (keys, values), each [B or 1, K, S_i, H].
      masks: one [B, T, S_i] per block; no query's may be all False.

    Returns:
      [B, T, N, H]. Scores and softmax are float32.
    """
    batch, length, heads, head_dim = queries.shape
    kv_heads = blocks[0][0].shape[1]
    grouped = queries.reshape(batch, length, kv_heads, heads // kv_heads, head_dim)
    return _attend(grouped, blocks, masks).reshape(batch, length, heads, head_dim)


@jax.custom_vjp
def _attend(queries, blocks, masks):
    return _attend_forward(queries, blocks, masks)[0]


def _fold(x, block):
    """[B, T, ...] as [block's B, rest, ...]: rows that share a block are one long row to it."""
    return x.reshape(block.shape[0], -1, *x.shape[2:])


def _to_block(x, block):
    """One number per query [B, T, K, G] in the order of the block's scores, [block's B, K, T, G, 1]."""
    return jnp.swapaxes(_fold(x, block), 1, 2)[..., None]


def _from_block(x, queries):
    """[block's B, K, T, G, ...] as [B, T, K, G, ...]."""
    return jnp.swapaxes(x, 1, 2).reshape(*queries.shape[:4], *x.shape[4:])


def _scores(queries, keys, mask):
    """Scaled and masked scores, float32 [block's B, K, T, G, S]: so no product needs a transposed side."""
    folded = _fold(queries, keys)
    if folded.shape[1] == 1:  # a step of decoding: the narrow side is the one to transpose
        scores = jnp.einsum("bksh,btkgh->bkstg", keys, folded, preferred_element_type=jnp.float32)
        scores = jnp.moveaxis(scores, 2, 4)
    else:
        scores = jnp.einsum("btkgh,bksh->bktgs", folded, keys, preferred_element_type=jnp.float32)
    return jnp.where(_fold(mask, keys)[:, None, :, None], scores * queries.shape[-1] ** -0.5, -1e30)


def _attend_forward(queries, blocks, masks):
    scores = [_scores(queries, keys, mask) for (keys, _), mask in zip(blocks, masks, strict=True)]
    highest = functools.reduce(jnp.maximum, [_from_block(jnp.max(score, axis=-1), queries) for score in scores])
    out = total = 0.0
    for score, (_, values) in zip(scores, blocks, strict=True):
        exponentials = jnp.exp(score - _to_block(highest, values))
        total += _from_block(jnp.sum(exponentials, axis=-1), queries)
        weights = exponentials.astype(values.dtype)
        term = jnp.einsum("bktgs,bksh->bktgh", weights, values, preferred_element_type=jnp.float32)
        out += _from_block(term, queries)
    out = (out / total[..., None]).astype(queries.dtype)
    # One number per query is kept for the backward pass, not the [T, S] weights: those are computed again.
    return out, (queries, blocks, masks, out, highest + jnp.log(total))


def _attend_backward(residuals, gradient):
    queries, blocks, masks, out, log_total = residuals
    mean = jnp.sum(gradient.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    to_queries, to_blocks = 0.0, []
    for (keys, values), mask in zip(blocks, masks, strict=True):
        folded, own = _fold(queries, keys), jnp.swapaxes(_fold(gradient, values), 1, 2)
        weights = jnp.exp(_scores(queries, keys, mask) - _to_block(log_total, keys))
        slope = weights * (product("bktgh,bksh->bktgs", own, values) - _to_block(mean, keys))
        slope = (slope * queries.shape[-1] ** -0.5).astype(queries.dtype)
        to_queries += _from_block(product("bktgs,bksh->bktgh", slope, keys), queries)
        to_keys = product("bktgs,btkgh->bksh", slope, folded).astype(keys.dtype)
        to_values = product("bktgs,bktgh->bksh", weights.astype(queries.dtype), own).astype(values.dtype)
        to_blocks.append((to_keys, to_values))
    return to_queries.astype(queries.dtype), to_blocks, None


_attend.defvjp(_attend_forward, _attend_backward)


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


@jax.custom_vjp
def int8_product(x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    """x @ (values * scale) in float32: x [B, T, D], and the parts of an `Int8Kernel` [D, F], which get no gradient.

    Its gradient is written out to keep the int8 values for the backward pass; derived, it would keep them converted.
    """
    return _int8_forward(x, values, scale)[0]


def _int8_forward(x, values, scale):
    y = jnp.einsum("btd,df->btf", x, values.astype(x.dtype), preferred_element_type=jnp.float32)
    # x itself is not needed: only its dtype.
    return y * scale[None], (values, scale, jnp.zeros((), x.dtype))


def _int8_backward(residuals, gradient):
    values, scale, like = residuals
    scaled = (gradient * scale[None]).astype(like.dtype)
    to_x = jnp.einsum("btf,df->btd", scaled, values.astype(like.dtype), preferred_element_type=jnp.float32)
    return to_x.astype(like.dtype), None, None


int8_product.defvjp(_int8_forward, _int8_backward)


class Projection(nn.Module):
    """y = x @ kernel (+ bias) (+ scale * dropout(x) @ a @ b where the adapter has this projection)."""

    features: int
    use_bias: bool
    lora_scale: float
    lora_dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
        if isinstance(kernel, Int8Kernel):
            y = int8_product(x, kernel.values, kernel.scale)
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
    def __call__(self, x, cos, sin, masks, past, deterministic, at=None):
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

        def project(name, features, inputs):
            layer = Projection(features, config.attention_bias, self.lora_scale, self.lora_dropout, name=name)
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
        if self.attention == BLOCKS or past:
            out = attend(queries, [*past, (keys, values)], masks)
        else:
            keys_first = (jnp.swapaxes(x, 1, 2) for x in (keys, values))
            out = jax.nn.dot_product_attention(
                queries, *keys_first, mask=masks[0][:, None], implementation=self.attention
            )
        out = project("o_proj", model_dim, out.reshape(batch, length, heads * head_dim))
        return out, (keys, values)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    layout: Layout | None

    @nn.compact
    def __call__(self, x, deterministic):
        def project(name, features, inputs):
            layer = Projection(features, self.config.mlp_bias, self.lora_scale, self.lora_dropout, name=name)
            return layer(inputs, deterministic)

        gate = project("gate_proj", self.config.intermediate_size, x)
        up = project("up_proj", self.config.intermediate_size, x)
        inner = placed(self.layout, jax.nn.silu(gate) * up, "rows", None, "inner")
        return project("down_proj", x.shape[-1], inner)


class DecoderLayer(nn.Module):
    """One block; the signature is that of a scan body: carry x, per-layer past, new (keys, values) out."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    deterministic: bool
    layout: Layout | None
    attention: str = BLOCKS

    @nn.compact
    def __call__(self, x, past, cos, sin, masks, at=None):
        shared = self.config, self.lora_scale, self.lora_dropout, self.layout
        normed = RMSNorm(self.config.rms_norm_eps, name="input_layernorm")(x)
        attention = Attention(*shared, self.attention, name="self_attn")
        attended, key_values = attention(normed, cos, sin, masks, past, self.deterministic, at)
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
      attention: what computes it where rows read nothing before them (training without a past): `BLOCKS`, our
        own, or an implementation of jax.nn.dot_product_attention.
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
        embed = self.param(
            "embed_tokens",
            lambda key, shape: {"embedding": nn.initializers.normal(0.02)(key, shape)},
            (config.vocab_size, config.hidden_size),
        )
        if not config.tie_word_embeddings:
            # Declared here so that init makes it and the parameter table finds it; used by `head_weight`.
            self.param(
                "lm_head",
                lambda key, shape: {"weight": nn.initializers.normal(0.02)(key, shape)},
                (config.vocab_size, config.hidden_size),
            )
        x = jnp.take(embed["embedding"], input_ids, axis=0).astype(self.dtype)  # [B, T, D]
        # As the table lies first, then as rows do: in one go the compiler would put all of it on every device.
        x = placed(self.layout, placed(self.layout, x, "groups", None, "hidden"), "rows", None, None)
        cos, sin = rotary_angles(config, positions)
        blocks = [(block.keys, block.values) for block in past]
        places = [(block.positions, block.segments) for block in past]
        own = positions, segments
        if at is not None:
            own = tuple(written(old, new, at, 1) for old, new in zip(places.pop(), own, strict=True))
        masks = [visible(positions, segments, *place, config.sliding_window) for place in (*places, own)]

        again = functools.partial(nn.remat, prevent_cse=False, policy=REMAT[self.remat])
        layer = DecoderLayer if self.remat == "none" else again(DecoderLayer)
        settings = config, self.lora_scale, self.lora_dropout, deterministic, self.layout, self.attention
        apart = self.get_variable("params", "layers")
        if isinstance(apart, tuple):
            adapters = self.get_variable("lora", "layers", ({},) * len(apart))
            one = layer(*settings, parent=None)
            x, (keys, values) = _one_by_one(one, apart, adapters, x, blocks, cos, sin, masks, at)
        else:
            layers = _scanned(layer, config.num_hidden_layers)(*settings, name="layers")
            x, (keys, values) = layers(x, blocks, cos, sin, masks)
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
