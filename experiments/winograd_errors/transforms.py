"""Winograd's transforms F(m, 3) for any points, and the same step by step in float32."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

TAPS = 3  # of the kernel, along one axis
Transform = Float[np.ndarray, "to from"]


@dataclasses.dataclass(frozen=True)
class Points:
    """F(outputs, 3) along one axis, by polynomials at `finite` points and at infinity.

    `name` is for people. Symmetric sets are ordered 0 (or not), a, -a, b, -b: the steps in float32
    are written for these. Raises ValueError where the number of points does not fit the tile.

    Source: Lavin & Gray 2016, arXiv:1509.09308; Barabasz et al. 2018, arXiv:1803.10986.

        >>> Points("0, ±1", (0, 1, -1), 2).inputs[0].tolist()
        [-1.0, 0.0, 1.0, 0.0]
    """

    name: str
    finite: tuple[float, ...]
    outputs: int

    def __post_init__(self):
        if len(self.finite) != self.size - 1:
            raise ValueError(f"F({self.outputs}) needs {self.size - 1} points: {self.finite}")

    @property
    def size(self) -> int:
        """Inputs of a tile, along one axis: there are as many products."""
        return self.outputs + TAPS - 1

    @property
    def with_zero(self) -> bool:
        """Whether 0 is the first of them."""
        return self.finite[0] == 0

    @property
    def magnitudes(self) -> tuple[float, ...]:
        """The a of all pairs ±a. Raises ValueError where they are not 0, or nothing, and pairs."""
        paired = self.finite[self.with_zero :]
        if len(paired) % 2 or any(a != -b for a, b in zip(paired[::2], paired[1::2], strict=True)):
            raise ValueError(f"the steps are those of symmetric points: {self.name}")
        return paired[::2]

    @cached_property
    def inputs(self) -> Transform:
        """B': row j has the coefficients of the product of (x - p) over the other points."""
        rows = [np.poly(np.delete(self.finite, j))[::-1] for j in range(len(self.finite))]
        return np.stack([*(np.append(row, 0.0) for row in rows), np.poly(self.finite)[::-1]])

    @cached_property
    def kernel(self) -> Transform:
        """G: the kernel as a polynomial at the points, over the Lagrange polynomials' divisors."""
        powers = np.vander(self.finite, TAPS, increasing=True)
        divisors = [np.prod(p - np.delete(self.finite, j)) for j, p in enumerate(self.finite)]
        return np.vstack([powers / np.array(divisors)[:, None], np.eye(TAPS)[-1:]])

    @cached_property
    def results(self) -> Transform:
        """A': powers of the points, and the product at infinity for the last output."""
        powers = np.vander(self.finite, self.outputs, increasing=True).T
        return np.hstack([powers, np.eye(self.outputs)[:, -1:]])


class Tile(NamedTuple):
    """F(4x2, 3x3) and the like: points down the rows of a tile, and across its columns."""

    down: Points
    across: Points

    @property
    def algorithm(self) -> str:
        """In words: F(4x2)."""
        return f"F({self.down.outputs}x{self.across.outputs})"

    @property
    def points(self) -> str:
        """In words."""
        return " by ".join(dict.fromkeys((self.down.name, self.across.name)))

    @property
    def products(self) -> float:
        """Products for one output and one channel: 9 in a direct sum."""
        return self.down.size * self.across.size / (self.down.outputs * self.across.outputs)


def both_axes(
    down: Transform, across: Transform, values: Float[np.ndarray, "from_down from_across *rest"]
) -> Float[np.ndarray, "to_down to_across *rest"]:
    """Transforms along the first two axes, in float64."""
    return np.einsum("ij,kl,jl...->ik...", down, across, values.astype(np.float64), optimize=True)


Lines = list[Float[np.ndarray, "..."]]


def inputs_by_steps(
    tile: Tile, values: Float[np.ndarray, "down across *rest"]
) -> Float[np.ndarray, "down across *rest"]:
    """The inputs' transform along both axes in float32, rounded at every step as a processor would.

    The points ±a share their even part, and their odd part, which is multiplied by a: additions and
    multiplications in one step (FMA), down first. Raises ValueError for points not symmetric.
    """
    return _along_both(tile, values, _inputs_1d)


def results_by_steps(
    tile: Tile, products: Float[np.ndarray, "down across *rest"]
) -> Float[np.ndarray, "rows columns *rest"]:
    """The results' transform likewise."""
    return _along_both(tile, products, _results_1d)


def _along_both(
    tile: Tile, values: np.ndarray, transform: Callable[[Points, Lines], Lines]
) -> np.ndarray:
    down = np.stack(transform(tile.down, list(values.astype(np.float32))))
    across = np.stack(transform(tile.across, list(np.moveaxis(down, 1, 0))))
    return np.moveaxis(across, 0, 1)


def fma(factor: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """factor x + y in float32, rounded once; the factor is a float32."""
    exact = np.float64(np.float32(factor)) * x.astype(np.float64) + y
    return exact.astype(np.float32)


def _inputs_1d(points: Points, d: Lines) -> Lines:
    magnitudes, zero = points.magnitudes, int(points.with_zero)
    squares = [a * a for a in magnitudes]
    found = [_even(squares, d, 0)] * zero
    for j, a in enumerate(magnitudes):
        others = squares[:j] + squares[j + 1 :]
        even, odd = _even(others, d, zero + 1), _even(others, d, zero)
        found += [fma(a, odd, even), fma(-a, odd, even)]
    return [*found, _even(squares, d, zero)]


def _even(squares: Sequence[float], d: Lines, first: int) -> np.ndarray:
    """The product of (x^2 - q) over the squares q, on every second line from `first` on."""
    if not squares:
        return d[first]
    coefficients = np.poly(squares)[::-1]
    found = d[first + 2 * len(squares)]
    for i in reversed(range(len(squares))):
        found = fma(coefficients[i], d[first + 2 * i], found)
    return found


def _results_1d(points: Points, m: Lines) -> Lines:
    pairs, zero = m[points.with_zero : -1], int(points.with_zero)
    sums = [x + y for x, y in zip(pairs[::2], pairs[1::2], strict=True)]
    differences = [x - y for x, y in zip(pairs[::2], pairs[1::2], strict=True)]
    found = []
    for i in range(points.outputs):
        y = m[-1] if i == points.outputs - 1 else np.zeros_like(m[0])
        y = m[0] if zero and i == 0 else y
        for a, part in zip(points.magnitudes, differences if i % 2 else sums, strict=True):
            y = fma(a**i, part, y)
        found.append(y)
    return found
