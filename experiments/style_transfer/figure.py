"""The photos, the image on its way, PyTorch's, and how the loss went down."""

from typing import TYPE_CHECKING, Any

from experiments.style_transfer.study import OURS, THEIRS, Pictures
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(results: dict[str, Any], pictures: Pictures) -> "Figure":
    """Above the pictures, below the losses under Adam and under L-BFGS."""
    columns = max(len(pictures), 2)
    figure = new_figure(figsize=(2 * columns, 5.6), dpi=100, layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=[1, 1.3])
    upper, lower = halves
    axes = upper.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.set_axis_off()
    for ax, (name, pixels) in zip(axes, pictures.items(), strict=False):
        ax.imshow(pixels)
        ax.set_title(name, fontsize=10)
    left, right = lower.subplots(1, 2)
    _adam(left, results["adam"])
    _lbfgs(right, results["lbfgs"])
    for ax in (left, right):
        ax.set(ylabel="loss", yscale="log")
        ax.grid(alpha=0.3)
        ax.legend()
    return figure


def _adam(ax: "Axes", curves: dict[str, list[float]]) -> None:
    ax.plot(curves[OURS], color="C0", linewidth=4, alpha=0.5, label=OURS)
    ax.plot(curves[THEIRS], color="C1", linewidth=1.2, label=THEIRS)
    ax.set(xlabel="steps", title="Adam: the same steps")


def _lbfgs(ax: "Axes", courses: dict[str, Any]) -> None:
    for name, colour in {OURS: "C0", THEIRS: "C1"}.items():
        course = courses[name]
        ax.plot(course["evaluations"], course["losses"], color=colour, label=name)
    ax.set(xlabel="evaluations of the loss", title="L-BFGS: two line searches")
