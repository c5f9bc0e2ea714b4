"""The maps of every method, from one compiled program."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.derivatives import Derivative, channel_derivative, derivative
from flaxvgg.cam.formulas import GRADIENT_METHODS, principal_component, weighted
from flaxvgg.cam.full_grad import bias_layers, full_grad
from flaxvgg.cam.masking import ablation_weights, score_cam_weights
from flaxvgg.cam.network import Network, as_float32, as_scores
from flaxvgg.cam.targets import Targets
from flaxvgg.network.config import VGGConfig
from flaxvgg.ops.sharding import spread_by_xla

# Raw maps (N, K, h, w) of one or several layers, the classes (N, K), and their scores (N, K).
# These are None for a network without a head.
Found = tuple[tuple[Array, ...], Int[Array, "n k"], Float[Array, "n k"] | None]


@partial(jax.jit, static_argnames=("config", "method", "layers", "convention"))
def layer_maps(
    stacks: Any,
    images: Float[Array, "n h w 3"],
    targets: Targets,
    config: VGGConfig,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """What `flaxvgg.explain` gives, of a method that needs no enlarged image.

    `stacks` are the model's two, without its provenance: other weights are no other program.
    """

    def found(images: Array, stacks: Any, targets: Targets) -> Found:
        network = Network(stacks, config)
        if method in GRADIENT_METHODS:
            return _by_gradients(network, images, targets, method, layers, convention)
        if method == "full_grad":
            return _full_grad(network, images, targets, convention)
        if method == "eigen_cam":
            return _eigen_cam(network, images, targets, layers)
        return _by_weights(network, images, targets, method, layers, convention)

    return spread_by_xla(found, images, stacks, targets)


@jax.jit
def maps_of_scores(score_maps: Float[Array, "n h w c"], targets: Targets) -> Found:
    """The wanted classes' part of the score maps of `flaxvgg.score_maps`.

    For scores of a function: the sum of the maps, each times the derivative by its mean.
    """

    def found(score_maps: Array, targets: Targets) -> Found:
        maps, scores = as_float32(score_maps), as_scores(score_maps)
        if targets.function is not None:
            chosen = targets.map(scores, partial(weighted, maps), maps.nbytes)
        else:
            classes, _ = targets.scores(scores)
            by_class = jnp.moveaxis(maps, -1, 1)
            chosen = jnp.take_along_axis(by_class, classes[:, :, None, None], axis=1, mode="clip")
        return _found((chosen,), targets, scores)

    return spread_by_xla(found, score_maps, targets)


def _by_gradients(
    network: Network,
    images: Array,
    targets: Targets,
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

    return _for_targets(found, targets, maps_of)


def _full_grad(network: Network, images: Array, targets: Targets, convention: Convention) -> Found:
    found = derivative(network, images, ("", *bias_layers(network)))

    def maps_of(gradients: dict[str, Array]) -> tuple[Array, ...]:
        return (full_grad(network, images, gradients, convention),)

    return _for_targets(found, targets, maps_of)


def _for_targets(
    found: Derivative,
    targets: Targets,
    maps_of: Callable[[dict[str, Array]], tuple[Array, ...]],
) -> Found:
    """`maps_of(gradients)` for each target: as many at a time as memory allows."""
    of_one = sum(x.nbytes for x in found.activations.values())
    maps = targets.map(found.scores, lambda c: maps_of(found.gradients(c)), of_one)
    return _found(maps, targets, found.scores)


def _by_weights(
    network: Network,
    images: Array,
    targets: Targets,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """The methods that know every target's weight of every channel, (N, K, C)."""
    outputs = network.run(images, {*layers, network.output})
    scores = as_scores(outputs[network.output])
    targets = targets.settled(scores)
    maps = []
    for name in layers:
        activations = as_float32(outputs[name])
        match method:
            case "cam":
                weights = _pooled_weights(network, activations.shape[-1], targets, scores)
            case "score_cam":
                weights = score_cam_weights(network, images, activations, targets, convention)
            case "ablation_cam":
                arguments = name, outputs[name], targets, scores, convention
                weights = ablation_weights(network, *arguments)
            case _:
                raise ValueError(method)
        maps.append(_weigh(activations, weights))
    return _found(tuple(maps), targets, scores)


def _pooled_weights(
    network: Network, channels: int, targets: Targets, scores: Float[Array, "n classes"]
) -> Float[Array, "n k c"]:
    """Each class's weight of each channel that is pooled; of a score map, its own channel's.

    Of a function: its derivative by the logits, times these weights.
    """
    if network.config.head_output.kind == "flatten":
        of_classes = jnp.eye(channels)
    else:
        of_classes = as_float32(network.parameters(network.output).kernel[...]).T
    if targets.function is None:
        return of_classes[targets.scores(scores)[0]]

    def weights(cotangent: Float[Array, "n classes"]) -> Float[Array, "n c"]:
        return jnp.einsum("nk,kc->nc", cotangent, of_classes, precision="highest")

    return targets.map(scores, weights, scores.nbytes)


def _eigen_cam(network: Network, images: Array, targets: Targets, layers: tuple[str, ...]) -> Found:
    """The same map for every target; of a network without a head, for class -1."""
    output = [network.output] if network.config.head else []
    outputs = network.run(images, {*layers, *output})
    if output:
        classes, wanted = targets.scores(as_scores(outputs[network.output]))
    else:
        classes, wanted = jnp.full((images.shape[0], 1), -1, jnp.int32), None
    maps = []
    for name in layers:
        component = principal_component(as_float32(outputs[name]))[:, None]
        shape = images.shape[0], classes.shape[1], *component.shape[2:]
        maps.append(jnp.broadcast_to(component, shape))
    return tuple(maps), classes, wanted


def _weigh(
    activations: Float[Array, "n h w c"], weights: Float[Array, "n k c"]
) -> Float[Array, "n k h w"]:
    return jnp.einsum("nhwc,nkc->nkhw", activations, weights, precision="highest")


def _found(maps: tuple[Array, ...], targets: Targets, scores: Float[Array, "n c"]) -> Found:
    """The result, with NaN for a class that there is none of: under `jax.jit` nobody can check."""
    classes, wanted = targets.scores(scores)
    if targets.function is None:
        exists = (classes >= 0) & (classes < scores.shape[1])
        maps = tuple(jnp.where(exists[:, :, None, None], x, jnp.nan) for x in maps)
    return maps, classes, wanted
