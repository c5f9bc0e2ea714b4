"""DISTS: structure and texture of two images, on VGG16 with L2 pooling.

Ding et al. 2020, "Image Quality Assessment: Unifying Structure and Texture Similarity"
(arXiv:2004.07728), as its authors' code and torchmetrics compute it.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.network.config import VGGConfig
from flaxvgg.network.layers import sum_dtype
from flaxvgg.network.model import VGG, LayerStack
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.ops.sharding import spread_by_xla
from flaxvgg.perceptual.arithmetic import by_channel, mean_over_space
from flaxvgg.perceptual.features import of_pair, with_layers
from flaxvgg.perceptual.pairs import Images, Range, check_pair, check_range, in_unit_range, prepared
from flaxvgg.perceptual.published import ARCH, TAPS, check_trunk, dists_weights

_EPS = 1e-6
Weights = tuple[dict[str, Array], dict[str, Array]]


def dists(model: VGG, a: Images, b: Images, *, value_range: Range) -> Float[Array, "..."]:
    """The DISTS distance of images a and b, (N, H, W, 3) each: (N,), 0 for the same image.

    Means and covariances of the channels of the images themselves and of five layers are compared,
    so that it forgives one texture for another of the same kind. `model` is a vgg16 with
    torchvision's convolutions, whose poolings become L2 poolings; others get a warning.
    `value_range` is that of the images' values, as in `flaxvgg.lpips`; images are uint8 or floats,
    of any size.

    What the original takes as 1 minus a similarity is computed as the difference itself,
    (x - y)^2 / (x^2 + y^2 + 1e-6): exactly 0 for the same image, symmetric to the bit, and with no
    digits lost. Derivatives are finite. Raises ValueError as `flaxvgg.lpips` does.

    >>> model = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    >>> a, b = np.zeros((2, 1, 32, 32, 3), np.float32) + [[[[[0.2]]]], [[[[0.7]]]]]
    >>> flaxvgg.dists(model, a, b, value_range=(0, 1)).shape
    (1,)
    """
    given = check_range(value_range)
    check_trunk(model, "DISTS")
    a, b = check_pair(a, b, given)
    dtype = sum_dtype(model.conv_stack.conv1_1.dtype)
    return _dists(model.conv_stack, a, b, dists_weights(), given, dtype.name)


@partial(jax.jit, static_argnames=("value_range", "dtype"))
def _dists(
    stack: LayerStack, a: Array, b: Array, weights: Weights, value_range: Range, dtype: str
) -> Array:
    lead = a.shape[:-3]
    layers = VGGConfig(ARCH, (), pooling="l2").conv_stack

    def run(a: Array, b: Array, stack: LayerStack, weights: Weights) -> Array:
        a, b = (x.reshape(math.prod(lead), *x.shape[-3:]).astype(dtype) for x in (a, b))
        recipe = PREPROCESSING["torchvision"]
        inputs = (prepared(x, value_range, recipe) for x in (a, b))
        of_a, of_b = of_pair(with_layers(stack, layers), *inputs, TAPS)
        alpha, beta = weights
        pairs = {tap: (of_a[tap], of_b[tap]) for tap in TAPS}
        pairs["image"] = in_unit_range(a, value_range), in_unit_range(b, value_range)
        total = jnp.zeros(a.shape[:1], a.dtype)
        for tap, (x, y) in pairs.items():
            texture, structure = _differences(x, y)
            parts = texture * by_channel(alpha[tap], x[0, 0])
            total += (parts + structure * by_channel(beta[tap], x[0, 0])).sum(axis=-1)
        return total.reshape(lead)

    return spread_by_xla(run, a, b, stack, weights)


def _differences(
    x: Float[Array, "n h w c"], y: Float[Array, "n h w c"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """1 minus the similarity of each channel's mean, and of its deviations from it.

    The squares go through a ReLU, which leaves them as they are, because compilers add an unrounded
    product to a rounded one: x and y would not be exchangeable.
    """
    apart = x - y
    squares, variances = [], []
    for z in (x, y):
        mean = mean_over_space(z)
        squares.append(jax.nn.relu(jnp.square(mean)))
        variances.append(jax.nn.relu(mean_over_space(jnp.square(z - mean[:, None, None]))))
    mean = mean_over_space(apart)
    between = mean_over_space(jnp.square(apart - mean[:, None, None]))
    return jnp.square(mean) / (sum(squares) + _EPS), between / (sum(variances) + _EPS)
