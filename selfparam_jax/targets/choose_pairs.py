"""Chooses the question-answer pairs to train on: by the shape of their answers, and by what the teacher answers.

A student of the KL loss learns what the teacher believes, its mistakes included. If the teacher, with the document in
the prompt, answers a question differently from the pair, then the pair's answer is not what the student is taught.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

from absl import logging

from selfparam_jax.data.documents import Document, QAPair, Question
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.files import read_lines, write_lines
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.filter_pairs import answer_shape
from selfparam_jax.targets.texts import TextPair, fits

# Answers all questions of documents with the document in the prompt: for each document and question {"answer", "f1"},
# f1 against the question's first answer (`evaluation.questions.answer_questions`).
Ask = Callable[[list[Document]], list[list[dict]]]


def choose_pairs(
    documents: Sequence[Document],
    prompt: Prompt,
    config: TargetConfig,
    seq_len: int,
    ask: Ask | None = None,
    path: str | os.PathLike | None = None,
) -> list[Document]:
    """The documents with the pairs that are used: of the wanted shape, and as the teacher agrees.

    Args:
      documents: with all their pairs.
      prompt: measures rewritten pairs.
      config: `answer_shape`, `agreement` and `least_agreement`.
      seq_len: tokens of a training row; a rewritten pair that is longer is left out.
      ask: the teacher; needed if `config.agreement` is not "none".
      path: JSONL file for the teacher's answers; what is in it is not asked again. None keeps none.

    Returns:
      the documents in the same order; some may have no pair left.

    Raises:
      ValueError: `ask` is missing.
    """
    chosen = list(documents)
    if config.answer_shape != "any":
        chosen = [
            _with_pairs(document, [p for p in document.qa_pairs if _has_shape(p, config)]) for document in chosen
        ]
    if config.agreement != "none":
        if ask is None:
            raise ValueError(f"targets.agreement = {config.agreement!r} without a teacher to ask; pass `ask`")
        chosen = agreeing_documents(chosen, config.agreement, config.least_agreement, ask, path)
        chosen = [fitting_pairs(document, prompt, seq_len) for document in chosen]
    if config.chooses_pairs:
        counts = [sum(len(document.qa_pairs) for document in each) for each in (documents, chosen)]
        logging.info("%d of %d pairs are used", counts[1], counts[0])
    return chosen


def _has_shape(pair: QAPair, config: TargetConfig) -> bool:
    return answer_shape(pair.answer) == config.answer_shape


def _with_pairs(document: Document, pairs: Sequence[QAPair]) -> Document:
    return dataclasses.replace(document, qa_pairs=tuple(pairs))


def fitting_pairs(document: Document, prompt: Prompt, seq_len: int) -> Document:
    """The document without the pairs that are longer than a training row."""
    return _with_pairs(document, [pair for pair in document.qa_pairs if fits(pair, prompt, seq_len)])


def agreeing_documents(
    documents: Sequence[Document],
    mode: str,
    least: float,
    ask: Ask,
    path: str | os.PathLike | None = None,
) -> list[Document]:
    """The documents with the pairs that the teacher agrees with, and all their texts, which have no one right answer.

    Args:
      documents: with the pairs that the teacher is asked about.
      mode: "keep" leaves out pairs whose answer has a token F1 below `least` with the teacher's; "rewrite" puts the
        teacher's answer in place of every other, and leaves out a pair only if the teacher gives none.
      least: smallest token F1, for "keep".
      ask: the teacher.
      path: JSONL file for the teacher's answers; what is in it is not asked again. None keeps none.

    Returns:
      the documents in the same order.

    Raises:
      ValueError: an unknown mode.
    """
    wanted = {(document.id, p.question, p.answer) for document in documents for p in _asked(document)}
    lines = read_lines(path) if path is not None else []
    known = {(line["context"], line["question"], line["answer"]): line for line in lines}
    if wanted - known.keys():
        missing = [
            dataclasses.replace(
                document,
                questions=tuple(
                    Question(p.question, (p.answer,))
                    for p in dict.fromkeys(_asked(document))
                    if (document.id, p.question, p.answer) not in known
                ),
            )
            for document in documents
        ]
        for document, answers in zip(missing, ask(missing), strict=True):
            for question, found in zip(document.questions, answers, strict=True):
                key = (document.id, question.question, question.answers[0])
                known[key] = {
                    **dict(zip(("context", "question", "answer"), key, strict=True)),
                    "teacher": found["answer"],
                    "f1": found.get("char_f1", found["f1"]),
                }
        if path is not None:
            write_lines(path, known.values(), sealed=True)
    made = []
    for document in documents:
        answered = [known[document.id, p.question, p.answer] for p in _asked(document)]
        texts = [pair for pair in document.qa_pairs if isinstance(pair, TextPair)]
        made.append(_with_pairs(document, [*_agreeing(answered, mode, least), *texts]))
    return made


def _asked(document: Document) -> list[QAPair]:
    """The pairs that a teacher can agree with."""
    return [pair for pair in document.qa_pairs if not isinstance(pair, TextPair)]


def _agreeing(records: Sequence[dict], mode: str, least: float) -> list[QAPair]:
    if mode == "keep":
        return [QAPair(record["question"], record["answer"]) for record in records if record["f1"] >= least]
    if mode == "rewrite":
        return [QAPair(record["question"], record["teacher"]) for record in records if record["teacher"]]
    raise ValueError(f"agreement {mode!r}, expected 'keep' or 'rewrite'")
