"""The maps that are compared: from one image, where is the evidence for a class?"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import flaxvgg
from flaxvgg.images.resizing import resize
from flaxvgg.network.model import VGG

Maps = Float[Array, "n k h w"]


class Networks(NamedTuple):
    """The same convolutions with two heads; `classes` are the objects' numbers in the first."""

    classifier: VGG
    gap: VGG
    classes: tuple[int, ...]


class Method(NamedTuple):
    """One way to a map: raw maps (N, K, h, w) of the objects (N, K) in the images."""

    name: str
    maps: Callable[[Networks, Float[Array, "n h w 3"], Int[np.ndarray, "n k"]], Maps]
    head: str  # "classifier", "gap" or "none"
    to_train: str


def _grad_cam(networks: Networks, images: Array, objects: np.ndarray) -> Maps:
    classes = np.array(networks.classes)[objects]
    return flaxvgg.explain(networks.classifier, images, classes, "grad_cam").maps


def _score_map(scale: float):
    def maps(networks: Networks, images: Array, objects: np.ndarray) -> Maps:
        scores = flaxvgg.score_maps(networks.classifier, images, (scale,))
        classes = np.array(networks.classes)[objects]
        return jnp.take_along_axis(jnp.moveaxis(scores, -1, 1), classes[:, :, None, None], axis=1)

    return maps


def _cam(networks: Networks, images: Array, objects: np.ndarray) -> Maps:
    return flaxvgg.explain(networks.gap, images, objects, "cam").maps


def _eigen_cam(networks: Networks, images: Array, objects: np.ndarray) -> Maps:
    return flaxvgg.explain(networks.gap, images, objects, "eigen_cam").maps


_AS_IS = "classifier", "nothing: fc6, fc7 and fc8 as they are"
METHODS = (
    Method("Grad-CAM", _grad_cam, *_AS_IS),
    Method("score map 224", _score_map(1.0), *_AS_IS),
    Method("score map 448", _score_map(2.0), *_AS_IS),
    Method("score map 672", _score_map(3.0), *_AS_IS),
    Method("CAM (GAP + linear)", _cam, "gap", "a new linear layer"),
    Method("Eigen-CAM", _eigen_cam, "none", "nothing: it needs no head"),
)


def heat_at(maps: Maps, size: tuple[int, int]) -> Float[np.ndarray, "n k H W"]:
    """Raw maps at the size of the image, negative values cut off; all zero for a constant map.

    A score map has one place or more, and one place says nothing about where.
    """
    large = np.asarray(resize(jax.nn.relu(maps), size))
    varies = np.ptp(np.asarray(maps), axis=(2, 3), keepdims=True) > 0
    return np.where(varies, large, 0)


def peak(heat: Float[np.ndarray, "h w"]) -> tuple[int, int] | None:
    """Where a heat map is largest, as (x, y); None where it is zero everywhere."""
    if not heat.any():
        return None
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return int(x), int(y)
