"""The maps of every method, from one compiled program."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxvgg.cam.contrasts import compared, valued
from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.derivatives import Derivative, channel_derivative, derivative
from flaxvgg.cam.factorisation import factors
from flaxvgg.cam.formulas import (
    FEATURE_METHODS,
    GRADIENT_METHODS,
    grad_cam,
    grad_cam_plus_plus,
    weighted,
)
from flaxvgg.cam.full_grad import bias_layers, full_grad
from flaxvgg.cam.masking import (
    ablation_weights,
    is_cam_weights,
    score_cam_weights,
    ss_cam_weights,
)
from flaxvgg.cam.network import Network, as_float32, as_scores
from flaxvgg.cam.options import Concepts
from flaxvgg.cam.smoothing import smooth_maps
from flaxvgg.cam.targets import Targets
from flaxvgg.network.config import VGGConfig
from flaxvgg.ops.sharding import spread_by_xla

# Raw maps (N, K, h, w) of one or several layers, the classes (N, K), and their scores (N, K).
# These are None for a network without a head.
Found = tuple[tuple[Array, ...], Int[Array, "n k"], Float[Array, "n k"] | None]
MapsOf = Callable[[dict[str, Array]], tuple[Array, ...]]

# Finer-CAM is Grad-CAM of other scores, RefineCAM a product of Grad-CAM++ over layers.
_BY_GRADIENT = {**GRADIENT_METHODS, "finer_cam": grad_cam, "refine_cam": grad_cam_plus_plus}


@partial(jax.jit, static_argnames=("config", "method", "layers", "convention"))
def layer_maps(
    stacks: Any,
    images: Float[Array, "n h w 3"],
    targets: Targets,
    options: Any,
    config: VGGConfig,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """What `flaxvgg.explain` gives, of a method that needs no enlarged image.

    `stacks` are the model's two, without its provenance: other weights are no other program.
    """

    def found(images: Array, stacks: Any, targets: Targets, options: Any) -> Found:
        network = Network(stacks, config)
        if method in _BY_GRADIENT:
            return _by_gradients(network, images, targets, options, method, layers, convention)
        if method == "shapley_cam":
            return _shapley_cam(network, images, targets, layers, convention)
        if method == "full_grad":
            return _full_grad(network, images, targets, convention)
        if method == "deep_feature_factorisation":
            return _by_concepts(network, images, options, layers)
        if method in FEATURE_METHODS:
            return _by_features(network, images, targets, options, method, layers)
        return _by_weights(network, images, targets, options, method, layers, convention)

    return spread_by_xla(found, images, stacks, targets, options)


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
    options: Any,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    formula = _BY_GRADIENT[method]
    found, maps_of = _with_formula(network, images, formula, layers, convention)
    explained = targets
    if method == "finer_cam":
        explained = compared(targets.settled(found.scores), options, convention)
    return _found(_each(found, explained, maps_of), targets, found.scores)


def _shapley_cam(
    network: Network,
    images: Array,
    targets: Targets,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """Layer by layer: what is explained depends on where."""
    outputs = network.run(images, {*layers, network.output})
    scores = as_scores(outputs[network.output])
    settled = targets.settled(scores)
    maps: list[Array] = []
    for name in layers:
        behind = partial(network.scores, after=name)
        _, slope = jax.jvp(behind, (outputs[name],), (outputs[name],))
        found, maps_of = _with_formula(network, images, grad_cam, (name,), convention)
        maps += _each(found, valued(settled, slope, convention), maps_of)
    return _found(tuple(maps), targets, scores)


def _with_formula(
    network: Network,
    images: Array,
    formula: Callable[[Array, Array, Convention], Array],
    layers: tuple[str, ...],
    convention: Convention,
) -> tuple[Derivative, MapsOf]:
    """The derivative by the layers, and what makes maps of gradients."""
    linear = network.pooled_by(layers[0]) if len(layers) == 1 else None
    if formula is grad_cam and linear is not None:
        found = channel_derivative(network, images, layers[0], linear)
        places = math.prod(found.activations[layers[0]].shape[1:3])

        def from_sums(gradients: dict[str, Array]) -> tuple[Array, ...]:
            weights = {name: g[:, 0, 0] / places for name, g in gradients.items()}
            return tuple(weighted(found.activations[x], weights[x]) for x in layers)

        return found, from_sums
    found = derivative(network, images, layers)

    def from_gradients(gradients: dict[str, Array]) -> tuple[Array, ...]:
        return tuple(formula(found.activations[x], gradients[x], convention) for x in layers)

    return found, from_gradients


def _full_grad(network: Network, images: Array, targets: Targets, convention: Convention) -> Found:
    found = derivative(network, images, ("", *bias_layers(network)))

    def maps_of(gradients: dict[str, Array]) -> tuple[Array, ...]:
        return (full_grad(network, images, gradients, convention),)

    return _found(_each(found, targets, maps_of), targets, found.scores)


def _each(found: Derivative, targets: Targets, maps_of: MapsOf) -> tuple[Array, ...]:
    """`maps_of(gradients)` for each target: as many at a time as memory allows."""
    of_one = sum(x.nbytes for x in found.activations.values())
    return targets.map(found.scores, lambda c: maps_of(found.gradients(c)), of_one)


def _by_weights(
    network: Network,
    images: Array,
    targets: Targets,
    options: Any,
    method: str,
    layers: tuple[str, ...],
    convention: Convention,
) -> Found:
    """The methods that run the network again, or know every target's weight of every channel."""
    outputs = network.run(images, {*layers, network.output})
    scores = as_scores(outputs[network.output])
    targets = targets.settled(scores)
    if method == "smooth_grad_cam++":
        of_layers = {name: as_float32(outputs[name]) for name in layers}
        arguments = of_layers, scores, targets, options, layers, convention
        return _found(smooth_maps(network, images, *arguments), targets, scores)
    maps = []
    for name in layers:
        activations = as_float32(outputs[name])
        match method:
            case "cam":
                weights = _pooled_weights(network, activations.shape[-1], targets, scores)
            case "score_cam":
                weights = score_cam_weights(network, images, activations, targets, convention)
            case "ss_cam" | "is_cam":
                arguments = network, images, activations, targets, convention, options
                weights = (ss_cam_weights if method == "ss_cam" else is_cam_weights)(*arguments)
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


def _by_features(
    network: Network,
    images: Array,
    targets: Targets,
    options: Any,
    method: str,
    layers: tuple[str, ...],
) -> Found:
    """The same map for every target; of a network without a head, for class -1."""
    output = [network.output] if network.config.head else []
    outputs = network.run(images, {*layers, *output})
    if output:
        classes, wanted = targets.scores(as_scores(outputs[network.output]))
    else:
        classes, wanted = jnp.full((images.shape[0], 1), -1, jnp.int32), None
    maps = []
    for name in layers:
        same = FEATURE_METHODS[method](as_float32(outputs[name]), options)[:, None]
        shape = images.shape[0], classes.shape[1], *same.shape[2:]
        maps.append(jnp.broadcast_to(same, shape))
    return tuple(maps), classes, wanted


def _by_concepts(
    network: Network, images: Array, options: Concepts, layers: tuple[str, ...]
) -> Found:
    """A map for each concept in place of each class: all are of class -1, and have no score."""
    outputs = network.run(images, layers)
    maps = tuple(factors(as_float32(outputs[name]), options) for name in layers)
    return maps, jnp.full(maps[0].shape[:2], -1, jnp.int32), None


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
