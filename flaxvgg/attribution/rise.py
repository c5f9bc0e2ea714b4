"""RISE: where an image may not be masked at random (Petsiuk et al. 2018, arXiv:1806.07421)."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from flaxvgg.attribution.method import Found, Method
from flaxvgg.attribution.occlusion import no_maps, scores_of_variants, spread
from flaxvgg.attribution.passes import (
    check_counts,
    check_key,
    forward_at_once,
    in_all_colours,
    in_chunks,
)
from flaxvgg.cam.network import Network
from flaxvgg.cam.targets import Targets


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["key"],
    meta_fields=["samples", "grid", "p"],
)
@dataclasses.dataclass(frozen=True)
class Rise:
    """Options of "rise".

    `key` is a key of `jax.random`; each of `samples` masks is a grid of `grid` x `grid` cells, open
    with probability `p`, enlarged and shifted by less than a cell. All images of a batch are shown
    through the same masks. 4000 samples are those published for VGG16. The score is the class's
    softmax probability, as published; a function as `classes` is given logits, and its scores are
    taken as they are.
    """

    key: Any = None
    samples: int = 4000
    grid: int = 7
    p: float | int = 0.5

    def __post_init__(self) -> None:
        check_counts(samples=self.samples, grid=self.grid)
        if not 0 < self.p <= 1:
            raise ValueError(f"p must be a probability above 0, not {self.p}")


def rise(network: Network, images: Array, targets: Targets, options: Rise) -> Found:
    """The mean of the masks, each times the masked image's score, divided by `p`.

    What is masked is zero: the mean colour of normalised images. The colours share the values
    alike.
    """
    key, size = check_key(options.key), images.shape[1:3]
    if options.grid > min(size):
        raise ValueError(f"a grid of {options.grid} cells is finer than the image, {size}")
    if targets.function is None:
        network = _WithSoftmax(*network)
    outputs = network.scores(images)
    targets = targets.settled(outputs)
    classes, scores = targets.scores(outputs)

    def of_chunk(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        numbers, counts = chunk
        mask = masks(key, numbers, size, options.grid, options.p)
        variants = images[None] * mask[:, None, :, :, None].astype(images.dtype)
        found = scores_of_variants(network, variants, targets) * counts[:, None, None]
        return total + spread(found, mask.astype(found.dtype)), None

    numbers, counts = in_chunks(options.samples, forward_at_once(images.shape[0]))
    chunks = jnp.asarray(numbers), jnp.asarray(counts, scores.dtype)
    total, _ = lax.scan(of_chunk, no_maps(images, scores), chunks)
    maps = total / (options.samples * options.p)
    return Found(in_all_colours(maps), classes, scores, {})


class _WithSoftmax(Network):
    """A network whose scores are probabilities."""

    def scores(self, x: Array, after: str | None = None) -> Float[Array, "n classes"]:
        """The softmax of the logits."""
        return jax.nn.softmax(super().scores(x, after), axis=-1)


def masks(
    key: Array, numbers: Int[Array, " s"], size: tuple[int, int], grid: int, p: float
) -> Float[Array, "s h w"]:
    """The masks of these numbers, in [0, 1], for images of that size.

    A cell is the size over the grid, rounded up; the grid is enlarged to one cell more than covers
    the image, which is cut out of it at random. As in the authors' code the interpolation is
    linear, and mirrored beyond the middle of the outermost cells.
    """
    cells = [-(-length // grid) for length in size]
    enlarge = [jnp.asarray(enlargement(grid, (grid + 1) * cell), jnp.float32) for cell in cells]

    def mask(number: Array) -> Array:
        for_cells, for_shift = jax.random.split(jax.random.fold_in(key, number))
        # In float32 with 64 bits too, lest the masks be others there.
        is_open = jax.random.bernoulli(for_cells, jnp.asarray(p, jnp.float32), (grid, grid))
        shift = jax.random.randint(for_shift, (2,), 0, jnp.asarray(cells, jnp.int32), jnp.int32)
        rows, columns = (
            lax.dynamic_slice_in_dim(matrix, shift[i], size[i]) for i, matrix in enumerate(enlarge)
        )
        cells_open = is_open.astype(jnp.float32)
        return jnp.linalg.multi_dot([rows, cells_open, columns.T], precision="highest")

    return jax.vmap(mask)(numbers)


def enlargement(length: int, enlarged: int) -> Float[np.ndarray, "enlarged length"]:
    """Linear interpolation of `length` values at `enlarged` places, as a matrix.

    It is `skimage.transform.resize` with order 1 and its mode "reflect".
    """
    place = np.abs((np.arange(enlarged) + 0.5) * length / enlarged - 0.5)
    place = np.where(place > length - 1, 2 * (length - 1) - place, place)
    return (
        np.maximum(1 - np.abs(place[:, None] - np.arange(length)), 0)
        if length > 1
        else (np.ones((enlarged, 1)))
    )


METHODS = {"rise": Method(Rise, rise)}
