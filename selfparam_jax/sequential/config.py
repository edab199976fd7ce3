"""Settings of job `sequential`."""

import dataclasses
from typing import Annotated

from selfparam_jax.distributed.ranges import WEIGHT, Range, check_ranges

TEACHERS = ("current", "original")
MOST = 10**6  # documents, or pairs


@dataclasses.dataclass(frozen=True)
class SequentialConfig:
    """How documents follow one another, and what is done against forgetting.

    Attributes:
      length: documents in a sequence; 0 shares all documents evenly among the sequences.
      sequences: how many sequences; each starts from the untouched base with the documents that follow.
      teacher: who teaches: "current", the model as the injections before left it (as published), or "original", the
        untouched base. Both read the document in the prompt.
      replay_pairs: pairs of every injection that are stored with their teacher's states for later ones; 0: none.
      replay_per_epoch: stored pairs that an epoch of a later injection goes over.
      replay_weight: factor of the replayed pairs' losses.
      self_generated_per_epoch: pairs that the current model generates by itself, without any document, and that an
        epoch keeps it unchanged on; 0: none.
      orthogonal: keep each adapter orthogonal to what the earlier ones read.
      fresh_texts: every injection draws unrelated texts of its own where there are enough; else all share the same.

    Raises:
      ValueError: a value outside its range, or only one of `replay_pairs` and `replay_per_epoch` is set.
    """

    length: Annotated[int, Range(1, MOST, also={0: "all documents"})] = 20
    sequences: Annotated[int, Range(1, MOST)] = 1
    teacher: str = "current"
    replay_pairs: Annotated[int, Range(0, MOST)] = 0
    replay_per_epoch: Annotated[int, Range(0, MOST)] = 0
    replay_weight: Annotated[float, WEIGHT] = 1.0
    self_generated_per_epoch: Annotated[int, Range(0, MOST)] = 0
    orthogonal: bool = False
    fresh_texts: bool = False

    def __post_init__(self):
        check_ranges(self, "sequential")
        if self.teacher not in TEACHERS:
            raise ValueError(f"sequential.teacher = {self.teacher!r}, expected 'current' or 'original'")
        if bool(self.replay_pairs) != bool(self.replay_per_epoch):
            raise ValueError(
                f"sequential.replay_pairs = {self.replay_pairs} and replay_per_epoch = {self.replay_per_epoch}, "
                "expected both 0 or both more: how many pairs of each document are stored, and how many of all "
                "stored ones an epoch goes over"
            )
