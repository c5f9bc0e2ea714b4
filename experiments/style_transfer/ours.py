"""The loss of Gatys et al. 2016 and its minimisation, each hundred steps one compiled program."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

import flaxvgg
from flaxvgg.network.model import VGG
from flaxvgg.perceptual.losses import STYLE
from flaxvgg.perceptual.pairs import prepared

CONTENT_LAYER = "relu4_2"
STYLE_LAYERS = STYLE["gatys"].layers  # with their weights
LAYERS = (CONTENT_LAYER, *(name for name, _ in STYLE_LAYERS))
MEMORY = 10  # steps that L-BFGS keeps
RATE = 0.02  # of Adam
UNIT = (0, 1)

Image = Float[Array, "1 h w 3"]


class Targets(NamedTuple):
    """What the image is to have: one photo's features, and another's Gram matrices by layer."""

    content: Array
    grams: dict[str, Array]
    weight: Array  # of the style


class Course(NamedTuple):
    """The losses of the steps, each before its step; how often the loss was computed until then.

    `images` are those at the end and on the way, by step.
    """

    losses: list[float]
    evaluations: list[int]
    images: dict[int, np.ndarray]


@jax.jit
def targets(model: VGG, content: Image, style: Image, weight: float) -> Targets:
    """Computed once: the two photos do not change."""
    of_content, of_style = (_features(model, image) for image in (content, style))
    grams = {name: _gram(of_style[name]) for name, _ in STYLE_LAYERS}
    return Targets(of_content[CONTENT_LAYER], grams, jnp.asarray(weight, content.dtype))


def loss(image: Image, model: VGG, wanted: Targets) -> Float[Array, ""]:
    """`perceptual_loss` (l2, of relu4_2) and so many times `style_loss`, from one forward pass."""
    found = _features(model, image)
    content = jnp.square(found[CONTENT_LAYER] - wanted.content).mean()
    style = jnp.zeros((), image.dtype)
    for name, weight in STYLE_LAYERS:
        off = _gram(found[name]) - wanted.grams[name]
        style += weight * jnp.square(off).mean() / 4
    return content + wanted.weight * style


value_and_gradient = jax.jit(jax.value_and_grad(loss))


def by_adam(model: VGG, wanted: Targets, start: Image, steps: int) -> list[float]:
    """The losses of so many steps of Adam, each before its step."""
    optimiser = optax.adam(RATE)

    def step(carry: Any, _: None) -> tuple[Any, Array]:
        image, state, *fixed = carry
        value, slope = jax.value_and_grad(loss)(image, *fixed)
        change, state = optimiser.update(slope, state)
        return (optax.apply_updates(image, change), state, *fixed), value

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[1])
    return np.asarray(run((start, optimiser.init(start), model, wanted))).tolist()


def by_lbfgs(model: VGG, wanted: Targets, start: Image, steps: int, every: int) -> Course:
    """L-BFGS with optax's zoom line search; `steps` is a multiple of `every`."""
    image, state = start, optax.lbfgs(memory_size=MEMORY).init(start)
    losses: list[float] = []
    counts: list[int] = []
    images = {}
    for done in range(every, steps + 1, every):
        (image, state), (values, evaluations) = _some(model, wanted, image, state, every)
        losses += np.asarray(values).tolist()
        counts += np.asarray(evaluations).tolist()
        images[done] = np.asarray(image)[0]
    # The first loss takes an evaluation of its own; a line search hands its last one on.
    return Course(losses, np.cumsum([1, *counts[:-1]]).tolist(), images)


@partial(jax.jit, static_argnames="count")
def _some(model: VGG, wanted: Targets, image: Image, state: Any, count: int) -> Any:
    optimiser = optax.lbfgs(memory_size=MEMORY)

    def of_image(image: Image) -> Array:
        return loss(image, model, wanted)

    def step(carry: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
        image, state = carry
        value, slope = optax.value_and_grad_from_state(of_image)(image, state=state)
        given = {"value": value, "grad": slope, "value_fn": of_image}
        updated: Any = optimiser.update(slope, state, image, **given)
        change, state = updated
        searched = state[-1].info.num_linesearch_steps
        return (optax.apply_updates(image, change), state), (value, searched)

    return jax.lax.scan(step, (image, state), length=count)


def _features(model: VGG, image: Image) -> dict[str, Array]:
    return model.activations(prepared(image, UNIT, model.preprocessing), LAYERS)


def _gram(maps: Array) -> Array:
    """Scaled so that Gatys's loss of a layer is a quarter of the mean square."""
    return flaxvgg.gram_matrix(maps) * maps.shape[-1]
