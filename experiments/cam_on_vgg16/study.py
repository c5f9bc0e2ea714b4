"""The experiment: heads are fitted, maps made of scenes whose answer is known, peaks counted."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import flaxvgg
from experiments.cam_on_vgg16 import costs
from experiments.cam_on_vgg16.fitting import fit_classifier
from experiments.cam_on_vgg16.methods import METHODS, Networks, heat_at, peak
from experiments.composed import scenes
from experiments.composed.fitting import features_of, fit_gap
from experiments.composed.objects import OBJECTS
from experiments.composed.scenes import Scenes
from flaxvgg.images.datasets import Box
from flaxvgg.network.model import VGG

_BATCH = 2
Report = Callable[[str, float], None]  # told what is done, and how much of it


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is computed; the tests compute less."""

    size: int = 224
    training: int = 480
    steps: int = 80
    tests: int = 24
    rounds: int = 3
    seed: int = 0


def networks_of(model: VGG, effort: Effort, report: Report) -> Networks:
    """The two networks: the GAP head is always fitted, the classifier where there is none.

    A classifier that comes with the weights must know ImageNet's classes by their names. Raises
    ValueError where it does not.
    """
    classes = tuple(range(len(OBJECTS)))
    if model.config.head:
        classes = known_classes(model.classes)
    training = scenes.training_scenes(effort.training, effort.seed, effort.size)
    features = features_of(model, training.pixels, lambda done: report("features", done))
    gap = fit_gap(model, features, training.labels)
    classifier = model
    if not model.config.head:
        classifier = fit_classifier(
            model,
            features,
            training.labels,
            seed=effort.seed,
            steps=effort.steps,
            report=lambda done: report("classifier", done),
        )
    return Networks(classifier, gap, classes)


def known_classes(names: tuple[str, ...]) -> tuple[int, ...]:
    """ImageNet's number of each object, -1 for those that it has no class for."""
    missing = [item.imagenet for item in OBJECTS if item.imagenet and item.imagenet not in names]
    if missing:
        raise ValueError(
            f"this classifier does not know {', '.join(missing)}: pass weights with ImageNet's "
            "1000 classes and their names, or weights without a classifier"
        )
    return tuple(names.index(item.imagenet) if item.imagenet else -1 for item in OBJECTS)


@dataclasses.dataclass(frozen=True)
class Seen:
    """One object in one scene: by method, the heat map (size, size) and its peak (x, y)."""

    pixels: np.ndarray
    object: int
    boxes: Mapping[int, Box]
    heats: Mapping[str, np.ndarray]
    peaks: Mapping[str, tuple[int, int] | None]
    score: float

    def hit(self, method: str) -> bool:
        """Whether the peak lies on the object that was asked for."""
        found, (left, top, right, bottom) = self.peaks[method], self.boxes[self.object]
        return found is not None and left <= found[0] < right and top <= found[1] < bottom

    def share(self, method: str) -> float:
        """The part of the heat that lies on the object; 0 where there is none."""
        left, top, right, bottom = self.boxes[self.object]
        heat = self.heats[method]
        return float(heat[top:bottom, left:right].sum() / heat.sum()) if heat.any() else 0.0


def look(networks: Networks, found: Scenes, report: Callable[[float], None]) -> list[Seen]:
    """Every method's map of every object in every scene."""
    seen = []
    for start in range(0, len(found.boxes), _BATCH):
        pixels, boxes = (x[start : start + _BATCH] for x in (found.pixels, found.boxes))
        images = flaxvgg.normalise(pixels, networks.gap.preprocessing)
        objects = np.array([list(of_image) for of_image in boxes], np.int32)
        logits = np.asarray(_logits(networks.classifier, images))
        heats = {
            method.name: heat_at(method.maps(networks, images, objects), images.shape[1:3])
            for method in METHODS
        }
        for n, k in np.ndindex(objects.shape):
            item = int(objects[n, k])
            maps = {name: heat[n, k] for name, heat in heats.items()}
            peaks = {name: peak(heat) for name, heat in maps.items()}
            score = float(logits[n, networks.classes[item]])
            seen.append(Seen(pixels[n], item, boxes[n], maps, peaks, score))
        report(min(1, (start + _BATCH) / len(found.boxes)))
    return seen


