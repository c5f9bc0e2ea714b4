"""Random networks, a tiny one, and photos to train on; without PyTorch, which takes seconds."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.weights.mapping import build, entries


class TinyConfig(VGGConfig):
    """A network of two blocks with few channels, which compiles and runs in no time."""

    conv_stack = (
        Layer("conv1_1", "conv", "features.0", inputs=3, outputs=8, kernel=3),
        Layer("relu1_1", "relu", "features.1"),
        Layer("pool1", "max_pool", "features.2"),
        Layer("conv2_1", "conv", "features.3", inputs=8, outputs=12, kernel=3),
        Layer("relu2_1", "relu", "features.4"),
        Layer("pool2", "max_pool", "features.5"),
    )


TINY_CLASSIFIER = (
    Layer("avgpool", "avg_pool", "avgpool"),
    Layer("flatten", "flatten"),
    Layer("fc6", "linear", "classifier.0", inputs=12, outputs=16, kernel=7),
    Layer("relu6", "relu", "classifier.1"),
    Layer("fc8", "linear", "classifier.2", inputs=16, outputs=7),
)
TINY_GAP = (
    Layer("gap", "global_avg_pool", "avgpool"),
    Layer("flatten", "flatten"),
    Layer("fc", "linear", "classifier", inputs=12, outputs=5),
)


def tiny_vgg(head: tuple[Layer, ...] = TINY_CLASSIFIER, seed: int = 0, **kwargs) -> VGG:
    """A model with every kind of part that a VGG has, and biases that do something."""
    return nnx.clone(_drawn(head, seed, **kwargs))


@cache  # drawing takes two seconds
def _drawn(head: tuple[Layer, ...], seed: int, **kwargs) -> VGG:
    model = VGG(TinyConfig("vgg11", head), rngs=nnx.Rngs(seed), **kwargs)
    for path, value in nnx.to_flat_state(nnx.state(model)):
        scale = 0.3 if path[0] == "head" else 1.0
        noise = jax.random.normal(jax.random.key(len(path[1]) + value.size), value.shape)
        if path[-1] == "bias" or path[0] == "head":
            value[...] = (scale * noise).astype(value.dtype)
    return model


def random_images(*shape: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Standard normal images (N, H, W, channels), as float32."""
    return np.random.default_rng(seed).standard_normal((*shape, channels)).astype(np.float32)


def random_model(config: VGGConfig, seed: int = 0, **kwargs) -> VGG:
    """A model with He et al.'s weights and with biases and statistics that do something; quick."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for entry in entries(config):
        values = rng.standard_normal(entry.shape, np.float32)
        if len(entry.shape) > 1:
            values *= np.float32(np.sqrt(2 / np.prod(entry.shape[:-1])))
        elif entry.path[-1] in ("scale", "var"):
            values = 1 + abs(values) / 2
        else:
            values *= np.float32(0.3)
        arrays[entry.path] = values
    return build(config, arrays, **kwargs)


COLOURS = {"blue": (40, 40, 200), "green": (40, 200, 40), "red": (200, 40, 40)}


def coloured_photos(folder: Path) -> Path:
    """Twelve noisy images of each of three colours, in a folder for each."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir()
        for i in range(12):
            pixels = np.array(colour) + random.normal(0, 40, (40, 50, 3))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(folder / name / f"{i}.png")
    return folder


def noise_photos(
    folder: Path, counts: dict[str, int], size: Callable[[int], tuple[int, int]], broken: str
) -> Path:
    """So many images of noise in a folder for each class, of size (H, W) by number; one is cut."""
    random = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 256, (*size(i), 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    (folder / broken).write_bytes((folder / broken).read_bytes()[:60])
    return folder


class MeanConfig(VGGConfig):
    """A network whose logit is a multiple of the mean of the red channel."""

    conv_stack = (
        Layer("conv1", "conv", inputs=3, outputs=1),
        Layer("relu1", "relu"),
    )


@cache
def mean_model() -> VGG:
    """Its class 0 has the logit 2 ln 3 times the mean, class 1 has 0."""
    head = (*TINY_GAP[:2], Layer("fc", "linear", inputs=1, outputs=2))
    model = random_model(MeanConfig("vgg11", head))
    model.conv_stack.conv1.kernel[...] = jnp.eye(3, 1)[None, None]
    model.conv_stack.conv1.bias[...] = jnp.zeros(1)
    model.head.fc.kernel[...] = jnp.array([[2 * math.log(3), 0]])
    model.head.fc.bias[...] = jnp.zeros(2)
    return model


# The left half is 1 and the right half is 0: for class 0 the logit is ln 3, the probability 3/4,
# and 1/2 without anything; it goes with the left half.
HALF = np.zeros((1, 32, 32, 3), np.float32)
HALF[:, :, :16] = 1
LEFT = HALF[..., 0]
CLASS = np.array([0])
