"""A few steps of end-to-end training: the last block of convolutions and the head move together."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from flaxvgg.network.model import VGG, run_layers

CACHED = "pool4"  # what the blocks before conv5 give; they stay as they are


class State(NamedTuple):
    """What a step changes: the parameters that are trained, and the optimiser's own state."""

    parameters: nnx.State
    optimiser: optax.OptState


class Batch(NamedTuple):
    """Outputs of pool4 and the labels of the same images."""

    features: Float[Array, "n h w c"]
    labels: Float[Array, "n classes"]


Step = Callable[[State, Batch], tuple[State, dict[str, Array]]]


def _trained(path: tuple[str, ...], _value: object) -> bool:
    return path[0] == "head" or path[1].startswith("conv5_")


def make_step(
    model: VGG, optimiser: optax.GradientTransformation
) -> tuple[State, Step, Callable[[State], VGG]]:
    """The first state, (state, batch) -> (state, metrics), and the model of a state.

    The loss is the binary cross-entropy of each class, its mean over classes and images.
    """
    structure, trained, kept = nnx.split(model, _trained, ...)
    output = model.config.head_output.name

    def model_of(state: State) -> VGG:
        return nnx.merge(structure, state.parameters, kept)

    def loss(parameters: nnx.State, batch: Batch) -> Array:
        network = nnx.merge(structure, parameters, kept)
        stacks = network.conv_stack, network.head
        logits = run_layers(stacks, batch.features, {output}, after=CACHED)[output]
        return optax.sigmoid_binary_cross_entropy(logits, batch.labels).mean()

    @jax.jit
    def step(state: State, batch: Batch) -> tuple[State, dict[str, Array]]:
        value, gradient = jax.value_and_grad(loss)(state.parameters, batch)
        updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        return State(parameters, optimiser_state), {"loss": value}

    return State(trained, optimiser.init(trained)), step, model_of


def fine_tune(
    model: VGG,
    features: Float[np.ndarray, "n h w c"],
    labels: Float[np.ndarray, "n classes"],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    report: Callable[[float], None],
) -> tuple[VGG, list[float]]:
    """The model after so many steps of Adam, and the loss of each; `features` are pool4's."""
    state, step, model_of = make_step(model, optax.adam(learning_rate))
    losses = []
    for i, chosen in enumerate(_batches(len(features), batch, steps, seed)):
        state, metrics = step(
            state, Batch(jnp.asarray(features[chosen]), jnp.asarray(labels[chosen]))
        )
        losses.append(float(metrics["loss"]))
        report((i + 1) / steps)
    return model_of(state), losses


def _batches(count: int, batch: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of `steps` batches; every image comes once before any comes again."""
    random = np.random.default_rng([seed, 2])
    size, order = min(batch, count), np.empty(0, int)
    for _ in range(steps):
        if len(order) < size:
            order = random.permutation(count)
        chosen, order = order[:size], order[size:]
        yield chosen
