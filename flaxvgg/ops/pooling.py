"""2x2 max pooling, with PyTorch's gradient where values tie.

`network.model` calls it (`LayerStack._apply`, `Convolution`); after a convolution and ReLU a CPU
pools in C instead, within `ops.convolution.conv3x3_block`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def _first_maximum(a: Array, b: Array) -> Array:
    return jnp.maximum(a, b)


@_first_maximum.defjvp
def _first_maximum_jvp(primals, tangents):
    # Where two values tie, PyTorch sends the whole gradient to the first; JAX would halve it.
    # After a ReLU ties at zero are the rule, and Grad-CAM++ squares the gradients.
    (a, b), (da, db) = primals, tangents
    return jnp.maximum(a, b), jnp.where(a >= b, da, db)


def max_pool_2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 c"]:
    """Maximum over 2x2 windows with stride 2; an odd last row or column is dropped, as in PyTorch.

    Written with strided slices because on a CPU `lax.reduce_window` costs up to a third of the
    whole forward pass.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    top = _first_maximum(x[:, 0:h:2, 0:w:2], x[:, 0:h:2, 1:w:2])
    bottom = _first_maximum(x[:, 1:h:2, 0:w:2], x[:, 1:h:2, 1:w:2])
    return _first_maximum(top, bottom)
