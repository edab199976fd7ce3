"""Job `recommend`: dialogues into one set of weights, then titles at every test turn, scored as the benchmark does.

WORKDIR/replies/NAME.jsonl has the replies of each system as they arrive, so that a stopped job resumes at the next
turn; WORKDIR/scores/NAME has the benchmark's CSV files; recommend.md compares the systems.
"""

import json
import pathlib
import time
from collections.abc import Sequence

from absl import logging

from selfparam_jax.baselines.registry import RECOMMENDERS
from selfparam_jax.checkpoints.export import merge_for_export, save_model
from selfparam_jax.distributed import files
from selfparam_jax.distributed.processes import barrier, is_main_process
from selfparam_jax.evaluation.drift import NOT_MEASURED, measure_drift
from selfparam_jax.evaluation.recommendation import (
    Scores,
    Turn,
    read_entities,
    read_items,
    read_turns,
    score_replies,
    summarize_rows,
)
from selfparam_jax.evaluation.recommenders import RecommenderEntry, RecommendSetup
from selfparam_jax.evaluation.replies import Reply, read_replies
from selfparam_jax.evaluation.significance import compare_rows
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.batch import inject_documents
from selfparam_jax.jobs.evaluation import INJECTED
from selfparam_jax.jobs.inputs import Job, example_file
from selfparam_jax.jobs.progress import open_hooks
from selfparam_jax.jobs.results import complete, tokens_per_second
from selfparam_jax.jobs.settings import Settings
from selfparam_jax.jobs.workdir import refuse_remade
from selfparam_jax.reports.recommend import variant_name, write_scores
from selfparam_jax.training.finetune import fine_tune
from selfparam_jax.training.inject import Injection

BOUND = "recommend.json"  # digests of the files of a test


def run_recommend(job: Job, began: float) -> dict:
    """Runs the job; `began` is when, by `time.perf_counter`. Returns the content of results.json."""
    loaded = time.perf_counter()
    names, items, turns, found = read_test(job.settings, job.workdir)
    if not (bound := job.workdir / BOUND).exists():
        files.write_json(bound, found)
    entries = [entry for name, entry in RECOMMENDERS.items() if name in {*job.settings.recommend.systems, INJECTED}]
    replies: dict[str, list[Reply]] = {}
    drift: dict[str, dict] = {}
    seconds: dict[str, float] = {}
    injection = None
    # Those that are not trained come first: a prompt that is too long is found before hours of training.
    for entry in sorted(entries, key=lambda entry: entry.name == INJECTED or entry.sentences is not None):
        started = time.perf_counter()
        done = train_recommender(job, entry)
        injection = done if entry.name == INJECTED else injection
        drift[entry.name] = measure(job, done)
        trained = time.perf_counter()
        with announced(f"{entry.name}: recommending at {len(turns)} turns"):
            replies[entry.name] = collect_replies(job, entry, turns, done)
        seconds[entry.name] = time.perf_counter() - trained
        logging.info("%s: %d replies in %.0f s", entry.label, len(turns), time.perf_counter() - started)
    replies = {entry.name: replies[entry.name] for entry in entries}
    scores = {name: score_replies(found, turns, names, items) for name, found in replies.items()}
    for name, found in scores.items():
        write_scores(found, job.workdir / "scores" / name)
    if dtype := job.settings.export_dtype:
        with announced(f"merging the adapter into {job.workdir / 'merged'}"):
            merged = merge_for_export(job.model, [(injection.lora, job.recipe.lora.scale)])
            save_model(merged, job.model, job.workdir / "merged", dtype)
    results = {
        "job": job.settings.job,
        "model": job.model.name,
        "prompt": job.recipe.prompt,
        "matmul_precision": job.model.matmul_dtype,
        "num_contexts": len(job.documents),
        "num_questions": 0,
        "systems": [entry.record() for entry in entries],
        "scores": dict.fromkeys(replies),
        "drift": drift[INJECTED],
        "timing": {
            "total_s": 0.0,
            "load_s": loaded - began,
            "teacher_s": injection.teacher_s,
            "train_s": injection.train_s,
            "sentence_tokens_per_s": tokens_per_second(injection.train_s, injection.sentence_tokens),
        },
        "steps": injection.steps,
        "fill": injection.fill,
        "per_context": [],
        "recipe": job.record,
        "recommend": {
            "turns": len(turns),
            "targets": sum(len(turn.targets) for turn in turns),
            "seconds": seconds,
            "drift": drift,
            "scores": {name: summaries(found) for name, found in scores.items()},
            "strict": {name: summaries(found, strict=True) for name, found in scores.items()},
            "health": {name: found.health for name, found in scores.items()},
            "against_injected": {
                name: against(found, scores[INJECTED], turns) for name, found in scores.items() if name != INJECTED
            },
            "samples": samples(turns, replies),
        },
    }
    results["timing"]["total_s"] = time.perf_counter() - began  # the intervals included
    refuse_remade(job.workdir)
    return complete(job.workdir, results)


