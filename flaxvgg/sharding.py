"""Many devices: a mesh, and rules by which a model or a state of training lies on it."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Rule = Callable[[str, Any, Mesh], PartitionSpec]

_LEAST = 2**18  # values: smaller arrays are whole on every device, as a message costs more


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(path: str, array: Any, mesh: Mesh) -> PartitionSpec:
    return PartitionSpec()


def fully_sharded(path: str, array: Any, mesh: Mesh) -> PartitionSpec:
    fitting = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if array.size < _LEAST or not fitting:
        return PartitionSpec()
    largest = max(fitting, key=lambda axis: array.shape[axis])
    return PartitionSpec(*[None] * largest, mesh.axis_names)


def place(tree: PyTree, mesh: Mesh, rule: Rule = replicated) -> PyTree:
    def sharding(path: Any, array: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return NamedSharding(mesh, rule(name, array, mesh))

    return jax.device_put(tree, jax.tree_util.tree_map_with_path(sharding, tree))
