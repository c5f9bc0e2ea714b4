"""Integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365)."""

import dataclasses
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from flaxvgg.attribution.baselines import baselines, given, scores_of
from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.passes import (
    backward_at_once,
    check_counts,
    gradients_of_variants,
    in_chunks,
    weighted_sum,
)
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.targets import Targets

Quadrature = Literal[
    "gauss_legendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"
]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["baseline"],
    meta_fields=["steps", "quadrature", "steps_at_once"],
)
@dataclasses.dataclass(frozen=True)
class IntegratedGradients:
    """Options of "integrated_gradients".

    The path leads from the `baseline` to the image: None is zeros, the mean colour of normalised
    images; an image (H, W, 3), one for each image (N, H, W, 3), or several, (B, 1, H, W, 3) or
    (B, N, H, W, 3), whose attributions are averaged. The gradient is taken at `steps` places of the
    path, `steps_at_once` of them in one pass: None makes passes of about 8 images. `quadrature` is
    "gauss_legendre", or a Riemann sum: "riemann_left", "riemann_right", "riemann_middle",
    "riemann_trapezoid". The places and weights are those of the package captum, whose trapezoids
    have the weights 1 / steps, but half of it at both ends: they add up to 1 - 1 / steps.

    `details["convergence_delta"]` (N, K) is the sum of the values less what it is to be, the
    image's score less the (mean) baseline's.
    """

    baseline: Any = None
    steps: int = 50
    quadrature: Quadrature | str = "gauss_legendre"
    steps_at_once: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", given(self.baseline))
        check_counts(steps=self.steps, steps_at_once=self.steps_at_once or 1)
        if self.quadrature not in get_args(Quadrature):
            choices = ", ".join(get_args(Quadrature))
            raise ValueError(f"no quadrature {self.quadrature!r}: choose from {choices}")
        if self.steps == 1 and self.quadrature != "gauss_legendre":
            raise ValueError("a Riemann sum takes at least 2 steps")


def nodes(quadrature: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Where in [0, 1] the integrand is taken, and the weights, (steps,) each, in float64."""
    if quadrature == "gauss_legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return (1 + places) / 2, weights / 2
    weights = np.full(steps, 1 / steps)
    first, last = {
        "riemann_left": (0, 1 - 1 / steps),
        "riemann_right": (1 / steps, 1),
        "riemann_middle": (1 / (2 * steps), 1 - 1 / (2 * steps)),
        "riemann_trapezoid": (0, 1),
    }[quadrature]
    if quadrature == "riemann_trapezoid":
        weights[[0, -1]] /= 2
    return np.linspace(first, last, steps), weights


def integrated_gradients(
    network: Network, images: Array, targets: Targets, options: IntegratedGradients
) -> Found:
    """The image less the baseline, times the mean gradient on the way from one to the other."""
    logits = network.scores(images)
    targets = targets.settled(logits)
    classes, scores = targets.scores(logits)
    starts, ends = baselines(options.baseline, images), as_float32(images)
    count = starts.shape[0]
    before = lax.map(lambda start: scores_of(network, start, images, targets), starts).mean(axis=0)

    at_once = options.steps_at_once or backward_at_once(images.shape[0])
    numbers, counts = in_chunks(count * options.steps, at_once)
    places, weights = nodes(options.quadrature, options.steps)
    step = numbers % options.steps
    chunks = (
        jnp.asarray(numbers // options.steps),
        jnp.asarray(places[step], ends.dtype),
        jnp.asarray(counts * weights[step] / count, ends.dtype),
    )

    def of_chunk(total: Array, chunk: tuple[Array, Array, Array]) -> tuple[Array, None]:
        number, place, weight = chunk
        start = starts[number]
        away = ends[None] - start
        variants = (start + _wide(place) * away).astype(images.dtype)

        def weighted(gradients: Array) -> Array:
            return weighted_sum(weight, away * gradients)

        return total + gradients_of_variants(network, variants, targets, weighted), None

    nothing = jnp.broadcast_to(jnp.zeros_like(ends)[:, None], (*classes.shape, *ends.shape[1:]))
    values, _ = lax.scan(of_chunk, nothing, chunks)
    delta = values.sum(axis=(2, 3, 4)) - (scores - before)
    return Found(values, classes, scores, {"convergence_delta": delta})


def _wide(x: Array) -> Array:
    return x[:, None, None, None, None]


METHODS = {"integrated_gradients": Method(IntegratedGradients, integrated_gradients)}
