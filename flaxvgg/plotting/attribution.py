"""Pictures of attributions: signed maps on a scale that the classes of a photo share."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from flaxvgg.attribution.attribution import Attribution
from flaxvgg.attribution.photos import AttributedPhoto
from flaxvgg.files.foreign import plain
from flaxvgg.network.model import AnyArray
from flaxvgg.plotting.cam import Activation, chances_of, told_score
from flaxvgg.plotting.figures import literal, new_figure, same_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = "RdBu_r"  # red for, blue against; told apart by those who do not see red or green
_CLIPPED = 99.5  # percent of the magnitudes that the scale holds: a few pixels would rule it
_WIDTH = 2.1  # of a panel, in inches


def scale_of(maps: Float[np.ndarray, "k h w"]) -> float:
    """The magnitude at the ends of the scale, for all maps of one photo and method."""
    finite = np.abs(maps[np.isfinite(maps)])
    return float(np.percentile(finite, _CLIPPED)) if finite.size and finite.any() else 1.0


def photo_figure(
    found: AttributedPhoto, title: str, activation: Activation = "softmax"
) -> "Figure":
    """A row for each method and a column for each class, beside the photo.

    The classes of one method share a scale, from minus to plus the 99.5th percentile of its
    magnitudes: what a class has little of looks like little. `activation` is that of the
    probabilities.
    """
    chances = chances_of(found.logits, np.array(found.labels), activation)
    heads = [
        f"{plain(name)}\n{told_score(score, chance)}"
        for name, score, chance in zip(found.names, found.scores, chances, strict=True)
    ]
    return _grid(found.pixels, found.maps, heads, f"{plain(found.photo.name)}\n{title}")


def attribution_figure(
    attribution: Attribution, images: AnyArray, names: Sequence[str] = ()
) -> "Figure":
    """A row for each image and a column for each class, beside the images.

    `images` (N, H, W, 3) are pixels of 8 bits, or what the network was given, which is stretched
    from its lowest value to its highest. `names` are those of all classes, as in `model.classes`.
    The classes of an image share a scale. Raises ValueError for images of another number or size.
    """
    maps = np.asarray(attribution.values.sum(axis=-1))
    pictures = same_images(images, (len(maps), *maps.shape[2:]))
    figure, axes = _axes(*maps.shape[:2], maps.shape[2:])
    for i, row in enumerate(axes):
        row[0].imshow(pictures[i])
        scale = scale_of(maps[i])
        for k, ax in enumerate(row[1:]):
            _draw(ax, pictures[i], maps[i, k], scale)
            label = int(attribution.classes[i, k])
            name = names[label] if names and label >= 0 else f"class {label}" if label >= 0 else ""
            ax.set_title(
                literal(f"{plain(name)[:24]} {float(attribution.scores[i, k]):.3g}"), fontsize=9
            )
    _finish(figure, axes, attribution.method)
    return figure


def _grid(
    pixels: np.ndarray,
    rows: Mapping[str, Float[np.ndarray, "k h w"]],
    heads: Sequence[str],
    title: str,
) -> "Figure":
    figure, axes = _axes(len(rows), len(heads), pixels.shape[:2])
    for i, (row, (name, maps)) in enumerate(zip(axes, rows.items(), strict=True)):
        if not i:
            row[0].imshow(pixels)
        row[0].set_axis_off()
        scale = scale_of(maps)
        for k, ax in enumerate(row[1:]):
            _draw(ax, pixels, maps[k], scale)
            if not k:
                ax.text(
                    -0.04,
                    0.5,
                    name.replace(" ", "\n").replace("_", " "),
                    ha="right",
                    va="center",
                    fontsize=9,
                    transform=ax.transAxes,
                )
            if not i:
                ax.set_title(literal(heads[k]), fontsize=9)
    _finish(figure, axes, title)
    return figure


def _axes(rows: int, columns: int, size: tuple[int, ...]) -> tuple["Figure", np.ndarray]:
    height, width = size
    high = _WIDTH * height / width
    figure = new_figure(
        figsize=((1 + columns) * (_WIDTH + 0.15) + 1.2, rows * (high + 0.15) + 1.8),
        layout="constrained",
        dpi=110,
    )
    axes = figure.subplots(rows, 1 + columns, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    return figure, axes


def _draw(ax: "Axes", pixels: np.ndarray, attribution: np.ndarray, scale: float) -> None:
    """A signed map in colours over faint edges of the photo, so that one sees where it lies."""
    from matplotlib import colormaps

    colours = colormaps[COLOURS](0.5 + 0.5 * np.clip(np.nan_to_num(attribution) / scale, -1, 1))
    grey = (pixels @ np.array([0.299, 0.587, 0.114]) / 255)[..., None]
    ax.imshow(np.clip(colours[..., :3] * (0.8 + 0.2 * grey), 0, 1))
    if not np.isfinite(attribution).all():
        ax.text(0.5, 0.5, "not finite", ha="center", transform=ax.transAxes, color="C3")
    elif not attribution.any():
        ax.text(0.5, 0.5, "zero everywhere", ha="center", transform=ax.transAxes, color="C3")


def _finish(figure: "Figure", axes: np.ndarray, title: str) -> None:
    """The title, above what the layout arranges, and the scale below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(
        ScalarMappable(Normalize(-1, 1), COLOURS),
        ax=list(axes.flat),
        location="bottom",
        shrink=0.5,
        aspect=40,
        ticks=[-1, 0, 1],
    )
    bar.ax.set_xticklabels(["against", "0", "for the class"], fontsize=8)
    bar.set_label(
        f"the classes of a row share a scale, which ends at the {_CLIPPED}th percentile of its "
        "magnitudes",
        fontsize=8,
    )
    room = (0.25 + 0.2 * (1 + title.count("\n"))) / figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - room))
    figure.text(0.01, 0.99, literal(title), fontsize=10, va="top")
