"""Layers apart: one tree per layer in place of arrays that are stacked on a leading axis.

A scan over stacked layers compiles one layer for all. On a backend that copies the slices of stacked arrays
(`backend.copies_slices`) it also copies every weight in every pass, and clears the arrays in which the backward pass
finds what it needs; a program with its layers apart does neither.
"""

import functools

import jax
import jax.numpy as jnp

from selfparam_jax.distributed.backend import copies_slices, unstacked

LEAST_BYTES = 64 << 20  # of the layers together: smaller ones are copied faster than more layers are compiled


def layers_apart(variables: dict) -> dict:
    """The same variables, with those of the layers as a tuple of one tree per layer; views where possible."""

    def cut(tree):
        leaves, structure = jax.tree.flatten(tree)
        return tuple(structure.unflatten(own) for own in zip(*map(unstacked, leaves), strict=True))

    return {name: {**tree, "layers": cut(tree["layers"])} for name, tree in variables.items()}


def trains_apart(params: dict) -> bool:
    """Whether steps of training on one device are faster with the layers of these parameters apart."""
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params["layers"]))
    return copies_slices() and size >= LEAST_BYTES


def adapter_apart(lora: dict) -> dict:
    """An adapter with its layers apart, inside a step: its gradient is stacked as the adapter is.

    Args:
      lora: `a` [L, D, R] and `b` [L, R, F] of each projection.

    Returns:
      a tree like that of the variables of `layers_apart`.
    """
    leaves, structure = jax.tree.flatten(lora["layers"])
    each = zip(*(_rows(leaf, leaf.shape[0]) for leaf in leaves), strict=True)
    return {**lora, "layers": tuple(structure.unflatten(own) for own in each)}


# Without a rule of its own, the gradient of x[n] would be an array as large as x for every n.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _rows(x, count):
    return tuple(x[n] for n in range(count))


_rows.defvjp(lambda x, count: (_rows(x, count), None), lambda count, _, gradients: (jnp.stack(gradients),))
