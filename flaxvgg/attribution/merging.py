"""Networks whose BatchNorms have become part of the convolutions before them."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from flaxvgg.cam.network import Network, as_float32
from flaxvgg.network.config import Layer
from flaxvgg.network.model import LayerStack


def without_batch_norm(network: Network) -> Network:
    """The same function, in evaluation mode, as convolutions alone.

    A BatchNorm multiplies a channel and adds to it, as the convolution before it can do itself;
    relevance is then shared among what the two compute together, and not twice. The stacks given
    stay as they are.
    """
    first, second = (_merged(stack) for stack in network.stacks)
    return Network((first, second), network.config)


def merged_into(layers: tuple[Layer, ...]) -> dict[str, str]:
    """The name of every BatchNorm among the layers, with that of its convolution."""
    pairs = itertools.pairwise(layers)
    return {norm.name: conv.name for conv, norm in pairs if norm.kind == "batch_norm"}


def _merged(stack: LayerStack) -> LayerStack:
    norms = merged_into(stack.layers)
    if not norms:
        return stack
    leaves, structure = jax.tree.flatten(stack)
    changed = jax.tree.unflatten(structure, leaves)
    for name, of in norms.items():
        norm, conv = getattr(changed, name), getattr(changed, of)
        scale = _float32(norm.scale) / jnp.sqrt(_float32(norm.var) + norm.epsilon)
        bias = (_float32(conv.bias) - _float32(norm.mean)) * scale + _float32(norm.bias)
        kernel = _float32(conv.kernel) * scale.reshape(1, 1, 1, -1)
        conv.kernel[...] = kernel.astype(conv.kernel[...].dtype)
        conv.bias[...] = bias.astype(conv.bias[...].dtype)
        conv.packed = None  # it was the other kernel's
    changed.layers = tuple(layer for layer in stack.layers if layer.name not in norms)
    return changed


def _float32(variable: Any) -> jax.Array:
    return as_float32(variable[...])
