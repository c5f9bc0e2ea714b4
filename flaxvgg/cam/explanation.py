"""The result of `flaxvgg.explain`: raw maps, heat maps, and what is wrong with a map."""

import dataclasses
import enum
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt8

from flaxvgg.cam.conventions import Convention
from flaxvgg.drawn import Drawn, results, shape_of
from flaxvgg.images.resizing import Interpolation
from flaxvgg.network.model import AnyArray


class Flag(enum.IntEnum):
    """What a map is, if it is no map to trust.

    >>> flags = flaxvgg.explain(model, images, classes=0).flags
    >>> flaxvgg.Flag(int(flags[0, 0])).name
    'FINE'
    """

    FINE = 0
    NOT_FINITE = 1  # it holds NaN or infinity
    ZERO = 2  # nothing but zeros
    CONSTANT = 3  # the same value everywhere
    NEGATIVE = 4  # positive nowhere: clamped at zero, nothing is left of it


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer_maps", "classes", "scores"],
    meta_fields=["method", "layers", "convention", "image_size"],
)
@dataclasses.dataclass(frozen=True)
class Explanation(Drawn):
    """Class activation maps of N images for K classes each; a pytree.

    `layer_maps` has one array (N, K, h, w) for each of `layers`: raw, signed, at the layer's own
    size. `classes` (N, K) are the classes explained, -1 for a function and for concepts; `scores`
    (N, K) are their logits, what the function gave, or NaN.
    `.plot(images)` draws them over the images: `plotting.cam.explanation_figure`;
    `.to_html(path, images)` writes a page to look at them: `plotting.maps_page.maps_page`; a
    notebook shows them by themselves.

    >>> explanation = flaxvgg.explain(model, images, classes=[0, 2])
    >>> explanation.scores.shape, explanation.heatmaps((64, 64)).shape
    ((2, 2), (2, 2, 64, 64))
    """

    layer_maps: tuple[Float[Array, "n k _ _"], ...]
    classes: Int[Array, "n k"]
    scores: Float[Array, "n k"]
    method: str
    layers: tuple[str, ...]
    convention: str
    image_size: tuple[int, int]

    def __repr__(self) -> str:
        height, width = self.image_size
        shapes = ", ".join(map(shape_of, self.layer_maps))
        return (
            f"Explanation({self.method} at {', '.join(self.layers) or 'the whole network'}, "
            f"convention {self.convention!r}: {shape_of(self.classes)} classes of images "
            f"{height}x{width}, maps {shapes})"
        )

    def overlay(self, images: Shaped[AnyArray, "n h w 3"]) -> UInt8[np.ndarray, "n k h w 3"]:
        """The heat maps over the images they are of, as pixels (N, K, H, W, 3) of 8 bits.

        `images` (N, H, W, 3) are pixels of 8 bits, or what the network was given, which is
        stretched from its lowest value to its highest. Colours are those of `.plot`. Raises
        ValueError for images of another number or size than were explained, and where matplotlib
        is missing.

            PIL.Image.fromarray(explanation.overlay(images)[0, 0]).save("cat_map.png")
        """
        return results().overlay(self, images)

    @property
    def maps(self) -> Float[Array, "n k h w"]:
        """Raw signed maps (N, K, h, w) at the layer's own size.

        Maps of several layers are on different scales: there it is their heat map instead, in
        [0, 1], at the size of the largest; the raw ones are in `layer_maps`.
        """
        if len(self.layer_maps) == 1:
            return self.layer_maps[0]
        return self.heatmaps(self._largest())

    def heatmaps(
        self,
        size: tuple[int, int] | None = None,
        interpolation: Interpolation = "linear",
        *,
        shared: bool = False,
    ) -> Float[Array, "n k H W"]:
        """Heat maps (N, K, H, W) in [0, 1], clamped, scaled and resized as the convention does.

        `size` is (H, W); None is the images' size, with convention "torchcam" the layer's.
        `interpolation` "cubic" is PyTorch's and OpenCV's, with a = -0.75. A map that is constant,
        or positive nowhere, gives zeros (the paper's "cam" is not clamped, and scaled from its
        lowest value); one that is not finite stays NaN: see `flags`.

        As published, each map is scaled by its own extremes, and a class without evidence looks as
        sure as any other. Maps that are `shared` in scale, by all K of an image, can be compared.
        """
        convention = Convention.named(self.convention)
        if size is None:
            size = self._largest() if convention.native_size else self.image_size
        told = self.layer_maps, self.method, size, interpolation
        return convention.heatmaps(*told, shared=shared)

    @property
    def flags(self) -> Int[Array, "n k"]:
        """What is wrong with each map (N, K), as a `Flag`; of several layers, the worst one."""
        found = jnp.stack([_flags(maps) for maps in self.layer_maps])
        worst_first = jnp.where(found == Flag.FINE, len(Flag), found)
        worst = worst_first.min(axis=0)
        return jnp.where(worst == len(Flag), Flag.FINE, worst)

    @property
    def ok(self) -> Bool[Array, "n k"]:
        """Whether each map (N, K) is finite, varies, and is positive somewhere."""
        return self.flags == Flag.FINE

    def _largest(self) -> tuple[int, int]:
        sizes = [maps.shape[-2:] for maps in self.layer_maps]
        return max(h for h, _ in sizes), max(w for _, w in sizes)


def _flags(maps: Float[Array, "n k h w"]) -> Int[Array, "n k"]:
    low, high = maps.min(axis=(-2, -1)), maps.max(axis=(-2, -1))
    wrong = {
        Flag.NOT_FINITE: ~jnp.isfinite(maps).all(axis=(-2, -1)),
        Flag.ZERO: (low == 0) & (high == 0),
        Flag.CONSTANT: low == high,
        Flag.NEGATIVE: high <= 0,
    }
    flags = [jnp.int32(flag) for flag in wrong]
    return jnp.select(list(wrong.values()), flags, jnp.int32(Flag.FINE))
