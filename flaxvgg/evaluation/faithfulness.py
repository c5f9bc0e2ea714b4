"""Whether a heat map shows what the network goes by: it is asked again about changed images.

One map, of one class, for each image: `explanation.heatmaps()[:, 0]`, `explanation.classes[:, 0]`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.linalg import toeplitz
from scipy.ndimage import gaussian_filter1d

from flaxvgg.cam.methods import check_evaluating
from flaxvgg.cam.network import Network
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, AnyArray

_ACTIVATIONS = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
_CHUNK = 32  # images in one pass


def deletion(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    steps: int = 224,
    baseline: Float[AnyArray, "n h w 3"] | None = None,
    activation: str = "softmax",
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
    inputs = _Inputs(model, images, heatmaps, classes, activation)
    finish = jnp.zeros_like(inputs.images) if baseline is None else inputs.like_images(baseline)
    return inputs.area(inputs.images, finish, steps)


def insertion(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    steps: int = 224,
    baseline: Float[AnyArray, "n h w 3"] | None = None,
    activation: str = "softmax",
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
    inputs = _Inputs(model, images, heatmaps, classes, activation)
    start = _blurred(inputs.images) if baseline is None else inputs.like_images(baseline)
    return inputs.area(start, inputs.images, steps)


def average_drop(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    activation: str = "softmax",
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
    before, after = _confidences(_Inputs(model, images, heatmaps, classes, activation))
    drop = np.maximum(before - after, 0)
    return float(100 * np.divide(drop, before, out=np.zeros_like(drop), where=before > 0).mean())


def average_increase(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    activation: str = "softmax",
) -> float:
    """How often the class's probability rises if only what is hot remains; high is good.

    The percentage of images with y < o, in the terms of `average_drop`; Chattopadhay et al. call it
    "% increase in confidence". Raises ValueError where `average_drop` does.

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> 0 <= float(flaxvgg.average_increase(model, images, heat, jnp.array([0, 0]))) <= 100
    True
    """
    before, after = _confidences(_Inputs(model, images, heatmaps, classes, activation))
    return float(100 * (before < after).mean())


class _Inputs:
    """What all of these take: checked, and as JAX's arrays."""

    def __init__(
        self, model: VGG, images: AnyArray, heatmaps: AnyArray, classes: AnyArray, activation: str
    ):
        images = check_images(images, model.preprocessing)
        if images.ndim != 4 or not len(images):
            raise ValueError(
                f"images must have shape (N, H, W, 3), N at least 1, not {images.shape}"
            )
        if heatmaps.shape != images.shape[:3]:
            raise ValueError(
                f"heatmaps of shape {heatmaps.shape} for images of {images.shape}: one map of the "
                "image's size for each, as explanation.heatmaps()[:, 0]"
            )
        if classes.shape != images.shape[:1] or not jnp.issubdtype(classes.dtype, jnp.integer):
            raise ValueError(
                f"classes must be one whole number for each of {len(images)} images, not "
                f"{classes.dtype} {classes.shape}"
            )
        count = model.config.head_output.outputs
        outside = [c for c in np.asarray(classes).tolist() if not 0 <= c < count]
        if outside:
            raise ValueError(f"no class {outside[0]}: the model has classes 0 to {count - 1}")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"no activation {activation!r}: choose from {', '.join(_ACTIVATIONS)}")
        check_evaluating(model)
        self.images, self.heatmaps = jnp.asarray(images), jnp.asarray(heatmaps)
        _check_finite(self.heatmaps, "the heat map")
        self.classes = jnp.asarray(classes, jnp.int32)
        # Without its provenance: other weights of the same network are no other program.
        self.network = (model.conv_stack, model.head), model.config, activation

    def like_images(self, baseline: AnyArray) -> Array:
        if baseline.shape != self.images.shape:
            raise ValueError(f"baseline {baseline.shape} must be of the images' shape")
        return jnp.asarray(baseline, self.images.dtype)

    def area(self, start: Array, finish: Array, steps: int) -> Float[Array, " n"]:
        _, height, width = self.heatmaps.shape
        if not 1 <= steps <= height * width:
            raise ValueError(f"steps must be from 1 to the number of pixels, not {steps}")
        found = _area(*self.network, start, finish, self.heatmaps, self.classes, steps)
        return _check_finite(found, "the score")


@partial(jax.jit, static_argnums=(1, 2, 7))
def _area(
    stacks: Any,
    config: VGGConfig,
    activation: str,
    start: Float[Array, "n h w 3"],
    finish: Float[Array, "n h w 3"],
    heatmaps: Float[Array, "n h w"],
    classes: Int[Array, " n"],
    steps: int,
) -> Float[Array, " n"]:
    n, height, width = heatmaps.shape
    hottest_first = jnp.argsort(-heatmaps.reshape(n, -1), axis=1, stable=True)
    ranks = jnp.argsort(hottest_first, axis=1).reshape(heatmaps.shape)
    changed = np.arange(steps + 1) * (height * width) // steps

    def shown(number: Int[Array, " c"]) -> tuple[Array, Array]:
        image, step = number // (steps + 1), number % (steps + 1)
        is_changed = ranks[image] < jnp.asarray(changed, ranks.dtype)[step][:, None, None]
        return image, jnp.where(is_changed[..., None], finish[image], start[image])

    found = _probabilities(Network(stacks, config), activation, shown, classes, n * (steps + 1))
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
    found = _probabilities(Network(stacks, config), activation, shown, classes, count)
    return found.reshape(-1, 2)


def _probabilities(
    network: Network,
    activation: str,
    shown: Callable[[Int[Array, " c"]], tuple[Array, Array]],
    classes: Int[Array, " n"],
    count: int,
) -> Float[Array, " count"]:
    """The probabilities of `count` changed images, made and run in chunks to bound the memory.

    `shown(numbers)` gives the changed images of these numbers, and which image each one comes from.
    """

    def of_chunk(numbers: Int[Array, " c"]) -> Float[Array, " c"]:
        image, changed = shown(numbers)
        probabilities = _ACTIVATIONS[activation](network.scores(changed))
        return probabilities[jnp.arange(len(numbers)), classes[image]]

    chunk = min(_CHUNK, count)
    numbers = jnp.arange(-(-count // chunk) * chunk) % count  # the last chunk is filled up
    return lax.map(of_chunk, numbers.reshape(-1, chunk)).reshape(-1)[:count]


def _confidences(inputs: _Inputs) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The class's probability for each image, and for the image times its heat map."""
    if not ((inputs.heatmaps >= 0) & (inputs.heatmaps <= 1)).all():
        raise ValueError("heatmaps must be in [0, 1], as explanation.heatmaps() gives them")
    found = _before_and_after(*inputs.network, inputs.images, inputs.heatmaps, inputs.classes)
    before, after = np.asarray(_check_finite(found, "the score"), np.float64).T
    return before, after


def _check_finite(x: Array, what: str) -> Array:
    finite = np.asarray(jnp.isfinite(x).all(axis=tuple(range(1, x.ndim))))
    if not finite.all():
        raise ValueError(f"{what} of image {np.flatnonzero(~finite)[0]} is not finite")
    return x


def _blurred(images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    kernel = gaussian_filter1d(np.eye(11)[5], 5)
    rows, columns = (
        jnp.asarray(toeplitz(np.pad(kernel[5:], (0, size - 6))), images.dtype)
        for size in images.shape[1:3]
    )
    return jnp.einsum("Hh,nhwc,Ww->nHWc", rows, images, columns, precision="highest")
