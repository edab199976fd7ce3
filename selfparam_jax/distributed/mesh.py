"""Devices and processes: one mesh of three axes, and one table of how arrays are split over it.

`data` and `fsdp` split the rows of a batch; `fsdp` also splits the weights, which are gathered layer by layer;
`tensor` splits heads, the feed-forward's width and the vocabulary. Several processes (hosts) run one program in
lockstep: an array may then be spread over devices that are not this process's.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from selfparam_jax.distributed.ranges import Range, check_ranges

AXES = ("data", "fsdp", "tensor")
AXIS_SIZE = Range(1, 2**20, also={-1: "whatever is left"})

# Names of the axes of parameters and activations, and the axes of the mesh they are split over. An axis that is not
# here ("layers", positions, an activation's hidden axis, an adapter's rank) is whole on every device.
RULES = {
    "rows": ("data", "fsdp"),  # of a batch
    "groups": ("data",),  # of rows whose hidden axis is split
    "hidden": ("fsdp",),  # of a weight
    "heads": ("tensor",),  # of queries, or of keys and values
    "inner": ("tensor",),  # of the feed-forward
    "vocabulary": ("tensor",),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh's axes over the devices of all processes, and how long processes wait for each other.

    Rows of a batch are split over data x fsdp, weights over fsdp x tensor. A run may be resumed with other sizes.

    Attributes:
      data: parts that rows are split into; each holds all weights. -1 is whatever the others leave.
      fsdp: parts that rows and weights are split into; -1 is whatever the others leave.
      tensor: parts that heads, the feed-forward's width and the vocabulary are split into; -1 is whatever the others
        leave.
      stall_limit_s: seconds without a finished step, reading or batch of answers after which all processes end with
        a message; 0 waits without a limit.
    """

    data: Annotated[int, AXIS_SIZE] = -1
    fsdp: Annotated[int, AXIS_SIZE] = 1
    tensor: Annotated[int, AXIS_SIZE] = 1
    stall_limit_s: Annotated[float, Range(1, 1e7, also={0: "wait without a limit"})] = 1800.0

    def __post_init__(self):
        check_ranges(self, "mesh")
        given = self._axes()
        if list(given.values()).count(-1) > 1:
            raise ValueError(f"mesh = {given}, expected at most one -1 (whatever is left)")

    def _axes(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in AXES}

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The sizes of data, fsdp and tensor on this number of devices.

        Raises:
          ValueError: they do not fit.
        """
        sizes = tuple(self._axes().values())
        fixed = math.prod(size for size in sizes if size != -1)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            given = " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
            raise ValueError(
                f"a mesh of {given} does not fit {devices} devices; "
                "set one axis to -1, and the others to sizes whose product divides the number of devices"
            )
        return tuple(devices // fixed if size == -1 else size for size in sizes)


def gather_options(mesh: Mesh) -> dict[str, bool] | None:
    """Options of the compiler for a program that gathers weights layer by layer; None where it does not.

    Without them, the TPU's compiler waits for these gathers on small slices instead of computing meanwhile.
    """
    if mesh.devices.flat[0].platform != "tpu" or mesh.shape["fsdp"] == 1:
        return None
    return {"xla_enable_async_all_gather": True, "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True}


def make_mesh(devices: Sequence | None = None, config: MeshConfig = MeshConfig()) -> Mesh:
    """A mesh over `devices` (default: all of all processes).

    Raises:
      ValueError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spec(*names: str | None) -> PartitionSpec:
    """How an array with these axes is split, by the table above."""
    return PartitionSpec(*(RULES.get(name) for name in names))


def shards(mesh: Mesh, name: str) -> int:
    """Into how many parts an axis of this name is cut."""
    return math.prod(mesh.shape[axis] for axis in RULES[name])


