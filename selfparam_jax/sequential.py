"""Contexts injected one after another into the same weights, and what is left of each after every one.

After every injection all contexts' questions are asked: row i of the matrices is the model after i injections (row 0:
the base), column j is context j. The model after i injections is `W0 + sum of i deltas`, computed in float32 and
rounded once, so merging often loses nothing; the deltas are the entries of a ledger.
"""

import dataclasses
import pathlib
import time
import zlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from selfparam_jax import evaluate, files, hub
from selfparam_jax.contexts import Context, QAPair, digest
from selfparam_jax.injection import Earlier, Run, choose_pairs, fits, inject, read_teacher, teacher_reader
from selfparam_jax.ledger import Ledger
from selfparam_jax.likelihood import question_log_likelihoods
from selfparam_jax.lora import merge_adapters
from selfparam_jax.rehearsal import (
    Rehearsal,
    imagine_pairs,
    imagined_sentences,
    joined,
    keep_rehearsal,
    read_rehearsal,
    taking_turns,
)
from selfparam_jax.teacher import read_without_context
from selfparam_jax.trainer import orthonormal_basis


@dataclasses.dataclass(frozen=True)
class Course:
    """One sequence of a run: its contexts, in order, and where it keeps its state."""

    number: int
    contexts: tuple[Context, ...]
    directory: pathlib.Path


def courses_of(run: Run) -> list[Course]:
    """The run's contexts cut into sequences."""
    length = run.settings.sequential.length
    return [
        Course(
            number,
            tuple(run.contexts[number * length : (number + 1) * length]),
            run.workdir / "sequences" / f"{number:03d}",
        )
        for number in range(run.settings.sequential.sequences)
    ]


def run_course(run: Run, course: Course) -> dict:
    """Injects and examines; goes on after the last finished step.

    Returns:
      {"rows": what `examine` gives after each number of injections, "entries": ids of the ledger's, "notes": time,
      steps and tokens of each injection}.
    """
    ledger = Ledger.open(course.directory / "ledger", run.base.fingerprint)
    if len(ledger.active()) < len(ledger.entries()):
        raise ValueError(
            f"{course.directory}: injections have been taken out of this ledger; choose another --workdir"
        )
    rows, model = [], None
    for done in range(len(course.contexts) + 1):
        path = course.directory / "examinations" / f"{done:03d}.json"
        if len(ledger.active()) < done:
            inject_next(run, course, done - 1, model or current_model(run, ledger.adapters()), ledger)
            model = None
        if not path.exists():
            model = current_model(run, ledger.adapters()[:done])
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, examine(run, model, course.contexts))
        rows.append(files.read_json(path))
        logging.info(
            "sequence %d, after %d of %d: F1 %s", course.number, done, len(course.contexts), _means(rows[-1], done)
        )
    directories = [injection_directory(course, index) for index in range(len(course.contexts))]
    notes = [files.read_json(directory / "injected.json") for directory in directories]
    return {"rows": rows, "entries": [entry.id for entry in ledger.active()], "notes": notes}


def _means(row: dict, done: int) -> str:
    f1 = np.asarray(row["f1"])
    parts = [
        f"all so far {f1[:done].mean():.3f}" if done else "",
        f"not yet {f1[done:].mean():.3f}" if done < len(f1) else "",
    ]
    return ", ".join(part for part in parts if part)


def injection_directory(course: Course, index: int) -> pathlib.Path:
    """Where one injection of a sequence works."""
    return course.directory / "injections" / f"{index:03d}"


def current_model(run: Run, adapters: Sequence[tuple[dict, float]]) -> hub.Pretrained:
    """The base with some adapters merged, named by them."""
    if not adapters:
        return run.base
    params = merge_adapters(run.base.params, adapters)
    return dataclasses.replace(run.base, params=params)


