"""The compiled part: convolutions and linear layers for the processor, as operations of XLA.

`conv3x3.c`, its derivative `by_kernel.c`, and `linear.c` have the arithmetic, `xla.c` the way to
it; they are compiled when the package is built (`hatch_build.py`). In a clone that was not
installed the library is missing, and XLA's own operations are used.

All take and give float32 arrays, on a CPU. Of a batch that lies on several devices, each takes its
own images.
"""

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh
from jaxtyping import Array, Float

from flaxvgg.ops.sharding import NO_MESH, sum_over_devices

_PATH = Path(__file__).with_name("native.dll" if sys.platform == "win32" else "native.so")
_TARGETS = "flaxvgg_conv3x3", "flaxvgg_conv3x3_by_kernel", "flaxvgg_linear", "flaxvgg_pack"
IS_AVAILABLE = _PATH.exists()  # it was built
INSTRUCTIONS = ""  # what the processor has: "AVX-512", "AVX2" or "baseline"

if IS_AVAILABLE:
    _library = ctypes.CDLL(str(_PATH))
    _library.flaxvgg_instructions.restype = ctypes.c_char_p
    INSTRUCTIONS = _library.flaxvgg_instructions().decode()
    for _target in _TARGETS:
        jax.ffi.register_ffi_target(_target, jax.ffi.pycapsule(_library[_target]), platform="cpu")


