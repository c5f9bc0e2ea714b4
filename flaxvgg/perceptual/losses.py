"""Losses on the features of a network: perceptual, of style, and total variation.

A preset is what somebody published, as data; its layers and its distance can be replaced.
"""

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.network.layers import sum_dtype
from flaxvgg.network.model import VGG, AnyArray, LayerStack
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.ops.sharding import spread_by_xla
from flaxvgg.perceptual.arithmetic import magnitude
from flaxvgg.perceptual.features import of_pair
from flaxvgg.perceptual.pairs import (
    Images,
    Range,
    check_pair,
    check_range,
    prepared,
    smallest_image,
)

Distance = Literal["l1", "l2"]
Layers = Mapping[str, float] | Iterable[str]
Weights = tuple[tuple[str, float], ...]  # a layer by the paper's name, and its weight


class Preset(NamedTuple):
    """Layers with their weights, and the distance: mean absolute difference, or mean square.

    Features are multiplied by `factor` before. `grams` says how Gram matrices are scaled: by "area"
    and channels, as in BasicSR; or so that the loss is Gatys's.
    """

    layers: Weights
    distance: Distance
    factor: float = 1.0
    grams: Literal["area", "gatys"] = "area"


PERCEPTUAL = {
    # Wang et al. 2018 (arXiv:1809.00219) and BasicSR: features of vgg19 before the ReLU.
    "esrgan": Preset((("conv5_4", 1.0),), "l1"),
    # Ledig et al. 2017 (arXiv:1609.04802): VGG5,4, after the ReLU, divided by 12.75.
    "srgan": Preset((("relu5_4", 1.0),), "l2", factor=1 / 12.75),
    # Johnson et al. 2016 (arXiv:1603.08155), for super-resolution, on vgg16.
    "johnson": Preset((("relu2_2", 1.0),), "l2"),
}
_FIRST = tuple(f"relu{block}_1" for block in range(1, 6))
STYLE = {
    # Gatys et al. 2016 (arXiv:1508.06576): five layers, a fifth each, on average pooling.
    "gatys": Preset(tuple((name, 0.2) for name in _FIRST), "l2", grams="gatys"),
    "basicsr": Preset((("conv5_4", 1.0),), "l1"),
}


def perceptual_loss(
    model: VGG,
    a: Images,
    b: Images,
    *,
    value_range: Range,
    preset: Literal["esrgan", "srgan", "johnson"] = "esrgan",
    layers: Layers | None = None,
    distance: Distance | None = None,
) -> Float[Array, "..."]:
    """How far apart the features of images a and b, (N, H, W, 3) each, are: (N,), a loss each.

    For every layer the mean over all its features of `|x - y|` ("l1") or (x - y)^2 ("l2"), times
    its weight, added up. `layers` are names with weights, or names, of any layers: conv5_4 is
    before the ReLU, relu5_4 after it. The presets have the layers, the distance and the factor that
    were published: "esrgan" (vgg19, conv5_4, "l1"), "srgan" (vgg19, relu5_4 / 12.75, "l2") and
    "johnson" (vgg16, relu2_2, "l2"); `layers` and `distance` replace theirs.

    Images have the values that `value_range` says, as in `flaxvgg.lpips`, and are normalised as the
    model's weights expect it. Raises ValueError as `flaxvgg.lpips` does, and for a preset or a
    layer that there is none of.

    >>> layers = {"conv3_2": 1, "relu4_2": 0.5}
    >>> loss = flaxvgg.perceptual_loss(
    ...     model, images * 0, images * 0 + 1, value_range=(0, 1), layers=layers
    ... )
    >>> loss.shape
    (2,)
    """
    return _loss(model, a, b, value_range, _preset(preset, PERCEPTUAL), layers, distance, False)


def style_loss(
    model: VGG,
    a: Images,
    b: Images,
    *,
    value_range: Range,
    preset: Literal["gatys", "basicsr"] = "gatys",
    layers: Layers | None = None,
    distance: Distance | None = None,
) -> Float[Array, "..."]:
    """How far apart the styles of images a and b, (N, H, W, 3) each, are: (N,), a loss each.

    A layer's style is the Gram matrix of its channels. "gatys" is the loss of Gatys et al. 2016
    (arXiv:1508.06576): relu1_1 to relu5_1, a fifth each, of sum (G - A)^2 / (4 C^2 (h w)^2); they
    took it on `flaxvgg.with_pooling(model, "average")`. "basicsr" is that of BasicSR: the mean
    absolute difference of `gram_matrix`, of conv5_4 of a vgg19. `layers` and `distance` replace the
    preset's, as in `perceptual_loss`. Raises ValueError as that does.

    >>> flaxvgg.style_loss(model, images * 0, images * 0 + 1, value_range=(0, 1)).shape
    (2,)
    """
    return _loss(model, a, b, value_range, _preset(preset, STYLE), layers, distance, True)


