"""Meshes whose axes are explicit, as `jax.make_mesh` makes them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, use_abstract_mesh
from jaxtyping import Array, PyTree

NO_MESH = AbstractMesh((), ())


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


def sum_over_devices(array: Array, axes: str | tuple[str, ...]) -> Array:
    """`jax.lax.psum` for the rule of a `custom_partitioning`, whatever mesh the caller has set.

    Such a rule is lowered while XLA compiles. With `jax.set_mesh` JAX would write a sharding into
    the addition that it hands to XLA's all-reduce, and XLA refuses that.
    """
    return _summed.bind(array, axes=axes)


def _lower_sum(
    context: mlir.LoweringRuleContext, operand: Any, *, axes: str | tuple[str, ...]
) -> Any:
    with use_abstract_mesh(NO_MESH):
        sum_of = mlir.lower_fun(lambda y: jax.lax.psum(y, axes), multiple_results=False)
        return sum_of(context, operand)


_summed = Primitive("sum_over_devices")
_summed.def_abstract_eval(lambda array, **_: array)
mlir.register_lowering(_summed, _lower_sum)
