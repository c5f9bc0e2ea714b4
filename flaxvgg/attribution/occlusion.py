"""Occlusion: how far a score falls where a window of the image is hidden."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from flaxvgg.attribution.baselines import given, one_baseline
from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.passes import check_counts, forward_at_once, in_all_colours, in_chunks
from flaxvgg.cam.network import Network, as_float32
from flaxvgg.cam.targets import Targets


@partial(
    jax.tree_util.register_dataclass, data_fields=["baseline"], meta_fields=["window", "stride"]
)
@dataclasses.dataclass(frozen=True)
class Occlusion:
    """Options of "occlusion".

    A `window` (height, width) in pixels moves by `stride`, down and across; one number stands for
    two equal ones. What it hides shows the `baseline` instead: None is zeros, the mean colour of
    normalised images; an image (H, W, 3), or one for each image (N, H, W, 3). A window that goes
    beyond the image is cut off there.
    """

    window: int | tuple[int, int] = (32, 32)
    stride: int | tuple[int, int] = (16, 16)
    baseline: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", given(self.baseline))
        for name in ("window", "stride"):
            value = getattr(self, name)
            pair = tuple(value) if isinstance(value, list | tuple) else (value, value)
            if len(pair) != 2:
                raise ValueError(f"{name} must be a height and a width, not {value!r}")
            check_counts(**{f"{name}'s height": pair[0], f"{name}'s width": pair[1]})
            object.__setattr__(self, name, tuple(map(int, pair)))


def occlusion(network: Network, images: Array, targets: Targets, options: Occlusion) -> Found:
    """The mean of how far the score falls, over the windows that hide a pixel.

    Zeiler & Fergus 2014 (arXiv:1311.2901), as captum computes it: window i begins at i times the
    stride, and the last one reaches the edge. The colours share the values alike.
    """
    size = images.shape[1:3]
    starts, covering = windows(size, options.window, options.stride)
    hidden = one_baseline(options.baseline, images).astype(images.dtype)
    logits = network.scores(images)
    targets = targets.settled(logits)
    classes, scores = targets.scores(logits)

    def of_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        number, counts = chunk
        mask = masks(jnp.asarray(starts)[number], size, options.window)
        variants = jnp.where(mask[:, None, :, :, None], hidden[None], images[None])
        falls = scores[None] - scores_of_variants(network, variants, targets)
        falls = falls * counts[:, None, None]
        return total + spread(falls, mask.astype(falls.dtype)), None

    numbers, counts = in_chunks(len(starts), forward_at_once(images.shape[0]))
    chunks = jnp.asarray(numbers), jnp.asarray(counts, scores.dtype)
    total, _ = lax.scan(of_chunk, no_maps(images, scores), chunks)
    maps = total / jnp.asarray(covering, total.dtype)[None, None]
    return Found(in_all_colours(maps), classes, scores, {})


def windows(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the windows begin (count, 2), and how many of them hide each pixel (H, W).

    Raises ValueError for windows that do not fit the image, or that leave pixels out.
    """
    begins, covers = [], []
    for name, length, long, step in zip(("high", "wide"), size, window, stride, strict=True):
        if long > length:
            raise ValueError(f"a window {long} pixels {name} is larger than the image, {length}")
        if step > long and long < length:
            raise ValueError(
                f"with a stride of {step}, windows {long} pixels {name} leave pixels out: the "
                "stride is at most the window"
            )
        begin = np.arange(-(-(length - long) // step) + 1) * step
        pixel = np.arange(length)
        begins.append(begin)
        covers.append(((pixel >= begin[:, None]) & (pixel < begin[:, None] + long)).sum(axis=0))
    grid = np.stack(np.meshgrid(*begins, indexing="ij"), axis=-1).reshape(-1, 2)
    return grid.astype(np.int32), np.outer(*covers)


def masks(
    begins: Int[Array, "s 2"], size: tuple[int, int], window: tuple[int, int]
) -> Bool[Array, "s h w"]:
    """Which pixels the windows that begin there hide."""
    rows, columns = (
        (jnp.arange(length, dtype=jnp.int32)[None] >= begin)
        & (jnp.arange(length, dtype=jnp.int32)[None] < begin + long)
        for length, long, begin in zip(size, window, (begins[:, :1], begins[:, 1:]), strict=True)
    )
    return rows[:, :, None] & columns[:, None]


def scores_of_variants(
    network: Network, variants: Float[Array, "s n h w 3"], targets: Targets
) -> Float[Array, "s n k"]:
    """The targets' scores of S variants of the images, from one pass."""
    s, n, *size = variants.shape
    logits = network.scores(variants.reshape(s * n, *size))
    return jax.vmap(lambda x: targets.scores(x)[1])(logits.reshape(s, n, logits.shape[-1]))


def spread(scores: Float[Array, "s n k"], masks: Float[Array, "s h w"]) -> Float[Array, "n k h w"]:
    """Each variant's score at the pixels of its mask, added up."""
    return jnp.einsum("snk,shw->nkhw", scores, masks, precision="highest")


def no_maps(images: Float[Array, "n h w 3"], scores: Float[Array, "n k"]) -> Array:
    """Zeros (N, K, H, W) that differ over the devices over which the images do."""
    zeros = as_float32(jnp.zeros_like(images[..., 0]))
    return jnp.broadcast_to(zeros[:, None], (*scores.shape, *images.shape[1:3]))


METHODS = {"occlusion": Method(Occlusion, occlusion)}
