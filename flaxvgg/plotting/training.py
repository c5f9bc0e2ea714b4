"""The picture of a training run: its loss and its validation metric."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def curves_figure(rows: Sequence[Mapping[str, float | int | None]], metric: str) -> "Figure":
    """Loss by step beside the gradient's norm and the validation metric; `rows` is metrics.csv."""
    figure = new_figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = np.array([row["step"] for row in rows], float)
    loss = np.array([row["loss"] for row in rows], float)
    tested = [row for row in rows if row["validation_metric"] is not None]
    at = [row["step"] for row in tested]
    left.plot(steps, loss, color="0.7", linewidth=1, label="each batch")
    width = max(1, len(loss) // 20)
    if len(loss) >= 2 * width:
        smooth = np.convolve(loss, np.ones(width) / width, "valid")
        left.plot(steps[width - 1 :], smooth, color="C0", label=f"mean of {width}")
    style = {"marker": "o", "color": "C1", "markersize": 4}
    left.plot(at, [row["validation_loss"] for row in tested], label="validation", **style)
    left.set(title="loss", xlabel="step", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    norms = np.array([row["gradient_norm"] for row in rows], float)
    middle.plot(steps, np.where(norms > 0, norms, np.nan), color="C2", linewidth=1)
    middle.set(title="norm of the gradient", xlabel="step", yscale="log")
    right.plot(at, [row["validation_metric"] for row in tested], **style)
    right.set(title=f"validation {metric}", xlabel="step", ylim=(0, 1.03))
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
