"""The picture: one memory all the way, answers that are the same, and images a second."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.from_pytorch.report import SHORT, rates
from experiments.from_pytorch.study import DLPACK, GAP, MEMORY, TORCH
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OURS, _THEIRS, _GREY = "#2a6fbb", "#d1495b", "0.6"


def draw(results: dict[str, Any]) -> "Figure":
    """Above: the path of a batch. Left: scores of both classifiers. Right: images a second."""
    figure = new_figure(figsize=(11, 6.4), dpi=100, layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 2.3])
    _way(figure.add_subplot(grid[0, :]), results)
    _scores(figure.add_subplot(grid[1, 0]), results)
    _speed(figure.add_subplot(grid[1, 1]), results)
    return figure


def _way(ax: "Axes", results: dict[str, Any]) -> None:
    shared = results["answers"]["shared"]
    boxes = [
        ("DataLoader\n(other processes)", "decode, collate", _THEIRS),
        ("flaxvgg.normalise\nmodel.features", "one compiled pass", _OURS),
        ("PyTorch\nscikit-learn", "classifiers", _THEIRS),
    ]
    links = [
        (f"{shared['pixels']} of {shared['batches']} batches", "uint8, shared memory"),
        (f"{shared['features']} of {shared['batches']} batches", "float32 features"),
    ]
    ax.set(xlim=(0, 10), ylim=(0, 2), title="DLPack: both sides at the same address, no copy")
    ax.axis("off")
    style = {"ha": "center", "va": "center"}
    for i, (name, does, colour) in enumerate(boxes):
        x = 1.25 + 3.75 * i
        frame = {"boxstyle": "round,pad=0.55", "facecolor": "white", "edgecolor": colour, "lw": 2}
        ax.text(x, 1.15, name, fontsize=12, bbox=frame, **style)
        ax.text(x, 0.42, does, fontsize=10, color="0.3", **style)
    for i, (count, what) in enumerate(links):
        left, right = 2.4 + 3.75 * i, 3.8 + 3.75 * i
        arrow = {"arrowstyle": "-|>", "lw": 2, "color": "0.2"}
        ax.annotate("", (right, 1.15), (left, 1.15), arrowprops=arrow)
        ax.text((left + right) / 2, 1.5, count, fontsize=10, **style)
        ax.text((left + right) / 2, 0.8, what, fontsize=10, color="0.3", **style)


def _scores(ax: "Axes", results: dict[str, Any]) -> None:
    (row,) = [
        row
        for row in results["answers"]["rows"]
        if row["tool"] == "scikit-learn" and row["features"] == GAP
    ]
    ours, theirs = map(np.array, row["scores"])
    limit = 1.05 * max(abs(ours).max(), abs(theirs).max())
    ax.axhspan(-limit, 0, xmin=0.5, color="0.93", zorder=0)
    ax.axhspan(0, limit, xmax=0.5, color="0.93", zorder=0)
    ax.plot(theirs, ours, "o", color=_OURS, markersize=3.5, alpha=0.5)
    note = f"{row['answers']} answers, {row['differ']} differ\n(they would be in the grey)"
    ax.text(0.04, 0.95, note, transform=ax.transAxes, va="top", fontsize=10)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit))
    ax.set(xlabel="score on PyTorch's features", ylabel="score on flaxvgg's features")
    ax.set_title("scikit-learn on GAP vectors of held-out scenes", fontsize=11)


def _speed(ax: "Axes", results: dict[str, Any]) -> None:
    found = rates(results)
    names = list(found)
    colours = [{TORCH: _THEIRS, MEMORY: _GREY}.get(name, _OURS) for name in names]
    middle, least, most = (np.array([rate[i] for rate in found.values()]) for i in range(3))
    bars = ax.barh(names, middle, color=colours, xerr=(middle - least, most - middle),
                   error_kw={"lw": 1, "capsize": 3, "ecolor": "0.25"})  # fmt: skip
    for bar, name, top in zip(bars, names, most, strict=True):
        at = bar.get_y() + bar.get_height() / 2
        ax.text(top + 0.02 * most.max(), at, f"{found[name][0]:.1f}", va="center", fontsize=10)
    ax.set_yticks(range(len(names)), [SHORT[name] for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="images a second (median; least to most of the rounds)")
    ax.set_xlim(0, 1.18 * most.max())
    ax.set_title(
        f"from JPEG files to features: {len(results['speed'][DLPACK])} rounds", fontsize=11
    )
