"""SmoothGrad-CAM++: Grad-CAM++ with derivatives averaged over noisy images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.cam.conventions import Convention, rectify
from flaxvgg.cam.derivatives import derivative
from flaxvgg.cam.formulas import weighted
from flaxvgg.cam.network import Network
from flaxvgg.cam.options import NoisyImages
from flaxvgg.cam.targets import Cotangent, Targets

Activations = dict[str, Float[Array, "n _ _ _"]]


def smooth_maps(
    network: Network,
    images: Float[Array, "n h w 3"],
    activations: Activations,
    scores: Float[Array, "n c"],
    targets: Targets,
    options: NoisyImages,
    layers: Sequence[str],
    convention: Convention,
) -> tuple[Float[Array, "n k _ _"], ...]:
    """Maps of the images' own activations, weighted by what noisy copies say of the gradients.

    (Omeiza et al. 2019, arXiv:1908.01224, with Grad-CAM++'s second derivatives in the numerator of
    alpha, as in torchcam: the paper prints first ones.) The noise of sample i is drawn from
    `jax.random.fold_in(key, i)`, for all images alike, so that an image is explained alike in any
    batch. One sample is held at a time.
    """

    def of_target(cotangent: Cotangent) -> tuple[Array, ...]:
        def add(sums: dict[str, _Moments], i: Array) -> tuple[dict[str, _Moments], None]:
            noise = options.noise * jax.random.normal(
                jax.random.fold_in(options.key, i), (1, *images.shape[1:]), jnp.float32
            )
            found = derivative(network, images + noise.astype(images.dtype), layers)
            gradients = found.gradients(cotangent(found.scores))
            return {x: _added(sums[x], gradients[x]) for x in layers}, None

        nothing = {x: (jnp.zeros_like(activations[x]),) * 4 for x in layers}
        sums, _ = lax.scan(add, nothing, jnp.arange(options.samples))
        return tuple(_map(activations[x], sums[x], options.samples, convention) for x in layers)

    held = 6 * sum(activations[x].nbytes for x in layers)
    return targets.map_at(scores, of_target, held)


# Sums of g, g^2 and g^3, and the last g.
_Moments = tuple[Array, Array, Array, Array]


def _added(sums: _Moments, g: Array) -> _Moments:
    first, second, third, _ = sums
    return first + g, second + g**2, third + g**3, g


def _map(
    a: Float[Array, "n h w c"], sums: _Moments, samples: int, convention: Convention
) -> Float[Array, "n h w"]:
    mean, second, third = (total / samples for total in sums[:3])
    if convention.smooth_by_last:  # torchcam: the last sample's gradient, and A within the sum
        g, inner = sums[3], (a * third).sum(axis=(1, 2), keepdims=True)
    else:
        g, inner = mean, a.sum(axis=(1, 2), keepdims=True) * third
    below = 2 * second + inner + convention.smooth_eps
    alpha = jnp.where(below == 0, 0, second / jnp.where(below == 0, 1, below))
    return weighted(a, (alpha * rectify(g)).sum(axis=(1, 2)))
