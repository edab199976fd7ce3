"""The texts that are written for a run: question-answer pairs about its documents, and unrelated text."""

import contextlib
import dataclasses
import functools
import pathlib
import threading
from collections.abc import Sequence

import numpy as np
from absl import logging

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.passages import group_passages, is_group
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.likelihood import answer_likelihoods
from selfparam_jax.jobs.bars import announced, open_bar
from selfparam_jax.reports.tables import counted
from selfparam_jax.targets.choose_pairs import fits, fitting_pairs
from selfparam_jax.targets.self_sampling import sample_texts, self_sampled
from selfparam_jax.targets.texts import with_split_texts
from selfparam_jax.targets.two_step import with_two_step_pairs
from selfparam_jax.targets.write_pairs import (
    Score,
    lost_pairs,
    needs_writing,
    read_written,
    rounds_of,
    write_pairs,
)
from selfparam_jax.targets.writers import BY_RULES, open_writer
from selfparam_jax.training.inject import teacher_reader
from selfparam_jax.training.other_teacher import OtherTeacher
from selfparam_jax.training.recipe import Recipe

LISTED = 8  # documents that a message names


def score_by_teacher(model: Model, prompt: Prompt, recipe: Recipe) -> Score:
    """What scores pairs by the likelihood that the teacher gives their answers, with the document and without."""
    reader, one_at_a_time = teacher_reader(model, prompt, recipe), threading.Lock()

    def score(document: Document, pairs: Sequence[QAPair]) -> np.ndarray:
        with one_at_a_time:  # the memory of one document is enough
            return answer_likelihoods(reader, prompt, document, pairs)

    return score


def nothing_made(documents: Sequence[Document]) -> ValueError:
    """The error for documents of whose text the rules make no pair, where there is nothing else to learn."""
    names = [source.id for source in group_passages(documents)]
    shown = ", ".join(repr(name) for name in names[:LISTED]) + (", ..." if len(names) > LISTED else "")
    return ValueError(
        f"there is nothing to learn: no question-answer pair could be made of the text of {shown}; expected "
        "sentences that state something; give a text with such sentences, add qa_pairs of your own, or set "
        "targets.tails_per_context=16"
    )


def check_learnable(documents: Sequence[Document], job: str, recipe: Recipe) -> None:
    """Every injection of a job that makes several has something to learn.

    Args:
      documents: with all their pairs.
      job: "single" and "sequential" inject one document at a time.
      recipe: without tails there are pairs alone.

    Raises:
      ValueError: some documents have no pair; they are named.
    """
    if job not in ("single", "sequential") or recipe.targets.tails_per_context:
        return
    without = [each for each in group_passages(documents) if not any(passage.qa_pairs for passage in each.passages)]
    if without:
        raise nothing_made([passage for each in without for passage in each.passages])


def two_step_documents(documents: Sequence[Document], recipe: Recipe, model: Model, prompt: Prompt) -> list[Document]:
    """The documents, and after them groups of two with questions that need both (`targets.two_step_pairs`).

    Args:
      documents: that go into the same weights, with all their pairs.
      recipe: how many questions, and the length of a training row.
      model, prompt: measure what is too long; such pairs are left out.

    Returns:
      the documents in their order, then the groups.
    """
    count, seq_len = recipe.targets.two_step_pairs, recipe.train.seq_len
    room = model.config.max_position_embeddings - seq_len

    @functools.cache
    def readable(text: str) -> bool:
        return len(prompt.context_prefix(text)) <= room

    if not count:
        return list(documents)
    return with_two_step_pairs(
        documents, count, lambda group, pair: fits(pair, prompt, seq_len) and readable(group.text)
    )


