"""The maps of every method, from one compiled program."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.derivatives import Derivative, channel_derivative, derivative
from flaxvgg.cam.formulas import GRADIENT_METHODS, principal_component, weighted
from flaxvgg.cam.full_grad import bias_layers, full_grad
from flaxvgg.cam.masking import ablation_weights, score_cam_weights
from flaxvgg.cam.network import Network, as_float32, as_scores
from flaxvgg.network.config import VGGConfig
from flaxvgg.ops.sharding import spread_by_xla

# Raw maps (N, K, h, w) of one or several layers, the classes (N, K), and their scores (N, K).
# These are None for a network without a head.
Found = tuple[tuple[Array, ...], Int[Array, "n k"], Float[Array, "n k"] | None]

_LARGEST = 256 * 2**20  # bytes of gradients that are held at once


@partial(jax.jit, static_argnames=("config", "method", "layers", "convention"))
def layer_maps(
    stacks: Any,
    images: Float[Array, "n h w 3"],
    classes: Int[Array, "n k"] | None,
    config: VGGConfig,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """What `flaxvgg.explain` gives, of a method that needs no enlarged image.

    `stacks` are the model's two, without its provenance: other weights are no other program.
    """

    def found(images: Array, stacks: Any, classes: Array | None) -> Found:
        network = Network(stacks, config)
        if method in GRADIENT_METHODS:
            return _by_gradients(network, images, classes, method, layers, convention)
        if method == "full_grad":
            return _full_grad(network, images, classes, convention)
        if method == "eigen_cam":
            return _eigen_cam(network, images, classes, layers)
        return _by_weights(network, images, classes, method, layers, convention)

    return spread_by_xla(found, images, stacks, classes)


@jax.jit
def maps_of_scores(score_maps: Float[Array, "n h w c"], classes: Int[Array, "n k"] | None) -> Found:
    """The wanted classes' part of the score maps of `flaxvgg.score_maps`."""

    def found(score_maps: Array, classes: Array | None) -> Found:
        maps = jnp.moveaxis(as_float32(score_maps), -1, 1)
        scores = as_scores(score_maps)
        classes = _top(scores) if classes is None else classes
        chosen = jnp.take_along_axis(maps, classes[:, :, None, None], axis=1, mode="clip")
        return _found((chosen,), classes, scores)

    return spread_by_xla(found, score_maps, classes)


