"""Baselines: the images that stand for nothing to be seen, which methods compare images with."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.targets import Targets
from flaxvgg.network.inputs import as_array


def given(baseline: Any) -> Any:
    """What a user passes as a baseline, as an array; what is none is told when it is used.

    It leaves alone what JAX puts into a pytree of options.
    """
    is_foreign = isinstance(baseline, list | tuple) or hasattr(baseline, "__dlpack__")
    return as_array(baseline) if is_foreign else baseline


def baselines(baseline: Any, images: Float[Array, "n h w 3"]) -> Float[Array, "b m h w 3"]:
    """B baselines in float32, each one image (M = 1) or one for each of the images (M = N).

    None is zeros: the mean colour of the images that the weights were trained on. Otherwise an
    image (H, W, 3), one for each image (N, H, W, 3), or several (B, 1, H, W, 3) or (B, N, H, W, 3).
    Raises ValueError for other shapes.
    """
    if baseline is None:
        return as_float32(jnp.zeros_like(images[:1]))[None]
    shape = getattr(baseline, "shape", None)
    n, *size = images.shape
    fits = shape is not None and len(shape) in (3, 4, 5) and list(shape[-3:]) == size
    if shape is None or not fits or (len(shape) > 3 and shape[-4] not in (1, n)) or 0 in shape[:-3]:
        what = f"of shape {shape}" if shape is not None else f"of type {type(baseline).__name__}"
        raise ValueError(
            f"a baseline {what} for images {images.shape}: pass one image (H, W, 3), one for each "
            "image (N, H, W, 3), or several, (B, 1, H, W, 3) or (B, N, H, W, 3)"
        )
    array = as_float32(jnp.asarray(baseline))
    return array.reshape((1,) * (5 - array.ndim) + array.shape)


def one_baseline(baseline: Any, images: Float[Array, "n h w 3"]) -> Float[Array, "m h w 3"]:
    """The one baseline of a method that takes no more. Raises ValueError for several."""
    found = baselines(baseline, images)
    if found.shape[0] != 1:
        raise ValueError(f"this method takes one baseline, not {found.shape[0]}")
    return found[0]


def scores_of(
    network: Network, starts: Float[Array, "m h w 3"], images: Array, targets: Targets
) -> Float[Array, "n k"]:
    """The scores of one baseline, for each of the images."""
    logits = network.scores(starts.astype(images.dtype))
    return targets.scores(jnp.broadcast_to(logits, (images.shape[0], logits.shape[1])))[1]
