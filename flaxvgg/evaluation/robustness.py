"""Whether an explanation stays what it is where the image hardly changes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from flaxvgg.evaluation.inputs import check_batch, check_finite, check_key, check_samples
from flaxvgg.network.model import AnyArray


def max_sensitivity(
    explain_again: Callable[[Float[Array, "n h w 3"]], Float[AnyArray, "n ..."]],
    images: Float[AnyArray, "n h w 3"],
    *,
    key: Key[Array, ""],
    radius: int | float = 0.02,
    samples: int = 10,
) -> Float[np.ndarray, " n"]:
    """The most that an explanation changes by, relatively, under small noise; low is good.

    The largest (N,), over `samples` perturbations, of `|e(x + r) - e(x)| / |e(x)|`, Euclidean: r is
    uniform in [-radius, radius] for each value of the normalised images (N, H, W, 3), and
    e(x) = `explain_again(images)` an array (N, ...) of maps or attributions, best for fixed
    classes. Where e(x) is zero the length of the change counts. Yeh et al. 2019 (arXiv:1901.09392),
    as captum's `sensitivity_max`.

    Perturbation s of image i has the key `fold_in(fold_in(key, i), s)`. Calls `explain_again`
    samples + 1 times, with all images. Raises ValueError for other shapes, no images or samples, a
    radius that is not positive, explanations that are not finite, and what is no key.

    >>> def again(images):
    ...     return flaxvgg.attribute(model, images, 0, "saliency").values[:, 0]
    >>> flaxvgg.max_sensitivity(again, images, key=jax.random.key(0), samples=2).shape
    (2,)
    """
    images = jnp.asarray(check_batch(images))
    check_key(key)
    check_samples(samples)
    if not 0 < radius < np.inf:
        raise ValueError(f"radius must be positive, not {radius}")

    original = _explained(explain_again, images)
    length = np.linalg.norm(original, axis=1)
    largest = np.zeros(len(images))
    for sample in range(samples):
        noise = uniform_noise(key, sample, images.shape, radius).astype(images.dtype)
        found = _explained(explain_again, images + noise)
        if found.shape != original.shape:
            raise ValueError("explain_again gave another shape for the same images with noise")
        change = np.linalg.norm(found - original, axis=1)
        largest = np.maximum(largest, change / np.where(length == 0, 1, length))
    return largest


def _explained(
    explain_again: Callable[[Array], AnyArray], images: Float[Array, "n h w 3"]
) -> Float[np.ndarray, "n k"]:
    found = jnp.asarray(explain_again(images))
    if found.ndim < 2 or len(found) != len(images):
        raise ValueError(
            f"explain_again gave {found.shape} for images {images.shape}, and no maps (N, ...)"
        )
    check_finite(found, "the explanation")
    return np.asarray(found, np.float64).reshape(len(found), -1)


def uniform_noise(
    key: Key[Array, ""], sample: int, shape: tuple[int, ...], radius: int | float
) -> Float[Array, "n h w 3"]:
    """The perturbation with this number, of all images."""

    def of_one(number: Array) -> Float[Array, "h w 3"]:
        own = jax.random.fold_in(jax.random.fold_in(key, number), sample)
        return jax.random.uniform(own, shape[1:], jnp.float32, -radius, radius)

    return jax.vmap(of_one)(jnp.arange(shape[0]))
