"""Orbax checkpoints of what training changes: adapter, optimizer state and step, with JSON beside them.

Never the base: it is not modified, and its fingerprint in the JSON says which one belongs to an adapter.
"""

import contextlib
import gc
import hashlib
import json
import logging as logs
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from selfparam_jax.distributed.mesh import all_agree, fetch
from selfparam_jax.distributed.processes import barrier, is_main_process

ARRAYS = ("lora", "optimizer")
UNFINISHED_S = 0.1  # reads that were under way when another failed have ended by then
DIGESTS = "digests"  # of these and of the record, in the record


def digest_leaves(tree: Any) -> str:
    """Hex SHA-256 of a tree's arrays, in whatever order and structure they stand; all processes must call this."""
    leaves = [np.ascontiguousarray(fetch(leaf)) for leaf in jax.tree.leaves(tree)]
    each = sorted(
        hashlib.sha256(f"{leaf.shape} {leaf.dtype} ".encode() + leaf.tobytes()).hexdigest() for leaf in leaves
    )
    return hashlib.sha256(" ".join(each).encode()).hexdigest()


def _digest_record(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _without_tracebacks() -> Iterator[None]:
    """Nothing is printed of what a failed read leaves unfinished.

    Orbax reads several arrays at once. When one fails, asyncio and TensorStore's threads print a traceback for
    others; the warning about the checkpoint says all in one line.
    """
    logger, hooks = logs.getLogger("asyncio"), (sys.excepthook, sys.unraisablehook)
    before = logger.disabled
    logger.disabled = True
    sys.excepthook = sys.unraisablehook = lambda *_: None
    try:
        yield
    finally:
        logger.disabled = before
        sys.excepthook, sys.unraisablehook = hooks


class Checkpoints:
    """The checkpoints of one injection; the newest ones are kept. Use as a context manager: leaving waits for writes.

    A checkpoint counts only if its record and arrays can be read and are those that were written. A damaged one is
    named in a warning and skipped; `save` moves it out of the way, to the name damaged-STEP.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self._directory = pathlib.Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(preservation_policy=ocp.checkpoint_managers.LatestN(keep), create=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)
        self._good: set[int] = set()
        self._damaged: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest checkpoint that can be read, or None if there is none yet; all processes must call it.

        Raises:
          ValueError: there are checkpoints, and none of them can be read.
        """
        self._manager.wait_until_finished()
        lost = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            if self._is_good(step):
                return step
            lost += [step] if self._has_files(step) else []
        if lost:
            raise ValueError(
                f"{self._directory}: none of the checkpoints can be read (steps {', '.join(map(str, lost))}; see the "
                "warnings above). Restore one from a copy, or remove the directory to train from the first step"
            )
        return None

    def steps(self) -> list[int]:
        """Steps of all checkpoints that can be read, ascending; all processes must call it."""
        self._manager.wait_until_finished()
        return [step for step in sorted(self._manager.all_steps()) if self._is_good(step)]

    def _is_good(self, step: int) -> bool:
        """Whether every process can read a checkpoint; a damaged one is named in a warning, once."""
        if step in self._good or step in self._damaged:
            return step in self._good
        problem = self._problem(step)
        if all_agree([problem is None])[0]:
            self._good.add(step)
            return True
        logging.warning("%s", f"checkpoint {self._directory / str(step)} is damaged and skipped: {problem}")
        self._damaged.add(step)
        return False

    def _problem(self, step: int) -> str | None:
        """What keeps a checkpoint from being read, in a line; None for a good one."""
        if not self._has_files(step):
            return "the directory is empty"
        with _without_tracebacks():
            problem = self._reading_problem(step)
            if problem:
                time.sleep(UNFINISHED_S)
                gc.collect()
        return problem

    def _reading_problem(self, step: int) -> str | None:
        try:
            record = self._read_whole_record(step)
            digests = record.pop(DIGESTS, None)
            found = {name: digest_leaves(self._read_arrays(self._directory / str(step) / name)) for name in ARRAYS}
            if digests is not None and digests != found | {"record": _digest_record(record)}:
                return "its contents are not those that were written (their checksums differ)"
        except Exception as error:  # damaged files can raise anything; the line is part of the warning
            cause = error.__cause__ or error  # the reader's own error says more than Orbax's around it
            return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0][:300]}"
        return None

    def _has_files(self, step: int) -> bool:
        return any(path.is_file() for path in (self._directory / str(step)).rglob("*"))

    @staticmethod
    def _read_arrays(path: pathlib.Path) -> Any:
        """All arrays of an item. Every process reads alone, so that none waits for one that fails."""
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix=f"process_{jax.process_index()}",
        )
        handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
        found = handler.metadata(path)
        if found is None:
            raise ValueError(f"{path.name} has no metadata")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), found.tree)
        return handler.restore(path, args=ocp.args.StandardRestore(like))

    def save(self, step: int, lora: dict, optimizer: Any, record: dict) -> None:
        """Starts writing a checkpoint; arrays are copied before this returns, the disk is written after.

        Args:
          step: number of steps done.
          lora: the adapter.
          optimizer: the optimizer's state.
          record: JSON values that are kept beside the arrays.
        """
        # Orbax finds files that are cut off, but not all that were changed.
        digests = {
            "lora": digest_leaves(lora),
            "optimizer": digest_leaves(optimizer),
            "record": _digest_record(record),
        }
        if not self._good:
            self.latest()  # finds what is damaged
        self._set_damaged_aside()
        arguments = ocp.args.Composite(
            lora=ocp.args.StandardSave(lora),
            optimizer=ocp.args.StandardSave(optimizer),
            record=ocp.args.JsonSave({**record, DIGESTS: digests}),
        )
        self._manager.save(step, args=arguments)

    def _set_damaged_aside(self) -> None:
        # Orbax would take a damaged checkpoint for a good one: it would not save that step again, and would delete
        # older, good ones instead.
        if not self._damaged:
            return
        barrier("damaged checkpoints")
        if is_main_process():
            for step in self._damaged:
                place, number = self._directory / f"damaged-{step}", 1
                while place.exists():
                    place, number = self._directory / f"damaged-{step}-{number}", number + 1
                (self._directory / str(step)).rename(place)
        barrier("damaged checkpoints are out of the way")
        self._damaged.clear()
        self._manager.reload()

    def read_record(self, step: int) -> dict:
        """The JSON of a checkpoint."""
        return {name: value for name, value in self._read_whole_record(step).items() if name != DIGESTS}

    def _read_whole_record(self, step: int) -> dict:
        arguments = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(step, args=arguments)["record"]

    def read_adapter(self, step: int, sharding: jax.sharding.Sharding) -> dict:
        """The adapter of a checkpoint, in the shapes in which it was saved: one that was continued has its own ranks.

        Args:
          step: of a checkpoint that `latest` returned.
          sharding: of every factor.
        """
        found = ocp.StandardCheckpointHandler().metadata(self._directory / str(step) / "lora")
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), found.tree)
        return self.restore(step, lora=like)["lora"]

    def restore(self, step: int, **like) -> dict:
        """Items of a checkpoint by name (`lora`, `optimizer`), each like the tree given for it.

        Args:
          step: of a checkpoint that `latest` returned.
          **like: for each item a tree with its structure, shapes, dtypes and shardings.

        Returns:
          the items by name.

        Raises:
          ValueError: an item differs in structure or shape from what was saved.
        """
        abstract = {name: jax.tree.map(ocp.utils.to_shape_dtype_struct, tree) for name, tree in like.items()}
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)))
