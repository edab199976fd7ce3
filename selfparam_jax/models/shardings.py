"""The shardings of a model's parameters on a mesh: `mesh.RULES` applied to the parameter table."""

import math

from jax.sharding import Mesh, NamedSharding

from selfparam_jax.distributed.mesh import RULES, spec
from selfparam_jax.models.architecture import ModelConfig
from selfparam_jax.models.decoder import Int8Kernel
from selfparam_jax.models.parameters import parameter_table, parameter_tree

# The sizes of a model that are split, and the names of their axes.
SPLIT = {
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads",
    "intermediate_size": "inner",
    "vocab_size": "vocabulary",
    "hidden_size": "hidden",
}


def parameter_shardings(mesh: Mesh, config: ModelConfig, int8: bool = False) -> dict:
    """The sharding of every parameter on a mesh, as a tree.

    Args:
      mesh: over whose axes the parameters are split.
      config: the architecture.
      int8: the kernels are `Int8Kernel`s.

    Raises:
      ValueError: an axis cannot be split evenly; says what could be.
    """
    _check_sizes(mesh, config)
    leaves: dict = {}
    for entry in parameter_table(config):
        leaf = NamedSharding(mesh, spec(*entry.axes))
        if int8 and entry.is_kernel:
            layers, _, outputs = entry.axes
            leaf = Int8Kernel(leaf, NamedSharding(mesh, spec(layers, None, outputs)))
        leaves[entry.path] = leaf
    return parameter_tree(leaves)


def _check_sizes(mesh: Mesh, config: ModelConfig) -> None:
    for name in ("tensor", "fsdp"):
        sizes = {field: getattr(config, field) for field, axis in SPLIT.items() if name in RULES[axis]}
        parts, whole = mesh.shape[name], math.gcd(*sizes.values())
        if whole % parts:
            listed = ", ".join(f"{field} {size}" for field, size in sizes.items())
            possible = [str(n) for n in range(1, mesh.size + 1) if whole % n == 0 and mesh.size % n == 0]
            raise ValueError(
                f"mesh.{name} = {parts} does not divide all of what it splits in this model: {listed}; "
                f"on {mesh.size} devices use {' or '.join(possible)}"
            )
