"""What `Trainer` takes: what is refused leaves the state as it was."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import flaxvgg
from flaxvgg.training.losses import LOSSES
from networks import TINY_GAP, random_images, random_model, tiny_vgg

IMAGES = random_images(4, 32, 32)
LABELS = np.eye(5, dtype=np.float32)[[0, 1, 2, 4]]
NOT_IMAGES = {
    "NCHW": (IMAGES.transpose(0, 3, 1, 2), "channels come last"),
    "small": (IMAGES[:, :16, :16], "16x16 are too small"),
    "uint8": (IMAGES.astype(np.uint8), "images are uint8"),
    "one": (IMAGES[0], r"shape \(N, H, W, 3\), not \(32, 32, 3\)"),
    "video": (IMAGES[None], r"shape \(N, H, W, 3\), not \(1, 4, 32, 32, 3\)"),
}
NOT_LABELS = {
    "row": (LABELS[:1], r"shape \(4, 5\), .* not \(1, 5\)"),
    "column": (LABELS[:, :1], r"shape \(4, 5\), .* not \(4, 1\)"),
    "numbers": (LABELS.argmax(1), r"jax.nn.one_hot\(labels, 5\)"),
    "bytes": (np.uint8(255) * LABELS.astype(np.uint8), "from 0 to 255: divide them by 255"),
    "signs": (2 * LABELS - 1, r"from -1 to 1: pass \(labels \+ 1\) / 2"),
    "nan": (LABELS * np.float32(np.nan), "from nan to nan"),
    "complex": (LABELS.astype(np.complex64), "labels are complex64"),
    "none of a softmax": (LABELS * np.eye(4, dtype=np.float32)[0, :, None], "image 1 add up to 0"),
    "two of a softmax": (LABELS + LABELS[::-1], "image 0 add up to 2: choose .multilabel"),
}


@pytest.fixture(scope="module")
def trainer():
    return flaxvgg.Trainer.of(tiny_vgg(TINY_GAP), flaxvgg.Optimisation(loss="softmax"))


@pytest.fixture
def state(trainer):
    """A state that is still there when the test is over."""
    state = trainer.start(tiny_vgg(TINY_GAP))
    yield state
    assert not any(x.is_deleted() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_images_that_are_none_leave_the_state(trainer, state, kind):
    images, said = NOT_IMAGES[kind]
    for given in (images, jnp.asarray(images)):
        with pytest.raises(ValueError, match=said):
            trainer.step(state, given, jnp.asarray(LABELS))
        with pytest.raises(ValueError, match=said):
            trainer.scores(state, given)


@pytest.mark.parametrize("kind", NOT_LABELS)
def test_labels_that_are_none_leave_the_state(trainer, state, kind):
    labels, said = NOT_LABELS[kind]
    for given in (labels, jnp.asarray(labels)):
        with pytest.raises(ValueError, match=said):
            trainer.step(state, IMAGES, given)


def test_shapes_are_checked_inside_of_a_transformation_too(trainer, state):
    step = jax.jit(trainer.step)
    with pytest.raises(ValueError, match="too small"):
        step(state, IMAGES[:, :16, :16], LABELS)
    with pytest.raises(ValueError, match=r"not \(4, 1\)"):
        step(state, IMAGES, LABELS[:, :1])
    with pytest.raises(ValueError, match="shape"):
        step(state, IMAGES[:0], LABELS[:0])


def test_a_step_from_the_outputs_of_a_layer(state):
    after = flaxvgg.Trainer.of(tiny_vgg(TINY_GAP), after="pool2")
    for outputs in (np.zeros((4, 0, 0, 12), np.float32), np.zeros((4, 8, 8, 12), np.uint8)):
        with pytest.raises(ValueError, match="outputs of pool2 are floats"):
            after.step(state, outputs, LABELS)


def test_labels_of_any_kind_that_say_yes_and_no_are_the_same(trainer):
    kinds = [LABELS, LABELS.astype(bool), LABELS.astype(np.uint8), LABELS.astype(np.int64)]
    losses = {
        float(trainer.step(trainer.start(tiny_vgg(TINY_GAP)), IMAGES, kind)[1]["loss"])
        for kind in kinds
    }
    assert len(losses) == 1
    assert np.isfinite(losses.pop())


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_do_not_spread_labels(loss):
    with pytest.raises(ValueError, match=r"shape \(4, 5\), not \(1, 5\)"):
        inspect.unwrap(LOSSES[loss])(jnp.zeros((4, 5)), jnp.asarray(LABELS[:1]))  # untyped


def test_labels_in_lists(trainer):
    rows = LABELS.tolist()
    _, metrics = trainer.step(trainer.start(tiny_vgg(TINY_GAP)), IMAGES, rows)
    _, expected = trainer.step(trainer.start(tiny_vgg(TINY_GAP)), IMAGES, LABELS)
    assert float(metrics["loss"]) == float(expected["loss"])
    state = trainer.start(tiny_vgg(TINY_GAP))
    with pytest.raises(ValueError, match="a class's number is"):
        trainer.step(state, IMAGES, ["cat", "dog", "cat", "dog"])
    with pytest.raises(ValueError, match=r"class numbers are jax\.nn\.one_hot"):
        trainer.step(state, IMAGES, [0, 1, 2, 3])


def test_the_guides_training_runs_as_it_is_printed(capsys):
    """The example of docs/guide.md, on a small network, line by line."""
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text("utf-8")
    (printed,) = (x for x in re.findall(r"```python\n(.*?)```", guide, re.S) if "Trainer.of" in x)
    stack = random_model(flaxvgg.VGGConfig.features_only("vgg11", "an example"))
    names = {"flaxvgg": flaxvgg, "nnx": nnx, "jax": jax, "model": stack}
    images = jnp.asarray(np.resize(IMAGES, (2, 32, 32, 3)))
    exec(printed, names | {"images": images})
    assert capsys.readouterr().out.strip()
