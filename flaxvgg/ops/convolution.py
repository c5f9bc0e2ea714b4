"""A float32 3x3 convolution with padding 1: fast and exact on a CPU, XLA's own elsewhere.

On a CPU it is `native`: Winograd's F(2x2, 3x3) with sums in short chains, at every precision.
Elsewhere it is `jax.lax.conv_general_dilated`, which on NVIDIA goes to cuDNN. It is a primitive of
its own, so that its derivatives are of the same kind: by the input, the convolution of the
cotangent with the kernel turned round; by the kernel, a second primitive, whose derivatives are
convolutions again. So `jax.grad`, `jax.jvp`, `jax.vmap` and their compositions work as with XLA's.
"""

import warnings

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad
from jaxtyping import Array, Float

from flaxvgg.ops import native
from flaxvgg.ops.pooling import max_pool_2x2
from flaxvgg.ops.primitive import Operation, Precision


def fits(x: Array, kernel: Array) -> bool:
    """Whether `conv3x3` takes these arrays, and its compiled part was built."""
    if not (x.dtype == kernel.dtype == jnp.float32 and kernel.shape[:2] == (3, 3) and x.ndim == 4):
        return False
    if not native.IS_AVAILABLE and jax.default_backend() == "cpu":
        warnings.warn(
            "flaxvgg runs from a clone that was not installed: its compiled convolution is "
            "missing, and XLA's is slower and less exact on a CPU (pip install . makes it)",
            stacklevel=1,  # once, wherever it is called from
        )
    return native.IS_AVAILABLE


def conv3x3(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"], precision: Precision = None
) -> Float[Array, "n h w o"]:
    """The convolution; `precision` is XLA's, for where XLA computes it."""
    return _convolution(x, kernel, precision=precision)


def conv3x3_block(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c o"],
    bias: Float[Array, " o"],
    *,
    relu: bool,
    pool: bool,
    precision: Precision = None,
) -> Float[Array, "n oh ow o"]:
    """The convolution and what follows it, in one go: bias, then ReLU, then 2x2 max pooling."""
    return _block(x, kernel, bias, relu=relu, pool=pool, precision=precision)


def _xlas(x: Array, kernel: Array, *, precision: Precision) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    ones = ((1, 1), (1, 1))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ones, dimension_numbers=layout, precision=precision
    )


def _natively(x: Array, kernel: Array, *, precision: Precision) -> Array:
    return native.conv3x3(x, kernel)


def _turned(kernel: Array) -> Array:
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def _kernel_xlas(x: Array, dy: Array, *, precision: Precision) -> Array:
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), x.dtype)
    transpose = jax.linear_transpose(lambda kernel: _xlas(x, kernel, precision=precision), shape)
    return transpose(dy)[0]


def _kernel_natively(x: Array, dy: Array, *, precision: Precision) -> Array:
    return native.conv3x3_by_kernel(x, dy)


def _unfused(
    x: Array, kernel: Array, bias: Array, *, relu: bool, pool: bool, precision: Precision
) -> Array:
    y = conv3x3(x, kernel, precision) + bias.reshape(1, 1, 1, -1)
    y = jax.nn.relu(y) if relu else y
    return max_pool_2x2(y) if pool else y


def _natively_fused(x, kernel, bias, *, relu: bool, pool: bool, precision: Precision) -> Array:
    return native.conv3x3_block(x, kernel, bias, relu, pool)


_convolution = Operation("conv3x3", native.conv3x3_shape, _natively, _xlas, folds=True)
_by_kernel = Operation("conv3x3_by_kernel", native.by_kernel_shape, _kernel_natively, _kernel_xlas)
_block = Operation("conv3x3_block", native.conv3x3_shape, _natively_fused, _unfused, folds=True)


ad.defbilinear(
    _convolution.primitive,
    lambda dy, _, kernel, precision, **__: conv3x3(dy, _turned(kernel), precision),
    lambda dy, x, _, precision, **__: _by_kernel(x, dy, precision=precision),
)
# With a kernel k in the place of its result, the second one is linear in x and in dy alike:
# <k, K(x, dy)> = <conv(x, k), dy> = <x, conv(dy, k turned)>.
ad.defbilinear(
    _by_kernel.primitive,
    lambda k, _, dy, precision, **__: conv3x3(dy, _turned(k), precision),
    lambda k, x, _, precision, **__: conv3x3(x, k, precision),
)


def _block_jvp(primals, tangents, *, on_cpu, **settings):
    moving = [i for i, tangent in enumerate(tangents) if type(tangent) is not ad.Zero]

    def of_moving(*values: Array) -> Array:
        arrays = list(primals)
        for i, value in zip(moving, values, strict=True):
            arrays[i] = value
        return _unfused(*arrays, **settings)

    return jax.jvp(of_moving, [primals[i] for i in moving], [tangents[i] for i in moving])


ad.primitive_jvps[_block.primitive] = _block_jvp
