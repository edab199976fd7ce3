"""The models that are compared: a base, and candidates that differ from it by an adapter or in their weights."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.compare.factors import Factors, factor_dense, factor_low_rank
from selfparam_jax.distributed.files import differences, flatten
from selfparam_jax.models.lora import MODULES
from selfparam_jax.models.parameters import parameter_table

MOST = 26  # candidates: each is labelled with a capital letter


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One of the models that are compared.

    Attributes:
      name: as the user gave it.
      factors: a function from module name and layer to the delta of that kernel.
      variables: for a `Decoder` with lora_scale 1.
      outside: parameters other than the kernels of `lora.MODULES` that differ from the base's: path to the Frobenius
        norms of the difference and of the base's parameter.
      notes: sentences that a reader of the comparison must know.
      predictions: its answers, records as in `answers`; None if it was not asked.
    """

    name: str
    factors: Callable[[str, int], Factors]
    variables: dict
    outside: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    predictions: list[dict] | None = None


@dataclasses.dataclass(frozen=True)
class ModelSet:
    """The base and the candidates, loaded.

    Attributes:
      base: the model that deltas are measured from.
      dtype: of all weights and of what is computed with them.
      prompt: name of the prompt format in which texts and questions are read.
      batch_size: questions answered at once.
      candidates: 2 to 26.
    """

    base: Model
    dtype: Any
    prompt: str
    batch_size: int
    candidates: list[Candidate]

    def __post_init__(self):
        check_count(len(self.candidates))


def check_count(models: int) -> None:
    """Raises ValueError for a number of candidates that cannot be compared."""
    if not 2 <= models <= MOST:
        raise ValueError(f"got {models} models, expected 2 to {MOST}")


def kernels_of(params: dict) -> list[tuple[str, int]]:
    """Module and layer of every kernel that can have a delta."""
    layers = len(params["layers"]["self_attn"]["q_proj"]["kernel"])
    return [(module, layer) for module in MODULES for layer in range(layers)]


def kernel_at(params: dict, module: str, layer: int) -> np.ndarray:
    """The kernel [D, F] of one layer, float64."""
    return np.asarray(params["layers"][MODULES[module]][module]["kernel"][layer]).astype(np.float64)


def adapter_candidate(
    name: str, base: Model, lora: dict, scale: float, predictions: list[dict] | None = None
) -> Candidate:
    """The base with an adapter.

    Args:
      name: what to call it.
      base: the model below the adapter.
      lora: adapter tree (see `models.lora`) of any rank and any modules.
      scale: what the adapter's product is multiplied with.
      predictions: its answers, if there are any.

    Returns:
      the candidate.
    """
    # The scale goes into b, so that one Decoder serves all candidates.
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
    return Candidate(name, factors, variables, predictions=predictions)


def model_candidate(name: str, base: Model, model: Model) -> Candidate:
    """A model with weights of its own.

    Raises:
      ValueError: its architecture is not the base's; says what differs.
    """
    found, wanted = (flatten(dataclasses.asdict(each.config)) for each in (model, base))
    if found != wanted:
        lines = "\n".join(differences(found, wanted)).replace(" there, ", " in it, ").replace(" now", " in the base")
        raise ValueError(
            f"{name} has another architecture than the base {base.name!r}:\n{lines}\n"
            "Compare models of one architecture"
        )
    notes = []
    if model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        notes.append("its tokenizer differs from the base's, with which all text was read")
    outside = outside_differences(model, base)
    if outside:
        notes.append(f"differs from the base outside the compared kernels: {', '.join(outside)}")

    def factors(module: str, layer: int) -> Factors:
        return factor_dense(kernel_at(model.params, module, layer) - kernel_at(base.params, module, layer))

    return Candidate(name, factors, {"params": model.params}, outside, tuple(notes))


def outside_differences(model: Model, base: Model) -> dict[str, tuple[float, float]]:
    """Parameters other than the projections' kernels that differ.

    Returns:
      path of the parameter to the Frobenius norms of the difference and of the base's parameter.
    """
    found = {}
    for entry in parameter_table(base.config):
        if entry.path[-1] == "kernel":
            continue
        ours, theirs = (
            np.asarray(functools.reduce(lambda node, key: node[key], entry.path, params)).astype(np.float32)
            for params in (base.params, model.params)
        )
        if not np.array_equal(ours, theirs):
            found["/".join(entry.path)] = (float(np.linalg.norm(theirs - ours)), float(np.linalg.norm(ours)))
    return found
