"""Reading texts longer than the model's window without training: InfLLM (https://arxiv.org/abs/2402.04617).

A text is read in chunks. Its first tokens and its last ones stay on the device. What is older is cut into blocks,
which move to the host's memory; for each chunk and layer a few of them come back, those whose keys are nearest to the
chunk's queries. Keys are kept before their rotation: between a query and a key lie as many tokens as in the text, but
never more than `local_tokens`, so the model meets no distance that it was not trained on. One softmax runs over all.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import flax
import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.distributed.backend import copies_slices
from selfparam_jax.distributed.mesh import fetch
from selfparam_jax.distributed.ranges import Range, check_ranges
from selfparam_jax.inference.decoding import NO_TOKEN, NotFiniteLogits, highest, token_or_none
from selfparam_jax.models.architecture import LAYER_NORMS, ModelConfig
from selfparam_jax.models.attention import MASKED
from selfparam_jax.models.decoder import MLP, Decoder, Projection, RMSNorm, apply_head, output_head
from selfparam_jax.models.rope import rotary_angles, rotate
from selfparam_jax.models.unstacked import layers_apart

CHUNK_SIZES = (1, 32, 128)  # a chunk is padded to one of these, or to `chunk_tokens`: few compiled shapes


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """Sizes, in tokens where nothing else is said.

    Attributes:
      initial_tokens: of the beginning, which every token sees.
      local_tokens: the latest, which every token sees; also the longest distance between a query and a key.
      block_tokens: of a block.
      representatives: tokens of a block whose mean key stands for it, those that received most attention.
      chunk_tokens: read at once, with the same blocks; at most `local_tokens`.
      blocks: how many a chunk sees.

    Raises:
      ValueError: a value outside its range.
    """

    initial_tokens: Annotated[int, Range(0, 2**20)] = 128
    local_tokens: Annotated[int, Range(1, 2**20)] = 4096
    block_tokens: Annotated[int, Range(1, 2**16)] = 128
    representatives: Annotated[int, Range(1, 2**16)] = 4
    chunk_tokens: Annotated[int, Range(1, 2**20)] = 512
    blocks: Annotated[int, Range(1, 2**16)] = 16

    def __post_init__(self):
        check_ranges(self)
        if self.local_tokens < self.chunk_tokens:
            raise ValueError(
                f"local_tokens = {self.local_tokens}, expected at least chunk_tokens = {self.chunk_tokens}: the "
                "tokens of a chunk see each other"
            )
        if self.representatives > self.block_tokens:
            raise ValueError(
                f"representatives = {self.representatives}, expected at most block_tokens = {self.block_tokens}"
            )

    @property
    def ring_tokens(self) -> int:
        """Most tokens that are neither of the beginning nor in a block, while a chunk is read."""
        return self.local_tokens + self.block_tokens - 1 + self.chunk_tokens


def unsupported(config: ModelConfig, options: BlockOptions) -> str:
    """Why a model cannot be read this way; "" if it can."""
    if config.attn_logit_softcapping is not None:
        return f"the model caps the scores of attention (attn_logit_softcapping = {config.attn_logit_softcapping})"
    if any(kind.window is not None for kind in config.layer_kinds):
        return f"the model's attention has a window of its own (sliding_window = {config.sliding_window})"
    if options.local_tokens > config.max_position_embeddings:
        return (
            f"local_tokens = {options.local_tokens} is more than the model reads (max_position_embeddings = "
            f"{config.max_position_embeddings}); set fewer"
        )
    return ""


@flax.struct.dataclass
class KeptTokens:
    """A layer's tokens on the device: `initial_tokens` slots of the beginning, then a ring of the latest.

    keys, values: [S, K, H], keys not rotated.
    received: float32 [S, N], attention that each token got from queries fewer than `local_tokens` after it.
    """

    keys: jax.Array
    values: jax.Array
    received: jax.Array


@dataclasses.dataclass
class LayerBlocks:
    """A layer's blocks, on the host, oldest first.

    Attributes:
      keys, values: of each block [block_tokens, K, H].
      representatives: float32 [blocks, N, H], the key that stands for each block, one per query head.
      chosen: those that the last chunk saw.
      loaded: their keys and values on the device, [blocks x block_tokens, K, H]; None before there are any.
    """

    keys: list[np.ndarray]
    values: list[np.ndarray]
    representatives: np.ndarray
    chosen: tuple[int, ...] = ()
    loaded: tuple[jax.Array, jax.Array] | None = None


@dataclasses.dataclass
class TextMemory:
    """The state of a text that is being read.

    Attributes:
      length: tokens read.
      start: position of the first token of the ring: neither of the beginning nor in a block.
      kept: on the device, per layer.
      blocks: on the host, per layer.
    """

    length: int
    start: int
    kept: list[KeptTokens]
    blocks: list[LayerBlocks]

    def copy(self) -> "TextMemory":
        """The same text, to be continued on its own; the blocks so far are shared."""
        kept = [jax.tree.map(jnp.copy, each) for each in self.kept]
        blocks = [dataclasses.replace(each, keys=list(each.keys), values=list(each.values)) for each in self.blocks]
        return TextMemory(self.length, self.start, kept, blocks)

    def device_bytes(self) -> int:
        """Bytes on the device; the copies of blocks are not counted."""
        return sum(leaf.nbytes for each in self.kept for leaf in jax.tree.leaves(each))

    def host_bytes(self) -> int:
        """Bytes of the blocks and of the keys that stand for them."""
        arrays = [array for each in self.blocks for array in (*each.keys, *each.values, each.representatives)]
        return sum(array.nbytes for array in arrays)


def _own(layers, number):
    """The parameters of one layer: given, or of stacked layers the one of this number."""
    if number is None:
        return layers
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, number, keepdims=False), layers)


def _norm(config, own, name, x):
    return x if name is None else RMSNorm(config.rms_norm_eps, config.norm).apply({"params": own[name]}, x)


def _projected(config, own, name, features, x):
    layer = Projection(features, name in config.biased_projections, 1.0, 0.0)
    return layer.apply({"params": own["self_attn"][name]}, x, True)


def _angles(config, rope, positions):
    """Cosine and sine [1, T, H / 2] for int32 positions [T]."""
    return rotary_angles(config, positions[None], rope)


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def _embed(config, dtype, table, ids):
    """Token ids [T] as the first layer's input [1, T, D]."""
    x = jnp.take(table, ids[None], axis=0).astype(dtype)
    return x * jnp.asarray(config.embedding_scale, x.dtype)


