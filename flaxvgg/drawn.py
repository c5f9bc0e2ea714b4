"""Results that can be drawn: `.plot()`, of every result alike.

What is drawn is known above, in `flaxvgg.plotting`, which is looked up when something is drawn.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn:
    """A result with a picture of its own."""

    def plot(self, *args: Any, **options: Any) -> "Figure":
        """A matplotlib figure of this result; takes what `flaxvgg.plotting.results` lists for it.

        In a notebook the figure shows itself; elsewhere `savefig` writes it. Raises ValueError
        where matplotlib is missing.
        """
        results = importlib.import_module("flaxvgg.plotting.results")
        return results.figure(self, *args, **options)
