"""Target sentences: what the student is trained on, and which tokens of it carry the loss.

Three kinds (METHOD: QA pairs, context tails, unrelated text); each is a `Sentence` that knows what the
teacher reads before it. Pairs come with the contexts, or a model has written them (generator.py).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

import numpy as np

from selfparam_jax.contexts import Context
from selfparam_jax.pairs import ANSWER_SHAPES
from selfparam_jax.prefix import common_ids
from selfparam_jax.prompts import Prompt

TAIL_CUTS = ("random", "sentence")
SHAPES = ("any", *ANSWER_SHAPES)
AGREEMENTS = ("none", "keep", "rewrite")
LEAST_TAIL = 8  # tokens of a tail that begins at a random token, where the context is long enough for that


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """Which sentences, how many, and the loss weight of their tokens.

    Attributes:
      qa_per_context: QA pairs used per context; 0 means all.
      long_pairs: what becomes of a QA pair that is longer than a training row: "refuse" the job, or "skip" the pair.
      qa_weight: factor of the loss on QA pairs' tokens; 0 leaves the pairs out.
      answer_shape: only pairs whose answer is "short" (up to six words) or a "sentence"; "any" takes both.
      agreement, least_agreement: what becomes of pairs that the teacher answers otherwise (`agreement.py`); where
        these or `answer_shape` leave fewer pairs than `qa_per_context`, it is those.
      least_confidence: QA pairs whose answer the teacher, with the context in view, gives a lower geometric
        mean probability per token are left out; 0 keeps all.
      loss_tokens: which tokens of a QA pair carry the KL: "all", "answer", or two weights, of the question's
        tokens and of the answer's, as in "0.1,1".
      answer_supervision: weight of a next-token loss on the answer's tokens beside the KL (0: the paper's).
      tails_per_context, tail_weight: context tails read per epoch, and the weight of their tokens.
      tail_cut: where tails begin: "random", at any token of the context, or "sentence", where a sentence begins.
      unrelated_per_epoch, unrelated_weight: unrelated texts read per epoch, and their tokens' weight.
      unrelated_tokens: an unrelated text is used up to this many tokens.
      unrelated_context: whether the teacher reads a context before unrelated text (the paper's default);
        False makes the term exactly "stay what you were".
    """

    qa_per_context: int = 0
    long_pairs: str = "refuse"
    qa_weight: float = 1.0
    answer_shape: str = "any"
    agreement: str = "none"
    least_agreement: float = 1.0
    least_confidence: float = 0.0
    loss_tokens: str = "all"
    answer_supervision: float = 0.0
    tails_per_context: int = 0
    tail_weight: float = 1.0
    tail_cut: str = "random"
    unrelated_per_epoch: int = 0
    unrelated_weight: float = 1.0
    unrelated_tokens: int = 48
    unrelated_context: bool = False

    @property
    def token_weights(self) -> tuple[float, float]:
        """Weight of the KL on the question's tokens and on the answer's."""
        named = {"all": (1.0, 1.0), "answer": (0.0, 1.0)}
        on_question, on_answer = named.get(self.loss_tokens) or _two_weights(self.loss_tokens)
        return self.qa_weight * on_question, self.qa_weight * on_answer

    @property
    def chooses_pairs(self) -> bool:
        """Whether pairs may be left out or rewritten before they are sentences."""
        return self.agreement != "none" or self.answer_shape != "any"

    def __post_init__(self):
        _ = self.token_weights
        for name, value, allowed in (
            ("long_pairs", self.long_pairs, ("refuse", "skip")),
            ("tail_cut", self.tail_cut, TAIL_CUTS),
            ("answer_shape", self.answer_shape, SHAPES),
            ("agreement", self.agreement, AGREEMENTS),
        ):
            if value not in allowed:
                raise ValueError(f"targets.{name} = {value!r}, expected one of {', '.join(allowed)}")
        for name in ("qa_weight", "tail_weight", "unrelated_weight", "least_agreement", "answer_supervision"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"targets.{name} = {getattr(self, name)}, expected a number of at least 0")


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
      epochs: the epochs, from 0, that it is read in; None: every one (unrelated texts: in turn).
    """

    kind: str
    context: int | None
    ids: tuple[int, ...]
    weights: tuple[float, ...]
    start: int | None
    record: dict
    supervision: tuple[float, ...] = ()
    epochs: tuple[int, ...] | None = None

    @functools.cached_property
    def loss_tokens(self) -> list[int]:
        """Indices of the tokens that carry any loss."""
        supervision = self.supervision or (0.0,) * len(self.weights)
        pairs = zip(self.weights, supervision, strict=True)
        return [token for token, both in enumerate(pairs) if max(both) > 0]


def qa_sentences(contexts: Sequence[Context], prompt: Prompt, config: TargetConfig) -> list[Sentence]:
    """The QA pairs that came with the contexts."""
    sentences = []
    if not config.qa_weight:
        return sentences
    on_question, on_answer = config.token_weights
    supervised = config.qa_weight * config.answer_supervision
    for index, context in enumerate(contexts):
        pairs = context.qa_pairs
        if config.qa_per_context > len(pairs) and not config.chooses_pairs:
            raise ValueError(
                f"targets.qa_per_context = {config.qa_per_context}, but context {context.id!r} has "
                f"{len(pairs)} qa_pairs; lower it, or 0 to use all there are"
            )
        for pair in pairs[: config.qa_per_context or len(pairs)]:
            question, answer = prompt.question(pair.question), prompt.answer(pair.answer)
            weights = (on_question,) * len(question) + (on_answer,) * len(answer)
            supervision = (0.0,) * len(question) + (supervised,) * len(answer)
            record = {"kind": "qa", "context": context.id, "question": pair.question, "answer": pair.answer}
            sentences.append(Sentence("qa", index, question + answer, weights, None, record, supervision))
    return sentences


# A sentence may end at white space after one of these marks and closing quotes, at a blank line, or, in scripts that
# put no white space there, right after a wide mark.
_GAP = re.compile(r"""(?<=[.!?…؟۔।])["'”’»)\]]*\s+|\n\s*\n\s*|(?<=[。！？])(?![。！？」』”’）])\s*""")
_OPENING = re.compile(r"""["'“‘„«(\[¿¡「『（]*""")
_LAST_WORD = re.compile(r"[\w.]*\Z")
# Words whose full stop ends no sentence: initials (J, U.S, e.g, Ph.D), titles and the like, and before a number more.
_INITIALS = re.compile(r"(?:[^\W\d_]{1,2}\.)*[^\W\d_]")
_SHORT = re.compile(r"mrs?|ms|dr|prof|st|mt|gen|col|lt|capt|sgt|rev|hon|sen|rep|gov|vs|cf|al|ca|approx")
_NUMBERED = re.compile(r"nos?|pp|vol|ch|sec|figs?|eq|art|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec")


def sentence_starts(text: str) -> list[int]:
    """Indices of the characters of a text that sentences begin with, ascending.

    A rule, not a parser: what follows white space after a full stop, question or exclamation mark begins a sentence,
    unless it begins in lower case or with a sign, or the full stop belongs to a known abbreviation or to initials.
    So does what follows a blank line. Where the rule is in doubt there is no start.
    """
    first = len(text) - len(text.lstrip())
    starts = [gap.end() for gap in _GAP.finditer(text) if _separates(text, gap)]
    return [at for at in dict.fromkeys([first, *starts]) if at < len(text)]


def _separates(text: str, gap: re.Match) -> bool:
    """Whether a sentence ends before a gap and another begins after it."""
    mark = text[gap.start() - 1 : gap.start()]
    if gap[0].count("\n") > 1 or mark in "。！？":
        return True
    at = _OPENING.match(text, gap.end()).end()
    following = text[at : at + 1]
    if not following.isalnum() or following.islower():
        return False
    if mark != "." or gap[0].strip():
        return True
    # A few characters hold any word that matters; a long text is not searched from its beginning.
    word = _LAST_WORD.search(text[max(gap.start() - 16, 0) : gap.start() - 1])[0].lower()
    numbered = following.isdigit() and _NUMBERED.fullmatch(word)
    return not (numbered or _SHORT.fullmatch(word) or _INITIALS.fullmatch(word))


def _token_at(prompt: Prompt, prefix: Sequence[int], context: str, at: int) -> int:
    """How many ids of a context's prefix stand before its character `at`; one that spans it does not count.

    Any tokenizer shows it: ids of the prefix and of the same text with another character there begin to differ at
    the token that holds it. (Should the change move earlier tokens too, the boundary before those is found.)
    """
    here = context[at]
    pair = "37" if here.isdigit() else "QZ"  # some tokenizers part a number, but no word, from the space before it
    changed = context[:at] + (pair[1] if here == pair[0] else pair[0]) + context[at + 1 :]
    return common_ids([prefix, prompt.context_prefix(changed)])


def tail_cuts(context: str, prompt: Prompt, cut: str) -> list[int]:
    """Where tails of a context may begin, as indices of `prompt.context_prefix(context)`, ascending.

    Args:
      cut: "random": every token of the context but the first, and those too near to its end; "sentence": where its
        second sentence begins, its third, and so on; nothing for a context of one sentence.
    """
    prefix, starts = prompt.context_prefix(context), sentence_starts(context)
    if cut == "sentence":
        return sorted({_token_at(prompt, prefix, context, at) for at in starts[1:]})
    first, (_, end) = _token_at(prompt, prefix, context, starts[0]), prompt.context_span(context)
    return list(range(first + 1, max(end - LEAST_TAIL + 1, first + 2)))


def turns(count: int, per_epoch: int, epochs: int) -> list[tuple[int, ...]]:
    """For each of `count` things that take turns, the epochs in which it is due: `per_epoch` of them in every one.

    None is due twice before all have been due once. Where there are no more than `per_epoch`, all always are.
    """
    due: list[list[int]] = [[] for _ in range(count)]
    size = min(per_epoch, count)
    for epoch in range(epochs):
        for turn in range(epoch * size, (epoch + 1) * size):
            due[turn % count].append(epoch)
    return [tuple(of_one) for of_one in due]


def tail_sentences(
    contexts: Sequence[Context], prompt: Prompt, config: TargetConfig, seed: int, longest: int, epochs: int
) -> list[Sentence]:
    """Tails of each context, at most `longest` tokens each: `tails_per_context` others in every epoch.

    The places where they begin (`tail_cuts`) are drawn without repetition. When all have had their turn they come
    again, as the same sentences, so there are never more tails than tokens. A context with fewer places than
    `tails_per_context` has all of these tails in every epoch, each once.
    """
    sentences = []
    for index, context in enumerate(contexts):
        prefix, (_, end) = prompt.context_prefix(context.context), prompt.context_span(context.context)
        cuts = np.random.default_rng([seed, index]).permutation(tail_cuts(context.context, prompt, config.tail_cut))
        due = turns(len(cuts), config.tails_per_context, epochs)
        for cut, of_tail in zip(cuts.tolist(), due, strict=True):
            if of_tail:
                ids = prefix[cut : min(cut + longest, end)]
                text, weights = prompt.decode(ids), (config.tail_weight,) * len(ids)
                record = {"kind": "tail", "context": context.id, "text": text, "epochs": list(of_tail)}
                sentences.append(Sentence("tail", index, ids, weights, cut, record, epochs=of_tail))
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
