"""Class activation maps of one layer and one class, as pure functions.

Each takes activations A and the gradient g of a logit by them, both (N, h, w, C) in float32, and
gives raw signed maps (N, h, w). Nothing is clamped, scaled or resized here; the conventions of
`flaxvgg.cam.conventions` do that, and hold the eps that some weights need.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.cam.components import kernel_component, principal_component
from flaxvgg.cam.conventions import Convention, rectify
from flaxvgg.cam.options import Kernel, NoOptions, Rarity

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


def fem(a: Activations, options: Rarity) -> Maps:
    """Channels weighted by their share of rare places, some deviations above their mean.

    The feature explanation method (Fuad et al. 2020, IPTA), as in the package grad-cam, where
    they are two.
    """
    above = a - a.mean(axis=(1, 2), keepdims=True)
    deviation = jnp.sqrt((above**2).mean(axis=(1, 2), keepdims=True))
    rare = (above > options.sigmas * deviation).astype(a.dtype)
    return weighted(a, rare.mean(axis=(1, 2)))


def eigen_cam(a: Activations, options: NoOptions) -> Maps:
    """The first principal component of the activations."""
    return principal_component(a)


def kpca_cam(a: Activations, options: Kernel) -> Maps:
    """The first component of a sigmoid kernel (Karmani et al. 2024, arXiv:2410.00267).

    As in the package grad-cam, but for the sign, which is fixed as Eigen-CAM's.
    """
    return kernel_component(a, 1 / a.shape[-1] if options.gamma is None else options.gamma)


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

# Methods that see the activations alone, and know no classes.
FEATURE_METHODS: dict[str, Callable[[Array, Any], Array]] = {
    "eigen_cam": eigen_cam,
    "fem": fem,
    "kpca_cam": kpca_cam,
}
