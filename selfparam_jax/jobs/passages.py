"""The documents of a job as the teacher reads them: long ones as passages, and related passages together."""

from collections.abc import Callable, Sequence

from absl import logging

from selfparam_jax.checkpoints.load import ModelOutline
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.documents import Document
from selfparam_jax.data.passages import (
    Passage,
    group_passages,
    is_group,
    may_be_long,
    related_passages,
    split_documents,
    token_counter,
)
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.evaluation.questions import kinds_of, of_kind, summarize
from selfparam_jax.reports.tables import counted
from selfparam_jax.targets.texts import TextPair, with_split_texts
from selfparam_jax.targets.write_pairs import read_written, text_digest, warn_of_unfinished, with_written_pairs
from selfparam_jax.training.recipe import Recipe


def with_passages(
    documents: Sequence[Document], recipe: Recipe, load: Callable[[], Model | ModelOutline]
) -> list[Document]:
    """The documents, long ones cut into passages (`Recipe.passage_tokens`), with the pairs of `generator.file`.

    Where a model or a server writes pairs about a long document, some are written about several related passages that
    are read together (`Recipe.related_share`); these groups follow the document's passages.

    Args:
      documents: with their questions and pairs.
      recipe: how long a passage is, and who writes.
      load: gives the tokenizer, and the longest text that the model reads; only called if a document may be long.

    Returns:
      short documents as they are, passages and groups of them in place of the others.

    Raises:
      ValueError, OSError: the file of written pairs cannot be read.
    """
    writer, file = recipe.targets.generator, recipe.generator.file
    written_before = bool(file) and writer in ("none", "auto")
    asked = writer in ("local", "endpoint")  # a model that reads all of a text; rules go from sentence to sentence
    made = list(documents)
    if any(may_be_long(document, recipe.passage_tokens) for document in documents):
        model = load()
        made = split_documents(documents, recipe.passage_tokens, token_counter(model.tokenizer))
        if recipe.targets.qa_weight and (asked or written_before):
            made = _with_related(made, recipe, model)
    if written_before:
        written = read_written(file)
        warn_of_unfinished(file)
        texts = {text_digest(each) for each in made}
        if (others := written.keys() - texts) and texts - written.keys():  # of a part of the documents is no mistake
            logging.warning(
                "%s: pairs about %d of its %d texts are not used, as no document has such a text (was one changed?)",
                file, len(others), len(written),
            )  # fmt: skip
        made = with_written_pairs(made, written, recipe.generator)
        made = [each for each in made if each.qa_pairs or not is_group(each)]
        if any(isinstance(pair, TextPair) for each in made for pair in each.qa_pairs):
            model = load()
            prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
            made = with_split_texts(made, prompt, recipe.train.seq_len)
    long = [source for source in group_passages(made) if isinstance(source.passages[0], Passage)]
    if long:
        groups = sum(is_group(each) for each in made)
        logging.info(
            "longer than passage_tokens = %d: %d of %s, read as %s and %s of related ones", recipe.passage_tokens,
            len(long), counted(len(documents), "document"),
            counted(sum(len(source.passages) for source in long) - groups, "passage"), counted(groups, "group"),
        )  # fmt: skip
    return made


def _with_related(documents: Sequence[Document], recipe: Recipe, model: Model | ModelOutline) -> list[Document]:
    """The documents with groups of related passages, which the model can read, after those of each long one."""
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
    room = model.config.max_position_embeddings - recipe.train.seq_len

    def fits(text: str) -> bool:
        return len(prompt.context_prefix(text)) <= room

    made: list[Document] = []
    for source in group_passages(documents):
        passages = source.passages
        made += passages
        if isinstance(passages[0], Passage):
            made += related_passages(passages, recipe.related_share, fits)
    return made


def join_answers(documents: Sequence[Document], answers: Sequence[Sequence[dict]]) -> list[list[dict]]:
    """Answers per document and question, from those per passage: scores are means over documents.

    Args:
      documents: passages and short documents.
      answers: of each of them, per question.

    Returns:
      per document of `group_passages`.
    """
    return [[answer for place in source.places for answer in answers[place]] for source in group_passages(documents)]


def scores_by_kind(documents: Sequence[Document], answers: dict[str, list[list[dict]]]) -> list[dict]:
    """The scores of every system on the questions of each kind.

    Args:
      documents: passages and short documents.
      answers: of every system, of each document, per question.

    Returns:
      {"kind", "questions": how many, "scores": per system as `questions.summarize`} of each kind; [] where questions
      have none.
    """
    found = []
    for kind in kinds_of(documents):
        chosen = {name: of_kind(documents, each, kind) for name, each in answers.items()}
        scores = {name: summarize(join_answers(documents, each)) for name, each in chosen.items()}
        count = sum(question.kind == kind for document in documents for question in document.questions)
        found.append({"kind": kind, "questions": count, "scores": scores})
    return found


def name_passages(documents: Sequence[Document], records: Sequence[dict]) -> list[dict]:
    """Records of predictions with the document's id under "context" and, beside it, its passage's under "passage"."""
    sources = {each.id: each.source for each in documents if isinstance(each, Passage)}
    return [
        {"context": sources[record["context"]], "passage": record["context"], **_without(record, "context")}
        if record["context"] in sources
        else record
        for record in records
    ]


def _without(record: dict, name: str) -> dict:
    return {key: value for key, value in record.items() if key != name}
