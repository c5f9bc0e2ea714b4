"""DeepLIFT with the rescale rule (Shrikumar et al. 2017, arXiv:1704.02685)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.attribution.baselines import baselines, given
from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.passes import bytes_of_backward
from flaxvgg.cam.network import Network, as_float32, as_scores
from flaxvgg.cam.targets import Targets
from flaxvgg.ops.pooling import max_pool_2x2

Convention = Literal["paper", "captum"]

_RECTIFIED = ("relu", "leaky_relu", "shifted_relu")
_LEAST = 1e-10  # captum's: below it a difference is none, and the gradient counts
# What a layer's multipliers make of those behind it, (N, ...) to (N, ...).
Rule = Callable[[Array], Array]


@partial(jax.tree_util.register_dataclass, data_fields=["baseline"], meta_fields=["convention"])
@dataclasses.dataclass(frozen=True)
class DeepLift:
    """Options of "deep_lift".

    The image is compared with the `baseline`: None is zeros, the mean colour of normalised images;
    an image (H, W, 3), one for each image (N, H, W, 3), or several, (B, 1, H, W, 3) or
    (B, N, H, W, 3), whose attributions are averaged.

    `convention` "paper" is complete. "captum" is what the package captum (0.9) computes of a VGG:
    its hooks miss its own rule for max pooling where a ReLU is right before it, so that only the
    gradient passes there, and the values do not add up.

    `details["convergence_delta"]` (N, K) is the sum of the values less what it is to be, the
    image's score less the (mean) baseline's.
    """

    baseline: Any = None
    convention: Convention = "paper"

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", given(self.baseline))
        if self.convention not in get_args(Convention):
            choices = ", ".join(get_args(Convention))
            raise ValueError(f"no convention {self.convention!r}: choose from {choices}")


def deep_lift(network: Network, images: Array, targets: Targets, options: DeepLift) -> Found:
    """The image less the baseline, times the multipliers.

    A ReLU's multiplier is the difference of its outputs over that of its inputs. Where the image's
    maximum in a window is the larger one, max pooling gives the place of that maximum its rise over
    the baseline's maximum; otherwise the place of the baseline's maximum gets the fall. These are
    the rules of the package captum: see `DeepLift` for where it misses one.
    """
    starts, ends = baselines(options.baseline, images), as_float32(images)
    if any(layer.kind == "l2_pool" for layer in network.config.layers):
        raise ValueError("'deep_lift' has no rule for L2 pooling")
    logits = network.scores(images)
    targets = targets.settled(logits)
    classes, scores = targets.scores(logits)

    def of_start(total: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], None]:
        start = jnp.broadcast_to(start, ends.shape)
        multipliers, before = _multipliers(network, images, start, targets, options)
        values = multipliers * (ends - start)[:, None]
        return (total[0] + values, total[1] + before), None

    nothing = jnp.broadcast_to(jnp.zeros_like(ends)[:, None], (*classes.shape, *ends.shape[1:]))
    (values, before), _ = lax.scan(of_start, (nothing, jnp.zeros_like(scores)), starts)
    values, before = values / starts.shape[0], before / starts.shape[0]
    delta = values.sum(axis=(2, 3, 4)) - (scores - before)
    return Found(values, classes, scores, {"convergence_delta": delta})


def _multipliers(
    network: Network, images: Array, start: Array, targets: Targets, options: DeepLift
) -> tuple[Float[Array, "n k h w 3"], Float[Array, "n k"]]:
    """The multipliers of the images' values, and the baseline's scores."""
    n = images.shape[0]
    names = network.config.layer_names
    layers = network.config.layers[: names.index(network.output) + 1]
    bent = [i for i, layer in enumerate(layers) if layer.kind in (*_RECTIFIED, "max_pool")]
    wanted = {layers[i].name for i in bent} | {layers[i - 1].name for i in bent}
    both = jnp.concatenate([images, start.astype(images.dtype)])
    outputs = network.run(both, wanted | {network.output})
    logits = as_scores(outputs[network.output])

    rules: list[Rule] = []
    before: str | None = None
    for i in bent:
        layer, inputs = layers[i], layers[i - 1].name
        if before != inputs:
            rules.append(
                _derivative(network, outputs[before][:n] if before else images, before, inputs)
            )
        x, x0, y, y0 = (
            half
            for name in (inputs, layer.name)
            for half in jnp.split(as_float32(outputs[name]), [n])
        )
        if layer.kind == "max_pool":
            rules.append(_max_pooling(x, x0, y, y0, options.convention))
        else:
            slopes = _derivative(network, outputs[inputs][:n], inputs, layer.name)(jnp.ones_like(y))
            rules.append(_rescale(x, x0, y, y0, slopes))
        before = layer.name
    rules.append(
        _derivative(network, outputs[before][:n] if before else images, before, network.output)
    )

    def of_one(cotangent: Float[Array, "n c"]) -> Array:
        for rule in reversed(rules):
            cotangent = rule(cotangent)
        return cotangent

    found = targets.map(logits[:n], of_one, bytes_of_backward(network, images))
    return found, targets.scores(logits[n:])[1]


def _derivative(network: Network, x: Array, after: str | None, name: str) -> Rule:
    """The derivative of the layers from the output `x` of `after` to the one of that name."""

    def run(x: Array) -> Array:
        found = network.run(x, [name], after)[name]
        return as_scores(found) if name == network.output else found

    y, pull_back = jax.vjp(run, x)
    return lambda c: as_float32(pull_back(c.astype(y.dtype))[0])


def _rescale(x: Array, x0: Array, y: Array, y0: Array, slopes: Array) -> Rule:
    """A ReLU's rule for inputs x and x0, of the images and the baseline, and outputs y and y0."""
    different, away = _differences(x, x0)
    multipliers = jnp.where(different, (y - y0) / away, slopes)
    return lambda c: c * multipliers


def _max_pooling(x: Array, x0: Array, y: Array, y0: Array, convention: str) -> Rule:
    """Max pooling's rule, for the same inputs and outputs."""
    different, away = _differences(x, x0)
    first, first0 = _first_of_window(x), _first_of_window(x0)
    if convention == "captum":
        return lambda c: _over_windows(c, x) * first
    larger = jnp.maximum(y, y0)
    moved = first * _over_windows(larger - y0, x) + first0 * _over_windows(y - larger, x)
    # Between 0 and 1, but for rounding where the differences are hardly any.
    multipliers = jnp.where(different, jnp.clip(moved / away, 0, 1), first)
    return lambda c: _over_windows(c, x) * multipliers


def _differences(x: Array, x0: Array) -> tuple[Array, Array]:
    """Where the two differ, and how much; 1 where they do not."""
    away = x - x0
    different = jnp.abs(away) >= _LEAST
    return different, jnp.where(different, away, 1)


def _first_of_window(x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """1 at the first largest value of each 2x2 window, 0 elsewhere."""
    y, pull_back = jax.vjp(max_pool_2x2, x)
    return pull_back(jnp.ones_like(y))[0]


def _over_windows(y: Float[Array, "n oh ow c"], x: Array) -> Float[Array, "n h w c"]:
    """Each window's value at its four places, and 0 where no window is."""
    return _at_size(y.repeat(2, axis=1).repeat(2, axis=2), x)


def _at_size(y: Array, x: Array) -> Array:
    return jnp.pad(y, [(0, 0), *((0, x.shape[i] - y.shape[i]) for i in (1, 2)), (0, 0)])


METHODS = {"deep_lift": Method(DeepLift, deep_lift)}
