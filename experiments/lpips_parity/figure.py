"""One photo under a dozen distortions, ranked by each distance."""

from typing import TYPE_CHECKING, Any

from experiments.lpips_parity import pairs
from flaxvgg.plotting.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(results: dict[str, Any]) -> "Figure":
    """A row for each distance, the nearest at the left; the photo itself is left out."""
    names, _, distorted = pairs.distorted_pairs(results["size"])
    picture = {name.removesuffix(" 0.5"): x for name, x in zip(names, distorted, strict=True)}
    ranked = results["values"]["ranked"]
    columns = len(pairs.DISTORTIONS)
    figure = new_figure(figsize=(1.15 * columns, 1.4 * len(ranked) + 0.4), layout="constrained")
    axes = figure.subplots(len(ranked), columns)
    for row, (metric, order) in zip(axes, ranked.items(), strict=True):
        for ax, name in zip(row, order, strict=True):
            ax.imshow(picture[name])
            ax.set_title(name, fontsize=7)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
        row[0].set_ylabel(metric.upper(), fontsize=10)
    figure.suptitle("distorted at half strength, nearest first, by each distance", fontsize=10)
    return figure