@functools.partial(jax.jit, static_argnames=("config", "rope", "local_tokens"))
def _project(config, rope, local_tokens, layers, number, x, count):
    """A layer's queries [1, T, N, H], keys and values [1, T, K, H], none rotated, of its input [1, T, D].

    Also the sum over the `count` real queries, at the distance at which they see blocks, float32 [N, H].
    """
    own = _own(layers, number)
    normed = _norm(config, own, LAYER_NORMS[config.layer_norms][0], x)

    def heads(name, how_many, norm=None):
        made = _projected(config, own, name, how_many * config.head_dim, normed)
        if norm and config.qk_norm == "whole":
            made = _norm(config, own["self_attn"], norm, made)
        made = made.reshape(1, -1, how_many, config.head_dim)
        return _norm(config, own["self_attn"], norm, made) if norm and config.qk_norm == "head" else made

    queries = heads("q_proj", config.num_attention_heads, "q_norm")
    keys, values = (
        heads("k_proj", config.num_key_value_heads, "k_norm"),
        heads("v_proj", config.num_key_value_heads),
    )
    real = (jnp.arange(x.shape[1]) < count)[None, :, None, None]
    total = jnp.sum(jnp.where(real, queries.astype(jnp.float32), 0.0), axis=1, keepdims=True)
    total = rotate(total, *_angles(config, rope, jnp.full(1, local_tokens)))
    return queries, keys, values, total[0, 0]


