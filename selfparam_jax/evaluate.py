"""Question answering scores, and how far a model has drifted on text that has nothing to do with the contexts."""

import collections
import dataclasses
import re
import string
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax.contexts import Context
from selfparam_jax.generate import generate
from selfparam_jax.model import Decoder, head_weight
from selfparam_jax.objective import Signal, chunked_loss
from selfparam_jax.packing import LossPositions, Piece, Rows, fill_rows, first_fit_decreasing, loss_positions
from selfparam_jax.prefix import read_prefixes
from selfparam_jax.processes import progressed
from selfparam_jax.prompts import Prompt

PAPER_TOKENS = 10  # the paper's decoding: this many new tokens, no stop
SHORT_TOKENS = 24  # the longest answer in `short` decoding


def normalize(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, gold: str) -> float:
    """SQuAD's token F1 of normalised texts; two empty texts agree."""
    predicted, wanted = normalize(prediction).split(), normalize(gold).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((collections.Counter(predicted) & collections.Counter(wanted)).values())
    return 2.0 * common / (len(predicted) + len(wanted))


def exact_match(prediction: str, gold: str) -> float:
    """1.0 if the normalised texts are equal."""
    return float(normalize(prediction) == normalize(gold))


def contains(prediction: str, gold: str) -> float:
    """1.0 if the normalised gold answer stands in the prediction as whole words."""
    return float(f" {normalize(gold)} " in f" {normalize(prediction)} ")


def best(metric: Callable[[str, str], float], prediction: str, golds: Sequence[str]) -> float:
    """The metric against the gold answer that suits it best."""
    return max(metric(prediction, gold) for gold in golds)


def bootstrap_interval(groups: Sequence[Sequence[float]], seed: int = 0, samples: int = 2000) -> list[float]:
    """95 % percentile interval of the mean of group means, resampling contexts and, in each, questions."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(group, np.float64) for group in groups]
    means = np.empty(samples)
    for n in range(samples):
        chosen = rng.integers(len(arrays), size=len(arrays))
        means[n] = np.mean([rng.choice(arrays[i], len(arrays[i])).mean() for i in chosen])
    return [float(bound) for bound in np.percentile(means, [2.5, 97.5])]


def answer_questions(
    model: Decoder,
    variables: dict,
    prompt: Prompt,
    contexts: Sequence[Context],
    with_context: bool,
    batch_size: int = 16,
) -> list[list[dict]]:
    """Answers every question of every context.

    One greedy run gives both decodings: `short` is cut at the first stop, `paper` is the first 10 tokens.

    Returns:
      per context and question: {"answer", "f1", "em", "contains", "paper", "f1_paper"}.
    """
    asked = [(c, q) for c, context in enumerate(contexts) for q in context.questions]
    if with_context:
        groups = [[(c, q) for q in context.questions] for c, context in enumerate(contexts) if context.questions]
        texts = [prompt.context_prefix(contexts[group[0][0]].context) for group in groups]
    else:
        groups, texts = [asked] if asked else [], [prompt.head] if asked else []
    results: list[list[dict]] = [[] for _ in contexts]
    # A context is read once for all its questions, and what all contexts begin with once for all.
    for prefix, members in zip(read_prefixes(model, variables, texts), groups, strict=True):
        prompts = [prompt.question(question.question) for _, question in members]
        made = generate(model, variables, prefix, prompts, SHORT_TOKENS, prompt.stop_ids, PAPER_TOKENS, batch_size)
        for (c, question), ids in zip(members, made, strict=True):
            results[c].append(score_answer(prompt, ids, question.answers))
    return results


def predictions(contexts: Sequence[Context], systems: dict[str, list[list[dict]]]) -> list[dict]:
    """The records of predictions.jsonl: every question with the answers of each system (`answer_questions`)."""
    records = []
    for c, context in enumerate(contexts):
        for q, question in enumerate(context.questions):
            answers = {system: results[c][q] for system, results in systems.items()}
            golds = list(question.answers)
            records.append({"context": context.id, "question": question.question, "answers": golds, **answers})
    return records


def short_answer(prompt: Prompt, ids: Sequence[int]) -> str:
    """The text before the first line break or end of turn."""
    stops = set(prompt.stop_ids)
    end = next((n for n, token in enumerate(ids) if token in stops), len(ids))
    # The stopping token may begin with text ("town.\\n" as one token): keep what stands before the break.
    return prompt.decode(ids[: end + 1]).split("\n")[0].strip() if end < len(ids) else prompt.decode(ids).strip()


def score_answer(prompt: Prompt, ids: Sequence[int], golds: Sequence[str]) -> dict:
    """Both decodings of one generated answer, scored against its gold answers."""
    short = short_answer(prompt, ids)
    ended = next((n for n, token in enumerate(ids) if token in prompt.end_ids), len(ids))
    paper = prompt.decode(ids[: min(PAPER_TOKENS, ended)]).strip()
    return {
        "answer": short,
        "f1": best(token_f1, short, golds),
        "em": best(exact_match, short, golds),
        "contains": best(contains, short, golds),
        "paper": paper,
        "f1_paper": best(token_f1, paper, golds),
    }


def summarize(results: Sequence[Sequence[dict]]) -> dict | None:
    """Mean over a context's questions, then over contexts; None if there is no question at all."""
    groups = [group for group in results if group]
    if not groups:
        return None
    scores = {
        name: float(np.mean([np.mean([answer[name] for answer in group]) for group in groups]))
        for name in ("f1", "em", "contains", "f1_paper")
    }
    scores["f1_ci95"] = bootstrap_interval([[answer["f1"] for answer in group] for group in groups])
    return scores


