"""Many variants of each image, a few in one pass: memory does not grow with their number."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.derivatives import derivative
from flaxvgg.cam.network import Network
from flaxvgg.cam.targets import Targets

_FORWARD = 32  # images in one pass
_BACKWARD = 8  # images in one pass there and back, which keeps all activations
_KEPT = ("conv", "relu", "max_pool")  # layers of large maps


def forward_at_once(images: Any) -> int:
    """How many variants of each image run at once; 1 where the images' number is a symbol."""
    return max(1, _FORWARD // images) if isinstance(images, int) else 1


def backward_at_once(images: Any) -> int:
    """The same for passes there and back."""
    return max(1, _BACKWARD // images) if isinstance(images, int) else 1


def in_chunks(count: int, at_once: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of `count` variants as (chunks, size) of equal size, and which of them count.

    The last chunk is filled up with what counts 0; each has one that counts.
    """
    chunks = -(-count // at_once)
    numbers = np.arange(chunks * -(-count // chunks)).reshape(chunks, -1)
    return np.minimum(numbers, count - 1).astype(np.int32), (numbers < count).astype(np.float32)


def gradients_of_variants(
    network: Network,
    variants: Float[Array, "s n h w 3"],
    targets: Targets,
    combine: Callable[[Float[Array, "s n h w 3"]], Any],
) -> Any:
    """`combine`, of the gradients of a target's score by the variants, for each target.

    One pass there, and one back for each target. `combine` gives a pytree of arrays (N, ...); here
    they are (N, K, ...).
    """
    s, n, *size = variants.shape
    flat = variants.reshape(s * n, *size)
    found = derivative(network, flat, ("",))
    logits = found.scores.reshape(s, n, found.scores.shape[-1])

    def of_one(cotangent: Float[Array, "s n c"]) -> Any:
        gradients = found.gradients(cotangent.reshape(s * n, cotangent.shape[-1]))[""]
        return combine(gradients.reshape(variants.shape))

    return targets.map(logits, of_one, bytes_of_backward(network, flat))


def weighted_sum(
    weights: Float[Array, " s"], values: Float[Array, "s n h w 3"]
) -> Float[Array, "n h w 3"]:
    """The sum over variants, each with its weight.

    As a product of two axes: XLA's CPU backend crashes on the sum over one of seven axes, which two
    `jax.vmap` make of it.
    """
    s, *shape = values.shape
    flat = values.reshape(s, math.prod(shape))
    return jnp.dot(weights, flat, precision="highest").reshape(shape)


def bytes_of_backward(network: Network, images: Float[Array, "n h w 3"]) -> Any:
    """What a backward pass holds at once for a cotangent: two of the largest maps; or a symbol."""
    names = [layer.name for layer in network.config.conv_stack if layer.kind in _KEPT]
    maps = jax.eval_shape(lambda x: network.run(x, names), images).values()
    sizes = [x.size * x.dtype.itemsize for x in maps]
    return 2 * max(sizes) if all(isinstance(size, int) for size in sizes) else sizes[0]


def in_all_colours(maps: Float[Array, "n k h w"]) -> Float[Array, "n k h w 3"]:
    """Values of maps that know no colours: each colour has a third, so that they add up to it."""
    return jnp.broadcast_to(maps[..., None] / 3, (*maps.shape, 3))


def check_counts(**counts: Any) -> None:
    """Raise ValueError unless these options are whole numbers of at least 1."""
    for name, count in counts.items():
        if not isinstance(count, int | np.integer) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {count!r}")


def check_key(key: Any) -> Array:
    """The key. Raises ValueError for none."""
    dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", ())
    is_typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ()
    is_raw = dtype is not None and dtype == jnp.uint32 and len(shape) == 1
    if not is_typed and not is_raw:
        raise ValueError("a random method needs one key: pass key=jax.random.key(0)")
    return key
