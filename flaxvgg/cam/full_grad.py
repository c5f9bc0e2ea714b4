"""FullGrad (Srinivas & Fleuret 2019, arXiv:1905.00780): input and bias gradients, layer by layer.

In a network of ReLUs a logit is the sum of input times gradient and of every bias times its
gradient; each term is a map, and the maps' sizes add up at the size of the image.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.cam.conventions import Convention, scale
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.images.resizing import resize


def bias_layers(network: Network) -> tuple[str, ...]:
    """The layers of maps that have a bias: convolutions and BatchNorms."""
    kinds = ("conv", "batch_norm")
    return tuple(layer.name for layer in network.config.layers if layer.kind in kinds)


def biases(network: Network, layer: str) -> Float[Array, "1 1 1 c"]:
    """What the layer adds to its channels: for BatchNorm, shift - mean * scale / deviation."""
    module = network.parameters(layer)
    bias = module.bias[...]
    if hasattr(module, "var"):
        deviation = jnp.sqrt(module.var[...] + module.epsilon)
        bias = bias - module.mean[...] * module.scale[...] / deviation
    return bias.reshape(1, 1, 1, -1)


def full_grad(
    network: Network,
    images: Float[Array, "n h w 3"],
    gradients: Mapping[str, Float[Array, "n _ _ _"]],
    convention: Convention,
) -> Float[Array, "n h w"]:
    """The sum of all terms' absolute values, each scaled to [0, 1] and resized to the image.

    `gradients` are those of the layers with a bias, and under "" that of the images.
    The authors scale a layer's terms together; the package grad-cam scales each channel.
    """
    axes = (-2, -1) if convention.full_grad_channels else (-3, -2, -1)
    eps = convention.scale_eps or 1e-6  # as in the authors' code: a layer may be all zero
    terms = [
        as_float32(biases(network, layer) if layer else images) * gradient
        for layer, gradient in gradients.items()
    ]
    total = jnp.zeros(images.shape[:3], jnp.float32)
    for term in terms:
        sizes = scale(jnp.moveaxis(jnp.abs(term), -1, 1), eps, axes)
        # Resizing is linear, so the channels are added up first: one map is enlarged, and not 512.
        summed = sizes.sum(axis=1, keepdims=True)
        enlarged = resize(summed, images.shape[1:3], align_corners=convention.full_grad_corners)
        total = total + enlarged[:, 0]
    return total
