"""A target sentence: what the student is trained on, and which of its tokens carry the loss."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np


def loss_tokens(weights: Sequence[float], supervision: Sequence[float]) -> list[int]:
    """Indices of the tokens that carry any loss; no `supervision` at all is none for any token."""
    pairs = zip(weights, supervision or [0.0] * len(weights), strict=True)
    return [token for token, both in enumerate(pairs) if max(both) > 0]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the teacher reads where it reads a sentence in another form than the student.

    Attributes:
      ids: token ids [U] after what the teacher reads first.
      loss_tokens: where in them the student's loss tokens stand, in order. Where a token carries no KL loss, that may
        be another token.
    """

    ids: tuple[int, ...]
    loss_tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One target sentence.

    Attributes:
      kind: its name in `kinds.TARGET_KINDS`: "qa", "tail" or "unrelated".
      context: index of what the teacher reads before the sentence (`formats.teacher_prefixes`): with one format, that
        of the document; None: no document.
      ids: token ids [T]. Only those of a tail are also in the document's prefix.
      weights: weight of the KL loss per token [T].
      start: for a tail, how many tokens of the document's prefix come before it; else None.
      record: the line of targets.jsonl, for people to read.
      supervision: weight of the next-token loss per token [T]; () means none.
      epochs: the epochs, from 0, in which it is read; None: all of them (unrelated texts take turns).
      before: ids that the student reads before the sentence, and the teacher where there is no document; None: the
        prompt's start.
      reading: what the teacher reads instead of `ids`; None: the same.

    Raises:
      ValueError: the teacher's next tokens are not the student's.
    """

    kind: str
    context: int | None
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    start: int | None
    record: dict
    supervision: tuple[float, ...] = ()
    epochs: tuple[int, ...] | None = None
    before: tuple[int, ...] | None = None
    reading: Reading | None = None

    def __post_init__(self):
        if self.reading is None:
            return
        pairs = zip(self.loss_tokens, self.reading.loss_tokens, strict=True)
        compared = [(mine, other) for mine, other in pairs if self.weights[mine] > 0]
        learned = [self.ids[mine] for mine, _ in compared]
        taught = [self.reading.ids[other] for _, other in compared]
        if learned != taught:
            raise ValueError(
                f"the student's tokens are {learned}, the teacher's {taught}, expected the same; let the teacher "
                "read the student's form"
            )

    @functools.cached_property
    def loss_tokens(self) -> list[int]:
        """Indices of the tokens that carry any loss."""
        return loss_tokens(self.weights, self.supervision)

    @property
    def taught_ids(self) -> tuple[int, ...]:
        """The ids that the teacher reads."""
        return self.reading.ids if self.reading else self.ids

    @property
    def taught_tokens(self) -> Sequence[int]:
        """Where in `taught_ids` the loss tokens stand."""
        return self.reading.loss_tokens if self.reading else self.loss_tokens

    def start_ids(self, start_ids: Sequence[int]) -> tuple[int, ...]:
        """What the student reads before the sentence, given the prompt's start."""
        return tuple(start_ids) if self.before is None else self.before


def context_groups(sentences: Sequence[Sentence]) -> dict[int | None, list[int]]:
    """Indices of the sentences that carry loss, by what the teacher reads before them (`Sentence.context`)."""
    groups: dict[int | None, list[int]] = {}
    for i, sentence in enumerate(sentences):
        if sentence.loss_tokens:
            groups.setdefault(sentence.context, []).append(i)
    return groups


def lengths_in_rows(sentences: Sequence[Sentence], start_ids: Sequence[int], seq_len: int) -> list[int]:
    """How many tokens of a row each sentence takes, what the student reads before it included.

    Raises:
      ValueError: one is longer than a row; names it, its document, and the settings that help.
    """
    lengths = [len(sentence.start_ids(start_ids)) + len(sentence.ids) for sentence in sentences]
    longest = max(range(len(lengths)), key=lengths.__getitem__, default=None)
    if longest is None or lengths[longest] <= seq_len:
        return lengths
    record, kind = sentences[longest].record, sentences[longest].kind
    said = next((record[name] for name in ("question", "text", "prompt") if record.get(name)), "")
    said = said or next(iter(record.get("questions") or ()), "")
    what = {"qa": "the pair", "tail": "the tail", "unrelated": "the unrelated text"}.get(kind, f"the {kind} sentence")
    document = f"document {record['context']!r}: " if kind in ("qa", "tail") and record.get("context") else ""
    help_of = {
        "qa": ", shorten the pair, or leave such pairs out with targets.long_pairs=skip",
        "unrelated": ", or lower targets.unrelated_tokens",
    }
    raise ValueError(
        f"{document}{what} {said[:60]!r} has {lengths[longest]} tokens (what the prompt format puts before it "
        f"included), but a row holds {seq_len}; raise train.seq_len{help_of.get(kind, '')}"
    )


def first_slots(sentences: Sequence[Sentence]) -> np.ndarray:
    """Where each sentence's loss tokens begin in the store of hidden states, int64 [len(sentences)].

    The slots of one document are contiguous.
    """
    first, slot = np.zeros(len(sentences), np.int64), 0
    for members in context_groups(sentences).values():
        for i in members:
            first[i] = slot
            slot += len(sentences[i].loss_tokens)
    return first
