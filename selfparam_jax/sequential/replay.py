"""Sentences of earlier injections that a later one goes over again, so that the model does not unlearn them.

Stored are the ids of some training pairs and the teacher's states of their loss tokens, from the time when the
document was there to read: it is not needed again. Per loss token that is D numbers.
"""

import dataclasses
import pathlib
from collections.abc import Sequence, Set

import numpy as np

from selfparam_jax.data.documents import Document, QAPair
from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed.files import open_array, read_lines, replacing, write_array, write_lines
from selfparam_jax.inference.decoding import Sampling, generate
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.targets.config import TargetConfig
from selfparam_jax.targets.dates import split_date
from selfparam_jax.targets.formats.forms import turns
from selfparam_jax.targets.kinds import qa_sentences
from selfparam_jax.targets.parse_pairs import parse_pairs
from selfparam_jax.targets.sentences import Sentence, loss_tokens
from selfparam_jax.training.inject import Replay
from selfparam_jax.training.teacher import Teacher

GENERATED_TOKENS = 48


def keep_replay(
    directory: pathlib.Path,
    sentences: Sequence[Sentence],
    first_slots: np.ndarray,
    teacher: Teacher,
    count: int,
    seed: int,
) -> None:
    """Keeps up to `count` pairs of an injection, drawn by the seed, in a directory; states.npy is written last.

    Of pairs that name their date (`targets.dated`) as many are kept besides, those of the drawn facts first: when a
    later document changes a fact, only these are replayed.

    Args:
      directory: where sentences.jsonl and states.npy are written.
      sentences, first_slots, teacher: of the injection, as `inject.read_teacher` gives them.
      count: pairs at most.
      seed: decides which.
    """
    pairs = [i for i, sentence in enumerate(sentences) if sentence.kind == "qa" and sentence.loss_tokens]
    asked = {i: [split_date(question) for question in _questions(sentences[i].record)] for i in pairs}
    dated = {i for i in pairs if all(date for date, _ in asked[i])}
    order = np.random.default_rng(seed).permutation(pairs).tolist()
    drawn = [i for i in order if i not in dated][:count]
    facts = {question for i in drawn for date, question in asked[i] if not date}
    beside = sorted((i for i in order if i in dated), key=lambda i: facts.isdisjoint(q for _, q in asked[i]))
    chosen = sorted(drawn + beside[:count])
    slots = [int(first_slots[i]) + n for i in chosen for n in range(len(sentences[i].loss_tokens))]
    directory.mkdir(parents=True, exist_ok=True)
    fields = ("ids", "weights", "supervision", "record", "before")
    write_lines(
        directory / "sentences.jsonl", ({name: getattr(sentences[i], name) for name in fields} for i in chosen)
    )
    states = np.asarray(teacher.take_all(np.asarray(slots, np.int64)), np.float32)
    said = (directory / "sentences.jsonl").read_bytes()
    with replacing(directory / "states.npy") as temporary:
        write_array(temporary, states, said)


def _questions(record: dict) -> list[str]:
    """The questions of a pair's record: one, or those of a conversation."""
    return record.get("questions") or [record["question"]]


def read_replay(directories: Sequence[pathlib.Path], weight: float, stale: Sequence[Set[str]] = ()) -> Replay | None:
    """All that is kept in some directories, its losses times `weight`; None if that is nothing.

    Args:
      directories: where injections are kept.
      weight: factor of their losses.
      stale: for each directory the questions to which there is a newer answer; without a date they are left out. ()
        leaves out none.

    Raises:
      ValueError: a file is damaged.
    """
    sentences, states = [], []
    for place, directory in enumerate(directories):
        out_of_date = stale[place] if stale else ()
        kept = []
        for line in read_lines(directory / "sentences.jsonl"):
            current = not out_of_date or out_of_date.isdisjoint(_questions(line["record"]))
            kept += [current] * len(loss_tokens(line["weights"], line["supervision"]))
            if not current:
                continue
            weights = tuple(weight * value for value in line["weights"])
            supervision = tuple(weight * value for value in line["supervision"])
            record = {**line["record"], "kind": "replay"}
            ids = tuple(line["ids"])
            before = line.get("before")  # a file of an earlier version has none
            before = None if before is None else tuple(before)
            sentences.append(Sentence("replay", None, ids, weights, None, record, supervision, before=before))
        try:
            stored = open_array(directory / "states.npy", (directory / "sentences.jsonl").read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{error}: what is replayed cannot be made again, the model that read it has changed since; restore "
                f"{directory} from a copy, or run the job in another directory"
            ) from error
        states.append(stored[kept])
    return Replay(tuple(sentences), np.concatenate(states)) if sentences else None


