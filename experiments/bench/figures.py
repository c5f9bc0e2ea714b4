"""Pictures: how fast every tool is, how fast and how exact, and how near to the machine's most."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

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
                axes.plot(middle, at, shape, color=colour, markersize=6, zorder=3)
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
    """Error against speed, one point a tool; the good corner is at the bottom on the right."""
    cases = _both_known(results)
    figure = new_figure(figsize=(6.6 * len(cases), 5.6), dpi=100, layout="constrained")
    every = figure.subplots(1, len(cases), squeeze=False)[0]
    for axes, (case, tools) in zip(every, cases.items(), strict=True):
        _tradeoff(axes, tools)
        axes.set_title(case, fontsize=11)
    return figure


def _tradeoff(axes: "Axes", tools: Mapping[str, Row]) -> None:
    from matplotlib.ticker import NullLocator

    points = {
        tool: (ratios.speed(row, tools[row["reference"]]).median, row["error"])
        for tool, row in tools.items()
    }
    speeds, errors = zip(*points.values(), strict=True)
    best = max(speeds), min(errors)
    axes.set(xscale="log", yscale="log")
    axes.set(xlim=(min(speeds) / 1.25, best[0] * 1.6), ylim=(best[1] / 2, max(errors) * 2))
    axes.axvspan(1, axes.get_xlim()[1], color="#0b5394", alpha=0.05, zorder=0)
    own = points[EAGER][1]
    axes.axhspan(axes.get_ylim()[0], own, color="#0b5394", alpha=0.05, zorder=0)
    for level in (axes.axvline, axes.axhline):
        level(1 if level == axes.axvline else own, color="black", linewidth=0.8, alpha=0.5)
    for tool, (x, y) in points.items():
        size = 15 if tool == PREPARED else 9
        axes.plot(x, y, _MARKERS.get(tool, "o"), color=_COLOURS[tool], markersize=size, zorder=3)
    _labels(axes, points)
    corner = {"ha": "right", "va": "bottom", "color": "#0b5394", "style": "italic", "fontsize": 10}
    axes.text(0.99, 0.01, "faster and more exact ↘", transform=axes.transAxes, **corner)
    axes.xaxis.set_major_locator(_ticks())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("times as fast as PyTorch (eager)")
    axes.set_ylabel("error of pool5 against float64 (relative RMS)")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _labels(axes: "Axes", points: Mapping[str, tuple[float, float]]) -> None:
    """A name beside every point, where no other point and no other name is, if there is room."""
    places = {tool: axes.transData.transform(point) for tool, point in points.items()}
    taken = [(x - 8, x + 8, y) for x, y in places.values()]  # left, right, height in pixels
    for tool, (x, y) in places.items():
        width = 6.5 * len(tool)
        spots = [(x + 10, y), (x - 10 - width, y)]
        spots += [(x - width / 2, y + up) for up in (14, -14, 28, -28)]
        free = (
            (left, at)
            for left, at in spots
            if all(left > b or left + width < a or abs(at - h) > 11 for a, b, h in taken)
        )
        left, at = next(free, spots[0])
        taken.append((left, left + width, at))
        weight = "bold" if tool in (OURS, PREPARED) else "normal"
        text = {"fontsize": 9, "va": "center", "color": _COLOURS[tool], "weight": weight}
        axes.text(*axes.transData.inverted().transform((left, at)), tool, **text)


def _ticks():
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7))


def roofline(rows: Sequence[Row]) -> "Figure":
    """GFLOP/s of every convolution under what its arithmetic intensity allows, batch by batch."""
    timed = [row for row in rows if "layer" in row]
    batches = list(dict.fromkeys(row["batch"] for row in timed))
    size = (10, 0.9 + 3.3 * len(batches))
    figure = new_figure(figsize=size, dpi=100, layout="constrained")
    every = figure.subplots(len(batches), squeeze=False)[:, 0]
    for axes, batch in zip(every, batches, strict=True):
        _roof(axes, [row for row in timed if row["batch"] == batch], *ceilings(rows))
        axes.set_title(f"batch {batch}", fontsize=11, loc="left")
    handles, labels = every[0].get_legend_handles_labels()
    figure.legend(
        *(handles, labels),
        frameon=False,
        fontsize=9,
        loc="outside upper center",
        ncols=len(labels),
    )
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
        label = "roof: the matrix product, or FLOP a byte times bandwidth" if not place else None
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
