"""The architecture of a model in one value, and what follows from it for each layer."""

import dataclasses
from typing import Annotated

from selfparam_jax.distributed.ranges import Range, check_ranges

# The projections of a layer, and the block each belongs to.
PROJECTIONS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}

# Fields of the frequencies' scaling, by its type; `rope.rope_frequencies` has the formulas.
ROPE_FIELDS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        *("factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "truncate"),
    ),
    "longrope": ("short_factor", "attention_factor"),
}

# Norms of a layer: before and after attention, before and after the feed-forward block. The names are those of
# Hugging Face's weights, where post_attention_layernorm stands before the feed-forward block in most families.
LAYER_NORMS = {
    "pre": ("input_layernorm", None, "post_attention_layernorm", None),
    "post": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "both": (
        *("input_layernorm", "post_attention_layernorm"),
        *("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
NORMS = ("llama", "olmo2", "gemma")
QK_NORMS = (None, "head", "whole")
SIZE, POSITIVE = Range(1, 2**31 - 1), Range(0, 1e15, open_least=True)
# Numbers that may be None.
OPTIONAL = ("local_rope_theta", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of the rotary embedding; each type has the fields that `ROPE_FIELDS` names.

    Attributes:
      rope_type: `linear`, `llama3` (Llama 3.1 and later), `yarn` or `longrope`.
      factor: by which frequencies are divided.
      low_freq_factor, high_freq_factor: turns in the original length below which a frequency is divided, and above
        which it is kept.
      original_max_position_embeddings: length of the texts before the scaling, tokens.
      attention_factor: of cosine and sine.
      beta_fast, beta_slow: turns in the original length above which a frequency is kept, and below which it is
        divided.
      truncate: whether the bounds of the frequencies between are rounded to whole dimensions.
      short_factor: one divisor for every frequency.
    """

    rope_type: str
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    truncate: bool | None = None
    short_factor: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.rope_type not in ROPE_FIELDS:
            known = ", ".join(map(repr, ROPE_FIELDS))
            raise ValueError(f"rope_type = {self.rope_type!r} is not supported; expected 'default', {known}")
        fields = ROPE_FIELDS[self.rope_type]
        given = tuple(name for name, value in dataclasses.asdict(self).items() if value is not None)
        if set(given) != {"rope_type", *fields}:
            raise ValueError(f"rope_type {self.rope_type!r} needs {', '.join(fields)} and nothing else, got {self}")
        for name in fields:
            value = getattr(self, name)
            for each in value if isinstance(value, tuple) else (value,):
                if not isinstance(each, bool):
                    POSITIVE.check(f"rope scaling's {name}", each, float)


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """What sets a layer apart from the others of its model.

    Attributes:
      window: how many tokens back it sees, itself included; None for all.
      rope: "global" and "local" for the model's two rotary embeddings, "none" for none.
    """

    window: int | None
    rope: str


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Architecture of a checkpoint; the names are those of Hugging Face's config.json where it has the field.

    Attributes:
      vocab_size: rows of the embedding and of the head.
      hidden_size: D.
      intermediate_size: F.
      num_hidden_layers: L.
      num_attention_heads: N.
      num_key_value_heads: K; N is a multiple of it.
      head_dim: H; even.
      rms_norm_eps: added to the mean square in every norm.
      rope_theta: base of the rotary frequencies.
      max_position_embeddings: the longest text the model can read, tokens.
      rope_scaling: of the rotary frequencies; None for none.
      sliding_window: how many tokens back a layer sees, itself included; None for all.
      biased_projections: names of the projections that have a bias, of `PROJECTIONS`.
      tie_word_embeddings: whether the embedding is the head.
      hidden_act: of the feed-forward layers, of `ACTIVATIONS`.
      windowed_layers: for each layer whether it has the sliding window; () for all.
      rotated_layers: for each layer whether it has a rotary embedding; () for all.
      local_rope_theta: base of the rotary frequencies in layers with a window, which are not scaled; None for the
        same as in the others.
      layer_norms: where a layer has norms, of `LAYER_NORMS`.
      norm: how a norm's weight is applied, of `NORMS`: "llama" after rounding to the dtype of activations, "olmo2"
        before it, "gemma" before it and as 1 + weight.
      qk_norm: norms of queries and keys: "head" over each head, "whole" over all heads at once, None for none.
      query_pre_attn_scalar: scores of attention are divided by its square root; None for head_dim.
      embedding_scale: factor of the embedded tokens.
      fused_projections: whether the checkpoint holds q, k and v in one tensor, and gate and up in another.
      attn_logit_softcapping: scores of attention are c * tanh(score / c); None for as they are.
      final_logit_softcapping: the same of the logits.
    """

    vocab_size: Annotated[int, SIZE]
    hidden_size: Annotated[int, SIZE]
    intermediate_size: Annotated[int, SIZE]
    num_hidden_layers: Annotated[int, Range(1, 10**5)]
    num_attention_heads: Annotated[int, SIZE]
    num_key_value_heads: Annotated[int, SIZE]
    head_dim: Annotated[int, SIZE]
    rms_norm_eps: Annotated[float, Range(0, 1)]
    rope_theta: Annotated[float, POSITIVE]
    max_position_embeddings: Annotated[int, SIZE]
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    biased_projections: tuple[str, ...] = ()
    tie_word_embeddings: bool = False
    hidden_act: str = "silu"
    windowed_layers: tuple[bool, ...] = ()
    rotated_layers: tuple[bool, ...] = ()
    local_rope_theta: float | None = None
    layer_norms: str = "pre"
    norm: str = "llama"
    qk_norm: str | None = None
    query_pre_attn_scalar: float | None = None
    embedding_scale: Annotated[float, POSITIVE] = 1.0
    fused_projections: bool = False
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def __post_init__(self):
        check_ranges(self)
        for field in OPTIONAL:
            if (value := getattr(self, field)) is not None:
                POSITIVE.check(field, value, float)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window = {self.sliding_window}, expected at least 1, or None for none")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} must be even for rotary embeddings")
        for field, known in (
            ("hidden_act", ACTIVATIONS),
            ("layer_norms", tuple(LAYER_NORMS)),
            ("norm", NORMS),
            ("qk_norm", QK_NORMS),
        ):
            if getattr(self, field) not in known:
                listed = " or ".join(map(repr, known))
                raise ValueError(f"{field} = {getattr(self, field)!r} is not supported, expected {listed}")
        unknown = set(self.biased_projections) - set(PROJECTIONS)
        if unknown:
            raise ValueError(f"biased_projections got {sorted(unknown)}, expected some of {', '.join(PROJECTIONS)}")
        # One order, so that equal architectures are equal.
        ordered = tuple(name for name in PROJECTIONS if name in self.biased_projections)
        object.__setattr__(self, "biased_projections", ordered)
        if self.query_pre_attn_scalar == self.head_dim:
            object.__setattr__(self, "query_pre_attn_scalar", None)
        self._check_layers()
        scaling = self.rope_scaling
        if scaling and scaling.short_factor and len(scaling.short_factor) != self.head_dim // 2:
            raise ValueError(
                f"short_factor has {len(scaling.short_factor)} numbers, expected head_dim / 2 = {self.head_dim // 2}"
            )

    def _check_layers(self) -> None:
        for field in ("windowed_layers", "rotated_layers"):
            flags = getattr(self, field)
            if flags and len(flags) != self.num_hidden_layers:
                raise ValueError(
                    f"{field} has {len(flags)} entries, expected num_hidden_layers = {self.num_hidden_layers} or none"
                )
            if all(flags):  # so that equal architectures are equal
                object.__setattr__(self, field, ())
        if self.sliding_window is None and (self.windowed_layers or self.local_rope_theta is not None):
            raise ValueError(
                f"got windowed_layers = {self.windowed_layers} and local_rope_theta = {self.local_rope_theta} "
                "without a sliding_window, expected its number of tokens"
            )

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer."""
        windowed = self.windowed_layers or (True,) * self.num_hidden_layers
        rotated = self.rotated_layers or (True,) * self.num_hidden_layers
        kinds = []
        for has_window, has_rope in zip(windowed, rotated, strict=True):
            window = self.sliding_window if has_window else None
            local = window is not None and self.local_rope_theta is not None
            kinds.append(LayerKind(window, "none" if not has_rope else "local" if local else "global"))
        return tuple(kinds)

    def identity(self) -> dict:
        """The fields as JSON values, for fingerprints.

        Fields that were added later count only where they are not at their default: fingerprints of older models
        stay the same.
        """
        values = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.name in _ADDED and values[field.name] == field.default:
                del values[field.name]
        if self.rope_scaling:
            for name in _ADDED_TO_SCALING:
                if values["rope_scaling"][name] is None:
                    del values["rope_scaling"][name]
        return values


_ADDED = (
    *("windowed_layers", "rotated_layers", "local_rope_theta", "layer_norms", "norm", "qk_norm"),
    *("query_pre_attn_scalar", "embedding_scale", "fused_projections"),
    *("attn_logit_softcapping", "final_logit_softcapping"),
)
_ADDED_TO_SCALING = ("attention_factor", "beta_fast", "beta_slow", "truncate", "short_factor")
