"""InfLLM: the base with all documents in its prompt, whose older parts are kept in blocks (arXiv 2402.04617)."""

import dataclasses
from collections.abc import Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import is_group
from selfparam_jax.distributed.watchdog import progressed
from selfparam_jax.evaluation.questions import PAPER_TOKENS, SHORT_TOKENS, score_answer
from selfparam_jax.evaluation.systems import BaseSystem, Setup, SystemEntry
from selfparam_jax.inference.block_memory import BlockOptions, BlockReader, unsupported


@dataclasses.dataclass(frozen=True)
class InfLLMOptions(BlockOptions):
    """What stays in sight of every token, and what comes back; `block_memory.BlockOptions` has the fields."""


class InfLLM(BaseSystem):
    """The base after one text of all documents, read once for all questions."""

    def __init__(self, setup: Setup):
        """Nothing is read yet.

        Raises:
          ValueError: the model cannot be read this way.
        """
        super().__init__(setup)
        options = setup.options or InfLLMOptions()
        self._reader = BlockReader(setup.model.decoder(), setup.model.variables["params"], options)
        self._memory = self._reader.empty()

    def prepare(self, documents: Sequence[Document]) -> None:
        """Reads the documents in their order, with an empty line between two."""
        texts = [document.text for document in documents if not is_group(document)]
        self._memory = self._reader.empty()
        self._reader.read(self._memory, self.setup.prompt.context_prefix("\n\n".join(texts)))

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        """As `questions.answer_questions`; the tokens read are those of all documents and of the question."""
        return [[self._answer(question) for question in document.questions] for document in documents]

    def _answer(self, question):
        prompt = self.setup.prompt
        asked = prompt.question(question.question)
        made = self._reader.generate(self._memory, asked, SHORT_TOKENS, prompt.stop_ids, PAPER_TOKENS)
        progressed()
        return score_answer(prompt, made, question.answers) | {"tokens": self._memory.length + len(asked)}

    def cost(self) -> dict:
        """Bytes of the text's keys and values on the device, and of the blocks on the host."""
        device, host = self._memory.device_bytes(), self._memory.host_bytes()
        return {
            "storage_bytes": device + host,
            "extra_parameters": 0,
            "device_bytes": device,
            "host_bytes": host,
            "tokens": self._memory.length,
        }


SYSTEM = SystemEntry(
    "infllm",
    "InfLLM",
    "all documents as one text, older parts in blocks that are looked up",
    "baseline",
    InfLLM,
    options=InfLLMOptions,
    unavailable=lambda setup: unsupported(setup.model.config, setup.options or InfLLMOptions()),
)
