"""Devices: one mesh with a data axis; rows are split over it, everything else is on every device."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices=None) -> Mesh:
    """A mesh with axis `data` over `devices` (default: all local ones)."""
    devices = jax.local_devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the data axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_rows(mesh: Mesh, rows: int, name: str) -> None:
    """Raises ValueError if `rows` cannot be split evenly over the data axis."""
    size = mesh.shape["data"]
    if rows % size:
        raise ValueError(
            f"{name} = {rows} rows cannot be split over {size} devices; "
            f"use a multiple of {size}, for example {-(-rows // size) * size}"
        )


def put_rows(mesh: Mesh, tree):
    """Host arrays [B, ...] onto the mesh, B split over the data axis."""
    return jax.device_put(tree, jax.tree.map(lambda _: split_rows(mesh), tree))
