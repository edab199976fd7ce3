"""Trained keys and values (Cartridges, arXiv 2506.06266) instead of an adapter: the student is the base after them.

Teacher, targets, loss, batches, optimizer, checkpoints and the loop are those of an injection. What is trained is
{"keys", "values"}, each float32 [L, 1, K, P, H]: a cache of P tokens in front of everything that the student reads.
Keys are kept as they are attended to, after rotation, at positions 0 to P - 1; a sentence begins at position P.

A cartridge begins with the prompt's start, so the student reads its sentences without it, as the teacher does after
its document. The first token is not trained: attention of many models rests on it (the paper freezes it as well).
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import files
from selfparam_jax.distributed.mesh import fetch, put_same
from selfparam_jax.inference.prefix import read_prefix, read_prefixes, shared_block
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.attention import BLOCKS
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.models.lora import init_lora, parameter_count
from selfparam_jax.models.rope import rotary_angles, rotate
from selfparam_jax.targets.sentences import Sentence
from selfparam_jax.training.inject import (
    Hooks,
    Injection,
    Student,
    bind_directory,
    injection_record,
    read_teacher,
    student_remat,
    train_adapter,
)
from selfparam_jax.training.other_teacher import OtherTeacher
from selfparam_jax.training.recipe import Recipe
from selfparam_jax.training.teacher import Teacher
from selfparam_jax.training.train_step import Batch

STARTS = ("document", "first", "random")
LEAST_TOKENS = 2  # the first one is not trained


def train_cartridge(
    model: Model,
    documents: Sequence[Document],
    recipe: Recipe,
    tokens: int,
    start: str,
    unrelated: Sequence[str] = (),
    directory: pathlib.Path | None = None,
    hooks: Hooks | None = None,
    teacher: OtherTeacher | None = None,
) -> Injection:
    """Trains a cartridge that stands for documents.

    Args:
      model: the frozen base.
      documents: with the pairs to train on.
      recipe: target sentences, optimizer, batches and epochs; nothing of its adapter is used.
      tokens: P, at least LEAST_TOKENS; fewer are made where `start` has a text of fewer.
      start: what it starts from, of STARTS (`first_cartridge`).
      unrelated: texts that keep the model what it was.
      directory: where teacher states and checkpoints are kept; a call that finds its own unfinished work there
        resumes it. None keeps everything in memory.
      hooks: progress, and the request to stop; None for neither.
      teacher: another model that teaches.

    Returns:
      the cartridge, as `Injection.lora`, and what it took.

    Raises:
      ValueError: the directory belongs to another cartridge, there is nothing to learn, or `tokens` and a training
        row exceed the model's limit.
      Interrupted: a stop was requested; the last step is saved.
      trainer.NotFiniteError: the loss is not finite.
    """
    limit, longest = model.config.max_position_embeddings, tokens + recipe.train.seq_len
    if start not in STARTS:
        raise ValueError(f"got start {start!r}, expected one of {', '.join(STARTS)}")
    if tokens < LEAST_TOKENS or longest > limit:
        raise ValueError(
            f"got a cartridge of {tokens} tokens, expected {LEAST_TOKENS} to {limit - recipe.train.seq_len}: with a "
            f"training row of {recipe.train.seq_len} they must be within the model's {limit} positions"
        )
    hooks = hooks or Hooks()
    # To decay is to go back to the base for an adapter; for keys and values it would be to go to nothing.
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, weight_decay=0.0))
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
    if directory is not None:
        record = injection_record(model, documents, recipe, unrelated, teacher)
        record["cartridge"] = {"tokens": tokens, "start": start}
        bind_directory(directory / "cartridge.json", record, "cartridge")

    def read() -> tuple[list[Sentence], np.ndarray, Teacher]:
        sentences, slots, signal = read_teacher(
            model, prompt, documents, recipe, unrelated, directory, hooks=hooks, teacher=teacher
        )
        if directory is not None:
            files.write_lines(directory / "targets.jsonl", (sentence.record for sentence in sentences))
        after = [without_start(sentence, slot) for sentence, slot in zip(sentences, slots, strict=True)]
        return [sentence for sentence, _ in after], np.asarray([slot for _, slot in after], np.int64), signal

    # The TPU kernel has no gradient for keys that were there before.
    decoder = model.decoder(remat=student_remat(model, recipe), attention=BLOCKS)
    student = Student(
        decoder, lambda: first_cartridge(model, documents, prompt, tokens, start, recipe.seed), read_after
    )
    return train_adapter(model, recipe, read, directory, hooks=hooks, teacher=teacher, student=student)


def read_after(cartridge: dict, params: dict, batch: Batch, dropout_key: jax.Array, model: Decoder) -> jax.Array:
    """Final hidden states [B, T, D] of a batch's rows after a cartridge: a `train_step.Forward`.

    Args:
      cartridge: {"keys", "values"}, float32 [L, 1, K, P, H]; no gradient reaches the first token.
      params: of the frozen base.
      batch: its rows, whose positions count from the first token after the cartridge.
      dropout_key: not used.
      model: the student.

    Returns:
      the states, in the model's dtype.
    """
    del dropout_key

    def frozen_first(x):
        first, rest = x[..., :1, :], x[..., 1:, :]
        return jnp.concatenate([jax.lax.stop_gradient(first), rest], axis=3).astype(model.dtype)

    past = shared_block(frozen_first(cartridge["keys"]), frozen_first(cartridge["values"]))
    tokens = cartridge["keys"].shape[3]
    hidden, _ = model.apply({"params": params}, batch.input_ids, batch.positions + tokens, batch.segments, (past,))
    return hidden


def without_start(sentence: Sentence, slot: int) -> tuple[Sentence, int]:
    """A sentence as it is read after a cartridge, and its first slot in the teacher's states.

    The prompt's start is in the cartridge; what a form has of its own before a sentence stays. The state that would
    predict the first token is that of the cartridge's last one, which is never computed, so that loss is left out.
    """
    if sentence.before is not None:
        return sentence, int(slot)
    first = int(0 in sentence.loss_tokens)
    supervision = (0.0, *sentence.supervision[1:]) if sentence.supervision else ()
    weights = (0.0, *sentence.weights[1:])
    # The teacher has read it already.
    after = dataclasses.replace(sentence, before=(), weights=weights, supervision=supervision, reading=None)
    return after, int(slot) + first


def tokens_of_storage(model: Model, recipe: Recipe, divide: int = 1) -> int:
    """Tokens of the cartridge that has as many numbers as a recipe's adapter, divided by `divide` (rounded down)."""
    shapes = jax.eval_shape(lambda: init_lora(jax.random.key(0), model.params, recipe.lora))
    return max(parameter_count(shapes) // divide // numbers_per_token(model.config), LEAST_TOKENS)


def numbers_per_token(config: ModelConfig) -> int:
    """Numbers that a token has in a cache: a key and a value for each layer and head."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim


def first_cartridge(
    model: Model, documents: Sequence[Document], prompt: Prompt, tokens: int, start: str, seed: int = 0
) -> dict:
    """What a cartridge starts from.

    Args:
      model: the base.
      documents: what it stands for.
      prompt: the format in which documents are read, without its worked examples.
      tokens: P; fewer are made where the documents have fewer, as these then are all of their cache.
      start: "document": of the documents' own caches, each read alone, evenly spaced tokens, moved to positions 0 to
        P - 1. "first": the cache of the first P tokens of all documents, one after another. "random": the cache of
        random tokens. All have the prompt's first token first.
      seed: of the random tokens.

    Returns:
      {"keys", "values"}, float32 [L, 1, K, P, H], on every device of the model's mesh.

    Raises:
      ValueError: a document is longer than the model can read.
    """
    decoder, variables = model.decoder(), model.variables
    texts = [document.text for document in documents]
    passages = [prompt.context_prefix(text)[prompt.context_span(text)[0] :] for text in texts]
    if start == "document":
        keys, values = _spaced(model, [(*prompt.start_ids, *passage) for passage in passages], prompt, tokens)
    else:
        ids = (*prompt.start_ids, *itertools.chain(*passages))
        if start == "random":
            ids = (prompt.start_ids[0], *_random_ids(model, tokens - 1, seed))
        read = read_prefix(decoder, variables, ids[:tokens]).key_values
        count = min(tokens, len(ids))
        keys, values = (fetch(x)[..., :count, :] for x in (read.keys, read.values))
    return put_same(model.mesh, {"keys": jnp.asarray(keys, jnp.float32), "values": jnp.asarray(values, jnp.float32)})


def _random_ids(model: Model, count: int, seed: int) -> list[int]:
    """Ids of tokens that are not special."""
    special = set(model.tokenizer.all_special_ids)
    known = [index for index in range(min(len(model.tokenizer), model.config.vocab_size)) if index not in special]
    return np.random.default_rng([seed, 2]).choice(known, count).tolist()


def _spaced(model: Model, texts: Sequence[tuple[int, ...]], prompt: Prompt, tokens: int) -> tuple:
    """Keys and values [L, 1, K, P, H] of evenly spaced tokens of texts that were each read alone.

    The start that all texts share counts once. Of every span of tokens the last is taken: it has seen the others.
    """
    skipped = [0] + [len(prompt.start_ids)] * (len(texts) - 1)
    where = [(n, at) for n, ids in enumerate(texts) for at in range(skipped[n], len(ids))]
    rest, count = where[1:], min(tokens, len(where)) - 1
    chosen = where[:1] + [rest[(n + 1) * len(rest) // count - 1] for n in range(count)]
    parts = []
    for n, read in enumerate(read_prefixes(model.decoder(), model.variables, texts)):
        at = [at for text, at in chosen if text == n]
        parts.append([fetch(x)[..., at, :] for x in (read.key_values.keys, read.key_values.values)])
    keys, values = (np.concatenate(arrays, axis=3) for arrays in zip(*parts, strict=True))
    old = np.asarray([at for _, at in chosen], np.int32)
    return moved_keys(model.config, jnp.asarray(keys), old, np.arange(len(chosen), dtype=np.int32)), values


def moved_keys(config: ModelConfig, keys: jax.Array, old: np.ndarray, new: np.ndarray) -> jax.Array:
    """Rotated keys as they would be at other positions.

    Args:
      config: the architecture.
      keys: [L, 1, K, P, H], as a cache has them.
      old, new: int32 [P], positions.

    Returns:
      float32 [L, 1, K, P, H].
    """
    layers = []
    for own, kind in zip(keys.astype(jnp.float32), config.layer_kinds, strict=True):
        (cos, sin), (new_cos, new_sin) = (
            rotary_angles(config, jnp.asarray(at)[None], kind.rope) for at in (old, new)
        )
        longer = jnp.square(cos) + jnp.square(sin)  # a scaled embedding makes keys longer as it rotates them
        plain = rotate(jnp.swapaxes(own, 1, 2), cos / longer, -sin / longer)
        layers.append(jnp.swapaxes(rotate(plain, new_cos, new_sin), 1, 2))
    return jnp.stack(layers)
