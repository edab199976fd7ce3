"""The library's front door: a model and documents in, an adapter out, no work directory needed.

import selfparam_jax as sp

model = sp.load_model("smollm2-135m-instruct")
documents = sp.read_documents("my_documents")
adapter = sp.inject(model, documents, sp.Recipe(epochs=5))
adapter.ask("Who founded Quenbarrow?")
adapter.save("adapter")
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence

import jax

from selfparam_jax.baselines.registry import SYSTEMS, system_name
from selfparam_jax.checkpoints import peft
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.data import corpora
from selfparam_jax.data.chat_templates import conversation_ids
from selfparam_jax.data.documents import Document, digest_documents
from selfparam_jax.data.prompts import FORMATS, Prompt
from selfparam_jax.distributed import files
from selfparam_jax.distributed import mesh as meshes
from selfparam_jax.distributed.ranges import (
    LARGEST,
    Range,
    check_choice,
    check_list,
    check_number,
    check_path,
    check_type,
)
from selfparam_jax.evaluation import questions as asking
from selfparam_jax.evaluation.systems import Setup
from selfparam_jax.inference.decoding import answering, generate
from selfparam_jax.jobs import export
from selfparam_jax.jobs.ask import ANSWER_TOKENS
from selfparam_jax.jobs.inputs import check_lengths, example_documents, example_texts, read_start
from selfparam_jax.jobs.lock import WorkdirLock
from selfparam_jax.jobs.passages import join_answers, name_passages, scores_by_kind, with_passages
from selfparam_jax.jobs.progress import open_hooks
from selfparam_jax.jobs.reach import measure_reach
from selfparam_jax.jobs.synthesis import two_step_documents, write_missing_pairs
from selfparam_jax.jobs.workdir import changed_inputs, check_free, digest_inputs
from selfparam_jax.models.lora import merge_adapters
from selfparam_jax.targets.choose_pairs import choose_pairs
from selfparam_jax.targets.distractors import check_room
from selfparam_jax.training import inject as injection
from selfparam_jax.training.other_teacher import OtherTeacher, TeacherConfig, named_teacher
from selfparam_jax.training.recipe import Recipe

# Of arguments.
LIMIT = Range(1, 10**9, also={0: "all"})
TOKENS, BATCH = Range(1, 2**20), Range(1, 2**16)
SCALE = Range(-LARGEST, LARGEST)
BOUND = "documents.json"  # in a work directory of `inject`: which documents it is of


def read_documents(source: str | os.PathLike, limit: int = 0, ids: Sequence[str] = ()) -> list[Document]:
    """Reads documents with their questions and pairs.

    Args:
      source: a JSONL file, a file of another kind (text, Markdown, HTML, PDF, Word, PowerPoint, EPUB, notebooks,
        source code, conversations), a folder of these, a pattern ("notes/*.md"), SQuAD's layout, a data set by name,
        or "examples" (`jobs.settings.Settings.contexts` lists all).
      limit: keep only this many; 0 keeps all.
      ids: keep only these, in this order; () keeps all.

    Returns:
      the documents, in the order of the source.

    Raises:
      ValueError, OSError: no such source, or a record that cannot be used; the message names file and line.
      TypeError: an argument is of another type.
    """
    check_path("source", source, "a file, a folder, a pattern or a data set")
    check_number("limit", limit, LIMIT)
    ids = check_list("ids", ids, str, "a list of strings", "write ['ID', ...]")
    place, default = example_documents(os.fspath(source))
    return corpora.read_documents(place, limit or default, tuple(ids))


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What `inject` gives: the low-rank factors that hold the documents, and the model they belong to.

    Attributes:
      model: the base, untouched.
      lora: the factors, `layers/self_attn/q_proj/{a: [L, D, R], b: [L, R, F]}`, float32.
      scale: factor of `a @ b`.
      recipe: how it was trained; None for an adapter from elsewhere.
      documents: sha256 of every document in it, by id.

    Raises:
      TypeError: a field is of another type.
      ValueError: the factors are no tree of layers, or the scale is not finite.
    """

    model: Model
    lora: dict
    scale: float
    recipe: Recipe | None = None
    documents: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_model("model", self.model)
        expected, advice = "a tree {'layers': ...} of factors", "take that of inject or load_adapter"
        check_type("lora", self.lora, Mapping, expected, advice)
        layers = self.lora.get("layers")
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(f"lora: got a dict without layers, expected {expected}; {advice}")
        check_number("scale", self.scale, SCALE, float)
        _check_recipe(self.recipe)
        check_type("documents", self.documents, Mapping, "a dict of digests by id", "leave it out if unknown")

    @property
    def fingerprint(self) -> str:
        """The base's fingerprint."""
        return self.model.fingerprint

    def ask(self, question: str, prompt: str | None = None, max_new_tokens: int = ANSWER_TOKENS) -> str:
        """Answers a question, greedily, with nothing but the question in the prompt.

        Args:
          question: in plain words.
          prompt: a prompt format ("plain", "few_shot", "paper", "chat"); None: a conversation by the model's chat
            template, or the recipe's format for a model without one.
          max_new_tokens: the longest answer.

        Returns:
          the answer; "" if the model ends at once.

        Raises:
          ValueError: an unknown format, "chat" for a model whose chat template cannot be used for it, or a question
            that is empty, no text or too long for the model.
          TypeError: an argument is of another type.
        """
        _check_asked(question, prompt, max_new_tokens)
        variables = {**self.model.variables, "lora": self.lora}
        decoder = self.model.decoder(lora_scale=self.scale)
        return _answer(self, decoder, variables, question, prompt, max_new_tokens)

    def merge(self) -> "MergedModel":
        """The base with the adapter added to its weights, in float32, rounded once."""
        return MergedModel(self)

    def save(self, directory: str | os.PathLike) -> pathlib.Path:
        """Writes the adapter in PEFT's layout, as `selfparam export --format=peft` does; `load_adapter` reads it.

        The files are loaded again and compared with the adapter in memory; README.md beside them is a model card.

        Raises:
          ValueError: the directory holds something else, or the files do not give the adapter back.
          TypeError: the directory is no path.
        """
        return _export(self, "peft", directory)


