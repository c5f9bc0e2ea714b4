"""2x2 max pooling, with PyTorch's gradient where values tie.

`network.model` calls it (`LayerStack._apply`, `Convolution`); after a convolution and ReLU a CPU
pools in C instead, within `ops.convolution.conv3x3_block`.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float


@jax.custom_jvp
def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped, as in PyTorch.

    Written with strided slices because on a CPU `lax.reduce_window` costs up to a third of the
    whole forward pass.

    Where values tie, PyTorch sends the whole gradient to the first of them; JAX would share it out.
    After a ReLU ties at zero are the rule, and Grad-CAM++ squares the gradients.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top = jnp.maximum(x[:, 0:h:2, 0:w:2], x[:, 0:h:2, 1:w:2])
    bottom = jnp.maximum(x[:, 1:h:2, 0:w:2], x[:, 1:h:2, 1:w:2])
    return jnp.maximum(top, bottom)


@max_pool_2x2.defjvp
def _max_pool_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return max_pool_2x2(x), _selected(dx, _largest_of_windows(x))


def _selected(
    x: Float[Array, "n h w c"], chosen: Bool[Array, "n h//2 2 w//2 2 c"]
) -> Float[Array, "n h//2 w//2 c"]:
    """Of each window the value that is chosen."""
    return jnp.where(chosen, _windows_of(x), 0).sum(axis=(2, 4))


def _windows_of(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 2 w//2 2 c"]:
    """The windows, without an odd last row or column."""
    n, height, width, channels = x.shape
    h, w = height // 2, width // 2
    return x[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2, channels)


def _largest_of_windows(x: Float[Array, "n h w c"]) -> Bool[Array, "n h//2 2 w//2 2 c"]:
    """Of each window the first of the largest values, where pixels that are alike have the same.

    It is found by a number for each window: a CPU reads that many times faster than it scatters
    gradients over four strided arrays.
    """
    windows = _windows_of(lax.stop_gradient(x))
    a, b, c, d = _alike([windows[:, :, i, :, j] for i in (0, 1) for j in (0, 1)])
    largest = jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))
    place = jnp.where(a >= largest, 0, jnp.where(b >= largest, 1, jnp.where(c >= largest, 2, 3)))
    return place[:, :, None, :, None] == jnp.arange(4).reshape(1, 1, 2, 1, 2, 1)


def _alike(pixels: list[Float[Array, "n h w c"]]) -> list[Float[Array, "n h w c"]]:
    """Four pixels of each window, where one that is alike an earlier one has that one's values.

    Where a photo is of one colour, so is a map. PyTorch computes its pixels by the same sums, and
    they tie; a filter that computes several at once leaves them apart by rounding, and the largest
    would be any of them. In photos they are apart by at most 5 eps of the largest value, and pixels
    that differ by 480 at least in one of the channels; so 32 are taken for rounding.
    """
    pairs = [(i, j) for i in range(4) for j in range(i)]
    sizes = [jnp.abs(pixels[i] - pixels[j]) for i, j in pairs]
    sizes.append(reduce(jnp.maximum, map(jnp.abs, pixels)))
    none = np.zeros((), pixels[0].dtype)
    *apart, largest = lax.reduce(  # all at once: a CPU would read the map for each of them
        sizes, [none] * len(sizes), lambda *of: [*map(jnp.maximum, *of)], (3,)
    )
    rounding = 32 * float(min(jnp.finfo(t).eps for t in (np.float32, none.dtype))) * largest
    found = pixels[:1]
    for i in range(1, 4):
        pixel = pixels[i]
        for j in reversed(range(i)):
            is_alike = apart[pairs.index((i, j))] <= rounding
            pixel = jnp.where(is_alike[..., None], found[j], pixel)
        found.append(pixel)
    return found
