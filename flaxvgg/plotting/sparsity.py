"""Pictures of zeros: by layer, by channel, and by place in the photo."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.files.foreign import plain
from flaxvgg.plotting.figures import literal, new_figure
from flaxvgg.sparsity.summary import headline, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flaxvgg.sparsity.report import SparsityReport
    from flaxvgg.sparsity.survey import Example

_ZERO, _SILENT, _BETWEEN = (0, 0, 0), (62, 98, 140), (128, 128, 128)  # black; blue; grey
_CMAP = "inferno_r"  # black where every channel is zero, as zeros are in the sheets
_ASPECT = 2.2  # of a sheet of maps, width to height
_LARGEST_MAP = 32  # pixels of a map on a sheet


def layers_figure(
    report: "SparsityReport",
    zeros: Mapping[str, Float[np.ndarray, " n"]] | None = None,
    title: str = "",
) -> "Figure":
    """Zeros by layer, beside what was negative before each ReLU, and silent channels below.

    `zeros` holds the fraction of zeros of each image (N,) by layer: their spread is drawn too.
    """
    layers = list(report)
    places = np.arange(len(layers))
    width = max(0.52 * len(places) + 1.5, 7)
    figure = new_figure(figsize=(width, 6.6), dpi=120, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])

    percent = np.array([100 * layer.zero_fraction for layer in layers])
    is_relu = np.array([layer.kind == "relu" for layer in layers])
    handles = []
    for which, colour, after in ((is_relu, "C0", "a ReLU"), (~is_relu, "0.72", "another layer")):
        if which.any():
            label = f"zeros after {after}"
            handles.append(top.bar(places[which], percent[which], 0.78, color=colour, label=label))
    before = {
        i: 100 * layer.negatives_before.sum() / layer.values.sum()
        for i, layer in enumerate(layers)
        if layer.negatives_before is not None
    }
    if before:
        style = {"ls": "", "marker": "_", "markersize": 17, "markeredgewidth": 3, "color": "C1"}
        label = "negative before the ReLU"
        handles += top.plot(list(before), list(before.values()), label=label, **style)
    if zeros is not None and report.images > 1:
        edges = 100 * np.array([(zeros[name].min(), zeros[name].max()) for name in report.layers])
        label = "lowest to highest photo"
        handles.append(top.vlines(places, *edges.T, color="black", lw=1.4, label=label))
    for place, value in zip(places, percent, strict=True):
        top.text(
            place,
            1.2,
            f"{value:.0f}",
            ha="center",
            fontsize=8,
            color="white" if is_relu[place] and value > 4 else "black",
        )
    top.set(ylabel="zeros, %", ylim=(0, 100), xlim=(-0.6, max(len(places), 8) - 0.4))
    top.set_title(headline(report), fontsize=13, loc="left")

    channels = np.array([layer.channels for layer in layers])
    silent = 100 * np.array([layer.silent.sum() for layer in layers]) / channels / report.images
    dead = np.array([layer.dead.sum() for layer in layers])
    label = "channels silent in an image, on average"
    handles.append(bottom.bar(places, silent, 0.78, color="0.85", label=label))
    if report.images > 1:
        label = f"silent in all {report.images:,} ({dead.sum() or 'none'})"
        handles.append(bottom.bar(places, 100 * dead / channels, 0.5, color="C3", label=label))
    bottom.set(ylabel="silent channels, %", ylim=(0, max(5, 1.15 * silent.max())))
    bottom.set_xticks(places, list(report.layers), rotation=40, ha="right", fontsize=8)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    for ax in (top, bottom):
        ax.grid(axis="y", alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    title = title or f"{report.arch}, {report.source}: {report.images:,} images"
    figure.suptitle(literal(title), fontsize=10)
    return figure


def maps_figure(examples: "Sequence[Example]", layer: str, title: str) -> "Figure":
    """All feature maps of one layer for a few photos."""
    sheets = [map_sheet(example.maps) for example in examples]
    height = 10.5 * sheets[0].shape[0] / sheets[0].shape[1] + 0.35
    figsize = (13, height * len(examples) + 0.4)
    figure = new_figure(figsize=figsize, dpi=110, layout="constrained")
    rows = figure.subplots(len(examples), 2, squeeze=False, width_ratios=[1, 5])
    for (left, right), example, sheet in zip(rows, examples, sheets, strict=True):
        maps = example.maps
        silent = int((maps == 0).all(axis=(0, 1)).sum())
        left.imshow(example.pixels)
        left.set_title(_short(example.photo), fontsize=10)
        right.imshow(sheet, interpolation="nearest")
        right.set_title(
            f"{layer}: {silent} of {maps.shape[-1]} maps are zero everywhere (blue), "
            f"{percent(np.mean(maps == 0))} of all values are zero (black)",
            fontsize=10,
        )
        for ax in (left, right):
            ax.set_axis_off()
    told = "each map as bright as it is beside its own largest value"
    figure.suptitle(literal(f"{title}; {told}"), fontsize=10)
    return figure


def where_figure(examples: "Sequence[Example]", title: str) -> "Figure":
    """Where the zeros are in a few photos: the fraction of channels that are zero, by place."""
    layers = list(examples[0].where)
    count, columns = len(examples), 1 + len(layers)
    height, width, _ = examples[0].pixels.shape
    cell = 2.15 * height / width + 0.25  # inches
    figsize = (max(2.15 * columns, 6), cell * count + 1)
    figure = new_figure(figsize=figsize, dpi=110, layout="constrained")
    *axes, bars = figure.subplots(count + 1, columns, height_ratios=[cell] * count + [0.1])
    for row, example in zip(axes, examples, strict=True):
        row[0].imshow(example.pixels)
        row[0].set_title(_short(example.photo), fontsize=9)
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    bars[0].set_axis_off()
    for *column, bar, layer in zip(*(row[1:] for row in axes), bars[1:], layers, strict=True):
        column[0].set_title(layer, fontsize=9)
        low, high = share_range(examples, layer)
        style = {"cmap": _CMAP, "vmin": 100 * low, "vmax": 100 * high, "interpolation": "nearest"}
        images = [
            ax.imshow(100 * example.where[layer], **style)
            for ax, example in zip(column, examples, strict=True)
        ]
        figure.colorbar(images[0], cax=bar, orientation="horizontal")
        bar.tick_params(labelsize=8)
        bar.set_xlabel("channels at zero, %", fontsize=8)
    figure.suptitle(literal(title), fontsize=10)
    return figure


def share_range(examples: "Sequence[Example]", layer: str) -> tuple[float, float]:
    """The smallest and the largest fraction of channels that are zero at a place of some photo."""
    shares = np.concatenate([example.where[layer].ravel() for example in examples])
    return float(shares.min()), float(shares.max())


def map_sheet(maps: Float[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "H W 3"]:
    """All channels of one feature map side by side, in order, as colours.

    A channel is as bright as its values are large beside its own largest; zeros are black, and a
    channel that is zero everywhere is blue. Large maps are thinned out to 32 pixels,
    small ones enlarged to about 16.
    """
    from matplotlib import colormaps

    h, w, c = maps.shape
    step = math.ceil(max(h, w) / _LARGEST_MAP)
    largest = maps.max(axis=(0, 1))
    maps = maps[step // 2 :: step, step // 2 :: step]
    zoom = max(1, _LARGEST_MAP // (2 * max(maps.shape[:2])))
    maps = maps.repeat(zoom, axis=0).repeat(zoom, axis=1)
    h, w, _ = maps.shape
    shown = np.where(maps > 0, 0.25 + 0.75 * maps / np.where(largest > 0, largest, 1), 0)
    colours = (255 * colormaps["inferno"](shown)[..., :3]).round().astype(np.uint8)
    colours[maps == 0] = _ZERO
    colours[:, :, largest == 0] = _SILENT
    wanted = math.sqrt(c * _ASPECT * (h + 1) / (w + 1))
    columns = min((d for d in range(1, c + 1) if c % d == 0), key=lambda d: abs(d - wanted))
    rows = c // columns
    tiles = np.full((c, h + 1, w + 1, 3), _BETWEEN, np.uint8)
    tiles[:, 1:, 1:] = colours.transpose(2, 0, 1, 3)
    sheet = tiles.reshape(rows, columns, h + 1, w + 1, 3).swapaxes(1, 2)
    return sheet.reshape(rows * (h + 1), columns * (w + 1), 3)


def _short(photo: Path) -> str:
    """A photo's name as far as there is room."""
    return literal(plain(photo.stem)[:18])
