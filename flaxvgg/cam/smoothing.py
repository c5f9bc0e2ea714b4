"""SmoothGrad-CAM++: Grad-CAM++ with derivatives averaged over noisy images."""

from collections.abc import Sequence
from typing import NamedTuple

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
    alpha, as in torchcam: the paper prints first ones.) torchcam takes the last sample's gradient
    in place of the mean one, and weighs that sample's activations. The noise of sample i is drawn
    from `jax.random.fold_in(key, i)`, for all images alike, so that an image is explained alike in
    any batch. One sample is held at a time.
    """

    def of_target(cotangent: Cotangent) -> tuple[Array, ...]:
        def add(sums: dict[str, _Sums], i: Array) -> tuple[dict[str, _Sums], None]:
            noise = options.noise * jax.random.normal(
                jax.random.fold_in(options.key, i), (1, *images.shape[1:]), jnp.float32
            )
            found = derivative(network, images + noise.astype(images.dtype), layers)
            gradients = found.gradients(cotangent(found.scores))
            seen = found.activations
            return {x: _added(sums[x], gradients[x], seen[x]) for x in layers}, None

        nothing = {x: _Sums(*[jnp.zeros_like(activations[x])] * 5) for x in layers}
        sums, _ = lax.scan(add, nothing, jnp.arange(options.samples))
        return tuple(_map(activations[x], sums[x], options.samples, convention) for x in layers)

    held = 8 * sum(activations[x].nbytes for x in layers)
    return targets.map_at(scores, of_target, held)


class _Sums(NamedTuple):
    """Of gradients g over the samples, and the last sample's gradient and activations."""

    first: Float[Array, "n h w c"]
    second: Float[Array, "n h w c"]
    third: Float[Array, "n h w c"]
    last: Float[Array, "n h w c"]
    last_activations: Float[Array, "n h w c"]


def _added(sums: _Sums, g: Array, activations: Array) -> _Sums:
    moments = sums.first + g, sums.second + g**2, sums.third + g**3
    return _Sums(*moments, g, activations)


def _map(
    a: Float[Array, "n h w c"], sums: _Sums, samples: int, convention: Convention
) -> Float[Array, "n h w"]:
    mean, second, third = (total / samples for total in sums[:3])
    if convention.smooth_by_last:
        # torchcam has A within the sum, and the last sample has overwritten what hooks had kept.
        g, weighed = sums.last, sums.last_activations
        inner = (a * third).sum(axis=(1, 2), keepdims=True)
    else:
        g, weighed = mean, a
        inner = a.sum(axis=(1, 2), keepdims=True) * third
    below = 2 * second + inner + convention.smooth_eps
    alpha = jnp.where(below == 0, 0, second / jnp.where(below == 0, 1, below))
    return weighted(weighed, (alpha * rectify(g)).sum(axis=(1, 2)))
