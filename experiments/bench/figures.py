"""Pictures: how fast every tool is, how fast and how exact, and how near to the machine's most."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from experiments.bench import ratios
from experiments.bench.layers import XLA
from experiments.bench.ratios import Results, Row
from experiments.bench.report import ceilings
from experiments.bench.steps import ALONE
from experiments.bench.tools import (
    COMPILED,
    EAGER,
    FAST,
    KERAS,
    LAST,
    MNN,
    NCNN,
    OPENVINO,
    ORT,
    OURS,
    PREPARED,
)
from experiments.bench.uses import HOOKS
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    _Spot = tuple[Bbox, np.ndarray, np.ndarray]

_COLOURS = {
    OURS: "#0b5394",
    PREPARED: "#001f54",
    FAST: "#6fa8dc",
    EAGER: "#555555",
    LAST: "#999999",
    COMPILED: "#b45f06",
    ORT: "#38761d",
    KERAS: "#cc4125",
    OPENVINO: "#0097a7",
    NCNN: "#c2185b",
    MNN: "#bf9000",
    XLA: "#8e7cc3",
}
_MARKERS = {
    OURS: "D",
    PREPARED: "*",
    FAST: "D",
    OPENVINO: "P",
    NCNN: "X",
    MNN: "h",
    ORT: "s",
    KERAS: "^",
    COMPILED: "v",
    XLA: "^",
}
_ABOVE = (
    "Roof: this machine's matrix product, or bandwidth times FLOP a byte, whichever is less. "
    "Counted are the products of the direct\nconvolution: Winograd's algorithms, which flaxvgg "
    "takes, do it with fewer and so get above. Lines: least to most of the rounds."
)
_SECTIONS = ("stack", "forward", "activations", "sparsity")


def all_of(results: Results) -> dict[str, "Figure"]:
    """The pictures of what was run, by the names of their files."""
    found = {}
    if any(ratios.rows_of(results, section) for section in _SECTIONS):
        found["speed.png"] = speeds(results)
    if _both_known(results):
        found["tradeoff.png"] = tradeoff(results)
    if ratios.rows_of(results, "layers"):
        found["layers.png"] = roofline(ratios.rows_of(results, "layers"))
    return found


def speeds(results: Results) -> "Figure":
    """Speed in PyTorch's, case by case: medians, and least to most of the rounds."""
    rows = [row for section in _SECTIONS for row in ratios.rows_of(results, section)]
    cases = ratios.by_case(rows)
    figure = new_figure(figsize=(9, 1.6 + 0.58 * len(cases)), dpi=100, layout="constrained")
    axes = figure.subplots()
    timed = {tool for found in cases.values() for tool in found} - {EAGER, HOOKS}
    tools = [tool for tool in _COLOURS if tool in timed]
    for place, found in enumerate(cases.values()):
        if place % 2:
            axes.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
        for tool, row in found.items():
            if tool in timed:
                at = place + 0.8 * ((tools.index(tool) + 0.5) / len(tools) - 0.5)
                middle, least, most = ratios.speed(row, found[row["reference"]])
                colour = _COLOURS[tool]
                axes.plot([least, most], [at, at], color=colour, linewidth=1.6, alpha=0.55)
                shape = _MARKERS.get(tool, "o")
                size = 10 if shape == "*" else 6  # of which a star covers less
                axes.plot(middle, at, shape, color=colour, markersize=size, zorder=3)
    axes.axvline(1, color="black", linewidth=1)
    for tool in tools:
        axes.plot([], [], _MARKERS.get(tool, "o"), color=_COLOURS[tool], label=tool)
    axes.set_yticks(range(len(cases)), list(cases), fontsize=9)
    axes.set(ylim=(len(cases) - 0.5, -0.5), xscale="log")
    axes.xaxis.set_major_locator(_ticks())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("times as fast as PyTorch (eager; line at 1): faster is further right")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=4)
    return figure


def _both_known(results: Results) -> dict[str, Mapping[str, Row]]:
    """Cases with speeds and errors: 224 px and 112 px, on one thread where that was run."""
    cases = ratios.by_case(ratios.rows_of(results, "stack"))
    found = {}
    for case in ("stack, 1 x 224x224", "stack, 1 x 112x112"):
        name = case + ALONE if case + ALONE in cases else case
        if name in cases:
            found[name] = {tool: row for tool, row in cases[name].items() if "error" in row}
    return found


