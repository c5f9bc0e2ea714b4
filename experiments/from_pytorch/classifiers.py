"""Linear classifiers on features: scikit-learn's, and one that PyTorch trains by autograd."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from flaxvgg.evaluation.classification import mean_average_precision

_STEPS = 300


class Answers(NamedTuple):
    """Scores of N test images for each class, above 0 for yes."""

    scores: Float[np.ndarray, "n classes"]

    @property
    def yes(self) -> Bool[np.ndarray, "n classes"]:
        """Whether the class is said to be in the image."""
        return self.scores > 0

    def figures(self, labels: Float[np.ndarray, "n classes"]) -> dict[str, float]:
        """Right answers to "is it there?", images of which all are right, and the mean AP."""
        right = self.yes == (labels > 0)
        return {
            "accuracy": float(right.mean()),
            "images_right": float(right.all(axis=1).mean()),
            "mean_average_precision": mean_average_precision(self.scores, labels),
        }


def by_scikit_learn(
    training: Float[np.ndarray, "n f"],
    labels: Float[np.ndarray, "n classes"],
    test: Float[np.ndarray, "m f"],
) -> Answers:
    """Logistic regression on vectors of length 1, one class at a time."""
    one = make_pipeline(Normalizer(), LogisticRegression(C=1000.0, max_iter=1000))
    fitted: Any = OneVsRestClassifier(one).fit(training, labels)
    return Answers(fitted.decision_function(test))


def by_autograd(
    training: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, seed: int = 0
) -> Answers:
    """The same by PyTorch: a linear layer, its gradients by autograd, Adam."""
    norm = torch.nn.functional.normalize
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = torch.nn.Linear(training.shape[1], labels.shape[1])
    optimiser = torch.optim.Adam(probe.parameters(), lr=0.1)
    for _ in range(_STEPS):
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(probe(norm(training)), labels)
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        return Answers(probe(norm(test)).numpy())
