"""Models within other libraries' models: Linen and Equinox, as docs/guide.md shows it."""

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flaxvgg
from networks import TINY_GAP, random_images, tiny_vgg

IMAGES = jnp.asarray(random_images(4, 32, 32))


@pytest.fixture(scope="module")
def model():
    return tiny_vgg(TINY_GAP)


def test_linen(model):
    """A VGG as a part of a Linen module, with weights that were there before."""

    class Probe(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, images):
            logits = nnx.bridge.to_linen(flaxvgg.VGG, model.config, name="vgg")(images)
            return flax.linen.Dense(2)(logits)

    with jax.numpy_rank_promotion("allow"):
        variables = Probe().init(jax.random.key(0), IMAGES)
    assert set(variables["params"]["vgg"]) == {"conv_stack", "head"}
    variables["params"]["vgg"] = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    dense = variables["params"]["Dense_0"]
    expected = model(IMAGES) @ dense["kernel"] + dense["bias"][None]
    with jax.numpy_rank_promotion("allow"):  # which Linen builds upon
        found = Probe().apply(variables, IMAGES)
        gradient = jax.grad(lambda v: (Probe().apply(v, IMAGES) ** 2).mean())(variables)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert jnp.abs(gradient["params"]["vgg"]["conv_stack"]["conv1_1"]["kernel"]).max() > 0


def test_equinox(model):
    """A frozen VGG with a linear layer of Equinox on it, which is trained."""

    class Probe(eqx.Module):
        backbone: flaxvgg.VGG
        head: eqx.nn.Linear

        def __call__(self, images):
            return jax.vmap(self.head)(jax.lax.stop_gradient(self.backbone.gap(images)))

    probe = Probe(model, eqx.nn.Linear(12, 2, key=jax.random.key(0)))
    labels = jnp.array([0, 1, 1, 0])

    @eqx.filter_value_and_grad
    def loss(probe, images):
        scores = probe(images)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    optimiser = optax.sgd(0.01)
    state = optimiser.init(eqx.filter(probe, eqx.is_inexact_array))
    losses = []
    for _ in range(3):
        value, gradient = eqx.filter_jit(loss)(probe, IMAGES)
        updates, state = optimiser.update(gradient, state)
        probe = eqx.apply_updates(probe, updates)
        losses.append(float(value))
    assert losses[0] > losses[1] > losses[2]
    np.testing.assert_array_equal(
        probe.backbone.conv_stack.conv1_1.kernel[...], model.conv_stack.conv1_1.kernel[...]
    )