@functools.partial(jax.jit, static_argnames=("config", "rope", "local_tokens"), donate_argnames="kept")
def _attend(
    config, rope, local_tokens, layers, number, x, projected, kept, slots, places, aside, first, count, chosen, filled
):
    """The rest of a layer.

    Args:
      config, rope, local_tokens, layers, number, x: as in `_project`.
      projected: queries, keys and values of the chunk, from there.
      kept: what the layer keeps; its memory is used again.
      slots: int32 [T], where the chunk's tokens are kept; S for padding, which is not.
      places: int32 [S], the position of the token in each slot, the chunk's own included; -1 for none.
      aside: int32 [A], the slots of tokens that may be `local_tokens` or more before a query; S for none.
      first, count: position of the chunk's first token, and how many of its tokens are real.
      chosen: keys and values of blocks [C, K, H].
      filled: how many of these tokens are real.

    Returns:
      the layer's output [1, T, D], and `kept` with the chunk.
    """
    own, (queries, keys, values) = _own(layers, number), projected
    length, heads = x.shape[1], config.num_attention_heads
    kept = KeptTokens(
        kept.keys.at[slots].set(keys[0], mode="drop"),
        kept.values.at[slots].set(values[0], mode="drop"),
        kept.received.at[slots].set(0.0, mode="drop"),
    )
    steps = jnp.arange(length, dtype=jnp.int32)
    distance = (first + steps)[:, None] - places[None, :]  # [T, S]
    near = (places >= 0)[None, :] & (distance >= 0) & (distance < local_tokens)
    aside_places = places.at[aside].get(mode="fill", fill_value=-1)
    too_far = (aside_places >= 0)[None, :] & ((first + steps)[:, None] - aside_places[None, :] >= local_tokens)
    scale = (config.query_pre_attn_scalar or config.head_dim) ** -0.5

    def scores(keys, query_positions, key_positions):  # float32 [K, G, T, S]
        asked = rotate(queries, *_angles(config, rope, query_positions))
        asked = asked.reshape(length, config.num_key_value_heads, -1, config.head_dim)
        found = rotate(keys[None], *_angles(config, rope, key_positions))[0]
        return scale * jnp.einsum("tkgh,skh->kgts", asked, found, preferred_element_type=jnp.float32)

    # Positions count from the chunk's first token, so that angles are small numbers however long the text is.
    near_scores = jnp.where(near[None, None], scores(kept.keys, steps, places - first), MASKED)
    far_keys, far_values = (
        jnp.concatenate([of_layer.at[aside].get(mode="fill", fill_value=0), of_blocks])
        for of_layer, of_blocks in zip((kept.keys, kept.values), chosen, strict=True)
    )
    in_block = jnp.arange(chosen[0].shape[0]) < filled
    seen = jnp.concatenate([too_far, jnp.broadcast_to(in_block[None], (length, in_block.shape[0]))], axis=1)
    one_place = jnp.zeros(far_keys.shape[0], jnp.int32)
    far_scores = scores(far_keys, jnp.full(length, local_tokens), one_place)
    far_scores = jnp.where(seen[None, None], far_scores, MASKED)
    weights = jax.nn.softmax(jnp.concatenate([near_scores, far_scores], axis=-1), axis=-1)
    to_near, to_far = jnp.split(weights, [near.shape[1]], axis=-1)

    def mixed(weights, values):
        weights = weights.astype(values.dtype)
        return jnp.einsum("kgts,skh->tkgh", weights, values, preferred_element_type=jnp.float32)

    out = (mixed(to_near, kept.values) + mixed(to_far, far_values)).astype(x.dtype)
    real = (steps < count)[None, None, :, None]
    got = jnp.sum(jnp.where(real, to_near, 0.0), axis=2).reshape(heads, -1)
    kept = kept.replace(received=kept.received + got.T)
    _, after_attention, before_mlp, after_mlp = LAYER_NORMS[config.layer_norms]
    attended = _projected(config, own, "o_proj", x.shape[-1], out.reshape(1, length, -1))
    x = x + _norm(config, own, after_attention, attended)
    inner = MLP(config, 1.0, 0.0, None).apply({"params": own["mlp"]}, _norm(config, own, before_mlp, x), True)
    return x + _norm(config, own, after_mlp, inner), kept


@functools.partial(jax.jit, static_argnames="config")
def _finish(config, norm, x):
    """The final normed hidden states [T, D] of the last layer's output [1, T, D]."""
    return RMSNorm(config.rms_norm_eps, config.norm).apply({"params": norm}, x)[0]


@functools.partial(jax.jit, static_argnames="config")
def _next_token(config, params, hidden, index):
    """The most likely token after the one of this index, of hidden states [T, D]."""
    state = jax.lax.dynamic_index_in_dim(hidden, index)
    logits = apply_head(state, output_head(params, config))
    return token_or_none(highest(logits), logits)[0]


@jax.jit
def _taken(kept, slots):
    return jax.tree.map(lambda leaf: leaf[slots], kept)


