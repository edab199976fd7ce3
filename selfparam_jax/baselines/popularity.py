"""Popularity: the titles that most training dialogues mention, the same for every user. The honest floor."""

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from selfparam_jax.data.documents import Document
from selfparam_jax.evaluation.recommenders import RecommenderEntry, RecommendSetup

COUNT = 20


@dataclasses.dataclass
class Popularity:
    """Recommends the most frequent titles, with no model."""

    setup: RecommendSetup
    titles: tuple[str, ...] = ()

    def prepare(self, documents: Sequence[Document]) -> None:
        """Counts in how many dialogues each title stands; equally frequent ones are in alphabetical order."""
        counts = collections.Counter(
            title
            for document in documents
            for title in {item["title"] for item in document.metadata.get("titles", ())}
        )
        self.titles = tuple(sorted(counts, key=lambda title: (-counts[title], title))[:COUNT])

    def recommend(self, dialogues: Sequence[str]) -> Iterator[tuple[int, str, str]]:
        reply = "\n".join(f"{number}. {title}" for number, title in enumerate(self.titles, start=1))
        for index in range(len(dialogues)):
            yield index, "", reply


RECOMMENDER = RecommenderEntry(
    "popularity", "Popularity", "the most frequent titles of the training dialogues", "baseline", Popularity
)
