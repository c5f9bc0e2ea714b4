"""The picture of the study."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: dict[str, Any]) -> "Figure":
    """Left: fc6 by the fraction of non-zeros. Right: the whole forward pass."""
    figure = new_figure(figsize=(10, 4.2), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    _fc6(left, results)
    _whole(right, results["whole"])
    return figure


def _fc6(ax, results: dict[str, Any]) -> None:
    sweep, photos = results["sweep"], list(results["photos"].values())
    nonzero = [100 * point["nonzero"] for point in sweep]
    ax.plot(nonzero, [p["time"]["skip"]["ms"] for p in sweep], "o-", label="skipping", zorder=3)
    for name, (label, colour) in {
        "dense": ("XLA's dense product", "C1"),
        "torch": ("PyTorch's Linear", "C3"),
    }.items():
        level = np.median([photo["time"][name]["ms"] for photo in photos])
        ax.axhline(level, color=colour, linestyle="--", label=label)
    seen = [100 * photo["nonzero"] for photo in photos]
    ax.axvspan(min(seen), max(seen), color="C0", alpha=0.15, label="pool5 of eight photos")
    ax.set(xlabel="values that are not zero, %", ylabel="ms", xlim=(0, 100), ylim=(0, None))
    ax.set_title("fc6 of one image: time follows the non-zeros", fontsize=11)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)


def _whole(ax, whole: dict[str, Any]) -> None:
    names = list(whole)
    times = [whole[name]["ms"] for name in names]
    colours = ["C0" if name == "skipping" else "0.6" for name in names]
    bars = ax.barh(names, times, color=colours)
    ax.bar_label(bars, [f"{ms:.0f}" for ms in times], padding=3, fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="ms", xlim=(0, 1.15 * max(times)))
    ax.set_title("the whole forward pass", fontsize=11)
