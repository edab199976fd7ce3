"""What keeps a model as it was in conversations: questions about other names, and unrelated exchanges.

A model that has learned who founded one town names the same person for every other town. So the pairs' questions are
asked again with invented names, and the base, which has no document, teaches what to say there. Only the sentence up
to the first token of the learned answer is read: that is where the model must not say it.
"""

import json
import re
from collections.abc import Sequence

import numpy as np

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.data.resources import resource
from selfparam_jax.inference.prefix import common_ids
from selfparam_jax.targets.formats.forms import taking_turns
from selfparam_jax.targets.formats.statements import DATES, plain_statement, statement
from selfparam_jax.targets.sentences import Sentence

LEARNED = 2  # tokens of the learned answer that are read: the first may be only a space before a number
# Invented names are put together from these; none of them is in a document that comes with the package.
_BEGINNINGS = """
Alder Bex Carrow Dorn Elver Farn Gres Hol Is Jarrow Kelder Lorn Maver Nor Oller Pend Quist Ravens Stave Thorn Ulver
Var Wex Yel Zel Brin Harl Tess Mar Fen
"""
_ENDINGS = """
mere ford by hallow ton wick moor enby dale field ley rick tow sley verby cote low combe ric enna vin sa don na rek no
tra mir da
"""
NAMES = tuple(first + last for first in _BEGINNINGS.split() for last in _ENDINGS.split())
_FUNCTION_WORDS = """
i who whom what which when where why how yes no the this that these he she it they his her its their we you my our
your
"""
_COMMON = DATES | set(_FUNCTION_WORDS.split())


def names_of(text: str) -> set[str]:
    """The words of a text that are only names: never without a capital, and not only where sentences begin."""
    words = re.findall(r"(?<![\w'’])[^\W\d_]+", text)
    lower = {word for word in words if word[0].islower()}
    inner = set(re.findall(r"(?<=[\w,;] )([^\W\d_]+)", text))
    return {
        word
        for word in words
        if word[0].isupper() and len(word) > 2 and word.lower() not in lower | _COMMON and word in inner
    }


def renamed(text: str, names: dict[str, str]) -> str:
    """A text with names replaced, each by its own."""
    return re.sub(r"[^\W\d_]+", lambda found: names.get(found[0], found[0]), text)


def contrast_sentences(
    documents: Sequence[Document], prompt: Prompt, per_epoch: int, epochs: int, seed: int
) -> list[Sentence]:
    """Questions of the pairs about invented names, without a document, `per_epoch` of them in every epoch.

    Args:
      documents: with their pairs.
      prompt: bound to a tokenizer with a chat template.
      per_epoch, epochs: how many are due in each of how many epochs.
      seed: decides which, and the names.

    Returns:
      sentences of kind "contrast"; fewer if few questions have a name in them.
    """
    rng = np.random.default_rng([seed, 4])
    found = []
    for document in documents:
        names = names_of(f"{document.title}. {document.text}")
        found += [
            (pair, document, names) for pair in document.qa_pairs if names & set(re.findall(r"\w+", pair.question))
        ]
    found = [found[i] for i in rng.permutation(len(found))[: per_epoch * epochs]]
    chat = prompt.with_format("chat")
    sentences = []
    for place, (pair, document, names) in enumerate(found):
        drawn = rng.choice(len(NAMES), size=len(names), replace=False)
        others = dict(zip(sorted(names), (NAMES[i] for i in drawn), strict=True))
        asked = renamed(pair.question, others)
        if asked == pair.question:
            continue
        said_of = statement(pair.question, pair.answer, document.text) if place % 4 < 2 else None
        said_of = said_of or plain_statement(pair.answer, document.text)
        said = _up_to_answer(chat, said_of, pair, others)
        before = chat.chat_start("" if place % 2 else None)
        question = chat.exchanges([(asked, "x")])[0].question
        weights = (0.0,) * len(question) + (1.0,) * len(said)
        record = {"kind": "contrast", "question": asked, "said": prompt.decode(said)}
        sentences.append(Sentence("contrast", None, question + said, weights, None, record, before=before))
    return taking_turns(sentences, per_epoch, epochs)


def _up_to_answer(chat: Prompt, sentence: str, pair: QAPair, others: dict[str, str]) -> tuple[int, ...]:
    """Ids of a sentence with other names, up to the first tokens of the answer, which is as it was."""
    at = sentence.lower().find(pair.answer.lower())
    start = renamed(sentence[:at], others)
    whole, other = (chat.exchanges([("x", start + end)])[0].answer for end in (sentence[at:], "~"))
    return whole[: common_ids([whole, other]) + LEARNED]


def exchange_sentences(prompt: Prompt, per_epoch: int, epochs: int, seed: int, room: int) -> list[Sentence]:
    """Unrelated exchanges of a conversation, without a document: the model must not change on them.

    Args:
      prompt: bound to a tokenizer with a chat template.
      per_epoch, epochs: how many are due in each of how many epochs.
      seed: decides the order.
      room: tokens of a training row; a longer exchange is cut, as an unrelated text is.

    Returns:
      sentences of kind "chat".
    """
    chat = prompt.with_format("chat")
    lines = resource("examples", "general_chat.jsonl").read_text(encoding="utf-8").splitlines()
    order = np.random.default_rng([seed, 5]).permutation(len(lines))
    sentences = []
    for place, i in enumerate(order.tolist()):
        entry = json.loads(lines[i])
        (exchange,) = chat.exchanges([(entry["question"], entry["answer"])])
        before = chat.chat_start("" if place % 2 else None)
        said = exchange.answer[: len(exchange.answer) - max(exchange.end - 1, 0)]
        ids = (exchange.question + said)[: room - len(before)]
        weights = ((0.0,) * len(exchange.question) + (1.0,) * len(said))[: len(ids)]
        sentences.append(Sentence("chat", None, ids, weights, None, {"kind": "chat", **entry}, before=before))
    return taking_turns(sentences, per_epoch, epochs)
