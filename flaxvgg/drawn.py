"""Results that can be looked at: `.plot()`, `.to_html()`, and themselves in a notebook, all alike.

What is drawn is known above, in `flaxvgg.plotting`, which is looked up when something is drawn.
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawn:
    """A result with a picture of its own."""

    def plot(self, *args: Any, **options: Any) -> "Figure":
        """A matplotlib figure of this result; takes what `flaxvgg.plotting.results` lists for it.

        In a notebook the figure shows itself; elsewhere `savefig` writes it. Raises ValueError
        where matplotlib is missing.
        """
        return results().figure(self, *args, **options)

    def to_html(self, path: str | os.PathLike[str], *args: Any, **options: Any) -> None:
        """Write this result as one page that needs nothing else, to look at in a browser.

        Takes what `flaxvgg.plotting.results` lists for it. The file is whole or not written. Raises
        TypeError for a result that has no page.
        """
        folders = importlib.import_module("flaxvgg.files.folders")
        folders.write_bytes(Path(path), results().page(self, *args, **options).encode())

    def _repr_html_(self) -> str | None:
        """What a notebook shows; None, for the text instead, where there are no values to show."""
        return results().html(self) if has_values(self) else None


def has_values(result: Any) -> bool:
    """Whether the arrays of a pytree are there, and not what a transformation of JAX put there."""
    return all(
        isinstance(x, np.ndarray | jax.Array) and not isinstance(x, jax.core.Tracer)
        for x in jax.tree.leaves(result)
    )


def shape_of(array: Any) -> str:
    """An array's shape as 2x3; "?" for what a transformation of JAX has put in its place."""
    shape = getattr(array, "shape", None)
    return "?" if shape is None else "x".join(map(str, shape)) or "scalar"


def results() -> Any:
    """What is known above of how results are drawn."""
    return importlib.import_module("flaxvgg.plotting.results")
