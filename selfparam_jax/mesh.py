"""Devices and processes: one mesh of three axes, and the one table of what lies where on it.

`data` and `fsdp` split the rows of a batch; `fsdp` also splits the weights, which are gathered layer by layer;
`tensor` splits heads, the feed-forward's width and the vocabulary. Several processes (hosts) run one program in
lockstep: an array may then be spread over devices that are not this process's.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# What the axes of parameters and activations mean, and which axes of the mesh they are split over. What is not
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
    """Sizes of the mesh's axes; -1 is whatever the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        wrong = {name: size for name, size in sizes.items() if size < 1 and size != -1}
        if wrong or list(sizes.values()).count(-1) > 1:
            raise ValueError(f"mesh = {sizes}, expected sizes of 1 or more and at most one -1 (whatever is left)")

    def sizes(self, devices: int) -> tuple[int, ...]:
        """The sizes on so many devices.

        Raises:
          ValueError: they do not fit.
        """
        sizes = dataclasses.astuple(self)
        fixed = math.prod(size for size in sizes if size != -1)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            given = " x ".join(f"{name} {size}" for name, size in zip(AXES, sizes, strict=True))
            raise ValueError(
                f"a mesh of {given} does not fit {devices} devices; "
                "set one axis to -1, and the others to sizes whose product divides the number of devices"
            )
        return tuple(devices // fixed if size == -1 else size for size in sizes)


def make_mesh(devices: Sequence | None = None, config: MeshConfig = MeshConfig()) -> Mesh:
    """A mesh over `devices` (default: all of all processes).

    Raises:
      ValueError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def spec(*names: str | None) -> PartitionSpec:
    """What an array with these axes is split over, by the table above."""
    return PartitionSpec(*(RULES.get(name) for name in names))


def shards(mesh: Mesh, name: str) -> int:
    """Into how many parts an axis of this name is cut."""
    return math.prod(mesh.shape[axis] for axis in RULES[name])


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where activations lie: what `model.Decoder` is given to run on more than one device."""

    mesh: Mesh

    def __call__(self, x: jax.Array, *names: str | None) -> jax.Array:
        """`x` laid out by the names of its axes. Rows that cannot be split evenly are on every device."""
        (split,) = self._specs([x], [names])
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, split))

    def each_alone(
        self, function: Callable, given: Sequence[jax.Array], names: Sequence[tuple], result: tuple
    ) -> jax.Array:
        """`function(*given)`, computed by every device from its own parts of the arrays.

        Args:
          names: per array those of its axes, as `__call__` takes them.
          result: those of what the function gives, which is of the first array's shape.
        """
        *into, out = self._specs([*given, given[0]], [*names, result])
        # Unchecked: a kernel does not say over which axes of the mesh its result varies.
        alone = jax.shard_map(function, mesh=self.mesh, in_specs=tuple(into), out_specs=out, check_vma=False)
        return alone(*given)

    def _specs(self, arrays: Sequence[jax.Array], names: Sequence[tuple]) -> list[PartitionSpec]:
        """What arrays with these axes are split over; all rows or none."""
        batch = ("rows", "groups")
        axes = [pair for x, own in zip(arrays, names, strict=True) for pair in zip(own, x.shape, strict=True)]
        if any(size % self.row_shards for name, size in axes if name in batch):
            names = [[None if name in batch else name for name in own] for own in names]
        return [spec(*own) for own in names]

    @property
    def row_shards(self) -> int:
        return shards(self.mesh, "rows")


def layout_of(mesh: Mesh) -> Layout | None:
    """The layout of a mesh; None for a single device, where there is nothing to lay out."""
    return Layout(mesh) if mesh.size > 1 else None


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


def put_rows(mesh: Mesh, tree, axis: int = 0):
    """Host arrays, the same on every process, onto the mesh, their axis of this number split like rows."""
    return jax.tree.map(lambda x: _put(np.asarray(x), split_rows(mesh, axis)), tree)


def put_same(mesh: Mesh, tree):
    """Host arrays or arrays on the mesh onto every device."""
    return jax.device_put(tree, replicated(mesh))


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """An array on the host, wherever its parts lie; every process must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def share_of(count: int) -> slice:
    """Which of `count` things are this process's to keep: contiguous, as even as possible."""
    index, processes = jax.process_index(), jax.process_count()
    return slice(count * index // processes, count * (index + 1) // processes)


def agreed(flags: Sequence[bool]) -> np.ndarray:
    """Which of some flags are set on every process, bool [len(flags)]."""
    here = np.asarray(flags, bool)
    if jax.process_count() == 1 or not len(here):
        return here
    return np.asarray(multihost_utils.process_allgather(here)).all(axis=0)


def sum_of_shares(array: np.ndarray) -> np.ndarray:
    """The sum over processes, on the host, of arrays that are zero where another process has something."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0, dtype=array.dtype)


def put_rows_of_shares(mesh: Mesh, array: np.ndarray, axis: int = 0) -> jax.Array:
    """Rows [..., D] of which every process has its share and zeros elsewhere, onto the mesh as `put_rows` does.

    They meet on the devices: what a process needs comes from the others directly and no host holds all.
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
