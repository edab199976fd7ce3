"""Cartridge: keys and values trained on the target sentences (arXiv 2506.06266), read before every question."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import jax
import numpy as np

from selfparam_jax.baselines._finetuned import RATE, Trained, TrainedOptions
from selfparam_jax.data.documents import Document
from selfparam_jax.distributed.ranges import Range
from selfparam_jax.evaluation.drift import General, drift_of, read_states
from selfparam_jax.evaluation.questions import answer_after
from selfparam_jax.evaluation.systems import BaseSystem, Setup, SystemEntry
from selfparam_jax.inference.prefix import prefix_of
from selfparam_jax.models.decoder import output_head
from selfparam_jax.models.masks import PADDING
from selfparam_jax.training.cartridge import LEAST_TOKENS, STARTS, tokens_of_storage, train_cartridge
from selfparam_jax.training.inject import Hooks, Injection

DIVIDE = Range(1, 10**6)


@dataclasses.dataclass(frozen=True)
class CartridgeOptions(TrainedOptions):
    """The size of a cartridge, what it starts from, and how it is trained.

    Attributes:
      tokens: of the cartridge; 0 makes its storage that of the recipe's adapter, divided by `divide`. Documents of
        fewer tokens have a shorter one.
      divide: what the adapter's storage is divided by.
      start: "document": evenly spaced tokens of the documents' own caches. "first": the cache of the documents' first
        tokens. "random": the cache of random tokens.

    Raises:
      ValueError: a value outside its range.
    """

    learning_rate: Annotated[float, RATE] = 0.02
    tokens: Annotated[int, Range(LEAST_TOKENS, 2**20, also={0: "the adapter's storage"})] = 0
    divide: Annotated[int, DIVIDE] = 1
    start: str = "document"

    def __post_init__(self):
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"start = {self.start!r}, expected one of {', '.join(STARTS)}")


class Cartridge(Trained):
    """The base, which reads a cartridge and no document before every question."""

    def train(self, documents: Sequence[Document], hooks: Hooks) -> Injection:
        setup, options = self.setup, self.setup.options
        tokens = options.tokens or tokens_of_storage(setup.model, self.recipe, options.divide)
        return train_cartridge(
            setup.model,
            documents,
            self.recipe,
            tokens,
            options.start,
            setup.unrelated,
            setup.directory,
            hooks,
            setup.teacher,
        )

    def with_trained(self, lora: dict) -> "AfterCartridge":
        return AfterCartridge(dataclasses.replace(self.setup, lora=lora))

    def cost(self) -> dict:
        """The keys and values, in the base's dtype; `tokens` is how many there are of each layer and head."""
        numbers = sum(leaf.size for leaf in jax.tree.leaves(self.lora))
        stored = numbers * self.setup.model.dtype.itemsize
        return {"storage_bytes": stored, "extra_parameters": numbers, "tokens": self.lora["keys"].shape[3]}


class AfterCartridge(BaseSystem):
    """The base after a given cartridge (`Setup.lora`)."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        self._decoder, self._variables = setup.model.decoder(), setup.model.variables
        self._prefix = prefix_of(self._decoder, setup.lora["keys"], setup.lora["values"])

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        """As `questions.answer_questions`; the tokens read are those of the question alone."""
        setup, asked = self.setup, [question for document in documents for question in document.questions]
        found = iter(
            answer_after(self._decoder, self._variables, setup.prompt, self._prefix, asked, setup.batch_size)
        )
        return [[next(found) for _ in document.questions] for document in documents]

    def drift(self, general: General) -> dict:
        """General text follows the cartridge directly, as questions do: the prompt's start is in the cartridge."""
        start, past = len(self.setup.prompt.start_ids), (self._prefix.key_values,)

        def read(input_ids, positions, segments, index):
            # No token of the text sees what counts as padding.
            own = np.where(positions < start, PADDING, segments)
            moved = positions + np.int32(self._prefix.length - start)
            return read_states(self._decoder, self._variables, input_ids, moved, own, index, past)

        return drift_of(read, general, output_head(self._variables["params"], self.setup.model.config))


SYSTEM = SystemEntry(
    "cartridge",
    "Cartridge",
    "question only, after trained keys and values with the adapter's storage",
    "baseline",
    Cartridge,
    trained=True,
    in_sequence=False,
    options=CartridgeOptions,
)