def recognised(model: VGG, numbers: Mapping[int, int], found: Scenes) -> float:
    """How many of the objects in a scene are among those that score highest, of all in `numbers`.

    `numbers` are the model's classes of the objects.
    """
    right = 0
    objects = list(numbers)
    for start in range(0, len(found.boxes), _BATCH):
        images = flaxvgg.normalise(found.pixels[start : start + _BATCH], model.preprocessing)
        scores = np.asarray(_logits(model, images))[:, list(numbers.values())]
        for row, boxes in zip(scores, found.boxes[start:], strict=False):
            best = {objects[i] for i in np.argsort(-row)[: len(boxes)]}
            right += len(best & set(boxes))
    return round(right / sum(map(len, found.boxes)), 3)


@jax.jit
def _logits(model: VGG, images: jax.Array) -> jax.Array:
    return model(images)


def _answerable(found: Scenes, networks: Networks) -> Scenes:
    """The scenes in which the classifier has a class for every object."""
    kept = [
        i
        for i, boxes in enumerate(found.boxes)
        if all(networks.classes[item] >= 0 for item in boxes)
    ]
    return Scenes(found.pixels[kept], tuple(found.boxes[i] for i in kept))


def _shown(seen: list[Seen], scenes: int = 3) -> list[Seen]:
    """The first scenes that have no object in common."""
    chosen: list[Seen] = []
    for one in seen:
        others = {item for other in chosen for item in other.boxes if other.boxes != one.boxes}
        if not others & set(one.boxes) and len(chosen) < 2 * scenes:
            chosen.append(one)
    return chosen


def run(model: VGG, effort: Effort, report: Report) -> tuple[dict[str, Any], list[Seen]]:
    """The results as JSON, and what was seen for the picture: a few scenes, and whole photos."""
    networks = networks_of(model, effort, report)
    every = scenes.held_out_scenes(effort.tests, effort.seed, effort.size)
    found = _answerable(every, networks)
    seen = look(networks, found, lambda done: report("maps", done))
    photos = scenes.photo_scenes(model.preprocessing, effort.size)
    shown = _shown(seen) + look(networks, _answerable(photos, networks), lambda done: None)
    image = np.asarray(flaxvgg.normalise(found.pixels[:1], model.preprocessing))
    measured = costs.timed(networks, image, effort.rounds, lambda done: report("costs", done))
    arithmetic = costs.arithmetic(networks.classifier.config, effort.size)
    areas = [_area(one) for one in seen]
    rows = []
    for method, clock in zip(METHODS, measured, strict=True):
        network = networks.classifier if method.head == "classifier" else networks.gap
        rows.append(
            {
                "method": method.name,
                "passes": clock.passes(),
                "arithmetic": arithmetic[method.name],
                "parameters": costs.parameters(network, method.head != "none"),
                "to_train": method.to_train,
                "on_object": sum(one.hit(method.name) for one in seen),
                "heat_on_object": round(float(np.mean([s.share(method.name) for s in seen])), 3),
            }
        )
    known = {item: number for item, number in enumerate(networks.classes) if number >= 0}
    results = {
        "weights": model.provenance.source,
        "arch": model.config.arch,
        "classifier": "as published" if model.config.head else "fitted here",
        "effort": dataclasses.asdict(effort),
        "objects": [item.name for item in OBJECTS],
        "scenes": len(found.boxes),
        "questions": len(seen),
        "chance": round(float(np.mean(areas)), 3),
        "recognised": {
            "classifier": recognised(networks.classifier, known, found),
            "gap": recognised(networks.gap, {item: item for item in known}, found),
        },
        "methods": rows,
    }
    return results, shown


def _area(one: Seen) -> float:
    left, top, right, bottom = one.boxes[one.object]
    return (right - left) * (bottom - top) / one.pixels[..., 0].size
