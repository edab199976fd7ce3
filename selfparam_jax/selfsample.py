"""Unrelated text drawn from the base model itself, for when there is no corpus.

What a model says of its own accord is what it must not unlearn. The texts are kept in a file of the form that
`contexts.load_texts` reads, so they can be looked at, edited, and given to another run.
"""

import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from selfparam_jax.contexts import load_texts
from selfparam_jax.files import write_lines
from selfparam_jax.generate import Sampling, generate
from selfparam_jax.model import Decoder, KeyValues
from selfparam_jax.prefix import Prefix, round_up
from selfparam_jax.prompts import Prompt
from selfparam_jax.segments import EMPTY

ROUNDS = 16  # after so many draws for what is missing, the model has no more to say


def sample_texts(
    model: Decoder,
    variables: dict,
    prompt: Prompt,
    count: int,
    tokens: int,
    seed: int,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> list[str]:
    """Different texts that a model draws after the prompt's head alone.

    Each ends where the model ends it, or after `tokens` tokens. Empty texts, and those drawn before, are drawn again
    with the next seed. They are texts, not ids: read again, a text may be other tokens than those it was drawn as.

    Args:
      variables: {'params'} or {'params', 'lora'}.
      count: how many, at least 1.
      tokens: of the longest, at least 1.
      seed: decides together with `count` what is drawn; the batch size does not.
      batch_size: texts drawn together.

    Raises:
      ValueError: fewer than `count` different texts came in ROUNDS rounds; a value that is not possible.
    """
    if count < 1 or tokens < 1:
        raise ValueError(f"{count} texts of {tokens} tokens are to be drawn, expected at least 1 of each")
    sampling, found = Sampling(temperature), {}
    rows = min(batch_size, count)
    for turn in range(ROUNDS):
        missing = count - len(found)
        if not missing:
            break
        # Whole batches only: the draws of another round then need no other compiled program.
        starts = [prompt.head] * round_up(missing, rows)
        drawn = generate(
            model, variables, _nothing_read(model), starts, tokens, prompt.end_ids, batch_size=rows,
            sampling=sampling, seed=zlib.crc32(f"{seed} {turn}".encode()),
        )  # fmt: skip
        texts = [_text(prompt, ids) for ids in drawn[:missing]]
        found |= dict.fromkeys(text for text in texts if text)  # a dictionary keeps the order
    if len(found) < count:
        raise ValueError(
            f"the model gave {len(found)} different texts in {ROUNDS} rounds, expected {count}; ask for fewer, "
            "for longer ones, or at a higher temperature, or take texts from a file"
        )
    return list(found)


def _text(prompt: Prompt, ids: Sequence[int]) -> str:
    """What a model drew up to its first mark of an end; a character that was cut off is left out."""
    end = next((n for n, token in enumerate(ids) if token in prompt.end_ids), None)
    return prompt.decode(ids[:end]).rstrip("\ufffd").strip()


def _nothing_read(model: Decoder) -> Prefix:
    """A prefix of no tokens: what is decoded then begins with its own prompt."""
    config = model.config
    shape = (config.num_hidden_layers, 1, config.num_key_value_heads, 1, config.head_dim)
    positions = jnp.zeros((1, 1), jnp.int32)
    empty = jnp.zeros(shape, model.dtype)
    return Prefix(KeyValues(empty, empty, positions, jnp.full_like(positions, EMPTY)), ())


def self_sampled(path: str | os.PathLike, make: Callable[[], Sequence[str]]) -> list[str]:
    """The texts of a file, or, if it is not there, those that `make` returns, kept in it from then on.

    The file is written whole: a run that is killed while drawing draws again, and draws the same. It does not say
    what the texts were made with, so it belongs into a directory that is bound to one configuration.
    """
    if not pathlib.Path(path).exists():
        texts = list(make())
        write_lines(path, ({"text": text} for text in texts))
    return load_texts(path)