def inject_next(run: Run, course: Course, index: int, before: hub.Pretrained, ledger: Ledger) -> None:
    """The next context into the model as it stands; its delta becomes the ledger's next entry."""
    began = time.perf_counter()
    context, directory = course.contexts[index], injection_directory(course, index)
    active = ledger.active()
    # Hidden states are kept by the name of the parameters that made them.
    name = f"{run.base.fingerprint}+{active[-1].id}" if active else run.base.fingerprint
    seed = zlib.crc32(f"{run.settings.seed} {course.number} {index}".encode()) >> 1
    settings = dataclasses.replace(run.settings, seed=seed, train=dataclasses.replace(run.settings.train, seed=seed))
    now = dataclasses.replace(run, base=dataclasses.replace(before, fingerprint=name), settings=settings)
    earlier = gather_earlier(now, run.base, course, index, ledger)
    label = f"{course.number + 1}.{index + 1}/{len(course.contexts)} {context.id}"
    injection = inject(now, [context], directory, label, earlier)
    config = run.settings.sequential
    if config.rehearsal_pairs and not (directory / "rehearsal" / "states.npy").exists():
        chosen = choose_pairs(now, [context], directory)
        sentences, first_slots, signal = read_teacher(now, chosen, directory, earlier)
        keep_rehearsal(directory / "rehearsal", sentences, first_slots, signal, config.rehearsal_pairs, seed)
    note = {"seconds": time.perf_counter() - began, "steps": injection.steps, "fill": injection.fill}
    note |= {"teacher_s": injection.teacher_s, "train_s": injection.train_s}
    files.write_json(directory / "injected.json", note | {"sentence_tokens": injection.sentence_tokens})
    ledger.append(
        context.id, digest(context), files.digest(directory / "targets.jsonl"), run.recipe, injection.lora,
        run.settings.lora.scale,
    )  # fmt: skip


def gather_earlier(now: Run, original: hub.Pretrained, course: Course, index: int, ledger: Ledger) -> Earlier:
    """What the configured remedies take from the injections before."""
    config, settings = now.settings.sequential, now.settings
    epochs = settings.train.epochs
    again = []
    if config.rehearsal_per_epoch and index:
        kept = [injection_directory(course, i) / "rehearsal" for i in range(index)]
        if rehearsal := read_rehearsal(kept, config.rehearsal_weight):
            again.append(taking_turns(rehearsal, config.rehearsal_per_epoch, epochs, settings.seed))
    if config.imagined_per_epoch and index:
        count = config.imagined_per_epoch * epochs
        path = injection_directory(course, index) / "imagined.jsonl"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pairs = imagine_pairs(now.teacher, {"params": now.base.params}, now.prompt, count, settings.seed)
            files.write_lines(path, map(dataclasses.asdict, pairs))
        pairs = [QAPair(**line) for line in files.read_lines(path)]
        fitting = [pair for pair in pairs if fits(now, pair)]
        imagined = imagined_sentences(fitting, now.prompt, settings.targets, config.imagined_per_epoch, epochs)
        if imagined:  # read by the model as it stands, whoever teaches the rest: it is to stay as it is on them
            again.append(Rehearsal(imagined, read_without_context(teacher_reader(now), imagined)))
    basis = None
    if config.orthogonal and index:
        basis = orthonormal_basis(
            [lora for lora, _ in ledger.adapters()], settings.lora.rank * (len(course.contexts) - 1)
        )
    teaches = original if config.teacher == "original" else None
    return Earlier(teaches, joined(again), basis)


def adapters_of(run: Run, course: Course) -> list[tuple[dict, float]]:
    """What a course's ledger holds, with scales."""
    return Ledger.open(course.directory / "ledger", run.base.fingerprint).adapters()


def compare_choices(run: Run, course: Course, before: Sequence[str], after: Sequence[str]) -> dict:
    """What two choices of a ledger's entries know, and how far they are from the base.

    Args:
      before, after: ids of entries.

    Returns:
      "contexts": per context its name, "f1" and "log_likelihood" as [before, after]; "kl": [before, after].
    """
    ledger = Ledger.open(course.directory / "ledger", run.base.fingerprint)
    found = [examine(run, current_model(run, ledger.adapters(ids)), course.contexts) for ids in (before, after)]
    pairs = {score: list(zip(*(each[score] for each in found), strict=True)) for score in ("f1", "log_likelihood")}
    contexts = [
        {"context": context.id, **{score: list(values[n]) for score, values in pairs.items()}}
        for n, context in enumerate(course.contexts)
    ]
    return {"contexts": contexts, "kl": [each["drift"]["kl"] for each in found]}


