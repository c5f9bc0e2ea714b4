"""Methods that need the derivative of a score by the image, as it is or under other images."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxvgg.attribution.method import Found, Method
from flaxvgg.cam.derivatives import derivative
from flaxvgg.cam.network import Network
from flaxvgg.cam.targets import Targets


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["signed"])
@dataclasses.dataclass(frozen=True)
class Gradient:
    """Options of "saliency": the gradient's magnitude, as published, or `signed`."""

    signed: bool = False


def saliency(network: Network, images: Array, targets: Targets, options: Gradient) -> Found:
    """The gradient of the score by the image (Simonyan et al. 2014, arXiv:1312.6034)."""
    found = derivative(network, images, ("",))
    classes, scores = targets.scores(found.scores)
    values = targets.map(found.scores, lambda c: found.gradients(c)[""], images.nbytes)
    return Found(values if options.signed else jnp.abs(values), classes, scores, {})


METHODS = {"saliency": Method(Gradient, saliency)}
