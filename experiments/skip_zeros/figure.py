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
    for name, (label, colour, line) in {
        "dense": ("XLA's dense product", "#b45f06", "--"),
        "torch": ("PyTorch's Linear", "0.25", ":"),
    }.items():
        levels = [photo["time"][name]["ms"] for photo in photos]
        ax.axhline(np.median(levels), color=colour, linestyle=line, linewidth=2, label=label)
        ax.axhspan(min(levels), max(levels), color=colour, alpha=0.12, linewidth=0)
    seen = [100 * photo["nonzero"] for photo in photos]
    ax.axvspan(min(seen), max(seen), color="C0", alpha=0.15, label="pool5 of eight photos")
    ax.set(xlabel="values that are not zero, %", ylabel="ms", xlim=(0, 100), ylim=(0, None))
    ax.set_title(
        "fc6 of one image: time follows the non-zeros\n(grey and brown: from photo to photo)",
        fontsize=11,
    )
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)


def _whole(ax, whole: dict[str, Any]) -> None:
    names = list(whole)
    times = [whole[name]["ms"] for name in names]
    colours = ["C0" if name == "skipping" else "0.6" for name in names]
    # Both were timed in turns: what varies is the ratio, in the first one's time.
    low, high = (
        [abs(whole[name]["ratio"][i] - whole[name]["ratio"][1]) * times[0] for name in names]
        for i in (0, 2)
    )
    ends = [time + more for time, more in zip(times, high, strict=True)]
    ax.barh(names, times, color=colours, xerr=(low, high), capsize=4)
    for place, (time, end) in enumerate(zip(times, ends, strict=True)):
        ax.text(end + 2, place, f"{time:.0f}", va="center", fontsize=9)
    ax.invert_yaxis()
    ax.set(xlabel="ms; quartiles of the ratio, turn by turn", xlim=(0, 1.15 * max(ends)))
    ax.set_title("the whole forward pass", fontsize=11)