@dataclasses.dataclass(frozen=True)
class MergedModel:
    """A base with an adapter in its weights.

    Attributes:
      adapter: what is merged.

    Raises:
      TypeError: it is no Adapter.
    """

    adapter: Adapter

    def __post_init__(self):
        _check_adapter("adapter", self.adapter)

    @functools.cached_property
    def params(self) -> dict:
        """The merged parameter tree, made at first use; `save` merges one kernel at a time and does not need it.

        Raises:
          ValueError: the base is in 8 bits; ask the adapter, or load what was saved.
        """
        adapter = self.adapter
        if adapter.model.int8:
            raise ValueError("a base in 8 bits is merged when it is saved; ask the adapter, or load the saved model")
        return merge_adapters(adapter.model.params, [(adapter.lora, adapter.scale)])

    @functools.cached_property
    def _model(self) -> Model:
        return dataclasses.replace(self.adapter.model, params=self.params)

    def ask(self, question: str, prompt: str | None = None, max_new_tokens: int = ANSWER_TOKENS) -> str:
        """Answers a question, as `Adapter.ask` does.

        Raises:
          ValueError: as `Adapter.ask`, or the base is in 8 bits; ask the adapter, or load what was saved.
          TypeError: an argument is of another type.
        """
        _check_asked(question, prompt, max_new_tokens)
        return _answer(self.adapter, self._model.decoder(), self._model.variables, question, prompt, max_new_tokens)

    def save(self, directory: str | os.PathLike, dtype: str | None = None, form: str = "hf") -> pathlib.Path:
        """Writes the model for other programs, as `selfparam export` does: by default in Hugging Face's layout.

        The files are loaded again and compared with the model in memory; README.md beside them is a model card.

        Args:
          directory: new or empty.
          dtype: of the weights in the files; None is the base's, or "float16" for GGUF.
          form: "hf": weights, config and tokenizer. "gguf": a file of llama.cpp.

        Returns:
          the directory.

        Raises:
          ValueError: the directory holds something else, or the files do not give the model back.
          TypeError: an argument is of another type.
        """
        check_type("form", form, str, "'hf' or 'gguf'", "write it as a string")
        if form == "peft":
            raise ValueError("form 'peft' is an adapter beside its base, expected 'hf' or 'gguf'; use Adapter.save")
        return _export(self.adapter, form, directory, dtype)


