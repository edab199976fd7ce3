"""Llama and its relatives as one Flax Linen decoder that returns hidden states; the head is applied separately.

Axis legend, used in every einsum and shape comment of the project:
  B batch, T query positions, S key positions, D model, N query heads, K key/value heads, G = N / K,
  H head dimension, F feed-forward, V vocabulary, L layers, R adapter rank.

Teacher and student are this one module. `{'params': base}` is the frozen teacher; `{'params': base,
'lora': adapter}` is the student. Parameters are plain nested dicts with Hugging Face's names; those of
the layers are stacked on a leading L axis and scanned over, or unstacked: a tuple of L trees.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from selfparam_jax.models.architecture import LAYER_NORMS, LayerKind, ModelConfig
from selfparam_jax.models.attention import (
    BLOCKS,
    active_implementation,
    attention_masks,
    check_softcap,
    compute_attention,
)
from selfparam_jax.models.rope import rotary_angles, rotate

# What the backward pass computes again: nothing; all of a layer but its input; all but the products with weights.
REMAT = {
    "none": None,
    "layers": jax.checkpoint_policies.nothing_saveable,
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@flax.struct.dataclass
class KeyValues:
    """Keys and values of positions that were read before.

    keys, values: [L, B, K, S, H], or one [B, K, S, H] per layer if the layers are unstacked; keys already rotated. B
      may be 1: then the rows of a call share them.
    positions, segments: int32 [B, S].
    """

    keys: jax.Array | tuple[jax.Array, ...]
    values: jax.Array | tuple[jax.Array, ...]
    positions: jax.Array
    segments: jax.Array


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
    """`old` with `new` written over it from index `at` on.

    Args:
      old: the whole array.
      new: what takes the place of a part; as long as `old` in all axes but `axis`.
      at: int32 scalar, where the part begins.
      axis: along which it lies.

    Returns:
      an array of the shape of `old`.
    """
    return lax.dynamic_update_slice_in_dim(old, new, at, axis)


ActivationSharding = Callable[..., jax.Array]  # (array, names of its axes) -> the array, laid out over devices


def constrain(sharding: ActivationSharding | None, x: jax.Array, *names: str | None) -> jax.Array:
    """`x` constrained to a sharding by the names of its axes (`mesh.RULES`); None leaves it to the compiler."""
    return x if sharding is None else sharding(x, *names)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, the mean of squares in float32.

    Attributes:
      epsilon: added to the mean square.
      kind: how the weight is applied, of `architecture.NORMS`.
    """

    epsilon: float
    kind: str = "llama"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = self.param("weight", nn.initializers.ones_init(), (x.shape[-1],))
        weight = jnp.expand_dims(weight, range(x.ndim - 1))
        x32 = x.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.epsilon)
        # Rounded before or after the weight is applied, as Hugging Face does it: matters in bf16 only.
        if self.kind == "llama":
            return ((x32 * scale).astype(x.dtype) * weight.astype(x.dtype)).astype(x.dtype)
        weight = weight.astype(jnp.float32)
        return (x32 * scale * (1 + weight if self.kind == "gemma" else weight)).astype(x.dtype)


@flax.struct.dataclass
class Int8Kernel:
    """A kernel rounded to 8 bits, `values * scale`.

    Attributes:
      values: int8 [..., D, F].
      scale: float32 [..., 1, F], one per output channel, so that it may follow the product.
      operands: dtype that activations and values are multiplied in; "" is that of the activations.
    """

    values: jax.Array
    scale: jax.Array
    operands: str = flax.struct.field(pytree_node=False, default="")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def int8_product(
    x: jax.Array,
    values: jax.Array,
    scale: jax.Array,
    sharding: ActivationSharding | None,
    axes: tuple[str | None, str | None],
    operands: str = "",
) -> jax.Array:
    """x @ (values * scale) in float32, for the parts of an `Int8Kernel`, which get no gradient.

    Its gradient is written out to keep the int8 values for the backward pass; derived, it would keep them converted.
    Both passes gather what is split over FSDP in 8 bits; the compiler would gather it after the conversion.

    Args:
      x: [B, T, D].
      values: int8 [D, F].
      scale: float32 [1, F].
      sharding: of activations on several devices, or None.
      axes: names of the kernel's axes in the product.
      operands: dtype of both sides of the product; "" is that of x.

    Returns:
      float32 [B, T, F].
    """
    return _int8_forward(x, values, scale, sharding, axes, operands)[0]


def _int8_forward(x, values, scale, sharding, axes, operands):
    y = _contract(x, constrain(sharding, values, *axes).astype(operands or x.dtype), 0)
    # x itself is not needed: only its dtype.
    return y * scale[None], (values, scale, jnp.zeros((), x.dtype))


