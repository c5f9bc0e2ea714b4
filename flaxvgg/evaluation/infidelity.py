"""Whether attributions say what the score changes by: infidelity and sensitivity-n."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from flaxvgg.cam.network import Network
from flaxvgg.evaluation.inputs import (
    ACTIVATIONS,
    Activation,
    Inputs,
    check_finite,
    check_key,
    check_samples,
    in_chunks,
    values_of_changed,
)
from flaxvgg.evaluation.similarity import pearson
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, AnyArray

# From a key and an image to what is taken away from the image.
Perturbation = Callable[[Key[Array, ""], Float[Array, "h w 3"]], Float[Array, "h w 3"]]


@dataclasses.dataclass(frozen=True)
class GaussianNoise:
    """A perturbation for `infidelity`: Gaussian noise of standard deviation `scale`.

    In the units of the normalised image. 0.2 is the default of the code of Yeh et al. 2019.

    >>> flaxvgg.GaussianNoise(0.1)(jax.random.key(0), images[0]).shape
    (64, 64, 3)
    """

    scale: int | float = 0.2

    def __call__(self, key: Key[Array, ""], image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
        """What is taken away from the image."""
        return self.scale * jax.random.normal(key, image.shape, image.dtype)


@dataclasses.dataclass(frozen=True)
class SquareRemoval:
    """A perturbation for `infidelity`: a square of `size` pixels anywhere in the image becomes 0.

    0 is the mean colour of normalised images. The square removal of Yeh et al. 2019. Raises
    ValueError for a square larger than the image.

    >>> taken = flaxvgg.SquareRemoval(8)(jax.random.key(0), images[0])
    >>> int((taken != 0).all(axis=-1).sum())
    64
    """

    size: int

    def __call__(self, key: Key[Array, ""], image: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
        """What is taken away from the image: itself inside the square, 0 elsewhere."""
        if not 1 <= self.size <= min(image.shape[:2]):
            raise ValueError(f"no square of {self.size} pixels in an image {image.shape[:2]}")
        inside = []
        for key_of_axis, length in zip(jax.random.split(key), image.shape[:2], strict=True):
            first = jax.random.randint(key_of_axis, (), 0, length - self.size + 1, jnp.int32)
            place = jnp.arange(length, dtype=jnp.int32)
            inside.append((place >= first) & (place < first + self.size))
        rows, columns = inside
        return jnp.where((rows[:, None] & columns[None])[..., None], image, 0)


def infidelity(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    attributions: Float[AnyArray, "n h w 3"] | Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    key: Key[Array, ""],
    perturb: Perturbation = GaussianNoise(),
    samples: int = 100,
    normalize: bool = False,
    activation: Activation = "linear",
) -> Float[np.ndarray, " n"]:
    """How far attributions are from predicting what perturbations do to the score; low is good.

    The mean (N,), over `samples` perturbations I of an image x, of (I . a - (f(x) - f(x - I)))^2,
    with a the attributions (N, H, W, 3); a map (N, H, W) counts for every colour. f is the class's
    logit; with `activation` "softmax" or "sigmoid" its probability. `normalize` scales the
    attributions of each image by the factor that makes it least, so that their scale plays no part.
    Yeh et al. 2019 (arXiv:1901.09392), as captum's `infidelity`.

    `perturb(key, image)` gives I: `GaussianNoise`, `SquareRemoval`, or a pure function, compiled
    once if it is the same object or equal. Perturbation s of image i has the key
    `fold_in(fold_in(key, i), s)`. Runs N (samples + 1) images through the network.

    Raises ValueError where `flaxvgg.deletion` does, for no samples, for perturbations of another
    shape and what is no key.

    >>> found = flaxvgg.attribute(model, images, classes=0, method="saliency", signed=True)
    >>> classes, key = jnp.array([0, 0]), jax.random.key(0)
    >>> flaxvgg.infidelity(model, images, found.values[:, 0], classes, key=key, samples=4).shape
    (2,)
    """
    inputs = Inputs(
        model, images, attributions, classes, activation, activations=ACTIVATIONS, colours=True
    )
    check_key(key)
    check_samples(samples)
    image = jax.ShapeDtypeStruct(inputs.images.shape[1:], inputs.images.dtype)
    taken = jax.eval_shape(perturb, key, image).shape
    if taken != image.shape:
        raise ValueError(f"perturb gave {taken} for an image {image.shape}: it must keep the shape")
    predicted, values = _perturbed(
        *inputs.network,
        inputs.images,
        inputs.over_colours(),
        inputs.classes,
        key,
        perturb,
        samples,
    )
    expected = np.asarray(predicted, np.float64)
    lost = _lost(values)
    if normalize:
        squares = (expected**2).sum(axis=1)
        best = (expected * lost).sum(axis=1) / np.where(squares == 0, 1, squares)
        expected = best[:, None] * expected
    return ((expected - lost) ** 2).mean(axis=1)


def sensitivity_n(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    attributions: Float[AnyArray, "n h w 3"] | Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    key: Key[Array, ""],
    fractions: Sequence[int | float] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8),
    samples: int = 100,
    baseline: Float[AnyArray, "n h w 3"] | None = None,
    activation: Activation = "linear",
) -> Float[np.ndarray, "n fractions"]:
    """How well the sum of attributions of removed pixels goes with what the score loses.

    The Pearson correlation (N, F), over `samples` random sets of n pixels, of the sum of their
    attributions with f(x) - f(x without them), for n each of the `fractions` of the pixels,
    rounded, at least 1. High is good: 1 for all n where attributions add up to the score, as in a
    linear network. A removed pixel becomes that of `baseline`, by default 0, the mean colour of
    normalised images. Attributions (N, H, W, 3) are summed over colours; maps (N, H, W) are taken
    as they are. f is the logit; with `activation` "softmax" or "sigmoid" the probability. NaN where
    either is the same for all sets. Ancona et al. 2018 (arXiv:1711.06104), where a feature is a
    pixel; Quantus's `SensitivityN` removes the largest attributions in turn instead, and correlates
    over images.

    Set s of image i at fraction k has the key `fold_in(fold_in(fold_in(key, i), k), s)`. Runs
    N (F samples + 1) images through the network. Raises ValueError where `flaxvgg.deletion` does,
    for fractions outside (0, 1] or none, fewer than two samples, and what is no key.

    >>> found = flaxvgg.attribute(model, images, classes=0, method="saliency", signed=True)
    >>> options = {"key": jax.random.key(0), "fractions": [0.1, 0.5], "samples": 4}
    >>> flaxvgg.sensitivity_n(model, images, found.values[:, 0], jnp.array([0, 0]), **options).shape
    (2, 2)
    """
    inputs = Inputs(
        model, images, attributions, classes, activation, activations=ACTIVATIONS, colours=True
    )
    check_key(key)
    check_samples(samples, least=2)
    if not len(fractions) or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"fractions must be in (0, 1], at least one, not {fractions}")
    finish = jnp.zeros_like(inputs.images) if baseline is None else inputs.like_images(baseline)
    maps = inputs.maps.sum(axis=-1) if inputs.maps.ndim == 4 else inputs.maps
    pixels = maps.shape[1] * maps.shape[2]
    sizes = tuple(max(1, round(fraction * pixels)) for fraction in fractions)
    shape = len(maps), len(sizes), samples
    expected, values = _without_some(
        *inputs.network, inputs.images, finish, maps, inputs.classes, key, sizes, samples
    )
    found = pearson(np.asarray(expected, np.float64).reshape(shape), _lost(values).reshape(shape))
    return found


def _lost(values: Float[Array, "n values"]) -> Float[np.ndarray, "n samples"]:
    """What the scores (N, 1 + samples), the first of an unchanged image, fall by."""
    found = np.asarray(check_finite(values, "the score"), np.float64)
    return found[:, :1] - found[:, 1:]


@partial(jax.jit, static_argnums=(1, 2, 7, 8))
def _perturbed(
    stacks: Any,
    config: VGGConfig,
    activation: str,
    images: Float[Array, "n h w 3"],
    attributions: Float[Array, "n h w 3"],
    classes: Int[Array, " n"],
    key: Key[Array, ""],
    perturb: Perturbation,
    samples: int,
) -> tuple[Float[Array, "n samples"], Float[Array, "n values"]]:
    """I . a of every perturbation; and the score without one and with each."""

    def taken(image: Int[Array, " c"], sample: Int[Array, " c"]) -> Float[Array, "c h w 3"]:
        def of_one(image: Int[Array, ""], sample: Int[Array, ""]) -> Float[Array, "h w 3"]:
            own = jax.random.fold_in(jax.random.fold_in(key, image), sample)
            return perturb(own, images[image])

        return jax.vmap(of_one)(image, sample)

    def shown(number: Int[Array, " c"]) -> tuple[Array, Array]:
        image, place = number // (samples + 1), number % (samples + 1)
        perturbed = images[image] - taken(image, place - 1)
        return image, jnp.where((place == 0)[:, None, None, None], images[image], perturbed)

    def product(number: Int[Array, " c"]) -> Float[Array, " c"]:
        image, sample = number // samples, number % samples
        return (taken(image, sample) * attributions[image]).sum(axis=(1, 2, 3))

    n = len(images)
    network = Network(stacks, config)
    values = values_of_changed(network, activation, shown, classes, n * (samples + 1))
    products = in_chunks(product, n * samples)
    return products.reshape(n, samples), values.reshape(n, samples + 1)


@partial(jax.jit, static_argnums=(1, 2, 8, 9))
def _without_some(
    stacks: Any,
    config: VGGConfig,
    activation: str,
    images: Float[Array, "n h w 3"],
    baseline: Float[Array, "n h w 3"],
    maps: Float[Array, "n h w"],
    classes: Int[Array, " n"],
    key: Key[Array, ""],
    sizes: tuple[int, ...],
    samples: int,
) -> tuple[Float[Array, "n sets"], Float[Array, "n values"]]:
    """The sum of attributions of every set of pixels; and the score with all and without each."""
    n, height, width = maps.shape
    sets = len(sizes) * samples
    counts = jnp.array(sizes)

    def removed(image: Int[Array, " c"], number: Int[Array, " c"]) -> Bool[Array, "c h w"]:
        def of_one(image: Int[Array, ""], number: Int[Array, ""]) -> Bool[Array, "h w"]:
            size = number // samples
            of_size = jax.random.fold_in(jax.random.fold_in(key, image), size)
            own = jax.random.fold_in(of_size, number % samples)
            return removed_at_random(own, (height, width), counts[size])

        return jax.vmap(of_one)(image, number)

    def shown(number: Int[Array, " c"]) -> tuple[Array, Array]:
        image, place = number // (sets + 1), number % (sets + 1)
        is_removed = removed(image, place - 1) & (place > 0)[:, None, None]
        return image, jnp.where(is_removed[..., None], baseline[image], images[image])

    def total(number: Int[Array, " c"]) -> Float[Array, " c"]:
        image = number // sets
        return jnp.where(removed(image, number % sets), maps[image], 0).sum(axis=(1, 2))

    network = Network(stacks, config)
    values = values_of_changed(network, activation, shown, classes, n * (sets + 1))
    return in_chunks(total, n * sets).reshape(n, sets), values.reshape(n, sets + 1)


def removed_at_random(
    key: Key[Array, ""], shape: tuple[int, int], count: Int[Array, ""]
) -> Bool[Array, "h w"]:
    """A random set of so many pixels."""
    height, width = shape
    pixels = jnp.arange(height * width, dtype=jnp.int32)
    return (jax.random.permutation(key, pixels) < count).reshape(shape)
