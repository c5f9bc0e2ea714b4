"""Why a network with global average pooling stops learning: the state, named, and its cure.

A score that is the mean of a ReLU cannot be negative. Where most labels are 0 the loss falls
fastest by pushing every score to exactly 0; there it is ln 2 for each class (ln K for a softmax),
every pre-activation of the last ReLU is negative, and no gradient comes back.
"""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from flaxvgg.cam.network import as_scores
from flaxvgg.files.choices import choose
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.inputs import check_images
from flaxvgg.network.model import VGG, AnyArray, run_layers
from flaxvgg.training.losses import LOSSES, Loss, resting_loss

_CURE = (
    'leave it out (flaxvgg.with_score_map(..., last="none")), which keeps one channel for each '
    "class, or add an FC layer after the mean, and start again"
)
# By the kind of ReLU, where it stops what comes in, and the gradient with it.
_STOPS = {"relu": 0, "shifted_relu": -1}


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found on one batch; `str()` of it is one sentence, with the cure.

    `state` is "not finite", "collapsed" (every score exactly 0, gradient exactly 0), "dead" (the
    image has no way to the scores: a ReLU stops all pre-activations of a layer), "at risk" (it
    still learns, but no score can be negative), or "healthy". `resting_loss` is the loss at scores
    of 0: ln 2, or ln K. `inactive` gives, by layer, the fraction of the pre-activations that the
    ReLU behind it stops, at 0 (a shifted one at -1); `dead` are the layers where that is all.

    >>> diagnosis = flaxvgg.diagnose(model, images, np.eye(3, dtype=np.float32)[[0, 2]])
    >>> diagnosis.state, round(diagnosis.resting_loss, 3)
    ('healthy', 0.693)
    """

    state: str
    loss: float
    resting_loss: float
    gradient_norm: float
    largest_score: float
    zero_scores: float
    inactive: dict[str, float]
    dead: tuple[str, ...]

    def __str__(self) -> str:
        at = f"loss {self.loss:.5f}, gradient norm {self.gradient_norm:.2g}"
        match self.state:
            case "not finite":
                return (
                    f"not finite: {at}; lower the learning rate, or bound the gradient (clip), and "
                    "start again from the last good checkpoint"
                )
            case "collapsed":
                stuck = "exactly 0" if self.zero_scores == 1 else "stuck"
                because = "the scores come from zeros"
                if self.dead:
                    because = f"the ReLU stops all pre-activations of {self.dead[0]}"
                return (
                    f"collapsed: every score is {stuck}, the loss rests at {self.loss:.5f} and the "
                    f"gradient is exactly 0, since {because} and lets none back: {_CURE}"
                )
            case "dead":
                return (
                    f"dead: the ReLU stops all pre-activations of {self.dead[0]}, so the scores "
                    f"do not depend on the image ({at}); start again at a lower learning rate, or "
                    "from pretrained convolutions"
                )
            case "at risk":
                return (
                    f"at risk: the scores are means of a ReLU, so none can be negative, and a loss "
                    f"that wants most of them low ({at}) is led to all scores 0, at "
                    f"{self.resting_loss:.5f}, where no gradient comes back: {_CURE}"
                )
        return f"healthy: {at}, {self.zero_scores:.0%} of the scores are 0"


def diagnose(
    model: VGG,
    images: Float[AnyArray, "n h w 3"],
    labels: Float[AnyArray, "n k"],
    loss: Loss = "multilabel",
) -> Diagnosis:
    """Whether a model learns from a batch, can stop to, or has stopped; before or after the fact.

    `images` are (N, H, W, 3), `labels` (N, K) of 0 and 1, `loss` is "multilabel" or "softmax". The
    model is looked at in the mode it is in (`model.train()`, but without dropout) and not changed.
    Raises ValueError for a model without a head, labels that are not (N, K), and an unknown loss.

    >>> labels = np.eye(3)[[0, 2]].astype(np.float32)
    >>> flaxvgg.diagnose(model, images, labels).state
    'healthy'
    """
    if loss not in LOSSES:
        raise ValueError(f"no loss {loss!r}: {choose(loss, LOSSES)}")
    images = check_images(images, model.preprocessing)
    expected = len(images), model.config.num_classes
    _ = model.config.head_output  # or what it raises
    if not len(images) or tuple(labels.shape) != expected:
        raise ValueError(f"labels must be of shape {expected}, not {tuple(labels.shape)}")
    found = _look(model, jnp.asarray(images), jnp.asarray(labels, jnp.float32), loss)
    inactive = {name: float(fraction) for name, fraction in found["inactive"].items()}
    dead = tuple(name for name, fraction in inactive.items() if fraction == 1)
    value, norm = float(found["loss"]), float(found["gradient_norm"])
    largest = float(found["largest_score"])
    if not np.isfinite([value, norm]).all():
        state = "not finite"
    elif not norm and (dead or not largest):
        state = "collapsed"
    elif dead:
        state = "dead"
    elif cannot_be_negative(model.config):
        state = "at risk"
    else:
        state = "healthy"
    return Diagnosis(
        state,
        value,
        resting_loss(loss, expected[1]),
        norm,
        largest,
        float(found["zero_scores"]),
        inactive,
        dead,
    )


def cannot_be_negative(config: VGGConfig) -> bool:
    """Whether every score is the mean of a ReLU; BatchNorm in front of it saves nothing."""
    kinds = [layer.kind for layer in config.layers if layer.kind != "global_avg_pool"]
    names = [layer.name for layer in config.layers if layer.kind != "global_avg_pool"]
    output = names.index(config.head_output.name)
    return kinds[output - 1 : output + 1] == ["relu", "flatten"]


@partial(jax.jit, static_argnames="loss")
def _look(
    model: VGG, images: Float[Array, "n h w 3"], labels: Float[Array, "n k"], loss: str
) -> dict:
    layers = model.config.layers
    # What goes into each ReLU is the output of the layer before; by its name, where it is stopped.
    into = {
        before.name: _STOPS[layer.kind]
        for before, layer in itertools.pairwise(layers)
        if layer.kind in _STOPS
    }
    output = model.config.head_output.name

    def loss_of(model: VGG) -> tuple[Array, dict[str, Array]]:
        for layer in layers:
            if layer.kind == "dropout":
                getattr(model.head, layer.name).deterministic = True
        found = run_layers((model.conv_stack, model.head), images, {*into, output})
        return LOSSES[loss](as_scores(found[output]), labels), found

    (value, found), gradients = jax.value_and_grad(loss_of, has_aux=True)(model)
    scores = as_scores(found[output])
    return {
        "loss": value,
        "gradient_norm": optax.tree.norm(gradients),
        "largest_score": abs(scores).max(),
        "zero_scores": (scores == 0).mean(),
        "inactive": {
            name: 1 - (found[name] > stop).mean() for name, stop in into.items() if name in found
        },
    }
