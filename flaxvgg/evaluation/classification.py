"""How well scores tell classes: average precision, accuracy, and what is taken for what."""

import numpy as np
from jaxtyping import Float, Int, Shaped

from flaxvgg.network.model import AnyArray


def average_precision(
    scores: Float[AnyArray, "n k"], labels: Shaped[AnyArray, "n k"]
) -> Float[np.ndarray, " k"]:
    """The average precision (K,) of each class, of scores (N, K) for labels (N, K) of 0 and 1.

    The mean, over a class's positives, of the precision among all that score at least as high, so
    that the order of equal scores plays no part: scikit-learn's `average_precision_score`, which
    does not interpolate. A class without positives has none: NaN, where scikit-learn gives 0.

    Raises ValueError for other shapes, for none, for scores that are not finite and other labels.

    >>> scores, labels = np.array([[0.9], [0.8], [0.1]]), np.array([[1], [0], [1]])
    >>> flaxvgg.average_precision(scores, labels).round(3)
    array([0.833])
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape or not scores.size:
        raise ValueError(
            f"scores {scores.shape} and labels {labels.shape} must both have shape (N, K), "
            "with N and K at least 1"
        )
    wrong = np.flatnonzero(~np.isfinite(scores).all(axis=0))
    if len(wrong):
        raise ValueError(f"scores of class {wrong[0]} are not finite")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    classes = zip(scores.T, labels.T == 1, strict=True)
    return np.array([_of_class(values, positive) for values, positive in classes])


def mean_average_precision(
    scores: Float[AnyArray, "n k"], labels: Shaped[AnyArray, "n k"]
) -> float:
    """The mean of `average_precision` over the classes that have positives, the others left out.

    scikit-learn's average="macro", which counts classes without positives as 0. Raises ValueError
    where `average_precision` does, and where no class has a positive.

    >>> scores, labels = np.array([[0.9, 0.2], [0.8, 0.7]]), np.array([[1, 0], [0, 1]])
    >>> flaxvgg.mean_average_precision(scores, labels)
    1.0
    """
    found = average_precision(scores, labels)
    if np.isnan(found).all():
        raise ValueError("no class has a positive: there is no average precision to take a mean of")
    return float(np.nanmean(found))


def _of_class(scores: Float[np.ndarray, " n"], positive: Shaped[np.ndarray, " n"]) -> float:
    if not positive.any():
        return np.nan
    hits = scores[positive]
    return float(np.mean(_at_least(hits, hits) / _at_least(scores, hits)))


def _at_least(values: Float[np.ndarray, " n"], limits: Float[np.ndarray, " m"]) -> np.ndarray:
    """How many of the values are at least as large as each limit."""
    return len(values) - np.searchsorted(np.sort(values), limits)


def confusion_matrix(
    scores: Float[AnyArray, "n k"], labels: Shaped[AnyArray, "n k"]
) -> Int[np.ndarray, "k k"]:
    """How many images of each class (row) had the highest score for each class (column): (K, K).

    `labels` (N, K) are 1 for the one class of an image and 0 for the others. Of equal scores the
    first counts. scikit-learn's `confusion_matrix`. Raises ValueError where `average_precision`
    does, and for images of no class, or of several.

    >>> scores, labels = np.array([[0.9, 0.2], [0.8, 0.7]]), np.array([[1, 0], [0, 1]])
    >>> flaxvgg.confusion_matrix(scores, labels)
    array([[1, 0],
           [1, 0]])
    """
    average_precision(scores, labels)  # or what it raises
    labels = np.asarray(labels)
    several = np.flatnonzero(labels.sum(axis=1) != 1)
    if len(several):
        count = int(labels[several[0]].sum())
        raise ValueError(
            f"image {several[0]} is of {count} classes: accuracy and confusion are of images of one"
        )
    found = np.zeros((labels.shape[1],) * 2, np.int64)
    np.add.at(found, (labels.argmax(axis=1), np.asarray(scores).argmax(axis=1)), 1)
    return found


def accuracy(scores: Float[AnyArray, "n k"], labels: Shaped[AnyArray, "n k"]) -> float:
    """The fraction of images whose highest score is that of their class.

    Takes and raises what `confusion_matrix` does.

    >>> scores, labels = np.array([[0.9, 0.2], [0.8, 0.7]]), np.array([[1, 0], [0, 1]])
    >>> flaxvgg.accuracy(scores, labels)
    0.5
    """
    found = confusion_matrix(scores, labels)
    return float(np.trace(found) / found.sum())
