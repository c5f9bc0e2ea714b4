"""`flaxvgg.diagnose`: each state provoked on a small network, and named with its layer and cure."""

import inspect
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from flaxvgg.network.config import Layer
from flaxvgg.network.model import VGG
from helpers import TINY_CLASSIFIER, TINY_GAP, random_images, tiny_vgg

CLASSES = 5
IMAGES = random_images(4, 32, 32)
LABELS = np.eye(CLASSES, dtype=np.float32)[:4]


def score_map(last: str = "relu", *, batch_norm: bool = False, fc: bool = False) -> VGG:
    """One convolution to a map for each class, and its mean."""
    size = {"inputs": CLASSES, "outputs": CLASSES}
    head = [Layer("conv7", "conv", "features.6", inputs=12, outputs=CLASSES, kernel=3)]
    if batch_norm:
        head.append(Layer("bn7", "batch_norm", "features.7", **size, eps=1e-3, momentum=0.0))
    if last != "none":
        head.append(Layer("relu7", last, "features.8"))
    head += [Layer("gap", "global_avg_pool", "avgpool"), Layer("means", "flatten", outputs=CLASSES)]
    if fc:
        head.append(Layer("fc", "linear", "classifier", **size))
    model = tiny_vgg(tuple(head))
    if batch_norm:
        model.head.bn7.var[...] = jnp.ones(CLASSES)  # random ones are negative
    return model


def shifted(model: VGG, layer: str, by: float) -> VGG:
    """The model with `by` added to a layer's biases."""
    stack = model.head if hasattr(model.head, layer) else model.conv_stack
    bias = getattr(stack, layer).bias
    bias[...] = bias[...] + by
    return model


def diagnose(model: VGG, **options: Any) -> flaxvgg.Diagnosis:
    return flaxvgg.diagnose(model, IMAGES, LABELS, **options)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_relu_before_the_mean_is_a_risk_before_the_first_step(batch_norm: bool):
    found = diagnose(score_map(batch_norm=batch_norm))
    assert found.state == "at risk"
    assert found.gradient_norm > 0
    assert found.resting_loss == pytest.approx(math.log(2))
    assert found.dead == ()
    assert str(found).startswith("at risk: the scores are means of a ReLU, so none can be negative")
    assert "0.69315" in str(found)
    assert 'last="none"' in str(found)


@pytest.mark.parametrize(
    "model",
    [
        *map(score_map, ("none", "leaky_relu", "shifted_relu")),
        score_map(fc=True),
        tiny_vgg(TINY_GAP),
        tiny_vgg(TINY_CLASSIFIER),
    ],
    ids=["none", "leaky_relu", "shifted_relu", "fc", "gap", "classifier"],
)
def test_where_scores_may_be_negative_it_is_healthy(model: VGG):
    labels = np.zeros((4, model.config.num_classes), np.float32)
    found = flaxvgg.diagnose(model, IMAGES, labels)
    assert found.state == "healthy", str(found)
    assert str(found).startswith(f"healthy: loss {found.loss:.5f}, gradient norm")
    assert all(0 < fraction < 1 for fraction in found.inactive.values())


@pytest.mark.parametrize(("loss", "resting"), [("multilabel", 2), ("softmax", CLASSES)])
def test_after_the_collapse_all_is_exactly_zero(loss: str, resting: int):
    found = diagnose(shifted(score_map(), "conv7", -1e4), loss=loss)
    assert found.state == "collapsed"
    assert found.loss == pytest.approx(math.log(resting), rel=1e-6)
    assert found.loss == pytest.approx(found.resting_loss, rel=1e-6)
    assert (found.gradient_norm, found.largest_score, found.zero_scores) == (0, 0, 1)
    assert found.dead == ("conv7",)
    assert found.inactive["conv7"] == 1
    assert str(found).startswith("collapsed: every score is exactly 0, the loss rests at ")
    assert "the ReLU stops all pre-activations of conv7" in str(found)
    assert 'last="none"' in str(found)
    assert "start again" in str(found)


