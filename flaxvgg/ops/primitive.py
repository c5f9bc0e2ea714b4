"""Primitives of JAX that a CPU computes in a way of its own."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import PartitionSpec, use_abstract_mesh
from jaxtyping import Array

from flaxvgg.ops.sharding import NO_MESH

Precision = Any  # jax.lax.PrecisionLike


def is_highest(precision: Precision) -> bool:
    """Whether float32 sums are to be as exact as they can be."""
    return precision in ("highest", "float32", lax.Precision.HIGHEST)


class Operation:
    """A function of arrays that a CPU computes in its own way; its derivatives are to be added.

    `on_cpu` and `elsewhere` take the arrays and the settings by name, `shape` the arrays' types and
    gives the result's, or raises ValueError; its dtype is the first array's. `folds` says that a
    batch of first arrays, with the others the same for all, is one larger first array, so that the
    result's first axis is the first array's; otherwise the result is the same on all devices.

    The primitive's parameters are the settings, and what a CPU does: JAX looks there for what
    depends on the devices, and may spread it over several. An exported program is to run where this
    package is not, so it has `elsewhere`'s operations on a CPU too.
    """

    def __init__(
        self,
        name: str,
        shape: Callable[..., tuple[int, ...]],
        on_cpu: Callable[..., Array],
        elsewhere: Callable[..., Array],
        *,
        folds: bool = False,
    ):
        self._folds = folds
        self.primitive = Primitive(name)

        @functools.cache
        def traced(arrays: tuple[Any, ...], settings: tuple[tuple[str, Any], ...]) -> ClosedJaxpr:
            # A size that is a symbol is an exported program's.
            is_known = all(isinstance(size, int) for array in arrays for size in array.shape)
            function = functools.partial(on_cpu if is_known else elsewhere, **dict(settings))
            with jax.disable_jit(False), use_abstract_mesh(NO_MESH):
                return jax.make_jaxpr(function)(*arrays)

        self._on_cpu = traced
        compiled = functools.cache(
            lambda settings: jax.jit(functools.partial(self.primitive.bind, **dict(settings)))
        )

        def run(*arrays: Array, **settings: Any) -> Array:
            with jax.disable_jit(False):
                return compiled(_items(settings))(*arrays)

        def result(*avals: Any, **settings: Any) -> Any:
            sharding = avals[0].sharding
            axes = sharding.spec[:1] if folds else ()
            found = shape(*avals, **settings)
            spec = PartitionSpec(*axes, *[None] * (len(found) - len(axes)))
            return avals[0].update(shape=found, sharding=sharding.update(spec=spec))

        def lowered_elsewhere(*arrays: Array, on_cpu: ClosedJaxpr, **settings: Any) -> list[Array]:
            return [elsewhere(*arrays, **settings)]

        def lowered_on_cpu(*arrays: Array, on_cpu: ClosedJaxpr, **settings: Any) -> list[Array]:
            return jaxpr_as_fun(on_cpu)(*arrays)

        def lowered_on_one_cpu(*arrays: Array, on_cpu: ClosedJaxpr, **settings: Any) -> list[Array]:
            # XLA counts the FLOPs of the larger branch, and cannot see into the other one. It
            # drops the one that never runs before it compiles anything.
            return lax.cond(
                lax.is_finite(jnp.float32(jnp.inf)),
                functools.partial(lowered_elsewhere, on_cpu=on_cpu, **settings),
                functools.partial(lowered_on_cpu, on_cpu=on_cpu),
                *arrays,
            )

        def lower_on_cpu(context: mlir.LoweringRuleContext, *operands: Any, **parameters: Any):
            if context.module_context.lowering_parameters.for_export:
                return lower[lowered_elsewhere](context, *operands, **parameters)
            devices = getattr(context.module_context.axis_context, "num_devices", None)
            rule = lowered_on_one_cpu if devices == 1 else lowered_on_cpu
            return lower[rule](context, *operands, **parameters)

        rules = lowered_elsewhere, lowered_on_cpu, lowered_on_one_cpu
        lower = {rule: mlir.lower_fun(rule, multiple_results=True) for rule in rules}
        self.primitive.def_impl(run)
        self.primitive.def_abstract_eval(result)
        mlir.register_lowering(self.primitive, lower[lowered_elsewhere])
        mlir.register_lowering(self.primitive, lower_on_cpu, "cpu")
        batching.primitive_batchers[self.primitive] = self._batch

    def __call__(self, *arrays: Array, **settings: Any) -> Array:
        varying = frozenset().union(*map(_axes, arrays))
        arrays = tuple(_varying(array, varying) for array in arrays)
        shapes = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays)
        on_cpu = self._on_cpu(shapes, _items(settings))
        return self.primitive.bind(*arrays, on_cpu=on_cpu, **settings)

    def _batch(self, arrays, axes, *, on_cpu: ClosedJaxpr, **settings: Any):
        """A batch of images is one larger batch; anything else is done one after the other."""
        mapped = [
            jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
            if axis is not None
        ]
        if self._folds and len(mapped) == 1 and axes[0] is not None:
            x = mapped[0]
            y = self(x.reshape(math.prod(x.shape[:2]), *x.shape[2:]), *arrays[1:], **settings)
            return y.reshape(*x.shape[:2], *y.shape[1:]), 0

        def of_one(each: list[Array]) -> Array:
            rest = iter(each)
            operands = [
                array if axis is None else next(rest)
                for array, axis in zip(arrays, axes, strict=True)
            ]
            return self(*operands, **settings)

        return lax.map(of_one, mapped), 0


def jvp_of(unfused: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """The derivative of an operation, for `ad.primitive_jvps`: that of a function like it."""

    def jvp(primals, tangents, *, on_cpu: ClosedJaxpr, **settings: Any) -> tuple[Array, Array]:
        moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

        def of_moving(*values: Array) -> Array:
            arrays = list(primals)
            for i, value in zip(moving, values, strict=True):
                arrays[i] = value
            return unfused(*arrays, **settings)

        return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])

    return jvp


def _axes(array: Array) -> frozenset[str]:
    """Under `jax.shard_map`, the axes of the mesh along which an array differs."""
    return jax.typeof(array).manual_axis_type.varying


def _varying(array: Array, axes: frozenset[str]) -> Array:
    missing = tuple(axes - _axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def _items(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())
