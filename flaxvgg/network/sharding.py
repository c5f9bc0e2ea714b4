"""Many devices: a mesh, how a model or a state of training lies on it, and a batch across it.

JAX does the rest: a function under `jax.jit` computes where its arguments lie, each device with its
own images, and sends between devices what that takes.

    mesh = flaxvgg.data_mesh()
    state = flaxvgg.place(trainer.start(model), mesh, flaxvgg.fully_sharded)
    state, metrics = trainer.step(state, *flaxvgg.shard_batch((images, labels), mesh))
"""

import collections
from collections.abc import Callable, Sequence
from itertools import starmap
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

Device = Any  # jax.Device, which type checkers take for a variable
# From the name of an array ("head.fc6.kernel"), the array or its type, and the mesh.
Rule = Callable[[str, Any, Mesh], PartitionSpec]


def data_mesh(devices: Sequence[Device] | None = None) -> Mesh:
    """A mesh with one axis, "data": by default all devices of all processes.

    >>> flaxvgg.data_mesh().axis_names
    ('data',)
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(path: str, array: Any, mesh: Mesh) -> PartitionSpec:
    """The rule by which every device holds everything.

    >>> mesh = flaxvgg.data_mesh()
    >>> model = flaxvgg.place(model, mesh, flaxvgg.replicated)
    """
    return PartitionSpec()


def fully_sharded(path: str, array: Any, mesh: Mesh, *, least: int = 2**18) -> PartitionSpec:
    """The rule by which each device holds its part of every large array, as in ZeRO and FSDP.

    An array of at least `least` values is cut along the largest axis that the number of devices
    divides; smaller ones, and those that have no such axis, are whole on every device. A layer's
    parameters are gathered where they are used. (Rajbhandari et al. 2020, arXiv:1910.02054)

    >>> mesh = flaxvgg.data_mesh()
    >>> model = flaxvgg.place(model, mesh, flaxvgg.fully_sharded)
    """
    fitting = [axis for axis, size in enumerate(array.shape) if size % mesh.size == 0]
    if array.size < least or not fitting:
        return PartitionSpec()
    largest = max(fitting, key=lambda axis: array.shape[axis])
    return PartitionSpec(*[None] * largest, mesh.axis_names)


def place(tree: PyTree, mesh: Mesh, rule: Rule = replicated) -> PyTree:
    """The same model, state or other pytree of arrays on the devices of a mesh.

    A rule is any function from an array's name (such as "head.fc6.kernel", in a state
    "trained.head.fc6.kernel"), the array and the mesh to a `jax.sharding.PartitionSpec`. Of several
    processes each gives the same arrays. What a device has already is shared, not copied. Raises
    ValueError where a rule's answer does not fit the array or the mesh.

    >>> mesh = flaxvgg.data_mesh()
    >>> model = flaxvgg.place(model, mesh, flaxvgg.fully_sharded)
    """

    def sharding(path: Any, array: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        spec = rule(name, array, mesh)
        try:
            found = NamedSharding(mesh, spec)
            found.check_compatible_aval(array.shape)
            found.shard_shape(array.shape)
        except ValueError as error:
            devices = ", ".join(f"{axis} of {size}" for axis, size in mesh.shape.items())
            raise ValueError(
                f"{name} of shape {array.shape} cannot be placed by {spec} on a mesh with "
                f"{devices}: a rule names axes of the mesh, each once, for axes of the array that "
                "they divide"
            ) from error
        return found

    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    arrays = [array for _, array in leaves]
    return jax.tree.unflatten(structure, jax.device_put(arrays, list(starmap(sharding, leaves))))


def whole(tree: PyTree) -> PyTree:
    """The same model, state or other pytree with all of every array on one device of this process.

    What is divided is put together: of several processes all have to call it.

    >>> model = flaxvgg.place(model, flaxvgg.data_mesh(), flaxvgg.fully_sharded)
    >>> whole(model).head.fc.kernel.sharding.is_fully_replicated
    True
    """

    def of_array(array: Any) -> Any:
        if not isinstance(array, jax.Array):
            return array
        if isinstance(array.sharding, NamedSharding) and not array.is_fully_replicated:
            array = jax.device_put(array, array.sharding.update(spec=PartitionSpec()))
        return array.addressable_data(0) if array.is_fully_replicated else array

    return jax.tree.map(of_array, tree)


def batch_mesh(devices: Sequence[Device], batch: int) -> Mesh:
    """A mesh of as many devices of each process as divide a batch.

    Raises ValueError where the processes do not divide it.
    """
    of_process: dict[int, list[Device]] = collections.defaultdict(list)
    for device in devices:
        of_process[device.process_index].append(device)
    parts, least = len(of_process), min(map(len, of_process.values()))
    if batch % parts:
        raise ValueError(
            f"batch = {batch} cannot be shared by {parts} processes: make it a multiple of {parts}"
        )
    each = next(n for n in range(least, 0, -1) if batch % (n * parts) == 0)
    return data_mesh([x for _, found in sorted(of_process.items()) for x in found[:each]])


def shard_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """The arrays of a batch across the mesh, by their first axis: the images.

    Of several processes each gives its own part, and the batch is all of them, one behind the
    other. Raises ValueError where the devices do not divide it.

    >>> batch = flaxvgg.shard_batch(images, flaxvgg.data_mesh())
    >>> model.gap(batch).shape
    (2, 512)
    """
    devices = len(mesh.local_devices)
    lengths = {len(array) for array in jax.tree.leaves(batch)}
    if any(length % devices for length in lengths):
        raise ValueError(
            f"{max(lengths)} images cannot be shared by {devices} devices: make the batch of a "
            f"process a multiple of {devices}, or use fewer (data_mesh(devices))"
        )
    across = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.tree.map(lambda array: jax.make_array_from_process_local_data(across, array), batch)
