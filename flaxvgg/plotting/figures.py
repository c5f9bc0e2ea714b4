"""What every picture is made of."""

import functools
import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from flaxvgg.files.foreign import plain
from flaxvgg.network.model import AnyArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that the colour-blind tell apart, and that get brighter, or further from grey, evenly.
COLOURS, SIGNED_COLOURS = "inferno", "RdBu_r"
WARNING = "#b34700"  # of marks on a picture, which are words as well


def new_figure(**kwargs) -> "Figure":
    """An empty figure, without pyplot's state. Raises ValueError where matplotlib is missing."""
    try:
        return _shown_figure()(**kwargs)
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install matplotlib") from None


@functools.cache
def _shown_figure() -> type["Figure"]:
    """matplotlib's Figure, which shows itself in a notebook; its own does so for pyplot's alone."""
    from matplotlib.figure import Figure

    class ShownFigure(Figure):
        def _repr_png_(self) -> bytes:
            return png(self)

    return ShownFigure


def literal(text: str) -> str:
    """A text that a figure shows as it is: matplotlib takes what is between dollars for a formula.

    For every title and label that is not our own words alone; `parse_math` is to be True there.
    """
    return plain(text, lines=True).replace("$", r"\$")


def check_drawing() -> None:
    """Raise ValueError, before any work is done, where matplotlib is missing."""
    new_figure()


def png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name may be of any script, and is no less of one where the font has boxes for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(file, format="png")
    return file.getvalue()


def enlarge(maps: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """One map resized to (H, W), bicubic, for looking at."""
    image = Image.fromarray(np.asarray(maps, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def as_pixels(
    images: Float[np.ndarray, "n h w 3"] | UInt8[np.ndarray, "n h w 3"],
) -> UInt8[np.ndarray, "n h w 3"]:
    """Images as 8-bit pixels; those of another type are stretched, each for itself."""
    if images.dtype == np.uint8:
        return images
    images = images.astype(np.float32)
    low, high = (f(images, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return (255 * (images - low) / np.maximum(high - low, 1e-12)).round().astype(np.uint8)


def same_images(images: AnyArray, shape: tuple[int, int, int]) -> UInt8[np.ndarray, "n h w 3"]:
    """Pixels of the images that a result (N, H, W) is of. Raises ValueError for others."""
    pictures = np.asarray(images)
    if pictures.ndim != 4 or pictures.shape[:3] != shape:
        wanted, found = ("x".join(map(str, x)) for x in ((*shape, 3), pictures.shape))
        raise ValueError(f"the maps are of images {wanted}, and these are {found}: pass the same")
    return as_pixels(pictures)


def overlay(
    picture: Float[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w 3"],
    heat: Float[np.ndarray, "h w"],
    *,
    signed: bool = False,
) -> Float[np.ndarray, "h w 3"]:
    """A grey photo (0 to 255) under a heat map in [0, 1]: the hotter, the less of it shows.

    A `signed` one is in [-1, 1]: blue below zero, red above. Both scales suit the colour-blind.
    """
    from matplotlib import colormaps

    grey = (picture @ np.array([0.299, 0.587, 0.114]) / 255)[..., None]
    opacity = 0.75 * np.abs(heat)[..., None]
    # A dark photo would hide the darkest tenths of the signed scale.
    scale = colormaps[SIGNED_COLOURS]((0.8 * heat + 1) / 2) if signed else colormaps[COLOURS](heat)
    return (1 - opacity) * grey + opacity * scale[..., :3]


def draw_heat(
    ax: "Axes",
    picture: UInt8[np.ndarray, "h w 3"],
    heat: Float[np.ndarray, "h w"],
    *,
    signed: bool = False,
) -> None:
    """Draw a heat map over its photo, as `overlay`; what is not finite is cold.

    One in [0, 1] gets a line at half.
    """
    heat = np.nan_to_num(heat)
    ax.imshow(overlay(picture, heat, signed=signed))
    if heat.max() > 0.5 and not signed:
        ax.contour(heat, [0.5], colors="white", linewidths=0.8)
