"""What was measured, as a table in Markdown and as a picture."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.bench_cam.ours import SEVERAL
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
_FAMILY = (
    "grad_cam",
    "grad_cam++",
    "xgrad_cam",
    "hires_cam",
    "layer_cam",
    "elementwise_grad_cam",
)
TOOLS = ("flaxvgg", "flaxvgg default", "grad-cam", "torchcam")
_COLOURS = ("#0b5394", "#6fa8dc", "#cc7722", "#777777")
_MARKERS = "DDso"
_NAMES = {
    "grad_cam": "Grad-CAM",
    "grad_cam++": "Grad-CAM++",
    "xgrad_cam": "XGrad-CAM",
    "hires_cam": "HiResCAM",
    "layer_cam": "LayerCAM",
    "elementwise_grad_cam": "element-wise Grad-CAM",
    "eigen_grad_cam": "Eigen-Grad-CAM",
    "eigen_cam": "Eigen-CAM",
    "full_grad": "FullGrad",
    "score_cam": "Score-CAM",
    "ablation_cam": "Ablation-CAM",
    "fully_convolutional": "fully-convolutional score map, at twice the size",
    "cam": "CAM, on a GAP head",
}


def costs_table(results: Results) -> str:
    """Forward passes of every method, tool by tool: median of the rounds, least to most."""
    found = {(row["method"], row["classes"], row["tool"]): row for row in results["results"]}
    rows = list(dict.fromkeys((method, classes) for method, classes, _ in found))
    tools = [tool for tool in TOOLS if any(tool == name for *_, name in found)]
    lines = [_line(["method", "classes", *tools]), _line(["---", *["---:"] * (len(tools) + 1)])]
    for method, classes in rows:
        cells = [_passes(found.get((method, classes, tool))) for tool in tools]
        lines.append(_line([_NAMES[method], f"{classes}", *cells]))
    return "\n".join(lines)


def forward_table(results: Results) -> str:
    """What one forward pass takes in each tool: the unit of the other table."""
    lines = [_line(["one forward pass", "seconds", "in PyTorch's"]), _line(["---", "---:", "---:"])]
    for tool, row in results["forward"].items():
        lines.append(_line([tool, f"{row['seconds']:.3f}", f"{row['of_pytorch']:.2f}"]))
    return "\n".join(lines)


def memory_table(results: Results) -> str:
    """Memory of one call for all classes; the model is part of it."""
    lines = [_line(["all classes in one call", "GB held before", "GB at most"])]
    lines.append(_line(["---", "---:", "---:"]))
    for method, row in results["memory"].items():
        if row:
            cells = [_NAMES[method], f"{row['before']:.2f}", f"{row['peak']:.2f}"]
            lines.append(_line(cells))
    return "\n".join(lines)


def compilations_sentence(results: Results) -> str:
    """How many programs were compiled after the first call of each method."""
    found = results["compilations"]
    again = {
        f"{_NAMES[method]} ({call})": count
        for method, counts in found.items()
        for call, count in counts.items()
        if call != "first" and count
    }
    if again:
        return f"Compiled again: {', '.join(again)}."
    return f"Other classes, images and weights compiled nothing, in all {len(found)} methods."


def aims_table(results: Results) -> str:
    """What was aimed at, and the most that any method of the group takes (median of the rounds)."""
    found = {(row["method"], row["classes"], row["tool"]): row for row in results["results"]}
    most = max(classes for _, classes, _ in found)
    aims = [
        ("Grad-CAM and its relatives, 1 class", _FAMILY, 1, 1.1),
        (f"the same, {SEVERAL} classes", _FAMILY, SEVERAL, 1.2),
        (f"Grad-CAM, all {most} classes in one call", ("grad_cam",), most, 5.0),
        ("Ablation-CAM", ("ablation_cam",), 1, 2.0),
    ]
    tools = [tool for tool in TOOLS[:2] if any(tool == name for *_, name in found)]
    lines = [_line(["", "aim", *tools]), _line(["---", *["---:"] * (len(tools) + 1)])]
    for what, methods, classes, aim in aims:
        worst = [
            [
                found[key]["passes"][0]
                for method in methods
                if (key := (method, classes, tool)) in found
            ]
            for tool in tools
        ]
        if all(worst):
            lines.append(_line([what, f"{aim:.1f}", *(_number(max(values)) for values in worst)]))
    return "\n".join(lines)


def readme(results: Results) -> str:
    """The page of the benchmark."""
    channels = next((row["channels"] for row in results["results"] if row["channels"]), [0, 0])
    return _PAGE.format(
        arch=results["arch"],
        size=results["size"],
        rounds=results["rounds"],
        load=" and ".join(f"{value:.1f}" for value in results["load"]),
        timed=channels[0],
        of=channels[1],
        aims=aims_table(results),
        costs=costs_table(results),
        forward=forward_table(results),
        memory=memory_table(results),
        compilations=compilations_sentence(results),
    )


def costs_figure(results: Results) -> "Figure":
    """Forward passes of every method on a logarithmic scale, ours beside the packages'."""
    found = {(row["method"], row["classes"], row["tool"]): row for row in results["results"]}
    rows = list(dict.fromkeys((method, classes) for method, classes, _ in found))
    tools = [tool for tool in TOOLS if any(tool == name for *_, name in found)]
    figure = new_figure(figsize=(9, 0.36 * len(rows) + 1.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place in range(1, len(rows), 2):
        axes.axhspan(place - 0.5, place + 0.5, color="0.96", zorder=0)
    for i, tool in enumerate(tools):
        colour, shape = _COLOURS[TOOLS.index(tool)], _MARKERS[TOOLS.index(tool)]
        for j, row in enumerate(rows):
            if (*row, tool) in found:
                at = j + 0.7 * ((i + 0.5) / len(tools) - 0.5)
                middle, least, most = found[*row, tool]["passes"]
                axes.plot([least, most], [at, at], color=colour, linewidth=1.6, alpha=0.55)
                axes.plot(middle, at, shape, color=colour, markersize=6, zorder=3)
        label = {"flaxvgg default": 'flaxvgg, precision "default"'}.get(tool, tool)
        axes.plot([], [], shape, color=colour, label=label)
    axes.axvline(1, color="black", linewidth=1)
    labels = [
        f"{_NAMES[method]}, {classes} class{'es' if classes > 1 else ''}".replace(", at", ",\nat")
        for method, classes in rows
    ]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set(xscale="log", ylim=(len(rows) - 0.5, -0.5))
    most = max(row["passes"][2] for row in found.values())
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick < 2 * most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(
        "forward passes of the same network (line at 1: the network alone)\n"
        f"median of {results['rounds']} rounds, line from least to most: further left is cheaper"
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(frameon=False, fontsize=9, loc="outside upper center", ncols=len(tools))
    return figure


def _passes(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    middle, least, most = map(_number, row["passes"])
    return f"{middle}{'*' if row['channels'] else ''} ({least} to {most})"


def _number(x: float) -> str:
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_PAGE = """\
# What a class activation map costs

```sh
python -m experiments.bench_cam          # on a machine with nothing else to do
```

The unit is one forward pass of the same network in the same tool: flaxvgg's own for flaxvgg, in
either precision, and PyTorch's eager one for the packages grad-cam and torchcam. {arch} with random
weights, the same on both sides; one image of {size} px, float32, maps at the last ReLU. Every call
is timed right after a forward pass, all tools in turn, in {rounds} rounds: median, and least to
most. Compilation is not in it.

{aims}

{costs}

![Forward passes of every method](costs.png)

\\* {timed} of the {of} channels were run, the rest reckoned: all channels cost the same. flaxvgg's
Score-CAM takes a pass for each channel that varies over the image, and one for all the others.

{forward}

The peak memory of the process, model included, in the second of two calls:

{memory}

{compilations}

Load of the machine before and after: {load}.
"""