def _export(adapter: Adapter, form: str, directory: str | os.PathLike, dtype: str | None = None) -> pathlib.Path:
    """Writes an adapter in a format of `export.FORMATS`."""
    check_path("directory", directory, "a directory")
    extra = {"documents": adapter.documents, "recipe": adapter.recipe.record() if adapter.recipe else None}
    export.export(export.of_adapter(adapter.model, adapter.lora, adapter.scale, extra), form, directory, dtype)
    return pathlib.Path(directory)


def _answer(adapter: Adapter, decoder, variables: dict, question: str, form: str | None, max_new_tokens: int) -> str:
    """An answer of a model with the adapter beside it or merged; `form` as `Adapter.ask` has it."""
    model = adapter.model
    prompt = Prompt(form or (adapter.recipe.prompt if adapter.recipe else "plain"), model.tokenizer, model.end_ids)
    if form is None and model.has_chat_template:
        ids = conversation_ids(model.tokenizer, [{"role": "user", "content": question}])
        start_ids, rows = ids[:1], [ids[1:]]
    else:
        start_ids, rows = prompt.start_ids, [prompt.question(question)]
    asking.check_room(len(rows[0]), len(start_ids), max_new_tokens, model.config.max_position_embeddings)
    chat = form == "chat" or (form is None and model.has_chat_template)
    stops = prompt.end_ids if chat else prompt.stop_ids
    with answering(model.name):
        (made,) = generate(decoder, variables, start_ids, rows, max_new_tokens, stops)
    return prompt.reply(made)[0].strip() if chat else asking.short_answer(prompt, made)


def _check_asked(question: str, form: str | None, max_new_tokens: int) -> None:
    """Checks what `Adapter.ask` is given, before anything is computed."""
    check_type("question", question, str, "a question as a string", "ask one question at a time")
    asking.check_question(question)
    if form is not None:
        check_choice("prompt", form, FORMATS)
    check_number("max_new_tokens", max_new_tokens, TOKENS)


def _check_model(name: str, value: object) -> None:
    check_type(name, value, Model, "a Model", "load it with load_model")


def _check_adapter(name: str, value: object) -> None:
    check_type(name, value, Adapter, "an Adapter", "take that of inject or load_adapter")


def _check_recipe(value: object) -> None:
    check_type("recipe", value, Recipe | None, "a Recipe", "write Recipe(epochs=5), or leave it out")


def load_adapter(model: Model, directory: str | os.PathLike) -> Adapter:
    """Reads an adapter that `Adapter.save` or PEFT wrote.

    Args:
      model: the base that it belongs to.
      directory: with adapter_config.json and adapter_model.safetensors.

    Returns:
      the adapter; its recipe is not rebuilt.

    Raises:
      ValueError: a file is missing or damaged, the adapter is not a plain LoRA, or it belongs to another base.
      TypeError: an argument is of another type.
    """
    _check_model("model", model)
    check_path("directory", directory, "the directory of an adapter")
    lora, scale, record = peft.load_adapter(directory, model)
    documents = (record.get("extra") or {}).get("documents") or {}
    return Adapter(model, meshes.put_same(model.mesh, lora), scale, None, documents)


