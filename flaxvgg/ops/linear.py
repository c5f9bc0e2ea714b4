"""Convolutions and matrix products whose float32 sums stay closer to the truth than PyTorch's.

A float32 sum of K products is off by about sqrt(K) roundings when it runs in one chain. Summing
short chains first and their results after (pairwise summation, Higham 2002, section 4.2) keeps it
near the rounding of a single chain. On a CPU that is done here wherever it costs little:

- the 3x3 convolutions, of which a VGG mostly consists, are those of `convolution.py`;
- a linear layer of a few images is `native.linear`, which does not read the rows of the kernel that
  meet only zeros: behind a ReLU, most of fc6;
- with more images, at precision "highest", it is summed over blocks of 256 rows.

Its transpose, where inputs of zero need nothing, does not read those rows either.

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
from flaxvgg.ops.primitive import Operation, Precision, is_highest, jvp_of
from flaxvgg.ops.sharding import spread_by_xla

_ROWS = 256  # of a kernel, summed in one chain
_GATHERED = 64  # rows of a kernel, of which a processor's cache has a copy
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


def transposed_product(
    y: Float[Array, "*n o"],
    kernel: Float[Array, "k o"],
    *,
    factor: Float[Array, "*m k"] | None = None,
    precision: Precision = None,
) -> Float[Array, "*n k"]:
    """`y` times the transpose of the kernel.

    Where a few rows of a `factor` are all zero, so is the result, which is to be multiplied by
    them: a CPU does not read those rows of the kernel.
    """
    rows = y.reshape(math.prod(y.shape[:-1]), y.shape[-1])
    images = None if factor is None else math.prod(factor.shape[:-1])
    if factor is not None and isinstance(images, int) and images <= _FEW_IMAGES:
        needed = (factor != 0).any(axis=tuple(range(factor.ndim - 1)))
        product = _transposed(rows, kernel, needed, precision=precision)
    else:
        product = _all_transposed(rows, kernel, precision)
    return product.reshape(*y.shape[:-1], kernel.shape[0])


def _all_transposed(y: Array, kernel: Array, precision: Precision) -> Array:
    # With the kernel on the left, for XLA's CPU backend: see `cam.derivatives`.
    product = lax.dot_general(kernel, y, (((1,), (1,)), ((), ())), precision=precision)
    return lax.optimization_barrier(product).T


def _transposed_where(y: Array, kernel: Array, needed: Array, *, precision: Precision) -> Array:
    return jnp.where(needed, _all_transposed(y, kernel, precision), 0)


def _transposed_on_cpu(y: Array, kernel: Array, needed: Array, *, precision: Precision) -> Array:
    """The rows of the kernel that are needed come first, and are gathered a few at a time."""
    depth = len(kernel)
    order = jnp.argsort(~needed, stable=True)
    blocks = -(-depth // _GATHERED)
    order = jnp.pad(order, (0, blocks * _GATHERED - depth))

    def with_block(i: int | Array, found: Array) -> Array:
        chosen = lax.dynamic_slice_in_dim(order, i * _GATHERED, _GATHERED)
        rows = kernel.at[chosen].get(mode="promise_in_bounds")
        product = lax.dot_general(rows, y, (((1,), (1,)), ((), ())), precision=precision)
        return lax.dynamic_update_slice_in_dim(found, product, i * _GATHERED, axis=0)

    found = jnp.zeros((blocks * _GATHERED, len(y)), y.dtype)
    count = needed.sum()
    found = lax.fori_loop(0, -(-count // _GATHERED), with_block, found)
    places = jnp.cumsum(needed) - 1
    return jnp.where(needed[:, None], found.at[places].get(mode="clip"), 0).T


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

_transposed = Operation(
    "linear_transposed",
    lambda y, kernel, needed, **_: (y.shape[0], kernel.shape[0]),
    _transposed_on_cpu,
    _transposed_where,
    folds=True,
)
ad.primitive_jvps[_transposed.primitive] = jvp_of(_transposed_where)