def conv3x3(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"]) -> Float[Array, "n h w o"]:
    """A convolution with padding 1."""
    return _conv3x3((x, kernel), _setting())


def conv3x3_turned(
    y: Float[Array, "n h w o"], kernel: Float[Array, "3 3 c o"]
) -> Float[Array, "n h w c"]:
    """The transpose of a convolution by that kernel: the one by the kernel turned round."""
    return _conv3x3_turned((y, kernel), _setting(turned=True))


def conv3x3_sloped(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 _ _"],
    slopes: Float[Array, "2"],
    turned: bool,
) -> Float[Array, "n h w o"]:
    """Either, by a kernel whose positive values and whose others are multiplied by `slopes`."""
    compute = _conv3x3_sloped_turned if turned else _conv3x3_sloped
    return compute((x, kernel, slopes), _setting(turned=turned, sloped=True))


def conv3x3_block(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c o"],
    bias: Float[Array, " o"],
    relu: bool,
    pool: bool,
) -> Float[Array, "n oh ow o"]:
    """The same and a bias, then ReLU and 2x2 max pooling where they are wanted."""
    return _conv3x3((x, kernel, bias), _setting(pool, relu))


def packing(height: int, width: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """The shape of a packed kernel for maps of this size."""
    shape = (ctypes.c_int64 * 3)()
    _library.flaxvgg_packing(*map(ctypes.c_int64, (height, width, inputs, outputs)), shape)
    return shape[0], shape[1], shape[2]


def pack(
    kernel: Float[Array, "3 3 c o"], height: int, width: int
) -> Float[Array, "places panels chunk"]:
    """A kernel as the products of `conv3x3_block` take it, for maps of this size."""
    return _pack((kernel,), (("height", np.int64(height)), ("width", np.int64(width))))


def conv3x3_packed(
    x: Float[Array, "n h w c"],
    packed: Float[Array, "places panels chunk"],
    bias: Float[Array, " o"],
    relu: bool,
    pool: bool,
) -> Float[Array, "n oh ow o"]:
    """`conv3x3_block` to the bit, by a kernel that was packed for maps of this size."""
    return _packed((x, packed, bias), _setting(pool, relu))


def conv3x3_by_kernel(
    x: Float[Array, "n h w c"], dy: Float[Array, "n h w o"]
) -> Float[Array, "3 3 c o"]:
    """The derivative of `conv3x3` by its kernel, where `dy` is the one by its result."""
    return _by_kernel((x, dy), ())


def linear(x: Float[Array, "n k"], kernel: Float[Array, "k o"]) -> Float[Array, "n o"]:
    """`x @ kernel` for few rows of x; rows of the kernel that meet only zeros are not read."""
    return _linear((x, kernel), ())


Settings = tuple[tuple[str, bool | np.int64], ...]


def _setting(
    pool: bool = False, relu: bool = False, turned: bool = False, sloped: bool = False
) -> Settings:
    """What `flaxvgg_conv3x3` is told besides its arrays."""
    return ("pool", pool), ("relu", relu), ("sloped", sloped), ("turned", turned)


def _operation(target: str, rule: str, shape: Callable[..., tuple[int, ...]]) -> Callable:
    """`target` as a function of its operands and settings, which knows how to be spread.

    `rule` names the axes of operands and result, "n" the images; an operand may be left out at the
    end. What has no images is whole on every device; a result without them is summed over devices.
    """
    terms, result_term = rule.split(" -> ")
    terms = terms.split(", ")

    def call(operands: tuple[Array, ...], settings: Settings) -> Array:
        result = jax.ShapeDtypeStruct(shape(*operands, **dict(settings)), jnp.float32)
        return jax.ffi.ffi_call(target, result)(*operands, **dict(settings))

    def partition(settings: Settings, mesh, arguments, result):
        spec = arguments[0][0].sharding.spec
        axes = spec[0] if spec else None
        images, whole = (NamedSharding(mesh, PartitionSpec(*part)) for part in ((axes,), ()))

        def of_one(operands: tuple[Array, ...]) -> Array:
            with use_abstract_mesh(NO_MESH):
                y = call(operands, settings)
            return y if "n" in result_term or not axes else sum_over_devices(y, axes)

        *given, made = (images if "n" in term else whole for term in (*terms, result_term))
        return mesh, of_one, made, (tuple(given[: len(arguments[0])]),)

    def rule_of(settings: Settings, mesh, operands, result) -> tuple[str, dict[str, Any]]:
        axes = dict.fromkeys(axis for axis in rule if axis.isalpha() and axis != "n")
        given = ", ".join(terms[: len(operands)])
        return f"{given} -> {result_term}", {"need_replication_factors": tuple(axes)}

    spread = custom_partitioning(call, static_argnums=(1,))
    spread.def_partition(partition, sharding_rule=rule_of)
    return spread


def conv3x3_shape(x, kernel, bias=None, *, pool: bool = False, **_: Any) -> tuple[Any, ...]:
    """The shape of a convolution's result, for arrays or their types; ValueError if none fits.

    A size may be a symbol of `jax.export`.
    """
    biases = () if bias is None else (bias,)
    fits = x.ndim == kernel.ndim == 4 and kernel.shape[:3] == (3, 3, x.shape[3])
    if not fits or any(b.shape != kernel.shape[3:] for b in biases):
        _refuse("x (n, h, w, c), kernel (3, 3, c, o), bias (o)", x, kernel, *biases)
    n, h, w, _ = x.shape
    return (n, h // 2, w // 2, kernel.shape[3]) if pool else (n, h, w, kernel.shape[3])


def conv3x3_sloped_shape(x, kernel, slopes, *, turned: bool, **_: Any) -> tuple[Any, ...]:
    """The shape of either's by a sloped kernel, likewise."""
    if slopes.shape != (2,):
        _refuse("slopes (2)", slopes)
    return (conv3x3_turned_shape if turned else conv3x3_shape)(x, kernel)


def conv3x3_turned_shape(y, kernel, **_: Any) -> tuple[Any, ...]:
    """The shape of its transpose's, likewise."""
    if not y.ndim == kernel.ndim == 4 or kernel.shape != (3, 3, kernel.shape[2], y.shape[3]):
        _refuse("y (n, h, w, o), kernel (3, 3, c, o)", y, kernel)
    return *y.shape[:3], kernel.shape[2]


def _packed_shape(x, packed, bias, *, pool: bool, **_: Any) -> tuple[int, ...]:
    n, h, w, _ = x.shape
    return (n, h // 2, w // 2, *bias.shape) if pool else (n, h, w, *bias.shape)


def _pack_shape(kernel, *, height: np.int64, width: np.int64) -> tuple[int, ...]:
    return packing(int(height), int(width), *kernel.shape[2:])


def by_kernel_shape(x, dy, **_: Any) -> tuple[Any, ...]:
    """The shape of a kernel's derivative, likewise."""
    if not x.ndim == dy.ndim == 4 or x.shape[:3] != dy.shape[:3]:
        _refuse("x (n, h, w, c), dy (n, h, w, o)", x, dy)
    return 3, 3, x.shape[3], dy.shape[3]


def linear_shape(x, kernel, **_: Any) -> tuple[Any, ...]:
    """The shape of a product, likewise."""
    if not x.ndim == kernel.ndim == 2 or x.shape[1] != kernel.shape[0]:
        _refuse("x (n, k), kernel (k, o)", x, kernel)
    return x.shape[0], kernel.shape[1]


def _refuse(wanted: str, *given: Any) -> None:
    shapes = ", ".join(f"({', '.join(map(str, array.shape))})" for array in given)
    raise ValueError(f"shapes do not fit: {shapes}, where {wanted} is wanted")


_conv3x3 = _operation(_TARGETS[0], "n h w c, i j c o, o -> n p q o", conv3x3_shape)
_conv3x3_turned = _operation(_TARGETS[0], "n h w o, i j c o -> n p q c", conv3x3_turned_shape)
_conv3x3_sloped = _operation(_TARGETS[0], "n h w c, i j c o, s -> n p q o", conv3x3_sloped_shape)
_conv3x3_sloped_turned = _operation(
    _TARGETS[0], "n h w o, i j c o, s -> n p q c", conv3x3_sloped_shape
)
_by_kernel = _operation(_TARGETS[1], "n h w c, n p q o -> i j c o", by_kernel_shape)
_linear = _operation(_TARGETS[2], "n k, k o -> n o", linear_shape)
_packed = _operation(_TARGETS[0], "n h w c, k l m, o -> n p q o", _packed_shape)
_pack = _operation(_TARGETS[3], "i j c o -> k l m", _pack_shape)