def tradeoff(results: Results) -> "Figure":
    """Error against speed, one point a tool; the good corner is at the bottom on the right.

    Speeds are medians, with lines from the least to the most of the rounds.
    """
    cases = _both_known(results)
    figure = new_figure(figsize=(6.6 * len(cases), 5.6), dpi=100, layout="constrained")
    every = figure.subplots(1, len(cases), squeeze=False)[0]
    for axes, (case, tools) in zip(every, cases.items(), strict=True):
        _tradeoff(axes, tools)
        axes.set_title(case, fontsize=11)
    figure.draw_without_rendering()  # where the names have room depends on the layout
    for axes, tools in zip(every, cases.values(), strict=True):
        _labels(axes, tools)
    return figure


def _tradeoff(axes: "Axes", tools: Mapping[str, Row]) -> None:
    from matplotlib.ticker import NullLocator

    spreads = {tool: ratios.speed(row, tools[row["reference"]]) for tool, row in tools.items()}
    points = {tool: (spreads[tool].median, row["error"]) for tool, row in tools.items()}
    errors = [error for _, error in points.values()]
    ends = [x for spread in spreads.values() for x in (spread.least, spread.most)]
    axes.set(xscale="log", yscale="log")
    axes.set(xlim=(min(ends) / 1.25, max(ends) * 1.5), ylim=(min(errors) / 3, max(errors) * 2))
    axes.axvspan(1, axes.get_xlim()[1], color="#0b5394", alpha=0.05, zorder=0)
    own = points[EAGER][1]
    axes.axhspan(axes.get_ylim()[0], own, color="#0b5394", alpha=0.05, zorder=0)
    for level in (axes.axvline, axes.axhline):
        level(1 if level == axes.axvline else own, color="black", linewidth=0.8, alpha=0.5)
    for tool, (x, y) in points.items():
        size = 15 if tool == PREPARED else 9
        line = {"color": _COLOURS[tool], "linewidth": 1.6, "alpha": 0.55}
        axes.plot([spreads[tool].least, spreads[tool].most], [y, y], **line)
        axes.plot(x, y, _MARKERS.get(tool, "o"), color=_COLOURS[tool], markersize=size, zorder=3)
    corner = {"ha": "right", "va": "bottom", "color": "#0b5394", "style": "italic", "fontsize": 10}
    axes.text(0.99, 0.01, "faster and more exact ↘", transform=axes.transAxes, **corner)
    axes.xaxis.set_major_locator(_ticks())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("times as fast as PyTorch (eager); lines from least to most of the rounds")
    axes.set_ylabel("error of pool5 against float64 (relative RMS)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


# Where a name may be, from its point: a direction, and how far in points; the best ones first.
_STRAIGHT, _DIAGONAL = ((1, 0), (-1, 0), (0, 1), (0, -1)), ((1, 1), (-1, 1), (1, -1), (-1, -1))
_PLACES = [
    (across, up, far)
    for directions in (_STRAIGHT, _DIAGONAL)
    for far in (9, 18, 30, 42)
    for across, up in directions
]


def _labels(axes: "Axes", tools: Mapping[str, Row]) -> None:
    """A name beside every point, where no other point, line and name is; with a line to far ones.

    Where all such places are taken, that line may cross a name. The figure is laid out by now.
    """
    from matplotlib.transforms import Bbox

    points, taken = {}, [text.get_window_extent() for text in axes.texts]
    for tool, row in tools.items():
        speed = ratios.speed(row, tools[row["reference"]])
        (x, y), (left, _), (right, _) = axes.transData.transform(
            [(at, row["error"]) for at in speed]
        )
        points[tool] = speed.median, row["error"]
        taken += [Bbox([[x - 9, y - 9], [x + 9, y + 9]]), Bbox([[left, y - 1], [right, y + 1]])]
    own = axes.transData.transform(points[EAGER])
    frame = axes.bbox
    taken += [Bbox([[own[0] - 1, frame.y0], [own[0] + 1, frame.y1]])]
    taken += [Bbox([[frame.x0, own[1] - 1], [frame.x1, own[1] + 1]])]
    named: list[Bbox] = []

    def has_room(spot: "_Spot") -> bool:
        box, _, _ = spot
        inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
        return inside and not any(box.overlaps(other) for other in taken)

    def is_free(spot: "_Spot") -> bool:
        _, edge, at = spot
        line = Bbox([np.minimum(at, edge), np.maximum(at, edge)])
        return has_room(spot) and not any(line.overlaps(other) for other in named)

    for tool, point in points.items():
        text = axes.annotate(
            tool, point, xytext=(0, 0), textcoords="offset points", fontsize=9,
            color=_COLOURS[tool], weight="bold" if tool in (OURS, PREPARED) else "normal",
        )  # fmt: skip
        at = axes.transData.transform(point)
        spots = (filter(fits, _spots(text, at)) for fits in (is_free, has_room, bool))  # or any
        box, edge, _ = next(chain.from_iterable(spots))
        taken.append(box)
        named.append(box)
        if np.hypot(*(edge - at)) > 18:  # pixels: beside its point it needs no line
            ends = axes.transData.inverted().transform([edge, at])
            axes.plot(*ends.T, color=_COLOURS[tool], linewidth=0.7, zorder=2)


def _spots(text: "Annotation", at: np.ndarray) -> Iterator["_Spot"]:
    """Every place of a name in turn, which it then has: its box, the point next to `at`, `at`."""
    for across, up, far in _PLACES:
        text.set_ha({1: "left", 0: "center", -1: "right"}[across])
        text.set_va({1: "bottom", 0: "center", -1: "top"}[up])
        text.set_position((far * across, far * up))
        box = text.get_window_extent()
        yield box, np.clip(at, (box.x0, box.y0), (box.x1, box.y1)), at


def _ticks():
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7))


