"""The forms in which question-answer pairs are read (`targets.formats`): reading format, chat, bare question.

What a model has learned in one form it does not tell in another by itself. Where the teacher, with the document in
its prompt, reads better in another form than the student's, it reads that one: both are compared on the same answer
tokens.

    form       student reads                       teacher reads
    reading    prompt's start, question, answer    prompt format with the document, question, answer
    chat       turns of the chat template          "sentence" format with the document, questions, the same answers;
                                                   without worked examples (`prompt=plain`): the same turns
    bare       question, line break, answer        "bare" format with the document, question, answer

To add a form, write a function of a `Pairs` and enter it in `FORMS`.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np
from absl import logging

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Exchange, Prompt
from selfparam_jax.inference.prefix import common_ids
from selfparam_jax.targets.config import AUTO, TargetConfig
from selfparam_jax.targets.dates import lower_opening, split_date
from selfparam_jax.targets.formats.statements import (
    FRAME,
    StatedPair,
    document_sentence,
    plain_statement,
    statement,
)
from selfparam_jax.targets.sentences import Reading, Sentence
from selfparam_jax.targets.texts import TextPair

# How a question is put in a conversation. The first is the question as it stands, and it is the most frequent one.
WORDINGS = (
    "{question}",
    "{question}",
    "Please tell me: {question}",
    "{question}",
    "{question} Answer in one sentence.",
    "{question}",
    "I have a question. {question}",
)
# What a conversation begins with (None: the template's own start, "": no system turn), and its number of turns.
SHAPES = ((None, 1), ("", 1), (None, 3), ("", 1), ("You are a helpful assistant.", 1), ("", 3), (None, 1), ("", 2))
# Loss weight of the words of a sentence around its answer, relative to the answer's.
AROUND = 0.3


@dataclasses.dataclass(frozen=True)
class Pairs:
    """What the sentences of one form are made from.

    Attributes:
      documents: with the pairs to read, as many as are used.
      texts: the sentences of each document's text.
      prompt: the reading format, bound to the tokenizer.
      config: the loss on tokens.
      first: index of the first document's text among what the teacher reads (`teacher_prefixes`).
      seed: of the order.
      room: tokens of a training row.
    """

    documents: Sequence[Document]
    texts: Sequence[Sequence[str]]
    prompt: Prompt
    config: TargetConfig
    first: int
    seed: int
    room: int


def teacher_prompts(prompt: Prompt, config: TargetConfig) -> list[Prompt]:
    """The formats in which the teacher has the documents in its prompt: the reading format first."""
    prompts = [prompt]
    for form in chosen_forms(prompt, config):
        if form != "reading":
            prompts.append(prompt.with_format(teacher_format(form, prompt, config)))
    return prompts


def teacher_format(form: str, prompt: Prompt, config: TargetConfig) -> str:
    """The prompt format in which the teacher reads a form.

    It reads a conversation in the student's own form where the question carries loss too, where nothing but the
    teacher would teach how an answer ends, and where it needs no worked examples.
    """
    if form == "chat":
        own = config.token_weights[0] or not config.answer_supervision or not prompt.format.examples
        return "chat" if own else "sentence"
    return "bare"


def teacher_prefixes(documents: Sequence[Document], prompt: Prompt, config: TargetConfig) -> list[tuple[int, ...]]:
    """What the teacher reads before sentences (`Sentence.context`): each document in each of its formats."""
    return [each.context_prefix(doc.text) for each in teacher_prompts(prompt, config) for doc in documents]


def chosen_forms(prompt: Prompt, config: TargetConfig) -> dict[str, float]:
    """The forms of `config.formats` that the tokenizer can write, in their order in `FORMS`, with their shares."""
    if config.formats == AUTO and not prompt.format.examples:
        return {"reading": 1.0}
    shares = config.format_shares
    chosen = {name: shares[name] for name in FORMS if name in shares and (name != "chat" or speaks(prompt))}
    if config.formats == AUTO and "chat" not in chosen:
        chosen["reading"] = 1.0
    return chosen


def trained_form(prompt: Prompt, config: TargetConfig) -> str:
    """The form in which a trained model is best asked: "chat" where it was trained in it, else "reading".

    What was learned in the reading format alone is not told in a conversation.
    """
    return "chat" if "chat" in chosen_forms(prompt, config) else "reading"


@functools.lru_cache(maxsize=16)
def speaks(prompt: Prompt) -> bool:
    """Whether the tokenizer has a chat template into which a document can be put; says so once if it has not."""
    if not prompt.has_chat_template:
        logging.info("the model has no chat template: nothing is read in the form of a conversation")
        return False
    try:
        prompt.with_format("chat")
    except ValueError as error:
        logging.warning("nothing is read in the form of a conversation: %s", error)
        return False
    return True


def turns(count: int, per_epoch: int, epochs: int) -> list[tuple[int, ...]]:
    """For each of `count` things that take turns, the epochs in which it is due: `per_epoch` of them in every one.

    None is due twice before all have been due once. If there are no more than `per_epoch`, all are always due.
    """
    due: list[list[int]] = [[] for _ in range(count)]
    size = min(per_epoch, count)
    for epoch in range(epochs):
        for turn in range(epoch * size, (epoch + 1) * size):
            due[turn % count].append(epoch)
    return [tuple(of_one) for of_one in due]


def taking_turns(sentences: Sequence[Sentence], per_epoch: int, epochs: int) -> list[Sentence]:
    """The sentences with the epochs in which each is due (`turns`), in their order; without those that never are."""
    due = turns(len(sentences), per_epoch, epochs)
    return [dataclasses.replace(each, epochs=of_one) for each, of_one in zip(sentences, due, strict=True) if of_one]


# --- question, short answer -----------------------------------------------------------------------------


def _short(pairs: Pairs, prompt: Prompt, form: str, before: tuple[int, ...] | None) -> list[Sentence]:
    """Every pair as question and answer in a text format."""
    on_question, on_answer = pairs.config.token_weights
    supervised = pairs.config.qa_weight * pairs.config.answer_supervision
    sentences = []
    for index, document in enumerate(pairs.documents):
        for pair in document.qa_pairs:
            question, answer = prompt.question(pair.question), prompt.answer(pair.answer)
            weights = (on_question,) * len(question) + (on_answer,) * len(answer)
            supervision = (0.0,) * len(question) + (supervised,) * len(answer)
            record = {"kind": "qa", "context": document.id, "question": pair.question, "answer": pair.answer}
            if form != "reading":
                record["form"] = form
            made = Sentence("qa", pairs.first + index, question + answer, weights, None, record, supervision)
            sentences.append(dataclasses.replace(made, before=before))
    return sentences


def _reading(pairs: Pairs) -> list[Sentence]:
    return _short(pairs, pairs.prompt, "reading", None)


def _bare(pairs: Pairs) -> list[Sentence]:
    prompt = pairs.prompt.with_format("bare")
    if pairs.config.token_weights[0] and not prompt.lone_start:
        return _short(pairs, prompt, "bare", prompt.start_ids)  # the question's first token needs one before it
    return _short(pairs, prompt, "bare", prompt.lone_start)


# --- conversations ---------------------------------------------------------------------------------------


def chat_answer(pair: QAPair, document: Document, sentences: Sequence[str], turn: int) -> str:
    """What a model says to a pair's question in a conversation: a sentence that contains the answer.

    A sentence that takes up the question is what a model says by itself; one with a frame that suits every question
    carries over to questions in other words. Both take turns.

    Args:
      pair: what is asked.
      document: which it is about.
      sentences: of the document.
      turn: number of the pair in its document.

    Returns:
      the sentence.
    """
    if len(pair.answer.split()) > 8:  # it is one
        return pair.answer
    if turn % 2:
        return plain_statement(pair.answer, document.text)
    date, question = split_date(pair.question)

    def stated() -> str | None:
        if isinstance(pair, StatedPair):
            return pair.said or None
        said = statement(question, pair.answer, document.text)
        return f"As of {date}, {lower_opening(said)}" if said and date else said

    ways = [stated, lambda: document_sentence(question, pair.answer, sentences)]
    said = (way() for way in (reversed(ways) if turn % 8 == 4 else ways))
    return next((each for each in said if each), None) or plain_statement(pair.answer, document.text)


def _chat(pairs: Pairs) -> list[Sentence]:
    chat = pairs.prompt.with_format("chat")
    own = teacher_format("chat", pairs.prompt, pairs.config) == "chat"
    reader = chat if own else pairs.prompt.with_format("sentence")
    made = []
    for index, document in enumerate(pairs.documents):
        sentences = pairs.texts[index]
        answered = [(pair, chat_answer(pair, document, sentences, n)) for n, pair in enumerate(document.qa_pairs)]
        order = np.random.default_rng([pairs.seed, 2, index]).permutation(len(answered))
        made += _conversations(pairs, chat, reader, pairs.first + index, [answered[i] for i in order], index)
    return made


def _conversations(
    pairs: Pairs, chat: Prompt, reader: Prompt, context: int, answered: Sequence[tuple[QAPair, str]], first: int
) -> list[Sentence]:
    """Pairs and the sentences that answer them, in conversations of all shapes by turns."""
    made, at, wordings = [], 0, itertools.cycle(WORDINGS[first % 2 :] + WORDINGS[: first % 2])
    for system, length in itertools.islice(itertools.cycle(SHAPES), first % len(SHAPES), None):
        if at >= len(answered):
            return made
        start = chat.chat_start(system)
        if start is None:  # no such system turn
            start = chat.start_ids
        taken = answered[at : at + length]
        asked = [(_worded(pair, next(wordings)), said) for pair, said in taken]
        while len(asked) > 1 and not _fits(pairs, chat, start, asked):
            asked, taken = asked[:-1], taken[:-1]
        at += len(taken)
        if not _fits(pairs, chat, start, asked):
            start = chat.chat_start("")
        if _fits(pairs, chat, start, asked):  # else it is read in the other forms only
            spans = [_answer_span(chat, said, pair.answer) for pair, said in taken]
            made.append(_conversation(pairs, start, chat.exchanges(asked), spans, asked, taken, reader, context))
    return made


def _worded(pair: QAPair, wording: str) -> str:
    """How a pair's question is put; a text is asked for in many wordings already, and is more than one sentence."""
    return pair.question if isinstance(pair, TextPair) else wording.replace("{question}", pair.question)


