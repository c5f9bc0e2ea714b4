"""The picture: objects in scenes as rows, methods as columns, every map on a scale of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.attribution_on_vgg16.study import Shown
from experiments.composed.objects import OBJECTS
from flaxvgg.plotting.attribution import scale_of
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(shown: Sequence[Shown]) -> "Figure":
    """Two bands of methods; red speaks for the object that is asked for, blue against it."""
    from matplotlib.patches import Rectangle

    names = list(shown[0].maps)
    half = (len(names) + 1) // 2
    bands = [names[:half], names[half:]]
    rows = len(shown) * len(bands)
    figure = new_figure(figsize=(1.45 * (half + 1), 1.62 * rows + 0.6), dpi=80)
    figure.subplots_adjust(0.04, 0.01, 0.998, 1 - 0.7 / figure.get_figheight(), 0.03, 0.12)
    axes = figure.subplots(rows, half + 1, squeeze=False)
    for row, ax in enumerate(axes):
        one, band = shown[row % len(shown)], bands[row // len(shown)]
        left, top, right, bottom = one.box
        ax[0].imshow(one.pixels)
        ax[0].set_ylabel(f"{OBJECTS[one.object].name}?", fontsize=10)
        for panel, name in zip(ax[1:], band, strict=False):
            values = one.maps[name]
            scale = scale_of(values[None])
            panel.imshow(np.clip(values / scale, -1, 1), cmap="RdBu_r", vmin=-1, vmax=1)
            if row % len(shown) == 0:
                panel.set_title(name.replace(" epsilon", "\nepsilon"), fontsize=8)
        for panel in ax[: 1 + len(band)]:
            frame = {"edgecolor": "black", "facecolor": "none", "linewidth": 1.0}
            panel.add_patch(Rectangle((left, top), right - left, bottom - top, **frame))
        for panel in ax[1 + len(band) :]:
            panel.set_visible(False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    note = (
        "frame: where the object is; red speaks for it, blue against it; every map on its own scale"
    )
    figure.text(0.5, 1 - 0.2 / figure.get_figheight(), note, ha="center", fontsize=9)
    return figure
