"""How much slower a commit is, with an interval, and what that is called."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

LEAST = 0.01  # two builds of the same code differ by less, and an interval knows nothing of that
Verdict = Literal["slower", "faster", "within noise"]


class Ratio(NamedTuple):
    """Time of the second commit in that of the first: of the medians, and its 99 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Slower or faster where the whole interval is, by more than LEAST."""
        if self.low > 1 + LEAST:
            return "slower"
        return "faster" if self.high < 1 - LEAST else "within noise"


def ratio(base: Sequence[float], head: Sequence[float]) -> Ratio:
    """The ratio of rounds that were timed side by side, by a paired bootstrap."""

    def of_medians(head: np.ndarray, base: np.ndarray, axis: int = -1) -> Any:
        return np.median(head, axis=axis) / np.median(base, axis=axis)

    found = stats.bootstrap(
        (np.array(head), np.array(base)),
        of_medians,
        paired=True,
        confidence_level=0.99,
        n_resamples=4999,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    value = float(of_medians(np.array(head), np.array(base)))
    return Ratio(value, float(found.low), float(found.high))
