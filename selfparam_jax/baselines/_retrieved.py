"""What systems with retrieval share: passages of the documents, the best of them before each question."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from absl import logging

from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.passages import LEAST_TOKENS, is_group, source_id, split_documents, token_counter
from selfparam_jax.distributed.ranges import Range, check_ranges
from selfparam_jax.evaluation.questions import SHORT_TOKENS, answer_with_texts
from selfparam_jax.evaluation.systems import BaseSystem

PASSAGES = Range(1, 10**4)


@dataclasses.dataclass(frozen=True)
class RetrievalOptions:
    """What is retrieved.

    Attributes:
      passages: how many stand before a question.
      passage_tokens: a document of more tokens is cut into passages of at most as many, at the ends of sentences,
        with its title in front.

    Raises:
      ValueError: a value outside its range.
    """

    passages: Annotated[int, PASSAGES] = 3
    passage_tokens: Annotated[int, Range(LEAST_TOKENS, 2**20)] = 100

    def __post_init__(self):
        check_ranges(self)


class Retrieved(BaseSystem):
    """A model that reads the passages that match a question best, the best one last, next to the question."""

    def index(self, texts: Sequence[str]) -> None:
        """Prepares to search some texts."""
        raise NotImplementedError

    def scores(self, question: str) -> np.ndarray:
        """How well each of the texts matches a question, float [texts]."""
        raise NotImplementedError

    def index_bytes(self) -> int:
        """Size of the index without the texts."""
        raise NotImplementedError

    def variables(self) -> dict:
        """Of the model that answers."""
        return self.setup.model.variables

    def prepare(self, documents: Sequence[Document]) -> None:
        """Cuts the documents into passages and indexes them."""
        sources = [document for document in documents if not is_group(document)]
        plain = [Document(each.text, each.title, f"{number}") for number, each in enumerate(sources)]
        count = token_counter(self.setup.model.tokenizer)
        made = split_documents(plain, self.setup.options.passage_tokens, count)
        self.texts = [passage.text for passage in made]
        self.titles = [passage.title for passage in made]
        self.sources = [source_id(sources[int(source_id(passage))]) for passage in made]
        self.index(self.texts)

    def retrieve(self, question: str) -> list[int]:
        """The places of the passages that match a question best, at most `passages`, the best first."""
        order = np.argsort(-np.asarray(self.scores(question), np.float64), kind="stable")
        return order[: self.setup.options.passages].tolist()

    def answer(self, documents: Sequence[Document]) -> list[list[dict]]:
        """As `questions.answer_questions`; "hit" is 1 if all documents that a question needs have a passage there."""
        setup, texts, hits = self.setup, [], []
        for document in documents:
            found = [self._fitting(question) for question in document.questions]
            texts.append([self._joined(places) or None for places in found])
            asked = zip(document.questions, found, strict=True)
            hits.append([self._hit(question, document, places) for question, places in asked])
        decoder = setup.model.decoder(lora_scale=setup.lora_scale)
        answers = answer_with_texts(decoder, self.variables(), setup.prompt, documents, texts, setup.batch_size)
        return [
            [answer | {"hit": hit} for answer, hit in zip(*group, strict=True)]
            for group in zip(answers, hits, strict=True)
        ]

    def _hit(self, question: Question, document: Document, places: Sequence[int]) -> float:
        needed = set(question.documents or (source_id(document),))
        return float(needed <= {self.sources[place] for place in places})

    def _fitting(self, question: Question) -> list[int]:
        """The passages before a question, without the worst ones where the model cannot read all."""
        setup, places = self.setup, self.retrieve(question.question)
        asked = len(setup.prompt.question(question.question)) + SHORT_TOKENS
        limit = setup.model.config.max_position_embeddings - asked
        count = len(places)
        while places and len(setup.prompt.context_prefix(self._joined(places))) > limit:
            places = places[:-1]
        if len(places) < count:
            logging.warning(
                "%d of %d passages fit into the model's %d tokens before %r",
                len(places), count, setup.model.config.max_position_embeddings, question.question,
            )  # fmt: skip
        return places

    def _joined(self, places: Sequence[int]) -> str:
        return "\n\n".join(self.texts[place] for place in places[::-1])

    def cost(self) -> dict:
        """The texts and the index; `retrieved` is how many passages stand before a question at most."""
        size = sum(len(text.encode()) for text in self.texts) + self.index_bytes()
        retrieved = self.setup.options.passages
        return {"storage_bytes": size, "extra_parameters": 0, "passages": len(self.texts), "retrieved": retrieved}
