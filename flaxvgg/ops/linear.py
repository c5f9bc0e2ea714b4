"""Convolutions and matrix products whose float32 sums stay closer to the truth than PyTorch's.

A float32 sum of K products is off by about sqrt(K) roundings when it runs in one chain. Summing
short chains first and their results after (pairwise summation, Higham 2002, section 4.2) keeps it
near the rounding of a single chain. On a CPU that is done here wherever it costs little:

- the 3x3 convolutions, of which a VGG mostly consists, are those of `convolution.py`;
- a linear layer of a few images is `native.linear`, which does not read the rows of the kernel that
  meet only zeros: behind a ReLU, most of fc6;
- with more images, at precision "highest", it is summed over blocks of 256 rows.

Everything else goes straight to XLA, on NVIDIA to cuDNN and cuBLAS.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flaxvgg.ops import convolution, native
from flaxvgg.ops.primitive import Operation, Precision, is_highest
from flaxvgg.ops.sharding import spread_by_xla

_ROWS = 256  # of a kernel, summed in one chain
_FEW_IMAGES = 4  # with more the kernel is read in vain less often, and XLA's product is as fast


def conv_general_dilated(
    lhs: Float[Array, "n h w c"],
    rhs: Float[Array, "k k c o"],
    window_strides: Any,
    padding: Any,
    *,
    precision: Precision = None,
    **kwargs: Any,
) -> Float[Array, "n oh ow o"]:
    """`jax.lax.conv_general_dilated` on NHWC maps without groups, as `nnx.Conv` calls it."""
    strides = (window_strides, kwargs.get("lhs_dilation"), kwargs.get("rhs_dilation"))
    is_plain = all(set(steps or (1,)) == {1} for steps in strides)
    if is_plain and tuple(map(tuple, padding)) == ((1, 1), (1, 1)) and convolution.fits(lhs, rhs):
        return convolution.conv3x3(lhs, rhs, precision)
    return lax.conv_general_dilated(
        lhs, rhs, window_strides, padding, precision=precision, **kwargs
    )


def dot_general(
    lhs: Float[Array, "*n k"],
    rhs: Float[Array, "k o"],
    dimension_numbers: Any,
    *,
    precision: Precision = None,
    **kwargs: Any,
) -> Float[Array, "*n o"]:
    """`jax.lax.dot_general` of (..., k) and (k, o), as `nnx.Linear` calls it."""
    if native.IS_AVAILABLE and lhs.dtype == rhs.dtype == jnp.float32:
        y = _linear(lhs.reshape(math.prod(lhs.shape[:-1]), lhs.shape[-1]), rhs, precision=precision)
        return y.reshape(*lhs.shape[:-1], rhs.shape[1])
    return lax.dot_general(lhs, rhs, dimension_numbers, precision=precision, **kwargs)


def _on_cpu(x: Array, kernel: Array, *, precision: Precision) -> Array:
    if x.shape[0] <= _FEW_IMAGES:
        return native.linear(x, kernel)
    if not is_highest(precision) or len(kernel) % _ROWS:
        return lax.dot(x, kernel, precision=precision)

    def block(i: int | Array) -> Array:
        return lax.dot(
            lax.dynamic_slice_in_dim(x, i * _ROWS, _ROWS, axis=1),
            lax.dynamic_slice_in_dim(kernel, i * _ROWS, _ROWS, axis=0),
            precision="highest",
        )

    return lax.fori_loop(1, len(kernel) // _ROWS, lambda i, total: total + block(i), block(0))


def _contract(a: Array, b: Array, axis: int, precision: Precision) -> Array:
    def product(a: Array, b: Array) -> Array:
        return lax.dot_general(a, b, (((axis,), (axis,)), ((), ())), precision=precision)

    return spread_by_xla(product, a, b, result=PartitionSpec() if axis == 0 else None)


_linear = Operation("linear", native.linear_shape, _on_cpu, lax.dot, folds=True)
ad.defbilinear(
    _linear.primitive,
    lambda dy, _, kernel, precision, **__: _contract(dy, kernel, 1, precision),
    lambda dy, x, _, precision, **__: _contract(x, dy, 0, precision),
)
