"""LPIPS: the distance between images that was fitted to people's judgments, on VGG16.

Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"
(arXiv:1801.03924), as the package `lpips` computes it, and as torchmetrics does.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvgg.images.resizing import resize
from flaxvgg.network.layers import sum_dtype
from flaxvgg.network.model import VGG, LayerStack
from flaxvgg.ops.sharding import spread_by_xla
from flaxvgg.perceptual.arithmetic import by_channel, by_length, length, mean_over_space
from flaxvgg.perceptual.features import is_zero, of_pair
from flaxvgg.perceptual.pairs import (
    Images,
    Range,
    check_pair,
    check_range,
    normalised,
    smallest_image,
)
from flaxvgg.perceptual.published import TAPS, check_trunk, lpips_weights

Version = Literal["0.1", "0.0"]
Convention = Literal["lpips", "torchmetrics"]

_VERSIONS = get_args(Version)
_CONVENTIONS = get_args(Convention)
# ImageNet's mean and deviation for values in (-1, 1), to the digits that the original has.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def lpips(
    model: VGG,
    a: Images,
    b: Images,
    *,
    value_range: Range,
    version: Version = "0.1",
    convention: Convention = "lpips",
    spatial: bool = False,
    per_layer: bool = False,
    linear: bool = True,
) -> Float[Array, "..."] | dict[str, Float[Array, "..."]]:
    """The LPIPS distance of images a and b, (N, H, W, 3) each: (N,), 0 for the same image.

    `model` is a vgg16 with torchvision's convolutions; others get a warning. `value_range` is the
    range that the images' values have, (0, 1), (-1, 1) or (0, 255): it is never guessed, and values
    outside it are refused where they are known. Under `jax.jit` nothing of the images is known, and
    nothing is checked; the guide shows how `jax.experimental.checkify` does it. Images are uint8 or
    floats, at least 16x16, with any leading axes.

    `version` "0.1" is the package's default, "0.0" its first release, which does not scale the
    images. `convention` says where epsilon is added before a feature vector is divided by its
    length: "lpips" as the package does, "torchmetrics" as that one. `spatial` gives maps (N, H, W),
    of each layer enlarged bilinearly; `per_layer` a dictionary by layer, whose sum is the distance.
    Without `linear` layers every channel counts as one: the paper's uncalibrated distance.

    It is symmetric, and 0 for equal images, to the bit. First and second derivatives are finite,
    also by features that are all zero, where the originals' are NaN; by one of the two images they
    cost no backward pass for the other. Raises ValueError, in one line, for images that cannot
    be compared, values outside the range, NaN, another architecture, version or convention.

    >>> model = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    >>> a, b = np.zeros((2, 1, 32, 32, 3), np.float32) + [[[[[0.2]]]], [[[[0.7]]]]]
    >>> flaxvgg.lpips(model, a, b, value_range=(0, 1)).shape
    (1,)
    """
    if version not in _VERSIONS:
        raise ValueError(f"no LPIPS version {version!r}: choose from {', '.join(_VERSIONS)}")
    if convention not in _CONVENTIONS:
        raise ValueError(f"no convention {convention!r}: choose from {', '.join(_CONVENTIONS)}")
    given = check_range(value_range)
    check_trunk(model, "LPIPS")
    a, b = check_pair(a, b, given, *smallest_image(model.config, TAPS))
    weights = lpips_weights(version)
    if not linear:
        weights = {tap: np.ones_like(weight) for tap, weight in weights.items()}
    dtype = sum_dtype(model.conv_stack.conv1_1.dtype)
    how = _How(dtype.name, given, version == "0.1", convention == "lpips", spatial, per_layer)
    return _lpips(model.conv_stack, a, b, weights, how)


class _How(NamedTuple):
    """What a program is compiled for."""

    dtype: str
    value_range: Range
    scales: bool
    adds_to_length: bool
    spatial: bool
    per_layer: bool


@partial(jax.jit, static_argnames="how")
def _lpips(
    stack: LayerStack,
    a: Array,
    b: Array,
    weights: Mapping[str, Array],
    how: _How,
) -> Array | dict[str, Array]:
    lead = a.shape[:-3]

    def run(a: Array, b: Array, stack: LayerStack, weights: Mapping[str, Array]):
        a, b = (_scaled(x.reshape(math.prod(lead), *x.shape[-3:]), how) for x in (a, b))
        of_a, of_b = of_pair(stack, a, b, TAPS)
        found = {}
        for tap in TAPS:
            x, y = of_a[tap], of_b[tap]
            maps = _apart(x, y, by_channel(weights[tap], x), how.adds_to_length)
            part = resize(maps, a.shape[1:3]) if how.spatial else mean_over_space(maps)
            found[tap] = part.reshape(*lead, *part.shape[1:])
        return found if how.per_layer else sum(found.values())

    return spread_by_xla(run, a, b, stack, weights)


def _scaled(x: Array, how: _How) -> Array:
    """Images as the network takes them."""
    mean, std = (_SHIFT, _SCALE) if how.scales else ((0.0,) * 3, (1.0,) * 3)
    return normalised(x.astype(how.dtype), how.value_range, (-1.0, 1.0), mean, std)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _apart(
    x: Float[Array, "n h w c"],
    y: Float[Array, "n h w c"],
    weight: Float[Array, "1 1 1 c"],
    adds_to_length: bool,
) -> Float[Array, "n h w"]:
    """The weighted square of the distance of feature vectors at length one, place by place."""
    x, y = _unit(x, adds_to_length), _unit(y, adds_to_length)
    return (jnp.square(x - y) * weight).sum(axis=-1)


@partial(_apart.defjvp, symbolic_zeros=True)
def _apart_jvp(adds_to_length: bool, primals, tangents):
    # In closed form it is one sum for each place and one array, where JAX would write ten; and no
    # square root is differentiated, which at zero is infinite: there the originals have NaN.
    x, y, weight = primals
    scales = [_once(1 / _size(z, adds_to_length)) for z in (x, y)]
    units = [jax.nn.relu(z * scale) for z, scale in zip((x, y), scales, strict=True)]
    pull = 2 * weight * (units[0] - units[1])
    change = jnp.zeros(x.shape[:-1], x.dtype)
    for i, sign in enumerate((1, -1)):
        moved = tangents[i]
        if not is_zero(moved):
            by_one = _pulled(primals[i], units[i], scales[i], pull, adds_to_length)
            change += sign * (by_one * moved).sum(axis=-1)
    if not is_zero(tangents[2]):
        change += (jnp.square(units[0] - units[1]) * tangents[2]).sum(axis=-1)
    return _apart(x, y, weight, adds_to_length), change


def _size(x: Float[Array, "n h w c"], adds_to_length: bool) -> Float[Array, "n h w 1"]:
    """What feature vectors are divided by: their length, and a little more."""
    if adds_to_length:
        return length(x) + 1e-10
    return jnp.sqrt(1e-8 + jnp.sum(jnp.square(x), axis=-1, keepdims=True))


def _unit(x: Float[Array, "n h w c"], adds_to_length: bool) -> Float[Array, "n h w c"]:
    """Feature vectors at length one.

    They are a ReLU's, so that another ReLU leaves them as they are, and their derivatives too. It
    keeps the compiler from subtracting an unrounded product from a rounded one (as a fused
    multiply-add does): equal features would differ by rounding, and a and b not be exchangeable.
    For the same reason it is no quotient, which XLA makes a product of in some places.
    """
    return jax.nn.relu(x * (1 / _size(x, adds_to_length)))


def _once(x: Float[Array, "n h w 1"]) -> Float[Array, "n h w 1"]:
    """A number for each place, which XLA is kept from working out anew for each channel.

    With its roots and quotients in the loops over channels a gradient takes twice as long.
    """
    return jax.lax.optimization_barrier(x)


def _pulled(
    x: Float[Array, "n h w c"],
    unit: Float[Array, "n h w c"],
    scale: Float[Array, "n h w 1"],
    pull: Float[Array, "n h w c"],
    adds_to_length: bool,
) -> Float[Array, "n h w c"]:
    """The gradient by x of the product of `unit`, which is x times `scale`, with `pull`."""
    inner = (pull * unit).sum(axis=-1, keepdims=True)
    # The derivative of the size is x / length, or x / size.
    along = _once(by_length(inner, x) if adds_to_length else inner * scale)
    return (pull - x * along) * scale
