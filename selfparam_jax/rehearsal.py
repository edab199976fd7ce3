"""Sentences of earlier injections that a later one goes over again, so that it does not unlearn them.

Kept are the ids of some training pairs and the teacher's states of their loss tokens, as they were when the context
was at hand: it is not needed again. Per loss token that is D numbers.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np

from selfparam_jax.contexts import Context, QAPair
from selfparam_jax.files import read_lines, replacing, write_lines
from selfparam_jax.generate import Sampling, generate
from selfparam_jax.model import Decoder
from selfparam_jax.pairs import parse_pairs
from selfparam_jax.prompts import Prompt
from selfparam_jax.targets import Sentence, TargetConfig, qa_sentences, turns
from selfparam_jax.trainer import Teacher

IMAGINED_TOKENS = 48


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """Sentences, and the teacher's states of all their loss tokens in order, [tokens, D]."""

    sentences: tuple[Sentence, ...]
    states: np.ndarray


def keep_rehearsal(
    directory: pathlib.Path,
    sentences: Sequence[Sentence],
    first_slots: np.ndarray,
    teacher: Teacher,
    count: int,
    seed: int,
) -> None:
    """Keeps up to `count` pairs of an injection, drawn by the seed, in a directory; states.npy is written last."""
    pairs = [i for i, sentence in enumerate(sentences) if sentence.kind == "qa" and sentence.loss_tokens]
    chosen = sorted(np.random.default_rng(seed).permutation(pairs)[:count].tolist())
    slots = [int(first_slots[i]) + n for i in chosen for n in range(len(sentences[i].loss_tokens))]
    directory.mkdir(parents=True, exist_ok=True)
    fields = ("ids", "weights", "supervision", "record")
    write_lines(
        directory / "sentences.jsonl", ({name: getattr(sentences[i], name) for name in fields} for i in chosen)
    )
    states = np.asarray(teacher.take_all(np.asarray(slots, np.int64)), np.float32)
    with replacing(directory / "states.npy") as temporary, temporary.open("wb") as file:
        np.save(file, states, allow_pickle=False)


def read_rehearsal(directories: Sequence[pathlib.Path], weight: float) -> Rehearsal | None:
    """All that is kept in some directories, its losses times `weight`; None if that is nothing."""
    sentences, states = [], []
    for directory in directories:
        for line in read_lines(directory / "sentences.jsonl"):
            weights = tuple(weight * value for value in line["weights"])
            supervision = tuple(weight * value for value in line["supervision"])
            record = {**line["record"], "kind": "rehearsal"}
            ids = tuple(line["ids"])
            sentences.append(Sentence("rehearsal", None, ids, weights, None, record, supervision))
        states.append(np.load(directory / "states.npy", allow_pickle=False))
    return Rehearsal(tuple(sentences), np.concatenate(states)) if sentences else None


def taking_turns(rehearsal: Rehearsal, per_epoch: int, epochs: int, seed: int) -> Rehearsal:
    """The same with `per_epoch` of the sentences due in every epoch, each once before any comes again."""
    due = turns(len(rehearsal.sentences), per_epoch, epochs)
    order = np.random.default_rng(seed).permutation(len(due))
    sentences = list(rehearsal.sentences)
    for place, i in enumerate(order):
        sentences[i] = dataclasses.replace(sentences[i], epochs=due[place])
    return Rehearsal(tuple(sentences), rehearsal.states)


def joined(parts: Sequence[Rehearsal]) -> Rehearsal | None:
    """All sentences of some rehearsals with their states; None of none."""
    if not parts:
        return None
    sentences = tuple(sentence for part in parts for sentence in part.sentences)
    return Rehearsal(sentences, np.concatenate([part.states for part in parts]))


def imagine_pairs(model: Decoder, variables: dict, prompt: Prompt, count: int, seed: int) -> list[QAPair]:
    """Pairs that a model says of its own accord when asked to go on with "Question:": what it remembers.

    Up to `count` different ones; fewer if it repeats itself or does not keep to the form.

    Raises:
      ValueError: a prompt format that a text cannot go on with.
    """
    opening = prompt.format.question.split("{question}")[0].rstrip()
    if prompt.format.chat or not opening:
        raise ValueError(
            f"prompt = {prompt.format.name!r}: pairs can only be imagined in a text format; use 'plain' or 'worked', "
            "or set sequential.imagined_per_epoch=0"
        )
    rows = [prompt.encode(opening)] * count
    made = generate(
        model, variables, prompt.head, rows, IMAGINED_TOKENS, prompt.end_ids, sampling=Sampling(1.0, 0.95), seed=seed
    )
    found = {}
    for ids in made:
        pairs = parse_pairs(opening + prompt.decode(ids).replace("\n", "\n\n"), complete=False)
        found |= dict.fromkeys(pairs[:1])
    return list(found)


def imagined_sentences(
    pairs: Sequence[QAPair], prompt: Prompt, config: TargetConfig, per_epoch: int, epochs: int
) -> tuple[Sentence, ...]:
    """Pairs as target sentences without a context, taking turns; no supervision: the model is to stay as it is."""
    plain = dataclasses.replace(config, qa_per_context=0, answer_supervision=0.0, qa_weight=1.0)
    sentences = qa_sentences([Context("imagined", "", "", (), tuple(pairs))], prompt, plain)
    due = turns(len(sentences), per_epoch, epochs)
    return tuple(
        dataclasses.replace(
            sentence, kind="rehearsal", context=None, epochs=of_one, record={**sentence.record, "kind": "rehearsal"}
        )
        for sentence, of_one in zip(sentences, due, strict=True)
    )
