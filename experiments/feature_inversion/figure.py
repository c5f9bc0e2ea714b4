"""The photo, and what each layer keeps of it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: dict[str, Any], pictures: dict[str, np.ndarray]) -> "Figure":
    """One row of pictures, with the errors that they have."""
    figure = new_figure(figsize=(2.1 * len(pictures), 2.7), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(pictures), squeeze=False)[0]
    for ax, (name, pixels) in zip(axes, pictures.items(), strict=True):
        ax.imshow(pixels)
        ax.set_title(name, fontsize=11)
        ax.set_xticks([])
        ax.set_yticks([])
        if name in results["layers"]:
            row = results["layers"][name]
            ax.set_xlabel(f"error {row['error']:.1%}\nLPIPS {row['lpips']:.2f}", fontsize=9)
    return figure
