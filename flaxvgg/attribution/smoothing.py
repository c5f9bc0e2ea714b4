"""SmoothGrad and VarGrad: the mean and the variance of the gradients of noisy images."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.passes import (
    backward_at_once,
    check_counts,
    check_key,
    gradients_of_variants,
    in_chunks,
    weighted_sum,
)
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.targets import Targets


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key", "noise"],
    meta_fields=["samples", "samples_at_once"],
)
@dataclasses.dataclass(frozen=True)
class Noise:
    """Options of "smooth_grad" and "var_grad".

    `key` is a key of `jax.random`; `samples` noisy images are made of each image, `samples_at_once`
    of them in one pass: None makes passes of about 8 images. `noise` is the standard deviation as a
    fraction of the image's range, its largest value less its smallest. All images of a batch get
    the same noise but for this scale, so that an image's attribution does not depend on the others.
    """

    key: Any = None
    samples: int = 50
    noise: Any = 0.15
    samples_at_once: int | None = None

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, samples_at_once=self.samples_at_once or 1)
        if isinstance(self.noise, int | float) and not self.noise >= 0:
            raise ValueError(f"noise must be a fraction of the image's range, not {self.noise}")


def draw(key: Array, numbers: Int[Array, " s"], shape: tuple[int, ...]) -> Float[Array, "s h w 3"]:
    """Standard normal noise of the samples of these numbers, for images of `shape` (H, W, 3)."""
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float32))(
        numbers
    )


def smooth_grad(network: Network, images: Array, targets: Targets, options: Noise) -> Found:
    """The mean of the signed gradients (Smilkov et al. 2017, arXiv:1706.03825).

    It is captum's NoiseTunnel of type "smoothgrad" over signed saliency; the authors show its
    magnitude.
    """
    return _moments(network, images, targets, options)[0]


def var_grad(network: Network, images: Array, targets: Targets, options: Noise) -> Found:
    """The variance of the gradients (Adebayo et al. 2018, arXiv:1810.03307), divided by `samples`.

    It is captum's NoiseTunnel of type "vargrad" over signed saliency.
    """
    if options.samples < 2:
        raise ValueError("a variance takes at least 2 samples")
    mean, squares = _moments(network, images, targets, options)
    return mean._replace(values=squares / options.samples)


def _moments(
    network: Network, images: Array, targets: Targets, options: Noise
) -> tuple[Found, Float[Array, "n k h w 3"]]:
    """What has the mean as its values, and the sum of squared deviations from it.

    Chunks are joined as by Chan et al. 1983 (The American Statistician 37): the mean of squares
    less the squared mean would cancel.
    """
    key = check_key(options.key)
    logits = network.scores(images)
    targets = targets.settled(logits)
    classes, scores = targets.scores(logits)
    clean = as_float32(images)
    axes = (1, 2, 3)
    deviation = (clean.max(axis=axes) - clean.min(axis=axes)) * jnp.asarray(
        options.noise, clean.dtype
    )

    def of_chunk(moments: tuple[Array, ...], chunk: tuple[Array, Array]) -> tuple[Any, None]:
        numbers, counts = chunk
        noise = draw(key, numbers, images.shape[1:]).astype(clean.dtype)[:, None]
        variants = (clean[None] + deviation[None, :, None, None, None] * noise).astype(images.dtype)
        new = counts.sum()

        def of_gradients(gradients: Array) -> tuple[Array, Array]:
            mean = weighted_sum(counts, gradients) / new
            return mean, weighted_sum(counts, jnp.square(gradients - mean[None]))

        mean_of_new, squares_of_new = gradients_of_variants(
            network, variants, targets, of_gradients
        )
        mean, squares, old = moments
        both = old + new
        away = mean_of_new - mean
        squares = squares + squares_of_new + jnp.square(away) * (old * new / both)
        return (mean + away * (new / both), squares, both), None

    at_once = options.samples_at_once or backward_at_once(images.shape[0])
    numbers, counts = map(jnp.asarray, in_chunks(options.samples, at_once))
    counts = counts.astype(clean.dtype)
    nothing = jnp.broadcast_to(jnp.zeros_like(clean)[:, None], (*classes.shape, *clean.shape[1:]))
    start = (nothing, nothing, jnp.zeros((), clean.dtype))
    (mean, squares, _), _ = lax.scan(of_chunk, start, (numbers, counts))
    return Found(mean, classes, scores, {}), squares


METHODS = {"smooth_grad": Method(Noise, smooth_grad), "var_grad": Method(Noise, var_grad)}