def examine(run: Run, model: hub.Pretrained, contexts: Sequence[Context]) -> dict:
    """All questions of all contexts, without context.

    Returns:
      "f1" and "log_likelihood" (of the first gold answer, mean per token), a mean per context or None where there
      is no question; "answers" (`evaluate.answer_questions`); "drift" from the base; "seconds" that it took.
    """
    began = time.perf_counter()
    variables = {"params": model.params}
    answers = evaluate.answer_questions(
        run.teacher, variables, run.prompt, contexts, with_context=False, batch_size=run.settings.eval_batch
    )
    likelihoods = question_log_likelihoods(teacher_reader(run, model), run.prompt, contexts)
    drift = {"perplexity_before": None, "perplexity_after": None, "kl": None}
    if run.general:
        drift = evaluate.measure_drift(run.teacher, run.general_text, variables)
    return {
        "f1": [_mean([answer["f1"] for answer in group]) for group in answers],
        "log_likelihood": [_mean(group) for group in likelihoods],
        "answers": answers,
        "drift": drift,
        "seconds": time.perf_counter() - began,
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def summarize_matrix(matrix: np.ndarray) -> dict:
    """What a matrix of scores says, [N + 1, N]: row i after i injections, column j context j.

    Returns:
      "just_injected": mean of each context's score right after its injection; "final": mean after the last one;
      "retention": their ratio; "forgetting": mean over all but the last context of its best score from its injection
      on, minus its final one (Chaudhry et al. 2018); "backward_transfer": mean over them of the final score minus the
      one right after injection (Lopez-Paz and Ranzato 2017); "before": mean of each context's score just before its
      injection; "curves": per number of injections the means just injected, all so far, not yet injected.
    """
    count = matrix.shape[1]
    just = np.asarray([matrix[j + 1, j] for j in range(count)])
    final, early = matrix[-1], range(count - 1)
    drops = [matrix[j + 1 :, j].max() - final[j] for j in early]
    return {
        "just_injected": float(just.mean()),
        "final": float(final.mean()),
        "retention": float(final.mean() / just.mean()) if just.mean() > 0 else None,
        "forgetting": float(np.mean(drops)) if drops else 0.0,
        "backward_transfer": float(np.mean([final[j] - just[j] for j in early])) if count > 1 else 0.0,
        "before": float(np.mean([matrix[j, j] for j in range(count)])),
        "curves": {
            "just_injected": [None, *map(float, just)],
            "all_so_far": [None, *(float(matrix[i, :i].mean()) for i in range(1, count + 1))],
            "not_yet": [*(float(matrix[i, i:].mean()) for i in range(count)), None],
        },
    }


def summarize_courses(done: Sequence[dict]) -> dict:
    """What results.json says of all sequences.

    Args:
      done: what `run_course` gives.

    Returns:
      per score ("f1", "log_likelihood") the matrices and the means of `summarize_matrix` over sequences; drift per
      number of injections; seconds per injection.
    """
    made: dict = {"entries": [course["entries"] for course in done]}
    for score in ("f1", "log_likelihood"):
        matrices = [np.asarray([row[score] for row in course["rows"]], np.float64) for course in done]
        summaries = [summarize_matrix(matrix) for matrix in matrices]
        names = ("just_injected", "final", "retention", "forgetting", "backward_transfer", "before")
        made[score] = {
            "matrices": [matrix.tolist() for matrix in matrices],
            "sequences": [{name: summary[name] for name in names} for summary in summaries],
            "curves": [summary["curves"] for summary in summaries],
            **{name: _mean_known([summary[name] for summary in summaries]) for name in names},
        }
    for name in ("perplexity_after", "kl"):
        made[name] = [[row["drift"][name] for row in course["rows"]] for course in done]
    made["seconds"] = [[note["seconds"] for note in course["notes"]] for course in done]
    return made


def _mean_known(values: Sequence[float | None]) -> float | None:
    return None if None in values else float(np.mean(values))
