"""ROAD: what the score loses with pixels whose place is taken by what their neighbours suggest."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu

from flaxvgg.cam.network import Network
from flaxvgg.evaluation.inputs import (
    ACTIVATIONS,
    Activation,
    Inputs,
    check_finite,
    check_key,
    values_of_changed,
)
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, AnyArray

# The part that each neighbour (down, right) has in a pixel.
_WEIGHTS = {
    (down, right): 1 / 12 if down and right else 1 / 6
    for down in (-1, 0, 1)
    for right in (-1, 0, 1)
    if down or right
}


@dataclasses.dataclass(frozen=True)
class Road:
    """What the class's score of N images changes by, at each of P percentiles.

    `morf` (N, P) with the most relevant pixels removed first, where a fall is good; `lerf` (N, P)
    with the least relevant first, where a fall is bad.

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> found = flaxvgg.road(
    ...     model, images, heat, jnp.array([0, 0]), key=jax.random.key(0), percentiles=[50, 90]
    ... )
    >>> found.morf.shape, found.lerf.shape, found.combined.shape
    ((2, 2), (2, 2), (2,))
    """

    percentiles: tuple[float, ...]
    morf: Float[np.ndarray, "n p"]
    lerf: Float[np.ndarray, "n p"]

    @property
    def combined(self) -> Float[np.ndarray, " n"]:
        """Half of what LeRF keeps more than MoRF, on average (N,); high is good."""
        return (self.lerf - self.morf).mean(axis=1) / 2


def road(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    heatmaps: Float[AnyArray, "n h w"],
    classes: Int[AnyArray, " n"],
    *,
    key: Key[Array, ""],
    percentiles: Sequence[int | float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
    noise: int | float = 0.01,
    activation: Activation = "softmax",
) -> Road:
    """Remove and debias: the score without the most, and without the least, relevant pixels.

    Of the images (N, H, W, 3), the pixels below a percentile of the heat map (N, H, W) stay, and
    those from it on give way to noisy linear imputation: each is the mean of its eight neighbours,
    direct ones counting twice, those that were removed as well being unknowns of one system of
    equations; and Gaussian noise with a standard deviation of `noise` is added. That is MoRF; LeRF
    removes as many of the least relevant. Returns a `Road` of score after minus score before.
    `activation` makes the score: "softmax", "sigmoid" or "linear".

    Rong et al. 2022 (arXiv:2202.00449); percentiles, imputation and `combined` as in grad-cam's
    `pytorch_grad_cam.metrics.road`. Equal values of a map, such as zeros, are ranked at random, as
    in the authors' code, so that exactly as many pixels go as asked for: grad-cam removes all of
    them, which may be the whole image. The ties and the noise of image i are drawn from
    `fold_in(key, i)`.

    Runs N (2 P + 1) images through the network and solves 2 N P sparse systems on the host. Raises
    ValueError where `flaxvgg.deletion` does, for percentiles outside (0, 100) or none, negative
    noise, and what is no key.

    >>> heat = flaxvgg.explain(model, images, classes=0).heatmaps((64, 64))[:, 0]
    >>> flaxvgg.road(
    ...     model, images, heat, jnp.array([0, 0]), key=jax.random.key(0), percentiles=[50]
    ... ).combined.shape
    (2,)
    """
    inputs = Inputs(model, images, heatmaps, classes, activation, activations=ACTIVATIONS)
    check_key(key)
    if not len(percentiles) or not all(0 < p < 100 for p in percentiles):
        raise ValueError(f"percentiles must be between 0 and 100, at least one, not {percentiles}")
    if not noise >= 0:
        raise ValueError(f"noise must be a standard deviation from 0, not {noise}")
    rows = []
    for i, heatmap in enumerate(np.asarray(inputs.maps)):
        of_ties, of_noise = jax.random.split(jax.random.fold_in(key, i))
        ties = np.asarray(jax.random.uniform(of_ties, heatmap.shape, jnp.float32))
        masks = removed_pixels(heatmap, ties, percentiles)
        drawn = np.asarray(jax.random.normal(of_noise, (*masks.shape, 3), jnp.float32))
        image = np.asarray(inputs.images[i])
        changed = [image, *(np.where(m[..., None], _imputed(image, m), image) for m in masks)]
        changed[1:] = [
            x + np.float32(noise) * np.where(m[..., None], z, 0)
            for x, m, z in zip(changed[1:], masks, drawn, strict=True)
        ]
        batch = np.stack(changed).astype(image.dtype)
        same = inputs.classes[i].repeat(len(batch))
        rows.append(_scores(*inputs.network, batch, same))
    found = np.asarray(check_finite(jax.numpy.stack(rows), "the score"), np.float64)
    morf, lerf = np.split(found[:, 1:] - found[:, :1], 2, axis=1)
    return Road(tuple(float(p) for p in percentiles), morf, lerf)


def removed_pixels(
    heatmap: Float[np.ndarray, "h w"],
    ties: Float[np.ndarray, "h w"],
    percentiles: Sequence[int | float],
) -> Bool[np.ndarray, "masks h w"]:
    """The pixels that go at each percentile: the hottest, and behind these the coldest."""
    size = heatmap.size
    coldest_first = np.lexsort((ties.ravel(), heatmap.ravel()))
    ranks = np.empty(size, int)
    ranks[coldest_first] = np.arange(size)
    # Below a percentile, which lies between two values of the map, are so many; never none.
    kept = [int(np.ceil(round(p * (size - 1) / 100, 6))) for p in percentiles]
    masks = [ranks >= k for k in kept] + [ranks < size - k for k in kept]
    return np.stack(masks).reshape(-1, *heatmap.shape)


def _imputed(
    image: Float[np.ndarray, "h w c"], removed: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w c"]:
    """The image with each removed pixel the weighted mean of its neighbours inside the image.

    At least one pixel must be left. Solved in float64, directly.
    """
    height, width = removed.shape
    rows, columns = np.nonzero(removed)
    number = np.full(removed.shape, -1)  # of the unknown; pixels that stay have none
    number[rows, columns] = np.arange(len(rows))
    total = np.zeros(len(rows))
    right = np.zeros((len(rows), image.shape[-1]))
    equations, unknowns, values = [], [], []
    for (down, across), weight in _WEIGHTS.items():
        y, x = rows + down, columns + across
        own = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        y, x = y[own], x[own]
        total[own] += weight
        neighbour = number[y, x]
        known = neighbour < 0
        right[own[known]] += weight * image[y[known], x[known]]
        equations.append(own[~known])
        unknowns.append(neighbour[~known])
        values.append(np.full((~known).sum(), -weight))
    diagonal = np.arange(len(rows))
    places = np.concatenate([*equations, diagonal]), np.concatenate([*unknowns, diagonal])
    matrix = coo_matrix((np.concatenate([*values, total]), places)).tocsc()
    # Symmetric and positive definite: no pivoting, and an order that fills in less.
    order = {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 0.0}
    solved = splu(matrix, options={"SymmetricMode": True}, **order).solve(right)
    found = image.astype(np.float64)
    found[rows, columns] = solved
    return found


@partial(jax.jit, static_argnums=(1, 2))
def _scores(
    stacks: Any,
    config: VGGConfig,
    activation: str,
    images: Float[Array, "n h w 3"],
    classes: Int[Array, " n"],
) -> Float[Array, " n"]:
    network = Network(stacks, config)
    return values_of_changed(network, activation, lambda i: (i, images[i]), classes, len(images))
