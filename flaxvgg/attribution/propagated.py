"""Methods that go back through the layers by rules: LRP, guided backpropagation, deconvolution."""

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flaxvgg.attribution import composites
from flaxvgg.attribution.backward import Forward
from flaxvgg.attribution.composites import Composite, Rules, rules_of
from flaxvgg.attribution.merging import merged_into
from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.rules import Rule
from flaxvgg.cam.formulas import weighted
from flaxvgg.cam.network import Network
from flaxvgg.cam.options import NoOptions
from flaxvgg.cam.targets import Targets
from flaxvgg.images.resizing import resize
from flaxvgg.network.config import VGGConfig, listed
from flaxvgg.network.model import VGG

Interpolation = Literal["nearest", "linear", "cubic"]

_register = jax.tree_util.register_dataclass


@dataclasses.dataclass(frozen=True)
class LRP:
    """Options of "lrp": a `composite`, and the `layers` whose relevance is wanted as well.

    A composite is a name (`flaxvgg.attribution.composites.COMPOSITES`), what such a function makes
    with other numbers, or a mapping of one's own from layers to rules. Relevance starts as the
    score, split over the logits that it is computed from.

    `details` have, under the layers' names as they were given, the relevance (N, K, h, w, C) or
    (N, K, C) of their outputs. With `sums` they also have, under "sum_conv1_2" and so on, the sum
    (N, K) of what is at that layer's output, for every layer from the logits on, so that one sees
    where any is lost.
    """

    composite: Composite | str | Rules = "epsilon_plus_flat"
    layers: Iterable[str] = ()
    sums: bool = False


@partial(_register, data_fields=["rules"], meta_fields=["layers", "sums"])
@dataclasses.dataclass(frozen=True)
class _Chosen:
    """The rule of each layer, and pairs of a layer's name as it was given and as the rules' is."""

    rules: dict[str, Rule]
    layers: tuple[tuple[str, str], ...]
    sums: bool


def _chosen(options: LRP, model: VGG) -> _Chosen:
    config, recipe = model.config, model.preprocessing
    low, high = (
        (np.array(bound) - np.array(recipe.mean)) / np.array(recipe.std)
        for bound in (0, 255 / recipe.divisor)
    )
    rules = rules_of(config, options.composite)
    rules = composites.with_box(rules, np.float32(low), np.float32(high))
    merged = merged_into(config.layers)
    pairs = []
    for name in listed(options.layers):
        layer = config.resolve(name)
        layer = merged.get(layer, layer)
        if layer not in rules:
            raise ValueError(f"there is no relevance at {name!r}: it starts at the logits")
        pairs.append((name, layer))
    return _Chosen(rules, tuple(pairs), bool(options.sums))


def lrp(network: Network, images: Array, targets: Targets, options: _Chosen) -> Found:
    """Layer-wise relevance propagation (Bach et al. 2015, doi:10.1371/journal.pone.0130140)."""
    forward = Forward.of(network, images, options.rules)
    back = forward.back(options.rules)
    logits = forward.outputs[network.output]

    def of_one(cotangent: Array) -> dict[str, Array]:
        relevance = back(logits * forward.by_logits(cotangent))
        found = {name: relevance[layer] for name, layer in options.layers}
        if options.sums:
            found |= {f"sum_{name}": _sum(x) for name, x in relevance.items() if name}
        return found | {"": relevance[""]}

    return _found(forward, targets, of_one)


def _sum(x: Array) -> Array:
    """The sum (N,) of each image's values, in steps: one chain of millions would be less exact."""
    while x.ndim > 1:
        x = x.sum(axis=1)
    return x


def guided_backprop(network: Network, images: Array, targets: Targets, options: NoOptions) -> Found:
    """Guided backpropagation (Springenberg et al. 2015, arXiv:1412.6806)."""
    return _modified(network, images, targets, composites.guided_backprop())


def deconvolution(network: Network, images: Array, targets: Targets, options: NoOptions) -> Found:
    """The deconvolutional network (Zeiler & Fergus 2014, arXiv:1311.2901)."""
    return _modified(network, images, targets, composites.deconvolution())