def states_at(model: Decoder, variables: dict, input_ids, positions, segments, index) -> jax.Array:
    """Final hidden states [1, N, D] of rows [B, T], at `index` [1, N] into the rows laid end to end."""
    hidden, _ = model.apply(variables, input_ids, positions, segments)
    return jnp.take_along_axis(hidden.reshape(1, -1, hidden.shape[-1]), index[:, :, None], axis=1)


read_states = jax.jit(states_at, static_argnames="model")


@jax.jit
def _nll(states, head, signal):
    """(summed next-token loss, count) of states [1, N, D]."""
    return chunked_loss(states, head, signal)


@jax.jit
def _kl(before, after, head, signal):
    """Summed KL(before || after) of states [1, N, D]."""
    return chunked_loss(after, head, Signal(signal.used, teacher=before, weights=signal.supervision))[0]


def packed_texts(
    prompt: Prompt, texts: Sequence[str], row_length: int = 256, rows_per_call: int = 2
) -> Iterator[tuple[Rows, LossPositions]]:
    """Texts in packed rows, `rows_per_call` at a time, and where in them the next token is predicted.

    Every token after a text's first is predicted. Texts are cut to `row_length` tokens.

    Raises:
      ValueError: nothing is predicted.
    """
    pieces, slot = [], 0
    for text in texts:
        ids = (tuple(prompt.head) + prompt.text(text))[:row_length]
        predictors = tuple(range(len(prompt.head), len(ids) - 1))
        ones, zeros = (1.0,) * len(predictors), (0.0,) * len(predictors)
        slots = tuple(range(slot, slot + len(predictors)))
        pieces.append(Piece(ids, 0, predictors, zeros, ones, slots))
        slot += len(slots)
    if not slot:
        raise ValueError("got no text of two tokens or more, expected some to predict; give general text")
    assignment = first_fit_decreasing([len(piece.ids) for piece in pieces], row_length)
    assignment += [[]] * (-len(assignment) % rows_per_call)
    rows = fill_rows(pieces, assignment, row_length)
    for begin in range(0, len(assignment), rows_per_call):
        part = rows.take(slice(begin, begin + rows_per_call))
        yield part, loss_positions(part)


@dataclasses.dataclass(frozen=True)
class General:
    """General text as the base reads it, once for all models that are held against it.

    parts: arrays of packed rows, the signal of their next tokens, and the base's states at these positions.
    nll, count: summed next-token loss of the base, and the number of tokens.
    """

    parts: tuple[tuple, ...]
    nll: float
    count: float


def read_general(
    model: Decoder, base: dict, prompt: Prompt, texts: Sequence[str], row_length: int = 256, rows_per_call: int = 2
) -> General:
    """Reads texts as `packed_texts` gives them.

    Args:
      base: variables of the model before, {'params'} or {'params', 'lora'}.
    """
    parts, sums, head = [], np.zeros(2), head_weight(base["params"])
    for part, at in packed_texts(prompt, texts, row_length, rows_per_call):
        signal = Signal(at.used, targets=at.targets, supervision=at.supervision)
        arrays = (part.input_ids, part.positions, part.segments, at.index)
        states = read_states(model, base, *arrays)
        parts.append((arrays, signal, states))
        sums += np.asarray(_nll(states, head, signal), np.float64)
    return General(tuple(parts), *sums)


def measure_drift(model: Decoder, general: General, after: dict) -> dict:
    """Perplexity on general text before and after, and mean KL(before || after) per token.

    Args:
      general: how the base reads it.
      after: variables of the model after, with the same (frozen) head.

    Returns:
      {"perplexity_before", "perplexity_after", "kl", "tokens"}.
    """
    sums, head = np.zeros(2), head_weight(after["params"])
    for arrays, signal, before in general.parts:
        states = read_states(model, after, *arrays)
        sums += float(_nll(states, head, signal)[0]), float(_kl(before, states, head, signal))
        progressed()
    return {
        "perplexity_before": float(np.exp(general.nll / general.count)),
        "perplexity_after": float(np.exp(sums[0] / general.count)),
        "kl": float(sums[1] / general.count),
        "tokens": int(general.count),
    }
