"""The picture: intervals around 1."""

from typing import TYPE_CHECKING, Any

from flaxvgg.plotting.figures import literal, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = {"slower": "#cc4125", "faster": "#38761d", "within noise": "#777777"}


def draw(results: dict[str, Any]) -> "Figure":
    """One line a case, in the colour of its verdict."""
    rows = results["cases"]
    figure = new_figure(figsize=(8, 1.4 + 0.45 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = _COLOURS[row["verdict"]]
        axes.plot(row["interval"], [place, place], color=colour, linewidth=3, alpha=0.5)
        axes.plot(row["ratio"], place, "o", color=colour)
    for verdict, colour in _COLOURS.items():
        axes.plot([], [], "o", color=colour, label=verdict)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["case"] for row in rows])
    reach = max(0.05, *(abs(x - 1) for row in rows for x in (row["ratio"], *row["interval"])))
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(1 - 1.1 * reach, 1 + 1.1 * reach))
    names = literal(results["head"]["name"]), literal(results["base"]["name"])
    axes.set_xlabel("time of {} in that of {}: left is faster".format(*names))
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    return figure
