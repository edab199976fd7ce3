"""Questions about documents: asked of a model, answered greedily, scored."""

from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.documents import Document, Question
from selfparam_jax.data.passages import is_group, source_id
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.files import refuse_surrogates
from selfparam_jax.evaluation.metrics import (
    METRICS,
    UNSPACED_METRICS,
    best,
    bootstrap_interval,
    metrics_for,
    token_f1,
)
from selfparam_jax.inference.decoding import generate
from selfparam_jax.inference.prefix import Prefix, read_prefixes
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.targets.dates import date_of, in_order, in_words

PAPER_TOKENS = 10  # the paper's decoding: this many new tokens, no stop
SHORT_TOKENS = 24  # the longest answer in `short` decoding


def check_question(question: str) -> None:
    """Raises ValueError for a question without a word, or one that is no text."""
    if not question.strip():
        raise ValueError('got an empty question, expected words; write it in quotes, as in "Who founded Quenbarrow?"')
    refuse_surrogates(question, "question")


def check_room(asked: int, before: int, new_tokens: int, limit: int, what: str = "prompt format") -> None:
    """Raises ValueError for a question that does not fit into the model together with its answer.

    Args:
      asked: tokens of the question.
      before: tokens that are read before it.
      new_tokens: the longest answer.
      limit: how many tokens the model reads.
      what: is read before it.
    """
    if asked + before + new_tokens > limit:
        raise ValueError(
            f"the question has {asked} tokens, {before} are read before it ({what}) and the answer may take "
            f"{new_tokens}, but the model reads at most {limit} (max_position_embeddings); shorten the question"
        )


def answer_questions(
    model: Decoder,
    variables: dict,
    prompt: Prompt,
    documents: Sequence[Document],
    with_context: bool,
    batch_size: int = 16,
) -> list[list[dict]]:
    """Answers every held-out question of every document.

    One greedy run gives both decodings: `short` is cut at the first stop, `paper` is the first 10 tokens.

    Args:
      model: applies the variables.
      variables: {'params'}, or {'params', 'lora'} for an adapted model.
      prompt: the format, bound to the model's tokenizer.
      documents: whose `questions` are asked.
      with_context: whether a question's document, or those that it names, stand in the prompt before it.
      batch_size: questions decoded together.

    Returns:
      per document and question: {"answer", "f1", "em", "contains", "paper", "f1_paper", "tokens"}; the last counts
      the tokens of the prompt.

    Raises:
      ValueError: a document is longer than the model can read, or a question names one that is not there.
    """
    texts = [
        [text_for(question, document, documents) if with_context else None for question in document.questions]
        for document in documents
    ]
    return answer_with_texts(model, variables, prompt, documents, texts, batch_size)


def answer_with_texts(
    model: Decoder,
    variables: dict,
    prompt: Prompt,
    documents: Sequence[Document],
    texts: Sequence[Sequence[str | None]],
    batch_size: int = 16,
) -> list[list[dict]]:
    """Answers every held-out question with a text of its own in the prompt before it.

    Args:
      model, variables, prompt, documents, batch_size: as in `answer_questions`.
      texts: what stands before each question, per document and question; None for nothing.

    Returns:
      as `answer_questions`.

    Raises:
      ValueError: a text is longer than the model can read.
    """
    by_text: dict[str | None, list[tuple[int, int]]] = {}  # a text is read once for all its questions
    for d, document in enumerate(documents):
        for q in range(len(document.questions)):
            by_text.setdefault(texts[d][q], []).append((d, q))
    prefixes = [prompt.start_ids if text is None else prompt.context_prefix(text) for text in by_text]
    results: list[list[dict]] = [[{}] * len(document.questions) for document in documents]
    # What all prompts begin with is read once for all of them.
    for prefix, members in zip(read_prefixes(model, variables, prefixes), by_text.values(), strict=True):
        questions = [documents[d].questions[q] for d, q in members]
        found = answer_after(model, variables, prompt, prefix, questions, batch_size)
        for (d, q), answer in zip(members, found, strict=True):
            results[d][q] = answer | {"tokens": prefix.length + answer["tokens"]}
    return results


def answer_after(
    model: Decoder,
    variables: dict,
    prompt: Prompt,
    prefix: Prefix,
    questions: Sequence[Question],
    batch_size: int = 16,
) -> list[dict]:
    """Answers questions that follow one prefix.

    Args:
      model, variables, prompt, batch_size: as in `answer_questions`.
      prefix: what was read, or trained, before.
      questions: with their gold answers.

    Returns:
      per question as `answer_questions`, with the tokens of the question alone.
    """
    prompts = [prompt.question(question.question) for question in questions]
    made = generate(model, variables, prefix, prompts, SHORT_TOKENS, prompt.stop_ids, PAPER_TOKENS, batch_size)
    return [
        score_answer(prompt, ids, question.answers) | {"tokens": len(asked)}
        for question, ids, asked in zip(questions, made, prompts, strict=True)
    ]


