"""What a map costs: time in forward passes, arithmetic, and parameters."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cam_on_vgg16.methods import METHODS, Networks
from experiments.timing import Case, Measured, measure
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG


def timed(
    networks: Networks, image: np.ndarray, rounds: int, report: Callable[[float], None]
) -> list[Measured]:
    """Every method on one image (1, H, W, 3) for one object, beside the classifier's logits."""
    x = jnp.asarray(image)
    known = next(item for item, number in enumerate(networks.classes) if number >= 0)
    objects = np.array([[known]], np.int32)

    def forward() -> object:
        return jax.block_until_ready(_logits(networks.classifier, x))

    cases = [
        Case(
            method.name,
            1,
            "",
            lambda maps=method.maps: jax.block_until_ready(maps(networks, x, objects)),
            forward,
        )
        for method in METHODS
    ]
    return measure(cases, rounds, report)


@jax.jit
def _logits(model: VGG, images: jax.Array) -> jax.Array:
    return model(images)


def arithmetic(config: VGGConfig, size: int) -> dict[str, float]:
    """Products that each method takes, in those of one forward pass at `size` pixels.

    `config` has a classifier. Counted are convolutions and linear layers, and for Grad-CAM these
    backwards; Eigen-CAM's products of places with places are less than a thousandth.
    """

    def score_map(scale: int) -> float:
        enlarged = scale * size
        windows = max(enlarged // 32 - 6, 1) ** 2
        return _convolutions(config, enlarged) + windows * linear

    linear = sum(_weights(layer) for layer in config.head)
    convolutions = _convolutions(config, size)
    forward = score_map(1)
    channels = [layer.outputs for layer in config.conv_stack if layer.kind == "conv"][-1]
    found = {
        "Grad-CAM": forward + linear,
        "score map 224": forward,
        "score map 448": score_map(2),
        "score map 672": score_map(3),
        "CAM (GAP + linear)": convolutions + channels * config.num_classes,
        "Eigen-CAM": convolutions,
    }
    return {name: round(count / forward, 3) for name, count in found.items()}


def _convolutions(config: VGGConfig, size: int) -> int:
    total = 0
    for layer in config.conv_stack:
        if layer.kind == "max_pool":
            size //= 2
        elif layer.kind == "conv":
            total += _weights(layer) * size**2
    return total


def _weights(layer: Layer) -> int:
    return layer.inputs * layer.outputs * layer.kernel**2


def parameters(model: VGG, head: bool = True) -> int:
    """Numbers in the model, all of which somebody has trained; or in its convolutions alone."""
    counted = model if head else model.conv_stack
    return sum(array.size for array in jax.tree.leaves(counted))