def _int8_backward(sharding, axes, operands, residuals, gradient):
    values, scale, like = residuals
    whole = constrain(sharding, values, *axes).astype(operands or like.dtype)
    to_x = _contract(gradient * scale[None], whole, 1)
    return to_x.astype(like.dtype), None, None


int8_product.defvjp(_int8_forward, _int8_backward)


def is_rounded(weight: jax.Array, dtype: Any) -> bool:
    """Whether products of a frozen weight with activations of a dtype are rounded to the weight's (`rounding`)."""
    return weight.dtype == jnp.bfloat16 and jnp.dtype(dtype) == jnp.float32


@jax.custom_vjp
def rounded_product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x @ weight, both operands in the weight's dtype, the sum in float32; the weight gets no gradient.

    The gradient is such a product too; derived, it would be one in float32 with a weight that is converted for it.

    Args:
      x: float32 [..., D].
      weight: bfloat16 [D, F].

    Returns:
      float32 [..., F].
    """
    return _contract(x, weight, 0)


def _contract(x, weight, axis):
    """The product over the last axis of x and one of the weight's."""
    # A vector times a matrix of bfloat16 takes four times as long on CPU as two rows do.
    alone = x.size == x.shape[-1] and is_rounded(weight, x.dtype)
    rows = jnp.concatenate([x, x]) if alone else x
    axes = ((x.ndim - 1,), (axis,)), ((), ())
    y = lax.dot_general(rows.astype(weight.dtype), weight, axes, preferred_element_type=jnp.float32)
    return y[:1] if alone else y


rounded_product.defvjp(
    lambda x, weight: (_contract(x, weight, 0), weight),
    lambda weight, gradient: (_contract(gradient, weight, 1), None),
)


class Projection(nn.Module):
    """y = x @ kernel (+ bias) (+ scale * dropout(x) @ a @ b where the adapter has this projection)."""

    features: int
    use_bias: bool
    lora_scale: float
    lora_dropout: float
    sharding: ActivationSharding | None = None
    axes: tuple[str | None, str | None] = (None, None)  # of the kernel in the product: gathered over FSDP

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
        if isinstance(kernel, Int8Kernel):
            y = int8_product(x, kernel.values, kernel.scale, self.sharding, self.axes, kernel.operands)
        elif is_rounded(kernel, x.dtype):
            y = rounded_product(x, kernel)
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
    sharding: ActivationSharding | None
    attention: str = BLOCKS

    @nn.compact
    def __call__(self, x, cos, sin, masks, past, deterministic, at=None):
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim

        def project(name, features, inputs, axes=(None, "heads")):
            adapter = self.lora_scale, self.lora_dropout
            biased = name in config.biased_projections
            layer = Projection(features, biased, *adapter, self.sharding, axes, name=name)
            return layer(inputs, deterministic)

        batch, length, model_dim = x.shape

        def split_heads(name, count, norm=None):
            projected = project(name, count * head_dim, x)
            if norm and config.qk_norm == "whole":
                projected = RMSNorm(config.rms_norm_eps, config.norm, name=norm)(projected)
            projected = projected.reshape(batch, length, count, head_dim)
            projected = constrain(self.sharding, projected, "rows", None, "heads", None)
            if norm and config.qk_norm == "head":
                projected = RMSNorm(config.rms_norm_eps, config.norm, name=norm)(projected)
            return projected

        queries = split_heads("q_proj", heads, "q_norm")
        keys, values = split_heads("k_proj", kv_heads, "k_norm"), split_heads("v_proj", kv_heads)
        keys = rotate(keys, cos, sin)
        if config.query_pre_attn_scalar is not None:
            # Attention divides by the root of H; what it should divide by is made up for here, in float32.
            factor = (head_dim / config.query_pre_attn_scalar) ** 0.5
            cos, sin = cos * factor, sin * factor
        queries = rotate(queries, cos, sin)
        # [B, K, T, H], as a cache keeps them: a step of decoding reads it without transposing it.
        keys, values = jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)
        if at is not None:
            *past, room = past
            keys, values = (written(old, new, at, 2) for old, new in zip(room, (keys, values), strict=True))
        blocks = [*past, (keys, values)]
        settings = config.sliding_window, self.sharding, config.attn_logit_softcapping
        out = compute_attention(self.attention, queries, blocks, masks, *settings)
        out = project("o_proj", model_dim, out.reshape(batch, length, heads * head_dim), ("heads", None))
        return out, (keys, values)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    sharding: ActivationSharding | None

    @nn.compact
    def __call__(self, x, deterministic):
        def project(name, features, inputs, axes=(None, "inner")):
            adapter = self.lora_scale, self.lora_dropout
            biased = name in self.config.biased_projections
            layer = Projection(features, biased, *adapter, self.sharding, axes, name=name)
            return layer(inputs, deterministic)

        gate = project("gate_proj", self.config.intermediate_size, x)
        up = project("up_proj", self.config.intermediate_size, x)
        activation = jax.nn.silu if self.config.hidden_act == "silu" else jax.nn.gelu
        inner = constrain(self.sharding, activation(gate) * up, "rows", None, "inner")
        return project("down_proj", x.shape[-1], inner, ("inner", None))


