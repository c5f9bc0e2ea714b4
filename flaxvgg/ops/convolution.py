"""A float32 3x3 convolution with padding 1: fast and exact on a CPU, XLA's own elsewhere.

On a CPU it is `native`: Winograd's minimal filtering with sums in short chains, at every precision.
Elsewhere it is `jax.lax.conv_general_dilated`, which on NVIDIA goes to cuDNN. It is a primitive of
its own, and so are its derivatives by the input, the convolution of the cotangent with the kernel
turned round, and by the kernel; each has the others as derivatives. So `jax.grad`, `jax.jvp`,
`jax.vmap` and their compositions work as with XLA's.
"""

import warnings

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad
from jaxtyping import Array, Float

from flaxvgg.ops import native
from flaxvgg.ops.pooling import max_pool_2x2
from flaxvgg.ops.primitive import Operation, Precision, jvp_of


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


def conv3x3_sloped(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c o"],
    slopes: Float[Array, "2"],
    precision: Precision = None,
) -> Float[Array, "n h w o"]:
    """The convolution by `sloped(kernel, slopes)`, which a CPU does not write down."""
    return _sloped(x, kernel, slopes, turned=False, precision=precision)


def sloped(kernel: Float[Array, "..."], slopes: Float[Array, "2"]) -> Float[Array, "..."]:
    """Weights of which the positive ones are multiplied by the first, others by the second."""
    return kernel * jnp.where(kernel > 0, slopes[0], slopes[1])


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


def pack(kernel: Float[Array, "3 3 c o"], height: int, width: int) -> Float[Array, "..."]:
    """A kernel as a CPU multiplies by it on maps of this size, for `packed_block`."""
    return _pack(kernel, height=height, width=width)


def is_packed_for(x: Array, kernel: Array, packed: Array) -> bool:
    """Whether a kernel was packed for maps of the size of `x`, whose sizes may be symbols."""
    _, height, width, inputs = x.shape
    is_known = isinstance(height, int) and isinstance(width, int)
    return is_known and packed.shape == native.packing(height, width, inputs, kernel.shape[3])


def packed_block(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c o"],
    packed: Float[Array, "places panels chunk"],
    bias: Float[Array, " o"],
    *,
    relu: bool,
    pool: bool,
    precision: Precision = None,
) -> Float[Array, "n oh ow o"]:
    """`conv3x3_block` to the bit, by a kernel that `pack` has packed for maps of this size.

    Elsewhere than on a CPU it goes by the kernel itself. It has no derivatives by the kernel:
    ValueError is raised where one is asked for.
    """
    return _packed_block(x, kernel, packed, bias, relu=relu, pool=pool, precision=precision)


def _xlas(x: Array, kernel: Array, *, precision: Precision) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    ones = ((1, 1), (1, 1))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), ones, dimension_numbers=layout, precision=precision
    )


def _natively(x: Array, kernel: Array, *, precision: Precision) -> Array:
    return native.conv3x3(x, kernel)


def _turned_natively(y: Array, kernel: Array, *, precision: Precision) -> Array:
    return native.conv3x3_turned(y, kernel)


def _turned_xlas(y: Array, kernel: Array, *, precision: Precision) -> Array:
    return _xlas(y, jnp.swapaxes(kernel[::-1, ::-1], 2, 3), precision=precision)


def _kernel_xlas(x: Array, dy: Array, *, precision: Precision) -> Array:
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), x.dtype)
    transpose = jax.linear_transpose(lambda kernel: _xlas(x, kernel, precision=precision), shape)
    return transpose(dy)[0]


def _kernel_natively(x: Array, dy: Array, *, precision: Precision) -> Array:
    return native.conv3x3_by_kernel(x, dy)


def _sloped_natively(x, kernel, slopes, *, turned: bool, precision: Precision) -> Array:
    return native.conv3x3_sloped(x, kernel, slopes, turned)


def _sloped_xlas(x, kernel, slopes, *, turned: bool, precision: Precision) -> Array:
    return (_turned_xlas if turned else _xlas)(x, sloped(kernel, slopes), precision=precision)


def _sloped_plainly(x, kernel, slopes, *, turned: bool, precision: Precision) -> Array:
    return (_transpose if turned else _convolution)(x, sloped(kernel, slopes), precision=precision)


def _unfused(
    x: Array, kernel: Array, bias: Array, *, relu: bool, pool: bool, precision: Precision
) -> Array:
    return _finish(conv3x3(x, kernel, precision), bias, relu=relu, pool=pool)


def _finish(y: Array, bias: Array, *, relu: bool, pool: bool) -> Array:
    y = y + bias.reshape(1, 1, 1, -1)
    y = jax.nn.relu(y) if relu else y
    return max_pool_2x2(y) if pool else y


def _pack_natively(kernel: Array, *, height: int, width: int) -> Array:
    return native.pack(kernel, height, width)


