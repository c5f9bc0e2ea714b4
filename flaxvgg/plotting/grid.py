"""Grids of maps over photos, in inches: what every picture of maps is laid out by."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.files.foreign import plain
from flaxvgg.plotting.figures import WARNING, draw_heat, literal, new_figure, overlay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Everything is placed in inches, so that no text meets another whatever the grid.
_AREA, _SMALL_AREA = 2.1, 1.35  # of a panel: the square root, in inches; with more than _FEW rows
_FEW = 4
_LEFT, _RIGHT, _TOP, _BOTTOM, _GAP = 0.25, 0.25, 1.3, 0.75, 0.1
_PER_INCH = 12.5  # characters of the small print
_ASPECT = 1.4  # of a picture with many rows, width to height
_SMALL = {"fontsize": 8, "color": "0.35"}


class Panel(NamedTuple):
    """A map in [0, 1], or in [-1, 1] where they are signed; its peak (x, y), and a warning."""

    heat: Float[np.ndarray, "h w"]
    peak: tuple[int, int] | None = None
    warning: str = ""


class Row(NamedTuple):
    """A row of maps, its name, and what stands below it in small print."""

    name: str
    below: str
    panels: Sequence[Panel]


class Words(NamedTuple):
    """What is written: headings, the scale of the maps, and what its ends and middle are called."""

    name: str
    title: str
    note: str
    ticks: tuple[str, str, str]


def grid_figure(
    pixels: UInt8[np.ndarray, "h w 3"],
    rows: Sequence[Row],
    columns: Sequence[str],
    words: Words,
    *,
    signed: bool = False,
) -> "Figure":
    """One photo with rows of maps, in columns that have names of at most four lines.

    Many rows stand in two blocks or more, side by side, so that the picture fits a page.
    """
    height, width = pixels.shape[:2]
    area = _AREA if len(rows) <= _FEW else _SMALL_AREA
    w, h = area * np.sqrt(width / height), area * np.sqrt(height / width)
    pitch = max(w, 1.5) + _GAP  # narrow photos need room for the classes' names
    labels = max(len(x) for row in rows for x in (row.name, "whole network")) / _PER_INCH + 0.2
    first = _LEFT + pitch + labels
    block = labels + len(columns) * pitch
    blocks = _blocks(len(rows), first - labels + _RIGHT, block, h + _GAP)
    per_block = -(-len(rows) // blocks)
    wide = first - labels + blocks * block + _RIGHT
    high = _TOP + per_block * (h + _GAP) + _BOTTOM
    figure = new_figure(figsize=(wide, high), dpi=110)

    def panel(x: float, y: float, w: float, h: float) -> "Axes":
        ax = figure.add_axes((x / wide, 1 - (y + h) / high, w / wide, h / high))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        return ax

    def write(x: float, y: float, text: str, **kwargs) -> None:
        kwargs = {"fontsize": 9, "linespacing": 1.1} | kwargs
        figure.text(x / wide, 1 - y / high, literal(text), **kwargs)

    write(_LEFT, 0.3, wrap(words.name, 0.75 * wide, 1), fontsize=12)
    write(_LEFT, 0.52, wrap(words.title, wide - 0.4, 1), **_SMALL)
    panel(_LEFT, _TOP, w, h).imshow(pixels)
    write(_LEFT, _TOP - 0.08, f"photo, {height}x{width}")
    for i, row in enumerate(rows):
        column, line = divmod(i, per_block)
        x, y = first + column * block, _TOP + line * (h + _GAP)
        label = f"{row.name}\n{wrap(row.below, labels - 0.1, 2)}"
        write(x - 0.12, y + h / 2, label, ha="right", va="center")
        for k, one in enumerate(row.panels):
            _draw(panel(x + k * pitch, y, w, h), pixels, one, signed)
    for column in range(blocks):
        for k, name in enumerate(columns):
            told = "\n".join(wrap(line, pitch - _GAP, 2) for line in name.split("\n"))
            write(first + column * block + k * pitch, _TOP - 0.08, told)

    bar = panel(first, high - _BOTTOM + 0.12, max(w, 1.5), 0.12)
    ramp = np.tile(np.linspace(-1 if signed else 0, 1, 256), (8, 1))
    ground = np.full((8, 256, 3), 128.0)
    bar.imshow(overlay(ground, ramp, signed=signed), extent=(0, 1, 0, 1), aspect="auto")
    bar.set_xticks([0, 0.5, 1], [literal(text) for text in words.ticks])
    bar.tick_params(labelsize=8, length=2)
    note = wrap(words.note, first - _LEFT, 4)
    write(_LEFT, high - _BOTTOM + 0.12, note, va="top", **_SMALL)
    return figure


def images_figure(
    pictures: UInt8[np.ndarray, "n h w 3"],
    heat: Float[np.ndarray, "n k h w"],
    titles: Sequence[Sequence[str]],
    title: str,
    *,
    signed: bool = False,
) -> "Figure":
    """A row for each image and a column for each of its maps, with a title of two lines."""
    count, columns, height, width = heat.shape
    size = (1 + columns) * _AREA * np.sqrt(width / height), count * _AREA * np.sqrt(height / width)
    figure = new_figure(
        figsize=(max(size[0], 5) + 0.4, size[1] + 0.45 * count + 0.6), layout="constrained"
    )
    axes = figure.subplots(count, 1 + columns, squeeze=False)
    for row, picture, maps, names in zip(axes, pictures, heat, titles, strict=True):
        row[0].imshow(picture)
        for ax, one, name in zip(row[1:], maps, names, strict=True):
            draw_heat(ax, picture, one, signed=signed)
            lines = [textwrap.shorten(plain(x), 38, placeholder=" …") for x in name.split("\n")]
            ax.set_title(literal("\n".join(lines)), fontsize=9)
        for ax in row:
            ax.set_axis_off()
    figure.suptitle(literal(textwrap.fill(plain(title), int(13 * max(size[0], 5)))), fontsize=10)
    return figure


def wrap(text: str, inches: float, lines: int) -> str:
    """The text in so many lines at most, each no longer than so many inches of the small print."""
    width = max(8, int(inches * _PER_INCH))
    return textwrap.fill(plain(text), width, max_lines=lines, placeholder=" …")


def _blocks(rows: int, beside: float, block: float, row: float) -> int:
    """In how many blocks side by side the rows are nearest to the shape of a page."""
    if rows <= _FEW:
        return 1

    def off(blocks: int) -> float:
        high = _TOP + -(-rows // blocks) * row + _BOTTOM
        return abs(np.log((beside + blocks * block) / high / _ASPECT))

    return min(range(1, rows + 1), key=off)


def _draw(ax: "Axes", pixels: np.ndarray, panel: Panel, signed: bool) -> None:
    draw_heat(ax, pixels, panel.heat, signed=signed)
    if panel.peak:
        for colour, size in (("black", 8), ("white", 6)):
            style = {"markerfacecolor": "none", "markeredgecolor": colour, "markersize": size}
            ax.plot(*panel.peak, "o", clip_on=False, **style)
    if panel.warning:
        box = {"facecolor": "white", "edgecolor": WARNING, "boxstyle": "round"}
        middle = {"ha": "center", "va": "center", "transform": ax.transAxes}
        y = 0.1 if panel.peak else 0.5
        ax.text(0.5, y, panel.warning, fontsize=9, color=WARNING, bbox=box, **middle)
