"""A teacher that is another model than the student: of another size or family, with the same vocabulary.

It reads the documents and the sentences as the student's prompt format has them, and keeps its own hidden states
[tokens, D']. Its own frozen head turns these into distributions inside the loss. All of its weights are needed only
while it reads; the head is all that stays for training.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.ranges import check_ranges
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.decoder import Head, output_head

DTYPES = ("", "float32", "bfloat16")
BASE_WEIGHTS = ("float", "int8")
ROLES = ("bos_token", "eos_token")  # with one of them a prompt begins
SHOWN = 40  # characters of a text in a message


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Who teaches.

    Attributes:
      model: another model that teaches, named as the setting `model` names one, with the same vocabulary as the
        student: larger, of another family, or the same in a better precision. It also judges pairs
        (`targets.agreement`, `targets.least_confidence`, `generator.teacher_scores`). Only its head stays in memory
        for training. "": the student's own base teaches.
      dtype: of its weights and activations, "float32" or "bfloat16"; "" is the student's.
      base_weights: how its weights are held while it reads, "float" or "int8", as for the student.

    Raises:
      ValueError: a value that is not possible, or one that needs another model.
    """

    model: str = ""
    dtype: str = ""
    base_weights: str = "float"

    def __post_init__(self):
        check_ranges(self, "teacher")
        for name, allowed in (("dtype", DTYPES), ("base_weights", BASE_WEIGHTS)):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"teacher.{name} = {value!r}, expected one of {', '.join(map(repr, allowed))}")
            if not self.model and value != allowed[0]:
                raise ValueError(
                    f"teacher.{name} = {value!r} without teacher.model, expected it left out: the student's own base "
                    f"teaches as the setting {name} has it; name a teacher, or take it out"
                )


class HasVocabulary(Protocol):
    """What a vocabulary is compared of: a loaded model or its outline."""

    name: str
    config: ModelConfig
    tokenizer: Any


class OtherTeacher:
    """Another model that teaches: loaded when it is to read, and let go for training, but for its head."""

    def __init__(self, load: Callable[[], Model], student: Model):
        """Args:
        load: loads the teacher, on the student's mesh; called again if it is to read again later.
        student: the model that learns.
        """
        self._load, self._student = load, student
        self._loaded: Model | None = None
        self._kept: tuple[ModelConfig, Head, dict] | None = None

    def model(self) -> Model:
        """The whole teacher, loaded if it is not there.

        Raises:
          ValueError: it cannot be loaded, has another vocabulary, or has changed since it was loaded first.
        """
        if self._loaded is None:
            model = self._load()
            check_vocabulary(model, self._student)
            if model.mesh != self._student.mesh:
                raise ValueError(
                    f"the teacher {model.name!r} is on other devices than the student {self._student.name!r}, "
                    "expected the same mesh; load both with the same `mesh`, or give the teacher by its name"
                )
            head = output_head(model.variables["params"], model.config)
            record = {"fingerprint": model.fingerprint, "dtype": str(model.dtype), "int8": model.int8}
            if self._kept is not None and self._kept[2] != record:
                raise ValueError(
                    f"the teacher {model.name!r} has changed while it was in use: got {record}, expected "
                    f"{self._kept[2]}; restore its files, or begin again in another directory"
                )
            self._loaded, self._kept = model, (model.config, head, record)
        return self._loaded

    def let_go(self) -> None:
        """Forgets the weights, all but the head; what else refers to them keeps them."""
        self._loaded = None

    def _known(self) -> tuple[ModelConfig, Head, dict]:
        if self._kept is None:
            self.model()
        return self._kept

    @property
    def config(self) -> ModelConfig:
        """The teacher's architecture."""
        return self._known()[0]

    @property
    def head(self) -> Head:
        """The teacher's output head [V', D'], as `decoder.output_head` gives it."""
        return self._known()[1]

    def record(self) -> dict:
        """What names the teacher, as JSON values."""
        return self._known()[2]

    def check_documents(self, documents: Sequence[Document], prompt: Prompt) -> None:
        """Raises ValueError for documents that the teacher cannot read as the student's prompt has them."""
        self.check_texts(documents)
        limit = self.config.max_position_embeddings
        for document in documents:
            read = len(prompt.context_prefix(document.text))
            pairs = [len(prompt.question(pair.question) + prompt.answer(pair.answer)) for pair in document.qa_pairs]
            if read + (longest := max(pairs, default=0)) > limit:
                raise ValueError(
                    f"document {document.id!r}: {read} tokens of document (prompt format included) and {longest} of "
                    f"a pair exceed the limit of the teacher {self.model().name!r}, {limit} "
                    "(max_position_embeddings); set passage_tokens to fewer tokens, or take a teacher that reads more"
                )

    def check_texts(self, documents: Iterable[Document], unrelated: Sequence[str] = ()) -> None:
        """Raises ValueError if the teacher's tokenizer cuts a text of documents, pairs or others differently."""
        texts = itertools.chain(
            unrelated,
            *(
                (document.text, *itertools.chain(*((pair.question, pair.answer) for pair in document.qa_pairs)))
                for document in documents
            ),
        )
        check_tokens(self.model(), self._student, list(dict.fromkeys(texts)))


