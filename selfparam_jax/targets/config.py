"""Settings of target sentences: which there are, who writes question-answer pairs, and the server that may be asked.

The packages that writing pairs needs are imported through `import_synthesis`.
"""

import dataclasses
import math
import types
import urllib.parse
from typing import Annotated

from selfparam_jax.data.extras import import_extra
from selfparam_jax.distributed.ranges import LIKELIHOOD, SEED, SHARE, WEIGHT, Range, check_ranges

MOST = 10**6  # pairs or texts
TAIL_CUTS = ("random", "sentence")
ANSWER_SHAPES = ("short", "sentence")
SHAPES = ("any", *ANSWER_SHAPES)
AGREEMENTS = ("none", "keep", "rewrite")
LONG_PAIRS = ("refuse", "skip")
GENERATORS = ("none", "auto", "grounded", "local", "endpoint")
FORMS = ("chat", "completion")
FORMAT_NAMES = ("reading", "chat", "bare")
AUTO, MIX = "auto", "reading:0.4,chat:0.6,bare:0.3"  # chosen on the development documents
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
MAY_OMIT = ("temperature", "top_p", "seed")


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """Which target sentences there are, how many, and the loss weight of their tokens.

    Attributes:
      generator: who writes question-answer pairs about the documents. "none": nobody. "auto": as "grounded", about
        those documents that have no pairs, neither of their own nor in `generator.file`. "grounded": rules make them
        from the sentences of every document (English), and the model chooses among their wordings. "local": the model
        itself, about every document. "endpoint": a server, about every document.
      qa_per_context: QA pairs used per document; 0 means all.
      long_pairs: what to do with a QA pair that is longer than a training row: "refuse" to run, or "skip" the pair
        and report how many were skipped.
      qa_weight: factor of the loss on the tokens of QA pairs; 0 leaves the pairs out.
      formats: the forms in which pairs are read, each with the share of the pairs that is read in it per epoch, as
        in "reading:1,chat:0.8,bare:0.25"; "reading" is "reading:1". "auto": a mix of all three where the reading
        format has worked examples (prompt "few_shot"), else that alone. "reading": the prompt format (`prompt`), with
        the short answer. "chat": the model's chat template, with and without a system turn, in one turn and several,
        the answer a sentence; left out where the model has no chat template. "bare": the question, a line break, the
        short answer. With a share below 1 the pairs take turns.
      dated: for documents of different dates (the "date" of their metadata). Their pairs are asked with the date, "As
        of 3 May 2026, who ...?", and without a date only where no later document answers the same question
        differently. Twice as many pairs are read; documents without a date are left alone.
      two_step_pairs: questions that need two documents, at most this many for each two of which one describes the
        other by its title ("How long is the ship that ... designed?"); made by rule from the pairs of both, and read
        by the teacher with both. 0 makes none (nor does job "single").
      distractors: how many other documents of the job, drawn by the seed, stand before and after the right one where
        the teacher reads a pair; 0: the document alone. Not for jobs "single" and "sequential", which read one
        document at a time.
      answer_shape: use only pairs whose answer is "short" (up to six words) or a "sentence" (more); "any" uses both.
      agreement: what to do with a pair when the teacher, with the document in the prompt, gives another answer:
        "none" (nothing), "keep" (use only pairs whose answer has a token F1 of at least `least_agreement` with the
        teacher's) or "rewrite" (use the teacher's answer instead). If `agreement` or `answer_shape` leave fewer pairs
        than `qa_per_context`, those are used.
      least_agreement: for agreement "keep", the smallest token F1, 0 to 1.
      least_confidence: leave out QA pairs to whose answer the teacher, with the document in the prompt, gives a lower
        geometric mean probability per token than this, 0 to below 1; 0 uses all. A student copies its teacher's
        mistakes.
      loss_tokens: which tokens of a QA pair carry the KL loss: "answer", "all" (as in the paper), or two weights,
        of the question's tokens and of the answer's, as in "0.1,1".
      answer_supervision: weight of a next-token loss on the answer's tokens, added to the KL loss. 0 is the paper's
        objective. A small teacher answers many questions wrongly even with the document in the prompt; this
        corrects it.
      by_confidence: how much the teacher counts, token by token: where it gives the answer's token, with the document
        in the prompt, the probability p, the KL keeps p of its weight and the next-token loss gets the rest. Of a
        teacher that is right this changes little; of one that is wrong the student learns the pair's answer. Without
        `answer_supervision` it changes nothing.
      tails_per_context: tails of each document read per epoch, different ones in every epoch; 0 reads none.
      tail_weight: loss weight of their tokens.
      tail_cut: where tails begin: "random", at any token of the document, or "sentence", where a sentence begins.
      unrelated_per_epoch: unrelated texts read per epoch, which keep the model as it was; 0 reads none.
      unrelated_weight: loss weight of their tokens.
      unrelated_tokens: an unrelated text is cut after this many tokens.
      unrelated_context: whether the teacher has a document in its prompt before an unrelated text (as in the paper).
        With False the term says exactly "do not change on this text".
      contrast_per_epoch: questions of the pairs with other, invented names per epoch, asked through the chat template
        without a document: what was learned is not to be told of anything else. Only the first words of the answer
        carry loss. None are read where no pair is read in a conversation; 0 reads none.
      chat_per_epoch: unrelated questions and instructions per epoch, asked through the chat template without a
        document, which keep the model's manner in conversations. None are read where no pair is read in a
        conversation; 0 reads none.
    """

    generator: str = "auto"
    qa_per_context: Annotated[int, Range(1, MOST, also={0: "all"})] = 0
    long_pairs: str = "refuse"
    qa_weight: Annotated[float, WEIGHT] = 1.0
    formats: str = AUTO
    dated: bool = False
    two_step_pairs: Annotated[int, Range(0, MOST)] = 0
    distractors: Annotated[int, Range(0, 1000)] = 0
    answer_shape: str = "any"
    agreement: str = "none"
    least_agreement: Annotated[float, SHARE] = 1.0
    least_confidence: Annotated[float, LIKELIHOOD] = 0.0
    loss_tokens: str = "answer"
    answer_supervision: Annotated[float, WEIGHT] = 0.5
    by_confidence: bool = True
    tails_per_context: Annotated[int, Range(0, MOST)] = 0
    tail_weight: Annotated[float, WEIGHT] = 1.0
    tail_cut: str = "random"
    unrelated_per_epoch: Annotated[int, Range(0, MOST)] = 28
    unrelated_weight: Annotated[float, WEIGHT] = 1.0
    unrelated_tokens: Annotated[int, Range(1, 2**20)] = 48
    unrelated_context: bool = False
    contrast_per_epoch: Annotated[int, Range(0, MOST)] = 24
    chat_per_epoch: Annotated[int, Range(0, MOST)] = 16

    def __post_init__(self):
        check_ranges(self, "targets")
        _ = self.format_shares
        for name, allowed in (
            ("generator", GENERATORS),
            ("long_pairs", LONG_PAIRS),
            ("tail_cut", TAIL_CUTS),
            ("answer_shape", SHAPES),
            ("agreement", AGREEMENTS),
        ):
            _check_choice(f"targets.{name}", getattr(self, name), allowed)
        _ = self.token_weights

    @property
    def token_weights(self) -> tuple[float, float]:
        """Weight of the KL loss on the question's tokens and on the answer's."""
        named = {"all": (1.0, 1.0), "answer": (0.0, 1.0)}
        on_question, on_answer = named.get(self.loss_tokens) or _two_weights(self.loss_tokens)
        return self.qa_weight * on_question, self.qa_weight * on_answer

    @property
    def learns(self) -> bool:
        """Whether pairs or tails of the documents carry a loss; unrelated texts alone teach nothing of them."""
        pairs = any(self.token_weights) or self.qa_weight * self.answer_supervision > 0
        return pairs or self.tails_per_context * self.tail_weight > 0

    @property
    def format_shares(self) -> dict[str, float]:
        """The forms in which pairs are read, and the share of the pairs in each per epoch; of "auto" the mix."""
        shares: dict[str, float] = {}
        for entry in (MIX if self.formats == AUTO else self.formats).split(","):
            name, _, share = (part.strip() for part in entry.partition(":"))
            try:
                value = float(share or 1)
            except ValueError:
                value = math.nan
            if name not in FORMAT_NAMES or name in shares or not 0 < value <= 1:
                raise ValueError(
                    f"targets.formats = {self.formats!r}, expected 'auto' or names of {', '.join(FORMAT_NAMES)}, "
                    "each once and with a share above 0 and at most 1, as in 'reading:1,chat:0.8,bare:0.25'"
                )
            shares[name] = value
        return shares

    @property
    def chooses_pairs(self) -> bool:
        """Whether pairs may be left out or rewritten before they become sentences."""
        return self.agreement != "none" or self.answer_shape != "any"


