"""The released recipe: the method as the paper's authors released it, on the same documents and pairs.

Scaled to what a comparison can afford: the steps are batches of packed rows as in the job's recipe instead of one
sentence each, and pairs are read as often as there. All else is theirs: adapter, optimizer and learning rate, the KL
on all tokens of a sentence without supervision, as many tails and unrelated texts as pairs (as far as the job has
such texts), the teacher with a document before unrelated texts.
"""

import dataclasses
from collections.abc import Sequence

from selfparam_jax.baselines._finetuned import Trained, TrainedOptions
from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.systems import SystemEntry
from selfparam_jax.training.inject import Hooks, Injection, inject
from selfparam_jax.training.recipe import RELEASED, Recipe


class Released(Trained):
    """An adapter that is trained with the released recipe."""

    label = "released recipe"

    @property
    def recipe(self) -> Recipe:
        """The job's recipe with the released adapter, optimizer and kinds of sentences."""
        recipe, options = self.setup.recipe, self.setup.options
        train = RELEASED["train"]
        if options.learning_rate:
            train = train | {"learning_rate": options.learning_rate}
        targets = dataclasses.replace(
            recipe.targets,
            formats="reading",
            loss_tokens="all",
            answer_supervision=0.0,
            unrelated_context=True,
            contrast_per_epoch=0,
            chat_per_epoch=0,
        )
        return dataclasses.replace(
            recipe,
            targets=targets,
            lora=dataclasses.replace(recipe.lora, **RELEASED["lora"]),
            train=dataclasses.replace(recipe.train, **train),
        )

    def train(self, documents: Sequence[Document], hooks: Hooks) -> Injection:
        setup, recipe = self.setup, self.recipe
        # One step each of a pair, a tail and an unrelated text in turn: as many of each.
        each = max(len(document.qa_pairs) for document in documents)
        wanted = min(sum(len(document.qa_pairs) for document in documents), len(setup.unrelated))
        targets = dataclasses.replace(recipe.targets, tails_per_context=each, unrelated_per_epoch=wanted)
        recipe = dataclasses.replace(recipe, targets=targets)
        return inject(
            setup.model, documents, recipe, setup.unrelated, setup.directory, hooks=hooks, teacher=setup.teacher
        )


SYSTEM = SystemEntry(
    "released",
    "Released recipe",
    "question only; injected with the released settings",
    "baseline",
    Released,
    trained=True,
    options=TrainedOptions,
)
