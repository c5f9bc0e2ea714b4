"""Convolutions and matrix products whose float32 sums stay closer to the truth than PyTorch's.

A float32 sum of K products is off by about sqrt(K) roundings when it runs in one chain. Summing
short chains first and their results after (pairwise summation, Higham 2002, section 4.2) keeps it
near the rounding of a single chain. On a CPU, XLA's chains are a few hundred products long and
PyTorch's 144 (16 channels of a 3x3 window); here they are 72 (8 channels), gathered twice. Measured
on AVX-512 at 64 to 512 channels: relative error 1.2e-7 to 1.3e-7, PyTorch 1.6e-7 to 1.8e-7, XLA's
direct convolution 2.7e-7 to 2.8e-7. The price is time: on two cores the whole stack of vgg16 takes
2.2 times as long as with XLA's convolution, which is as fast as PyTorch's and is what precision
"default" gives. Chains of 32 channels take 1.65 times as long and err 1.56 times as much as
PyTorch's; of 16, they take as long as of 8.

Only float32 at precision "highest" is blocked, and only on a CPU; everything else goes straight to
XLA, on NVIDIA to cuDNN and cuBLAS. The 3x3 convolutions, of which a VGG mostly consists, are those
of `convolution.py`, at every precision.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from flaxvgg import convolution


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of two arrays, with its settings.

    Products of equal settings are equal, and what was compiled for one serves the other: a model
    that is called without `jax.jit` is compiled at its first call, and not at every one.
    """

    function: Callable[..., Array]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, x: Array, kernel: Array) -> Array:
        return self.function(x, kernel, **dict(self.settings))


_CHANNELS = 8  # input channels summed in one chain
_GROUP = 64  # channels whose chains are summed before they join the rest
_ROWS = 256  # rows of a matrix product summed in one chain


def is_blocked(precision: Any, *arrays: Array) -> bool:
    """Whether products of these arrays at this precision are the blocked ones."""
    return convolution.is_highest(precision) and all(a.dtype == jnp.float32 for a in arrays)


def conv_general_dilated(
    lhs: Float[Array, "n h w c"],
    rhs: Float[Array, "k k c o"],
    window_strides: Any,
    padding: Any,
    *,
    precision: Any = None,
    **kwargs: Any,
) -> Float[Array, "n oh ow o"]:
    """`jax.lax.conv_general_dilated` on NHWC maps without groups, as `nnx.Conv` calls it."""
    if not isinstance(padding, str):
        padding = tuple(map(tuple, padding))
    settings = {"window_strides": window_strides, "padding": padding, "precision": precision}
    call = Product(lax.conv_general_dilated, tuple((settings | kwargs).items()))
    ones = ("window_strides", "lhs_dilation", "rhs_dilation")
    plain = all(set(dict(call.settings).get(name) or (1,)) == {1} for name in ones)
    if plain and padding == ((1, 1), (1, 1)) and convolution.fits(lhs, rhs):
        return convolution.conv3x3(lhs, rhs, precision)
    if not is_blocked(precision, lhs, rhs) or lhs.shape[-1] % _CHANNELS:
        return call(lhs, rhs)
    return _compiled(lhs, rhs, call, _in_blocks)


_Blocked = Callable[[Product, Array, Array], Array]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _product(x: Array, kernel: Array, call: Product, blocked: _Blocked) -> Array:
    return lax.platform_dependent(x, kernel, cpu=partial(blocked, call), default=call)


@_product.defjvp
def _product_jvp(call, blocked, primals, tangents):
    # XLA's own derivative: a loop would keep its every step for the backward pass.
    _, tangent = jax.jvp(call, primals, tangents)
    return _product(*primals, call, blocked), tangent


_compiled = jax.jit(_product, static_argnums=(2, 3))


def _in_blocks(call: Product, x: Array, kernel: Array) -> Array:
    def convolve(x: Array, kernel: Array) -> Array:
        return _summed(call, x, kernel, _CHANNELS)

    return _summed(convolve, x, kernel, _GROUP)


def _summed(call: Callable[[Array, Array], Array], x: Array, kernel: Array, size: int) -> Array:
    """The sum of `call` over blocks of `size` input channels."""
    channels = x.shape[-1]
    if channels % size or channels == size:
        return call(x, kernel)

    def block(i: int | Array) -> Array:
        return call(
            lax.dynamic_slice_in_dim(x, i * size, size, axis=-1),
            lax.dynamic_slice_in_dim(kernel, i * size, size, axis=-2),
        )

    return lax.fori_loop(1, channels // size, lambda i, total: total + block(i), block(0))


def dot_general(
    lhs: Float[Array, "*n k"], rhs: Float[Array, "k o"], dimension_numbers: Any, **kwargs: Any
) -> Float[Array, "*n o"]:
    """`jax.lax.dot_general` of (..., k) and (k, o), as `nnx.Linear` calls it."""
    settings = {"dimension_numbers": dimension_numbers} | kwargs
    call = Product(lax.dot_general, tuple(settings.items()))
    if not is_blocked(kwargs.get("precision"), lhs, rhs) or lhs.shape[-1] % _ROWS:
        return call(lhs, rhs)
    return _compiled(lhs, rhs, call, _dot_in_blocks)


def _dot_in_blocks(call: Product, x: Array, kernel: Array) -> Array:
    *lead, rows = x.shape
    x, blocks = x.reshape(math.prod(lead), rows), rows // _ROWS
    if len(x) == 1:  # all blocks at once, which reads the weights fastest
        partial_sums = lax.dot_general(
            x.reshape(1, blocks, _ROWS),
            kernel.reshape(blocks, _ROWS, -1),
            (((2,), (1,)), ((1,), (0,))),
            precision="highest",
        )
        return partial_sums.sum(axis=0).reshape(*lead, kernel.shape[1])

    def block(i: int | Array) -> Array:
        return lax.dot(
            lax.dynamic_slice_in_dim(x, i * _ROWS, _ROWS, axis=1),
            lax.dynamic_slice_in_dim(kernel, i * _ROWS, _ROWS, axis=0),
            precision="highest",
        )

    total = lax.fori_loop(1, blocks, lambda i, total: total + block(i), block(0))
    return total.reshape(*lead, kernel.shape[1])