def inject(
    model: Model,
    documents: Sequence[Document | str],
    recipe: Recipe | None = None,
    *,
    unrelated: Sequence[str] | None = None,
    adapter: Adapter | str | os.PathLike | None = None,
    teacher: Model | str | os.PathLike | None = None,
    workdir: str | os.PathLike | None = None,
    progress: bool = True,
    on_step: Callable[[dict], None] | None = None,
) -> Adapter:
    """Writes documents into a model's weights: all of them into one adapter.

    Where a document brings no question-answer pairs, they are made first (`Recipe.targets.generator`). A long
    document is read as passages (`Recipe.passage_tokens`).

    Args:
      model: the base; it is not changed.
      documents: with the pairs to train on; a plain string is a document without any.
      recipe: how; None is the default recipe.
      unrelated: texts that keep the model what it was; None takes those that come with the package.
      adapter: one of this model to continue training, or the directory of one in PEFT's layout; it is part of
        the result and not changed itself. What it has is kept; where it has fewer ranks than the recipe, or lacks a
        projection, there is room for new ones. None starts from a fresh one.
      teacher: another model that teaches, with the same vocabulary: of another size or family, or in a better
        precision. A name is loaded when it is to read, and let go for training, but for its head; of a model that is
        given nothing is let go. None: the base itself teaches.
      workdir: a directory that makes it resumable: written pairs, teacher states and checkpoints are kept there, and
        the same call resumes after a stop. None keeps everything in memory.
      progress: show progress bars.
      on_step: called with the record of every step: step, loss, grad_norm, seconds, learning_rate, sentence_tokens.

    Returns:
      the adapter.

    Raises:
      ValueError: there is nothing to learn, a document does not fit into the model, the adapter is not a plain LoRA
        of this model, the teacher has another vocabulary, or the work directory belongs to another injection, holds
        other things or cannot be written.
      TypeError: an argument is of another type.
      training.trainer.NotFiniteError: the loss is not finite.
    """
    _check_model("model", model)
    _check_recipe(recipe)
    if not isinstance(adapter, Adapter | None):
        check_path("adapter", adapter, "an Adapter or the directory of one")
    if not isinstance(teacher, Model | None):
        check_path("teacher", teacher, "a Model or the name of one")
    check_type("progress", progress, bool, "True or False", "write it without quotes")
    check_type("on_step", on_step, Callable | None, "a function of one record", "leave it out for none")
    recipe = (recipe or Recipe()).fit_to(model.mesh)
    documents = _documents(documents)
    unrelated = None if unrelated is None else _unrelated(unrelated, recipe)
    if workdir is not None:
        _check_workdir(workdir)
    names = [document.id for document in documents]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"got the document id {twice[0]!r} twice, expected different ids")
    start = _start_from(model, adapter)
    given = (start.documents if start else {}) | digest_documents(documents)
    documents = with_passages(documents, recipe, lambda: model)
    prompt = Prompt(recipe.prompt, model.tokenizer, model.end_ids)
    check_lengths(model, prompt, documents)
    check_room(documents, prompt, recipe.targets, recipe.seed, model.config.max_position_embeddings)
    teaches = _teacher(model, teacher)
    if teaches is not None:
        teaches.check_documents(documents, prompt)
    if unrelated is None:
        unrelated = _default_unrelated(recipe)
    directory = None if workdir is None else pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        place = directory or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        stack.enter_context(WorkdirLock(place))
        _bind_documents(place, documents, model)
        written = write_missing_pairs(documents, recipe, place / "pairs.jsonl", model, prompt, teaches)
        chosen = choose_pairs(
            two_step_documents(written, recipe, model, prompt),
            prompt,
            recipe.targets,
            recipe.train.seq_len,
            lambda asked: SYSTEMS["base_cq"].make(Setup(teaches.model() if teaches else model, prompt)).answer(asked),
            None if directory is None else directory / "teacher_answers.jsonl",
        )
        hooks = stack.enter_context(open_hooks(directory, visible=progress, on_step=on_step, signals=False))
        continual = injection.ContinualState(start=start)
        done = injection.inject(model, chosen, recipe, unrelated, directory, continual, hooks, teaches)
    return Adapter(model, done.lora, recipe.lora.scale, recipe, given)