def roofline(rows: Sequence[Row]) -> "Figure":
    """GFLOP/s of every convolution beside what its arithmetic intensity allows, batch by batch.

    Counted are the products of the direct convolution: an algorithm with fewer gets above its roof.
    """
    timed = [row for row in rows if "layer" in row]
    batches = list(dict.fromkeys(row["batch"] for row in timed))
    size = (10, 0.9 + 3.3 * len(batches))
    figure = new_figure(figsize=size, dpi=100, layout="constrained")
    every = figure.subplots(len(batches), squeeze=False)[:, 0]
    for axes, batch in zip(every, batches, strict=True):
        _roof(axes, [row for row in timed if row["batch"] == batch], *ceilings(rows))
        axes.set_title(f"batch {batch}", fontsize=11, loc="left")
    handles, labels = every[0].get_legend_handles_labels()
    style = {"frameon": False, "fontsize": 9}
    figure.legend(handles, labels, loc="outside upper center", ncols=3, **style)
    figure.text(0.01, 0.005, _ABOVE, fontsize=9, va="bottom", color="0.25")
    figure.set_layout_engine("constrained", rect=(0, 0.045, 1, 0.955))
    return figure


def _roof(axes: "Axes", rows: Sequence[Row], product: float, bandwidth: float) -> None:
    layers: Mapping[str, dict[str, Row]] = {}
    for row in rows:
        layers.setdefault(row["layer"], {})[row["tool"]] = row
    tools = list(dict.fromkeys(row["tool"] for row in rows))
    labels = []
    for place, (layer, found) in enumerate(layers.items()):
        intensity = found[tools[0]]["flops"] / found[tools[0]]["bytes"]
        roof = min(product, intensity * bandwidth)
        label = "roof of the direct convolution" if not place else None
        axes.plot([place - 0.45, place + 0.45], [roof, roof], color="black", label=label)
        names = layer.replace(" to ", "\nto ")
        labels.append(f"{names}\n{intensity:.0f} FLOP/B")
    for i, tool in enumerate(tools):
        for place, found in enumerate(layers.values()):
            row = found[tool]
            middle, least, most = (row["flops"] / s / 1e9 for s in ratios.seconds(row))
            at = place + 0.7 * ((i + 0.5) / len(tools) - 0.5)
            colour, shape = _COLOURS[tool], _MARKERS.get(tool, "o")
            axes.plot([at, at], [least, most], color=colour, linewidth=1.6, alpha=0.55)
            label = tool if not place else None
            axes.plot(at, middle, shape, color=colour, markersize=6, label=label, zorder=3)
    axes.set_xticks(range(len(layers)), labels, fontsize=8.5)
    axes.set(xlim=(-0.5, len(layers) - 0.5), ylim=(0, None))
    axes.set_ylabel("GFLOP/s, as direct convolution")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
