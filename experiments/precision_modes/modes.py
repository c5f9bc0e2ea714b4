"""One network in four kinds of arithmetic, and which of its zeros these flip."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.network.model import VGG
from flaxvgg.sparsity.counting import measure_sparsity
from flaxvgg.weights.mapping import build, model_arrays

MODES = {
    "highest": "float32, short sums",
    "xla": "float32, XLA's own sums",
    "tf32-like": "inputs of products rounded to 10 bits, sums in float32",
    "bfloat16": "weights and activations rounded to bfloat16 (7 bits)",
}


def in_mode(model: VGG, mode: str) -> VGG:
    """The same weights in one of the MODES, at precision "highest".

    TensorFloat-32 has float32's exponent and 10 bits of mantissa. "tf32-like" rounds both inputs of
    every convolution and matrix product to that, to nearest and ties to even, and adds up in
    float32; tensor cores add in an order of their own. Biases, ReLU and pooling stay float32.
    """
    dtype = jnp.bfloat16 if mode == "bfloat16" else jnp.float32
    found = build(model.config, model_arrays(model), dtype=dtype, provenance=model.provenance)
    for stack in (found.conv_stack, found.head):
        for layer in stack.layers:
            module = getattr(stack, layer.name, None)
            for product in ("conv_general_dilated", "dot_general"):
                if hasattr(module, product) and mode == "xla":
                    setattr(module, product, getattr(lax, product))
                elif hasattr(module, product) and mode == "tf32-like":
                    rounded = partial(_on_rounded, getattr(module, product))
                    setattr(module, product, rounded)
    return found


def to_tf32(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The nearest numbers with 10 bits of mantissa."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)


def _on_rounded(
    product: Callable[..., Array], lhs: Array, rhs: Array, *args: Any, **kwargs: Any
) -> Array:
    return product(to_tf32(lhs), to_tf32(rhs), *args, **kwargs)


@partial(jax.jit, static_argnames="layers")
def _zeros(model: VGG, images: Array, layers: tuple[str, ...]) -> dict[str, Array]:
    outputs = model.activations(images, layers)
    return {name: output == 0 for name, output in outputs.items()}


def compare(
    model: VGG, images: Float[np.ndarray, "n h w 3"], layers: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One row a layer: the fraction of zeros by mode, and the rates of flips.

    A flip is a value that is zero in the mode or at "highest", and not in the other; the rate of
    each image is (N,). Also the rate of those that are zero in the mode only.
    """
    reference = in_mode(model, "highest")
    layers = measure_sparsity(reference, images, layers).layers
    truth = {name: np.asarray(zero) for name, zero in _zeros(reference, images, layers).items()}
    rows = [{"layer": name, "zeros": {}, "flips": {}, "new_zeros": {}} for name in layers]
    for mode in MODES:
        found = in_mode(model, mode)
        report = measure_sparsity(found, images, layers)
        zeros = _zeros(found, images, layers)
        for row in rows:
            ours, theirs = np.asarray(zeros.pop(row["layer"])), truth[row["layer"]]
            axes = tuple(range(1, ours.ndim))
            row["zeros"][mode] = report.layer(row["layer"]).zero_fraction
            row["flips"][mode] = (ours != theirs).mean(axis=axes).tolist()
            row["new_zeros"][mode] = float((ours & ~theirs).mean())
    return rows