def _documents(given: Sequence[Document | str]) -> list[Document]:
    """Documents as a caller gives them, a plain string as one without questions and pairs."""
    expected, advice = "a list of Documents or strings", "read files with read_documents, or write ['TEXT', ...]"
    found = check_list("documents", given, Document | str, expected, advice)
    if not found:
        raise ValueError("documents: got no documents, expected at least one; give one")
    return [Document(each) if isinstance(each, str) else each for each in found]


def _unrelated(given: Sequence[str], recipe: Recipe) -> list[str]:
    """The unrelated texts that a caller gives."""
    texts = check_list("unrelated", given, str, "a list of strings", "write ['TEXT', ...]")
    for place, text in enumerate(texts):
        if not text.strip():
            raise ValueError(f"unrelated[{place}]: got an empty string, expected text; take it out")
        files.refuse_surrogates(text, f"unrelated[{place}]")
    if len(texts) < (wanted := recipe.targets.unrelated_per_epoch):
        raise ValueError(
            f"unrelated: got {len(texts)} unrelated texts, expected {wanted} or more; add texts, or lower "
            "targets.unrelated_per_epoch"
        )
    return texts


def _check_workdir(workdir: str | os.PathLike) -> None:
    """Checks, without writing, that a directory is new, empty, or one that an earlier `inject` made."""
    check_path("workdir", workdir, "a directory")
    directory = pathlib.Path(workdir)
    for folder in (directory, directory / "checkpoints", directory / "teacher"):
        if problem := files.refuse_folder(folder, attempt=folder is directory):
            raise ValueError(f"workdir: {problem}")
    if (directory / BOUND).is_file():
        return
    try:
        check_free(directory)
    except ValueError:
        raise ValueError(
            f"workdir: got {directory}, which is not empty and holds no {BOUND} of ours, expected a new or empty "
            "directory, or that of an earlier call; choose another directory"
        ) from None


def _teacher(model: Model, teacher: Model | str | os.PathLike | None) -> OtherTeacher | None:
    """Another model that teaches, loaded or by its name."""
    if teacher is None:
        return None
    if isinstance(teacher, Model):
        return OtherTeacher(lambda: teacher, model)
    return named_teacher(TeacherConfig(os.fspath(teacher)), model)


def _start_from(model: Model, adapter: Adapter | str | os.PathLike | None) -> injection.Start | None:
    """An adapter as the start of an injection. Raises ValueError if it belongs to another model."""
    if adapter is None:
        return None
    if not isinstance(adapter, Adapter):
        return read_start(model, adapter)
    if adapter.fingerprint != model.fingerprint:
        raise ValueError(
            f"got an adapter of {adapter.model.name!r} (fingerprint {adapter.fingerprint[:12]}), expected one of "
            f"{model.name!r} ({model.fingerprint[:12]})"
        )
    return injection.Start(jax.tree.map(meshes.fetch, adapter.lora), adapter.scale, dict(adapter.documents))


def _bind_documents(directory: pathlib.Path, documents: Sequence[Document], model: Model) -> None:
    """Says in documents.json which documents a directory belongs to, or checks that it is these.

    That is known before pairs are written about them. How the model is held, which its fingerprint does not say, is
    bound as well, where the file has it; the injection itself binds all else.
    """
    path, record = directory / BOUND, digest_inputs(documents, (), ())
    held = {"dtype": model.dtype.name, "matmul_precision": model.matmul_precision}
    if not path.exists():
        files.write_json(path, record | held)
        return
    found = files.read_json(path, keys=tuple(record))
    for name, now in held.items():
        if (before := found.get(name, now)) != now:
            raise ValueError(
                f"workdir: got {directory}, which was begun by a model with {name} {before!r}, expected {now!r} as "
                f"this model has; load the model with {name}={before!r}, or choose another directory"
            )
    if changed := changed_inputs(found, record):
        raise ValueError(
            f"{directory} belongs to an injection of other documents:\n" + "\n".join(f"  {line}" for line in changed)
            + "\nChoose another workdir for these documents, or restore the earlier ones"
        )  # fmt: skip


