"""A GAP head on convolutions that stay as they are: fitted to cached features, in seconds."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

import flaxvgg
from flaxvgg.network.model import VGG

_BATCH = 8
T = TypeVar("T")
Report = Callable[[float], None]  # told how much of the work is done, from 0 to 1


def features_of(
    model: VGG, pixels: UInt8[np.ndarray, "n h w 3"], report: Report, layer: str = "features"
) -> Float[np.ndarray, "n fh fw c"]:
    """The output of a layer, by default the last feature map, for every image."""
    found = []
    for start in range(0, len(pixels), _BATCH):
        images = flaxvgg.normalise(pixels[start : start + _BATCH], model.preprocessing)
        found.append(np.asarray(_features(model, images, layer)))
        report(min(1, (start + _BATCH) / len(pixels)))
    return np.concatenate(found)


@partial(jax.jit, static_argnames="layer")
def _features(model: VGG, images: Array, layer: str) -> Array:
    return model.activations(images, [layer])[layer]


def fit_gap(
    model: VGG,
    features: Float[np.ndarray, "n h w c"],
    labels: Float[np.ndarray, "n classes"],
    *,
    steps: int = 500,
    decay: float = 1e-4,
) -> VGG:
    """`flaxvgg.with_gap`, its linear layer fitted by logistic regression, a class at a time.

    It is fitted to centred and scaled features, and the weights brought back to what they were.
    """
    pooled = features.mean(axis=(1, 2))
    # Scaled by the channel's own deviation alone, nearly silent channels would be loud.
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0) + pooled.std()
    x, y = jnp.asarray((pooled - mean) / deviation), jnp.asarray(labels)

    def loss(weights: tuple[Array, Array]) -> Array:
        kernel, bias = weights
        misses = optax.sigmoid_binary_cross_entropy(x @ kernel + bias[None], y).mean()
        return misses + decay * (kernel**2).sum()

    start = jnp.zeros((x.shape[1], y.shape[1])), jnp.zeros(y.shape[1])
    kernel, bias = map(np.asarray, _descend(loss, start, optax.adam(0.05), steps))
    gap = flaxvgg.with_gap(model, labels.shape[1], rngs=nnx.Rngs(0))
    gap.head.fc.kernel[...] = jnp.asarray(kernel / deviation[:, None])
    gap.head.fc.bias[...] = jnp.asarray(bias - (mean / deviation) @ kernel)
    return gap


def _descend(
    loss: Callable[[T], Array], start: T, optimiser: optax.GradientTransformation, steps: int
) -> T:
    @jax.jit
    def run(weights: T) -> T:
        def step(_, carry):
            weights, state = carry
            updates, state = optimiser.update(jax.grad(loss)(weights), state)
            return optax.apply_updates(weights, updates), state

        return jax.lax.fori_loop(0, steps, step, (weights, optimiser.init(weights)))[0]

    return run(start)