def _not_packed(kernel: Array, *, height: int, width: int) -> Array:
    """What nothing elsewhere looks at."""
    return jnp.zeros(_pack_shape(kernel, height=height, width=width), kernel.dtype)


def _pack_shape(kernel, *, height: int, width: int, **_) -> tuple[int, int, int]:
    return native.packing(height, width, *kernel.shape[2:])


def _packed_natively(x, kernel, packed, *, precision: Precision) -> Array:
    return native.conv3x3_packed(x, packed, jnp.zeros(kernel.shape[3:]), False, False)


def _packed_xlas(x, kernel, packed, *, precision: Precision) -> Array:
    return _xlas(x, kernel, precision=precision)


def _packed_natively_fused(x, kernel, packed, bias, *, relu, pool, precision) -> Array:
    return native.conv3x3_packed(x, packed, bias, relu, pool)


def _packed_unfused(x, kernel, packed, bias, *, relu, pool, precision) -> Array:
    y = _packed_convolution(x, kernel, packed, precision=precision)
    return _finish(y, bias, relu=relu, pool=pool)


def _packed_shape(x, kernel, packed, bias=None, **settings):
    return native.conv3x3_shape(x, kernel, bias, **settings)


def _natively_fused(x, kernel, bias, *, relu: bool, pool: bool, precision: Precision) -> Array:
    return native.conv3x3_block(x, kernel, bias, relu, pool)


_convolution = Operation("conv3x3", native.conv3x3_shape, _natively, _xlas, folds=True)
_transpose = Operation(
    "conv3x3_turned", native.conv3x3_turned_shape, _turned_natively, _turned_xlas, folds=True
)
_sloped = Operation(
    "conv3x3_sloped", native.conv3x3_sloped_shape, _sloped_natively, _sloped_xlas, folds=True
)
_by_kernel = Operation("conv3x3_by_kernel", native.by_kernel_shape, _kernel_natively, _kernel_xlas)
_block = Operation("conv3x3_block", native.conv3x3_shape, _natively_fused, _unfused, folds=True)
_pack = Operation("conv3x3_pack", _pack_shape, _pack_natively, _not_packed)
_packed_convolution = Operation(
    "conv3x3_packed", _packed_shape, _packed_natively, _packed_xlas, folds=True
)
_packed_block = Operation(
    "conv3x3_packed_block", _packed_shape, _packed_natively_fused, _packed_unfused, folds=True
)


# All three are parts of one number, linear in an input x, a kernel k and an output y:
# <conv(x, k), y> = <x, conv(y, k turned)> = <k, K(x, y)>.
ad.defbilinear(
    _convolution.primitive,
    lambda y, _, k, precision, **__: _transpose(y, k, precision=precision),
    lambda y, x, _, precision, **__: _by_kernel(x, y, precision=precision),
)
ad.defbilinear(
    _transpose.primitive,
    lambda x, _, k, precision, **__: conv3x3(x, k, precision),
    lambda x, y, _, precision, **__: _by_kernel(x, y, precision=precision),
)
ad.defbilinear(
    _by_kernel.primitive,
    lambda k, _, y, precision, **__: _transpose(y, k, precision=precision),
    lambda k, x, _, precision, **__: conv3x3(x, k, precision),
)


def _sloped_jvp(primals, tangents, **settings):
    """By the input it is linear, and the same; by the kernel it goes as what it stands for."""
    (x, *rest), (dx, *others) = primals, tangents
    if any(type(tangent) is not ad.Zero for tangent in others):
        return jvp_of(_sloped_plainly)(primals, tangents, **settings)
    settings.pop("on_cpu")
    return tuple(_sloped(a, *rest, **settings) for a in (x, dx))


def _sloped_transpose(dy, x, kernel, slopes, *, on_cpu, turned: bool, precision: Precision):
    return _sloped(dy, kernel, slopes, turned=not turned, precision=precision), None, None


ad.primitive_jvps[_sloped.primitive] = _sloped_jvp
ad.primitive_transposes[_sloped.primitive] = _sloped_transpose
ad.primitive_jvps[_block.primitive] = jvp_of(_unfused)
ad.primitive_jvps[_packed_block.primitive] = jvp_of(_packed_unfused)


def _packed_jvp(primals, tangents, *, on_cpu, **settings):
    (x, *kernels), (dx, *others) = primals, tangents
    if any(type(tangent) is not ad.Zero for tangent in others):
        raise ValueError(
            "a prepared model has no derivatives with respect to its kernels: train the model that "
            "flaxvgg.prepare was given, and prepare it again"
        )
    return tuple(_packed_convolution(a, *kernels, **settings) for a in (x, dx))


def _packed_transpose(dy, x, kernel, packed, *, on_cpu, precision):
    return _transpose(dy, kernel, precision=precision), None, None


ad.primitive_jvps[_packed_convolution.primitive] = _packed_jvp
ad.primitive_transposes[_packed_convolution.primitive] = _packed_transpose
