"""What is minimised: PyTorch's multilabel soft margin loss, and softmax cross-entropy."""

import math

import optax
from jaxtyping import Array, Float


def multilabel_soft_margin_loss(
    scores: Float[Array, "n k"], labels: Float[Array, "n k"]
) -> Float[Array, ""]:
    """The mean over classes and images of -[y log sigmoid(x) + (1 - y) log sigmoid(-x)].

    Scores and labels, 0 or 1, are (N, K). Equal to `torch.nn.functional` of the same name.
    """
    return optax.sigmoid_binary_cross_entropy(scores, labels).mean()


def softmax_loss(scores: Float[Array, "n k"], labels: Float[Array, "n k"]) -> Float[Array, ""]:
    """The mean over images of -sum(y log softmax(x)), for labels (N, K) whose rows add up to 1.

    Equal to `torch.nn.functional.cross_entropy` with class probabilities.
    """
    return optax.softmax_cross_entropy(scores, labels).mean()


LOSSES = {"multilabel": multilabel_soft_margin_loss, "softmax": softmax_loss}


def resting_loss(loss: str, classes: int) -> float:
    """What the loss is where all scores are 0: ln 2 for "multilabel", ln K for "softmax"."""
    return math.log(2 if loss == "multilabel" else classes)
