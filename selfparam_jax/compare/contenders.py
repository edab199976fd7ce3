"""What can be compared, and how it is read: work directories, their checkpoints, and models.

A work directory is one of job `batch`, one injection of job `single` (WORKDIR/contexts/000), or one sequence of job
`sequential` (WORKDIR/sequences/000). WORKDIR@STEP is a checkpoint of it, of a sequence the model after so many
injections. A folder with an adapter.json is an adapter that was composed from a ledger's. Everything else is a model,
as `hub.load_pretrained` knows them.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selfparam_jax import files, hub, weights
from selfparam_jax.checkpoint import Checkpoints
from selfparam_jax.compare import Contender, Factors, factor_dense, factor_low_rank, kernel_at
from selfparam_jax.ledger import Ledger, read_composed
from selfparam_jax.lora import MODULES, LoraConfig, compose_lora, init_lora
from selfparam_jax.workdir import differences, flatten

PARTS = {"single": "contexts", "sequential": "sequences"}  # jobs with several models, and where these are


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """A work directory, as far as a comparison needs it.

    directory, step: where the checkpoints or the ledger lie, and which step is meant.
    config, fingerprint: of its config.json.
    predictions: of the injected model at this step, or None.
    """

    directory: pathlib.Path
    step: int
    config: dict
    fingerprint: str
    predictions: list[dict] | None

    @property
    def lora(self) -> LoraConfig:
        return LoraConfig(**{**self.config["lora"], "targets": tuple(self.config["lora"]["targets"])})


@dataclasses.dataclass(frozen=True)
class Lineup:
    """The base and the contenders, loaded.

    dtype: of all weights and of what is computed with them; the first work directory's, else float32.
    prompt: name of the first work directory's prompt format, else "plain".
    general: path of the first general text that a work directory has, or "".
    batch: questions asked at once; the first work directory's.
    """

    base: hub.Pretrained
    dtype: Any
    prompt: str
    general: str
    batch: int
    contenders: list[Contender]


def load_lineup(sources: Sequence[str], base_source: str | None = None) -> Lineup:
    """Loads everything that is compared; what can be checked without a model is checked first.

    Args:
      base_source: the model that deltas are measured from; None means that of the first work directory.

    Raises:
      ValueError, OSError: a source is neither a work directory with a checkpoint nor a model, appears twice, stands
        on another base or has another architecture; or there is no base.
    """
    twice = sorted({source for source in sources if sources.count(source) > 1})
    if twice:
        raise ValueError(f"got {twice[0]!r} twice, expected different models; name each once")
    composed = {source: read for source in sources if (read := read_composed(source))}
    saved = {source: None if source in composed else find_run(source) for source in sources}
    runs = [run for run in saved.values() if run]
    if not runs and base_source is None:
        raise ValueError("got no work directory and no base, expected one of them; give --base=MODEL")
    first = runs[0].config if runs else {"dtype": "float32", "prompt": "plain", "eval": {"batch_size": 16}}
    general = next((run.config["eval"]["general"] for run in runs if run.config["eval"]["general"]), "")
    dtype = jnp.dtype(first["dtype"])
    load = functools.cache(functools.partial(hub.load_pretrained, dtype=dtype))
    base = load(base_source if base_source is not None else first["model"])

    def contender(source: str, run: SavedRun | None) -> Contender:
        if source in composed:
            return composed_contender(source, base, *composed[source])
        return run_contender(source, base, run) if run else model_contender(source, base, _load_model(source, load))

    contenders = [contender(source, run) for source, run in saved.items()]
    return Lineup(base, dtype, first["prompt"], general, first["eval"]["batch_size"], contenders)


def _load_model(source: str, load) -> hub.Pretrained:
    try:
        return load(source)
    except ValueError as error:
        raise ValueError(f"{source!r} is no work directory, and as a model: {error}") from error


# --- work directories ---------------------------------------------------------------------------------


def find_run(source: str) -> SavedRun | None:
    """The run that a work directory or WORKDIR@STEP means; None if the source is not one of ours.

    Raises:
      ValueError: one of ours without such a checkpoint, or the work directory of a job that has several models.
    """
    path, step = pathlib.Path(source), None
    if not path.exists() and (match := re.fullmatch(r"(.+)@(\d+)", source)):
        path, step = pathlib.Path(match[1]), int(match[2])
    workdir, record = path.resolve(), _read_record(path)
    if record is None and workdir.parent.name in PARTS.values():
        workdir = workdir.parent.parent
        record = _read_record(workdir)
    elif record is not None and record["config"]["job"] in PARTS:
        job = record["config"]["job"]
        raise ValueError(
            f"{path} is of job {job!r}, which has several models; give one, such as {path}/{PARTS[job]}/000"
        )
    if record is None:
        if step is not None:
            raise ValueError(f"{source}: {path} is not a work directory (no config.json of a job); correct the path")
        return None
    steps = _steps(path)
    if not steps:
        raise ValueError(f"{path} has no complete checkpoint or injection yet, expected one; run the job first")
    if step not in (None, *steps):
        raise ValueError(f"{source}: got step {step}, expected one of {steps}, those that are kept")
    last, step = step in (None, steps[-1]), steps[-1] if step is None else step
    # A finished run's are its last step's; of a sequence those of every step are there.
    kept = last or (path / "ledger").is_dir()
    predictions = _predictions(workdir, path.resolve(), step) if kept else None
    return SavedRun(path, step, record["config"], record["base_fingerprint"], predictions)


def _steps(path: pathlib.Path) -> list[int]:
    """Steps of the checkpoints; for a ledger, the numbers of injections."""
    if (path / "ledger").is_dir():
        return list(range(1, len(Ledger.open(path / "ledger").active()) + 1))
    saved = path / "checkpoints"
    return sorted(int(entry.name) for entry in saved.iterdir() if entry.name.isdigit()) if saved.is_dir() else []


def _read_record(workdir: pathlib.Path) -> dict | None:
    """The content of a job's config.json; None if there is none (a model's is another)."""
    try:
        record = files.read_json(workdir / "config.json")
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "base_fingerprint" in record else None


def _predictions(workdir: pathlib.Path, path: pathlib.Path, step: int) -> list[dict] | None:
    if not (workdir / "results.json").exists():
        return None
    records = files.read_lines(workdir / "predictions.jsonl")
    if path != workdir:
        answers = _answers_after(path, step)
        if answers is None and path.parent.name == PARTS["sequential"]:
            return None
        first, count = (int(path.name), 1) if answers is None else (int(path.name) * len(answers), len(answers))
        of_all = files.read_json(workdir / "results.json")["per_context"]
        contexts = {context["id"] for context in of_all[first : first + count]}
        records = [record for record in records if record["context"] in contexts]
        if answers is not None:
            flat = [answer for group in answers for answer in group]
            records = [{**record, "injected": own} for record, own in zip(records, flat, strict=True)]
    return records or None


def _answers_after(path: pathlib.Path, step: int) -> list[list[dict]] | None:
    """The answers after so many injections of a sequence, per context; None if it is not that model any more."""
    examination = path / "examinations" / f"{step:03d}.json"
    if not examination.exists():
        return None
    ledger = Ledger.open(path / "ledger")
    if len(ledger.active()) < len(ledger.entries()):  # an injection was taken out
        return None
    return files.read_json(examination)["answers"]


def run_contender(name: str, base: hub.Pretrained, run: SavedRun) -> Contender:
    """The base with the adapter of a checkpoint, or with a ledger's. Raises ValueError if it has another base."""
    if run.fingerprint != base.fingerprint:
        raise ValueError(
            f"{name} was made from {run.config['model']!r} with fingerprint {run.fingerprint[:12]}, but the base is "
            f"{base.name!r} with {base.fingerprint[:12]}; compare runs of one base"
        )
    if (run.directory / "ledger").is_dir():
        ledger = Ledger.open(run.directory / "ledger", base.fingerprint)
        adapters = ledger.adapters([entry.id for entry in ledger.active()[: run.step]])
        return adapter_contender(name, base, compose_lora(adapters), 1.0, run.predictions)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda params: init_lora(jax.random.key(0), params, run.lora), base.params)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
    with Checkpoints(run.directory / "checkpoints") as checkpoints:
        lora = checkpoints.restore(run.step, lora=like)["lora"]
    return adapter_contender(name, base, lora, run.lora.scale, run.predictions)