def read_test(settings: Settings, workdir: pathlib.Path | None) -> tuple[set[str], set[str], list[Turn], dict]:
    """Names of entities, names of titles, the test turns, and what the files' contents are known by.

    Args:
      settings: of the job.
      workdir: its work directory, which may be bound to the contents of such files; None if there is none.

    Raises:
      ValueError, OSError: another layout, or the files have changed since the job began.
    """
    config = settings.recommend
    paths = {
        name: example_file(getattr(config, name), f"recommend_{name}{suffix}")
        for name, suffix in (("records", ".jsonl"), ("entities", ".json"), ("item_ids", ".json"))
    }
    entities = read_entities(paths["entities"])
    items, turns = read_items(paths["item_ids"], entities), read_turns(paths["records"], entities)
    if config.turns > len(turns):
        raise ValueError(f"recommend.turns = {config.turns}, but there are {len(turns)} records; lower it")
    found = {name: files.digest(path) for name, path in paths.items()}
    bound = files.read_json(workdir / BOUND) if workdir is not None and (workdir / BOUND).exists() else found
    if different := [name for name, digest in bound.items() if digest != found.get(name)]:
        raise ValueError(
            f"{workdir} was begun with other {', '.join(different)} (recommend.{different[0]}); choose another "
            "directory, or restore the files"
        )
    return set(entities.values()), items, turns[: config.turns or len(turns)], found


def train_recommender(job: Job, entry: RecommenderEntry) -> Injection | None:
    """The adapter of a system; None for one that has none."""
    if entry.name == INJECTED:
        return inject_documents(job, job.documents, job.workdir)
    if entry.sentences is None:
        return None
    directory = job.workdir / entry.name
    directory.mkdir(parents=True, exist_ok=True)
    sentences = entry.sentences(job.documents, job.prompt, job.recipe, job.unrelated)
    with open_hooks(directory, entry.label) as hooks:
        return fine_tune(job.model, sentences, job.recipe, directory, hooks)


def measure(job: Job, done: Injection | None) -> dict:
    """Drift of a system's model from the base; that of the base itself is none."""
    if not job.general or done is None:
        return NOT_MEASURED
    decoder = job.model.decoder(lora_scale=job.recipe.lora.scale)
    return measure_drift(decoder, job.general_text, {**job.model.variables, "lora": done.lora})


def collect_replies(job: Job, entry: RecommenderEntry, turns: Sequence[Turn], done: Injection | None) -> list[Reply]:
    """A system's replies to all turns; those that WORKDIR/replies/NAME.jsonl has are not asked again.

    Args:
      job: model and settings.
      entry: the system.
      turns: where titles are to be recommended.
      done: its adapter; None for a system without one.

    Returns:
      a reply to every turn, in order.
    """
    path = job.workdir / "replies" / f"{entry.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = files.read_lines(path)
    files.write_lines(path, lines)  # without a line that a kill cut off
    answered = {line["index"] for line in lines}
    missing = [index for index in range(len(turns)) if index not in answered]
    if missing:
        setup = RecommendSetup(
            job.model,
            job.settings.recommend,
            job.settings.eval.batch_size,
            None if done is None else done.lora,
            job.recipe.lora.scale,
        )
        recommender = entry.make(setup)
        recommender.prepare(job.documents)
        for place, prompt, content in recommender.recommend([turns[index].dialogue for index in missing]):
            _append(path, {"index": missing[place], "prompt": prompt, "content": content})
        barrier(f"replies of {entry.name}")  # others read what the main process has written
    return read_replies(path)


def _append(path: pathlib.Path, record: dict) -> None:
    """Adds a line; it is on disk when this returns."""
    if is_main_process():
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def summaries(scores: Scores, strict: bool = False) -> dict:
    """Means, standard errors and half intervals as JSON: by variant, condition and column; NaN is None."""
    variants = scores.strict if strict else scores.rows
    return {
        variant_name(*variant): {
            condition: {
                column: [None if value != value else value for value in values] for column, values in columns.items()
            }
            for condition, columns in summarize_rows(rows).items()
        }
        for variant, rows in variants.items()
    }


def against(other: Scores, injected: Scores, turns: Sequence[Turn]) -> dict:
    """Paired tests of the injected model, less another system, by variant."""
    return {
        variant_name(*variant): compare_rows(other.rows[variant], rows, turns)
        for variant, rows in injected.rows.items()
    }


def samples(turns: Sequence[Turn], replies: dict[str, list[Reply]], count: int = 2) -> list[dict]:
    """Some turns with every system's reply, for people to read."""
    return [
        {
            "dialogue": turns[index].dialogue,
            "targets": list(turns[index].targets),
            "replies": {name: found[index].content for name, found in replies.items()},
        }
        for index in range(0, len(turns), max(1, -(-len(turns) // count)))
    ]