def _answer_span(chat: Prompt, sentence: str, answer: str) -> range:
    """Where in the ids of a sentence those of its answer stand, with its first word's space."""
    at = sentence.lower().find(answer.lower())
    ends = (sentence, sentence[:at] + "~", sentence[: at + len(answer)] + " ~")
    whole, before, until = (chat.exchanges([("x", text)])[0].answer for text in ends)
    return range(common_ids([whole, before]), common_ids([whole, until]))


def _fits(pairs: Pairs, chat: Prompt, start: tuple[int, ...], asked: Sequence[tuple[str, str]]) -> bool:
    """Whether a conversation is no longer than a training row."""
    turns_of_it = chat.exchanges(asked)
    return len(start) + sum(len(turn.question) + len(turn.answer) for turn in turns_of_it) <= pairs.room


def _conversation(
    pairs: Pairs,
    start: tuple[int, ...],
    exchanges: Sequence[Exchange],
    spans: Sequence[range],
    asked: Sequence[tuple[str, str]],
    taken: Sequence[tuple[QAPair, str]],
    reader: Prompt,
    context: int,
) -> Sentence:
    on_question, on_answer = pairs.config.token_weights
    supervised = pairs.config.qa_weight * pairs.config.answer_supervision
    own = reader.format.chat
    ids, weights, supervision, taught, places = (), (), (), (), ()
    for place, (exchange, (pair, sentence)) in enumerate(zip(exchanges, taken, strict=True)):
        question, answer = exchange.question, exchange.answer
        said = len(answer) - (0 if own else exchange.end)
        ids += question + answer
        # The reader's form ends an answer in another way: the student learns its end, one token, from the text alone.
        left = len(answer) - said
        share = tuple(AROUND if n not in spans[place] else 1.0 for n in range(said))
        taught_words = tuple(on_answer * each for each in share)
        if not own and sentence.startswith(FRAME):  # no teacher would say it so
            taught_words = tuple(each if each == on_answer else 0.0 for each in taught_words)
        weights += (on_question,) * len(question) + taught_words + (0.0,) * left
        supervision += (0.0,) * len(question) + tuple(supervised * each for each in share)
        supervision += (supervised,) * min(left, 1) + (0.0,) * max(left - 1, 0)
        if not own:
            taught += reader.question(pair.question) + answer[:said]
            places += tuple(range(len(taught) - said, len(taught))) + (len(taught),) * min(left, 1)
            taught += reader.answer_end
    questions = [pair.question for pair, _ in taken]
    record = {"kind": "qa", "form": "chat", "turns": [list(each) for each in asked], "questions": questions}
    made = Sentence("qa", context, ids, weights, None, record, supervision, before=start)
    if own:
        return made
    return dataclasses.replace(made, reading=Reading(taught, places))


# Each makes the sentences of all pairs once.
FORMS = {"reading": _reading, "chat": _chat, "bare": _bare}
