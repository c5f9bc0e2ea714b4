"""The picture: for each object of a few scenes, every method's map over the image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.cam_on_vgg16.methods import METHODS
from experiments.cam_on_vgg16.study import Seen
from experiments.composed.objects import OBJECTS
from flaxvgg.images.datasets import Box
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {
    "Grad-CAM": "Grad-CAM\n14×14",
    "score map 224": "score map, 224 px\none place",
    "score map 448": "score map, 448 px\n8×8 places",
    "score map 672": "score map, 672 px\n15×15 places",
    "CAM (GAP + linear)": "CAM: GAP + linear\n7×7",
    "Eigen-CAM": "Eigen-CAM\n14×14, no class",
}
_RIGHT, _WRONG = "white", "#ff4fd8"  # told apart by shape, and by those who see no green or red


def draw(seen: Sequence[Seen]) -> "Figure":
    """One row for each object of each scene, one column for each method, the peaks marked."""
    columns = 1 + len(METHODS)
    figure = new_figure(figsize=(1.5 * columns, 1.53 * len(seen) + 0.75), dpi=80)
    figure.subplots_adjust(0.065, 0.035, 0.997, 1 - 0.42 / figure.get_figheight(), 0.03, 0.03)
    axes = figure.subplots(len(seen), columns, squeeze=False)
    for row, one in zip(axes, seen, strict=True):
        row[0].imshow(one.pixels)
        for item, box in one.boxes.items():
            asked = item == one.object
            _frame(row[0], box, "white" if asked else "0.75", 2.2 if asked else 0.8)
        row[0].set_ylabel(f"{OBJECTS[one.object].name}?", fontsize=11)
        grey = one.pixels.mean(axis=-1) / 255
        for axis, method in zip(row[1:], METHODS, strict=True):
            heat = one.heats[method.name]
            top = heat.max()
            axis.imshow(grey, cmap="gray", vmin=0, vmax=1.15)
            if top > 0:
                strength = heat / top
                axis.imshow(strength, cmap="inferno", vmin=0, vmax=1, alpha=0.15 + 0.6 * strength)
            _frame(axis, one.boxes[one.object], "white", 1.0)
            _mark(axis, one, method.name)
    for axis, title in zip(
        axes[0], ["image", *(_TITLES[method.name] for method in METHODS)], strict=True
    ):
        axis.set_title(title, fontsize=8.5)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    figure.text(
        0.5,
        0.012,
        "the frame is where the object is; the peak of each map is marked: "
        "circle on the object, cross beside it",
        ha="center",
        va="bottom",
        fontsize=8.5,
    )
    return figure


def _frame(axis, box: Box, colour: str, width: float) -> None:
    left, top, right, bottom = box
    x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
    axis.plot(np.array(x) - 0.5, np.array(y) - 0.5, color=colour, linewidth=width)
    size = axis.images[0].get_array().shape
    axis.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))


def _mark(axis, one: Seen, method: str) -> None:
    peak = one.peaks[method]
    if peak is None:
        # One place: the score of the whole image, which is no map.
        text = (
            f"{one.score:.1f}\nis the score,\nand nothing\nsays where"
            if "224" in method
            else "zero"
        )
        axis.text(
            0.5, 0.5, text, ha="center", va="center", fontsize=9, color="white",
            transform=axis.transAxes, bbox={"facecolor": "black", "alpha": 0.55, "linewidth": 0},
        )  # fmt: skip
        return
    hit = one.hit(method)
    style = {"marker": "o", "markerfacecolor": "none"} if hit else {"marker": "x"}
    axis.plot(*peak, color="black", markersize=11, markeredgewidth=4, **style)
    colour = _RIGHT if hit else _WRONG
    axis.plot(*peak, color=colour, markersize=11, markeredgewidth=2, **style)
