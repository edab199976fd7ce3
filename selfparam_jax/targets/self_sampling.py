"""Unrelated text sampled from the base model itself, for use without a corpus.

Training must not change the model on text that it writes by itself. The texts are kept in a file that
`documents.load_texts` reads, so they can be looked at, edited, and given to another run.
"""

import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

from selfparam_jax.data.documents import load_texts
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.files import write_lines
from selfparam_jax.inference.decoding import Sampling, generate
from selfparam_jax.inference.prefix import round_up
from selfparam_jax.models.decoder import Decoder

ROUNDS = 16  # a model that has not given enough different texts after these rounds will not


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
    """Samples different texts from a model, after the first ids of a prompt alone.

    Each ends where the model ends it, or after `tokens` tokens. Empty texts and repetitions are drawn again with the
    next seed. They are texts, not ids: tokenised again, a text may give other tokens than it was sampled as.

    Args:
      model: the decoder.
      variables: {'params'} or {'params', 'lora'}.
      prompt: gives the first ids and those that end a text.
      count: how many texts, at least 1.
      tokens: length of the longest in tokens, at least 1.
      seed: decides together with `count` what is sampled; the batch size does not.
      temperature: of the sampling.
      batch_size: texts sampled together.

    Returns:
      `count` texts.

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
        # Whole batches only: another round then needs no other compiled program.
        starts = [prompt.start_ids] * round_up(missing, rows)
        drawn = generate(
            model, variables, (), starts, tokens, prompt.end_ids, batch_size=rows,
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
    """The text of sampled ids up to the first that ends it; a character that was cut off is left out."""
    text, _ = prompt.reply(ids)
    return text.rstrip("\ufffd").strip()


def self_sampled(path: str | os.PathLike, make: Callable[[], Sequence[str]]) -> list[str]:
    """The texts of a file; if there is none, those that `make` returns, which are written to it.

    The file is written in one piece: a run that is killed while sampling samples again, and gets the same. It does
    not record how the texts were made, so it belongs in a directory that is bound to one configuration.
    """
    if not pathlib.Path(path).exists():
        texts = list(make())
        write_lines(path, ({"text": text} for text in texts))
    return load_texts(path)
