"""Results that can be looked at: `.plot()` and `.to_html()`, of every result alike.

What is drawn is known above, in `flaxvgg.plotting`, which is looked up when something is drawn.
"""

import importlib
import os
from pathlib import Path
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

    def to_html(self, path: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Write this result as one page that needs nothing else, to look at in a browser.

        Takes what `flaxvgg.plotting.results` lists for it. The file is whole or not written. Raises
        TypeError for a result that has no page.
        """
        results = importlib.import_module("flaxvgg.plotting.results")
        folders = importlib.import_module("flaxvgg.files.folders")
        folders.write_bytes(Path(path), results.page(self, *args, **options).encode())
