"""The pictures: errors of a layer by points and sums, and a map of points ±a, ±b."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.winograd_errors.report import label_of
from experiments.winograd_errors.study import Ratio
from experiments.winograd_errors.sums import COMPENSATED, PLAIN, WIDE
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {PLAIN.name: "#999999", WIDE.name: "#0b5394", COMPENSATED.name: "#b45f06"}
_MARKERS = "osD^v*"
_TITLES = {"before_relu": "before the ReLU", "after_relu": "after the ReLU"}


def errors(results: dict[str, Any]) -> "Figure":
    """One row a set of points, one mark a layer; on the left before, on the right after ReLU."""
    rows = [row for row in results["sums"] if row["sums"] in _COLOURS]
    labels = list(dict.fromkeys(map(label_of, rows)))
    figure = new_figure(figsize=(11, 1.8 + 0.42 * len(labels)), dpi=100, layout="constrained")
    every = figure.subplots(1, 2, sharey=True, sharex=True)
    for axes, kind in zip(every, Ratio._fields, strict=True):
        _errors(axes, rows, labels, kind)
        axes.set_title(_TITLES[kind], fontsize=11)
    every[0].set_yticks(range(len(labels)), labels, fontsize=9)
    every[0].set(ylim=(len(labels) - 0.5, -0.5))
    lines = [
        every[0].plot([], [], color=colour, linewidth=4, label=name)[0]
        for name, colour in _COLOURS.items()
    ]
    shapes = [
        every[0].plot([], [], shape, color="black", markersize=5, label=layer)[0]
        for layer, shape in zip(rows[0]["before_relu"], _MARKERS, strict=False)
    ]
    style = {"frameon": False, "fontsize": 9}
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), **style)
    figure.legend(handles=shapes, loc="outside lower center", ncols=len(shapes), **style)
    for axes in every:
        axes.set_xlabel("error of one layer in PyTorch's own (line at 1)", fontsize=10)
    return figure


def _errors(axes: "Axes", rows: list[dict[str, Any]], labels: list[str], kind: str) -> None:
    names = list(_COLOURS)
    for row in rows:
        at = labels.index(label_of(row)) + 0.26 * (names.index(row["sums"]) - 1)
        colour, found = _COLOURS[row["sums"]], row[kind]
        axes.plot([min(found.values()), max(found.values())], [at, at], color=colour, alpha=0.4)
        for value, shape in zip(found.values(), _MARKERS, strict=False):
            axes.plot(value, at, shape, color=colour, markersize=5)
    for place in range(1, len(labels), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log")
    axes.set_xticks([0.5, 0.7, 1, 1.5, 2, 3, 4], ["0.5", "0.7", "1", "1.5", "2", "3", "4"])
    axes.minorticks_off()
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def scan(results: dict[str, Any]) -> "Figure":
    """Errors by a and b for both kinds of tile, with the best point marked."""
    found = results["scan"]
    figure = new_figure(figsize=(11, 4.6), dpi=100, layout="constrained")
    for axes, tile in zip(figure.subplots(1, 2), found["tiles"], strict=True):
        values = np.array(tile["errors"], float)
        shown = np.ma.masked_invalid(values)
        grid = axes.pcolormesh(found["b"], found["a"], shown, cmap="viridis_r", norm="log")
        bar = figure.colorbar(grid, ax=axes, label="error in PyTorch's own; frame: the least")
        ticks = [
            x for x in (1, 1.5, 2, 3, 5, 10, 20) if np.nanmin(values) <= x <= np.nanmax(values)
        ]
        bar.set_ticks(ticks, labels=[f"{x:g}" for x in ticks], minor=False)
        bar.ax.minorticks_off()
        row, column = np.unravel_index(np.nanargmin(values), values.shape)
        for i, j in np.ndindex(values.shape):
            if np.isfinite(values[i, j]):
                best = (i, j) == (row, column)
                text = f"{values[i, j]:.2f}"
                colour = "white" if values[i, j] > 6 else "black"
                at = found["b"][j], found["a"][i]
                frame = {"facecolor": "none", "edgecolor": "black", "linewidth": 1.5, "pad": 2.5}
                axes.text(
                    *at, text, ha="center", va="center", fontsize=7, c=colour,
                    weight="bold" if best else "normal", bbox=frame if best else None,
                )  # fmt: skip
        axes.set_title(f"{tile['algorithm']}: {tile['points']}, {found['layer']}", fontsize=11)
        axes.set(xlabel="b", ylabel="a")
    return figure
