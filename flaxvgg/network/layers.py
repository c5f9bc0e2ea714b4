"""The arithmetic of one layer where Flax has none, or where PyTorch's differs from Flax's."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flaxvgg.network.config import POOLED_SIZE


def sum_dtype(dtype: DTypeLike) -> np.dtype:
    """What values of that dtype are summed in: at least float32, under strict promotion too."""
    return np.dtype(jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype)


def _windows(size: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    """Membership (out, size) of each adaptive window, and the number of rows in each (out,)."""
    start = [math.floor(i * size / out) for i in range(out)]
    stop = [math.ceil((i + 1) * size / out) for i in range(out)]
    position = np.arange(size)
    member = (position >= np.array(start)[:, None]) & (position < np.array(stop)[:, None])
    return member, member.sum(axis=1)


@partial(jax.jit, static_argnames="out")  # whose constants need not be sent to a device each time
def adaptive_avg_pool(
    x: Float[Array, "n h w c"], out: int = POOLED_SIZE
) -> Float[Array, "n o o c"]:
    """`torch.nn.AdaptiveAvgPool2d((out, out))`, exact at every size.

    Window i covers rows floor(i*h/out) to ceil((i+1)*h/out): windows overlap where h is no multiple
    of `out`, and repeat where h is smaller. Sums are at least float32.
    """
    h, w = x.shape[1:3]
    if h == w == out:
        return x
    (rows, row_counts), (columns, column_counts) = _windows(h, out), _windows(w, out)
    dtype = sum_dtype(x.dtype)
    sums = jnp.einsum(
        "ih,jw,nhwc->nijc",
        jnp.asarray(rows, dtype),
        jnp.asarray(columns, dtype),
        x.astype(dtype),
        precision="highest",
    )
    counts = (row_counts[:, None] * column_counts[None, :])[None, :, :, None]
    return (sums / jnp.asarray(counts, dtype)).astype(x.dtype)


def average_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """`torch.nn.AvgPool2d(2)`: the mean over 2x2 windows; an odd last row or column is dropped.

    Gatys et al. 2016 put it in the place of max pooling (arXiv:1508.06576). Sums are at least
    float32.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    y = x.astype(sum_dtype(x.dtype))
    rows = y[:, 0:h:2, :w] + y[:, 1:h:2, :w]
    return ((rows[:, :, 0:w:2] + rows[:, :, 1:w:2]) / 4).astype(x.dtype)


def l2_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n oh ow c"]:
    """The L2 pooling of DISTS (Ding et al. 2020, arXiv:2004.07728): sqrt(blur(x^2) + 1e-12).

    The blur is the outer product of (1/4, 1/2, 1/4) with itself, at stride 2 with one zero around
    the map, so that an odd size is rounded up. Sums are at least float32.
    """
    y = jnp.square(x.astype(sum_dtype(x.dtype)))
    for axis in (1, 2):
        last = 2 * ((x.shape[axis] + 1) // 2) - 1
        padded = jnp.pad(y, [(1, 1) if i == axis else (0, 0) for i in range(4)])
        before, middle, behind = (
            jax.lax.slice_in_dim(padded, i, i + last, 2, axis) for i in range(3)
        )
        y = (before + behind) / 4 + middle / 2
    return jnp.sqrt(y + 1e-12).astype(x.dtype)


def global_avg_pool(x: Float[Array, "n h w c"]) -> Float[Array, "n 1 1 c"]:
    """The mean over space, as `torch.nn.AdaptiveAvgPool2d(1)`; sums are at least float32."""
    return x.mean(axis=(1, 2), keepdims=True, dtype=sum_dtype(x.dtype)).astype(x.dtype)


def windows(x: Float[Array, "n h w c"], size: int) -> Float[Array, "n oh ow _"]:
    """Every `size` x `size` window of a map, flattened channels-last, at stride 1.

    Raises ValueError for a map smaller than that.
    """
    h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
    if min(h, w) < 1:
        raise ValueError(
            f"a {x.shape[1]}x{x.shape[2]} map has no {size}x{size} window: a fully-convolutional "
            "classifier takes images of at least 224x224"
        )
    return jnp.concatenate(
        [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=-1
    )


class BatchNorm(nnx.BatchNorm):
    """`nnx.BatchNorm` with the running statistics of `torch.nn.BatchNorm2d`.

    Three differences: `momentum` is the part that a batch has in the running statistics, the
    running variance is the unbiased one, and the number of batches seen is kept, so that a PyTorch
    state dict survives the way here and back unchanged.
    """

    def __init__(
        self,
        features: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            features,
            use_running_average=True,
            momentum=1 - momentum,
            epsilon=eps,
            dtype=dtype,
            param_dtype=param_dtype,
            use_fast_variance=False,  # E[x^2] - E[x]^2 cancels
            rngs=rngs,
        )
        # A float, exact up to 2^24: jax.grad takes no model with an integer in it.
        self.num_batches_tracked = nnx.BatchStat(jnp.zeros((), jnp.float32))

    def __call__(self, x, use_running_average=None, *, mask=None):
        training = not (
            self.use_running_average if use_running_average is None else use_running_average
        )
        before = self.var[...]
        y = super().__call__(x, use_running_average, mask=mask)
        if training:
            count = math.prod(x.shape[:-1])
            kept = self.momentum * before
            self.var[...] = kept + (self.var[...] - kept) * (count / max(count - 1, 1))
            self.num_batches_tracked[...] += 1
        return y
