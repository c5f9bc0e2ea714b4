"""Models whose kernels are transformed once, and not at every call."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from flaxvgg.network.layers import sum_dtype
from flaxvgg.network.model import VGG, Convolution, Packed
from flaxvgg.ops import convolution, native


def prepare(model: VGG, size: tuple[SupportsIndex, SupportsIndex] = (224, 224)) -> VGG:
    """The same model with its 3x3 kernels transformed once, for images of `size` (H, W) pixels.

    On a CPU a convolution of float32 begins with a transform of its kernel (Winograd's), which for
    few images takes a good part of the time; and Grad-CAM begins with the sum of fc6's kernel over
    its places. The prepared model holds both beside the kernels: `prepared_bytes` says how much
    memory that takes (vgg16 for 224x224: 140 MB). Its outputs are the model's to the bit. It takes
    images of every size; where a map is of another size than it was prepared for, that layer
    transforms its kernel at every call, as before.

    It is a pytree for `jax.jit`, `jax.vmap`, `jax.shard_map`, `jax.export` and derivatives by
    images, like every model. It cannot be trained or saved: both raise an error that says so, and
    so do derivatives by its kernels. On a GPU, and for other dtypes, no convolution's kernel is
    transformed. Raises ValueError for a size under 32x32.

    >>> fast = flaxvgg.prepare(model, (64, 64))
    >>> bool((fast.features(images) == model.features(images)).all())
    True
    """
    height, width = (int(n.__index__()) for n in size)
    if min(height, width) < 32:
        raise ValueError(f"images are at least 32x32, not {height}x{width}")
    prepared = nnx.clone(model)
    prepared.prepared_for = (height, width)
    found = list(_convolutions(prepared, height, width))
    kernels = [module.kernel[...] for module, *_ in found]
    sizes = tuple((down, across) for _, down, across in found)
    for (module, *_), packed in zip(found, _packed(kernels, sizes), strict=True):
        module.packed = Packed(packed)
    for module, inputs in _readers_of_maps(prepared):
        module.summed = Packed(summed_over_places(module.kernel[...], inputs))
    return prepared


@partial(jax.jit, static_argnums=1)
def _packed(kernels: list[Array], sizes: tuple[tuple[int, int], ...]) -> list[Array]:
    """The kernels for maps of these sizes, from one program."""
    return [convolution.pack(kernel, *size) for kernel, size in zip(kernels, sizes, strict=True)]


@partial(jax.jit, static_argnums=1)
def summed_over_places(kernel: Float[Array, "rows units"], inputs: int) -> Float[Array, "c units"]:
    """A linear layer's kernel that reads a flattened map, summed over the places of the map.

    It is what the layer does with what is added to a whole channel.
    """
    by_place = kernel.reshape(-1, inputs, kernel.shape[-1])
    dtype = sum_dtype(kernel.dtype)

    def place(i: int | Array, total: Array) -> Array:
        return total + by_place[i].astype(dtype)

    # A loop, because XLA's CPU backend takes 48 times as long for the sum over this axis.
    return lax.fori_loop(1, len(by_place), place, by_place[0].astype(dtype))


def prepared_bytes(model: VGG, size: tuple[int, int] = (224, 224)) -> int:
    """How many bytes `prepare` adds to the model for images of this size.

    >>> flaxvgg.network.prepared.prepared_bytes(model) > 0
    True
    """
    shapes = (
        native.packing(height, width, *module.kernel.shape[2:])
        for module, height, width in _convolutions(model, *size)
    )
    summed = sum(4 * inputs * module.out_features for module, inputs in _readers_of_maps(model))
    return sum(4 * math.prod(shape) for shape in shapes) + summed


def _convolutions(model: VGG, height: int, width: int) -> Iterator[tuple[Convolution, int, int]]:
    """The convolutions that a CPU transforms, with the height and width of their maps."""
    for stack in (model.conv_stack, model.head):
        for layer in stack.layers:
            if layer.kind in ("max_pool", "average_pool"):
                height, width = height // 2, width // 2
            elif layer.kind == "l2_pool":
                height, width = (height + 1) // 2, (width + 1) // 2
            elif layer.kind in ("avg_pool", "global_avg_pool", "windows", "flatten"):
                return
            elif layer.kind == "conv":
                module = getattr(stack, layer.name)
                beyond = 2 if module.replicates else 0  # it is padded before
                if _is_transformed(module):
                    yield module, height + beyond, width + beyond


def _readers_of_maps(model: VGG) -> Iterator[tuple[Any, int]]:
    """The linear layers that read a map of several places, with its channels."""
    for layer in model.config.head:
        if layer.kind == "linear" and layer.kernel > 1:
            yield getattr(model.head, layer.name), layer.inputs


def _is_transformed(module: Convolution) -> bool:
    kernel: Array = module.kernel[...]
    on_cpu = jax.default_backend() == "cpu"
    if isinstance(kernel, jax.Array) and not isinstance(kernel, jax.core.Tracer):
        on_cpu = all(device.platform == "cpu" for device in kernel.devices())
    is_float32 = kernel.dtype == module.dtype == jnp.float32
    return on_cpu and native.IS_AVAILABLE and is_float32 and kernel.shape[:2] == (3, 3)
