"""Target sentences: what the student is trained on, and which tokens of it carry the loss.

Three kinds (METHOD: QA pairs, context tails, unrelated text); each is a `Sentence` that knows what the
teacher reads before it. The generator of QA pairs joins here; today pairs come with the contexts file.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from selfparam_jax.contexts import Context
from selfparam_jax.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """Which sentences, how many, and the loss weight of their tokens.

    Attributes:
      qa_per_context: QA pairs used per context; 0 means all.
      least_confidence: QA pairs whose answer the teacher, with the context in view, gives a lower geometric
        mean probability per token are left out; 0 keeps all.
      loss_tokens: which tokens of a QA pair carry the KL: "all", "answer", or two weights, of the question's
        tokens and of the answer's, as in "0.1,1".
      answer_supervision: weight of a next-token loss on the answer's tokens beside the KL (0: the paper's).
      tails_per_context, tail_weight: context tails and the weight of their tokens.
      unrelated_per_epoch, unrelated_weight: unrelated texts read per epoch, and their tokens' weight.
      unrelated_tokens: an unrelated text is used up to this many tokens.
      unrelated_context: whether the teacher reads a context before unrelated text (the paper's default);
        False makes the term exactly "stay what you were".
    """

    qa_per_context: int = 0
    least_confidence: float = 0.0
    loss_tokens: str = "all"
    answer_supervision: float = 0.0
    tails_per_context: int = 0
    tail_weight: float = 1.0
    unrelated_per_epoch: int = 0
    unrelated_weight: float = 1.0
    unrelated_tokens: int = 48
    unrelated_context: bool = False

    @property
    def token_weights(self) -> tuple[float, float]:
        """Weight of the KL on the question's tokens and on the answer's."""
        named = {"all": (1.0, 1.0), "answer": (0.0, 1.0)}
        if self.loss_tokens in named:
            return named[self.loss_tokens]
        return _two_weights(self.loss_tokens)

    def __post_init__(self):
        _ = self.token_weights


def _two_weights(text: str) -> tuple[float, float]:
    try:
        question, answer = (float(part) for part in text.split(","))
        valid = question >= 0 and answer >= 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            f"targets.loss_tokens = {text!r}, expected 'all', 'answer' or two weights 'QUESTION,ANSWER' of at least 0"
        )
    return question, answer


@dataclasses.dataclass(frozen=True)
class Sentence:
    """One target sentence.

    Attributes:
      kind: "qa", "tail" or "unrelated".
      context: index of the context that the teacher reads before it; None: only the prompt's head.
      ids: token ids; ids that are also in the context's prefix only for a tail.
      weights: weight of the KL per token.
      start: for a tail, how many tokens of the context's prefix come before it; else None.
      record: what a person reads in targets.jsonl.
      supervision: weight of the next-token loss per token; () means none.
    """

    kind: str
    context: int | None
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    start: int | None
    record: dict
    supervision: tuple[float, ...] = ()

    @functools.cached_property
    def loss_tokens(self) -> list[int]:
        """Indices of the tokens that carry any loss."""
        supervision = self.supervision or (0.0,) * len(self.weights)
        pairs = zip(self.weights, supervision, strict=True)
        return [token for token, both in enumerate(pairs) if max(both) > 0]


def qa_sentences(contexts: Sequence[Context], prompt: Prompt, config: TargetConfig) -> list[Sentence]:
    """The QA pairs that came with the contexts."""
    sentences = []
    on_question, on_answer = config.token_weights
    for index, context in enumerate(contexts):
        pairs = context.qa_pairs
        if config.qa_per_context > len(pairs):
            raise ValueError(
                f"targets.qa_per_context = {config.qa_per_context}, but context {context.id!r} has "
                f"{len(pairs)} qa_pairs; lower it, or 0 to use all there are"
            )
        for pair in pairs[: config.qa_per_context or len(pairs)]:
            question, answer = prompt.question(pair.question), prompt.answer(pair.answer)
            weights = (on_question,) * len(question) + (on_answer,) * len(answer)
            supervision = (0.0,) * len(question) + (config.answer_supervision,) * len(answer)
            record = {"kind": "qa", "context": context.id, "question": pair.question, "answer": pair.answer}
            sentences.append(Sentence("qa", index, question + answer, weights, None, record, supervision))
    return sentences


def tail_sentences(
    contexts: Sequence[Context], prompt: Prompt, config: TargetConfig, seed: int, longest: int
) -> list[Sentence]:
    """Tails of each context from random tokens on, at most `longest` tokens each."""
    sentences = []
    for index, context in enumerate(contexts):
        prefix = prompt.context_prefix(context.context)
        begin, end = prompt.context_span(context.context)
        rng = np.random.default_rng([seed, index])
        # A tail has at least 8 tokens, where the context is long enough for that.
        for cut in rng.integers(begin + 1, max(end - 8, begin + 2), config.tails_per_context):
            ids = prefix[int(cut) : min(int(cut) + longest, end)]
            record = {"kind": "tail", "context": context.id, "text": prompt.decode(ids)}
            weights = (config.tail_weight,) * len(ids)
            sentences.append(Sentence("tail", index, ids, weights, int(cut), record))
    return sentences


def unrelated_sentences(
    texts: Sequence[str], prompt: Prompt, config: TargetConfig, count: int, num_contexts: int, seed: int
) -> list[Sentence]:
    """`count` different unrelated texts; with `unrelated_context` the contexts take turns before them."""
    if count > len(texts):
        raise ValueError(f"{count} unrelated texts are needed, but the file has {len(texts)}; add texts or lower it")
    order = np.random.default_rng([seed, 1]).permutation(len(texts))[:count]
    sentences = []
    for turn, chosen in enumerate(order):
        ids = prompt.text(texts[chosen])[: config.unrelated_tokens]
        context = turn % num_contexts if config.unrelated_context else None
        record = {"kind": "unrelated", "context": context, "text": prompt.decode(ids)}
        sentences.append(Sentence("unrelated", context, ids, (config.unrelated_weight,) * len(ids), None, record))
    return sentences


def context_groups(sentences: Sequence[Sentence]) -> dict[int | None, list[int]]:
    """Indices of the sentences that carry loss, by the context that the teacher reads before them."""
    groups: dict[int | None, list[int]] = {}
    for i, sentence in enumerate(sentences):
        if sentence.loss_tokens:
            groups.setdefault(sentence.context, []).append(i)
    return groups


def first_slots(sentences: Sequence[Sentence]) -> np.ndarray:
    """Where each sentence's loss tokens begin in the hidden-state store, int64 [len]; a context's are contiguous."""
    first, slot = np.zeros(len(sentences), np.int64), 0
    for members in context_groups(sentences).values():
        for i in members:
            first[i] = slot
            slot += len(sentences[i].loss_tokens)
    return first