def test_a_shifted_relu_collapses_too():
    found = diagnose(shifted(score_map("shifted_relu"), "conv7", -1e4))
    assert found.state == "collapsed"
    assert (found.gradient_norm, found.largest_score, found.zero_scores) == (0, 1, 0)
    assert found.dead == ("conv7",)
    assert "every score is stuck, the loss rests at" in str(found)
    assert "the ReLU stops all pre-activations of conv7" in str(found)


def test_training_walks_into_it_and_the_same_without_the_relu_does_not():
    labels = np.zeros((4, CLASSES), np.float32)
    found = {}
    for last in ("relu", "none"):
        model = score_map(last)
        options = flaxvgg.Optimisation(optimiser="sgd", learning_rate=1.0, stack_rate=1.0)
        trainer = flaxvgg.Trainer.of(model, options)
        state = trainer.start(model)
        for _ in range(8):
            state, _ = trainer.step(state, jnp.asarray(IMAGES), jnp.asarray(labels))
        found[last] = flaxvgg.diagnose(trainer.model(state), IMAGES, labels)
    assert found["relu"].state == "collapsed"
    assert found["none"].state == "healthy"
    assert found["none"].loss < 0.9 * found["relu"].loss


@pytest.mark.parametrize("layer", ["conv1_1", "conv2_1"])
def test_a_dead_layer_is_named_where_later_biases_still_learn(layer: str):
    found = diagnose(shifted(score_map("none"), layer, -1e4))
    assert found.state == "dead"
    assert found.gradient_norm > 0
    assert found.dead[0] == layer
    text = str(found)
    assert text.startswith(f"dead: the ReLU stops all pre-activations of {layer}, so the scores ")
    assert "start again at a lower learning rate" in text


def test_behind_an_fc_layer_a_dead_map_is_dead_and_not_collapsed():
    found = diagnose(shifted(score_map(fc=True), "conv7", -1e4))
    assert (found.state, found.dead) == ("dead", ("conv7",))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value: float):
    model = score_map("none")
    model.head.conv7.bias[...] = jnp.full(CLASSES, value)
    found = diagnose(model)
    assert found.state == "not finite"
    assert "lower the learning rate, or bound the gradient (clip)" in str(found)


def test_the_first_dead_layer_is_the_one_named():
    model = shifted(shifted(score_map(), "conv2_1", -1e4), "conv7", -1e4)
    found = diagnose(model)
    assert found.state == "collapsed"
    assert found.dead == ("conv2_1", "conv7")
    assert "the ReLU stops all pre-activations of conv2_1" in str(found)


def test_the_model_is_looked_at_as_it_is_and_not_changed():
    model = score_map(batch_norm=True)
    model.train()
    before = {path: np.asarray(x) for path, x in nnx.to_flat_state(nnx.state(model))}
    training = diagnose(model)
    assert not model.head.bn7.use_running_average
    for path, value in nnx.to_flat_state(nnx.state(model)):
        assert np.array_equal(value[...], before[path]), path
    model.eval()
    assert diagnose(model).loss != training.loss


def test_dropout_is_left_out():
    head = (*TINY_CLASSIFIER[:-1], Layer("drop6", "dropout", rate=0.5), TINY_CLASSIFIER[-1])
    model = tiny_vgg(head)
    labels = np.zeros((4, 7), np.float32)
    quiet = flaxvgg.diagnose(model, IMAGES, labels)
    model.train()
    assert flaxvgg.diagnose(model, IMAGES, labels) == quiet
    assert not model.head.drop6.deterministic


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES, LABELS, "hinge"), "no loss 'hinge': choose from multilabel, softmax"),
        ((IMAGES, LABELS[:, :4]), r"labels must be of shape \(4, 5\), not \(4, 4\)"),
        ((IMAGES[:0], LABELS[:0]), r"labels must be of shape"),
        ((IMAGES[:, :8], LABELS), "too small"),
    ],
)
def test_bad_input_is_named(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(flaxvgg.diagnose)(score_map(), *arguments)


def test_a_model_without_scores_is_refused():
    with pytest.raises(ValueError, match="this model has no logits"):
        flaxvgg.diagnose(tiny_vgg(()), IMAGES, LABELS)
