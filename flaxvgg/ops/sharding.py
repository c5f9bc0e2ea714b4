"""Meshes whose axes are explicit, as `jax.make_mesh` makes them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import PyTree


def spread_by_xla(
    function: Callable[..., PyTree],
    images: Any,
    *others: PyTree,
    result: PartitionSpec | None = None,
) -> PyTree:
    """`function(images, *others)`, with a mesh's explicit axes taken as automatic ones.

    Along explicit axes, as `jax.make_mesh` makes them, every operation has to know where its result
    lies; here only the whole has to: as `result` says, by default along the images' first axis.
    """
    types = map(jax.typeof, jax.tree.leaves((images, others)))
    mesh = next((type.sharding.mesh for type in types if type.sharding.mesh.explicit_axes), None)
    if mesh is None:
        return function(images, *others)
    spec = PartitionSpec(*jax.typeof(images).sharding.spec[:1]) if result is None else result
    automatic = jax.sharding.auto_axes(
        function, axes=mesh.explicit_axes, out_sharding=NamedSharding(mesh, spec)
    )
    return automatic(images, *others)