def _modified(network: Network, images: Array, targets: Targets, composite: Rules) -> Found:
    rules = rules_of(network.config, composite)
    forward = Forward.of(network, images, rules)
    back = forward.back(rules)
    return _found(forward, targets, lambda c: {"": back(forward.by_logits(c))[""]})


@partial(_register, data_fields=[], meta_fields=["layer", "interpolation"])
@dataclasses.dataclass(frozen=True)
class GuidedGradCAM:
    """Options of "guided_grad_cam": the `layer` of the map, and how it is enlarged.

    None is the last ReLU before the pooling, relu5_3. "nearest" is the default of the package
    captum, which calls for a layer; "linear" that of the paper.
    """

    layer: str | None = None
    interpolation: Interpolation = "nearest"


def _with_layer(options: GuidedGradCAM, model: VGG) -> GuidedGradCAM:
    known = get_args(Interpolation)
    if options.interpolation not in known:
        raise ValueError(
            f"no interpolation {options.interpolation!r}: choose from {', '.join(known)}"
        )
    return dataclasses.replace(options, layer=_layer_of_maps(model.config, options.layer))


def _layer_of_maps(config: VGGConfig, name: str | None) -> str:
    """The paper's name of a layer that gives maps; by default the last ReLU that does."""
    kinds = [layer.kind for layer in config.layers]
    end = next((i for i, kind in enumerate(kinds) if kind in ("flatten", "windows")), len(kinds))
    maps = config.layers[:end]
    if name is None:
        return [layer.name for layer in maps if layer.kind == "relu"][-1]
    layer, merged = config.resolve(name), merged_into(config.layers)
    if layer in merged.values():
        raise ValueError(f"{name}'s BatchNorm is merged into it: choose the BatchNorm or the ReLU")
    if layer not in [layer.name for layer in maps]:
        raise ValueError(f"{name} gives no map: choose a layer up to {maps[-1].name}")
    return merged.get(layer, layer)


def guided_grad_cam(
    network: Network, images: Array, targets: Targets, options: GuidedGradCAM
) -> Found:
    """Guided backpropagation times Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, sec. 3.2)."""
    assert options.layer is not None
    layer, size = options.layer, images.shape[1:3]
    guided = rules_of(network.config, composites.guided_backprop())
    plain = rules_of(network.config, composites.gradient())
    forward = Forward.of(network, images, guided, plain, kept=[layer])
    back, to_layer = forward.back(guided), forward.back(plain, until=layer)
    activations = forward.outputs[layer]

    def of_one(cotangent: Array) -> dict[str, Array]:
        by_logits = forward.by_logits(cotangent)
        weights = to_layer(by_logits)[layer].mean(axis=(1, 2))
        cam = jnp.maximum(weighted(activations, weights), 0)
        return {"": back(by_logits)[""] * _enlarged(cam, size, options.interpolation)[..., None]}

    return _found(forward, targets, of_one)


def _enlarged(maps: Array, size: tuple[int, int], interpolation: Interpolation) -> Array:
    """Maps (N, h, w) at `size`, as `torch.nn.functional.interpolate` computes it."""
    if interpolation != "nearest":
        return resize(maps, size, interpolation)
    rows, columns = (np.arange(out) * n // out for n, out in zip(maps.shape[1:], size, strict=True))
    return maps[:, rows][:, :, columns]


def _found(forward: Forward, targets: Targets, of_one) -> Found:
    """What a method finds: attributions under "", details under their names."""
    classes, scores = targets.scores(forward.scores)
    found = targets.map(forward.scores, of_one, 2 * forward.largest)
    return Found(found.pop(""), classes, scores, found)


METHODS = {
    "lrp": Method(LRP, lrp, _chosen),
    "guided_backprop": Method(NoOptions, guided_backprop),
    "deconvolution": Method(NoOptions, deconvolution),
    "guided_grad_cam": Method(GuidedGradCAM, guided_grad_cam, _with_layer),
}
