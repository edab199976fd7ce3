"""A model as lm-evaluation-harness takes it: likelihoods of continuations and texts, and greedy or sampled answers.

Tokens are made as the harness's own `hf` model makes them (what BOS precedes, where a context ends, what is cut off
on the left, what ends an answer), so that its numbers and these agree. Needs the extra `eval`; no PyTorch.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data.chat_templates import render_conversation
from selfparam_jax.distributed.mesh import fetch, put_rows
from selfparam_jax.evaluation.drift import read_states
from selfparam_jax.inference.batches import Batch, Continuation, Variant
from selfparam_jax.inference.decoding import NotFiniteLogits, Sampling
from selfparam_jax.inference.prefix import round_up
from selfparam_jax.models.decoder import Head, apply_head, output_head

NEW_TOKENS = 256  # of an answer, where a task does not say; the harness's own default
CHUNK = 64  # tokens whose logits over the vocabulary are in memory at a time
LEAST_WIDTH = 32  # of a row
# What a task may ask of an answer beside its stops and its length.
SUPPORTED = {"do_sample", "temperature", "top_p"}


@jax.jit
def _score_tokens(states: jax.Array, head: Head, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of tokens [N] after states [1, N, D], and whether each is the likeliest; CHUNK divides N."""

    def score(part):
        state, target = part
        logits = apply_head(state, head)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=1), jnp.argmax(logits, axis=1) == target

    parts = states.reshape(-1, CHUNK, states.shape[-1]), targets.reshape(-1, CHUNK)
    found, greedy = lax.map(score, parts)
    return found.reshape(-1), greedy.reshape(-1)


def _bucket(count: int, least: int) -> int:
    """The smallest of `least`, twice, four times as much, ... that is at least `count`: few shapes, few programs."""
    while least < count:
        least *= 2
    return least