def composed_contender(name: str, base: hub.Pretrained, record: dict, lora: dict) -> Contender:
    """The base with a composed adapter (`ledger.read_composed`). Raises ValueError if it has another base."""
    if record["base_fingerprint"] != base.fingerprint:
        raise ValueError(
            f"{name} stands on a base with fingerprint {record['base_fingerprint'][:12]}, but the base is "
            f"{base.name!r} with {base.fingerprint[:12]}; compare adapters of one base, or give --base=MODEL"
        )
    return adapter_contender(name, base, lora, record["scale"])


def adapter_contender(
    name: str, base: hub.Pretrained, lora: dict, scale: float, predictions: list[dict] | None = None
) -> Contender:
    """The base with an adapter tree (see `lora`) of any rank and any modules, applied with a scale."""
    # The scale goes into b, so that one Decoder serves all contenders.
    layers = {
        block: {name: {"a": pair["a"], "b": pair["b"] * scale} for name, pair in projections.items()}
        for block, projections in lora["layers"].items()
    }

    def factors(module: str, layer: int) -> Factors:
        pair = layers.get(MODULES[module], {}).get(module)
        if pair is None:
            inputs, outputs = base.params["layers"][MODULES[module]][module]["kernel"].shape[1:]
            return Factors(np.zeros((inputs, 0)), np.zeros(0), np.zeros((outputs, 0)))
        return factor_low_rank(pair["a"][layer], pair["b"][layer])

    variables = {"params": base.params, "lora": {"layers": layers}}
    return Contender(name, factors, variables, predictions=predictions)


