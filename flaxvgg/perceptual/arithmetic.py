"""Lengths of feature vectors, whose derivatives are finite everywhere, and means in short sums."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Vectors shorter than this have no direction. Added to LPIPS's epsilon of 1e-10, such a length is
# less than half a unit in the last place, and the square of its reciprocal is still a float32.
_SHORTEST = 1e-18


@jax.custom_jvp
def length(x: Float[Array, "*n c"]) -> Float[Array, "*n 1"]:
    """The Euclidean length of vectors, sqrt(sum_c x^2).

    Its derivative is the vector's direction, and zero for the zero vector, where that of the square
    root is infinite: the originals' gradients are NaN there. It is no product with 1 / sqrt(...),
    whose own derivative overflows for lengths under 1e-13.
    """
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def direction(x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
    """Vectors at length one; the zero vector stays as it is."""
    return by_length(x, x)


def by_length(values: Float[Array, "*n d"], x: Float[Array, "*n c"]) -> Float[Array, "*n d"]:
    """Values divided by the length of vectors, and 0 where that is zero."""
    size = length(x)
    there = size > _SHORTEST
    return jnp.where(there, values / jnp.where(there, size, 1), 0)


@length.defjvp
def _length_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return length(x), jnp.sum(direction(x) * dx, axis=-1, keepdims=True)


def magnitude(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """|x| with PyTorch's derivative, which is 0 at 0: JAX's is 1, and would move equal images."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def by_channel(values: Sequence[float] | Array | np.ndarray, x: Array) -> Array:
    """A value for each channel, with the axes and the dtype of maps x (..., c)."""
    return jnp.asarray(values, x.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


def mean_over_space(x: Float[Array, "n h w ..."]) -> Float[Array, "n ..."]:
    """The mean over height and width, by rows: one sum of all would round a hundred times as much.

    XLA is kept from making one sum of the two.
    """
    rows = jax.lax.optimization_barrier(x.sum(axis=2))
    return rows.sum(axis=1) / (x.shape[1] * x.shape[2])
