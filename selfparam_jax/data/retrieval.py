"""Which passages a question, or another passage, is about: BM25 over their words."""

import logging
from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.scripts import segment


class Retriever:
    """BM25 (Robertson et al., as the package bm25s has it) over some texts; English stop words do not count."""

    def __init__(self, texts: Sequence[str]):
        """Args:
        texts: at least one.
        """
        import bm25s  # here: it asks JAX for its devices
        from bm25s.stopwords import STOPWORDS_EN

        logging.getLogger("bm25s").setLevel(logging.WARNING)
        self._stopwords = frozenset(STOPWORDS_EN)
        self._units = [segment(text) for text in texts]
        self._joined = [f" {' '.join(units)} " for units in self._units]
        self._where: dict[str, list[int]] = {}  # the texts that have a unit
        for place, units in enumerate(self._units):
            for unit in dict.fromkeys(units):
                self._where.setdefault(unit, []).append(place)
        words = [self._words(units) for units in self._units]
        self._index = None
        if any(words):
            self._index = bm25s.BM25()
            self._index.index(words, show_progress=False)

    def _words(self, units: Sequence[str]) -> list[str]:
        return [unit for unit in units if unit not in self._stopwords]

    @property
    def nbytes(self) -> int:
        """Size of the index: its arrays, and the words that it knows."""
        if self._index is None:
            return 0
        arrays = sum(array.nbytes for array in self._index.scores.values() if isinstance(array, np.ndarray))
        return arrays + sum(len(word.encode()) for word in self._index.vocab_dict)

    def scores(self, query: str) -> np.ndarray:
        """How well each text matches the words of a query, float32 [texts]; 0 where it shares none."""
        words = self._words(segment(query))
        if self._index is None or not words:
            return np.zeros(len(self._units), np.float32)
        return self._index.get_scores(words)

    def supporting(self, question: str, answers: Sequence[str]) -> tuple[int, bool]:
        """Which text supports an answer to a question, and whether there is a sign that it does.

        Of the texts that hold one of the answers word for word, the one that best matches the question; if none does,
        the one that best matches question and first answer together.

        Returns:
          the text's index, the first one's where nothing matches; whether anything did.
        """
        answers = [f" {' '.join(segment(answer))} " for answer in answers]
        holding = sorted({place for answer in answers for place in self._holding(answer)})
        scores = self.scores(question)
        if holding:
            return holding[int(np.argmax(scores[holding]))], True
        scores = self.scores(f"{question} {answers[0] if answers else ''}")
        return int(np.argmax(scores)), bool(scores.max() > 0)

    def _holding(self, answer: str) -> list[int]:
        """The texts that hold an answer, units with spaces around them, word for word."""
        # Few texts have its rarest unit; only these are searched.
        having = min((self._where.get(unit, []) for unit in answer.split()), key=len, default=[])
        return [place for place in having if answer in self._joined[place]]

    def related(self, index: int, count: int) -> list[int]:
        """The texts that share most with the one at an index, at most `count`, the nearest first."""
        scores = np.array(self.scores(" ".join(dict.fromkeys(self._units[index]))), np.float64)
        scores[index] = 0.0
        order = np.argsort(-scores, kind="stable")[:count]
        return [int(n) for n in order if scores[n] > 0]
