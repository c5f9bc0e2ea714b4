"""Primitives of JAX that a CPU computes in a way of its own."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import batching, mlir
from jaxtyping import Array

Precision = Any  # jax.lax.PrecisionLike


def is_highest(precision: Precision) -> bool:
    """Whether float32 sums are to be as exact as they can be."""
    return precision in ("highest", "float32", lax.Precision.HIGHEST)


class Operation:
    """A function of arrays that a CPU computes in its own way; its derivatives are to be added.

    `on_cpu` and `elsewhere` take the arrays and the settings by name, `shape` the arrays' types and
    gives the result's; its dtype is the first array's. `folds` says that a batch of first arrays,
    with the others the same for all, is one larger first array.

    The primitive's parameters are the settings, and what a CPU does: JAX looks there for what
    depends on the devices, and may spread it over several.
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
        self._on_cpu = functools.cache(
            lambda arrays, settings: jax.make_jaxpr(functools.partial(on_cpu, **dict(settings)))(
                *arrays
            )
        )
        compiled = functools.cache(
            lambda settings: jax.jit(functools.partial(self.primitive.bind, **dict(settings)))
        )

        def lowered_on_cpu(*arrays: Array, on_cpu: ClosedJaxpr, **settings: Any):
            return jaxpr_as_fun(on_cpu)(*arrays)

        def lowered_elsewhere(*arrays: Array, on_cpu: ClosedJaxpr, **settings: Any):
            return [elsewhere(*arrays, **settings)]

        self.primitive.def_impl(lambda *arrays, **settings: compiled(_items(settings))(*arrays))
        self.primitive.def_abstract_eval(
            lambda *avals, **settings: avals[0].update(shape=shape(*avals, **settings))
        )
        for platform, rule in ((None, lowered_elsewhere), ("cpu", lowered_on_cpu)):
            lowering = mlir.lower_fun(rule, multiple_results=True)
            mlir.register_lowering(self.primitive, lowering, platform)
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


def _axes(array: Array) -> frozenset[str]:
    """Under `jax.shard_map`, the axes of the mesh along which an array differs."""
    return jax.typeof(array).manual_axis_type.varying


def _varying(array: Array, axes: frozenset[str]) -> Array:
    missing = tuple(axes - _axes(array))
    return lax.pcast(array, missing, to="varying") if missing else array


def _items(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(settings.items())
