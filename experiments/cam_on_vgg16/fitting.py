"""Heads on convolutions that stay as they are: fitted to cached features, in a few minutes."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

import flaxvgg
from flaxvgg.model import VGG, run_layers

_BATCH = 8
T = TypeVar("T")
Report = Callable[[float], None]  # told how much of the work is done, from 0 to 1


def features_of(
    model: VGG, pixels: UInt8[np.ndarray, "n h w 3"], report: Report
) -> Float[np.ndarray, "n h w c"]:
    """The last feature map of every image."""
    found = []
    for start in range(0, len(pixels), _BATCH):
        images = flaxvgg.normalise(pixels[start : start + _BATCH], model.preprocessing)
        found.append(np.asarray(_features(model, images)))
        report(min(1, (start + _BATCH) / len(pixels)))
    return np.concatenate(found)


@jax.jit
def _features(model: VGG, images: Array) -> Array:
    return model.features(images)


def fit_gap(
    model: VGG,
    features: Float[np.ndarray, "n h w c"],
    labels: Float[np.ndarray, "n classes"],
    *,
    steps: int = 500,
    decay: float = 1e-3,
) -> VGG:
    """`flaxvgg.with_gap`, its linear layer fitted by logistic regression, a class at a time.

    The pooled features are standardised, and the weights brought back to what they were.
    """
    pooled = features.mean(axis=(1, 2))
    mean, deviation = pooled.mean(axis=0), pooled.std(axis=0)
    deviation = deviation + 1e-3 * pooled.std()  # some channels are zero on every image
    x, y = jnp.asarray((pooled - mean) / deviation), jnp.asarray(labels)

    def loss(weights: tuple[Array, Array]) -> Array:
        kernel, bias = weights
        misses = optax.sigmoid_binary_cross_entropy(x @ kernel + bias, y).mean()
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


def fit_classifier(
    model: VGG,
    features: Float[np.ndarray, "n h w c"],
    labels: Float[np.ndarray, "n classes"],
    *,
    seed: int,
    steps: int,
    report: Report,
    batch: int = 32,
) -> VGG:
    """fc6, fc7 and fc8 of torchvision's shape, from its initialisation, by Adam with dropout."""
    arch, count = model.config.arch, labels.shape[1]
    fresh = flaxvgg.to_torch(getattr(flaxvgg, arch)(num_classes=count, rngs=nnx.Rngs(seed)))
    weights = {name: array for name, array in fresh.items() if name.startswith("classifier.")}
    classifier = flaxvgg.from_torch(
        arch,
        flaxvgg.to_torch(model) | weights,
        precision="default",
        provenance=model.provenance,
    )
    classifier.head.train()
    structure, parameters = nnx.split(classifier.head)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-4, steps))

    def loss(parameters: nnx.State, x: Array, y: Array, key: Array) -> Array:
        head = nnx.merge(structure, parameters)
        logits = run_layers((classifier.conv_stack, head), x, {"fc8"}, after="pool5", rngs=key)
        logits = logits["fc8"]
        return optax.sigmoid_binary_cross_entropy(logits, y).mean()

    @jax.jit
    def step(parameters, state, x, y, key):
        updates, state = optimiser.update(jax.grad(loss)(parameters, x, y, key), state)
        return optax.apply_updates(parameters, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    state = optimiser.init(parameters)
    random, key = np.random.default_rng(seed), jax.random.key(seed)
    for i in range(steps):
        chosen = random.choice(len(features), min(batch, len(features)), replace=False)
        x, y = jnp.asarray(features[chosen]), jnp.asarray(labels[chosen])
        parameters, state = step(parameters, state, x, y, jax.random.fold_in(key, i))
        report((i + 1) / steps)
    nnx.update(classifier.head, parameters)
    classifier.eval()
    return classifier
