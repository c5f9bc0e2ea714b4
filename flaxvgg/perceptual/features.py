"""Features of two images in one pass, and a derivative by one that leaves the other alone."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

from flaxvgg.network.config import Layer
from flaxvgg.network.layers import sum_dtype
from flaxvgg.network.model import LayerStack, run_layers

Features = dict[str, Float[Array, "n _ _ _"]]
_POOLINGS = ("max_pool", "average_pool", "l2_pool")


def of_pair(
    stack: LayerStack, a: Float[Array, "n h w 3"], b: Float[Array, "n h w 3"], taps: Sequence[str]
) -> tuple[Features, Features]:
    """The outputs of the layers `taps` for N images and N others, at least in float32.

    Both go through the network in one pass of 2N, pair by pair, so that a batch that is spread over
    devices stays where it is; equal images have equal features, to the bit, and whatever is
    differentiated. The derivative by the images is `_pushed`, which needs no second forward pass,
    and nothing of an image that does not move, as a loss's target: half the work.
    """
    leaves, structure = jax.tree.flatten(stack)
    layers = _up_to(stack.layers, taps)

    def run(
        leaves: list[Array], a: Array, b: Array, wanted: Collection[str]
    ) -> dict[str, tuple[Array, Array]]:
        n = a.shape[0]
        pairs = jnp.stack([a, b], axis=1).reshape(2 * n, *a.shape[1:])
        found = run_layers([jax.tree.unflatten(structure, leaves)], pairs, set(wanted))
        split = {name: x.reshape(n, 2, *x.shape[1:]) for name, x in found.items()}
        return {name: (x[:, 0], x[:, 1]) for name, x in split.items()}

    def outputs(leaves: list[Array], a: Array, b: Array) -> list[tuple[Array, Array]]:
        found = run(leaves, a, b, taps)
        return [found[tap] for tap in taps]

    both = jax.custom_jvp(outputs)

    @partial(both.defjvp, symbolic_zeros=True)
    def _derivative(primals, tangents):
        weights, *images = tangents
        if not all(map(is_zero, weights)) or any(not _is_plain(layer) for layer in layers):
            return jax.jvp(outputs, primals, jax.tree.map(_filled, tangents, is_leaf=is_zero))
        leaves, a, b = primals
        kept = {layer.name for layer in layers if layer.kind in ("relu", *_POOLINGS)}
        found = run(leaves, a, b, kept | set(taps))
        network = jax.tree.unflatten(structure, leaves)
        changes = []
        for i, (image, change) in enumerate(zip((a, b), images, strict=True)):
            if is_zero(change):
                changes.append({tap: zero_change(found[tap][i]) for tap in taps})
            else:
                of_one = {name: x[i] for name, x in found.items()}
                changes.append(_pushed(network, layers, image, of_one, change, taps))
        return [found[tap] for tap in taps], [tuple(x[tap] for x in changes) for tap in taps]

    found = both(leaves, a, b)
    first, second = (
        {tap: x[i].astype(sum_dtype(x[i].dtype)) for tap, x in zip(taps, found, strict=True)}
        for i in (0, 1)
    )
    return first, second


def with_layers(stack: LayerStack, layers: tuple[Layer, ...]) -> LayerStack:
    """The same parameters with other records of the layers between them."""
    leaves, structure = jax.tree.flatten(stack)
    changed = jax.tree.unflatten(structure, leaves)
    changed.layers = layers
    return changed


def _up_to(layers: tuple[Layer, ...], taps: Sequence[str]) -> tuple[Layer, ...]:
    """The layers, the last of the taps included."""
    names = [layer.name for layer in layers]
    return layers[: max(map(names.index, taps)) + 1]


def _is_plain(layer: Layer) -> bool:
    """Whether `_pushed` knows the layer's derivative; BatchNorm's, in training, is another."""
    return layer.kind in ("conv", "relu", *_POOLINGS)


def _pushed(
    network: LayerStack,
    layers: tuple[Layer, ...],
    image: Array,
    outputs: dict[str, Array],
    change: Array,
    taps: Sequence[str],
) -> Features:
    """What a change of the images changes at each tap, by the outputs of ReLUs and poolings.

    Of a convolution with its bias and its ReLU the output says enough: where it is positive. So the
    forward pass may be the one without derivatives, in which the three are one operation.
    """
    found = {}
    x = image  # or what stands for the input of a layer, of which only the shape matters
    for layer in layers:
        if layer.kind == "relu":
            x = outputs[layer.name]
            change = jnp.where(x > 0, change, 0)
        elif layer.kind == "conv":
            _, change = jax.jvp(getattr(network, layer.name), (x,), (change,))
            x = change
        else:
            _, change = jax.jvp(partial(network._apply, layer, rngs=None), (x,), (change,))
            x = outputs[layer.name]
        if layer.name in taps:
            found[layer.name] = change
    return found


def is_zero(tangent: object) -> bool:
    """Whether JAX knows that a tangent is zero: that what it belongs to is not differentiated."""
    return isinstance(tangent, SymbolicZero)


def zero_change(x: Array) -> Any:
    """The tangent of what is not differentiated."""
    return SymbolicZero(jax.typeof(x).to_tangent_aval())


def _filled(tangent: Array | SymbolicZero) -> Array:
    return jnp.zeros(tangent.shape, tangent.dtype) if isinstance(tangent, SymbolicZero) else tangent
