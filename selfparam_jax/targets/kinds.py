"""The kinds of target sentences: question-answer pairs, tails of the documents, and unrelated text.

`make_targets` makes the sentences of all kinds in `TARGET_KINDS`. To add a kind, write a function of a `Request` and
enter it there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import is_group
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.sentences import sentence_starts
from selfparam_jax.inference.prefix import common_ids
from selfparam_jax.targets.choose_pairs import fits
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.dates import date_of, date_pairs, split_date
from selfparam_jax.targets.formats.contrast import contrast_sentences, exchange_sentences
from selfparam_jax.targets.formats.forms import FORMS, Pairs, chosen_forms, turns
from selfparam_jax.targets.sentences import Sentence, context_groups
from selfparam_jax.targets.texts import sentences_of

LEAST_TAIL = 8  # tokens of a tail that begins at a random token, if the document is long enough


@dataclasses.dataclass(frozen=True)
class Request:
    """What the sentences of one injection are made from.

    Attributes:
      documents: with the pairs that are used.
      prompt: turns text into ids.
      config: how many of each kind, and their weights.
      seed: decides which tails and unrelated texts are drawn.
      epochs: passes over the pairs.
      seq_len: tokens of a training row; no sentence is longer, the prompt's first ids included.
      unrelated: unrelated texts to draw from.
      earlier: documents that were injected before, for `config.dated`.
    """

    documents: Sequence[Document]
    prompt: Prompt
    config: TargetConfig
    seed: int
    epochs: int
    seq_len: int
    unrelated: Sequence[str] = ()
    earlier: Sequence[Document] = ()


def make_targets(
    documents: Sequence[Document],
    prompt: Prompt,
    config: TargetConfig,
    *,
    seed: int,
    epochs: int,
    seq_len: int,
    unrelated: Sequence[str] = (),
    earlier: Sequence[Document] = (),
) -> list[Sentence]:
    """Makes the target sentences of one injection, of all kinds.

    Args:
      documents: what is learned, with the pairs that are used.
      prompt: turns text into ids.
      config: how many sentences of each kind, and the loss weight of their tokens.
      seed: decides which tails and unrelated texts are drawn.
      epochs: passes over the pairs.
      seq_len: tokens of a training row.
      unrelated: unrelated texts to draw from.
      earlier: documents that were injected before; with `config.dated`, what is newer in them counts.

    Returns:
      the sentences, in the order of `TARGET_KINDS`.

    Raises:
      ValueError: there is nothing to learn, no token carries loss, or too few pairs or unrelated texts.
    """
    request = Request(documents, prompt, config, seed, epochs, seq_len, unrelated, earlier)
    sentences = []
    for kind, make in TARGET_KINDS.items():
        if kind == "contrast":  # it and what follows only keep the model as it was
            _check_learns(sentences, request)
        sentences += make(request)
    return sentences


def _check_learns(sentences: Sequence[Sentence], request: Request) -> None:
    """Raises ValueError if there are no sentences of the documents, or if none of their tokens carries loss."""
    config = request.config
    if not sentences:
        for document in request.documents:
            for pair in document.qa_pairs:
                if not fits(pair, request.prompt, request.seq_len):
                    raise ValueError(
                        f"document {document.id!r}: the pair {pair.question[:60]!r} is longer than a row of "
                        f"{request.seq_len} tokens, and there is no other sentence to learn; raise train.seq_len, or "
                        "shorten the pair"
                    )
        raise ValueError(_nothing_to_learn(config))
    if not context_groups(sentences):
        raise ValueError(
            "no token of any target sentence of the documents carries loss: targets.loss_tokens = "
            f"{config.loss_tokens!r}, targets.answer_supervision = {config.answer_supervision}, "
            f"targets.tail_weight = {config.tail_weight}; give one of them a weight above 0"
        )


def _nothing_to_learn(config: TargetConfig) -> str:
    if config.tails_per_context:
        return (
            "there is nothing to learn: no document has qa_pairs or a second sentence for a tail to begin with; "
            "add qa_pairs to the documents or set targets.tail_cut=random"
        )
    return (
        "there is nothing to learn: no document has qa_pairs and targets.tails_per_context is 0; add qa_pairs to the "
        "documents, have them written (targets.generator=auto), or set targets.tails_per_context=16"
    )


# --- question-answer pairs ------------------------------------------------------------------------------


def qa_sentences(documents: Sequence[Document], prompt: Prompt, config: TargetConfig) -> list[Sentence]:
    """The QA pairs of the documents, `config.qa_per_context` of each.

    Raises:
      ValueError: a document brings fewer pairs than that.
    """
    if not config.qa_weight:
        return []
    return FORMS["reading"](Pairs(_used(documents, config), (), prompt, config, 0, 0, 0))


def _used(documents: Sequence[Document], config: TargetConfig) -> list[Document]:
    """The documents with the pairs that are used."""
    used = []
    for document in documents:
        pairs = document.qa_pairs
        if config.qa_per_context > len(pairs) and not config.chooses_pairs:
            raise ValueError(
                f"targets.qa_per_context = {config.qa_per_context}, but document {document.id!r} has "
                f"{len(pairs)} qa_pairs; lower it, or set it to 0 to use all there are"
            )
        used.append(dataclasses.replace(document, qa_pairs=pairs[: config.qa_per_context or len(pairs)]))
    return used


def _qa(request: Request) -> list[Sentence]:
    config, prompt = request.config, request.prompt
    if not config.qa_weight:
        return []
    documents = _used(request.documents, config)
    if config.dated:
        documents = _dated(documents, request)
    forms = chosen_forms(prompt, config)
    if not forms and any(document.qa_pairs for document in documents):
        raise ValueError(
            f"targets.formats = {config.formats!r}, but the model has no chat template; add 'reading' or 'bare'"
        )
    texts = [sentences_of(document.text) for document in documents] if "chat" in forms else []
    sentences, first = [], 0
    for form, share in forms.items():
        first += len(documents) if form != "reading" else 0
        made = FORMS[form](Pairs(documents, texts, prompt, config, first, request.seed, request.seq_len))
        sentences += _taking_turns(made, share, request)
    return sentences


def _dated(documents: Sequence[Document], request: Request) -> list[Document]:
    """The documents with dated and undated pairs (`dates.date_pairs`), without dated ones longer than a row."""
    if not any(map(date_of, [*documents, *request.earlier])):
        logging.warning("targets.dated: no document has a date in its metadata, so nothing is dated")
    made, left_out = [], 0
    for document in date_pairs(documents, request.earlier):
        kept = [
            pair
            for pair in document.qa_pairs
            if not split_date(pair.question)[0] or fits(pair, request.prompt, request.seq_len)
        ]
        left_out += len(document.qa_pairs) - len(kept)
        made.append(dataclasses.replace(document, qa_pairs=tuple(kept)))
    if left_out:
        logging.warning("%d pairs are longer than a row with their date, and are left out", left_out)
    return made


def _taking_turns(made: Sequence[Sentence], share: float, request: Request) -> list[Sentence]:
    """The sentences of a form with the epochs that each is due in; those that are never due are left out."""
    per_epoch = round(share * len(made))
    if per_epoch == len(made):
        return list(made)
    order = np.random.default_rng([request.seed, 3]).permutation(len(made)).tolist()
    due = dict(zip(order, turns(len(made), per_epoch, request.epochs), strict=True))
    return [dataclasses.replace(each, epochs=due[i]) for i, each in enumerate(made) if due[i]]


# --- tails ----------------------------------------------------------------------------------------------


def _token_at(prompt: Prompt, prefix: Sequence[int], text: str, at: int) -> int:
    """How many ids of a document's prefix come before its character `at`; one that spans it does not count.

    This works for any tokenizer: the ids of the prefix and of the same text with another character there begin to
    differ at the token that holds it. (Should the change affect earlier tokens too, the boundary before those is
    found.)
    """
    here = text[at]
    pair = "37" if here.isdigit() else "QZ"  # some tokenizers split a number, but no word, from the space before it
    changed = text[:at] + (pair[1] if here == pair[0] else pair[0]) + text[at + 1 :]
    return common_ids([prefix, prompt.context_prefix(changed)])


def tail_cuts(text: str, prompt: Prompt, cut: str) -> list[int]:
    """Where tails of a document may begin, as indices of `prompt.context_prefix(text)`, ascending.

    Args:
      text: the document's.
      prompt: turns it into ids.
      cut: "random": every token of the document but the first, and those too near to its end; "sentence": where its
        second sentence begins, its third, and so on; nothing for a document of one sentence.

    Returns:
      the indices; may be empty for "sentence".
    """
    prefix = prompt.context_prefix(text)
    if cut == "sentence":
        return sorted({_token_at(prompt, prefix, text, at) for at in sentence_starts(text)[1:]})
    first = _token_at(prompt, prefix, text, len(text) - len(text.lstrip()))
    _, end = prompt.context_span(text)
    return list(range(first + 1, max(end - LEAST_TAIL + 1, first + 2)))


def tail_sentences(
    documents: Sequence[Document], prompt: Prompt, config: TargetConfig, seed: int, longest: int, epochs: int
) -> list[Sentence]:
    """Tails of each document: `config.tails_per_context` different ones in every epoch.

    The places where they begin (`tail_cuts`) are drawn without repetition. When all have had their turn they come
    again, as the same sentences, so there are never more tails than tokens. A document with fewer places than
    `tails_per_context` has all of these tails in every epoch, each once.

    Args:
      documents: whose tails are made.
      prompt: turns their texts into ids.
      config: how many tails, where they begin, and the weight of their tokens.
      seed: decides which are drawn.
      longest: tokens of the longest tail.
      epochs: passes for which tails are drawn.

    Returns:
      the tails, document by document.
    """
    sentences = []
    for index, document in enumerate(documents):
        if is_group(document):  # its passages have their own tails
            continue
        prefix, (_, end) = prompt.context_prefix(document.text), prompt.context_span(document.text)
        cuts = np.random.default_rng([seed, index]).permutation(tail_cuts(document.text, prompt, config.tail_cut))
        due = turns(len(cuts), config.tails_per_context, epochs)
        for cut, of_tail in zip(cuts.tolist(), due, strict=True):
            if of_tail:
                ids = prefix[cut : min(cut + longest, end)]
                text, weights = prompt.decode(ids), (config.tail_weight,) * len(ids)
                record = {"kind": "tail", "context": document.id, "text": text, "epochs": list(of_tail)}
                sentences.append(Sentence("tail", index, ids, weights, cut, record, epochs=of_tail))
    return sentences


def _tails(request: Request) -> list[Sentence]:
    documents, prompt, config = request.documents, request.prompt, request.config
    if not config.tails_per_context:
        return []
    longest = request.seq_len - len(prompt.start_ids)
    tails = tail_sentences(documents, prompt, config, request.seed, longest, request.epochs)
    without = len(documents) - len({tail.context for tail in tails})
    if without:
        logging.warning("%d of %d documents are one sentence and have no tail", without, len(documents))
    return tails


# --- unrelated text -------------------------------------------------------------------------------------


def unrelated_sentences(
    texts: Sequence[str], prompt: Prompt, config: TargetConfig, count: int, num_documents: int, seed: int
) -> list[Sentence]:
    """`count` different unrelated texts; with `config.unrelated_context` the documents take turns before them.

    Args:
      texts: to draw from.
      prompt: turns them into ids.
      config: their length and weight, and whether the teacher has a document in its prompt.
      count: how many.
      num_documents: how many documents there are.
      seed: decides which texts are drawn, and in which order.

    Returns:
      `count` sentences.

    Raises:
      ValueError: there are fewer texts than `count`.
    """
    if count > len(texts):
        raise ValueError(
            f"got {len(texts)} unrelated texts, expected {count}; add texts or lower targets.unrelated_per_epoch"
        )
    order = np.random.default_rng([seed, 1]).permutation(len(texts))[:count]
    sentences = []
    for turn, chosen in enumerate(order):
        ids = prompt.text(texts[chosen])[: config.unrelated_tokens]
        context = turn % num_documents if config.unrelated_context else None
        record = {"kind": "unrelated", "context": context, "text": prompt.decode(ids)}
        sentences.append(Sentence("unrelated", context, ids, (config.unrelated_weight,) * len(ids), None, record))
    return sentences


def _unrelated(request: Request) -> list[Sentence]:
    config = request.config
    if not config.unrelated_per_epoch:
        return []
    # A text is read once if there are enough for all epochs; else they take turns.
    wanted = config.unrelated_per_epoch * request.epochs
    count = max(min(wanted, len(request.unrelated)), config.unrelated_per_epoch)
    return unrelated_sentences(request.unrelated, request.prompt, config, count, len(request.documents), request.seed)


def _contrast(request: Request) -> list[Sentence]:
    count = request.config.contrast_per_epoch
    if not count or not request.config.qa_weight or "chat" not in chosen_forms(request.prompt, request.config):
        return []
    documents = _used(request.documents, request.config)
    return contrast_sentences(documents, request.prompt, count, request.epochs, request.seed)


def _exchanges(request: Request) -> list[Sentence]:
    count = request.config.chat_per_epoch
    if not count or "chat" not in chosen_forms(request.prompt, request.config):
        return []
    return exchange_sentences(request.prompt, count, request.epochs, request.seed, request.seq_len)


# Each makes its sentences from a Request. The last three are not something to learn.
TARGET_KINDS = {"qa": _qa, "tail": _tails, "contrast": _contrast, "chat": _exchanges, "unrelated": _unrelated}