class DecoderLayer(nn.Module):
    """One block; the signature is that of a scan body: carry x, per-layer past, new (keys, values) out."""

    config: ModelConfig
    lora_scale: float
    lora_dropout: float
    deterministic: bool
    sharding: ActivationSharding | None
    attention: str = BLOCKS

    @nn.compact
    def __call__(self, x, past, cos, sin, masks, at=None, kind=None):
        config, shared = self.config, (self.config, self.lora_scale, self.lora_dropout, self.sharding)
        if kind is not None:
            # Layers differ: of each kind there is one, stacked on a leading axis.
            cos, sin, masks = jax.tree.map(lambda each: each[kind], (cos, sin, masks))

        def norm(name, x):
            return x if name is None else RMSNorm(config.rms_norm_eps, config.norm, name=name)(x)

        before_attention, after_attention, before_mlp, after_mlp = LAYER_NORMS[config.layer_norms]
        normed = norm(before_attention, x)
        attention = Attention(*shared, self.attention, name="self_attn")
        attended, key_values = attention(normed, cos, sin, masks, past, self.deterministic, at)
        x = constrain(self.sharding, x + norm(after_attention, attended), "rows", None, None)
        normed = norm(before_mlp, x)
        x = x + norm(after_mlp, MLP(*shared, name="mlp")(normed, self.deterministic))
        return constrain(self.sharding, x, "rows", None, None), key_values


def _scanned(layer, length, *axes):
    """Stacked layers, one after another; `axes` of the arguments after x."""
    return nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=axes,
        length=length,
        # No variable is shared by the layers, so there is nothing to check, and checking traces a layer once more.
        check_constancy_invariants=False,
    )


@functools.partial(jax.jit, static_argnames="layer")
def _apply_layer(layer, variables, x, past, view, at):
    """One layer. Layers of equal shapes are traced once."""
    return layer.apply(variables, x, past, *view, at)


def _one_by_one(layer, params, adapters, x, blocks, views, at):
    """What the scan over layers gives, for unstacked layers."""
    read = []
    for n, (own, adapter, view) in enumerate(zip(params, adapters, views, strict=True)):
        past = [(keys[n], values[n]) for keys, values in blocks]
        x, key_values = _apply_layer(layer, {"params": own, "lora": adapter}, x, past, view, at)
        read.append(key_values)
    return x, tuple(zip(*read, strict=True))


