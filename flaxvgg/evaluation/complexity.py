"""Whether an attribution is about few pixels or about all."""

import numpy as np
from jaxtyping import Float

from flaxvgg.network.model import AnyArray


def sparseness(
    attributions: Float[AnyArray, "n h w"] | Float[AnyArray, "n h w 3"],
) -> Float[np.ndarray, " n"]:
    """The Gini index (N,) of attributions' magnitudes; high is concise.

    0 where all are equal, nearly 1 where one value holds everything. Attributions are maps
    (N, H, W) or have a value for each colour (N, H, W, 3), of any scale and sign. NaN for zeros.
    Chalasani et al. 2020 (arXiv:1810.06583), as Quantus's `Sparseness`, which adds 1e-7 to all.

    Raises ValueError for other shapes, for none, and for values that are not finite.

    >>> flaxvgg.sparseness(np.array([[[0.0, 0], [0, 1]], [[1, -1], [1, 1]]]))
    array([0.75, 0.  ])
    """
    values = np.sort(_shares(attributions), axis=1)
    count = values.shape[1]
    return values @ (2 * np.arange(1, count + 1) - count - 1) / count


def complexity(
    attributions: Float[AnyArray, "n h w"] | Float[AnyArray, "n h w 3"],
) -> Float[np.ndarray, " n"]:
    """The entropy (N,) of attributions' magnitudes, in nats; low is concise.

    Each is taken as its share of their sum: 0 where one value holds everything, ln of their number
    where all are equal. Shapes, NaN and errors are those of `sparseness`. Bhatt et al. 2020
    (arXiv:2005.00631), as Quantus's `Complexity`.

    >>> flaxvgg.complexity(np.array([[[0.0, 0], [0, 1]], [[1, -1], [1, 1]]])).round(3)
    array([0.   , 1.386])
    """
    shares = _shares(attributions)
    return -(shares * np.log(np.where(shares == 0, 1, shares))).sum(axis=1) + 0.0  # no -0


def _shares(attributions: AnyArray) -> Float[np.ndarray, "n k"]:
    """The magnitudes over their sum; NaN where that is zero."""
    values = np.asarray(attributions)
    colours = values.ndim == 4 and values.shape[-1] == 3
    if not (values.ndim == 3 or colours) or not values.size:
        raise ValueError(
            "attributions must have shape (N, H, W) or (N, H, W, 3), none of them 0, not "
            f"{values.shape}"
        )
    values = np.abs(values.astype(np.float64).reshape(len(values), -1))
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        raise ValueError(f"the attribution of image {wrong[0]} is not finite")
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.full_like(values, np.nan), where=total > 0)