@dataclasses.dataclass(frozen=True)
class ActivationSharding:
    """How activations are split over a mesh; `models.decoder.Decoder` takes it to run on more than one device."""

    mesh: Mesh

    def __call__(self, x: jax.Array, *names: str | None) -> jax.Array:
        """`x`, constrained to be split by the names of its axes; rows that do not divide evenly are not split."""
        (split,) = self._specs([x], [names])
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, split))

    def each_alone(
        self, function: Callable, given: Sequence[jax.Array], names: Sequence[tuple], result: tuple
    ) -> jax.Array:
        """`function(*given)`, computed by every device from its own parts of the arrays.

        Args:
          function: of arrays, to one array of the first one's shape.
          given: its arguments.
          names: for each argument the names of its axes, as in `__call__`.
          result: the names of the result's axes.

        Returns:
          the result, split by its names.
        """
        *into, out = self._specs([*given, given[0]], [*names, result])
        # Unchecked: a kernel does not declare over which axes of the mesh its result varies.
        alone = jax.shard_map(function, mesh=self.mesh, in_specs=tuple(into), out_specs=out, check_vma=False)
        return alone(*given)

    def _specs(self, arrays: Sequence[jax.Array], names: Sequence[tuple]) -> list[PartitionSpec]:
        """How arrays with these axes are split; the rows of all of them or of none."""
        batch = ("rows", "groups")
        axes = [pair for x, own in zip(arrays, names, strict=True) for pair in zip(own, x.shape, strict=True)]
        if any(size % self.row_shards for name, size in axes if name in batch):
            names = [[None if name in batch else name for name in own] for own in names]
        return [spec(*own) for own in names]

    @property
    def row_shards(self) -> int:
        return shards(self.mesh, "rows")


def activation_sharding(mesh: Mesh) -> ActivationSharding | None:
    """The sharding of activations over a mesh; None for a single device, where there is nothing to split."""
    return ActivationSharding(mesh) if mesh.size > 1 else None


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """This axis split like the rows of a batch."""
    return NamedSharding(mesh, spec(*(None,) * axis, "rows"))


def check_rows(mesh: Mesh, rows: int, name: str) -> None:
    """Raises ValueError if `rows` cannot be split evenly over the mesh."""
    size = shards(mesh, "rows")
    if rows % size:
        raise ValueError(
            f"{name} = {rows} rows cannot be split over {size} devices (mesh axes data x fsdp); "
            f"use a multiple of {size}, for example {-(-rows // size) * size}"
        )


def round_up_rows(mesh: Mesh, rows: int, accumulate: int = 1) -> int:
    """The least batch size of at least `rows` that the mesh can split evenly.

    Args:
      mesh: rows are split over its axes data x fsdp.
      rows: the batch size that is wanted.
      accumulate: parts that a batch is cut into; each of them is split.

    Returns:
      a multiple of accumulate x data x fsdp.
    """
    multiple = shards(mesh, "rows") * accumulate
    return -(-rows // multiple) * multiple


def put_rows(mesh: Mesh, tree, axis: int = 0):
    """Puts host arrays, the same on every process, onto the mesh, with the given axis split like rows."""
    return jax.tree.map(lambda x: _put(np.asarray(x), split_rows(mesh, axis)), tree)


def put_same(mesh: Mesh, tree):
    """Puts host arrays, or arrays on the mesh, onto every device."""
    return jax.device_put(tree, replicated(mesh))


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, wherever its parts are; every process must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def share_of(count: int) -> slice:
    """Which of `count` items this process keeps: contiguous, and as even as possible."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def all_agree(flags: Sequence[bool]) -> np.ndarray:
    """Which of the flags are set on every process, bool [len(flags)]."""
    here = np.asarray(flags, bool)
    if jax.process_count() == 1 or not len(here):
        return here
    return np.asarray(multihost_utils.process_allgather(here)).all(axis=0)


def sum_of_shares(array: np.ndarray) -> np.ndarray:
    """The sum over processes, on the host, of arrays that are zero where another process has the value."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0, dtype=array.dtype)


def put_rows_of_shares(mesh: Mesh, array: np.ndarray, axis: int = 0) -> jax.Array:
    """Puts rows [..., D] onto the mesh as `put_rows` does, where every process has its share and zeros elsewhere.

    They are added up on the devices: what a process lacks comes directly from the others, and no host holds all.
    """
    if jax.process_count() == 1:
        return _put(array, split_rows(mesh, axis))
    by_process = _by_process(mesh)
    last = "local" if array.shape[-1] % by_process.shape["local"] == 0 else None
    parts = NamedSharding(by_process, PartitionSpec("process", *(None,) * (array.ndim - 1), last))
    # Every process only ever asks for its own part.
    shares = jax.make_array_from_callback(
        (jax.process_count(), *array.shape), parts, lambda index: array[index[1:]][None]
    )
    return _summed(split_rows(mesh, axis))(shares)


@functools.lru_cache(maxsize=8)
def _by_process(mesh: Mesh) -> Mesh:
    devices = sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    grid = np.asarray(devices).reshape(jax.process_count(), -1)
    return Mesh(grid, ("process", "local"), axis_types=(AxisType.Auto,) * 2)


@functools.lru_cache(maxsize=8)
def _summed(sharding: NamedSharding):
    return jax.jit(lambda shares: jnp.sum(shares, axis=0, dtype=shares.dtype), out_shardings=sharding)