def write_missing_pairs(
    documents: Sequence[Document],
    recipe: Recipe,
    path: pathlib.Path,
    model: Model | None,
    prompt: Prompt | None,
    teacher: OtherTeacher | None = None,
) -> list[Document]:
    """The documents with the pairs that a model writes about those of them that need some.

    Args:
      documents: with their own pairs.
      recipe: who writes (`targets.generator`), how, and the length of a training row.
      path: JSONL file that grows as pairs arrive; a call that finds its own unfinished work there continues it.
      model, prompt: the base and its format; None only where a server writes and nothing scores what it writes.
      teacher: another model that teaches, and so scores what is written.

    Returns:
      all documents in their order, longer pairs than a training row left out; groups of related passages only with
      pairs.

    Raises:
      ValueError: the writer cannot be asked, or the file belongs to other settings.
    """
    config = recipe.generator
    wanting = needs_writing(documents, config, recipe.targets.qa_weight)
    if not wanting:
        return list(documents)
    score = None
    if config.teacher_scores:
        score = score_by_teacher(model if teacher is None else teacher.model(), prompt, recipe)
    with (
        open_writer(config, path, model, recipe.endpoint) as writer,
        contextlib.closing(open_bar(rounds_of(config) * len(wanting), "pairs", "document")) as bar,
    ):
        logging.info("%s writes question-answer pairs about %s", writer.name, counted(len(wanting), "document"))
        written = write_pairs(wanting, writer, config, path, bar.update, score)
    if all(len(new.qa_pairs) == len(old.qa_pairs) for new, old in zip(written, wanting, strict=True)):
        by_rules = config.generator in BY_RULES
        lost = lost_pairs(wanting, read_written(path), config)
        why = lost or ("no pair could be made of the text" if by_rules else "no reply held a pair")
        # Rules may well find nothing in a text, of which tails are then read.
        tails = by_rules and recipe.targets.tails_per_context
        if not tails and not any(document.qa_pairs for document in documents):
            if by_rules and not lost:
                raise nothing_made(wanting)
            raise ValueError(
                f"none of the pairs that {writer.name} wrote is used, and no document has pairs of its own: {why}. "
                f"They are in {path}; change what the reason names (generator.*, targets.generator), and move that "
                "file away to have the writer asked again"
            )
        logging.warning("none of the written pairs is used: %s", why)
    found = {document.id: document for document in written}
    merged = [found.get(document.id, document) for document in documents]
    # Rules see nothing beyond a sentence: they leave passages that are read together to each of them.
    merged = [each for each in merged if each.qa_pairs or not is_group(each)]
    if prompt is None:  # nothing to measure lengths with
        return merged
    merged = with_split_texts(merged, prompt, recipe.train.seq_len)
    given = {document.id: document for document in documents}
    kept = [_without_long_pairs(given[each.id], each, prompt, recipe) for each in merged]
    pairs, left = (sum(len(document.qa_pairs) for document in each) for each in (merged, kept))
    logging.info(
        "%s for %s; %d left out as longer than a row",
        counted(pairs, "pair"), counted(len(kept), "document"), pairs - left,
    )  # fmt: skip
    return kept


def _without_long_pairs(given: Document, written: Document, prompt: Prompt, recipe: Recipe) -> Document:
    """A document without those of the written pairs that no row holds; its own pairs are not judged here."""
    own = len(given.qa_pairs)
    new = dataclasses.replace(written, qa_pairs=written.qa_pairs[own:])
    fitting = fitting_pairs(new, prompt, recipe.train.seq_len).qa_pairs
    return dataclasses.replace(written, qa_pairs=written.qa_pairs[:own] + fitting)


def draw_unrelated(
    model: Model, prompt: Prompt, recipe: Recipe, count: int, path: pathlib.Path, batch_size: int = 16
) -> list[str]:
    """Unrelated texts that the untouched base draws, kept in a file.

    Args:
      model, prompt: the base and its format.
      recipe: the seed, and the tokens of a text.
      count: how many texts.
      path: JSONL file; what is in it is not drawn again.
      batch_size: texts drawn together.

    Returns:
      the texts.
    """

    def draw() -> list[str]:
        variables = model.variables
        tokens = recipe.targets.unrelated_tokens
        with announced(f"drawing {counted(count, 'unrelated text')} from the model itself"):
            return sample_texts(model.decoder(), variables, prompt, count, tokens, recipe.seed, batch_size=batch_size)

    return self_sampled(path, draw)
