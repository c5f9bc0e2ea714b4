"""The picture: the six steps with ln 2, and two grids of cures by learning rate."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.gap_collapse.summary import DEAD, Cell, grid
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by the colour-blind too (Okabe and Ito).
_COLOURS = ("#d55e00", "#cc79a7", "#009e73", "#0072b2")
_LINES = ("-", "--", "-", "-")  # the first two lie on each other


def draw(results: dict[str, Any]) -> "Figure":
    """The figure of a study's results."""
    figure = new_figure(figsize=(15, 5.4), dpi=90, layout="constrained")
    steps, scratch, real = figure.subplots(1, 3, width_ratios=[1.15, 1, 1])
    _steps(steps, results["six_steps"])
    arch, small = results["effort"]["small_arch"], results["effort"]["small_steps"]
    _grid(
        scratch,
        grid(results["scratch"], lambda row: [losses[-1] for losses in row["losses"]]),
        (0.2, math.log(2), "PuOr"),
        "{:.2f}".format,
        f"From random weights ({arch}):\nloss after {small} steps",
    )
    real.tick_params(labelleft=False)
    _grid(
        real,
        grid(results["pretrained"]["rows"], lambda row: row["pointing"]),
        (0, 1, "PuOr_r"),
        "{:.0%}".format,
        "On real convolutions: maps that peak\non their object "
        f"(by chance {results['pretrained']['chance']:.0%})",
    )
    return figure


def _steps(ax: "Axes", cases: list[dict[str, Any]]) -> None:
    for case, colour, line in zip(cases, _COLOURS, _LINES, strict=True):
        label = f"{case['head']}, learning rate {case['rate']:g}"
        ax.plot([step["loss"] for step in case["ours"]], line, color=colour, label=label)
        ax.plot([step["loss"] for step in case["pytorch"]], "o", color=colour, mfc="none", ms=8)
    ax.plot([], [], "o", color="0.4", mfc="none", ms=8, label="PyTorch's")
    ax.axhline(math.log(2), color="black", linestyle=":", linewidth=1)
    ax.text(6, math.log(2) + 0.001, "ln 2: all scores are 0", ha="right", va="bottom", fontsize=9)
    ax.set(xlabel="steps", ylabel="loss")
    ax.set_title("The report: the same steps\nhere and in PyTorch", fontsize=11)
    ax.legend(frameon=False, fontsize=9, loc="lower left")
    ax.spines[["top", "right"]].set_visible(False)


def _grid(
    ax: "Axes",
    cells: dict[tuple[str, float], Cell],
    scale: tuple[float, float, str],
    shown,
    title: str,
) -> None:
    from matplotlib import colormaps

    low, high, name = scale
    heads = list(dict.fromkeys(head for head, _ in cells))
    rates = list(dict.fromkeys(rate for _, rate in cells))
    for (head, rate), cell in cells.items():
        x, y = rates.index(rate), heads.index(head)
        part = np.clip((cell.mean - low) / (high - low), 0, 1)
        colour = (0.85,) * 3 if np.isnan(cell.mean) else colormaps[name](0.1 + 0.8 * part)[:3]
        ink = "white" if np.dot(colour, (0.299, 0.587, 0.114)) < 0.45 else "black"
        ax.fill_between([x - 0.48, x + 0.48], y - 0.47, y + 0.47, color=colour, lw=0)
        lines = [] if np.isnan(cell.mean) else [shown(cell.mean)]
        lines += [
            f"{state} {n} of {cell.runs}" for state, n in cell.states.items() if state in DEAD
        ]
        ax.text(x, y, "\n".join(lines), ha="center", va="center", fontsize=9, color=ink)
    ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    ax.set_yticks(range(len(heads)), heads)
    ax.set(xlim=(-0.5, len(rates) - 0.5), ylim=(len(heads) - 0.5, -0.5), xlabel="learning rate")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(title, fontsize=11)