def named_teacher(config: TeacherConfig, student: Model) -> OtherTeacher:
    """The teacher of some settings, which name one, in the student's dtype unless they say another."""
    dtype, int8 = config.dtype or student.dtype, config.base_weights == "int8"
    return OtherTeacher(lambda: load_model(config.model, dtype, student.mesh, int8=int8), student)


def check_vocabulary(teacher: HasVocabulary, student: HasVocabulary) -> None:
    """Raises ValueError if two models have not the same vocabulary, token by token; names the first difference.

    Roles of tokens are compared where a prompt depends on them: the tokens that begin and end a text.
    """
    ours, theirs = (
        {index: token for token, index in model.tokenizer.get_vocab().items()} for model in (student, teacher)
    )
    for index in range(max([*ours, *theirs], default=-1) + 1):
        if ours.get(index) != theirs.get(index):
            got, expected = (
                repr(vocabulary[index]) if index in vocabulary else "no token" for vocabulary in (theirs, ours)
            )
            raise ValueError(
                f"teacher {teacher.name!r} has another vocabulary than {student.name!r}: id {index} is {got}, "
                f"expected {expected}; choose a teacher with the student's tokenizer"
            )
    for role in ROLES:
        got, expected = (getattr(model.tokenizer, role) for model in (teacher, student))
        if got != expected:
            raise ValueError(
                f"teacher {teacher.name!r} has {role} {got!r}, expected {expected!r} as {student.name!r} has; choose "
                "an instruct model for an instruct model and a base for a base, or change the teacher's "
                "tokenizer_config.json"
            )
    fewest = min(teacher.config.vocab_size, student.config.vocab_size)
    if fewest < len(ours):
        raise ValueError(
            f"the heads of teacher {teacher.name!r} and student {student.name!r} share {fewest} rows, expected "
            f"{len(ours)}, one for every token; use the tokenizers that belong to these weights"
        )


def check_tokens(teacher: HasVocabulary, student: HasVocabulary, texts: Sequence[str]) -> None:
    """Raises ValueError if two models' tokenizers give different ids for one of some texts; names the first."""
    if not texts:
        return
    theirs, ours = (
        model.tokenizer(list(texts), add_special_tokens=False)["input_ids"] for model in (teacher, student)
    )
    for text, got, expected in zip(texts, theirs, ours, strict=True):
        if got != expected:
            pairs = itertools.zip_longest(got, expected)
            at, (one, other) = next((n, pair) for n, pair in enumerate(pairs) if pair[0] != pair[1])
            raise ValueError(
                f"teacher {teacher.name!r} cuts {text[:SHOWN]!r} into other tokens than {student.name!r}: token "
                f"{at + 1} is {one}, expected {other}; choose a teacher with the student's tokenizer"
            )
