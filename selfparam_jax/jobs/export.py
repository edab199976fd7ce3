"""The model of a finished job for other programs: merged, or as an adapter."""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from selfparam_jax.checkpoints import peft
from selfparam_jax.checkpoints.companions import licence_of
from selfparam_jax.checkpoints.export import Finish, merge_for_export, save_model
from selfparam_jax.checkpoints.gguf_export import save_gguf
from selfparam_jax.checkpoints.load import load_model
from selfparam_jax.checkpoints.model import Model
from selfparam_jax.checkpoints.model_card import write_card
from selfparam_jax.checkpoints.round_trip import check_round_trip
from selfparam_jax.data.passages import group_passages
from selfparam_jax.distributed.files import read_json, refuse_folder
from selfparam_jax.distributed.processes import is_distributed
from selfparam_jax.jobs.ask import read_adapter
from selfparam_jax.jobs.bars import announced
from selfparam_jax.jobs.inputs import Job, reopen
from selfparam_jax.jobs.sequential import sequences_of
from selfparam_jax.jobs.workdir import check_whole, read_workdir, split_part
from selfparam_jax.models.lora import compose_lora
from selfparam_jax.sequential.ledger import read_composed

Adapters = list[tuple[dict, float]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What is exported.

    Attributes:
      model: the base.
      adapters: what was trained, with scales.
      dtype: what the weights are written in where nothing else is asked for.
      extra: for the record of an adapter: digest of the documents, and the recipe.
      documents: title and digest of each.
      scores: of the evaluation, drift among them.
    """

    model: Model
    adapters: Adapters
    dtype: str
    extra: dict = dataclasses.field(default_factory=dict)
    documents: list[dict] = dataclasses.field(default_factory=list)
    scores: dict = dataclasses.field(default_factory=dict)

    def composed(self) -> tuple[dict, float]:
        """The adapters as one, and its scale."""
        return self.adapters[0] if len(self.adapters) == 1 else (compose_lora(self.adapters), 1.0)


def of_adapter(model: Model, lora: dict, scale: float, extra: dict) -> Trained:
    """What is exported of an adapter that belongs to no work directory.

    Args:
      model: the base.
      lora, scale: the adapter.
      extra: "documents", digests by id, and "recipe", where they are known.

    Returns:
      all of it, in the base's dtype.
    """
    documents = [{"title": name, "digest": each[:16]} for name, each in (extra.get("documents") or {}).items()]
    return Trained(model, [(lora, scale)], model.dtype.name, extra, documents)


@dataclasses.dataclass(frozen=True)
class Format:
    """How a model is written.

    Attributes:
      description: a few words.
      dtypes: what the weights may be written in; the first is the default where the job's own is none of them.
      write: writes it; takes what is exported, the directory, the dtype, and what is called with the files.
    """

    description: str
    dtypes: tuple[str, ...]
    write: Callable[[Trained, pathlib.Path, str, Finish], object]


def _write_merged(trained: Trained, out: pathlib.Path, dtype: str, finish: Finish) -> None:
    save_model(merge_for_export(trained.model, trained.adapters), trained.model, out, dtype, finish)


def _write_adapter(trained: Trained, out: pathlib.Path, dtype: str, finish: Finish) -> None:
    peft.save_adapter(*trained.composed(), trained.model, out, trained.extra, finish)


def _write_gguf(trained: Trained, out: pathlib.Path, dtype: str, finish: Finish) -> None:
    save_gguf(merge_for_export(trained.model, trained.adapters), trained.model, out, dtype, finish)


FORMATS = {
    "hf": Format("the merged model in Hugging Face's layout", ("float32", "bfloat16", "float16"), _write_merged),
    "peft": Format("the adapter in PEFT's layout", ("float32",), _write_adapter),
    "gguf": Format("the merged model as a file of llama.cpp", ("float16", "q8_0"), _write_gguf),
}


def export_workdir(
    workdir: str | pathlib.Path,
    form: str,
    out: str | pathlib.Path,
    dtype: str | None = None,
    base: str = "",
    unfinished: bool = False,
) -> dict:
    """Writes the model of a work directory, of one of its injections or sequences, of a ledger or composed adapter.

    The files are loaded again and compared with the model in memory (`check_round_trip`); the result is in the record
    of the export, and with documents, recipe and scores in its README.md.

    Args:
      workdir: of a job, or WORKDIR/contexts/000 of job `single`, or WORKDIR/sequences/000 of job `sequential`; or the
        directory of a sequence's ledger, of an adapter that was composed from one, or of one in PEFT's layout.
      form: of FORMATS.
      out: a new directory.
      dtype: of the weights; None is the job's `export_dtype`, or its dtype where that is "", if the format has it,
        and otherwise the format's first.
      base: the model below an adapter that was composed, or is in PEFT's layout.
      unfinished: whether a model whose training has not ended may be written, with a warning.

    Returns:
      what the round trip found; {} if the same export was there already.

    Raises:
      ValueError: nothing is trained yet, training has not ended, the job has several models, there is something else
        at `out`, or the files do not give the model back; nothing is left then.
    """
    _check(form, dtype, out)
    with announced(f"loading what {workdir} holds"):
        trained = _read(pathlib.Path(workdir), base, unfinished)
    return export(trained, form, out, dtype)


def _check(form: str, dtype: str | None, out: str | os.PathLike) -> None:
    """Raises ValueError for a format that does not exist, and for a directory that cannot be made."""
    if form not in FORMATS:
        raise ValueError(f"format {form!r}, expected one of {', '.join(FORMATS)}")
    known = FORMATS[form].dtypes
    if dtype is not None and dtype not in known:
        raise ValueError(f"dtype {dtype!r}, expected one of {', '.join(known)} for the format {form}")
    if not os.path.isdir(out) and (problem := refuse_folder(out)):
        raise ValueError(problem)


def export(trained: Trained, form: str, out: str | os.PathLike, dtype: str | None = None) -> dict:
    """Writes a model for other programs, loads the files again and compares; the rest is as `export_workdir` has it.

    Args:
      trained: the base and its adapters.
      form: of FORMATS.
      out: a new directory.
      dtype: of the weights; None is `trained.dtype` if the format has it, and otherwise the format's first.

    Returns:
      what the round trip found; {} if the same export was there already.

    Raises:
      ValueError: there is something else at `out`, or the files do not give the model back; nothing is left then.
    """
    _check(form, dtype, out)
    known, result = FORMATS[form].dtypes, {}
    dtype = dtype or (trained.dtype if trained.dtype in known else known[0])

    def finish(temporary: pathlib.Path) -> dict:
        if trained.model.int8 or is_distributed():
            found = {"selfparam_jax": {"not_checked": "the base is in 8 bits, or shared by several processes"}}
        else:
            with announced("reading the files again, and comparing them with the model in memory"):
                found = check_round_trip(temporary, form, trained.model, *trained.composed(), dtype)
        (temporary / "README.md").write_text(_card(trained, form, temporary, found), encoding="utf-8")
        result.update(found)
        return {"round_trip": found}

    with announced(f"writing {out}: {FORMATS[form].description}"):
        FORMATS[form].write(trained, pathlib.Path(out), dtype, finish)
    return result


def _card(trained: Trained, form: str, temporary: pathlib.Path, found: dict) -> str:
    """The model card."""
    model, file = trained.model, next((path.name for path in temporary.glob("*.gguf")), "")
    return write_card(
        form,
        model.source or model.name,
        model.fingerprint,
        licence_of(model),
        trained.documents,
        trained.extra.get("recipe", {}),
        trained.scores,
        found,
        file,
    )


def _read(directory: pathlib.Path, base: str, unfinished: bool) -> Trained:
    """What a directory holds."""
    if composed := read_composed(directory):
        record, lora = composed
        if not base:
            raise ValueError(f"{directory} is a composed adapter; give the model below it: --base=MODEL")
        model = load_model(base)
        if record["base_fingerprint"] != model.fingerprint:
            raise ValueError(
                f"{directory} stands on a base with fingerprint {record['base_fingerprint'][:12]}, but {base!r} has "
                f"{model.fingerprint[:12]}; give the base that it was composed on"
            )
        entries = {f"entry {id}": id for id in record.get("entries", ())}
        return of_adapter(model, lora, record["scale"], {"documents": entries})
    if (directory / peft.CONFIG).is_file():
        if not base:
            raise ValueError(f"{directory} is an adapter; give the model below it: --base=MODEL")
        model = load_model(base)
        lora, scale, record = peft.load_adapter(directory, model)
        return of_adapter(model, lora, scale, record.get("extra") or {})
    if base:
        raise ValueError(f"base = {base!r}, but {directory} is a work directory, which names its own; leave it out")
    if (directory / "ledger.json").is_file():
        unfinished = True  # its entries are what is asked for
        directory = directory.resolve().parent
    workdir, part = split_part(directory)
    job = reopen(workdir)
    results = directory / "results.json"
    found = read_json(results) if results.is_file() else {}
    titles = {source.id: source.title for source in group_passages(job.documents)}
    adapters, digests = _trained(job, directory, part, unfinished)
    return Trained(
        job.model,
        adapters,
        job.settings.export_dtype or job.settings.dtype,
        {"documents": digests, "recipe": job.recipe.record()},
        [{"title": titles.get(name) or name, "digest": digest[:16]} for name, digest in digests.items()],
        {name: found[name] for name in ("scores", "drift") if name in found},
    )


def _trained(
    job: Job, directory: pathlib.Path, part: str | None, unfinished: bool
) -> tuple[Adapters, dict[str, str]]:
    """The adapters with scales, and the digests of the documents in them, by id."""
    kind, scale = job.settings.job, job.recipe.lora.scale
    if kind == "sequential":
        cut = sequences_of(job)
        if part is None and len(cut) > 1:
            raise ValueError(f"{directory} has {len(cut)} sequences; give one, such as {directory}/sequences/000")
        sequence = next((each for each in cut if part in (None, each.directory.name)), None)
        if sequence is None:
            raise ValueError(f"{directory} has no finished injection; run the job first")
        ledger = sequence.ledger(job.model)
        ledger.check_active()
        check_whole(directory, len(ledger.entries()), len(sequence.sources), "injection", unfinished)
        return ledger.adapters(), {entry.name: entry.context_digest for entry in ledger.active()}
    if kind == "single" and part is None:
        raise ValueError(f"{directory} has a model for every document; give one, such as {directory}/contexts/000")
    documents = read_workdir(job.workdir)["inputs"].get("adapter", {}).get("documents", {})
    sources = group_passages(job.documents)
    if part is not None and not (part.isdecimal() and int(part) < len(sources)):
        raise ValueError(f"{directory}: there is no document {part}, expected 000 to {len(sources) - 1:03d}")
    sources = [sources[int(part)]] if part is not None else sources
    documents |= {source.id: source.digest for source in sources}
    return [(read_adapter(job, directory, unfinished), scale)], documents
