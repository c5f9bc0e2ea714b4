"""How good a map is: does it point at the object that was asked for, and outline it?"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.composed.scenes import Scenes
from experiments.gap_finetune.tuning import CACHED
from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.formulas import principal_component
from flaxvgg.evaluation.localisation import centre_gaussian, max_box_acc_v2, pointing_game
from flaxvgg.network.model import VGG, run_layers

Heat = Float[np.ndarray, "q size size"]
_BATCH = 8


class Questions(NamedTuple):
    """ "Where is the cat?", for every object of every scene: image and class (Q,), boxes (Q, 4)."""

    images: Int[np.ndarray, " q"]
    classes: Int[np.ndarray, " q"]
    boxes: Int[np.ndarray, "q 4"]


def questions_of(scenes: Scenes) -> Questions:
    """Every object of every scene, in order."""
    rows = [(i, item, *box) for i, of in enumerate(scenes.boxes) for item, box in of.items()]
    table = np.array(rows)
    return Questions(table[:, 0], table[:, 1], table[:, 2:])


class Outputs(NamedTuple):
    """What the last block and the head give: the last ReLU and the pooled map, and the logits."""

    relu: Float[np.ndarray, "n h w c"]
    pooled: Float[np.ndarray, "n h2 w2 c"]
    logits: Float[np.ndarray, "n classes"]


def outputs_of(gap: VGG, features: Float[np.ndarray, "n h w c"]) -> Outputs:
    """The outputs for cached ones of pool4, which equal those for the images they are of."""
    found = [
        jax.tree.map(np.asarray, _outputs(gap, jnp.asarray(features[start : start + _BATCH])))
        for start in range(0, len(features), _BATCH)
    ]
    return Outputs(*map(np.concatenate, zip(*found, strict=True)))


@jax.jit
def _outputs(gap: VGG, features: Array) -> tuple[Array, ...]:
    relu = [layer.name for layer in gap.config.conv_stack if layer.kind == "relu"][-1]
    names = relu, gap.config.resolve("features"), gap.config.head_output.name
    found = run_layers((gap.conv_stack, gap.head), features, set(names), after=CACHED)
    return tuple(found[name] for name in names)


def cam_heat(gap: VGG, outputs: Outputs, asked: Questions, size: int) -> Heat:
    """The heat maps of `flaxvgg.explain(gap, images, classes, "cam")`, one for each question."""
    kernel = np.asarray(gap.head.fc.kernel[...])
    maps = np.einsum("qhwc,cq->qhw", outputs.pooled[asked.images], kernel[:, asked.classes])
    return _heat(jnp.asarray(maps)[:, None], "cam", size)


def eigen_heat(outputs: Outputs, asked: Questions, size: int) -> Heat:
    """The Eigen-CAMs of the images: the same for all objects of one."""
    maps = jax.jit(principal_component)(jnp.asarray(outputs.relu))
    return _heat(maps[asked.images][:, None], "eigen_cam", size)


def gaussian_heat(asked: Questions, size: int) -> Heat:
    """What is always in the middle: for every question the same."""
    return np.broadcast_to(centre_gaussian(size, size), (len(asked.images), size, size))


@partial(jax.jit, static_argnames=("method", "size"))
def _scaled(maps: Array, method: str, size: int) -> Array:
    return Convention.named("paper").heatmaps((maps,), method, (size, size))[:, 0]


def _heat(maps: Float[Array, "q 1 h w"], method: str, size: int) -> Heat:
    return np.asarray(_scaled(maps, method, size))


def located(heat: Heat, asked: Questions) -> dict[str, float]:
    """The fraction of peaks on the object asked for, and of boxes that are right."""
    boxes = asked.boxes[:, None]
    return {
        "pointing_game": pointing_game(heat, boxes),
        "max_box_acc_v2": max_box_acc_v2(heat, boxes),
    }
