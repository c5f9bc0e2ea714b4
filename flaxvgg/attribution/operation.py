"""What a convolution or a linear layer computes with any kernel, and the transpose of that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.network.config import Layer
from flaxvgg.ops.linear import conv_general_dilated, dot_general, transposed_product


class Operation(NamedTuple):
    """A layer with weights, as a function of its input and its kernel; without its bias.

    It goes the way that the layer itself goes: on a CPU by the compiled convolution.
    """

    layer: Layer
    module: Any

    def __call__(self, x: Float[Array, "n ..."], kernel: Array) -> Float[Array, "n ..."]:
        """The layer's output for the input `x`, were `kernel` its weights."""
        if self.layer.kind == "linear":
            contracted = (((x.ndim - 1,), (0,)), ((), ()))
            return dot_general(x, kernel, contracted, precision=self.module.precision)
        return self._convolved(x, kernel, conv_general_dilated)

    def _convolved(self, x: Array, kernel: Array, convolve: Callable[..., Array]) -> Array:
        replicates = self.layer.padding == "replicate"
        if replicates:
            x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
        beyond = self.layer.kernel // 2
        y = convolve(
            x,
            kernel,
            (1, 1),
            ((beyond, beyond), (beyond, beyond)),
            precision=self.module.precision,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y[:, 1:-1, 1:-1] if replicates else y

    def terms(
        self, x: Float[Array, "n ..."], kernel: Array, y: Array, *, direct: bool = False
    ) -> Array:
        """The inputs `x` times what the transpose makes of `y`."""
        if self.layer.kind == "conv":
            return x * self.transposed(y, kernel, x, direct=direct)
        return x * transposed_product(y, kernel, factor=x, precision=self.module.precision)

    def transposed(
        self, y: Float[Array, "n ..."], kernel: Array, like: Array, *, direct: bool = False
    ) -> Array:
        """The transpose: from the shape of the output to that of the input, which `like` has.

        With `direct`, sums have nothing but their own terms in them. Winograd's have the rounding
        of their neighbours', which is too much where those are larger by orders of magnitude.
        """
        if self.layer.kind == "conv":
            convolve = lax.conv_general_dilated if direct else conv_general_dilated
            _, pull_back = jax.vjp(lambda x: self._convolved(x, kernel, convolve), like)
            return pull_back(y)[0]
        return transposed_product(y, kernel, precision=self.module.precision)
