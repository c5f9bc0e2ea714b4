"""Scores and how they change with the activations of a layer, for any number of classes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.cam.network import Network, as_float32, as_scores
from flaxvgg.network.config import Layer
from flaxvgg.network.prepared import summed_over_places


class Derivative(NamedTuple):
    """One forward pass: its scores (N, classes), the layers' activations (N, h, w, C) in float32.

    `gradients` gives, for a cotangent of the scores (N, classes), the gradient by each layer's
    output; it can be called under `jax.vmap`, for many classes at once.
    """

    scores: Float[Array, "n classes"]
    activations: dict[str, Float[Array, "n _ _ _"]]
    gradients: Callable[[Float[Array, "n classes"]], dict[str, Float[Array, "n _ _ _"]]]


def derivative(network: Network, images: Array, layers: Sequence[str]) -> Derivative:
    """The derivative by the outputs of the layers; the layer "" is the images themselves.

    The backward pass ends at the first of them.
    """
    linear = network.pooled_by(layers[0]) if len(layers) == 1 and layers[0] else None
    if linear is not None:
        return _through_pooling(network, images, layers[0], linear)
    named = [name for name in layers if name]
    shapes = jax.eval_shape(lambda x: network.run(x, named), images)
    # Like the images, of which every device has its own within `jax.shard_map`.
    shifts = {name: lax.full_like(images, 0, x.dtype, x.shape) for name, x in shapes.items()}
    if "" in layers:
        shifts[""] = jnp.zeros_like(images)

    def shifted(shifts: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        x = images + shifts[""] if "" in shifts else images
        outputs = network.run(x, {*named, network.output}, shifts=shifts)
        return as_scores(outputs[network.output]), {name: outputs[name] for name in named}

    scores, pull_back, activations = jax.vjp(shifted, shifts, has_aux=True)
    if "" in layers:
        activations[""] = images
    return Derivative(scores, _in_float32(activations), lambda c: _in_float32(pull_back(c)[0]))


def _through_pooling(network: Network, images: Array, layer: str, linear: Layer) -> Derivative:
    """The same where only pooling lies between the layer and a linear one, as for relu5_3.

    The product with the weights has them on the left: for two to a hundred classes XLA's CPU
    backend takes a third of the time that it takes the other way round, which it would turn it
    back into but for the barrier.
    """
    outputs = network.run(images, [layer, linear.name])
    scores, of_units = _of_units(network, outputs[linear.name], linear)
    flatten = "flatten"
    _, of_pooling = jax.vjp(lambda x: network.run(x, [flatten], layer)[flatten], outputs[layer])
    kernel = network.parameters(linear.name).kernel[...].astype(outputs[linear.name].dtype)

    def gradients(cotangent: Array) -> dict[str, Array]:
        (by_units,) = of_units(cotangent)
        product = lax.dot_general(kernel, by_units, (((1,), (1,)), ((), ())), precision="highest")
        (by_layer,) = of_pooling(lax.optimization_barrier(product).T)
        return _in_float32({layer: by_layer})

    return Derivative(scores, _in_float32({layer: outputs[layer]}), gradients)


def channel_derivative(network: Network, images: Array, layer: str, linear: Layer) -> Derivative:
    """The derivative summed over space, (N, 1, 1, C), where only pooling precedes a linear layer.

    It is the derivative by what is added to a whole channel. Pooling passes that on unchanged, to
    every place, so that the sum over places can be taken of the weights, once for all classes: for
    vgg16 49 times less than the gradients.
    """
    outputs = network.run(images, [layer, linear.name])
    scores, of_units = _of_units(network, outputs[linear.name], linear)
    module = network.parameters(linear.name)
    if hasattr(module, "summed"):  # `flaxvgg.prepare` has made it
        summed = module.summed[...]
    else:
        summed = summed_over_places(module.kernel[...], linear.inputs)

    def gradients(cotangent: Array) -> dict[str, Array]:
        (by_units,) = of_units(cotangent)
        found = jnp.einsum("no,co->nc", as_float32(by_units), summed, precision="highest")
        return {layer: found[:, None, None]}

    return Derivative(scores, _in_float32({layer: outputs[layer]}), gradients)


def _of_units(network: Network, units: Array, linear: Layer):
    """The scores, and their derivative by the output of a linear layer."""
    return jax.vjp(lambda units: network.scores(units, after=linear.name), units)


def _in_float32(arrays: dict[str, Array]) -> dict[str, Array]:
    return {name: as_float32(array) for name, array in arrays.items()}
