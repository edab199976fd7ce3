"""KL divergences between the next-token distributions of several models."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.drift import packed_texts, read_states
from selfparam_jax.models.decoder import Decoder, apply_head, output_head
from selfparam_jax.training.losses import kl_from_logits

CHUNK = 64  # positions whose logits, of all models, are held at a time


@jax.jit
def _kl_sums(states, heads, used):
    """KL(i || j) [M, M] summed over the first `used` of N positions; M states [1, N, D], M heads [V, D]."""
    states = [jnp.pad(each[0], ((0, -each.shape[1] % CHUNK), (0, 0))) for each in states]

    def body(n, total):
        parts = [lax.dynamic_slice_in_dim(each, n * CHUNK, CHUNK) for each in states]
        logits = [apply_head(part, head) for part, head in zip(parts, heads, strict=True)]
        valid = n * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32) < used
        sums = [jnp.sum(jnp.where(valid, kl_from_logits(one, other), 0.0)) for one in logits for other in logits]
        return total + jnp.stack(sums).reshape(total.shape)

    return lax.fori_loop(0, (used + CHUNK - 1) // CHUNK, body, jnp.zeros((len(states),) * 2, jnp.float32))


def divergences(
    model: Decoder, variables: Sequence[dict], prompt: Prompt, texts: Iterable[str]
) -> tuple[np.ndarray, int]:
    """Mean KL(i || j) per token between models on some texts, each with its own head.

    Args:
      model: the architecture that all models share.
      variables: of each model, for `model.apply`.
      prompt: its start is put before every text.
      texts: read in packed rows (`drift.packed_texts`).

    Returns:
      float64 [models, models] in nats, row i with the expectation over model i's distribution; and the number of
      tokens.

    Raises:
      ValueError: there is nothing to predict in the texts.
    """
    sums, count = np.zeros((len(variables),) * 2), 0
    heads = tuple(output_head(each["params"], model.config) for each in variables)
    for rows, at in packed_texts(prompt, list(texts)):
        arrays = (rows.input_ids, rows.positions, rows.segments, at.index)
        states = tuple(read_states(model, each, *arrays) for each in variables)
        sums += np.asarray(_kl_sums(states, heads, at.used[0]), np.float64)
        count += int(at.used[0])
    # A KL is not negative; in float32 that of two equal distributions may come out so, by a hair.
    return np.maximum(sums / count, 0.0), count
