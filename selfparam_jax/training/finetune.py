"""Plain fine-tuning of an adapter: the next-token loss on given sentences, with no teacher (baselines FT(C), FT(S)).

Adapter, optimizer, batches and checkpoints are those of an injection, so that the two differ in the loss alone.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.targets.sentences import Sentence, first_slots
from selfparam_jax.training.inject import Hooks, Injection, bind_directory, recipe_targets, train_adapter
from selfparam_jax.training.recipe import Recipe


def context_sentences(documents: Sequence[Document], prompt: Prompt, recipe: Recipe) -> list[Sentence]:
    """The documents themselves, cut into rows, every token supervised: what FT(C) trains on."""
    room = recipe.train.seq_len - len(prompt.start_ids)
    sentences = []
    for index, document in enumerate(documents):
        ids = prompt.text(document.text)
        for begin in range(0, len(ids), room):
            part = ids[begin : begin + room]
            record = {"kind": "context", "context": document.id, "text": prompt.decode(part)}
            sentences.append(_supervised(Sentence("context", index, part, (0.0,) * len(part), None, record)))
    return sentences


def target_sentences(
    documents: Sequence[Document], prompt: Prompt, recipe: Recipe, unrelated: Sequence[str] = ()
) -> list[Sentence]:
    """The target sentences of an injection, every token supervised: what FT(S) trains on.

    Args:
      documents: with their pairs.
      prompt: turns text into ids.
      recipe: which sentences there are.
      unrelated: texts that are read in turn, as in an injection.

    Returns:
      the same sentences as an injection has, without a KL loss.
    """
    made = recipe_targets(documents, prompt, recipe, unrelated)
    # A contrast says what is not to be told; only a teacher can teach it.
    return [_supervised(sentence) for sentence in made if sentence.kind != "contrast"]


def _supervised(sentence: Sentence) -> Sentence:
    count = len(sentence.ids)
    return dataclasses.replace(sentence, weights=(0.0,) * count, supervision=(1.0,) * count, reading=None)


def fine_tune(
    model: Model,
    sentences: Sequence[Sentence],
    recipe: Recipe,
    directory: pathlib.Path | None = None,
    hooks: Hooks | None = None,
) -> Injection:
    """Trains a new adapter of a model on the next tokens of sentences.

    Args:
      model: the frozen base.
      sentences: with supervision.
      recipe: adapter, optimizer, batches and epochs.
      directory: where checkpoints are kept; a call that finds its own unfinished work there resumes it.
      hooks: progress, and the request to stop; None for neither.

    Returns:
      the adapter and what it took.

    Raises:
      ValueError: the directory belongs to other sentences, another base or recipe.
      Interrupted: a stop was requested; the last step is saved.
      trainer.NotFiniteError: the loss is not finite.
    """
    if directory is not None:
        trained = [[list(sentence.ids), list(sentence.supervision), sentence.epochs] for sentence in sentences]
        digest = hashlib.sha256(json.dumps(trained).encode()).hexdigest()
        record = {"base": model.fingerprint, "int8": model.int8, "sentences": digest, "recipe": recipe.record()}
        bind_directory(directory / "finetuning.json", record, "fine-tuning")
    return train_adapter(
        model, recipe, lambda: (sentences, first_slots(sentences), None), directory, hooks=hooks or Hooks()
    )