class Decoder(nn.Module):
    """Token ids to final normed hidden states.

    Attributes:
      config: the architecture.
      dtype: dtype of activations; matrix products accumulate in float32 whatever it is.
      remat: what the backward pass computes again instead of storing it, of `REMAT`.
      attention: its implementation where that is possible (`attention.active_implementation`), of
        `attention.ATTENTION`.
      lora_scale, lora_dropout: alpha / rank and input dropout of the adapter, if one is given.
      sharding: of activations on several devices (`mesh.ActivationSharding`); None on one.
    """

    config: ModelConfig
    dtype: Any = jnp.float32
    remat: str = "none"
    lora_scale: float = 1.0
    lora_dropout: float = 0.0
    sharding: ActivationSharding | None = None
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
            token belongs to, so they restart within packed rows and continue after a prefix.
          past: blocks of keys and values that the new tokens attend to besides themselves.
          deterministic: False applies the adapter's dropout (needs a 'dropout' key).
          at: int32 [], only for unstacked layers: the tokens are written to the last block of `past` from this slot
            on, instead of being a block of their own.

        Returns:
          hidden [B, T, D] after the final norm, and the KeyValues of the tokens just read (with `at`, the block that
          they were written to).
        """
        config = self.config
        check_softcap(self.attention, config.attn_logit_softcapping)
        table, drawn = (config.vocab_size, config.hidden_size), nn.initializers.normal(0.02)
        embed = self.param("embed_tokens", lambda key, shape: {"embedding": drawn(key, shape)}, table)
        if not config.tie_word_embeddings:
            # Declared here so that init makes it and the parameter table finds it; used by `output_head`.
            self.param("lm_head", lambda key, shape: {"weight": drawn(key, shape)}, table)
        x = jnp.take(embed["embedding"], input_ids, axis=0).astype(self.dtype)  # [B, T, D]
        # First split as the table is, then as rows are: in one step the compiler would put all of it on every device.
        x = constrain(self.sharding, constrain(self.sharding, x, "groups", None, "hidden"), "rows", None, None)
        if config.embedding_scale != 1.0:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        blocks = [(block.keys, block.values) for block in past]
        places = [(block.positions, block.segments) for block in past]
        own = positions, segments
        if at is not None:
            own = tuple(written(old, new, at, 1) for old, new in zip(places.pop(), own, strict=True))
        kinds = sorted(set(config.layer_kinds), key=config.layer_kinds.index)
        implementation = active_implementation(
            self.attention, input_ids.shape[1], bool(past), at is not None, config.sliding_window, len(kinds) > 1
        )

        def view(kind: LayerKind):
            """What layers of a kind see: cosine and sine of the rotations, and masks."""
            masks = attention_masks(implementation, (positions, segments), [*places, own], kind.window)
            return *rotary_angles(config, positions, kind.rope), masks

        views = {kind: view(kind) for kind in kinds}
        again = functools.partial(nn.remat, prevent_cse=False, policy=REMAT[self.remat])
        layer = DecoderLayer if self.remat == "none" else again(DecoderLayer)
        settings = config, self.lora_scale, self.lora_dropout, deterministic, self.sharding, implementation
        unstacked = self.get_variable("params", "layers")
        if isinstance(unstacked, tuple):
            adapters = self.get_variable("lora", "layers", ({},) * len(unstacked))
            one = layer(*settings, parent=None)
            each = [views[kind] for kind in config.layer_kinds]
            x, (keys, values) = _one_by_one(one, unstacked, adapters, x, blocks, each, at)
        elif len(kinds) == 1:
            layers = _scanned(layer, config.num_hidden_layers, 0, *[nn.broadcast] * 3)(*settings, name="layers")
            x, (keys, values) = layers(x, blocks, *views[kinds[0]])
        else:
            axes = 0, *[nn.broadcast] * 4, 0
            layers = _scanned(layer, config.num_hidden_layers, *axes)(*settings, name="layers")
            stacked = jax.tree.map(lambda *each: jnp.stack(each), *views.values())
            numbers = jnp.asarray([kinds.index(kind) for kind in config.layer_kinds], jnp.int32)
            x, (keys, values) = layers(x, blocks, *stacked, None, numbers)
        hidden = RMSNorm(config.rms_norm_eps, config.norm, name="norm")(x)
        return hidden, place_keys(self.sharding, KeyValues(keys, values, *own))


def place_keys(sharding: ActivationSharding | None, read: KeyValues) -> KeyValues:
    """Keys and values split over heads and, where there are several rows, over rows."""
    if sharding is None:
        return read
    keys, values = (sharding(x, None, "rows", "heads", None, None) for x in (read.keys, read.values))
    return read.replace(keys=keys, values=values)


@flax.struct.dataclass
class CappedHead:
    """An output head whose logits are softcap * tanh(logit / softcap). `weight` is [V, D]."""

    weight: jax.Array
    softcap: float = flax.struct.field(pytree_node=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape


Head = jax.Array | CappedHead


def head_weight(params: dict) -> jax.Array:
    """The weight [V, D] of the output head, without its cap: `lm_head`, or the tied embedding."""
    return params["lm_head"]["weight"] if "lm_head" in params else params["embed_tokens"]["embedding"]


def output_head(params: dict, config: ModelConfig, sharding: ActivationSharding | None = None) -> Head:
    """The output head [V, D], for `apply_head`.

    Args:
      params: of the model.
      config: its architecture.
      sharding: of arrays on several devices; None leaves it to the compiler.
    """
    weight = constrain(sharding, head_weight(params), "vocabulary", None)
    return weight if config.final_logit_softcapping is None else CappedHead(weight, config.final_logit_softcapping)


def head_matrix(head: Head) -> jax.Array:
    """The weight [V, D] of a head."""
    return head.weight if isinstance(head, CappedHead) else head


def apply_head(hidden: jax.Array, head: Head) -> jax.Array:
    """Float32 logits [..., V] of hidden states [..., D] under the head [V, D]."""
    weight = head_matrix(head)
    logits = _contract(hidden, weight if is_rounded(weight, hidden.dtype) else weight.astype(hidden.dtype), 1)
    return head.softcap * jnp.tanh(logits / head.softcap) if isinstance(head, CappedHead) else logits


def slope_before_cap(slope: jax.Array, logits: jax.Array, head: Head) -> jax.Array:
    """A derivative with respect to the logits of `apply_head` as one with respect to those before the head's cap.

    Args:
      slope, logits: float32 [..., V].
      head: without a cap the slope stays.
    """
    return slope * (1 - jnp.square(logits / head.softcap)) if isinstance(head, CappedHead) else slope


def param_shapes(config: ModelConfig) -> dict:
    """The tree of jax.ShapeDtypeStruct that a checkpoint of this architecture fills (float32)."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), ids, ids, ids)["params"]
