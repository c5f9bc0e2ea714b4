"""The picture of an explained photo: its maps, method by method and class by class."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped, UInt8

from flaxvgg.cam.explanation import Explanation, Flag
from flaxvgg.cam.photos import FLAG_WORDS, ExplainedPhoto, PhotoMap, shown
from flaxvgg.files.foreign import plain
from flaxvgg.network.model import AnyArray
from flaxvgg.plotting.figures import check_drawing, draw_heat, literal, new_figure, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Everything is placed in inches, so that no text meets another whatever the grid.
_AREA = 2.1  # of a panel: the square root, in inches
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 0.25, 0.25, 1.15, 0.75, 0.1
_PER_INCH = 12.5  # characters of the small print


def cam_figure(explained: ExplainedPhoto, title: str) -> "Figure":
    """A row for each method and a column for each class, beside the photo.

    Every map has its own scale, from its lowest value to its highest. The line is half way, the
    ring at the peak. A map that is not to be trusted is marked.
    """
    rows, columns = len(explained.maps), len(next(iter(explained.maps.values())))
    height, width = explained.pixels.shape[:2]
    w, h = _AREA * np.sqrt(width / height), _AREA * np.sqrt(height / width)
    pitch = max(w, 1.5) + _GAP  # narrow photos need room for the classes' names
    labels = max(map(len, [*explained.maps, "whole network"])) / _PER_INCH + 0.2
    first = _LEFT + pitch + labels
    wide = first + columns * pitch + _RIGHT
    high = _TOP + rows * (h + _GAP) + _BOTTOM
    figure = new_figure(figsize=(wide, high), dpi=110)

    def panel(x: float, y: float, w: float, h: float) -> "Axes":
        ax = figure.add_axes((x / wide, 1 - (y + h) / high, w / wide, h / high))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        return ax

    def write(x: float, y: float, text: str, **kwargs) -> None:
        kwargs = {"fontsize": 9, "linespacing": 1.1} | kwargs
        figure.text(x / wide, 1 - y / high, literal(text), **kwargs)

    small = {"fontsize": 8, "color": "0.35"}
    write(_LEFT, 0.3, _wrap(shown(explained.photo), 0.75 * wide, 1), fontsize=12)
    write(_LEFT, 0.52, _wrap(title, wide - 0.4, 1), **small)
    panel(_LEFT, _TOP, w, h).imshow(explained.pixels)
    write(_LEFT, _TOP - 0.08, f"photo, {height}x{width}")
    for row, (method, maps) in enumerate(explained.maps.items()):
        y = _TOP + row * (h + _GAP)
        layers = ", ".join(explained.layers[method]) or "whole network"
        label = f"{method}\n{_wrap(layers, labels - 0.1, 2)}"
        write(first - 0.12, y + h / 2, label, ha="right", va="center")
        for k, found in enumerate(maps):
            ax = panel(first + k * pitch, y, w, h)
            _draw(ax, explained.pixels, explained.heatmaps[method][k], found)
    # The scores of enlarged windows are not the network's.
    usual = [maps for name, maps in explained.maps.items() if name != "fully_convolutional"]
    for k, found in enumerate((usual or list(explained.maps.values()))[0]):
        name = _wrap(found.name or "no class", pitch - _GAP, 2)
        score = f"\nscore {found.score:.3g}" if np.isfinite(found.score) else ""
        write(first + k * pitch, _TOP - 0.08, name + score)

    bar = panel(first, high - _BOTTOM + 0.12, max(w, 1.5), 0.12)
    ramp = np.tile(np.linspace(0, 1, 256), (8, 1))
    bar.imshow(overlay(np.full((8, 256, 3), 128.0), ramp), extent=(0, 1, 0, 1), aspect="auto")
    bar.set_xticks([0, 0.5, 1])
    bar.tick_params(labelsize=8, length=2)
    note = "each map from its lowest value to its highest; line: half way, ring: the peak"
    write(_LEFT, high - _BOTTOM + 0.12, _wrap(note, first - _LEFT, 3), va="top", **small)
    return figure


def explanation_figure(
    explanation: Explanation, images: AnyArray, names: Sequence[str] = ()
) -> "Figure":
    """A row for each image and a column for each class, beside the images.

    `images` (N, H, W, 3) are pixels of 8 bits, or what the network was given, which is stretched
    from its lowest value to its highest. `names` are those of all classes, as in `model.classes`.
    Raises ValueError for images of another number or size than were explained.
    """
    pictures = _pictures(explanation, images)
    count, columns = explanation.classes.shape
    heat = np.asarray(explanation.heatmaps(explanation.image_size))
    flags, labels, scores = map(
        np.asarray, (explanation.flags, explanation.classes, explanation.scores)
    )
    height, width = explanation.image_size
    size = (1 + columns) * _AREA * np.sqrt(width / height), count * _AREA * np.sqrt(height / width)
    figure = new_figure(figsize=(size[0] + 0.4, size[1] + 0.3 * count + 0.4), layout="constrained")
    axes = figure.subplots(count, 1 + columns, squeeze=False)
    for i, row in enumerate(axes):
        row[0].imshow(pictures[i])
        for k, ax in enumerate(row[1:]):
            draw_heat(ax, pictures[i], heat[i, k])
            label = labels[i, k]
            name = names[label] if names and label >= 0 else f"class {label}" if label >= 0 else ""
            flag = f" ({FLAG_WORDS[flags[i, k]]})" if flags[i, k] != Flag.FINE else ""
            score = f"{scores[i, k]:.3g}" if np.isfinite(scores[i, k]) else ""
            title = textwrap.shorten(f"{plain(name)} {score}{flag}", 30, placeholder=" …")
            ax.set_title(literal(title), fontsize=9)
        for ax in row:
            ax.set_axis_off()
    layers = ", ".join(explanation.layers) or "whole network"
    figure.suptitle(f"{explanation.method} at {layers}", fontsize=10)
    return figure


def explanation_overlay(
    explanation: Explanation, images: Shaped[AnyArray, "n h w 3"]
) -> UInt8[np.ndarray, "n k h w 3"]:
    """The heat maps over their images, as pixels; what is not finite is cold.

    Takes and raises what `explanation_figure` does, and ValueError where matplotlib is missing.
    """
    check_drawing()
    pictures = _pictures(explanation, images)
    heat = np.nan_to_num(np.asarray(explanation.heatmaps(explanation.image_size), np.float32))
    drawn = [
        [overlay(picture, one) for one in of_image]
        for picture, of_image in zip(pictures, heat, strict=True)
    ]
    return (255 * np.clip(drawn, 0, 1)).round().astype(np.uint8).reshape(*heat.shape, 3)


def _pictures(explanation: Explanation, images: AnyArray) -> UInt8[np.ndarray, "n h w 3"]:
    """The images as pixels. Raises ValueError for others than were explained."""
    pictures = as_pixels(np.asarray(images))
    count = explanation.classes.shape[0]
    if pictures.shape != (count, *explanation.image_size, 3):
        wanted = "x".join(map(str, (count, *explanation.image_size, 3)))
        shape = "x".join(map(str, pictures.shape))
        raise ValueError(f"the maps are of images {wanted}, and these are {shape}: pass the same")
    return pictures


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Images as 8-bit pixels; those of another type are stretched, each for itself."""
    if images.dtype == np.uint8:
        return images
    images = images.astype(np.float32)
    low, high = (f(images, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
    return (255 * (images - low) / np.maximum(high - low, 1e-12)).round().astype(np.uint8)


def _draw(ax: "Axes", pixels: np.ndarray, heat: np.ndarray, found: PhotoMap) -> None:
    draw_heat(ax, pixels, heat if found.peak else np.zeros_like(heat))
    if found.peak:
        for colour, size in (("black", 8), ("white", 6)):
            style = {"markerfacecolor": "none", "markeredgecolor": colour, "markersize": size}
            ax.plot(*found.peak, "o", clip_on=False, **style)
    if found.flag != Flag.FINE:
        box = {"facecolor": "white", "edgecolor": "C3", "boxstyle": "round"}
        middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
        y = 0.1 if found.peak else 0.5
        ax.text(0.5, y, FLAG_WORDS[found.flag], fontsize=9, color="C3", bbox=box, **middle)


def _wrap(text: str, inches: float, lines: int) -> str:
    """The text in so many lines at most, each no longer than so many inches of the small print."""
    width = max(8, int(inches * _PER_INCH))
    return textwrap.fill(plain(text), width, max_lines=lines, placeholder=" …")
