"""BERT as an encoder (Devlin et al., arXiv 1810.04805): texts in, one vector per token or per text out.

Pure functions over parameters by their Hugging Face names; those of the layers, without "encoder.layer.N.", are
stacked over the layers. Axes: B texts, T tokens, D hidden, N heads, H per head.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

CLS, MEAN = "cls", "mean"
POOLINGS = (CLS, MEAN)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT under the names of its config.json; the defaults are BERT-base's.

    Raises:
      ValueError: a size outside its range.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = field.type is int
            if type(value) is bool or not isinstance(value, int if whole else int | float) or value <= 0:
                kind = "whole number" if whole else "number"
                raise ValueError(f"{field.name} = {value!r}, expected a {kind} above 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size}, expected a multiple of num_attention_heads = "
                f"{self.num_attention_heads}"
            )


def embedding_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters before the layers."""
    hidden = config.hidden_size
    return {
        "embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }


def layer_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one layer's parameters."""
    hidden, wide = config.hidden_size, config.intermediate_size
    dense = {f"attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
    dense |= {"attention.output.dense": (hidden, hidden)}
    dense |= {"intermediate.dense": (wide, hidden), "output.dense": (hidden, wide)}
    norms = ("attention.output.LayerNorm", "output.LayerNorm")
    return (
        {f"{name}.weight": shape for name, shape in dense.items()}
        | {f"{name}.bias": shape[:1] for name, shape in dense.items()}
        | {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    )


@functools.partial(jax.jit, static_argnums=0)
def encode(config: BertConfig, params: dict, tokens: jax.Array, types: jax.Array, lengths: jax.Array) -> jax.Array:
    """The last layer's vectors.

    Args:
      config: the sizes.
      params: {"embeddings": of `embedding_shapes`, "layers": of `layer_shapes`, each [layers, ...]}.
      tokens, types: int [B, T], T at most `max_position_embeddings`; padding at the end.
      lengths: int [B], at least 1, how many tokens of each text are no padding.

    Returns:
      float32 [B, T, D]; what stands at padding means nothing.
    """
    # TPUs and GPUs round the factors of a product unless told not to; the order of near passages would change.
    with jax.default_matmul_precision("highest"):
        given = params["embeddings"]
        hidden = given["embeddings.word_embeddings.weight"][tokens]
        hidden += given["embeddings.token_type_embeddings.weight"][types]
        hidden += given["embeddings.position_embeddings.weight"][None, : tokens.shape[1]]
        hidden = _norm(hidden, given, "embeddings.LayerNorm", config.layer_norm_eps)
        layer = functools.partial(_layer, config, lengths)
        return jax.lax.scan(layer, hidden, params["layers"])[0]


def pool(hidden: jax.Array, lengths: jax.Array, pooling: str, normalize: bool) -> jax.Array:
    """One vector per text.

    Args:
      hidden: [B, T, D].
      lengths: int [B], as for `encode`.
      pooling: CLS takes the first token's vector, MEAN the mean over all that are no padding.
      normalize: whether the vectors get length 1.

    Returns:
      [B, D].

    Raises:
      ValueError: an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling = {pooling!r}, expected one of {', '.join(POOLINGS)}")
    if pooling == CLS:
        vectors = hidden[:, 0]
    else:
        real = jnp.arange(hidden.shape[1])[None] < lengths[:, None]
        vectors = jnp.sum(hidden, axis=1, where=real[..., None]) / lengths[:, None]
    if normalize:
        vectors /= jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return vectors


def _layer(config: BertConfig, lengths: jax.Array, hidden: jax.Array, params: dict) -> tuple[jax.Array, None]:
    heads = (*hidden.shape[:2], config.num_attention_heads, -1)
    queries, keys, values = (
        _dense(hidden, params, f"attention.self.{name}").reshape(heads) for name in ("query", "key", "value")
    )
    seen = jax.nn.dot_product_attention(queries, keys, values, key_value_seq_lengths=lengths)
    seen = _dense(seen.reshape(hidden.shape), params, "attention.output.dense")
    hidden = _norm(hidden + seen, params, "attention.output.LayerNorm", config.layer_norm_eps)
    wide = jax.nn.gelu(_dense(hidden, params, "intermediate.dense"), approximate=False)
    out = hidden + _dense(wide, params, "output.dense")
    return _norm(out, params, "output.LayerNorm", config.layer_norm_eps), None


def _dense(x: jax.Array, params: dict, name: str) -> jax.Array:
    return jnp.einsum("bti,oi->bto", x, params[f"{name}.weight"]) + params[f"{name}.bias"][None, None]


def _norm(x: jax.Array, params: dict, name: str, epsilon: float) -> jax.Array:
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    scaled = centered * jax.lax.rsqrt(jnp.mean(jnp.square(centered), axis=-1, keepdims=True) + epsilon)
    return scaled * params[f"{name}.weight"][None, None] + params[f"{name}.bias"][None, None]