def take_turns(replay: Replay, per_epoch: int, epochs: int, seed: int) -> Replay:
    """The same with `per_epoch` of the sentences due in every epoch, each once before any comes again.

    Args:
      replay: sentences and their states.
      per_epoch: how many are due in an epoch.
      epochs: of the injection.
      seed: decides the order.

    Returns:
      the same sentences and states, with the epochs that each is due in.
    """
    due = turns(len(replay.sentences), per_epoch, epochs)
    order = np.random.default_rng(seed).permutation(len(due))
    sentences = list(replay.sentences)
    for place, i in enumerate(order):
        sentences[i] = dataclasses.replace(sentences[i], epochs=due[place])
    return Replay(tuple(sentences), replay.states)


def join_replays(parts: Sequence[Replay]) -> Replay | None:
    """All sentences of some replays with their states; None of none."""
    if not parts:
        return None
    sentences = tuple(sentence for part in parts for sentence in part.sentences)
    return Replay(sentences, np.concatenate([part.states for part in parts]))


def generate_replay_pairs(model: Decoder, variables: dict, prompt: Prompt, count: int, seed: int) -> list[QAPair]:
    """Pairs that a model generates by itself when it continues "Question:": what it remembers.

    Up to `count` different ones; fewer if it repeats itself or does not keep to the form.

    Args:
      model: applies the variables.
      variables: {'params'}.
      prompt: a text format.
      count: continuations that are sampled.
      seed: decides what is drawn.

    Returns:
      different pairs, in the order of the draws.

    Raises:
      ValueError: a prompt format that a text cannot continue.
    """
    opening = prompt.format.question.split("{question}")[0].rstrip()
    if prompt.format.chat or not opening:
        raise ValueError(
            f"prompt = {prompt.format.name!r}: pairs can be generated in a text format only; use 'plain' or "
            "'few_shot', or set sequential.self_generated_per_epoch=0"
        )
    rows = [prompt.question_opening()] * count
    made = generate(
        model,
        variables,
        prompt.start_ids,
        rows,
        GENERATED_TOKENS,
        prompt.end_ids,
        sampling=Sampling(1.0, 0.95),
        seed=seed,
    )
    found = {}
    for ids in made:
        pairs = parse_pairs(opening + prompt.reply(ids)[0].replace("\n", "\n\n"), complete=False)
        found |= dict.fromkeys(pairs[:1])
    return list(found)


def self_generated_sentences(
    pairs: Sequence[QAPair], prompt: Prompt, config: TargetConfig, per_epoch: int, epochs: int
) -> tuple[Sentence, ...]:
    """Pairs as target sentences without a document, taking turns; no supervision: the model must not change on them.

    Args:
      pairs: of `generate_replay_pairs`.
      prompt: the format, bound to the tokenizer.
      config: the loss on their tokens.
      per_epoch, epochs: how many are due in each of how many epochs.

    Returns:
      sentences of kind "replay".
    """
    plain = dataclasses.replace(config, qa_per_context=0, answer_supervision=0.0, qa_weight=1.0)
    sentences = qa_sentences([Document("(not read)", id="self_generated", qa_pairs=tuple(pairs))], prompt, plain)
    due = turns(len(sentences), per_epoch, epochs)
    return tuple(
        dataclasses.replace(
            sentence, kind="replay", context=None, epochs=of_one, record={**sentence.record, "kind": "replay"}
        )
        for sentence, of_one in zip(sentences, due, strict=True)
    )
