"""Class activation maps of one layer and one class, as pure functions.

Each takes activations A and the gradient g of a logit by them, both (N, h, w, C) in float32, and
gives raw signed maps (N, h, w). Nothing is clamped, scaled or resized here; the conventions of
`flaxvgg.cam.conventions` do that, and hold the eps that some weights need.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.cam.conventions import Convention, rectify

Activations = Float[Array, "n h w c"]
Weights = Float[Array, "n c"]
Maps = Float[Array, "n h w"]


def weighted(activations: Activations, weights: Weights) -> Maps:
    """The sum of the channels, each times its weight."""
    return jnp.einsum("nhwc,nc->nhw", activations, weights, precision="highest")


def grad_cam(a: Activations, g: Activations, convention: Convention) -> Maps:
    """Channels weighted by their mean gradient (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1)."""
    return weighted(a, g.mean(axis=(1, 2)))


def grad_cam_plus_plus(a: Activations, g: Activations, convention: Convention) -> Maps:
    """Weights by second derivatives (Chattopadhay et al. 2018, arXiv:1710.11063, eqs. 7 and 19).

    alpha = g^2 / (2 g^2 + sum(A) g^3); weight = sum(alpha relu(g)). The score is exp(logit); the
    factor that it puts before every weight of a class is left out.
    """
    if convention.plus_plus_alpha == "none":
        alpha = g**2
    else:
        # Divided by g^2, so that small gradients do not underflow; only positive ones count.
        inverse = 2 + a.sum(axis=(1, 2), keepdims=True) * g
        if convention.plus_plus_eps:
            inverse = inverse + convention.plus_plus_eps / g**2
        alpha = jnp.where(g > 0, 1 / inverse, 0)
    return weighted(a, (alpha * rectify(g)).sum(axis=(1, 2)))


def xgrad_cam(a: Activations, g: Activations, convention: Convention) -> Maps:
    """Gradients averaged with activations as weights (Fu et al. 2020, arXiv:2008.02312, eq. 8)."""
    total = a.sum(axis=(1, 2)) + convention.xgrad_eps
    # A channel of zeros has no weight, and needs none.
    weights = jnp.where(total == 0, 0, (g * a).sum(axis=(1, 2)) / jnp.where(total == 0, 1, total))
    return weighted(a, weights)


def hires_cam(a: Activations, g: Activations, convention: Convention) -> Maps:
    """The sum over channels of g A (Draelos & Carin 2020, arXiv:2011.08891)."""
    return jnp.einsum("nhwc,nhwc->nhw", g, a, precision="highest")


def layer_cam(a: Activations, g: Activations, convention: Convention) -> Maps:
    """The sum over channels of relu(g) A (Jiang et al. 2021, IEEE TIP 30, eq. 6)."""
    return (rectify(g) * a).sum(axis=-1)


def elementwise_grad_cam(a: Activations, g: Activations, convention: Convention) -> Maps:
    """The sum over channels of relu(g A), as in the package grad-cam."""
    return rectify(g * a).sum(axis=-1)


def eigen_grad_cam(a: Activations, g: Activations, convention: Convention) -> Maps:
    """The first principal component of g A, as in the package grad-cam."""
    return principal_component(g * a)


def principal_component(x: Activations) -> Maps:
    """Every place's coordinate along the first principal component of the channels.

    What Eigen-CAM shows of the activations (Muhammad & Yeasin 2020, arXiv:2008.00299), centred as
    in the package grad-cam; uncentred it is nearly the mean map. The sign, which nothing
    determines, is the one that makes the map rise with the sum over the channels.
    """
    n, h, w, channels = x.shape
    rows = x.reshape(n, h * w, channels)
    total = rows.sum(axis=-1)
    scale = jnp.max(jnp.abs(rows), axis=(1, 2), keepdims=True)
    rows = rows / jnp.where(scale > 0, scale, 1)  # squares of small gradients would underflow
    centred = rows - rows.mean(axis=1, keepdims=True)
    # The smaller of the two Gram matrices: (hw, hw) gives the map itself, (C, C) its axis.
    if h * w <= channels:
        gram = jnp.einsum("npc,nqc->npq", centred, centred, precision="highest")
        vector = _first_eigenvector(gram)
        value = jnp.einsum("np,npq,nq->n", vector, gram, vector, precision="highest")
        coordinates = vector * jnp.sqrt(jnp.maximum(value, 0))[:, None]
    else:
        gram = jnp.einsum("npc,npd->ncd", centred, centred, precision="highest")
        axis = _first_eigenvector(gram)
        coordinates = jnp.einsum("npc,nc->np", centred, axis, precision="highest")
    rising = (coordinates * (total - total.mean(axis=1, keepdims=True))).sum(axis=1, keepdims=True)
    signed = jnp.where(rising < 0, -coordinates, coordinates) * scale[..., 0]
    return signed.reshape(n, h, w)


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


# Methods that need the gradient at the layer, and nothing else but the activations.
GRADIENT_METHODS: dict[str, Callable[[Array, Array, Convention], Array]] = {
    "grad_cam": grad_cam,
    "grad_cam++": grad_cam_plus_plus,
    "xgrad_cam": xgrad_cam,
    "hires_cam": hires_cam,
    "layer_cam": layer_cam,
    "elementwise_grad_cam": elementwise_grad_cam,
    "eigen_grad_cam": eigen_grad_cam,
}
