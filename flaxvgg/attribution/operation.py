"""What a convolution or a linear layer computes with any kernel, and the transpose of that."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.network.config import Layer
from flaxvgg.ops.linear import conv_general_dilated, dot_general


class Operation(NamedTuple):
    """A layer with weights, as a function of its input and its kernel; without its bias.

    It goes the way that the layer itself goes: on a CPU by the compiled convolution.
    """

    layer: Layer
    module: Any

    def __call__(self, x: Float[Array, "n ..."], kernel: Array) -> Float[Array, "n ..."]:
        """The layer's output for the input `x`, were `kernel` its weights."""
        precision = self.module.precision
        if self.layer.kind == "linear":
            contracted = (((x.ndim - 1,), (0,)), ((), ()))
            return dot_general(x, kernel, contracted, precision=precision)
        replicates = self.layer.padding == "replicate"
        if replicates:
            x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        beyond = self.layer.kernel // 2
        y = conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((beyond, beyond), (beyond, beyond)),
            precision=precision,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y[:, 1:-1, 1:-1] if replicates else y

    def transposed(self, y: Float[Array, "n ..."], kernel: Array, like: Array) -> Array:
        """The transpose: from what has the shape of the output to what has the shape of `like`."""
        if self.layer.kind == "conv":
            (x,) = jax.linear_transpose(lambda x: self(x, kernel), like)(y)
            return x
        # With the kernel on the left, for XLA's CPU backend: see `cam.derivatives`.
        rows = y.reshape(-1, y.shape[-1])
        contracted = (((1,), (1,)), ((), ()))
        product = lax.dot_general(kernel, rows, contracted, precision=self.module.precision)
        return lax.optimization_barrier(product).T.reshape(*y.shape[:-1], kernel.shape[0])
