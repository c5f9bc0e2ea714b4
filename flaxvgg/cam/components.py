"""First principal components of activations, whose sign is fixed and which run on every device."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Activations = Float[Array, "n h w c"]
Maps = Float[Array, "n h w"]


def principal_component(x: Activations) -> Maps:
    """Every place's coordinate along the first principal component of the channels.

    What Eigen-CAM shows of the activations (Muhammad & Yeasin 2020, arXiv:2008.00299), centred as
    in the package grad-cam; uncentred it is nearly the mean map. The sign, which nothing
    determines, is the one that makes the map rise with the sum over the channels.
    """
    n, h, w, channels = x.shape
    rows = x.reshape(n, h * w, channels)
    scale = jnp.max(jnp.abs(rows), axis=(1, 2), keepdims=True)
    rows = rows / jnp.where(scale > 0, scale, 1)  # squares of small gradients would underflow
    centred = rows - rows.mean(axis=1, keepdims=True)
    # The smaller of the two Gram matrices: (hw, hw) gives the map itself, (C, C) its axis.
    if h * w <= channels:
        coordinates = _coordinates(_products(centred))
    else:
        gram = jnp.einsum("npc,npd->ncd", centred, centred, precision="highest")
        axis = _first_eigenvector(gram)
        coordinates = jnp.einsum("npc,nc->np", centred, axis, precision="highest")
    return _rising(coordinates * scale[..., 0], x)


def kernel_component(x: Activations, gamma: Float[Array, ""] | float) -> Maps:
    """The same of the kernel tanh(gamma <x, y> + 1) of two places, as scikit-learn's KernelPCA.

    The places' products come from the centred channels, and the kernel is centred again. It is no
    positive kernel; its largest eigenvalue counts, not the largest magnitude. A matrix
    (hw, hw) is held for each image.
    """
    n, h, w, channels = x.shape
    rows = x.reshape(n, h * w, channels)
    centred = rows - rows.mean(axis=1, keepdims=True)
    # Less tanh(1), which centring would take away: maps of zeros then give exact zeros.
    kernel = jnp.tanh(gamma * _products(centred) + 1) - jnp.tanh(jnp.ones((), x.dtype))
    means = kernel.mean(axis=1, keepdims=True)
    kernel = kernel - means - means.mT + means.mean(axis=2, keepdims=True)
    return _rising(_coordinates(kernel, positive=False), x)


def _products(rows: Float[Array, "n p c"]) -> Float[Array, "n p p"]:
    return jnp.einsum("npc,nqc->npq", rows, rows, precision="highest")


def _coordinates(gram: Float[Array, "n p p"], positive: bool = True) -> Float[Array, "n p"]:
    """The first eigenvector, as long as the root of its eigenvalue."""
    if positive:
        vector = _first_eigenvector(gram)
    else:  # its norm added to every eigenvalue leaves none that is negative
        norm = jnp.sqrt((gram**2).sum(axis=(1, 2), keepdims=True))
        vector = _first_eigenvector(gram + norm * jnp.eye(gram.shape[1], dtype=gram.dtype)[None])
    value = jnp.einsum("np,npq,nq->n", vector, gram, vector, precision="highest")
    return vector * jnp.sqrt(jnp.maximum(value, 0))[:, None]


def _rising(coordinates: Float[Array, "n p"], x: Activations) -> Maps:
    """As maps, which rise with the sum of x over the channels."""
    total = x.sum(axis=-1).reshape(coordinates.shape)
    centred = total - total.mean(axis=1, keepdims=True)
    rising = (coordinates * centred).sum(axis=1, keepdims=True)
    return jnp.where(rising < 0, -coordinates, coordinates).reshape(x.shape[:3])


def _first_eigenvector(gram: Float[Array, "n m m"]) -> Float[Array, "n m"]:
    """The eigenvector of the largest eigenvalue; zero for a matrix of zeros.

    By squaring the matrix 14 times, which is the power method with 16,384 steps: on real features
    as exact as LAPACK, many at a time several times as fast, and the same code on every device.
    """

    def normalised(matrix: Array) -> Array:
        trace = jnp.trace(matrix, axis1=1, axis2=2)[:, None, None]
        return matrix / jnp.where(trace > 0, trace, 1)

    def squared(_, matrix: Array) -> Array:
        return normalised(jnp.einsum("npq,nqr->npr", matrix, matrix, precision="highest"))

    power = lax.fori_loop(0, 14, squared, normalised(gram))
    longest = jnp.diagonal(power, axis1=1, axis2=2).argmax(axis=1)
    column = jnp.take_along_axis(power, longest[:, None, None], axis=2)[..., 0]
    length = jnp.linalg.norm(column, axis=1, keepdims=True)
    return column / jnp.where(length > 0, length, 1)