def gram_matrix(
    features: Float[AnyArray, "*n h w c"], *, normalise: bool = True
) -> Float[Array, "*n c c"]:
    """The products of a layer's channels, summed over space: (N, C, C) of maps (N, h, w, C).

    Divided by C h w, as in Johnson et al. 2016 and BasicSR, unless `normalise` is False. Sums are
    at least float32.

    >>> maps = model.activations(images, ["relu2_1"])["relu2_1"]
    >>> flaxvgg.gram_matrix(maps).shape
    (2, 128, 128)
    """
    x = jnp.asarray(features)
    x = x.astype(sum_dtype(x.dtype))
    x = x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])
    gram = jnp.einsum("...pi,...pj->...ij", x, x, precision="highest")
    return gram / (x.shape[-2] * x.shape[-1]) if normalise else gram


def total_variation(images: Float[AnyArray, "*n h w c"]) -> Float[Array, "*n"]:
    """The sum of absolute differences of neighbouring values, down and across: (N,).

    Of Rudin et al. 1992, the anisotropic form, as torchmetrics computes it.

    >>> flaxvgg.total_variation(jnp.zeros((2, 4, 4, 3)).at[:, 1, 1].set(1))
    Array([12., 12.], dtype=float32)
    """
    x = jnp.asarray(images)
    x = x.astype(sum_dtype(x.dtype))
    return sum(magnitude(jnp.diff(x, axis=axis)).sum(axis=(-3, -2, -1)) for axis in (-3, -2))


def _preset(name: str, presets: Mapping[str, Preset]) -> Preset:
    if name not in presets:
        raise ValueError(f"no preset {name!r}: choose from {', '.join(presets)}")
    return presets[name]


def weighted(model: VGG, layers: Layers) -> Weights:
    """The layers by the paper's names, with weights. Raises ValueError for none or unknown ones."""
    if isinstance(layers, str):
        raise ValueError(f"layers are names with weights: {{{layers!r}: 1.0}}")
    given = dict(layers) if isinstance(layers, Mapping) else dict.fromkeys(layers, 1.0)
    found = tuple((model.config.resolve(name), float(weight)) for name, weight in given.items())
    stack = {layer.name for layer in model.config.conv_stack}
    wrong = [name for name, _ in found if name not in stack]
    if wrong or not found:
        what = f"{wrong[0]} is none" if wrong else "there is none"
        raise ValueError(f"layers are to be of the convolutions, conv1_1 to pool5: {what}")
    return found


class _How(NamedTuple):
    """What a program is compiled for."""

    value_range: Range
    recipe: Preprocessing
    preset: Preset
    of_style: bool


def _loss(
    model: VGG,
    a: Images,
    b: Images,
    value_range: Range,
    preset: Preset,
    layers: Layers | None,
    distance: Distance | None,
    of_style: bool,
) -> Array:
    given = check_range(value_range)
    if distance not in (None, "l1", "l2"):
        raise ValueError(f'no distance {distance!r}: choose from "l1", "l2"')
    weights = weighted(model, dict(preset.layers) if layers is None else layers)
    preset = preset._replace(layers=weights, distance=distance or preset.distance)
    a, b = check_pair(a, b, given, *smallest_image(model.config, [name for name, _ in weights]))
    return _compiled(model.conv_stack, a, b, _How(given, model.preprocessing, preset, of_style))


@partial(jax.jit, static_argnames="how")
def _compiled(stack: LayerStack, a: Array, b: Array, how: _How) -> Array:
    lead = a.shape[:-3]
    taps = [name for name, _ in how.preset.layers]

    def run(a: Array, b: Array, stack: LayerStack) -> Array:
        features = features_of(stack, a, b, taps, how.value_range, how.recipe)
        parts = [
            weight * _difference(*(x[name] for x in features), how)
            for name, weight in how.preset.layers
        ]
        return sum(parts).reshape(lead)

    return spread_by_xla(run, a, b, stack)


def features_of(
    stack: LayerStack,
    a: Array,
    b: Array,
    taps: list[str],
    value_range: Range,
    recipe: Preprocessing,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Layers' outputs for two batches of images (..., H, W, 3), with one axis before height."""
    dtype = sum_dtype(stack.conv1_1.dtype)
    count = math.prod(a.shape[:-3])
    flat = (x.reshape(count, *x.shape[-3:]).astype(dtype) for x in (a, b))
    images = (prepared(x, value_range, recipe) for x in flat)
    return of_pair(stack, *images, taps)


def _difference(x: Array, y: Array, how: _How) -> Float[Array, " n"]:
    """The distance of one layer's features, or of their Gram matrices."""
    preset, c = how.preset, x.shape[-1]
    factor = preset.factor
    if how.of_style:
        factor = factor**2 / (x.shape[1] * x.shape[2] * c)
        x, y = (gram_matrix(z, normalise=False) for z in (x, y))
    difference = (x - y) * factor  # in this order, equal ones differ by exactly nothing
    power = magnitude(difference) if preset.distance == "l1" else jnp.square(difference)
    mean = power.mean(axis=tuple(range(1, power.ndim)))
    # Gatys's sum (G - A)^2 / (4 C^2 (h w)^2) is a quarter of the sum over our scaled matrices.
    return mean * (c**2 / 4) if preset.grams == "gatys" else mean
