"""The picture of a randomisation test: maps by method and by the layer that is random."""

from typing import TYPE_CHECKING

import numpy as np

from flaxvgg.evaluation.randomisation import Randomisation
from flaxvgg.network.model import AnyArray
from flaxvgg.plotting.figures import as_pixels, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE, _CURVES = 1.0, 2.2  # of a map, and the height of the curves, in inches
_ABREAST = 5  # names in a line of the legend
_COLOURS, _LINES = 6, ("-", "--", ":")  # of the curves: then the colours begin again


def randomisation_figure(
    randomisation: Randomisation, images: AnyArray, number: int = 0
) -> "Figure":
    """A row for each method: its map of image `number`, and after each layer is random.

    Every map is over its largest magnitude: grey where it has no negative values, red and blue
    where it has. Below, the similarities of all images to the original, layer by layer: the mean,
    and the lowest to the highest image. `images` (N, H, W, 3) are those explained, as pixels of 8
    bits or as the network was given them. Raises ValueError for another number of images, and for
    an image that there is none of.
    """
    images = np.asarray(images)
    methods, layers = list(randomisation.maps), randomisation.layers
    count = len(randomisation.original[methods[0]])
    if images.ndim != 4 or len(images) != count:
        raise ValueError(f"the maps are of {count} images, and these are {images.shape}")
    if not 0 <= number < count:
        raise ValueError(f"no image {number}: there are 0 to {count - 1}")
    columns = len(layers) + 2
    curves = _CURVES + 0.2 * ((len(methods) - 1) // _ABREAST)
    size = max(_SIDE * columns + 1.2, 7), 1.15 * _SIDE * len(methods) + curves + 0.8
    figure = new_figure(figsize=size, dpi=110, layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[size[1] - curves, curves])
    top, bottom = np.ravel(np.array(parts))
    grid = top.subplots(len(methods), columns, squeeze=False)
    titles = ["image", "original", *layers]
    grid[0, 0].imshow(as_pixels(images[number][None])[0])
    for row, method in zip(grid, methods, strict=True):
        before = randomisation.original[method][number]
        _draw_rows(row, before, randomisation.maps[method][:, number])
        label = {"rotation": 0, "ha": "right", "va": "center", "fontsize": 9}
        row[1].set_ylabel(literal(method), **label)
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(literal(title), fontsize=8)
    how = "with all above it" if randomisation.order == "cascading" else "alone"
    top.suptitle(f"each layer random, {how}", fontsize=10)
    _draw_curves(bottom, randomisation)
    return figure


def _draw_rows(row: "list[Axes]", before: np.ndarray, after: np.ndarray) -> None:
    signed = min(before.min(), np.nan_to_num(after).min()) < 0
    options = {"cmap": "RdBu_r", "vmin": -1} if signed else {"cmap": "gray", "vmin": 0}
    for ax in row:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, values in zip(row[1:], [before, *after], strict=True):
        values = np.nan_to_num(values)
        ax.imshow(values / (np.abs(values).max() or 1), vmax=1, **options)


def _draw_curves(figure, randomisation: Randomisation) -> None:
    similarities = {
        "rank correlation": randomisation.spearman,
        "of magnitudes": randomisation.absolute_spearman,
        "SSIM of magnitudes": randomisation.ssim,
    }
    places = np.arange(len(randomisation.layers))
    for ax, (title, by_method) in zip(
        figure.subplots(1, len(similarities), sharey=True), similarities.items(), strict=True
    ):
        for i, (method, values) in enumerate(by_method.items()):
            # A map that is constant has no rank correlation.
            known = np.ma.masked_invalid(values)
            style = {"color": f"C{i % _COLOURS}", "ls": _LINES[i // _COLOURS % len(_LINES)]}
            middle = known.mean(axis=1)
            (line,) = ax.plot(places, middle, marker=".", lw=1.2, label=literal(method), **style)
            ends = known.min(axis=1), known.max(axis=1)
            ax.fill_between(places, *ends, color=line.get_color(), alpha=0.15, lw=0)
        ax.axhline(0, color="0.7", lw=0.8)
        ax.set_title(title, fontsize=9)
        ax.set_ylim(-1.05, 1.05)
        ax.set_xticks(places, randomisation.layers, rotation=90, fontsize=7)
        ax.tick_params(axis="y", labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    options = {"frameon": False, "fontsize": 8, "ncols": min(len(labels), _ABREAST)}
    figure.legend(handles, labels, loc="outside upper center", **options)
