"""The compiled part: a 3x3 convolution for the processor, as an operation of XLA.

`conv3x3.c` has the arithmetic, `by_kernel.c` that of its derivative, `xla.c` the way to both; they
are compiled when the package is built (`hatch_build.py`). In a clone that was not installed the
library is missing, and XLA's own convolution is used.
"""

import ctypes
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

_PATH = Path(__file__).with_name("native.dll" if sys.platform == "win32" else "native.so")
IS_AVAILABLE = _PATH.exists()  # it was built
INSTRUCTIONS = ""  # what the processor has: "AVX-512", "AVX2" or "baseline"
_TARGET = "flaxvgg_conv3x3"
_BY_KERNEL = "flaxvgg_conv3x3_by_kernel"

if IS_AVAILABLE:
    _library = ctypes.CDLL(str(_PATH))
    _library.flaxvgg_instructions.restype = ctypes.c_char_p
    INSTRUCTIONS = _library.flaxvgg_instructions().decode()
    for _name in (_TARGET, _BY_KERNEL):
        jax.ffi.register_ffi_target(_name, jax.ffi.pycapsule(_library[_name]), platform="cpu")


def _shape(x: Array, outputs: int, pool: bool) -> jax.ShapeDtypeStruct:
    n, h, w, _ = x.shape
    size = (h // 2, w // 2) if pool else (h, w)
    return jax.ShapeDtypeStruct((n, *size, outputs), jnp.float32)


def conv3x3(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c o"]) -> Float[Array, "n h w o"]:
    """A convolution with padding 1 of float32 arrays, on a CPU.

    Of a batch that lies on several devices, each takes its own images.
    """
    return _of_shards((x, kernel), False, False)


def conv3x3_block(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "3 3 c o"],
    bias: Float[Array, " o"],
    relu: bool,
    pool: bool,
) -> Float[Array, "n oh ow o"]:
    """The same and a bias, then ReLU and 2x2 max pooling where they are wanted."""
    return _of_shards((x, kernel, bias), relu, pool)


def conv3x3_by_kernel(
    x: Float[Array, "n h w c"], dy: Float[Array, "n h w o"]
) -> Float[Array, "3 3 c o"]:
    """The derivative of `conv3x3` by its kernel, where `dy` is the one by its result.

    Of a batch that lies on several devices, each takes its own images; their sum is on all of them.
    """
    return _sum_of_shards(x, dy)


def _call(operands: tuple[Array, ...], relu: bool, pool: bool) -> Array:
    x, kernel, *_ = operands
    call = jax.ffi.ffi_call(_TARGET, _shape(x, kernel.shape[3], pool))
    return call(*operands, relu=relu, pool=pool)


_of_shards = custom_partitioning(_call, static_argnums=(1, 2))


def _partition(relu, pool, mesh, arguments, result):
    operands = arguments[0]
    spec = operands[0].sharding.spec
    images = NamedSharding(mesh, PartitionSpec(spec[0] if spec else None))
    whole = NamedSharding(mesh, PartitionSpec())
    of_one = functools.partial(_call, relu=relu, pool=pool)
    return mesh, of_one, images, ((images, *[whole] * (len(operands) - 1)),)


def _rule(relu, pool, mesh, operands, result):
    bias = ", o" if len(operands) == 3 else ""
    rule = f"n h w c, i j c o{bias} -> n p q o"
    return rule, {"need_replication_factors": tuple("hwcijopq")}


_of_shards.def_partition(_partition, sharding_rule=_rule)


def _call_by_kernel(x: Array, dy: Array) -> Array:
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[3], dy.shape[3]), jnp.float32)
    return jax.ffi.ffi_call(_BY_KERNEL, shape)(x, dy)


_sum_of_shards = custom_partitioning(_call_by_kernel)


def _partition_by_kernel(mesh, arguments, result):
    spec = arguments[0].sharding.spec
    axes = spec[0] if spec else None
    images, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in ((axes,), ()))

    def of_one(x: Array, dy: Array) -> Array:
        part = _call_by_kernel(x, dy)
        return jax.lax.psum(part, axes) if axes else part

    return mesh, of_one, whole, (images, images)


_sum_of_shards.def_partition(
    _partition_by_kernel,
    sharding_rule="n h w c, n p q o -> i j c o",
    need_replication_factors=tuple("hwcpqoij"),
)
