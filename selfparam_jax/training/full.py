"""Training of the MLPs' whole weights instead of an adapter: what the released code does without LoRA.

What is trained is a tree of deltas, float32, in the place of the kernels: {"mlp": {"gate_proj": [L, D, F], ...}}; the
student is the base with them added. Teacher, targets, loss, batches and the loop are those of an injection.
"""

import jax
import jax.numpy as jnp

from selfparam_jax.checkpoints.model import Model
from selfparam_jax.distributed.mesh import put_same
from selfparam_jax.models.decoder import Decoder
from selfparam_jax.training.inject import Student, student_remat
from selfparam_jax.training.recipe import Recipe
from selfparam_jax.training.train_step import Batch

MODULE = "mlp"


def mlp_student(model: Model, recipe: Recipe) -> Student:
    """The student whose MLP kernels are trained.

    Raises:
      ValueError: the base is in 8 bits.
    """
    if model.int8:
        raise ValueError("base_weights = 'int8', expected 'float' to train all weights of the MLPs")
    decoder = model.decoder(remat=student_remat(model, recipe), attention=model.attention)
    return Student(
        decoder, lambda: put_same(model.mesh, no_deltas(model.params)), read_changed, name=MODULE, frozen=False
    )


def no_deltas(params: dict) -> dict:
    """Deltas of zero for all kernels of the MLPs: float32, where training starts."""
    entries = params["layers"][MODULE]
    return {MODULE: {name: jnp.zeros(entry["kernel"].shape, jnp.float32) for name, entry in entries.items()}}


def add_deltas(params: dict, deltas: dict) -> dict:
    """The parameters with deltas added to their kernels, in float32, rounded once to the kernels' dtype."""
    changed = {}
    for name, entry in params["layers"][MODULE].items():
        kernel = entry["kernel"]
        added = kernel.astype(jnp.float32) + deltas[MODULE][name]
        changed[name] = {**entry, "kernel": added.astype(kernel.dtype)}
    return {**params, "layers": {**params["layers"], MODULE: changed}}


def read_changed(deltas: dict, params: dict, batch: Batch, dropout_key: jax.Array, model: Decoder) -> jax.Array:
    """Final hidden states [B, T, D] of a batch's rows in the changed model: a `train_step.Forward`.

    Args:
      deltas: of the MLPs' kernels.
      params: of the frozen base.
      batch: its rows.
      dropout_key: not used.
      model: the student.

    Returns:
      the states, in the model's dtype.
    """
    del dropout_key
    variables = {"params": add_deltas(params, deltas)}
    hidden, _ = model.apply(variables, batch.input_ids, batch.positions, batch.segments)
    return hidden
