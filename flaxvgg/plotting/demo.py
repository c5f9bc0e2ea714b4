"""The picture of the demonstration."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.files.foreign import plain
from flaxvgg.plotting.figures import draw_heat, enlarge, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_ABREAST = 9  # photos beside one another, of several rows


class Maps(NamedTuple):
    """A row of the picture: what the maps are, one for each photo in [0, 1], and their titles."""

    caption: str
    heats: Float[np.ndarray, "n h w"]
    titles: Sequence[str] = ()


class Sum(NamedTuple):
    """How many values of the last feature map are zero, of one photo at one size (H, W)."""

    size: tuple[int, int]
    zeros: int
    values: int

    @property
    def name(self) -> str:
        """The size as people write it: width x height."""
        return f"{self.size[1]}x{self.size[0]}"


def components_rgb(features: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w 3"]:
    """The three principal components of feature vectors, over all maps, as colours in [0, 1].

    Places with the same colour have similar features, within a photo and between photos.
    """
    n, h, w, c = features.shape
    vectors = features.reshape(-1, c).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    scores = centred @ axes[:, :-4:-1]
    # Ranks use every colour equally often, however the components are distributed.
    ranks = scores.argsort(axis=0).argsort(axis=0) / max(len(scores) - 1, 1)
    return ranks.reshape(n, h, w, 3)


def demo_figure(
    names: Sequence[str],
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]],
    alike: tuple[str, Float[np.ndarray, "n y x c"]],
    maps: Sequence[Maps],
    zeros: Mapping[str, Float[np.ndarray, " n"]],
    sums: Sequence[Sum],
    title: str,
) -> "Figure":
    """Photos, what their features have in common, heat maps of them, and how many are zero.

    `alike` are a layer and its feature maps, `zeros` the fraction of zeros of each photo (N,) by
    layer, and `sums` those of the first photo's last feature map at several sizes.
    """
    columns, rows = len(names), 2 + len(maps)
    layer, features = alike
    # Of a few photos several rows fit beside one another.
    beside = max(n for n in (1, 2, 3, 4) if n == 1 or (n * columns <= _ABREAST and rows % n == 0))
    width = max(1.75 * columns * beside, 11)
    side = width / columns / beside
    # A row: the caption and the titles, and below them the images, which are about square.
    row_height = min(side, 3.0) + (0.5 if beside == 1 else 1.1)
    lines = rows // beside
    figure = new_figure(figsize=(width, row_height * lines + 3.7), dpi=110, layout="constrained")
    *upper, lower = np.ravel(
        figure.subfigures(lines + 1, 1, height_ratios=[row_height] * lines + [3.3])
    )
    parts = [part for line in upper for part in np.ravel(line.subfigures(1, beside))]
    captions = (
        "The photos",
        f"{layer}: the first three principal components of its {features.shape[-1]} channels as "
        "red, green and blue; places of one colour have similar features",
        *(row.caption for row in maps),
    )
    grid = []
    for part, caption in zip(parts, captions, strict=True):
        told = literal(textwrap.fill(caption, int(11 * width / beside)))
        part.suptitle(told, x=0.006, ha="left", fontsize=10, fontweight="bold")
        axes = part.subplots(1, columns, squeeze=False)[0]
        for ax in axes:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        grid.append(axes)
    colours = components_rgb(features)
    for i, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        size = picture.shape[:2]
        rgb = np.stack([enlarge(colours[i, ..., k], size) for k in range(3)], axis=-1)
        grid[0][i].imshow(picture)
        grid[0][i].set_title(literal(_short(name)), fontsize=9)
        grid[1][i].imshow(np.clip(rgb, 0, 1))
        for axes, row in zip(grid[2:], maps, strict=True):
            draw_heat(axes[i], picture, row.heats[i])
            if row.titles:
                axes[i].set_title(literal(row.titles[i]), fontsize=9)
    left, right = lower.subplots(1, 2, width_ratios=[2.4, 1])
    _zeros_axes(left, names, zeros)
    _sums_axes(right, names[0], list(zeros)[-1], sums)
    scaled = "heat maps: each from its own lowest to its own highest value, line at half"
    figure.suptitle(literal(f"{title}\n{scaled}"), fontsize=11)
    return figure


def _zeros_axes(ax, names: Sequence[str], zeros: Mapping[str, np.ndarray]) -> None:
    layers = list(zeros)
    percent = 100 * np.array([zeros[layer] for layer in layers])
    middle = np.median(percent, axis=1)
    places = np.arange(len(layers))
    if len(names) > 1:
        edges = percent.min(axis=1), percent.max(axis=1)
        label = f"lowest to highest of {len(names)} photos"
        ax.fill_between(places, *edges, color="C0", alpha=0.25, linewidth=0, label=label)
    label = "median" if len(names) > 1 else _short(names[0])
    ax.plot(places, middle, color="C0", linewidth=2, marker="o", markersize=4, label=label)
    for i, layer in enumerate(layers):
        if layer.startswith("pool"):
            ax.axvspan(i - 0.5, i + 0.5, color="0.93", zorder=0)
    ax.annotate(
        f"{middle[-1]:.1f} % of {layers[-1]} is zero",
        (len(layers) - 1, middle[-1]),
        xytext=(-150, -75),
        textcoords="offset points",
        arrowprops={"arrowstyle": "->"},
    )
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)
    ax.set(ylabel="zeros, %", ylim=(0, 100), xlim=(-0.5, len(layers) - 0.5))
    ax.set_title(
        "Share of exact zeros after each ReLU and each max pooling (grey)",
        fontsize=10,
        fontweight="bold",
        loc="left",
    )
    ax.grid(axis="y", alpha=0.3)
    legend = ax.legend(fontsize=8, ncols=3, loc="lower right", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _sums_axes(ax, name: str, layer: str, sums: Sequence[Sum]) -> None:
    for i, one in enumerate(sums):
        share = 100 * one.zeros / one.values
        ax.barh(i, share, color="0.75", height=0.5)
        ax.barh(i, 100 - share, left=share, color="C1", height=0.5)
        rest = one.values - one.zeros
        told = f"{one.name} pixels: {one.values:,} values, {rest:,} not zero"
        ax.text(0, i - 0.33, told, fontsize=9, va="bottom")
        ax.text(2, i, f"{one.zeros:,} zero ({share:.1f} %)", fontsize=9, va="center")
    ax.set(xlim=(0, 100), ylim=(len(sums) - 0.5, -0.7), yticks=[], xlabel="% of the values")
    ax.set_title(
        f"{layer} of “{literal(_short(name))}” at three sizes",
        fontsize=10,
        fontweight="bold",
        loc="left",
    )
    ax.spines[["top", "right", "left"]].set_visible(False)


def _short(name: str) -> str:
    """A photo's name as far as there is room; a legend leaves out what begins with "_"."""
    return plain(name).replace("_", " ")[:18]
