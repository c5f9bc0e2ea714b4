"""What became of the runs of one head at one learning rate, in numbers."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

DEAD = ("collapsed", "dead", "not finite")  # states in which nothing is learned any more


class Cell(NamedTuple):
    """Over the initialisations: a quantity of those that have it, and how each run ended."""

    mean: float
    low: float
    high: float
    states: dict[str, int]

    @property
    def runs(self) -> int:
        """How many initialisations there were."""
        return sum(self.states.values())

    @property
    def alive(self) -> int:
        """How many of them still learn."""
        return sum(n for state, n in self.states.items() if state not in DEAD)


def grid(
    rows: list[dict[str, Any]], quantity: Callable[[dict[str, Any]], list[float | None]]
) -> dict[tuple[str, float], Cell]:
    """A cell by head and learning rate; NaN where no run has the quantity."""
    cells = {}
    for row in rows:
        known = [x for x in quantity(row) if x is not None and np.isfinite(x)] or [np.nan]
        cells[row["head"], row["rate"]] = Cell(
            float(np.mean(known)), min(known), max(known), dict(Counter(row["states"]))
        )
    return cells