class HarnessModel(TemplateLM):
    """An `lm_eval.api.model.LM` over our decoder.

    `lm_eval.simple_evaluate(HarnessModel(model), tasks=[...])` works as with the harness's own models.
    """

    backend = "causal"

    def __init__(
        self,
        model: Model,
        lora: dict | None = None,
        lora_scale: float = 1.0,
        batch_size: int = 16,
        progress: Callable[[str, int], Callable[[int], Any]] = lambda label, total: lambda count: None,
    ):
        """Args:
        model: the base, or a merged model.
        lora: an adapter beside it; None for none.
        lora_scale: of the adapter.
        batch_size: rows that are read, or answers that are made, together.
        progress: called with a label and a number of requests before these are worked on; gives what is called with
          the number of those just finished.
        """
        super().__init__()
        variables = {**model.variables, **({} if lora is None else {"lora": lora})}
        decoder = model.decoder(**({} if lora is None else {"lora_scale": lora_scale}))
        self._variant = Variant(model.name, decoder, variables)
        self._model, self._progress = model, progress
        self.tokenizer, self.batch_size = model.tokenizer, batch_size

    # --- tokens ------------------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What is read before a text without a context: BOS, or EOS where there is no BOS.

        Raises:
          ValueError: the tokenizer has neither.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        raise ValueError(f"the tokenizer of {self._model.name} has neither BOS nor EOS, expected one; add it there")

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation that the model reads."""
        limit = self._model.config.max_position_embeddings
        return min(limit, resolve_max_length(self._model.hf_config, self.tokenizer, default=limit))

    @property
    def max_gen_toks(self) -> int:
        """The longest answer where a task does not say."""
        return NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in the harness's caches of requests."""
        return (self.tokenizer.name_or_path or self._model.name).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        """Ids of a text; with the special tokens that the tokenizer adds, unless the text begins with BOS itself."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return self.tokenizer.encode(string, **special)

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; without its system messages if the template refuses those."""
        options = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return render_conversation(self.tokenizer, chat_history, **options)
        except ValueError:
            turns = [message for message in chat_history if message["role"] != "system"]
            if len(turns) == len(chat_history):
                raise
            return render_conversation(self.tokenizer, turns, **options)

    # --- likelihoods -------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is what greedy decoding gives."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple], disable_tqdm: bool = False, **_
    ) -> list[tuple[float, bool]]:
        """The same of (key, context ids, continuation ids)."""
        texts = []
        for _key, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise ValueError(
                    f"a continuation has {len(continuation)} tokens, expected at most {self.max_length}, all that "
                    f"{self._model.name} reads; leave the task out"
                )
            texts.append((*context, *continuation)[-(self.max_length + 1) :])
        order = sorted(range(len(texts)), key=lambda place: (-len(texts[place]), texts[place]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(texts)
        finished = self._progress("likelihoods", len(texts))
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            counts = [len(requests[place][2]) for place in chosen]
            scored = self._score_batch([texts[place] for place in chosen], counts)
            for place, score in zip(chosen, scored, strict=True):
                found[place] = score
                if requests[place][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], score)
            finished(len(chosen))
        return found

    def _score_batch(self, texts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[tuple[float, bool]]:
        """Summed log-probability of the last `counts` tokens of each text, and whether all are the most likely."""
        mesh, decoder = self._model.mesh, self._variant.decoder
        shards = 1 if decoder.sharding is None else decoder.sharding.row_shards
        rows = round_up(self.batch_size, shards)
        width = min(_bucket(max(map(len, texts)) - 1, LEAST_WIDTH), self.max_length)
        ids, segments = np.zeros((2, rows, width), np.int32)
        index, targets = [], []
        for row, (text, count) in enumerate(zip(texts, counts, strict=True)):
            length = len(text) - 1  # the last token is only predicted
            ids[row, :length], segments[row, :length] = text[:-1], 1
            index += range(row * width + length - count, row * width + length)
            targets += text[-count:]
        room = _bucket(len(index), CHUNK)
        padded = [np.pad(np.asarray(each, np.int32), (0, room - len(index))) for each in (index, targets)]
        positions = np.broadcast_to(np.arange(width, dtype=np.int32), ids.shape)
        arrays = put_rows(mesh, (ids, positions, segments))
        states = read_states(decoder, self._variant.variables, *arrays, padded[0][None])
        log_probability, greedy = map(fetch, _score_tokens(states, self._head, padded[1]))
        if not np.isfinite(log_probability[: len(index)]).all():
            raise NotFiniteLogits(f"model {self._model.name!r}")
        ends = np.cumsum([0, *counts])
        return [
            (float(log_probability[begin:end].sum(dtype=np.float32)), bool(greedy[begin:end].all()))
            for begin, end in itertools.pairwise(ends)
        ]

    @functools.cached_property
    def _head(self) -> Head:
        return output_head(self._variant.variables["params"], self._variant.decoder.config)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows of the model's length; every token is predicted once."""
        windows, owners = [], []
        for place, request in enumerate(requests):
            (text,) = request.args
            cut = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            own = [(None, *make_disjoint_window(window)) for window in cut]
            windows += own
            owners += [place] * len(own)
        totals = [0.0] * len(requests)
        for place, (score, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[place] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    # --- answers -----------------------------------------------------------------------------------------

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, up to the first of its stops, the end of the text or its most tokens.

        Raises:
          ValueError: a task asks for something else than SUPPORTED, or for more tokens than the model reads.
        """
        asked = [self._wanted(*request.args) for request in requests]
        order = sorted(range(len(asked)), key=lambda place: (-len(asked[place][0].prompt), asked[place][0].prompt))
        answers = [""] * len(asked)
        finished = self._progress("answers", len(asked))
        for begin in range(0, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            made = self._make([asked[place] for place in chosen])
            for place, text in zip(chosen, made, strict=True):
                answers[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args, text)
            finished(len(chosen))
        return answers

    def _wanted(self, context: str, given: dict) -> tuple[Continuation, list[str]]:
        """What is to be made after a context, and the texts that end it."""
        settings = normalize_gen_kwargs(given, self.max_gen_toks)
        eos = self.tokenizer.decode(self.eot_token_id) if self.eot_token_id is not None else None
        until, new_tokens = handle_stop_sequences(settings.pop("until"), eos=eos), settings.pop("max_gen_toks")
        if unknown := sorted(settings.keys() - SUPPORTED):
            raise ValueError(
                f"a task sets {', '.join(unknown)} for its answers, expected only until, max_gen_toks, "
                f"{', '.join(sorted(SUPPORTED))}; leave the task out"
            )
        if new_tokens >= self.max_length:
            raise ValueError(
                f"a task asks for {new_tokens} new tokens, expected fewer than the {self.max_length} that "
                f"{self._model.name} reads; leave the task out"
            )
        special = {"add_special_tokens": False} if has_bos_prefix(context, self.tokenizer.bos_token) else {}
        prompt = self.tokenizer.encode(context, **special) or [self.prefix_token_id]
        prompt = tuple(prompt[-(self.max_length - new_tokens) :])
        sampling = None
        if settings.get("do_sample"):
            sampling = Sampling(settings.get("temperature") or 1.0, settings.get("top_p", 1.0))
        ends = {self.eot_token_id, *self._model.end_ids} - {None}
        return Continuation(prompt, new_tokens, tuple(sorted(ends)), sampling), until

    def _make(self, asked: Sequence[tuple[Continuation, list[str]]]) -> list[str]:
        """The answers of one batch."""
        wanted = [continuation for continuation, _ in asked]
        if any(each.sampling for each in wanted):  # rows that are drawn need numbers of their own
            wanted = [
                Continuation(each.prompt, each.new_tokens, each.stop_ids, each.sampling, number=number)
                for number, each in enumerate(wanted)
            ]
        batch = Batch(self._variant, wanted)
        made: list[list[int]] = [[] for _ in asked]
        while not all(batch.done):
            for row, tokens in enumerate(batch.advance()):
                made[row] += tokens
                if tokens and _contains(self.tokenizer.decode(made[row]), asked[row][1]):
                    batch.end(row)
        return [
            postprocess_generated_text(self.tokenizer.decode(ids, skip_special_tokens=True), until, None)
            for ids, (_, until) in zip(made, asked, strict=True)
        ]


def _contains(text: str, stops: Iterable[str]) -> bool:
    return any(stop and stop in text for stop in stops)
