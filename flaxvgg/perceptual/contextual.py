"""The contextual loss: images are compared by what is in them, wherever it is.

Mechrez et al. 2018, "The Contextual Loss for Image Transformation with Non-Aligned Data"
(arXiv:1803.02077).
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.network.model import VGG, LayerStack
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.ops.sharding import spread_by_xla
from flaxvgg.perceptual.arithmetic import direction
from flaxvgg.perceptual.losses import Layers, Weights, features_of, weighted
from flaxvgg.perceptual.pairs import Images, Range, check_pair, check_range, smallest_image

_EPS = 1e-5  # added to the least distance, as in the authors' code
_ROWS = 512  # features of the first image that are compared at once with all of the second


def contextual_loss(
    model: VGG,
    a: Images,
    b: Images,
    *,
    value_range: Range,
    layers: Layers = {"relu3_4": 1.0},  # noqa: B006
    bandwidth: float = 0.5,
) -> Float[Array, "..."]:
    """How many features of images b, (N, H, W, 3), images a lack, wherever they are: (N,).

    -log CX(x, y) of each layer's feature vectors, with cosine distances from b's mean, times the
    layer's weight, added up; 0 is the least. `layers` are as in `perceptual_loss`, by default
    relu3_4 of a vgg19. `bandwidth` is h in the paper. It is not symmetric: a is what is generated.

    All positions are compared, with none left out: 512 of a at a time, forwards and backwards, so
    that the memory grows with the area of the maps, not with its square. Raises ValueError as
    `perceptual_loss` does, and for a bandwidth that is not positive.

    >>> loss = flaxvgg.contextual_loss(
    ...     model, images * 0, images * 0 + 1, value_range=(0, 1), layers=["relu3_2"]
    ... )
    >>> loss.shape
    (2,)
    """
    given = check_range(value_range)
    if not (isinstance(bandwidth, int | float) and 0 < bandwidth < math.inf):
        raise ValueError(f"bandwidth must be a positive number, not {bandwidth!r}")
    weights = weighted(model, layers)
    a, b = check_pair(a, b, given, *smallest_image(model.config, [name for name, _ in weights]))
    stack, recipe = model.conv_stack, model.preprocessing
    return _compiled(stack, a, b, float(bandwidth), weights, given, recipe)


@partial(jax.jit, static_argnames=("bandwidth", "weights", "value_range", "recipe"))
def _compiled(
    stack: LayerStack,
    a: Array,
    b: Array,
    bandwidth: float,
    weights: Weights,
    value_range: Range,
    recipe: Preprocessing,
) -> Array:
    lead = a.shape[:-3]
    taps = [name for name, _ in weights]

    def run(a: Array, b: Array, stack: LayerStack) -> Array:
        features = features_of(stack, a, b, taps, value_range, recipe)
        of_one = jax.vmap(partial(_loss_of_one, bandwidth=bandwidth))
        parts = [weight * of_one(*(x[name] for x in features)) for name, weight in weights]
        return sum(parts).reshape(lead)

    return spread_by_xla(run, a, b, stack)


def _loss_of_one(
    x: Float[Array, "h w c"], y: Float[Array, "h w c"], bandwidth: float
) -> Float[Array, ""]:
    """-log CX of the features of one image and of another."""
    x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
    centre = y.mean(axis=0, keepdims=True)
    x, y = direction(x - centre), direction(y - centre)
    count = x.shape[0]
    size = min(_ROWS, count)
    blocks = -(-count // size)
    rows = jnp.pad(x, [(0, blocks * size - count), (0, 0)]).reshape(blocks, size, -1)
    here = (jnp.arange(blocks * size) < count).reshape(blocks, size, 1)

    @jax.checkpoint  # or the similarities of all pairs would wait for the backward pass
    def nearest(block: tuple[Array, Array]) -> Float[Array, " m"]:
        """How near some of x's features come to each of y's."""
        some, there = block
        apart = jnp.maximum(1 - jnp.matmul(some, y.T, precision="highest"), 0)
        relative = apart / (apart.min(axis=1, keepdims=True) + _EPS)
        affinity = jax.nn.softmax((1 - relative) / bandwidth, axis=1)
        return jnp.where(there, affinity, 0).max(axis=0)

    return -jnp.log(lax.map(nearest, (rows, here)).max(axis=0).mean())
