"""Whether a heat map shows what the network goes by: it is asked again about changed images.

One map, of one class, for each image: `explanation.heatmaps()[:, 0]`, `explanation.classes[:, 0]`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.linalg import toeplitz
from scipy.ndimage import gaussian_filter1d

from flaxvgg.cam.network import Network
from flaxvgg.evaluation.inputs import Inputs, Probability, check_finite, values_of_changed
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, AnyArray


def deletion(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    steps: int = 224,
    baseline: Float[AnyArray, "n h w 3"] | None = None,
    activation: Probability = "softmax",
) -> Float[Array, " n"]:
    """The area (N,) under the class's probability as its pixels are deleted; low is good.

    The pixels of the images (N, H, W, 3) give way to `baseline`, in `steps` steps, hottest first:
    by default to 0, which is the mean colour of normalised images. Pixels as hot as each other go
    in reading order. The area, in [0, 1], is over the fraction deleted, by trapezoids. 224 steps
    are those published for images of 224x224. `activation` is "softmax", or "sigmoid" for heads of
    several labels. Petsiuk et al. 2018 (RISE, arXiv:1806.07421).

    Runs N (steps + 1) images through the network, 32 at a time. Raises ValueError for other
    shapes, no images, heat maps or scores that are not finite, unknown classes, steps or
    activations, a model without a head, and one in training mode.

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> flaxvgg.deletion(model, images, heat, jnp.array([0, 0])).shape
    (2,)
    """
    inputs = Inputs(model, images, heatmaps, classes, activation)
    finish = jnp.zeros_like(inputs.images) if baseline is None else inputs.like_images(baseline)
    return _area_under(inputs, inputs.images, finish, steps)


def insertion(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    steps: int = 224,
    baseline: Float[AnyArray, "n h w 3"] | None = None,
    activation: Probability = "softmax",
) -> Float[Array, " n"]:
    """The area (N,) under the class's probability as its pixels are inserted; high is good.

    `deletion` the other way round: `baseline` gives way to the images. By default it is the images
    blurred as in the published evaluation: by a Gaussian with a standard deviation of 5 pixels in a
    window of 11, what would lie outside folded back into it, and zeros around the image. Petsiuk et
    al. 2018 (arXiv:1806.07421). Raises ValueError where `deletion` does.

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> flaxvgg.insertion(model, images, heat, jnp.array([0, 0])).shape
    (2,)
    """
    inputs = Inputs(model, images, heatmaps, classes, activation)
    start = blurred(inputs.images) if baseline is None else inputs.like_images(baseline)
    return _area_under(inputs, start, inputs.images, steps)


def average_drop(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    activation: Probability = "softmax",
) -> float:
    """How much of the class's probability is lost if only what is hot remains; low is good.

    The mean over images, in percent, of max(0, y - o) / y: y is the probability for an image
    (N, H, W, 3), o that for the image times its heat map (N, H, W) in [0, 1]. Where y is 0 nothing
    can be lost: 0. `activation` is "softmax", or "sigmoid" for heads of several labels.
    Chattopadhay et al. 2018 (Grad-CAM++, arXiv:1710.11063).

    Raises ValueError where `deletion` does, and for heat maps outside [0, 1].

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> bool(flaxvgg.average_drop(model, images, heat, jnp.array([0, 0])) >= 0)
    True
    """
    before, after = _confidences(Inputs(model, images, heatmaps, classes, activation))
    drop = np.maximum(before - after, 0)
    return float(100 * np.divide(drop, before, out=np.zeros_like(drop), where=before > 0).mean())


def average_increase(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    activation: Probability = "softmax",
) -> float:
    """How often the class's probability rises if only what is hot remains; high is good.

    The percentage of images with y < o, in the terms of `average_drop`; Chattopadhay et al. call it
    "% increase in confidence". Raises ValueError where `average_drop` does.

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> 0 <= float(flaxvgg.average_increase(model, images, heat, jnp.array([0, 0]))) <= 100
    True
    """
    before, after = _confidences(Inputs(model, images, heatmaps, classes, activation))
    return float(100 * (before < after).mean())


def _area_under(inputs: Inputs, start: Array, finish: Array, steps: int) -> Float[Array, " n"]:
    _, height, width = inputs.maps.shape
    if not 1 <= steps <= height * width:
        raise ValueError(f"steps must be from 1 to the number of pixels, not {steps}")
    found = areas(*inputs.network, start, finish, inputs.maps, inputs.classes, steps)
    return check_finite(found, "the score")


@partial(jax.jit, static_argnums=(1, 2, 7))
def areas(
    stacks: Any,
    config: VGGConfig,
    activation: str,
    start: Float[Array, "n h w 3"],
    finish: Float[Array, "n h w 3"],
    heatmaps: Float[Array, "n h w"],
    classes: Int[Array, " n"],
    steps: int,
) -> Float[Array, " n"]:
    """The areas (N,) as the images `start` give way to `finish`, unchecked and traceable."""
    n, height, width = heatmaps.shape
    hottest_first = jnp.argsort(-heatmaps.reshape(n, -1), axis=1, stable=True)
    ranks = jnp.argsort(hottest_first, axis=1).reshape(heatmaps.shape)
    changed = np.arange(steps + 1) * (height * width) // steps

    def shown(number: Int[Array, " c"]) -> tuple[Array, Array]:
        image, step = number // (steps + 1), number % (steps + 1)
        is_changed = ranks[image] < jnp.asarray(changed, ranks.dtype)[step][:, None, None]
        return image, jnp.where(is_changed[..., None], finish[image], start[image])

    found = values_of_changed(Network(stacks, config), activation, shown, classes, n * (steps + 1))
    # Trapezoids are a weighted sum.
    weights = np.trapezoid(np.eye(steps + 1), changed / (height * width))
    found = found.reshape(n, steps + 1)
    return jnp.dot(found, jnp.asarray(weights, found.dtype), precision="highest")


@partial(jax.jit, static_argnums=(1, 2))
def _before_and_after(
    stacks: Any,
    config: VGGConfig,
    activation: str,
    images: Float[Array, "n h w 3"],
    heatmaps: Float[Array, "n h w"],
    classes: Int[Array, " n"],
) -> Float[Array, "n 2"]:
    def shown(number: Int[Array, " c"]) -> tuple[Array, Array]:
        image, masked = number // 2, number % 2
        mask = jnp.where((masked == 1)[:, None, None], heatmaps[image], 1)
        return image, images[image] * mask[..., None].astype(images.dtype)

    count = 2 * len(images)
    found = values_of_changed(Network(stacks, config), activation, shown, classes, count)
    return found.reshape(-1, 2)


def _confidences(inputs: Inputs) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The class's probability for each image, and for the image times its heat map."""
    if not ((inputs.maps >= 0) & (inputs.maps <= 1)).all():
        raise ValueError("heatmaps must be in [0, 1], as explanation.heatmaps() gives them")
    found = _before_and_after(*inputs.network, inputs.images, inputs.maps, inputs.classes)
    before, after = np.asarray(check_finite(found, "the score"), np.float64).T
    return before, after


def blurred(images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Images as `insertion` starts with them."""
    kernel = gaussian_filter1d(np.eye(11)[5], 5)
    rows, columns = (
        jnp.asarray(toeplitz(np.pad(kernel[5:], (0, size - 6))), images.dtype)
        for size in images.shape[1:3]
    )
    return jnp.einsum("Hh,nhwc,Ww->nHWc", rows, images, columns, precision="highest")