@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """How question-answer pairs are written, and which of them are used.

    Attributes:
      model: another model than the base that writes, for targets.generator "local", named as the setting `model`
        names one. Its tokenizer may be another. It is in memory beside the base while pairs are written, and let go
        before anything is trained; `teacher_scores` are still the teacher's. "": the base writes.
      file: JSONL file of written pairs; "" is pairs.jsonl in the work directory. A file that `selfparam targets` has
        written serves any number of runs; with targets.generator "none" or "auto" it is only read.
      form: how a model is asked: "chat", through its chat template, or "completion", as a text to continue (for base
        models and small ones such as the embedded model; not for a server).
      wordings: how many questions ask for the same fact, for targets.generator "auto" and "grounded"; the number of
        pairs follows from the facts of a document.
      pairs_per_context: for the other writers, pairs wanted per document; a document that has as many gets no further
        round.
      rounds: how often each document is asked about. In form "chat" later rounds are told which pairs there are.
      replies: replies sampled per document and round, shared among the kinds of prompts by their weight.
      pairs_per_reply: how many pairs a chat prompt asks for.
      reply_tokens: a reply is cut off after this many tokens; a chat needs about 40 per pair, a text some 300.
      temperature: of the sampling, above 0.
      top_p: sample from the most likely tokens that together have this probability, above 0 and at most 1.
      prompts: TOML file of prompts in the form of the packaged question_prompts.toml; "" is that file.
      kinds: use only these kinds of its prompts; () means all of the form but the optional ones (texts, dialogues,
        tasks), ("all",) means these, too.
      teacher_scores: whether to score pairs by the likelihood that the teacher gives to their answer.
      least_support: smallest share of an answer's words that must occur in the document, 0 to 1; of a text, also of
        its names and numbers.
      least_likelihood: smallest geometric mean probability per token that the teacher, with the document in the
        prompt, must give to the answer; 0 to below 1. Needs `teacher_scores`.
      least_gain: by how much that must exceed the same without the document; 0 to below 1. Needs `teacher_scores`.
      duplicate_threshold: two questions that are at least this similar, 0 to 100, count as one.
      generator: who writes, one of GENERATORS (targets.generator).
      answer_shape: use only pairs with answers of this shape (targets.answer_shape).
      seed: of the sampling.
    """

    model: str = ""
    file: str = ""
    form: str = "completion"
    wordings: Annotated[int, Range(1, 1000)] = 3
    pairs_per_context: Annotated[int, Range(1, MOST)] = 40
    rounds: Annotated[int, Range(1, 1000)] = 3
    replies: Annotated[int, Range(1, 10**5)] = 32
    pairs_per_reply: Annotated[int, Range(1, 1000)] = 6
    reply_tokens: Annotated[int, Range(1, 2**20)] = 64
    temperature: Annotated[float, Range(1e-6, 100)] = 0.7
    top_p: Annotated[float, Range(0, 1, open_least=True)] = 0.95
    prompts: str = ""
    kinds: tuple[str, ...] = ()
    teacher_scores: bool = True
    least_support: Annotated[float, SHARE] = 0.6
    least_likelihood: Annotated[float, LIKELIHOOD] = 0.0
    least_gain: Annotated[float, LIKELIHOOD] = 0.0
    duplicate_threshold: Annotated[float, Range(0, 100)] = 90.0
    generator: str = dataclasses.field(default="auto", metadata={"derived": True})
    answer_shape: str = dataclasses.field(default="any", metadata={"derived": True})
    seed: Annotated[int, SEED] = dataclasses.field(default=0, metadata={"derived": True})

    def __post_init__(self):
        check_ranges(self, "generator")
        _check_choice("targets.generator", self.generator, GENERATORS)
        _check_choice("targets.answer_shape", self.answer_shape, SHAPES)
        _check_choice("generator.form", self.form, FORMS)
        if self.generator == "endpoint" and self.form != "chat":
            raise ValueError(
                f"generator.form = {self.form!r}, but an endpoint answers chats only; set generator.form=chat"
            )
        if not self.teacher_scores and (self.least_likelihood > 0 or self.least_gain > 0):
            raise ValueError(
                "generator.least_likelihood and generator.least_gain need the teacher's scores; "
                "set generator.teacher_scores=True"
            )


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """A server that speaks OpenAI's chat completions (vLLM, llama.cpp, ...), and how it is asked.

    Attributes:
      base_url: its address up to the version, like "http://localhost:8000/v1".
      model: the model's name at the server; needed once the server is asked.
      key_variable: environment variable that holds the key; "" for a server that needs none. The key is never written
        to a file or logged.
      concurrency: largest number of requests at a time, over all threads.
      retries: further attempts, with growing pauses, after status 408, 409, 429 or 5xx, a timeout, a broken
        connection or a malformed answer.
      timeout_s: seconds without data after which an attempt has failed.
      attempt_s: seconds after which an attempt has failed although data still come.
      budget: the most that may be spent, in the currency of the prices; 0 is no limit.
      price_in: price of a million prompt tokens.
      price_out: price of a million reply tokens.
      token_budget: the most tokens, of prompts and replies together; 0 is no limit.
      limit_name: the server's name for the limit on a reply's tokens: "max_tokens" or "max_completion_tokens".
      omit: those of "temperature", "top_p" and "seed" that the server refuses; they are not sent.
    """

    base_url: str = "http://localhost:8000/v1"
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: Annotated[int, Range(1, 4096)] = 8
    retries: Annotated[int, Range(0, 1000)] = 6
    timeout_s: Annotated[float, Range(1e-3, 1e6)] = 300.0
    attempt_s: Annotated[float, Range(1e-3, 1e6)] = 1800.0
    budget: Annotated[float, Range(0, 1e9)] = 0.0
    price_in: Annotated[float, WEIGHT] = 0.0
    price_out: Annotated[float, WEIGHT] = 0.0
    token_budget: Annotated[int, Range(0, 10**15)] = 0
    limit_name: str = "max_tokens"
    omit: tuple[str, ...] = ()

    def __post_init__(self):
        check_ranges(self, "endpoint")
        _check_url(self.base_url)
        if self.budget and not (self.price_in or self.price_out):
            raise ValueError(
                f"endpoint.budget = {self.budget:g}, but both prices are 0, so it would never be reached; "
                "set endpoint.price_in and endpoint.price_out (per million tokens), or use endpoint.token_budget"
            )
        _check_choice("endpoint.limit_name", self.limit_name, LIMIT_NAMES)
        if unknown := set(self.omit) - set(MAY_OMIT):
            raise ValueError(f"endpoint.omit = {sorted(unknown)}, expected some of {', '.join(MAY_OMIT)}")


def import_synthesis(name: str) -> types.ModuleType:
    """Imports a package of the extra `synthesis`, which a run with pairs of its own does not need.

    Raises:
      ValueError: it is not installed.
    """
    return import_extra(
        name,
        "synthesis",
        "written question-answer pairs need",
        ", or give pairs in the documents and set targets.generator=none",
    )


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}, expected one of {', '.join(allowed)}")


def _two_weights(text: str) -> tuple[float, float]:
    try:
        question, answer = (float(part) for part in text.split(","))
        valid = WEIGHT.has(question, float) and WEIGHT.has(answer, float)
    except (AttributeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(
            f"targets.loss_tokens = {text!r}, expected 'all', 'answer' or two weights 'QUESTION,ANSWER' from 0 to "
            f"{WEIGHT.most:g}"
        )
    return question, answer


def _check_url(url: str) -> None:
    """Refuses what is not an address, and one that contains a secret: addresses are logged."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1)
    except ValueError:
        usable = False
    if not usable or any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError("endpoint.base_url is not an address; expected one like 'http://localhost:8000/v1'")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "endpoint.base_url contains a user, a password or a query; expected one like 'http://localhost:8000/v1', "
            "and the key in an environment variable (endpoint.key_variable)"
        )
