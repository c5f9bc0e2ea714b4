"""The picture of the demonstration."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from flaxvgg.files.foreign import plain
from flaxvgg.plotting.figures import draw_heat, enlarge, literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Maps(NamedTuple):
    """A row of the picture: what the maps are, one for each photo in [0, 1], and their titles."""

    label: str
    heats: Float[np.ndarray, "n h w"]
    titles: Sequence[str] = ()


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
    title: str,
) -> "Figure":
    """Photos, what their features have in common, heat maps of them, and how many are zero.

    `alike` are a layer and its feature maps, `zeros` the fraction of zeros of each photo (N,) by
    layer.
    """
    columns, rows = len(names), 2 + len(maps)
    height = 1.93 * rows
    figure = new_figure(
        figsize=(max(1.75 * columns, 8), height + 3.0), dpi=110, layout="constrained"
    )
    top, bottom = np.ravel(figure.subfigures(2, 1, height_ratios=[height, 3.0]))
    axes = top.subplots(rows, columns, squeeze=False)
    colours = components_rgb(alike[1])
    for i, (name, picture) in enumerate(zip(names, pictures, strict=True)):
        size = picture.shape[:2]
        rgb = np.stack([enlarge(colours[i, ..., k], size) for k in range(3)], axis=-1)
        axes[0, i].imshow(picture)
        axes[0, i].set_title(literal(_short(name)), fontsize=9)
        axes[1, i].imshow(np.clip(rgb, 0, 1))
        for ax, row in zip(axes[2:, i], maps, strict=True):
            draw_heat(ax, picture, row.heats[i])
            if row.titles:
                ax.set_title(literal(row.titles[i]), fontsize=9)
    labels = ("photo", f"what is alike\n({alike[0]})", *(row.label for row in maps))
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label, fontsize=9)
        for ax in row:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    _zeros_axes(bottom.subplots(), names, zeros)
    figure.suptitle(literal(f"{title}: what it sees in {columns} photos"), fontsize=12)
    return figure


def _zeros_axes(ax, names: Sequence[str], zeros: Mapping[str, np.ndarray]) -> None:
    layers = list(zeros)
    percent = 100 * np.array([zeros[layer] for layer in layers])
    for i, name in enumerate(names):
        ax.plot(percent[:, i], color=f"C{i}", linewidth=1, alpha=0.6, label=_short(name))
    ax.plot(percent.mean(axis=1), color="black", linewidth=2.5, marker="o", label="mean")
    for i, layer in enumerate(layers):
        if layer.startswith("pool"):
            ax.axvspan(i - 0.5, i + 0.5, color="0.93", zorder=0)
    ax.annotate(
        f"{percent[-1].mean():.0f} % of {layers[-1]} is zero",
        (len(layers) - 1, percent[-1].mean()),
        xytext=(-130, -70),
        textcoords="offset points",
        arrowprops={"arrowstyle": "->"},
    )
    ax.set_xticks(range(len(layers)), layers, rotation=40, ha="right", fontsize=8)
    ax.set(ylabel="zeros, %", ylim=(0, 100), xlim=(-0.5, len(layers) - 0.5))
    ax.grid(axis="y", alpha=0.3)
    legend = ax.legend(fontsize=8, ncols=2, loc="upper left", frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _short(name: str) -> str:
    """A photo's name as far as there is room; a legend leaves out what begins with "_"."""
    return plain(name).replace("_", " ")[:18]
