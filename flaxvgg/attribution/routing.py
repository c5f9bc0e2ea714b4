"""The rules for layers without weights, and those of gradients."""

import dataclasses
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxvgg.attribution.relevance import divided
from flaxvgg.attribution.rules import (
    ACTIVATIONS,
    AVERAGES,
    ROUTES,
    WEIGHTED,
    Back,
    Number,
    Rule,
    Site,
)
from flaxvgg.network.config import Kind, Layer

_register = jax.tree_util.register_dataclass


@partial(_register, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Pass(Rule):
    """The input's relevance is the output's: LRP's rule for activations."""

    kinds: ClassVar[tuple[Kind, ...]] = (*ACTIVATIONS, "dropout")

    def __call__(self, site: Site) -> Back:
        return lambda relevance: relevance


@partial(_register, data_fields=["stabiliser"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Norm(Rule):
    """In proportion to the input times its derivative: LRP's rule for averages."""

    stabiliser: Number = 1e-6
    kinds: ClassVar[tuple[Kind, ...]] = AVERAGES

    def __call__(self, site: Site) -> Back:
        y, pull_back = jax.vjp(site.apply, site.inputs)

        def back(relevance: Array) -> Array:
            return site.inputs * pull_back(divided(relevance, y, self.stabiliser))[0]

        return back

    def keeps_zeros(self, layer: Layer) -> bool | None:
        return True


@partial(_register, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Gradient(Rule):
    """The layer's derivative. Of max pooling all goes to the first of the largest values."""

    kinds: ClassVar[tuple[Kind, ...]] = (*WEIGHTED, *ACTIVATIONS, *AVERAGES, *ROUTES)

    def __call__(self, site: Site) -> Back:
        kind = site.layer.kind
        if kind in WEIGHTED:
            return lambda g: site.operation.transposed(g, site.kernel, site.inputs)
        if kind == "relu":
            return lambda g: jnp.where(site.outputs > 0, g, 0)
        _, pull_back = jax.vjp(site.apply, site.inputs)
        return lambda g: pull_back(g)[0]

    def keeps_zeros(self, layer: Layer) -> bool | None:
        return False if layer.kind in (*WEIGHTED, *AVERAGES) else None


@partial(_register, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class GuidedReLU(Rule):
    """Only positive gradients pass a ReLU, and only where it is open (Springenberg et al. 2015)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("relu",)

    def __call__(self, site: Site) -> Back:
        return lambda g: jnp.where((site.outputs > 0) & (g > 0), g, 0)


@partial(_register, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class DeconvolutionReLU(Rule):
    """Only positive gradients pass a ReLU, open or not (Zeiler & Fergus 2014)."""

    kinds: ClassVar[tuple[Kind, ...]] = ("relu",)

    def __call__(self, site: Site) -> Back:
        return lambda g: jnp.maximum(g, 0)
