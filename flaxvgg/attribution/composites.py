"""Composites: which layer has which rule. A composite is a mapping from layers to rules.

Keys are names of layers (the paper's, PyTorch's or Keras's) or kinds ("conv", "linear",
"max_pool", ...); a name goes before a kind. What a mapping leaves out is as in `_OTHERWISE`:
activations pass relevance on, averages share it in proportion to what they average, and all else,
as max pooling, goes the way of gradients. The named ones are those of the package zennit.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from flaxvgg.attribution.relevance import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
    ZPlus,
)
from flaxvgg.attribution.routing import DeconvolutionReLU, Gradient, GuidedReLU, Norm, Pass
from flaxvgg.attribution.rules import ACTIVATIONS, AVERAGES, ROUTES, WEIGHTED, Number, Rule
from flaxvgg.files.choices import choose
from flaxvgg.network.config import Kind, Layer, VGGConfig

Rules = Mapping[str, Rule | str]
Composite = Literal[
    "epsilon_plus_flat",
    "epsilon_plus",
    "epsilon_gamma_box",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "excitation_backprop",
]

FIRST = "conv1_1"  # the first layer of all VGGs


def epsilon_plus_flat(epsilon: Number = 1e-6, stabiliser: Number = 1e-6) -> dict[str, Rule]:
    """Flat in the first layer, z+ in the other convolutions, epsilon in the linear layers."""
    return epsilon_plus(epsilon, stabiliser) | {FIRST: Flat(stabiliser)}


def epsilon_plus(epsilon: Number = 1e-6, stabiliser: Number = 1e-6) -> dict[str, Rule]:
    """z+ in the convolutions, epsilon in the linear layers."""
    return _averaging(stabiliser) | {"conv": ZPlus(stabiliser), "linear": Epsilon(epsilon)}


def epsilon_gamma_box(
    low: object = None,
    high: object = None,
    gamma: Number = 0.25,
    epsilon: Number = 1e-6,
    stabiliser: Number = 1e-6,
) -> dict[str, Rule]:
    """z^B in the first layer, gamma in the other convolutions, epsilon in the linear layers."""
    return _averaging(stabiliser) | {
        FIRST: ZBox(low, high, stabiliser),
        "conv": Gamma(gamma, stabiliser),
        "linear": Epsilon(epsilon),
    }


def epsilon_alpha2_beta1(epsilon: Number = 1e-6, stabiliser: Number = 1e-6) -> dict[str, Rule]:
    """Alpha 2, beta 1 in the convolutions, epsilon in the linear layers."""
    convolutions = AlphaBeta(2.0, 1.0, stabiliser)
    return _averaging(stabiliser) | {"conv": convolutions, "linear": Epsilon(epsilon)}


def epsilon_alpha2_beta1_flat(epsilon: Number = 1e-6, stabiliser: Number = 1e-6) -> dict[str, Rule]:
    """The same with flat in the first layer."""
    return epsilon_alpha2_beta1(epsilon, stabiliser) | {FIRST: Flat(stabiliser)}


def excitation_backprop(stabiliser: Number = 1e-6) -> dict[str, Rule]:
    """z+ in all layers with weights (Zhang et al. 2016, arXiv:1608.00507)."""
    everywhere = dict.fromkeys(WEIGHTED, ZPlus(stabiliser))
    return _averaging(stabiliser) | everywhere | dict.fromkeys(ACTIVATIONS, Gradient())


def guided_backprop() -> dict[str, Rule]:
    """Gradients, of which ReLUs let only positive ones pass."""
    return gradient() | {"relu": GuidedReLU()}


def deconvolution() -> dict[str, Rule]:
    """Gradients, of which ReLUs let the positive ones pass, also where they are closed."""
    return gradient() | {"relu": DeconvolutionReLU()}


def gradient() -> dict[str, Rule]:
    """The gradient, everywhere."""
    return dict.fromkeys(Gradient.kinds, Gradient())


def _averaging(stabiliser: Number) -> dict[str, Rule]:
    return dict.fromkeys(AVERAGES, Norm(stabiliser))


COMPOSITES: dict[str, Callable[..., dict[str, Rule]]] = {
    made.__name__: made
    for made in (
        epsilon_plus_flat,
        epsilon_plus,
        epsilon_gamma_box,
        epsilon_alpha2_beta1,
        epsilon_alpha2_beta1_flat,
        excitation_backprop,
    )
}
RULES: dict[str, type[Rule]] = {
    "epsilon": Epsilon,
    "gamma": Gamma,
    "z_plus": ZPlus,
    "alpha_beta": AlphaBeta,
    "z_box": ZBox,
    "flat": Flat,
    "w_square": WSquare,
    "norm": Norm,
    "pass": Pass,
    "gradient": Gradient,
}
_ALSO = {"zb": "z_box", "w2": "w_square", "wsquared": "w_square"}  # z^B, w^2
_OTHERWISE: dict[str, Rule] = {
    **dict.fromkeys(ROUTES, Gradient()),
    **dict.fromkeys(ACTIVATIONS, Pass()),
    **dict.fromkeys(AVERAGES, Norm()),
}


def rules_of(config: VGGConfig, composite: str | Rules) -> dict[str, Rule]:
    """The rule of every layer up to the logits; BatchNorms, which are merged, have none.

    Raises ValueError for an unknown composite, layer, kind or rule, for a rule that is not for that
    kind of layer, and for a layer with weights that has none.
    """
    if isinstance(composite, str):
        composite = COMPOSITES[composite_name(composite)]()
    if not isinstance(composite, Mapping):
        raise ValueError(
            "a composite is a name or a mapping from layers to rules, not "
            f"{type(composite).__name__}: {', '.join(COMPOSITES)}"
        )
    named, by_kind = {}, dict(_OTHERWISE)
    for key, given in composite.items():
        rule = RULES[_spelt(given, RULES, "rule")]() if isinstance(given, str) else given
        if not isinstance(rule, Rule):
            raise ValueError(
                f"{key!r} has no rule, but a {type(rule).__name__}: {', '.join(RULES)}"
            )
        if key in get_args(Kind):
            by_kind[key] = rule
        else:
            named[_meant(config, key)] = rule
    layers = config.layers[: config.layer_names.index(config.head_output.name) + 1]
    found = {}
    for layer in layers:
        if layer.kind == "batch_norm":
            continue
        rule = named.get(layer.name, by_kind.get(layer.kind))
        if rule is None:
            raise ValueError(f"no rule for {layer.name}: name it, or {layer.kind!r}")
        if layer.kind not in rule.kinds:
            raise ValueError(
                f"{type(rule).__name__} is no rule for {layer.name}: it is for "
                f"{', '.join(rule.kinds)}"
            )
        _check(rule)
        found[layer.name] = rule
    return found


def _check(rule: Rule) -> None:
    for field in dataclasses.fields(rule):  # pyright: ignore[reportArgumentType]: all are some
        value = getattr(rule, field.name)
        if field.name not in ("low", "high") and isinstance(value, float | int) and value < 0:
            raise ValueError(f"{field.name} must not be negative, as in {rule}")


def with_box(rules: Mapping[str, Rule], low: object, high: object) -> dict[str, Rule]:
    """The rules, with the box of those of z^B that have none."""
    return {
        name: dataclasses.replace(
            rule,
            low=low if rule.low is None else rule.low,
            high=high if rule.high is None else rule.high,
        )
        if isinstance(rule, ZBox)
        else rule
        for name, rule in rules.items()
    }


def _meant(config: VGGConfig, name: str) -> str:
    """The layer that a key names; Keras's layers hold their ReLU, and are meant without it."""
    layers = config.layers
    at = config.layer_names.index(config.resolve(name))
    if layers[at].kind == "batch_norm":
        raise ValueError(f"{name} is merged into the convolution before it: give that one the rule")
    if name not in (layers[at].name, layers[at].torch) and layers[at].kind not in ROUTES:
        return next(layer.name for layer in reversed(layers[: at + 1]) if _has_weights(layer))
    return layers[at].name


def _has_weights(layer: Layer) -> bool:
    return layer.kind in WEIGHTED


def composite_name(name: str) -> str:
    """The composite that is meant, whatever its spelling. Raises ValueError for none.

    >>> composite_name("Epsilon-Plus")
    'epsilon_plus'
    """
    return _spelt(name, COMPOSITES, "composite")


def _spelt(name: str, names: Mapping[str, object], what: str) -> str:
    """The name that is meant, whatever its capitals and hyphens. Raises ValueError for none."""
    wanted = "".join(x for x in name.lower().replace("+", "plus") if x.isalnum())
    found = {known.replace("_", ""): known for known in names}
    found |= {also: known for also, known in _ALSO.items() if known in names}
    if wanted not in found:
        raise ValueError(f"no {what} {name!r}: {choose(name, names)}")
    return found[wanted]
