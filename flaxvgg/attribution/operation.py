"""What a convolution or a linear layer computes with any kernel, and the transpose of that."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.network.config import Layer
from flaxvgg.ops import convolution
from flaxvgg.ops.linear import conv_general_dilated, dot_general, transposed_product


class Sloped(NamedTuple):
    """Weights of which the positive ones are multiplied by `above` and the others by `below`.

    A convolution takes them as they are; elsewhere they are `written` out.
    """

    weights: Array
    above: Any
    below: Any

    @property
    def slopes(self) -> Float[Array, "2"]:
        """Both, in the dtype of the weights."""
        return jnp.stack([jnp.asarray(x, self.weights.dtype) for x in (self.above, self.below)])

    @property
    def written(self) -> Array:
        """The weights that these are."""
        return convolution.sloped(self.weights, self.slopes)


Kernel = Array | Sloped


def written(kernel: Kernel) -> Array:
    """The weights as one array."""
    return kernel.written if isinstance(kernel, Sloped) else kernel


class Operation(NamedTuple):
    """A layer with weights, as a function of its input and its kernel; without its bias.

    It goes the way that the layer itself goes: on a CPU by the compiled convolution.
    """

    layer: Layer
    module: Any

    def __call__(self, x: Float[Array, "n ..."], kernel: Kernel) -> Float[Array, "n ..."]:
        """The layer's output for the input `x`, were `kernel` its weights."""
        if self.layer.kind == "linear":
            contracted = (((x.ndim - 1,), (0,)), ((), ()))
            return dot_general(x, written(kernel), contracted, precision=self.module.precision)
        return self._convolved(x, kernel, _convolve)

    def _convolved(self, x: Array, kernel: Kernel, convolve: Callable[..., Array]) -> Array:
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
        self, x: Float[Array, "n ..."], kernel: Kernel, y: Array, *, direct: bool = False
    ) -> Array:
        """The inputs `x` times what the transpose makes of `y`."""
        if self.layer.kind == "conv":
            return x * self.transposed(y, kernel, x, direct=direct)
        precision = self.module.precision
        return x * transposed_product(y, written(kernel), factor=x, precision=precision)

    def transposed(
        self, y: Float[Array, "n ..."], kernel: Kernel, like: Array, *, direct: bool = False
    ) -> Array:
        """The transpose: from the shape of the output to that of the input, which `like` has.

        With `direct`, sums have nothing but their own terms in them. Winograd's have the rounding
        of their neighbours', which is too much where those are larger by orders of magnitude.
        """
        if self.layer.kind == "conv":
            convolve = _convolve_directly if direct else _convolve
            _, pull_back = jax.vjp(lambda x: self._convolved(x, kernel, convolve), like)
            return pull_back(y)[0]
        return transposed_product(y, written(kernel), precision=self.module.precision)


def _convolve(x: Array, kernel: Kernel, *args: Any, precision: Any, **kwargs: Any) -> Array:
    if isinstance(kernel, Sloped) and convolution.fits(x, kernel.weights):
        return convolution.conv3x3_sloped(x, kernel.weights, kernel.slopes, precision)
    return conv_general_dilated(x, written(kernel), *args, precision=precision, **kwargs)


def _convolve_directly(x: Array, kernel: Kernel, *args: Any, **kwargs: Any) -> Array:
    return lax.conv_general_dilated(x, written(kernel), *args, **kwargs)
