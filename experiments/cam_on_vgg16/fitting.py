"""A classifier on convolutions that stay as they are: fitted to cached features, in minutes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

import flaxvgg
from experiments.composed.fitting import Report
from flaxvgg.network.model import VGG, run_layers


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