# --- models -------------------------------------------------------------------------------------------


def model_contender(name: str, base: hub.Pretrained, model: hub.Pretrained) -> Contender:
    """A model as it is. Raises ValueError if its architecture is not the base's."""
    found, wanted = (flatten(dataclasses.asdict(each.config)) for each in (model, base))
    if found != wanted:
        lines = "\n".join(differences(found, wanted)).replace(" there, ", " in it, ").replace(" now", " in the base")
        raise ValueError(
            f"{name} has another architecture than the base {base.name!r}:\n{lines}\n"
            "Compare models of one architecture"
        )
    notes = []
    if model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        notes.append("its tokenizer is not the base's, with which all text was read")
    outside = outside_differences(model, base)
    if outside:
        notes.append(f"differs from the base outside the compared kernels: {', '.join(outside)}")

    def factors(module: str, layer: int) -> Factors:
        return factor_dense(kernel_at(model.params, module, layer) - kernel_at(base.params, module, layer))

    return Contender(name, factors, {"params": model.params}, outside, tuple(notes))


def outside_differences(model: hub.Pretrained, base: hub.Pretrained) -> dict[str, tuple[float, float]]:
    """Parameters other than the projections' kernels that differ: path -> norms of difference and of the base's."""
    found = {}
    for entry in weights.parameter_table(base.config):
        if entry.path[-1] == "kernel":
            continue
        ours, theirs = (
            np.asarray(functools.reduce(lambda node, key: node[key], entry.path, params)).astype(np.float32)
            for params in (base.params, model.params)
        )
        if not np.array_equal(ours, theirs):
            found["/".join(entry.path)] = (float(np.linalg.norm(theirs - ours)), float(np.linalg.norm(ours)))
    return found