def text_for(question: Question, document: Document, documents: Sequence[Document]) -> str:
    """What stands in the prompt before a question: its document, or all that it names, in the order of their dates.

    Args:
      question: of a document.
      document: whose question it is.
      documents: where those that it names are found; of a long one all passages.

    Returns:
      the text; each of several documents begins with its title and date.

    Raises:
      ValueError: it names a document that is not among them.
    """
    if not question.documents:
        return document.text
    found = []
    for name in question.documents:
        same = [each for each in documents if source_id(each) == name and not is_group(each)]
        if not same:
            raise ValueError(
                f"document {document.id!r}: the question {question.question!r} needs the document {name!r}, which is "
                "not among those that are read; add it, or take the question out"
            )
        found += same
    if len(found) == 1:
        return found[0].text
    return "\n\n".join(f"{_heading(each)}{each.text}" for each in in_order(found))


def _heading(document: Document) -> str:
    day = date_of(document)
    parts = [part for part in (document.title, in_words(day) if day else "") if part]
    return f"{', '.join(parts)}\n" if parts else ""


def kinds_of(documents: Sequence[Document]) -> list[str]:
    """The kinds of the documents' questions, in the order in which they come."""
    return list(dict.fromkeys(q.kind for document in documents for q in document.questions if q.kind))


def of_kind(documents: Sequence[Document], answers: Sequence[Sequence[dict]], kind: str) -> list[list[dict]]:
    """The answers to the questions of one kind, per document."""
    return [
        [answer for question, answer in zip(document.questions, group, strict=True) if question.kind == kind]
        for document, group in zip(documents, answers, strict=True)
    ]


def predictions(documents: Sequence[Document], systems: dict[str, list[list[dict]]]) -> list[dict]:
    """The records of predictions.jsonl: every question with the answers of each system (`answer_questions`).

    A document's metadata, where it has some, is part of its records.
    """
    records = []
    for d, document in enumerate(documents):
        metadata = {"metadata": document.metadata} if document.metadata else {}
        for q, question in enumerate(document.questions):
            answers = {system: results[d][q] for system, results in systems.items()}
            golds = list(question.answers)
            key = {"context": document.id, "question": question.question}
            key |= {"kind": question.kind} if question.kind else {}
            records.append({**key, "answers": golds, **metadata, **answers})
    return records


def answer_records(documents: Sequence[Document], answers: Sequence[Sequence[dict]]) -> list[dict]:
    """One system's answers as records that name document and question."""
    return [
        {"context": document.id, "question": question.question, **answer}
        for document, group in zip(documents, answers, strict=True)
        for question, answer in zip(document.questions, group, strict=True)
    ]


def match_answers(documents: Sequence[Document], records: Sequence[dict]) -> list[list[dict]]:
    """Records of `answer_records` as `answer_questions` gives them, found by document and question.

    A question that a document has several times has as many records, in the order of the questions.

    Raises:
      ValueError: a question of these documents has no record.
    """
    known: dict[tuple[str, str], list[dict]] = {}
    for record in records:
        known.setdefault((record["context"], record["question"]), []).append(record)
    found = []
    for document in documents:
        group = []
        for question in document.questions:
            same = known.get((document.id, question.question))
            if not same:
                raise ValueError(f"no answer is recorded to {question.question!r} about {document.id!r}")
            record = same.pop(0)
            group.append({name: value for name, value in record.items() if name not in ("context", "question")})
        found.append(group)
    return found


def short_answer(prompt: Prompt, ids: Sequence[int]) -> str:
    """The text before the first line break or end of turn."""
    # A token with a line break may begin with text ("town.\\n" as one token): keep what stands before the break.
    stop = next((n for n, token in enumerate(ids) if token in prompt.stop_ids), None)
    text, _ = prompt.reply(ids if stop is None else ids[: stop + 1])
    return (text if stop is None else text.split("\n")[0]).strip()


def score_answer(prompt: Prompt, ids: Sequence[int], golds: Sequence[str]) -> dict:
    """Both decodings of one generated answer, scored against its gold answers."""
    short = short_answer(prompt, ids)
    paper = prompt.reply(ids[:PAPER_TOKENS])[0].strip()
    return {
        "answer": short,
        **{name: best(metric, short, golds) for name, metric in metrics_for(golds).items()},
        "paper": paper,
        "f1_paper": best(token_f1, paper, golds),
    }


def summarize(results: Sequence[Sequence[dict]]) -> dict | None:
    """Mean over a document's questions, then over documents; None if there is no question at all.

    Args:
      results: per document and question, as `answer_questions` gives them.

    Returns:
      a mean for every metric and for "f1_paper", and "f1_ci95", the 95 % bootstrap interval of F1. Questions whose
      answers are in a script without spaces give "char_f1" and "char_em" besides.
    """
    groups = [group for group in results if group]
    if not groups:
        return None
    scores = {
        name: float(np.mean([np.mean([answer[name] for answer in group]) for group in groups]))
        for name in (*METRICS, "f1_paper")
    }
    for name in UNSPACED_METRICS:  # over the questions that have it
        having = [[answer[name] for answer in group if name in answer] for group in groups]
        if having := [group for group in having if group]:
            scores[name] = float(np.mean([np.mean(group) for group in having]))
    scores["f1_ci95"] = bootstrap_interval([[answer["f1"] for answer in group] for group in groups])
    return scores
