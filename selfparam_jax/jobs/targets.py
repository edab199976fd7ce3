"""Pairs written into a file without training, and a sample of them to read."""

import collections
import dataclasses
import os
import pathlib

from ml_collections import ConfigDict

from selfparam_jax.data.prompts import Prompt
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.distributed.files import refuse_other_than_file
from selfparam_jax.jobs.inputs import check_lengths, read_documents, start_backend
from selfparam_jax.jobs.lock import PairsLock
from selfparam_jax.jobs.passages import with_passages
from selfparam_jax.jobs.settings import Settings, read_settings
from selfparam_jax.jobs.synthesis import write_missing_pairs
from selfparam_jax.reports.written_pairs import inspect_pairs
from selfparam_jax.targets.filter_pairs import filter_pairs
from selfparam_jax.targets.write_pairs import (
    describe_written,
    lost_pairs,
    read_written,
    warn_of_unfinished,
    written_about,
)
from selfparam_jax.targets.writers import check_writer
from selfparam_jax.training.other_teacher import named_teacher


def _read(config: ConfigDict) -> Settings:
    """The settings of a batch job; the file that is written is not read as another's."""
    settings = read_settings(config)
    targets = settings.targets
    if targets.generator in ("none", "auto"):  # documents with pairs get some, too
        targets = dataclasses.replace(targets, generator="grounded")
    generator = dataclasses.replace(settings.generator, file="")
    return dataclasses.replace(settings, job="batch", targets=targets, generator=generator)


def write_targets(config: ConfigDict, path: str | pathlib.Path) -> dict:
    """Writes pairs about the configured documents into a file, without training; continues what is in it.

    Returns:
      counts: "contexts", and of the pairs those of each reason (`filter_pairs.REASONS`), "written" being all; where
        rules made them also the "sentences" of the documents, and how many of these are "covered" by a question.

    Raises:
      ValueError, OSError: input that cannot be used; another process writes into the file.
    """
    if read_settings(config).targets.generator == "none":
        raise ValueError(
            "targets.generator = 'none', so nobody would write; leave it at auto, or set grounded, local or endpoint"
        )
    settings = _read(config)
    if os.path.isdir(path):
        raise ValueError(f"{path} is a directory, expected a file; name one in it, such as {path}/pairs.jsonl")
    refuse_other_than_file(pathlib.Path(path))
    start_backend(settings.compilation_cache)
    with PairsLock(path) as lock:
        if os.path.exists(path) and os.path.getsize(path):
            read_written(path)  # another file is refused before anything is loaded
        return _write(settings, pathlib.Path(path), lock)


def _write(settings: Settings, path: pathlib.Path, lock: PairsLock) -> dict:
    mesh = meshes.make_mesh(config=settings.mesh)
    _, documents, load = read_documents(settings, mesh)
    recipe = settings.recipe.fit_to(mesh)
    documents = with_passages(documents, recipe, load)
    needed = settings.targets.generator == "local" or settings.generator.teacher_scores
    model = load() if needed else None
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids) if model else None
    if model:
        check_lengths(model, prompt, documents)
    check_writer(recipe.generator, model, recipe.endpoint)
    teacher = named_teacher(settings.teacher, model) if model and settings.teacher.model else None
    path.parent.mkdir(parents=True, exist_ok=True)
    lock.acquire()
    write_missing_pairs(documents, recipe, path, model, prompt, teacher)
    written = read_written(path)
    made = describe_written(documents, path)
    counts = collections.Counter(contexts=len(documents))
    if made:
        counts.update({name: sum(each[name] for each in made) for name in ("sentences", "covered")})
    for document in documents:
        counts.update(filter_pairs(written_about(document, written), document.qa_pairs, recipe.generator)[1])
    if not counts["kept"]:
        why = lost_pairs(documents, written, recipe.generator) or "no reply held a pair"
        raise ValueError(
            f"{path}: none of {counts['written']} written pairs is used: {why}. They are kept in the file: change "
            "the setting, which asks for nothing again; or, to have others written, remove the file or name another"
        )
    return dict(counts)


def inspect_targets(config: ConfigDict, path: str | pathlib.Path, count: int) -> str:
    """A readable sample of a pairs file: up to `count` pairs per configured document, with scores and reasons."""
    settings = _read(config)
    mesh = meshes.make_mesh(config=settings.mesh)
    _, documents, load = read_documents(settings, mesh)
    documents = with_passages(documents, settings.recipe, load)
    written = read_written(path)
    warn_of_unfinished(path)
    return inspect_pairs(documents, written, settings.recipe.generator, count, settings.seed)
