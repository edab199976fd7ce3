"""DPR (arXiv 2004.04906): the passages whose vectors have the largest inner product with the question's stand before
it in the prompt."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from selfparam_jax.baselines._retrieved import RetrievalOptions, Retrieved
from selfparam_jax.checkpoints.encoder import Encoder, load_encoder
from selfparam_jax.checkpoints.load import model_directory
from selfparam_jax.evaluation.systems import Setup, SystemEntry


@dataclasses.dataclass(frozen=True)
class DprOptions(RetrievalOptions):
    """What is retrieved, and what with.

    Attributes:
      question_encoder: a directory or hub id of a BERT, a DPR question encoder, or a sentence-transformers encoder;
        "" for the same as the passages'.
      context_encoder: the same for passages; "" for the questions' encoder.

    Raises:
      ValueError: neither encoder is named.
    """

    question_encoder: str = "facebook/dpr-question_encoder-single-nq-base"
    context_encoder: str = "facebook/dpr-ctx_encoder-single-nq-base"

    def __post_init__(self):
        super().__post_init__()
        if not self.question_encoder and not self.context_encoder:
            raise ValueError("question_encoder and context_encoder are both empty, expected at least one")

    def sources(self) -> dict[str, str]:
        """The encoders by the names of the settings that name them."""
        named = {"question_encoder": self.question_encoder, "context_encoder": self.context_encoder}
        return {setting: source for setting, source in named.items() if source}


# Job "single" makes a new system for every document.
_load_once = functools.lru_cache(maxsize=2)(load_encoder)
_directory_once = functools.lru_cache(maxsize=2)(model_directory)


def why_unavailable(setup: Setup) -> str:
    """An encoder is not on this machine and cannot be downloaded."""
    for setting, source in setup.options.sources().items():
        try:
            _directory_once(source)
        except ValueError as error:
            return f"baselines.dpr.{setting}: {error}"
    return ""


class RetrievedByVectors(Retrieved):
    """The base after passages whose vectors are near the question's."""

    def __init__(self, setup: Setup):
        super().__init__(setup)
        loaded = {}
        for setting, source in setup.options.sources().items():
            try:
                loaded[setting] = _load_once(source)
            except ValueError as error:
                raise ValueError(f"baselines.dpr.{setting}: {error}") from error
        first, *others = loaded.values()
        self._questions: Encoder = first
        self._passages: Encoder = others[0] if others else first
        _check_pair(self._questions, self._passages)

    def index(self, texts: Sequence[str]) -> None:
        pairs = [split_title(title, text) for title, text in zip(self.titles, texts, strict=True)]
        self._vectors = self._passages.embed_passages(*zip(*pairs, strict=True))

    def scores(self, question: str) -> np.ndarray:
        return self._vectors @ self._questions.embed_questions([question])[0]

    def index_bytes(self) -> int:
        return self._vectors.nbytes

    def cost(self) -> dict:
        """The texts and their vectors; the encoder that reads a question, since the other one has done its work."""
        return super().cost() | {"extra_parameters": self._questions.size}


def split_title(title: str, text: str) -> tuple[str, str]:
    """Title and text of a passage; the title path in front of a text, if there is one, becomes the title."""
    line, between, rest = text.partition("\n\n")
    if title and between and (line == title or line.startswith(f"{title} > ")):
        return line, rest
    return title, text


def _check_pair(questions: Encoder, passages: Encoder) -> None:
    """Raises ValueError if vectors of the two cannot be compared."""
    if questions is passages:
        return
    one, other = (
        (each.config.hidden_size, each.layout.pooling, each.layout.normalize, each.layout.pairs)
        for each in (questions, passages)
    )
    if one != other:
        raise ValueError(
            f"baselines.dpr.question_encoder = {questions.name!r} and baselines.dpr.context_encoder = "
            f"{passages.name!r} differ in size, pooling or kind, expected two of one kind. Set one of them to '' to "
            "use the other for both."
        )


SYSTEM = SystemEntry(
    "dpr",
    "Base + DPR",
    "question, after the passages whose vectors are nearest to its own",
    "baseline",
    RetrievedByVectors,
    options=DprOptions,
    unavailable=why_unavailable,
)
