"""Photos beside their reference, with where they differ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxvgg.files.foreign import plain
from flaxvgg.perceptual.photos import Compared, Pixels
from flaxvgg.plotting.figures import literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 12  # photos in one picture


def compare_figure(found: Sequence[Compared], reference: Pixels, title: str) -> "Figure":
    """A column for each photo: the photo, and the map of its distance, all maps on one scale.

    `found` have maps; the first of more than twelve are shown. The reference stands at the left.
    """
    shown = list(found)[:_MOST]
    columns = 1 + len(shown)
    height, width = reference.shape[:2]
    figure = new_figure(
        figsize=(2.2 * columns + 1, 2 * (2.2 * height / width + 0.5) + 0.4), layout="constrained"
    )
    axes = figure.subplots(2, columns, squeeze=False)
    maps = [one.where if one.where is not None else np.zeros((1, 1)) for one in shown]
    highest = max(float(np.nanmax(x)) for x in maps) or 1.0
    axes[0, 0].imshow(reference)
    axes[0, 0].set_title("reference", fontsize=9)
    image = None
    for (upper, lower), one, where in zip(axes.T[1:], shown, maps, strict=True):
        upper.imshow(one.pixels)
        name = plain(one.photo.name)
        upper.set_title(literal(name if len(name) < 26 else name[:24] + " …"), fontsize=9)
        image = lower.imshow(where, cmap="inferno", vmin=0, vmax=highest)
        values = "\n".join(f"{metric} {value:.4g}" for metric, value in one.values.items())
        lower.set_title(values, fontsize=8)
    for ax in axes.flat:
        ax.set_axis_off()
    if image is not None:
        figure.colorbar(image, ax=list(axes[1]), label="LPIPS here", fraction=0.02)
    figure.suptitle(literal(title), fontsize=10)
    return figure
