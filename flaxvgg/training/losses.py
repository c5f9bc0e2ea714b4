"""What is minimised: PyTorch's multilabel soft margin loss, and softmax cross-entropy."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

_ROUNDING = 1e-2  # by which a softmax's labels may miss 1: bfloat16 has 8 bits


def multilabel_soft_margin_loss(
    scores: Float[Array, "n k"], labels: Float[Array, "n k"]
) -> Float[Array, ""]:
    """The mean over classes and images of -[y log sigmoid(x) + (1 - y) log sigmoid(-x)].

    Scores and labels, 0 or 1, are (N, K). Equal to `torch.nn.functional` of the same name.
    """
    _same_shape(scores, labels)
    return optax.sigmoid_binary_cross_entropy(scores, labels).mean()


def softmax_loss(scores: Float[Array, "n k"], labels: Float[Array, "n k"]) -> Float[Array, ""]:
    """The mean over images of -sum(y log softmax(x)), for labels (N, K) whose rows add up to 1.

    Equal to `torch.nn.functional.cross_entropy` with class probabilities.
    """
    _same_shape(scores, labels)
    return optax.softmax_cross_entropy(scores, labels).mean()


Loss = Literal["multilabel", "softmax"]
LOSSES: dict[Loss, Callable[..., Array]] = {
    "multilabel": multilabel_soft_margin_loss,
    "softmax": softmax_loss,
}


def resting_loss(loss: str, classes: int) -> float:
    """What the loss is where all scores are 0: ln 2 for "multilabel", ln K for "softmax"."""
    return math.log(2 if loss == "multilabel" else classes)


def check_labels(labels: Any, shape: tuple[int, int], loss: str) -> None:
    """Raise ValueError unless labels are of the shape (N, K), and say for each class yes or no.

    They are numbers from 0 to 1; for "softmax" those of an image add up to 1. Under a
    transformation of JAX there are no values to look at, and only the shape is checked.
    """
    if not hasattr(labels, "dtype"):
        labels = np.asarray(labels)
    found, dtype = tuple(labels.shape), labels.dtype
    if getattr(dtype, "kind", "") in "OSU":
        raise ValueError(
            f"labels must be numbers of shape {shape}, not texts or rows of several lengths: a "
            "class's number is model.classes.index(name), and jax.nn.one_hot makes rows of numbers"
        )
    if found != shape or not shape[0]:
        hint = ""
        if len(found) == 1 and jnp.issubdtype(dtype, jnp.integer):
            hint = f": class numbers are jax.nn.one_hot(labels, {shape[1]})"
        raise ValueError(
            f"labels must be of shape {shape}, a row for each image and a column for each class, "
            f"not {found}{hint}"
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(f"labels are {dtype}: they must be numbers from 0 to 1")
    for values in _values(labels):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN among them
            raise ValueError(
                f"labels must be 0 for no and 1 for yes, and these are from {low:g} to {high:g}: "
                f"{_cure(low, high)}"
            )
        sums = values.astype(np.float64).sum(axis=1)
        if loss == "softmax" and values.shape == (len(values), shape[1]):
            wrong = abs(sums - 1) > _ROUNDING
            if wrong.any():
                row = int(wrong.argmax())
                raise ValueError(
                    f'with loss "softmax" the labels of an image must add up to 1, and those of '
                    f'image {row} add up to {sums[row]:g}: choose "multilabel", or give each one '
                    "class"
                )


def _values(labels: Any) -> list[np.ndarray]:
    """The values that are here, as far as there are any."""
    if isinstance(labels, jax.core.Tracer):
        return []
    if isinstance(labels, jax.Array) and not labels.is_fully_addressable:
        return [np.asarray(shard.data) for shard in labels.addressable_shards]
    return [np.asarray(labels)]


def _cure(low: float, high: float) -> str:
    match low, high:
        case (0.0, 255.0):
            return "divide them by 255"
        case (-1.0, 1.0):
            return "pass (labels + 1) / 2"
    return "each class of an image has a column"


def _same_shape(scores: Array, labels: Array) -> None:
    """Raise ValueError where labels would be spread over scores of another shape."""
    if scores.shape != labels.shape:
        raise ValueError(f"labels must be of shape {scores.shape}, not {labels.shape}")
