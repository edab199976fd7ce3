"""RAPTOR (arXiv 2401.18059): passages and summaries of similar passages, the best of both before the question."""

import dataclasses
import hashlib
import importlib.util
import json
import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from absl import logging

from selfparam_jax.baselines import _clustering
from selfparam_jax.baselines._clustering import ClusterOptions
from selfparam_jax.baselines._encoded import EncoderOptions, RetrievedByVectors, why_no_encoder
from selfparam_jax.baselines._retrieved import PASSAGES
from selfparam_jax.baselines._summaries import Summarizer
from selfparam_jax.baselines._tree import Node, Tree, format_tree, grow, read_tree, tree_record, within_budget
from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import LEAST_TOKENS, token_counter
from selfparam_jax.distributed import files
from selfparam_jax.distributed.ranges import Range
from selfparam_jax.evaluation.systems import Setup, SystemEntry

PACKAGES = ("umap", "sklearn")


@dataclasses.dataclass(frozen=True)
class RaptorOptions(EncoderOptions, ClusterOptions):
    """How the tree is made, and what is read of it.

    Attributes:
      passages: how many nodes of the tree, passages or summaries, stand before a question at most.
      retrieved_tokens: tokens that they have together at most.
      summary_tokens: of the longest summary.
      layers: of summaries at most.

    Raises:
      ValueError: neither encoder is named, or a value is outside its range.
    """

    passages: Annotated[int, PASSAGES] = 10
    question_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    retrieved_tokens: Annotated[int, Range(LEAST_TOKENS, 2**20)] = 3500
    summary_tokens: Annotated[int, Range(8, 2**16)] = 100
    layers: Annotated[int, Range(1, 100)] = 5


def why_unavailable(setup: Setup) -> str:
    """A package of the extra `raptor` or an encoder is missing."""
    if any(importlib.util.find_spec(package) is None for package in PACKAGES):
        return "it needs umap-learn and scikit-learn: pip install 'selfparam-jax[raptor]'"
    return why_no_encoder("raptor", setup)


class Raptor(RetrievedByVectors):
    """The base after nodes of a tree of summaries that it wrote itself."""

    name = "raptor"

    def __init__(self, setup: Setup):
        """Loads the encoders.

        Raises:
          ValueError: an encoder cannot be loaded, or the model cannot read a passage and sum it up.
        """
        super().__init__(setup)
        options: RaptorOptions = setup.options
        room, limit = Summarizer(setup, options.summary_tokens).room, setup.model.config.max_position_embeddings
        if room < options.passage_tokens:
            raise ValueError(
                f"baselines.raptor: summary_tokens = {options.summary_tokens} leaves {room} of the model's {limit} "
                f"tokens to be summed up, expected at least passage_tokens = {options.passage_tokens}; lower both"
            )
        self._cluster = dataclasses.replace(options, cluster_tokens=min(options.cluster_tokens, room))

    def prepare(self, documents: Sequence[Document]) -> None:
        """Cuts the documents into passages, and makes the tree over them, or reads the one that was made."""
        super().prepare(documents)
        sizes = self._count(self.texts)
        leaves = [
            Node(text, tokens, source=source, title=title)
            for text, tokens, source, title in zip(self.texts, sizes, self.sources, self.titles, strict=True)
        ]
        self.tree = self._read(leaves) or self._make(leaves)
        self.texts = [node.text for node in self.tree.nodes]
        self.titles = [node.title for node in self.tree.nodes]
        self.sources = [node.source for node in self.tree.nodes]
        lengths = np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self._directions = self.vectors / np.maximum(lengths, 1e-12)

    def scores(self, question: str) -> np.ndarray:
        """The cosine of each node with a question."""
        vector = self.questions.embed_questions([question])[0]
        return self._directions @ (vector / np.maximum(np.linalg.norm(vector), 1e-12))

    def retrieve(self, question: str) -> list[int]:
        """The nodes of all layers that are nearest to a question, the nearest first, within the budget of tokens."""
        order = np.argsort(-np.asarray(self.scores(question), np.float64), kind="stable")
        tokens, options = [node.tokens for node in self.tree.nodes], self.setup.options
        return within_budget(order, tokens, options.passages, options.retrieved_tokens)

    def cost(self) -> dict:
        """The texts and vectors of all nodes, the encoder of questions, and what writing the summaries took."""
        return super().cost() | {
            "passages": len(self.texts) - self.tree.summaries,
            "summaries": self.tree.summaries,
            "layers": self.tree.layers,
            "summary_tokens_read": self.tree.read_tokens,
            "summary_tokens_made": self.tree.made_tokens,
        }

    def _count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of texts, each with what stands between it and the next."""
        return token_counter(self.setup.model.tokenizer)([f"{text}\n\n" for text in texts])

    def _key(self, leaves: Sequence[Node]) -> str:
        """Digest of all that decides what the tree is."""
        parts = [self.setup.model.fingerprint, self.passages.fingerprint, dataclasses.asdict(self._cluster)]
        parts.append([dataclasses.asdict(node) for node in leaves])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _make(self, leaves: Sequence[Node]) -> Tree:
        began, before = time.perf_counter(), self.earlier_s
        summarizer = Summarizer(self.setup, self.setup.options.summary_tokens)

        def summarize(clusters):
            texts = summarizer.write(["\n\n".join(texts) for texts in clusters])
            empty = sum(not text for text in texts)
            if empty:
                logging.warning("raptor: %d of %d summaries are empty and left out", empty, len(texts))
            return list(zip(texts, self._count(texts), strict=True))

        def embed(texts):
            return self.embed([""] * len(texts), texts)

        tree, self.vectors = grow(
            leaves,
            self.vectors,
            self.setup.options.layers,
            self.setup.options.dimensions + 1,
            lambda vectors, sizes: _clustering.divide(vectors, sizes, self._cluster),
            summarize,
            embed,
        )
        self.earlier_s += summarizer.earlier_s
        tree = dataclasses.replace(tree, read_tokens=summarizer.read_tokens, made_tokens=summarizer.made_tokens)
        if (directory := self.setup.directory) is not None:
            seconds = time.perf_counter() - began + self.earlier_s - before
            record = {"key": self._key(leaves), "seconds": round(seconds, 3), **tree_record(tree)}
            files.write_json(directory / "tree.json", record)
            files.write_text(directory / "tree.txt", format_tree(tree))
        logging.info("raptor: %d summaries in %d layers over %d passages; no further layer: %s",
                     tree.summaries, tree.layers, len(leaves), tree.ended)  # fmt: skip
        return tree

    def _read(self, leaves: Sequence[Node]) -> Tree | None:
        """The tree that an earlier run made over the same passages in the same way."""
        path = self.setup.directory and self.setup.directory / "tree.json"
        if not path or not path.exists():
            return None
        record = files.read_json(path)
        key, seconds = record.pop("key", None), record.pop("seconds", 0.0)
        if key != self._key(leaves):
            return None
        tree, before = read_tree(record), self.earlier_s
        for layer in range(1, tree.layers + 1):
            texts = [node.text for node in tree.nodes if node.layer == layer]
            self.vectors = np.concatenate([self.vectors, self.embed([""] * len(texts), texts)])
        self.earlier_s = before + seconds
        return tree


SYSTEM = SystemEntry(
    "raptor",
    "Base + RAPTOR",
    "question, after the passages and summaries of passages nearest to it",
    "baseline",
    Raptor,
    options=RaptorOptions,
    unavailable=why_unavailable,
)
