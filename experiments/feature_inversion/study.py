"""Images that a layer cannot tell from a photo: Mahendran & Vedaldi 2015 (arXiv:1412.0035)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import flaxvgg
from flaxvgg.images.loading import load_pixels
from flaxvgg.images.samples import sample_photos, title_of
from flaxvgg.network.model import VGG
from flaxvgg.perceptual.pairs import prepared
from flaxvgg.perceptual.photos import pixel_metric
from flaxvgg.perceptual.published import TAPS

LAYERS = (*TAPS, "pool5")
UNIT = (0, 1)
RATE = 0.05  # of Adam, at the start; it falls to nothing, as half a cosine
Image = Float[Array, "1 h w 3"]


class Inverted(NamedTuple):
    """An image (H, W, 3) in (0, 1), and the relative errors of its features on the way there."""

    image: np.ndarray
    course: np.ndarray


def study(
    model: VGG, photo: Path, *, size: int, steps: int, smoothness: float, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All results, and the pictures as 8-bit RGB, the photo first."""
    model = flaxvgg.prepare(model, (size, size))
    pixels = load_pixels(photo, (size, size))
    image = pixels[None] / np.float32(255)
    others = [
        load_pixels(path, (size, size)) / np.float32(255)
        for path in sample_photos()
        if path != photo
    ]
    pictures, rows = {"the photo": pixels}, {}
    for layer in LAYERS:
        say(layer)
        found = invert(model, image, layer, steps, smoothness)
        shown = np.round(255 * found.image).astype(np.uint8)
        pictures[layer] = shown
        apart = [
            float(_relative(model, jnp.asarray(other[None]), target, layer))
            for target in [features(model, jnp.asarray(image), layer)]
            for other in others
        ]
        rows[layer] = {
            "error": float(found.course[-1]),
            "start": float(found.course[0]),
            "others": float(np.median(apart)),
            "lpips": float(flaxvgg.lpips(model, shown, pixels, value_range=(0, 255))),
            "psnr": pixel_metric("psnr", pixels, shown),
        }
    rounded = {
        layer: {name: float(f"{value:.4g}") for name, value in row.items()}
        for layer, row in rows.items()
    }
    results = {
        "photo": title_of(photo),
        "size": size,
        "steps": steps,
        "smoothness": smoothness,
        "others": len(others),
        "layers": rounded,
    }
    return results, pictures


def invert(model: VGG, image: np.ndarray, layer: str, steps: int, smoothness: float) -> Inverted:
    """An image with the features of `image` (1, H, W, 3) at a layer, found from noise.

    Steps of Adam on the squared relative error and so many times the mean of the absolute
    differences of neighbours; values stay in (0, 1). All of them are one compiled program.
    """
    noise = np.random.default_rng(0).normal(0.5, 0.1, image.shape)
    start = jnp.asarray(np.clip(noise, 0, 1), jnp.float32)
    target = features(model, jnp.asarray(image), layer)
    found, course = _descend(model, start, target, jnp.float32(smoothness), layer, steps)
    last = _relative(model, found, target, layer)
    return Inverted(np.asarray(found)[0], np.append(course, last))


@partial(jax.jit, static_argnames="layer")
def features(model: VGG, image: Image, layer: str) -> Array:
    """A layer's output for an image in (0, 1)."""
    return model.activations(prepared(image, UNIT, model.preprocessing), [layer])[layer]


def _squared(model: VGG, image: Image, target: Array, layer: str) -> Array:
    """The squared relative error of the features."""
    off = features(model, image, layer) - target
    return jnp.square(off).sum() / jnp.square(target).sum()


@partial(jax.jit, static_argnames="layer")
def _relative(model: VGG, image: Image, target: Array, layer: str) -> Array:
    return jnp.sqrt(_squared(model, image, target, layer))


@partial(jax.jit, static_argnames=("layer", "steps"))
def _descend(
    model: VGG, start: Image, target: Array, smoothness: Array, layer: str, steps: int
) -> tuple[Image, Float[Array, " steps"]]:
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    def loss(image: Image) -> tuple[Array, Array]:
        error = _squared(model, image, target, layer)
        rough = flaxvgg.total_variation(image).sum() / image.size
        return error + smoothness * rough, error

    def step(carry: Any, _: None) -> tuple[Any, Array]:
        image, state = carry
        slope, error = jax.grad(loss, has_aux=True)(image)
        change, state = optimiser.update(slope, state)
        return (jnp.clip(image + change, 0, 1), state), jnp.sqrt(error)

    (image, _), course = jax.lax.scan(step, (start, optimiser.init(start)), length=steps)
    return image, course
