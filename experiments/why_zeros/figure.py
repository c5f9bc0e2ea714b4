"""The figure: one panel for each explanation, drawn from the results alone."""

from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.why_zeros import information, initialisation, negatives
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINED, _OTHER, _THIRD, _ZERO = "#c2410c", "#2563eb", "#0f766e", "0.72"
_TEXT = {"fontsize": 9.5, "color": "0.25"}


def draw(results: dict[str, Any]) -> "Figure":
    """The figure of a study's results: a question and its answer above each panel."""
    figure = new_figure(figsize=(14, 14), dpi=90, layout="constrained")
    axes = figure.subplots(3, 3).ravel()
    zeros, what = _map(axes[0], results["map"])
    _title(axes[0], f"Why are {zeros} of my features zero?", what)
    for (letter, (question, panel)), ax in zip(_PANELS.items(), axes[1:], strict=True):
        answer = panel(ax, results[letter])
        _title(ax, f"({letter}) {question}", answer)
        ax.spines[["top", "right"]].set_visible(False)
    return figure


def _title(ax: "Axes", question: str, answer: str) -> None:
    ax.set_title(question, fontsize=13, fontweight="bold", pad=24)
    ax.text(0.5, 1.025, answer, transform=ax.transAxes, ha="center", fontsize=11.5)


