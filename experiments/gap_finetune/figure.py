"""The picture: test scenes, and where each map sees what is in them."""

from typing import TYPE_CHECKING

import numpy as np

from experiments.composed.objects import OBJECTS
from experiments.gap_finetune.study import EIGEN, FITTED, TUNED, Seen
from flaxvgg.plotting.figures import draw_heat, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = ("scene", "CAM, linear layer fitted", "CAM, conv5 trained as well", EIGEN)
_COLOURS = ("#ffd23f", "#4cc9f0")  # of the two objects of a scene
_RIGHT, _WRONG = "white", "#ff4fd8"  # told apart by shape, and by those who see no green or red


def draw(seen: Seen, scenes: int = 6, missed: int = 2) -> "Figure":
    """A row for each of a few scenes: its boxes, the maps of its two objects, and the Eigen-CAM.

    The first `scenes` of the test, and then, to be fair, up to `missed` others in which a peak of
    the fitted head is beside its object.
    """
    chosen = _chosen(seen, scenes, missed)
    figure = new_figure(figsize=(9.4, 1.56 * len(chosen) + 0.72), dpi=90)
    height = figure.get_figheight()
    figure.subplots_adjust(0.004, 0.3 / height, 0.996, 1 - 0.4 / height, 0.03, 0.04)
    axes = figure.subplots(len(chosen), 6, squeeze=False)
    for row, scene in zip(axes, chosen, strict=True):
        questions = np.flatnonzero(seen.asked.images == scene)
        row[0].imshow(seen.scenes.pixels[scene])
        for question, colour in zip(questions, _COLOURS, strict=True):
            _frame(row[0], seen.asked.boxes[question], colour, 1.6)
        _map(row[5], seen, EIGEN, questions[0], None)
        for first, name in ((1, FITTED), (3, TUNED)):
            for axis, question, colour in zip(row[first:], questions, _COLOURS, strict=False):
                _map(axis, seen, name, question, colour)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for column, title in zip((0, 1.5, 3.5, 5), _TITLES, strict=True):
        x = 0.004 + (column + 0.5) / 6 * 0.992
        figure.text(x, 1 - 0.12 / height, title, ha="center", va="center", fontsize=10)
    note = "frame: where the object is; peak of each map: circle on it, cross beside it"
    if missed:
        note += "; the last rows are chosen for a miss"
    figure.text(0.5, 0.12 / height, note, ha="center", va="center", fontsize=9)
    return figure


def _chosen(seen: Seen, scenes: int, missed: int) -> list[int]:
    first = list(range(min(scenes, len(seen.scenes.boxes))))
    misses = [
        int(image)
        for question, image in enumerate(seen.asked.images)
        if image not in first and not _hit(seen, FITTED, question)
    ]
    return first + list(dict.fromkeys(misses))[:missed]


def _map(axis: "Axes", seen: Seen, name: str, question: int, colour: str | None) -> None:
    """One heat map over its scene, with the box of its object, if it is of one, and its peak."""
    picture = seen.scenes.pixels[seen.asked.images[question]]
    draw_heat(axis, picture, seen.heats[name][question])
    if colour is None:
        return
    _frame(axis, seen.asked.boxes[question], colour, 1.2)
    hit = _hit(seen, name, question)
    style = {"marker": "o", "markerfacecolor": "none"} if hit else {"marker": "x"}
    for tint, width in (("black", 3.5), (_RIGHT if hit else _WRONG, 1.8)):
        axis.plot(
            *_peak(seen, name, question),
            color=tint,
            markersize=8,
            markeredgewidth=width,
            scalex=False,
            scaley=False,
            **style,
        )
    word = OBJECTS[seen.asked.classes[question]].name
    axis.text(
        0.03, 0.03, word, fontsize=8.5, color="white", transform=axis.transAxes,
        bbox={"facecolor": "black", "alpha": 0.6, "linewidth": 0, "pad": 1.5},
    )  # fmt: skip


def _frame(axis: "Axes", box: np.ndarray, colour: str, width: float) -> None:
    left, top, right, bottom = box - 0.5
    x, y = [left, right, right, left, left], [top, top, bottom, bottom, top]
    axis.plot(x, y, color=colour, linewidth=width, scalex=False, scaley=False)


def _peak(seen: Seen, name: str, question: int) -> tuple[int, int]:
    heat = seen.heats[name][question]
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    return int(x), int(y)


def _hit(seen: Seen, name: str, question: int) -> bool:
    x, y = _peak(seen, name, question)
    left, top, right, bottom = seen.asked.boxes[question]
    return bool(left <= x < right and top <= y < bottom)
