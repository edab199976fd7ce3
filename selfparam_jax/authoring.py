"""The texts that a run has written for it: question-answer pairs about its contexts, and unrelated text."""

import contextlib
import dataclasses
import pathlib
import threading
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging
from tqdm import tqdm

from selfparam_jax.contexts import Context, QAPair
from selfparam_jax.endpoint import EndpointWriter, check_key
from selfparam_jax.generator import LocalWriter, Score, Writer, chosen_kinds, write_pairs
from selfparam_jax.injection import Run, fitting_pairs, teacher_reader, texts_wanted
from selfparam_jax.likelihood import answer_likelihoods
from selfparam_jax.processes import is_first, several
from selfparam_jax.selfsample import sample_texts, self_sampled


def _local_writer(run: Run) -> LocalWriter:
    base = run.base
    return LocalWriter(base.name, run.teacher, base.params, base.tokenizer, run.settings.generator)


def check_writer(run: Run) -> None:
    """Raises ValueError if the configured model cannot be asked; nothing is sent or written."""
    chosen_kinds(run.settings.generator)
    if several() and run.settings.generator.generator == "endpoint":
        raise ValueError(
            "targets.generator = 'endpoint' with several processes: every one of them would ask the server. Write "
            "the pairs first (python -m selfparam_jax.targets) and give them as generator.file"
        )
    if run.settings.generator.generator == "local":
        _local_writer(run)
    else:
        check_key(run.settings.endpoint)


@contextlib.contextmanager
def open_writer(run: Run, path: pathlib.Path) -> Iterator[Writer]:
    """The model that writes pairs into the file `path`; the replies of a server are kept beside it."""
    if run.settings.generator.generator == "local":
        yield _local_writer(run)
        return
    replies = path.with_suffix(".replies.jsonl")
    with EndpointWriter(run.settings.endpoint, run.settings.generator, replies) as writer:
        try:
            yield writer
        finally:
            logging.info("%s", writer.usage().describe())


def teacher_score(run: Run) -> Score | None:
    """What scores a pair by the teacher's likelihood of its answer; None if that is turned off."""
    if not run.settings.generator.teacher_scores:
        return None
    reader, one_at_a_time = teacher_reader(run), threading.Lock()

    def score(context: Context, pairs: Sequence[QAPair]) -> np.ndarray:
        with one_at_a_time:  # the memory of one context is enough
            return answer_likelihoods(reader, run.prompt, context, pairs)

    return score


def contexts_with_pairs(run: Run, path: pathlib.Path) -> list[Context]:
    """The contexts with the pairs that a model writes about them; all it writes is kept in the file `path`."""
    config = run.settings.generator
    with (
        open_writer(run, path) as writer,
        tqdm(total=config.rounds * len(run.contexts), desc="pairs", unit="context", disable=not is_first()) as bar,
    ):
        written = write_pairs(run.contexts, writer, config, path, bar.update, teacher_score(run))
    if run.base is None:  # nothing to measure lengths with
        return written
    kept = [fitting_pairs(run, context) for context in written]
    pairs, left = (sum(len(context.qa_pairs) for context in contexts) for contexts in (written, kept))
    logging.info("%d pairs for %d contexts; %d left out as longer than a row", pairs, len(kept), pairs - left)
    return kept


def with_own_unrelated(run: Run, path: pathlib.Path) -> Run:
    """The run with unrelated texts that the untouched base draws, kept in the file `path`."""
    config, settings = run.settings.targets, run.settings
    count = texts_wanted(settings)

    def draw() -> list[str]:
        logging.info("drawing %d unrelated texts from the model itself", count)
        variables = {"params": run.base.params}
        return sample_texts(
            run.teacher, variables, run.prompt, count, config.unrelated_tokens, settings.seed,
            batch_size=settings.eval_batch,
        )  # fmt: skip

    return dataclasses.replace(run, unrelated=self_sampled(path, draw))
