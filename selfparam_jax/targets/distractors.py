"""Other documents beside the right one in the teacher's prompt (`targets.distractors`).

    teacher reads    start + examples + another document, the document, another document + question + answer
    student reads    start +                                                               question + answer

The teacher then has to find the document that a question is about. Tails and unrelated texts are read as before.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import Passage, is_group
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.formats.forms import teacher_prefixes, teacher_prompts
from selfparam_jax.targets.sentences import Sentence


def with_distractors(documents: Sequence[Document], count: int, seed: int) -> list[Document]:
    """Each document with `count` others in its text, before it and after it.

    Args:
      documents: those that are read together are no distractors, nor are the parts of one its own.
      count: how many others.
      seed: decides which, and the order.

    Returns:
      the documents in their order, with longer texts.

    Raises:
      ValueError: there are fewer others.
    """
    made = []
    for index, document in enumerate(documents):
        own = {document.id, *(document.parts if isinstance(document, Passage) else ())}
        others = [each for each in documents if each.id not in own and not is_group(each)]
        if len(others) < count:
            raise ValueError(
                f"targets.distractors = {count}, but beside document {document.id!r} there are {len(others)} others; "
                "lower it, or give more documents"
            )
        draw = np.random.default_rng([seed, 6, index])
        chosen = [others[place] for place in draw.choice(len(others), count, replace=False)]
        chosen.insert(int(draw.integers(count + 1)), document)
        made.append(dataclasses.replace(document, text="\n\n".join(each.text for each in chosen)))
    return made


def among_others(
    sentences: Sequence[Sentence], documents: Sequence[Document], prompt: Prompt, config: TargetConfig, seed: int
) -> tuple[list[Sentence], list[tuple[int, ...]]]:
    """Sentences, and what the teacher reads before each (`Sentence.context`): pairs with distractors.

    Args:
      sentences: with the contexts of `teacher_prefixes`.
      documents: they are of.
      prompt: the reading format.
      config: how many distractors, and which formats the teacher reads.
      seed: of the distractors.

    Returns:
      the sentences, and token ids for every context.

    Raises:
      ValueError: too few documents.
    """
    prefixes = teacher_prefixes(documents, prompt, config)
    if not config.distractors:
        return list(sentences), prefixes
    moved = [
        dataclasses.replace(each, context=each.context + len(prefixes)) if each.kind == "qa" else each
        for each in sentences
    ]
    return moved, prefixes + teacher_prefixes(with_distractors(documents, config.distractors, seed), prompt, config)


def check_room(documents: Sequence[Document], prompt: Prompt, config: TargetConfig, seed: int, limit: int) -> None:
    """Checks that the teacher can read the documents among their distractors, each with its longest pair.

    Args:
      documents: with the pairs that are known.
      prompt: measures them.
      config: how many distractors.
      seed: of the distractors.
      limit: tokens that the teacher can read.

    Raises:
      ValueError: it cannot, or there are too few documents.
    """
    if not config.distractors:
        return
    wide = with_distractors(documents, config.distractors, seed)
    for document, among in zip(documents, wide, strict=True):
        prefix = max((each.context_prefix(among.text) for each in teacher_prompts(prompt, config)), key=len)
        pairs = [len(prompt.question(pair.question) + prompt.answer(pair.answer)) for pair in document.qa_pairs]
        if len(prefix) + (longest := max(pairs, default=0)) > limit:
            raise ValueError(
                f"targets.distractors = {config.distractors}: document {document.id!r} among them has {len(prefix)} "
                f"tokens (prompt format included), with its longest pair {len(prefix) + longest}, but the teacher "
                f"reads at most {limit} (max_position_embeddings); lower targets.distractors, or set passage_tokens "
                "to fewer tokens"
            )
