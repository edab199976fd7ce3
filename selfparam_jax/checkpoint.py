"""Orbax checkpoints of what training changes: adapter, optimiser state and step, with JSON beside them.

Never the base: it is not modified, and its fingerprint in the JSON says which one belongs to an adapter.
"""

import os
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of one injection, newest kept. Use as a context manager: leaving waits for writes."""

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        options = ocp.CheckpointManagerOptions(preservation_policy=ocp.checkpoint_managers.LatestN(keep), create=True)
        self._manager = ocp.CheckpointManager(os.path.abspath(directory), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, lora: dict, optimizer: Any, record: dict) -> None:
        """Starts writing a checkpoint; arrays are copied before this returns, the disk is written after."""
        arguments = ocp.args.Composite(
            lora=ocp.args.StandardSave(lora),
            optimizer=ocp.args.StandardSave(optimizer),
            record=ocp.args.JsonSave(record),
        )
        self._manager.save(step, args=arguments)

    def read_record(self, step: int) -> dict:
        """The JSON of a checkpoint."""
        arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(step, args=arguments)["record"]

    def restore(self, step: int, **like) -> dict:
        """Items of a checkpoint by name (`lora`, `optimizer`), each as the tree given for it is.

        Structure, shapes, dtypes and shardings are those of the trees given; one that differs from what
        was saved in structure or shape raises.
        """
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree) for name, tree in like.items()}
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)))
