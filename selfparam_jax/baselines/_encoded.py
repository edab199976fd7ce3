"""What systems with an encoder share: which one, the vectors of passages kept in the system's folder, retrieval by
them."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from selfparam_jax.baselines._retrieved import RetrievalOptions, Retrieved
from selfparam_jax.checkpoints.encoder import Encoder, load_encoder
from selfparam_jax.checkpoints.load import model_directory
from selfparam_jax.distributed import files
from selfparam_jax.evaluation.systems import Setup


@dataclasses.dataclass(frozen=True)
class EncoderOptions(RetrievalOptions):
    """What is retrieved, and what with.

    Attributes:
      question_encoder: a directory or hub id of a BERT, a DPR question encoder, or a sentence-transformers encoder;
        "" for the same as the passages'.
      context_encoder: the same for passages; "" for the questions' encoder.

    Raises:
      ValueError: neither encoder is named, or a value is outside its range.
    """

    question_encoder: str = ""
    context_encoder: str = ""

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


def why_no_encoder(name: str, setup: Setup) -> str:
    """Why an encoder of the system `name` is not on this machine and cannot be downloaded; "" if all are."""
    for setting, source in setup.options.sources().items():
        try:
            _directory_once(source)
        except ValueError as error:
            return f"baselines.{name}.{setting}: {error}"
    return ""


class RetrievedByVectors(Retrieved):
    """The base after passages whose vectors are near the question's."""

    name = ""  # in the registry

    def __init__(self, setup: Setup):
        super().__init__(setup)
        loaded = {}
        for setting, source in setup.options.sources().items():
            try:
                loaded[setting] = _load_once(source)
            except ValueError as error:
                raise ValueError(f"baselines.{self.name}.{setting}: {error}") from error
        first, *others = loaded.values()
        self.questions: Encoder = first
        self.passages: Encoder = others[0] if others else first
        _check_pair(self.name, self.questions, self.passages)

    def embed(self, titles: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """The vectors of some passages, float32 [passages, D]; a title path in front of a text is its title."""
        pairs = [split_title(title, text) for title, text in zip(titles, texts, strict=True)]
        vectors, earlier_s = embed_once(self.passages, *zip(*pairs, strict=True), self.setup.directory)
        self.earlier_s += earlier_s
        return vectors

    def index(self, texts: Sequence[str]) -> None:
        self.earlier_s = 0.0
        self.vectors = self.embed(self.titles, texts)

    def scores(self, question: str) -> np.ndarray:
        return self.vectors @ self.questions.embed_questions([question])[0]

    def index_bytes(self) -> int:
        return self.vectors.nbytes

    def cost(self) -> dict:
        """The texts and their vectors; the encoder that reads a question, since the other one has done its work."""
        return super().cost() | {"extra_parameters": self.questions.size}


def embed_once(
    encoder: Encoder, titles: Sequence[str], texts: Sequence[str], directory: pathlib.Path | None
) -> tuple[np.ndarray, float]:
    """The vectors of some passages, computed or read from a folder that has them.

    A file of the folder belongs to one encoder and these passages in this order: its name is a digest of them.

    Args:
      encoder: of passages.
      titles, texts: of the passages.
      directory: where the vectors are kept, in vectors-DIGEST.safetensors; None keeps them in memory.

    Returns:
      the vectors, float32 [passages, D], and the seconds that an earlier run took to compute them; 0 if this one did.

    Raises:
      ValueError: the file is damaged.
    """
    if directory is None:
        return encoder.embed_passages(titles, texts), 0.0
    content = json.dumps([encoder.fingerprint, list(titles), list(texts)])
    path = directory / f"vectors-{hashlib.sha256(content.encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        try:
            with safe_open(path, "numpy") as file:
                return file.get_tensor("vectors"), float(file.metadata()["seconds"])
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}. Remove it; the vectors are computed again.") from error
    began = time.perf_counter()
    vectors = encoder.embed_passages(titles, texts)
    directory.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as temporary:
        save_file({"vectors": vectors}, temporary, {"seconds": f"{time.perf_counter() - began:.3f}"})
    return vectors, 0.0


def split_title(title: str, text: str) -> tuple[str, str]:
    """Title and text of a passage; the title path in front of a text, if there is one, becomes the title."""
    line, between, rest = text.partition("\n\n")
    if title and between and (line == title or line.startswith(f"{title} > ")):
        return line, rest
    return title, text


def _check_pair(name: str, questions: Encoder, passages: Encoder) -> None:
    """Raises ValueError if vectors of the two cannot be compared."""
    if questions is passages:
        return
    one, other = (
        (each.config.hidden_size, each.layout.pooling, each.layout.normalize, each.layout.pairs)
        for each in (questions, passages)
    )
    if one != other:
        raise ValueError(
            f"baselines.{name}.question_encoder = {questions.name!r} and baselines.{name}.context_encoder = "
            f"{passages.name!r} differ in size, pooling or kind, expected two of one kind. Set one of them to '' to "
            "use the other for both."
        )
