"""MemoryLLM: a Llama that was trained with a memory in every layer, into which the documents are written."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import jax

from selfparam_jax.checkpoints.memoryllm import MemoryCheckpoint, load_memoryllm
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.ranges import SEED, check_ranges
from selfparam_jax.evaluation.questions import answer_after
from selfparam_jax.evaluation.systems import BaseSystem, Setup, SystemEntry
from selfparam_jax.inference.memory_pool import read_memory, write


@dataclasses.dataclass(frozen=True)
class MemoryLLMOptions:
    """Which MemoryLLM, and what it forgets.

    Attributes:
      model: a directory or hub id in the layout of YuWangX/memoryllm-8b; "" for none.
      seed: of the memory vectors that are dropped, 0 to 2**32 - 1.

    Raises:
      ValueError: a value outside its range.
    """

    model: str = ""
    seed: Annotated[int, SEED] = 0

    def __post_init__(self):
        check_ranges(self)


# Job "single" makes a new system for every document.
_load_once = functools.lru_cache(maxsize=1)(load_memoryllm)


def why_unavailable(setup: Setup) -> str:
    """No weights were named; the base itself has no memory."""
    if setup.options.model:
        return ""
    return "no trained MemoryLLM weights: set baselines.memoryllm.model to a directory or hub id of one"


class MemoryLLM(BaseSystem):
    """MemoryLLM, asked after the documents were written into its memory; the setup's own model is not used."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        loaded: MemoryCheckpoint = _load_once(setup.options.model, setup.model.dtype.name, setup.model.mesh)
        self._trained, model = loaded.pool, loaded.model
        self._decoder = model.decoder(lora_scale=loaded.lora_scale)
        self._to_write, self._to_read = (
            {**model.variables, **({"lora": adapter} if adapter else {})}
            for adapter in (loaded.writer, loaded.reader)
        )
        self._prompt = Prompt(setup.prompt.format.name, model.tokenizer, model.end_ids)
        self._extra = jax.tree.leaves((loaded.writer, loaded.reader if loaded.reader is not loaded.writer else {}))
        self.pool = loaded.pool

    def prepare(self, documents: Sequence[Document]) -> None:
        """Writes the documents one after another into the memory as it was trained."""
        texts = [self._prompt.encode(document.text) for document in documents]
        self.pool = write(self._decoder, self._to_write, self._trained, texts, self.setup.options.seed)

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        """As `questions.answer_questions`; the tokens read are those of the question alone."""
        asked = [question for document in documents for question in document.questions]
        memory = read_memory(self._decoder, self._to_read, self.pool)
        found = iter(answer_after(self._decoder, self._to_read, self._prompt, memory, asked, self.setup.batch_size))
        return [[next(found) for _ in document.questions] for document in documents]

    def cost(self) -> dict:
        """The memory's vectors; all that MemoryLLM has beside a Llama: vectors, BOS, positional vector, adapters."""
        numbers = sum(leaf.size for leaf in [*jax.tree.leaves(self.pool), *self._extra])
        return {"storage_bytes": self.pool.vectors.nbytes, "extra_parameters": numbers}


SYSTEM = SystemEntry(
    "memoryllm",
    "MemoryLLM",
    "question only, after the documents were written into the memory of a model trained with one",
    "baseline",
    MemoryLLM,
    in_sequence=False,
    options=MemoryLLMOptions,
    unavailable=why_unavailable,
)
