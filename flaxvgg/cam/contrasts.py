"""Scores that stand for a class in Grad-CAM: Finer-CAM's and Shapley-CAM's, functions of logits."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.options import Comparison
from flaxvgg.cam.targets import Targets

Logits = Float[Array, "n c"]


def compared(targets: Targets, options: Comparison, convention: Convention) -> Targets:
    """Each class less the classes whose logits are closest (Zhang et al. 2025, arXiv:2501.11309).

    y - alpha times the mean of the references' logits, as in torchcam; the package grad-cam weighs
    the references by their probabilities, through which the derivative goes too.
    """
    alpha = convention.finer_alpha if options.alpha is None else options.alpha

    def scores(logits: Logits) -> Float[Array, "n k"]:
        classes, own = targets.scores(logits)
        count = min(options.references, logits.shape[1] - 1)
        if count < 1:
            raise ValueError("'finer_cam' compares classes, and the model has one")
        theirs = jnp.take_along_axis(logits[:, None], _closest(logits, classes, count), axis=2)
        differences = own[..., None] - alpha * theirs
        if not convention.finer_by_probability:
            return differences.mean(axis=2)
        # The probabilities' common factor cancels, but for the eps.
        chances = jnp.exp(theirs - jax.nn.logsumexp(logits, axis=1)[:, None, None])
        return (chances * differences).sum(axis=2) / (chances.sum(axis=2) + 1e-9)

    return Targets(function=Partial(scores))


def _closest(logits: Logits, classes: Int[Array, "n k"], count: int) -> Int[Array, "n k r"]:
    """The classes whose logits are closest to each class's own, without itself."""
    own = jnp.take_along_axis(logits, classes, axis=1, mode="clip")
    distances = jnp.abs(logits[:, None] - own[..., None])
    itself = classes[..., None] == jnp.arange(logits.shape[1])[None, None]
    return lax.top_k(jnp.where(itself, -jnp.inf, -distances), count)[1]


def valued(targets: Targets, slope: Logits, convention: Convention) -> Targets:
    """What makes Grad-CAM Shapley-CAM (Cai 2025, arXiv:2501.06261): the gradient less half of H A.

    H is the Hessian of a score by the activations A; `slope` is how the logits change along A. The
    layers behind A are linear wherever they have a derivative, so that only the Hessian of the
    score by the logits is left, and g - H A / 2 is the gradient of s - (ds along the slope) / 2.
    The paper's score of a class is logit + log probability; with the logit alone, which grad-cam
    takes by default, the Hessian is zero and the map Grad-CAM's.
    """
    slope = lax.stop_gradient(slope)
    with_probability = targets.function is None and convention.shapley_by_probability

    def score(logits: Logits) -> Float[Array, "n k"]:
        _, value = targets.scores(logits)
        return value + targets.scores(jax.nn.log_softmax(logits))[1] if with_probability else value

    def scores(logits: Logits) -> Float[Array, "n k"]:
        value, change = jax.jvp(score, (logits,), (slope,))
        return value - change / 2

    return Targets(function=Partial(scores))