def representative_keys(keys: np.ndarray, received: np.ndarray, count: int) -> np.ndarray:
    """The keys that stand for a block: for each query head the mean of those that received most attention.

    Args:
      keys: [tokens, K, H].
      received: float32 [tokens, N]; of equal ones the earlier counts as the larger.
      count: how many.

    Returns:
      float32 [N, H].
    """
    most = np.argsort(-received, axis=0, kind="stable")[:count]  # [count, N]
    heads = np.arange(received.shape[1])
    of_head = heads * keys.shape[1] // received.shape[1]
    return keys[most, of_head[None]].astype(np.float32).mean(axis=0)


class BlockReader:
    """Reads texts of any length with a model and its blocks."""

    def __init__(self, model: Decoder, params: dict, options: BlockOptions = BlockOptions()):
        """Nothing is read yet.

        Args:
          model: the decoder; of its settings the architecture and the dtype count.
          params: its parameters, without an adapter.
          options: the sizes.

        Raises:
          ValueError: the model cannot be read this way.
        """
        if why := unsupported(model.config, options):
            raise ValueError(f"a text cannot be read with blocks: {why}")
        self.options, self._config, self._dtype, self._params = options, model.config, model.dtype, params
        apart = copies_slices() and model.sharding is None
        self._apart = layers_apart({"params": params})["params"]["layers"] if apart else None

    def empty(self) -> TextMemory:
        """The memory of a text of which nothing has been read."""
        config, options = self._config, self.options
        slots, count = options.initial_tokens + options.ring_tokens, config.num_hidden_layers
        shape = slots, config.num_key_value_heads, config.head_dim

        def kept():
            received = jnp.zeros((slots, config.num_attention_heads), jnp.float32)
            return KeptTokens(jnp.zeros(shape, self._dtype), jnp.zeros(shape, self._dtype), received)

        none = np.zeros((0, config.num_attention_heads, config.head_dim), np.float32)
        blocks = [LayerBlocks([], [], none) for _ in range(count)]
        return TextMemory(0, options.initial_tokens, [kept() for _ in range(count)], blocks)

    def read(self, memory: TextMemory, ids: Sequence[int]) -> int:
        """Reads more of a text, in chunks.

        Args:
          memory: what was read before; it is changed.
          ids: at least one token id.

        Returns:
          the most likely next token.

        Raises:
          ValueError: there are no ids.
        """
        if not len(ids):
            raise ValueError("got a text without tokens, expected at least one to continue from")
        size = self.options.chunk_tokens
        for begin in range(0, len(ids), size):
            chunk = ids[begin : begin + size]
            hidden = self.read_chunk(memory, chunk)
        token = int(fetch(_next_token(self._config, self._params, hidden, len(chunk) - 1)))
        if token == NO_TOKEN:
            raise NotFiniteLogits
        return token

    def read_chunk(self, memory: TextMemory, ids: Sequence[int]) -> jax.Array:
        """Reads the next tokens of a text, which all see the same blocks.

        Args:
          memory: what was read before; it is changed.
          ids: 1 to `chunk_tokens` token ids.

        Returns:
          final normed hidden states [T, D]; those after the last id are of padding.
        """
        config, options, first, count = self._config, self.options, memory.length, len(ids)
        width = min(size for size in {*CHUNK_SIZES, options.chunk_tokens} if size >= count)
        padded = np.zeros(width, np.int32)
        padded[:count] = ids
        slots = np.full(width, memory.kept[0].keys.shape[0], np.int32)
        slots[:count] = self._slots(np.arange(first, first + count))
        places, aside = self._places(memory, first + count), self._aside(memory, first + count)
        x = _embed(config, self._dtype, self._params["embed_tokens"]["embedding"], padded)
        for layer, kind in enumerate(config.layer_kinds):
            given = (self._params["layers"], np.int32(layer)) if self._apart is None else (self._apart[layer], None)
            shared = config, kind.rope, options.local_tokens, *given, x
            *projected, total = _project(*shared, np.int32(count))
            chosen, filled = self._choose(memory.blocks[layer], total)
            x, memory.kept[layer] = _attend(
                *shared, tuple(projected), memory.kept[layer], slots, places, aside, np.int32(first),
                np.int32(count), chosen, np.int32(filled),
            )  # fmt: skip
        memory.length += count
        self._move_blocks(memory)
        return _finish(config, self._params["norm"], x)

    def generate(
        self,
        memory: TextMemory,
        prompt: Sequence[int],
        new_tokens: int,
        stop_ids: Sequence[int] = (),
        least_tokens: int = 1,
    ) -> list[int]:
        """The most likely continuation of a prompt that follows a text.

        Args:
          memory: the text; it is not changed.
          prompt: at least one token id.
          new_tokens: the most tokens to make.
          stop_ids: it ends once it has made one of these.
          least_tokens: but not before this many.

        Returns:
          token ids, at most new_tokens.

        Raises:
          ValueError: the prompt is empty.
        """
        memory, stops = memory.copy(), set(stop_ids)
        made = [self.read(memory, prompt)]
        while len(made) < new_tokens and (len(made) < least_tokens or stops.isdisjoint(made)):
            made.append(self.read(memory, made[-1:]))
        return made

    def _slots(self, positions: np.ndarray) -> np.ndarray:
        """Where tokens are kept, by their positions."""
        first, ring = self.options.initial_tokens, self.options.ring_tokens
        return np.where(positions < first, positions, first + (positions - first) % ring).astype(np.int32)

    def _places(self, memory: TextMemory, end: int) -> np.ndarray:
        """The position of the token in each slot, int32 [S]; -1 for none."""
        places = np.full(memory.kept[0].keys.shape[0], -1, np.int32)
        beginning = np.arange(min(end, self.options.initial_tokens))
        latest = np.arange(memory.start, max(end, memory.start))
        positions = np.concatenate([beginning, latest])
        places[self._slots(positions)] = positions
        return places

    def _aside(self, memory: TextMemory, end: int) -> np.ndarray:
        """Slots of the beginning and of latest tokens that are far from the last token of a chunk, int32 [A]."""
        options = self.options
        size = options.initial_tokens + options.block_tokens - 1 + options.chunk_tokens
        beginning = np.arange(min(end, options.initial_tokens))
        latest = np.arange(memory.start, max(end - options.local_tokens, memory.start))
        slots = np.full(size, memory.kept[0].keys.shape[0], np.int32)
        found = self._slots(np.concatenate([beginning, latest]))
        slots[: len(found)] = found
        return slots

    def _choose(self, blocks: LayerBlocks, total: jax.Array) -> tuple[tuple[jax.Array, jax.Array], int]:
        """Keys and values of the blocks that a chunk sees, on the device, and how many of their tokens are real."""
        options, config = self.options, self._config
        if len(blocks.keys) <= options.blocks:
            chosen = tuple(range(len(blocks.keys)))
        else:
            scores = blocks.representatives.reshape(len(blocks.keys), -1) @ fetch(total).reshape(-1)
            chosen = tuple(sorted(np.argsort(-scores, kind="stable")[: options.blocks].tolist()))
        if blocks.loaded is None or chosen != blocks.chosen:
            # Either no room for blocks, or room for all that a chunk may see: two compiled shapes.
            rows = options.blocks * options.block_tokens if chosen else 0
            shape = rows, config.num_key_value_heads, config.head_dim
            keys, values = np.zeros(shape, self._dtype), np.zeros(shape, self._dtype)
            for place, block in enumerate(chosen):
                part = slice(place * options.block_tokens, (place + 1) * options.block_tokens)
                keys[part], values[part] = blocks.keys[block], blocks.values[block]
            blocks.chosen, blocks.loaded = chosen, (jnp.asarray(keys), jnp.asarray(values))
        return blocks.loaded, len(chosen) * options.block_tokens

    def _move_blocks(self, memory: TextMemory) -> None:
        """Moves whole blocks of what is no longer among the latest tokens to the host."""
        size, tokens = self.options.block_tokens, self.options.local_tokens
        while memory.length - memory.start - size >= tokens:
            slots = self._slots(np.arange(memory.start, memory.start + size))
            for kept, blocks in zip(memory.kept, memory.blocks, strict=True):
                found = jax.tree.map(fetch, _taken(kept, slots))
                made = representative_keys(found.keys, found.received, self.options.representatives)
                blocks.keys.append(found.keys)
                blocks.values.append(found.values)
                blocks.representatives = np.concatenate([blocks.representatives, made[None]])
            memory.start += size
