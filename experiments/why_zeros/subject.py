"""Who is studied: one network, eight photos, and how much is computed."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import flaxvgg
from experiments.why_zeros import pictures
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.sparsity.counting import LayerCounts, count_images

Counts = dict[str, LayerCounts]
T = TypeVar("T")

_BATCH = 8 * 224 * 224  # pixels in one pass


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is computed; the tests compute less."""

    size: tuple[int, int] = (224, 224)
    sizes: tuple[tuple[int, int], ...] = ((224, 224), (512, 512), (375, 1242))
    seeds: int = 3
    digits: int = 800
    rows: int = 5  # of crops in each strip of a picture, for the probe of (g)
    crops: int = 5  # of each picture, for the data set of (h)


class Subject:
    """A network without its head, and the photos that every explanation is tested on."""

    def __init__(self, model: VGG, paths: list[Path], effort: Effort):
        self.model = with_arrays(model, flaxvgg.to_torch(model))
        self.paths = paths
        self.effort = effort
        self.pixels = pictures.load(paths, effort.size, self.recipe)

    @property
    def names(self) -> list[str]:
        """What the photos are called."""
        return [path.stem for path in self.paths]

    @property
    def recipe(self) -> Preprocessing:
        """What the weights expect."""
        return self.model.preprocessing

    @cached_property
    def counts(self) -> Counts:
        """The counts of the photos."""
        return count(self.model, self.pixels)

    def activations(self, layers: list[str], photos: slice = slice(None)) -> dict[str, np.ndarray]:
        """The outputs of the layers for the photos, or some of them."""
        outputs = partial(_activations, layers=tuple(layers))
        found = in_batches(outputs, self.model, self.pixels[photos])
        return {layer: np.asarray(maps) for layer, maps in found.items()}

    @property
    def before_pools(self) -> dict[str, str]:
        """The ReLU before each max pooling, by the pooling's name."""
        pairs = itertools.pairwise(self.model.config.conv_stack)
        return {b.name: a.name for a, b in pairs if b.kind == "max_pool"}

    @property
    def last_relu(self) -> str:
        """The ReLU before pool5."""
        return self.before_pools["pool5"]

    @property
    def last_conv(self) -> str:
        """The convolution before that."""
        return self.last_relu.replace("relu", "conv")


@partial(jax.jit, static_argnames="layers")
def _activations(model: VGG, images: jax.Array, layers: tuple[str, ...]) -> dict[str, jax.Array]:
    return model.activations(images, layers)


def with_arrays(model: VGG, state_dict: dict[str, np.ndarray]) -> VGG:
    """The model's convolutions with other weights, in XLA's own float32 arithmetic.

    All such models share what is compiled. "default" is twice as fast as "highest" on a CPU; the
    zeros of the two differ in a handful of places among millions.
    """
    convolutions = {k: v for k, v in state_dict.items() if k.startswith("features.")}
    return flaxvgg.from_torch(
        model.config.arch, convolutions, precision="default", provenance=model.provenance
    )


def count(
    model: VGG,
    pixels: np.ndarray,
    recipe: Preprocessing | None = None,
    layers: Iterable[str] | None = None,
) -> Counts:
    """`count_images` of 8-bit pixels (N, H, W, 3), preprocessed by the recipe or as is right."""

    def counted(model: VGG, images: jax.Array) -> Counts:
        return count_images(model, images, layers)

    found = in_batches(counted, model, pixels, recipe)
    # JAX sorts the keys of dictionaries.
    return {name: found[name] for name in layers or model.config.layer_names if name in found}


def in_batches(
    function: Callable[[VGG, jax.Array], T],
    model: VGG,
    pixels: np.ndarray,
    recipe: Preprocessing | None = None,
) -> T:
    """function(model, images) on the preprocessed pixels (N, H, W, 3), a few images at a time.

    Arrays of the results have one row an image, and are joined.
    """
    n, h, w, _ = pixels.shape
    batch = min(max(_BATCH // (h * w), 1), n)
    leaves, structure = [], None
    for start in range(0, n, batch):
        part = pixels[start : start + batch]
        # The last batch is filled up, so that one compiled program serves all.
        filled = np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
        images = flaxvgg.normalise(filled, recipe or model.preprocessing)
        arrays, structure = jax.tree.flatten(function(model, images))
        leaves.append([np.asarray(array)[: len(part)] for array in arrays])
    joined = [jnp.asarray(np.concatenate(parts)) for parts in zip(*leaves, strict=True)]
    return jax.tree.unflatten(structure, joined)


def zeros(counts: Counts, layer: str) -> np.ndarray:
    """The fraction of zeros of each image (N,) in one layer."""
    found = counts[layer]
    return np.asarray(found.zeros).sum(axis=1) / (found.values * found.zeros.shape[1])


def spread(fractions: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and range of what was measured on several images (or seeds)."""
    return {
        "mean": float(fractions.mean()),
        "sd": float(fractions.std(ddof=1)) if len(fractions) > 1 else 0.0,
        "min": float(fractions.min()),
        "max": float(fractions.max()),
    }