def _map(ax: "Axes", found: dict) -> tuple[str, str]:
    """Every value of pool5; the fraction of zeros, and what is drawn."""
    height, width, channels = found["shape"]
    size = height * width * channels
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(found["bits"]), np.uint8))[:size]
    maps = bits.reshape(height, width, channels).transpose(2, 0, 1)
    # The channels side by side, with a line between them.
    rows = 2 ** (int(np.log2(channels)) // 2)
    framed = np.pad(maps.astype(float), ((0, 0), (0, 1), (0, 1)), constant_values=0.5)
    tiled = framed.reshape(rows, channels // rows, height + 1, width + 1).transpose(0, 2, 1, 3)
    picture = tiled.reshape(rows * (height + 1), -1)
    colours = np.array([(1, 1, 1), (0.88, 0.88, 0.88), (0.76, 0.25, 0.05)])
    ax.imshow(colours[(2 * picture).astype(int)], interpolation="nearest", aspect="auto")
    ax.set(xticks=[], yticks=[])
    what = f"pool5 of “{found['photo']}”: {channels} x {height}x{width}, white is 0"
    return f"{100 * (1 - found['non_zero'] / size):.0f} %", what


def _negatives(ax: "Axes", found: dict) -> str:
    layers = found["layers"]
    edges = negatives.EDGES
    centres = (edges[1:] + edges[:-1]) / 2
    for i, row in enumerate(layers):
        # The outermost bins hold everything beyond, which would look like a second peak.
        density = np.array(row["histogram"], float)
        density[[0, -1]] = density[[1, -2]]
        top = -i + 1.6 * density / density.max()
        ax.fill_between(centres, -i, top, where=centres < 0, color=_ZERO, zorder=i, lw=0)
        ax.fill_between(centres, -i, top, where=centres > 0, color=_TRAINED, zorder=i, lw=0)
        ax.plot(centres, top, color="white", lw=1, zorder=i)
        share = row["negative_before"] / row["values"]
        ax.text(-4.9, -i + 0.12, row["layer"], **_TEXT)
        ax.text(3.1, -i + 0.12, f"{100 * share:.0f} % < 0", ha="left", **_TEXT)
    ax.set(xlim=(-5, 5), yticks=[], xlabel="pre-activation, standard deviations")
    ax.spines["left"].set_visible(False)
    zero, negative = (sum(row[key] for row in layers) for key in ("zero_after", "negative_before"))
    share = negative / zero
    return f"{'yes' if share > 0.99 else 'in part'}: {100 * share:.4g} % of the zeros were"


def _initialisation(ax: "Axes", found: dict) -> str:
    networks = {row["network"]: row for row in found["networks"]}
    styles = {
        initialisation.TRAINED: ("trained", _TRAINED, "-", 3),
        initialisation.NO_BIASES: ("trained, no biases", "black", ":", 1.5),
        initialisation.SHUFFLED: ("trained, shuffled filters", "0.6", "-", 1.5),
        initialisation.PYTORCH: ("PyTorch's default", _OTHER, "-", 2),
        initialisation.HE: ("He (torchvision)", _THIRD, "-", 2),
    }
    for name, (label, colour, line, width) in styles.items():
        ax.plot(100 * np.array(networks[name]["zeros"]), line, color=colour, lw=width, label=label)
    ticks = [(i, layer) for i, layer in enumerate(found["layers"]) if layer.startswith("pool")]
    for i, _ in ticks:
        ax.axvspan(i - 0.5, i + 0.5, color="0.94", zorder=0)
    ax.set_xticks(*zip(*ticks, strict=True))
    ax.set(ylim=(0, 100), ylabel="zeros, %", xlim=(-0.5, len(found["layers"]) - 0.5))
    ax.legend(fontsize=9, frameon=False, loc="lower right")
    at = {name: 100 * networks[name]["pool5"]["mean"] for name in networks}
    untrained = sorted((at[initialisation.HE], at[initialisation.PYTORCH]))
    low, high = untrained
    return f"trained {at[initialisation.TRAINED]:.0f} %, untrained {low:.0f} to {high:.0f} %"


def _detail(ax: "Axes", found: dict) -> str:
    kinds = {row["kind"]: row for row in found["kinds"]}
    colours = {"uniform": "0.45", "textures": _THIRD, "noise": _OTHER, "photos": _TRAINED}
    for group, colour in colours.items():
        rows = [row for row in found["kinds"] if row["group"] == group]
        x = np.concatenate([row["detail"] for row in rows])
        y = 100 * np.concatenate([row["zeros"] for row in rows])
        label = {"uniform": "one colour, ramp", "textures": "textures, chequers"}.get(group, group)
        ax.scatter(x, y, s=26, color=colour, label=label, zorder=3, alpha=0.85, lw=0)
    series = [row for row in found["kinds"] if row["group"] == "blurred"] + [kinds["photos"]]
    x = np.array([row["detail"] for row in series])
    y = 100 * np.array([row["zeros"] for row in series])
    ax.plot(x, y, color=_TRAINED, lw=0.8, alpha=0.45)
    ax.plot([], [], color=_TRAINED, lw=0.8, alpha=0.6, label="the same photos, blurred")
    ax.set_xscale("symlog", linthresh=0.5)
    ticks = (0, 1, 3, 10, 30, 100)
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.set(xlabel="detail: mean step between pixels, of 255", ylabel="zeros in pool5, %")
    lowest = 100 * min(min(row["zeros"]) for row in found["kinds"])
    ax.set_ylim(lowest - 11, 100)  # with room for the legend
    ax.minorticks_off()
    ax.legend(fontsize=9, frameon=False, loc="lower left")
    least = min(min(row["zeros"]) for row in found["kinds"])
    grey, photos = (100 * kinds[kind]["pool5"]["mean"] for kind in ("one grey", "photos"))
    return f"grey {grey:.0f} %, photos {photos:.0f} %, none below {100 * least:.0f} %"


def _size(ax: "Axes", found: dict) -> str:
    first, _, mirror, *larger = found["sizes"]
    rows = [first, mirror, *larger]
    names = [row["images"].replace(", not enlarged but mirrored", "\nmirrored") for row in rows]
    _photo_dots(ax, [row["zeros"] for row in rows])
    reader = found["reader"]
    theirs = 100 * (1 - reader["non_zero"] / reader["values"])
    star = {"color": "black", "mec": "white", "ms": 13, "zorder": 4, "clip_on": False}
    ax.plot(len(rows) - 1.32, theirs, "*", label=f"a reader's image, {theirs:.1f} %", **star)
    ax.legend(fontsize=9, frameon=False, loc="lower right")
    ax.set_xticks(range(len(rows)), names)
    ax.set(ylabel="zeros in pool5, %", xlim=(-0.5, len(rows) - 0.5))
    enlarged = " and ".join(f"{100 * row['pool5']['mean']:.0f}" for row in larger)
    return f"photos enlarged: {enlarged} %, only mirrored: {100 * mirror['pool5']['mean']:.0f} %"


def _preprocessing(ax: "Axes", found: dict) -> str:
    rows = found["recipes"]
    _photo_dots(ax, [row["zeros"] for row in rows])
    ax.legend(fontsize=9, frameon=False, loc="lower right")
    names = [row["recipe"].replace(" subtracted", "").replace(", ", ",\n") for row in rows]
    names = [name.replace(" for ", "\nfor ").replace(" means", "\nmeans") for name in names]
    ax.set_xticks(range(len(rows)), names, fontsize=8.5)
    ax.set(ylabel="zeros in pool5, %", xlim=(-0.5, len(rows) - 0.5))
    changes = [100 * row["more"]["mean"] for row in rows]
    return (
        f"{rows[1]['recipe']}: {changes[1]:+.1f} points; "
        f"wrong scale: {min(changes):+.0f} to {max(changes):+.0f}"
    )


def _photo_dots(ax: "Axes", columns: list[list[float]]) -> None:
    """A dot for each photo in each column, the same photo joined by a line, and the means."""
    percent = 100 * np.array(columns)
    ax.plot(percent, color=_TRAINED, lw=0.8, alpha=0.45, marker="o", ms=4)
    ax.plot([], [], color=_TRAINED, lw=0.8, alpha=0.6, marker="o", ms=4, label="a photo")
    for i, mean in enumerate(percent.mean(axis=1)):
        label = "mean of the photos" if not i else None
        ax.plot([i - 0.2, i + 0.2], [mean, mean], color="black", lw=2.5, zorder=3, label=label)
        # On the lines between two columns, which it interrupts.
        ax.annotate(
            f"{mean:.0f}", (i + 0.24, mean), va="center", fontsize=10, fontweight="bold", zorder=5,
            bbox={"facecolor": "white", "linewidth": 0, "pad": 0.8, "alpha": 0.85},
        )  # fmt: skip
    ax.set_ylim(min(65, percent.min() - 2), 100)


def _pooling(ax: "Axes", found: dict) -> str:
    rows = found["pools"]
    x = np.arange(len(rows))
    before, after, independent, channel = (
        100 * np.array([row[key] for row in rows])
        for key in ("before", "after", "independent", "independent_in_a_channel")
    )
    ax.bar(x - 0.2, before, 0.36, color=_ZERO, label="before pooling")
    ax.bar(x + 0.2, after, 0.36, color=_TRAINED, label="after pooling")
    ax.plot(
        x + 0.2, channel, "D", color="black", ms=6, mfc="white", label="independent, by channel"
    )
    ax.plot(x + 0.2, independent, "_", color="black", ms=16, mew=2, label="independent")
    for i in range(len(rows)):
        ax.text(i - 0.2, before[i] + 1, f"{before[i]:.0f}", ha="center", **_TEXT)
        ax.text(i + 0.2, after[i] + 1, f"{after[i]:.0f}", ha="center", **_TEXT)
    ax.set_xticks(x, [row["pool"] for row in rows])
    ax.set(ylabel="zeros, % of the values of all photos", ylim=(0, 100))
    ax.legend(fontsize=9, frameon=False, loc="upper left")
    last = rows[-1]
    return f"it removes some: {100 * last['before']:.0f} % falls to {100 * last['after']:.0f} %"


def _information(ax: "Axes", found: dict) -> str:
    order = [
        information.BEFORE, information.FEATURES, information.BINARY, information.TOP_5,
        information.TOP_1,
    ]  # fmt: skip
    for task, colour, shift in zip(found["tasks"], (_TRAINED, _OTHER), (0.12, -0.12), strict=True):
        rows = {row["representation"]: row for row in task["representations"]}
        mean = 100 * np.array([rows[name]["mean"] for name in order])
        sd = 100 * np.array([rows[name]["sd"] for name in order])
        y = -np.arange(len(order)) + shift
        ax.errorbar(mean, y, xerr=sd, fmt="o", color=colour, capsize=3, ms=7,
                    label=f"{task['task']}: {task['classes']} classes")  # fmt: skip
        for x, place in zip(mean, y, strict=True):
            ax.annotate(f"{x:.0f}", (x, place), xytext=(0, 6), textcoords="offset points",
                        ha="center", fontsize=9, color=colour)  # fmt: skip
    names = [name.replace(" (", "\n(") for name in order]
    ax.set_yticks(-np.arange(len(order)), names)
    ax.set(xlim=(0, 100), ylim=(-len(order) - 0.2, 0.6), xlabel="accuracy of a linear probe, %")
    ax.grid(axis="x", alpha=0.3)
    ax.legend(fontsize=9, frameon=False, loc="lower left")
    digits = {row["representation"]: row["mean"] for row in found["tasks"][0]["representations"]}
    return (
        f"digits: values {100 * digits[information.FEATURES]:.0f} %, zero-or-not "
        f"{100 * digits[information.BINARY]:.0f} %, signed {100 * digits[information.BEFORE]:.0f} %"
    )


def _silence(ax: "Axes", found: dict) -> str:
    styles = {
        initialisation.TRAINED: ("trained", _TRAINED),
        initialisation.PYTORCH: ("PyTorch's default, untrained", _OTHER),
        initialisation.HE: ("He (torchvision), untrained", _THIRD),
    }
    for row in found["networks"]:
        label, colour = styles[row["network"]]
        n = np.arange(1, len(row["curve"]) + 1)
        ax.plot(n, row["curve"], color=colour, lw=2.5, label=label)
    trained = found["networks"][0]
    images = found["images"]
    ticks = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < 0.8 * images] + [images]
    ax.set_xscale("log")
    ax.set_xticks(ticks, [str(n) for n in ticks])
    ax.minorticks_off()
    top = max(row["curve"][0] for row in found["networks"])
    ax.set(xlabel="silent in all of ... images", ylim=(0, 1.4 * top),
           ylabel=f"channels of pool5, of {trained['channels']}")  # fmt: skip
    ax.legend(fontsize=9, frameon=False, loc="upper right")
    first, last = trained["curve"][0], trained["curve"][-1]
    return f"{first:.0f} are silent in one image, {last:.0f} in all {images}"


_PANELS = {
    "a": ("Negative before ReLU?", _negatives),
    "b": ("Is every ReLU network so?", _initialisation),
    "c": ("Too little detail?", _detail),
    "d": ("The wrong size?", _size),
    "e": ("Wrong preprocessing?", _preprocessing),
    "f": ("Does max pooling make them?", _pooling),
    "g": ("Is the information lost?", _information),
    "h": ("Are channels dead?", _silence),
}
