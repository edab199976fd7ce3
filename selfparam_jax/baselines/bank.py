"""An adapter for each document; BM25 over the documents chooses one for each question. No document is read."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import group_passages
from selfparam_jax.data.retrieval import Retriever
from selfparam_jax.evaluation.questions import answer_questions
from selfparam_jax.evaluation.systems import BaseSystem, SystemEntry


class AdapterBank(BaseSystem):
    """The base with the adapter of the document that matches a question best."""

    def prepare(self, documents: Sequence[Document]) -> None:
        """Indexes the documents by their words."""
        self._retriever = Retriever([source.text for source in group_passages(documents)])

    def choose(self, question: str) -> int:
        """Which of the documents, counted without their passages, matches a question best; the first if none does."""
        return int(np.argmax(self._retriever.scores(question)))

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        setup = self.setup
        if setup.adapters is None:
            raise ValueError("the adapter bank needs an adapter for each document, which job 'single' makes")
        answers: list[list[dict]] = [[{}] * len(document.questions) for document in documents]
        chosen: dict[int, list[tuple[int, int]]] = {}
        for d, document in enumerate(documents):
            for q, question in enumerate(document.questions):
                chosen.setdefault(self.choose(question.question), []).append((d, q))
        decoder = setup.model.decoder(lora_scale=setup.lora_scale)
        for place, members in sorted(chosen.items()):
            asked = tuple(documents[d].questions[q] for d, q in members)
            together = [dataclasses.replace(documents[0], questions=asked)]  # it is not read
            variables = {**setup.model.variables, "lora": setup.adapters(place)}
            (found,) = answer_questions(decoder, variables, setup.prompt, together, False, setup.batch_size)
            for (d, q), answer in zip(members, found, strict=True):
                answers[d][q] = answer
        return answers


SYSTEM = SystemEntry(
    "bank",
    "Adapter bank",
    "question only, adapter of the document that BM25 finds",
    "baseline",
    AdapterBank,
    needs_adapters=True,
)
