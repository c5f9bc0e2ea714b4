"""The result of `flaxvgg.attribute`: what every pixel and colour contributed to a score."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flaxvgg.drawn import Drawn, shape_of


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "classes", "scores", "details"],
    meta_fields=["method"],
)
@dataclasses.dataclass(frozen=True)
class Attribution(Drawn):
    """Attributions of N images for K scores each; a pytree.

    `values` (N, K, H, W, 3) are signed where the method is: what each value of the normalised image
    contributed. `classes` (N, K) are the classes explained, -1 for scores of a function, and
    `scores` (N, K) these scores. `details` has what a method gives besides, by name: see
    `flaxvgg.attribute`.

    >>> attribution = flaxvgg.attribute(model, images, classes=[0, 2], method="saliency")
    >>> attribution.values.shape, attribution.heatmaps().shape
    ((2, 2, 64, 64, 3), (2, 2, 64, 64))
    """

    values: Float[Array, "n k h w 3"]
    classes: Int[Array, "n k"]
    scores: Float[Array, "n k"]
    details: dict[str, Array]
    method: str

    def __repr__(self) -> str:
        details = f", details {', '.join(self.details)}" if self.details else ""
        return (
            f"Attribution({self.method}: {shape_of(self.classes)} scores, "
            f"values {shape_of(self.values)}{details})"
        )

    def heatmaps(self) -> Float[Array, "n k h w"]:
        """Signed maps (N, K, H, W) in [-1, 1]: the sum over colours, over its largest magnitude.

        A map of zeros stays one; one that is not finite stays so.
        """
        maps = self.values.sum(axis=-1)
        largest = jnp.abs(maps).max(axis=(-2, -1), keepdims=True)
        return maps / jnp.where(largest == 0, 1, largest)