def _default_unrelated(recipe: Recipe) -> list[str]:
    each = recipe.targets.unrelated_per_epoch
    if not each:
        return []
    return corpora.read_texts(example_texts("examples", "train"), each * recipe.train.epochs, recipe.seed, each)


def evaluate(
    adapter: Adapter,
    documents: Sequence[Document | str],
    systems: Sequence[str] = ("base_q", "base_cq", "injected"),
    prompt: str | None = None,
    batch_size: int = 16,
    reach: bool = False,
) -> dict:
    """Asks the held-out questions of documents, and scores the answers as a job does.

    Args:
      adapter: whose model and factors are asked.
      documents: with `questions`; a plain string is a document without any. Where a system reads a long document, it
        reads the passage that supports the answer.
      systems: which systems answer (`baselines.registry.SYSTEMS`).
      prompt: the prompt format; None is the recipe's.
      batch_size: questions decoded together.
      reach: ask them also through the chat template, bare, in other words and so on, and what must not change; takes
        some minutes on a CPU.

    Returns:
      {"scores": {system: means and "f1_ci95", or None without questions}, "predictions": a record per question with
      every system's answer and scores}, as results.json and predictions.jsonl of a job have them; where questions
      have a kind also "kinds", the scores on each (`jobs.passages.scores_by_kind`); with `reach` also "reach", the
      table of `evaluation.reach.measure_reach`, and "reach_answers", a record per answer.

    Raises:
      ValueError: an unknown system, one that cannot be asked, or a document that does not fit into the model.
      TypeError: an argument is of another type.
    """
    _check_adapter("adapter", adapter)
    documents = _documents(documents)
    systems = check_list("systems", systems, str, "a list of names of systems", "write ['base_q', ...]")
    if prompt is not None:
        check_choice("prompt", prompt, FORMATS)
    check_number("batch_size", batch_size, BATCH)
    check_type("reach", reach, bool, "True or False", "write it without quotes")
    names = [system_name(name) for name in systems]
    form = prompt or (adapter.recipe.prompt if adapter.recipe else "plain")
    bound = Prompt(form, adapter.model.tokenizer, adapter.model.end_ids)
    recipe = adapter.recipe or Recipe()
    setup = Setup(adapter.model, bound, batch_size, adapter.lora, adapter.scale, recipe=recipe)
    if any(SYSTEMS[name].trained for name in names):
        setup = dataclasses.replace(setup, unrelated=_default_unrelated(recipe))
    recipe = dataclasses.replace(recipe, related_share=0.0)
    documents = with_passages(documents, recipe, lambda: adapter.model)
    answers = {}
    for name in names:
        entry = SYSTEMS[name]
        own = dataclasses.replace(setup, options=entry.options() if entry.options else None)
        if why := entry.unavailable(own):
            raise ValueError(f"systems has {name!r}, which cannot be asked: {why}; take it out")
        system = entry.make(own)
        system.prepare(documents)
        answers[name] = system.answer(documents)
    found = {
        "scores": {name: asking.summarize(join_answers(documents, found)) for name, found in answers.items()},
        "predictions": name_passages(documents, asking.predictions(documents, answers)),
    }
    if kinds := scores_by_kind(documents, answers):
        found["kinds"] = kinds
    if reach:
        found["reach"], found["reach_answers"] = measure_reach(
            adapter.model, adapter.lora, adapter.scale, bound, documents, batch_size=batch_size, known=answers
        )
    return found
