"""BM25: the passages (or training dialogues) that share most words with a question stand before it in the prompt."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfparam_jax.baselines._retrieved import RetrievalOptions, Retrieved
from selfparam_jax.data.documents import Document
from selfparam_jax.data.retrieval import Retriever
from selfparam_jax.evaluation.recommenders import ModelRecommender, RecommenderEntry
from selfparam_jax.evaluation.systems import SystemEntry

_INTRODUCTION = "Here are other conversations with a movie recommender.\n\n{found}\n\n"


class RetrievedByWords(Retrieved):
    """The base after passages that BM25 finds."""

    def index(self, texts: Sequence[str]) -> None:
        self._retriever = Retriever(texts)

    def scores(self, question: str) -> np.ndarray:
        return self._retriever.scores(question)

    def index_bytes(self) -> int:
        return self._retriever.nbytes


@dataclasses.dataclass
class RetrievedDialogues(ModelRecommender):
    """The base with retrieved dialogues in its prompt."""

    def prepare(self, documents: Sequence[Document]) -> None:
        """Indexes the dialogues by their words; English stop words do not count."""
        import bm25s  # here: it asks JAX for its devices

        self._bm25s = bm25s
        self._texts = [document.text.replace("\n\n", "\n") for document in documents]
        self._index = self._bm25s.BM25()
        tokens = self._bm25s.tokenize(self._texts, stopwords="en", show_progress=False)
        self._index.index(tokens, show_progress=False)

    def retrieve(self, dialogue: str) -> list[str]:
        """The dialogues nearest to one, the nearest last, where it is next to the question."""
        words = self._bm25s.tokenize([dialogue], stopwords="en", show_progress=False)
        count = min(self.setup.config.retrieved, len(self._texts))
        places, _ = self._index.retrieve(words, k=count, show_progress=False)
        return [self._texts[place] for place in places[0].tolist()][::-1]

    def ask(self, dialogue: str) -> str:
        found = "\n\n".join(self.retrieve(dialogue))
        return _INTRODUCTION.replace("{found}", found) + super().ask(dialogue)


SYSTEM = SystemEntry(
    "bm25",
    "Base + BM25",
    "question, after the passages that share most words with it",
    "baseline",
    RetrievedByWords,
    options=RetrievalOptions,
)
RECOMMENDER = RecommenderEntry(
    "bm25", "Base + BM25", "retrieved training dialogues in the prompt", "baseline", RetrievedDialogues
)
