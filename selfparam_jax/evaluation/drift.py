"""How far a model has drifted on text that has nothing to do with the documents."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.data.packing import LossPositions, Piece, Rows, fill_rows, first_fit_decreasing, loss_positions
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.watchdog import progressed
from selfparam_jax.models.decoder import Decoder, Head, KeyValues, output_head
from selfparam_jax.training.losses import Signal, chunked_loss

NOT_MEASURED = {"perplexity_before": None, "perplexity_after": None, "kl": None}


def states_at(
    model: Decoder, variables: dict, input_ids, positions, segments, index, past: tuple[KeyValues, ...] = ()
) -> jax.Array:
    """Final hidden states [1, N, D] of rows [B, T], at `index` [1, N] into the rows laid end to end.

    Args:
      model: applies the variables.
      variables: {'params'}, or {'params', 'lora'}.
      input_ids, positions, segments: int32 [B, T].
      index: int32 [1, N], positions in the rows laid end to end.
      past: what the rows attend to besides themselves.

    Returns:
      the states, in the model's dtype.
    """
    hidden, _ = model.apply(variables, input_ids, positions, segments, past)
    return jnp.take_along_axis(hidden.reshape(1, -1, hidden.shape[-1]), index[:, :, None], axis=1)


read_states = jax.jit(states_at, static_argnames="model")


@jax.jit
def _nll(states, head, signal):
    """(summed next-token loss, count) of states [1, N, D]."""
    return chunked_loss(states, head, signal)


@jax.jit
def kl_sum(before: jax.Array, after: jax.Array, head: jax.Array, signal: Signal) -> jax.Array:
    """Sum of KL(before || after) over positions, in nats.

    Args:
      before: hidden states [1, N, D].
      after: of the same positions [1, N, D].
      head: the output head.
      signal: which positions count.

    Returns:
      a scalar.
    """
    return chunked_loss(after, head, Signal(signal.used, teacher=before, weights=signal.supervision))[0]


def packed_texts(
    prompt: Prompt, texts: Sequence[str], seq_len: int = 256, rows_per_call: int = 2
) -> Iterator[tuple[Rows, LossPositions]]:
    """Texts in packed rows, `rows_per_call` at a time, and where in them the next token is predicted.

    Every token after a text's first is predicted. Texts are cut to `seq_len` tokens.

    Args:
      prompt: its start ids come before every text.
      texts: general texts.
      seq_len: tokens of a row.
      rows_per_call: rows that are read together.

    Returns:
      an iterator over (rows [rows_per_call, seq_len], where the loss looks in them).

    Raises:
      ValueError: nothing is predicted.
    """
    pieces, slot = [], 0
    for text in texts:
        ids = (tuple(prompt.start_ids) + prompt.text(text))[:seq_len]
        predictors = tuple(range(len(prompt.start_ids), len(ids) - 1))
        ones, zeros = (1.0,) * len(predictors), (0.0,) * len(predictors)
        slots = tuple(range(slot, slot + len(predictors)))
        pieces.append(Piece(ids, 0, predictors, zeros, ones, slots))
        slot += len(slots)
    if not slot:
        raise ValueError("got no text of two tokens or more, expected some to predict; give general text")
    assignment = first_fit_decreasing([len(piece.ids) for piece in pieces], seq_len)
    assignment += [[]] * (-len(assignment) % rows_per_call)
    rows = fill_rows(pieces, assignment, seq_len)
    for begin in range(0, len(assignment), rows_per_call):
        part = rows.take(slice(begin, begin + rows_per_call))
        yield part, loss_positions(part)


@dataclasses.dataclass(frozen=True)
class General:
    """General text as the base reads it, once for all models that are held against it.

    parts: arrays of packed rows, the signal of their next tokens, and the base's states at these positions.
    nll, count: summed next-token loss of the base, and the number of tokens.
    """

    parts: tuple[tuple, ...]
    nll: float
    count: float


def read_general(
    model: Decoder, base: dict, prompt: Prompt, texts: Sequence[str], seq_len: int = 256, rows_per_call: int = 2
) -> General:
    """Reads texts as `packed_texts` gives them.

    Args:
      base: variables of the model before, {'params'} or {'params', 'lora'}.
      model: applies the variables.
      prompt, texts, seq_len, rows_per_call: as `packed_texts` has them.

    Returns:
      rows, states and loss of the texts.
    """
    parts, sums, head = [], np.zeros(2), output_head(base["params"], model.config)
    for part, at in packed_texts(prompt, texts, seq_len, rows_per_call):
        signal = Signal(at.used, targets=at.targets, supervision=at.supervision)
        arrays = (part.input_ids, part.positions, part.segments, at.index)
        states = read_states(model, base, *arrays)
        parts.append((arrays, signal, states))
        sums += np.asarray(_nll(states, head, signal), np.float64)
    return General(tuple(parts), *sums)


def measure_drift(model: Decoder, general: General, after: dict) -> dict:
    """Perplexity on general text before and after, and mean KL(before || after) per token.

    Args:
      general: how the base reads it.
      after: variables of the model after, with the same (frozen) head.

    Returns:
      {"perplexity_before", "perplexity_after", "kl", "tokens"}.
    """
    return drift_of(functools.partial(read_states, model, after), general, output_head(after["params"], model.config))


def drift_of(read: Callable[..., jax.Array], general: General, head: Head) -> dict:
    """What `measure_drift` gives, for a model that is not only variables.

    Args:
      read: the model after: (input_ids, positions, segments, index) of `states_at` to the states [1, N, D].
      general: how the base reads the text.
      head: the base's.

    Returns:
      {"perplexity_before", "perplexity_after", "kl", "tokens"}.
    """
    sums = np.zeros(2)
    for arrays, signal, before in general.parts:
        states = read(*arrays)
        sums += float(_nll(states, head, signal)[0]), float(kl_sum(before, states, head, signal))
        progressed()
    return {
        "perplexity_before": float(np.exp(general.nll / general.count)),
        "perplexity_after": float(np.exp(sums[0] / general.count)),
        "kl": float(sums[1] / general.count),
        "tokens": int(general.count),
    }
