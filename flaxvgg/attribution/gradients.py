"""The gradient of a score by the image: as it is, and times the image."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.passes import bytes_of_backward
from flaxvgg.cam.derivatives import derivative
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.targets import Targets


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["signed"])
@dataclasses.dataclass(frozen=True)
class Gradient:
    """Options of "saliency": the gradient's magnitude, as published, or `signed`."""

    signed: bool = False


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class InputXGradient:
    """ "input_x_gradient" has no options."""


def saliency(network: Network, images: Array, targets: Targets, options: Gradient) -> Found:
    """The gradient of the score by the image (Simonyan et al. 2014, arXiv:1312.6034)."""
    values, classes, scores = _gradients(network, images, targets)
    return Found(values if options.signed else jnp.abs(values), classes, scores, {})


def input_x_gradient(
    network: Network, images: Array, targets: Targets, options: InputXGradient
) -> Found:
    """The image times the gradient (Shrikumar et al. 2016, arXiv:1605.01713).

    In a network of ReLUs and pooling without biases the values add up to the score.
    """
    values, classes, scores = _gradients(network, images, targets)
    return Found(values * as_float32(images)[:, None], classes, scores, {})


def _gradients(
    network: Network, images: Array, targets: Targets
) -> tuple[Float[Array, "n k h w 3"], Int[Array, "n k"], Float[Array, "n k"]]:
    found = derivative(network, images, ("",))
    held = bytes_of_backward(network, images)
    values = targets.map(found.scores, lambda c: found.gradients(c)[""], held)
    return values, *targets.scores(found.scores)


METHODS = {
    "saliency": Method(Gradient, saliency),
    "input_x_gradient": Method(InputXGradient, input_x_gradient),
}
