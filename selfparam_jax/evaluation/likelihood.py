"""How likely the teacher finds an answer, with the document in its prompt and without it.

The two numbers tell an answer that stands in the document from one that is common knowledge (likely without it) and
from one that is wrong (unlikely with it).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.inference.prefix import read_prefix
from selfparam_jax.models.decoder import output_head
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.kinds import qa_sentences
from selfparam_jax.targets.sentences import first_slots
from selfparam_jax.training.teacher import Reader, answer_confidence, read_context, read_without_context
from selfparam_jax.training.teacher_states import Store


def question_log_likelihoods(reader: Reader, prompt: Prompt, contexts: Sequence[Document]) -> list[list[float]]:
    """Mean log-probability per token of each held-out question's first gold answer, without the context.

    Natural logarithm, the answer's end included; per context and question.
    """
    asked = [
        dataclasses.replace(context, qa_pairs=tuple(QAPair(q.question, q.answers[0]) for q in context.questions))
        for context in contexts
        if context.questions  # of many documents few may be asked about
    ]
    sentences = qa_sentences(asked, prompt, TargetConfig(loss_tokens="answer", answer_supervision=0.0))
    if not sentences:
        return [[] for _ in contexts]
    store = Store([read_without_context(reader, sentences)])
    # Of one prefix, so the slots are those of the order, not of the contexts.
    slots = np.cumsum([0] + [len(sentence.loss_tokens) for sentence in sentences])
    found = iter(
        np.log(
            answer_confidence(output_head(reader.variables["params"], reader.model.config), store, sentences, slots)
        )
    )
    return [[float(next(found)) for _ in context.questions] for context in contexts]


def answer_likelihoods(reader: Reader, prompt: Prompt, context: Document, pairs: Sequence[QAPair]) -> np.ndarray:
    """Geometric mean probability per token of each pair's answer, its end included: float64 [pairs, 2].

    Column 0 is with the context before the question, column 1 without.

    Args:
      reader: the teacher.
      prompt: the format, bound to its tokenizer.
      context: the document.
      pairs: whose answers are judged.

    Returns:
      float64 [pairs, 2], probabilities from 0 to 1.

    Raises:
      ValueError: context and pair do not fit into the model.
    """
    asked = dataclasses.replace(context, qa_pairs=tuple(pairs))
    sentences = qa_sentences([asked], prompt, TargetConfig(loss_tokens="answer", answer_supervision=0.0))
    first = first_slots(sentences)
    prefix = read_prefix(reader.model, reader.variables, prompt.context_prefix(context.text))
    head = output_head(reader.variables["params"], reader.model.config)
    columns = [
        answer_confidence(head, Store([states]), sentences, first)
        for states in (read_context(reader, prefix, sentences), read_without_context(reader, sentences))
    ]
    return np.stack(columns, axis=1)