def _by_gradients(
    network: Network,
    images: Array,
    classes: Array | None,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    linear = network.pooled_by(layers[0]) if len(layers) == 1 else None
    if method == "grad_cam" and linear is not None:
        found = channel_derivative(network, images, layers[0], linear)
        places = math.prod(found.activations[layers[0]].shape[1:3])

        def maps_of(gradients: dict[str, Array]) -> tuple[Array, ...]:
            weights = {name: g[:, 0, 0] / places for name, g in gradients.items()}
            return tuple(weighted(found.activations[x], weights[x]) for x in layers)
    else:
        found = derivative(network, images, layers)
        formula = GRADIENT_METHODS[method]

        def maps_of(gradients: dict[str, Array]) -> tuple[Array, ...]:
            return tuple(formula(found.activations[x], gradients[x], convention) for x in layers)

    return _for_classes(found, classes, maps_of)


def _full_grad(
    network: Network, images: Array, classes: Array | None, convention: Convention
) -> Found:
    found = derivative(network, images, ("", *bias_layers(network)))

    def maps_of(gradients: dict[str, Array]) -> tuple[Array, ...]:
        return (full_grad(network, images, gradients, convention),)

    return _for_classes(found, classes, maps_of)


def _for_classes(
    found: Derivative,
    classes: Array | None,
    maps_of: Callable[[dict[str, Array]], tuple[Array, ...]],
) -> Found:
    """`maps_of(gradients)` for each class: as many at a time as memory allows."""
    scores = found.scores
    classes = _top(scores) if classes is None else classes

    def of_class(wanted: Int[Array, " n"]) -> tuple[Array, ...]:
        one_hot = jax.nn.one_hot(wanted, scores.shape[-1], dtype=scores.dtype)
        # Zeros like the scores know over which devices these differ, within `jax.shard_map`.
        return maps_of(found.gradients(one_hot + jnp.zeros_like(scores)))

    of_one = sum(x.nbytes for x in found.activations.values())
    is_known = isinstance(of_one, int)  # or the number of images is a symbol
    at_once = max(1, _LARGEST // of_one) if is_known else 1
    if is_known and classes.shape[1] <= at_once:
        maps = jax.vmap(of_class)(classes.T)
    else:
        maps = lax.map(of_class, classes.T, batch_size=at_once)
    return _found(tuple(jnp.moveaxis(x, 0, 1) for x in maps), classes, scores)


def _by_weights(
    network: Network,
    images: Array,
    classes: Array | None,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """The methods that know every class's weight of every channel, (N, K, C)."""
    outputs = network.run(images, {*layers, network.output})
    scores = as_scores(outputs[network.output])
    classes = _top(scores) if classes is None else classes
    maps = []
    for name in layers:
        activations = as_float32(outputs[name])
        match method:
            case "cam":
                weights = _class_weights(network, activations.shape[-1])[classes]
            case "score_cam":
                weights = score_cam_weights(network, images, activations, classes, convention)
            case "ablation_cam":
                arguments = name, outputs[name], classes, scores, convention
                weights = ablation_weights(network, *arguments)
            case _:
                raise ValueError(method)
        maps.append(_weigh(activations, weights))
    return _found(tuple(maps), classes, scores)


def _class_weights(network: Network, channels: int) -> Float[Array, "classes c"]:
    """Each class's weight of each channel that is pooled; of a score map, its own channel's."""
    if network.config.head_output.kind == "flatten":
        return jnp.eye(channels)
    return as_float32(network.parameters(network.output).kernel[...]).T


def _eigen_cam(
    network: Network, images: Array, classes: Array | None, layers: tuple[str, ...]
) -> Found:
    """The same map for every class; of a network without a head, for class -1."""
    output = [network.output] if network.config.head else []
    outputs = network.run(images, {*layers, *output})
    scores = as_scores(outputs[network.output]) if output else None
    if scores is None:
        classes = jnp.full((images.shape[0], 1), -1, jnp.int32)
    elif classes is None:
        classes = _top(scores)
    maps = []
    for name in layers:
        component = principal_component(as_float32(outputs[name]))[:, None]
        shape = images.shape[0], classes.shape[1], *component.shape[2:]
        maps.append(jnp.broadcast_to(component, shape))
    return tuple(maps), classes, None if scores is None else _of_classes(scores, classes)


def _weigh(
    activations: Float[Array, "n h w c"], weights: Float[Array, "n k c"]
) -> Float[Array, "n k h w"]:
    return jnp.einsum("nhwc,nkc->nkhw", activations, weights, precision="highest")


def _top(scores: Float[Array, "n c"]) -> Int[Array, "n 1"]:
    return scores.argmax(axis=-1, keepdims=True).astype(jnp.int32)


def _of_classes(scores: Float[Array, "n c"], classes: Int[Array, "n k"]) -> Float[Array, "n k"]:
    """The wanted scores; NaN for a class that there is none of."""
    taken = jnp.take_along_axis(scores, classes, axis=1, mode="clip")
    return jnp.where((classes >= 0) & (classes < scores.shape[1]), taken, jnp.nan)


def _found(maps: tuple[Array, ...], classes: Array, scores: Float[Array, "n c"]) -> Found:
    """The result, with NaN for a class that there is none of: under `jax.jit` nobody can check."""
    wanted = _of_classes(scores, classes)
    exists = (classes >= 0) & (classes < scores.shape[1])
    return tuple(jnp.where(exists[:, :, None, None], x, jnp.nan) for x in maps), classes, wanted
