"""The rules of layer-wise relevance propagation for layers with weights.

Each shares the relevance of an output among its inputs in proportion to terms a_i w_i, of inputs
`a` and weights `w` that the rule derives from the layer's: a `Part`. What the terms are divided by
is their sum, with the bias where it counts, kept away from zero by `stabiliser`; the relevance of
the bias is lost. The definitions are those of the package zennit.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxvgg.attribution.operation import Kernel, Sloped, written
from flaxvgg.attribution.rules import WEIGHTED, Back, Number, Rule, Site
from flaxvgg.network.config import Kind, Layer

_register = jax.tree_util.register_dataclass


class Part(NamedTuple):
    """Inputs, and the weights that each of them meets.

    `total`, where it is known, is the sum of all terms and the bias. `share` is how much of the
    relevance goes this way: a number, or a mask of the outputs. `direct`: see `Operation`.
    """

    inputs: tuple[Any, ...]
    kernels: tuple[Kernel, ...]
    bias: Array | None = None
    total: Array | None = None
    share: Any = None
    direct: bool = False


def divided(relevance: Array, total: Array, stabiliser: Number) -> Array:
    """Relevance by a total whose size is enlarged by `stabiliser`; 0 counts as positive."""
    eps = jnp.asarray(stabiliser, total.dtype)
    shifted = jnp.where(total >= 0, total + eps, total - eps)
    # Without a stabiliser: an output of zero has no terms to hand its relevance to.
    return jnp.where(shifted == 0, 0, relevance / jnp.where(shifted == 0, 1, shifted))


def shared_out(site: Site, parts: list[Part], stabiliser: Number) -> Back:
    """Relevance in proportion to the terms of each part, which go separate ways."""
    ways = [_way(site, part, stabiliser) for part in parts]

    def back(relevance: Array) -> Array:
        found = [way(relevance) for way in ways]
        return sum(found[1:], found[0])

    return back


def _way(site: Site, part: Part, stabiliser: Number) -> Back:
    like = site.inputs
    # Several inputs that meet weights of their own are one input of so many times the channels.
    a = [_as_large(x, like) for x in part.inputs]
    x = a[0] if len(a) == 1 else jnp.concatenate(a, axis=-1)
    kernel = part.kernels[0]
    if len(a) > 1:
        kernel = jnp.concatenate([written(kernel) for kernel in part.kernels], axis=-2)
    total = part.total
    if total is None:
        total = site.operation(x, kernel)
        if part.bias is not None:
            total = total + part.bias.reshape(*(1,) * (total.ndim - 1), -1)

    def back(relevance: Array) -> Array:
        if part.share is not None:
            relevance = relevance * jnp.asarray(part.share, relevance.dtype)
        quotients = divided(relevance, total, stabiliser)
        terms = site.operation.terms(x, kernel, quotients, direct=part.direct)
        if len(a) == 1:
            return terms
        # Of a last axis of a few values, a sum of slices is faster than XLA's of an axis.
        parts = jnp.split(terms, len(a), axis=-1)
        return sum(parts[1:], parts[0])

    return back


def _as_large(x: Any, like: Array) -> Array:
    if jnp.shape(x) == like.shape:
        return x
    # Zeros like the inputs know over which devices these differ, in `jax.shard_map`.
    return jnp.broadcast_to(jnp.asarray(x, like.dtype), like.shape) + jnp.zeros_like(like)


def _by_sign(site: Site, for_positive: Kernel, for_negative: Kernel, **more: Any) -> Part:
    """Positive inputs meet some weights, and negative ones, where there can be any, others."""
    x = site.inputs
    if site.nonnegative:
        return Part((x,), (for_positive,), **more)
    return Part((_positive(x), _negative(x)), (for_positive, for_negative), **more)


def _positive(x: Array) -> Array:
    return jnp.maximum(x, 0)


def _negative(x: Array) -> Array:
    return jnp.minimum(x, 0)


class _Weighted(Rule):
    kinds: ClassVar[tuple[Kind, ...]] = WEIGHTED

    def keeps_zeros(self, layer: Layer) -> bool | None:
        return True


@partial(_register, data_fields=["epsilon"], meta_fields=["bias"])
@dataclasses.dataclass(frozen=True)
class Epsilon(_Weighted):
    """Terms x w, the layer's own (Bach et al. 2015, eq. 58); LRP-0 is that with epsilon 0.

    Without `bias`, that is left out of the sum.
    """

    epsilon: Number = 1e-6
    bias: bool = True

    def __call__(self, site: Site) -> Back:
        total = site.outputs if self.bias else None
        return shared_out(site, [Part((site.inputs,), (site.kernel,), total=total)], self.epsilon)

    def reads(self, gated: bool) -> bool:
        return self.bias


@partial(_register, data_fields=["gamma", "stabiliser"], meta_fields=["bias"])
@dataclasses.dataclass(frozen=True)
class Gamma(_Weighted):
    """Terms x (w + gamma w+), which favours positive ones (Montavon et al. 2019, section 10.2.3).

    Generalised to inputs and outputs of any sign: what favours an output is what has its sign, so
    that behind a negative input, or for a negative output, it is w + gamma w-.
    """

    gamma: Number = 0.25
    stabiliser: Number = 1e-6
    bias: bool = True

    def __call__(self, site: Site) -> Back:
        more = 1 + jnp.asarray(self.gamma, site.kernel.dtype)
        up, down = Sloped(site.kernel, more, 1), Sloped(site.kernel, 1, more)
        above = Sloped(site.bias, more, 1).written if self.bias else None
        below = Sloped(site.bias, 1, more).written if self.bias else None
        if site.gated:  # there is no relevance of other outputs
            return shared_out(site, [_by_sign(site, up, down, bias=above)], self.stabiliser)
        parts = [
            _by_sign(site, up, down, bias=above, share=site.outputs > 0),
            _by_sign(site, down, up, bias=below, share=site.outputs < 0),
        ]
        return shared_out(site, parts, self.stabiliser)

    def reads(self, gated: bool) -> bool:
        return not gated


@partial(_register, data_fields=["stabiliser"], meta_fields=["bias"])
@dataclasses.dataclass(frozen=True)
class ZPlus(_Weighted):
    """The positive ones of the terms x w (Montavon et al. 2017, arXiv:1512.02479): alpha 1, beta 0.

    A positive bias counts.
    """

    stabiliser: Number = 1e-6
    bias: bool = True

    def __call__(self, site: Site) -> Back:
        up, down = Sloped(site.kernel, 1, 0), Sloped(site.kernel, 0, 1)
        bias = _positive(site.bias) if self.bias else None
        return shared_out(site, [_by_sign(site, up, down, bias=bias)], self.stabiliser)


@partial(_register, data_fields=["alpha", "beta", "stabiliser"], meta_fields=["bias"])
@dataclasses.dataclass(frozen=True)
class AlphaBeta(_Weighted):
    """alpha times the positive terms x w, less beta times the negative (Bach et al. 2015, eq. 60).

    Each kind is divided by its own sum. Relevance is conserved where alpha - beta is 1.
    """

    alpha: Number = 2.0
    beta: Number = 1.0
    stabiliser: Number = 1e-6
    bias: bool = True

    def __call__(self, site: Site) -> Back:
        up, down = Sloped(site.kernel, 1, 0), Sloped(site.kernel, 0, 1)
        above, below = (part(site.bias) if self.bias else None for part in (_positive, _negative))
        # An image's few values may all speak for an output; what speaks against it is then divided
        # by next to nothing.
        direct = not site.nonnegative
        parts = [
            _by_sign(site, up, down, bias=above, share=self.alpha, direct=direct),
            _by_sign(site, down, up, bias=below, share=-self.beta, direct=direct),
        ]
        return shared_out(site, parts, self.stabiliser)


class _Anywhere(_Weighted):
    """Inputs of zero get relevance as well."""

    def keeps_zeros(self, layer: Layer) -> bool | None:
        return False


@partial(_register, data_fields=["low", "high", "stabiliser"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ZBox(_Anywhere):
    """Terms x w - low w+ - high w-, all >= 0 for inputs between low and high: for the first layer.

    Montavon et al. 2017 (arXiv:1512.02479, section 5). `low` and `high` are numbers, or arrays that
    end in (C,); None are those of an image of pixels from 0 to 255, as the model expects it. The
    bias cancels.
    """

    low: Any = None
    high: Any = None
    stabiliser: Number = 1e-6

    def __call__(self, site: Site) -> Back:
        kernel = site.kernel
        bounds = Sloped(kernel, -1, 0), Sloped(kernel, 0, -1)
        part = Part((site.inputs, self.low, self.high), (kernel, *bounds))
        return shared_out(site, [part], self.stabiliser)


@partial(_register, data_fields=["stabiliser"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Flat(_Anywhere):
    """Every input of an output gets the same (Lapuschkin et al. 2019): for the first layer."""

    stabiliser: Number = 1e-6

    def __call__(self, site: Site) -> Back:
        part = Part((1,), (jnp.ones_like(site.kernel),))
        return shared_out(site, [part], self.stabiliser)


@partial(_register, data_fields=["stabiliser"], meta_fields=["bias"])
@dataclasses.dataclass(frozen=True)
class WSquare(_Anywhere):
    """Terms w^2, whatever the input (Montavon et al. 2017, section 4.1): for the first layer.

    The square of the bias counts.
    """

    stabiliser: Number = 1e-6
    bias: bool = True

    def __call__(self, site: Site) -> Back:
        bias = jnp.square(site.bias) if self.bias else None
        part = Part((1,), (jnp.square(site.kernel),), bias)
        return shared_out(site, [part], self.stabiliser)
