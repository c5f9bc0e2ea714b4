"""A matrix-vector product that reads only the rows of the matrix that meet a non-zero."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg import products

_ROWS = 16  # read in one step, and summed pairwise before they join the rest


def skip_product(
    x: Float[Array, " k"], kernel: Float[Array, "k o"], capacity: int
) -> Float[Array, " o"]:
    """`x @ kernel` where at most `capacity` values of x are not zero, else the dense product.

    A row that meets a zero adds nothing, so leaving it out is exact for every finite kernel; the
    two products differ by the order in which they round. NaN is no zero. The dense product is that
    of a layer at precision "highest".
    """
    capacity = -(-min(capacity, len(x)) // _ROWS) * _ROWS
    count = (x != 0).sum(dtype=jnp.int32)
    return lax.cond(count <= capacity, partial(_skip, capacity=capacity), _dense, x, kernel, count)


def _dense(x: Array, kernel: Array, count: Array) -> Array:
    (y,) = products.dot_general(x[None], kernel, (((1,), (0,)), ((), ())), precision="highest")
    return y


def _skip(x: Array, kernel: Array, count: Array, *, capacity: int) -> Array:
    (places,) = jnp.nonzero(x, size=capacity)
    # The last step is filled up with the first row, times 0.
    used = jnp.arange(capacity) < count
    places = jnp.where(used, places, places[0]).astype(jnp.int32)
    values = jnp.where(used, x[places], 0)

    def add_rows(step: Array, total: Array) -> Array:
        at = [step * _ROWS + i for i in range(_ROWS)]
        terms = [
            values[i] * lax.dynamic_index_in_dim(kernel, places[i], keepdims=False) for i in at
        ]
        while len(terms) > 1:
            terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)]
        return total + terms[0]

    # As many steps as there are non-zeros: the capacity costs nothing where it is not needed.
    steps = (count + _ROWS - 1) // _ROWS
    return lax.fori_loop(0, steps, add_rows, jnp.zeros(kernel.shape[1], kernel.dtype))


def skip_dot_general(
    lhs: Float[Array, "n k"], rhs: Float[Array, "k o"], dimension_numbers: Any, **kwargs: Any
) -> Float[Array, "n o"]:
    """`jax.lax.dot_general` as `nnx.Linear` calls it: `skip_product` where there is one image.

    Up to half of the rows are skipped to; with more the dense product is as fast.
    """
    if len(lhs) > 1:
        return products.dot_general(lhs, rhs, dimension_numbers, **kwargs)
    return skip_product(lhs[0], rhs, capacity=len(rhs) // 2)[None]
