"""The experiment: maps of scenes with known objects, of randomised networks, and their cost."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter

import flaxvgg
from experiments.attribution_on_vgg16.methods import Method, methods_of
from experiments.attribution_on_vgg16.peers import (
    Peer,
    agreement,
    as_tensor,
    figures_of_quantus,
    peers_of,
    torch_network,
)
from experiments.cam_on_vgg16.fitting import fit_classifier
from experiments.composed import scenes
from experiments.composed.fitting import features_of
from experiments.composed.objects import OBJECTS
from experiments.composed.scenes import Scenes
from experiments.timing import Case, machine, measure
from flaxvgg.evaluation.randomisation import Randomisation
from flaxvgg.network.model import VGG

Report = Callable[[str, float], None]  # told what is done, and how much of it


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is computed; the tests compute less."""

    size: int = 224
    training: int = 480
    steps: int = 80
    tests: int = 8
    randomised: int = 2  # images of the randomisation test
    samples: int = 200  # masks of RISE
    window: int = 32
    blur: float = 4.0  # pixels: the peak of single pixels is chance
    rounds: int = 3
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Shown:
    """For the picture: an object in a scene, and every method's map of it, by name."""

    pixels: np.ndarray
    object: int
    box: tuple[int, int, int, int]
    maps: dict[str, Float[np.ndarray, "h w"]]


def classifier_of(model: VGG, effort: Effort, report: Report) -> VGG:
    """The model's convolutions with fc6, fc7 and fc8 fitted to the composed scenes."""
    training = scenes.training_scenes(effort.training, effort.seed, effort.size)
    features = features_of(model, training.pixels, lambda done: report("features", done))
    return fit_classifier(
        model,
        features,
        training.labels,
        seed=effort.seed,
        steps=effort.steps,
        report=lambda done: report("classifier", done),
    )


def run(
    model: VGG, effort: Effort, report: Report
) -> tuple[dict[str, Any], list[Shown], tuple[Randomisation, np.ndarray]]:
    """The results as JSON, maps for the picture, and the randomisation test with its images."""
    network = classifier_of(model, effort, report)
    # Exact products: derivatives through a classifier of random numbers hang on every bit.
    network = flaxvgg.from_torch(
        network.config.arch, flaxvgg.to_torch(network), provenance=network.provenance
    )
    methods = methods_of(effort.samples, effort.window)
    found = scenes.held_out_scenes(effort.tests, effort.seed, effort.size)
    maps, shown = _maps(network, methods, found, lambda done: report("maps", done))
    boxes = [[box] for of_image in found.boxes for box in of_image.values()]
    tested = randomisation(network, methods, found, effort, lambda done: report("random", done))
    image = flaxvgg.normalise(found.pixels[:1], model.preprocessing)
    labels = list(found.boxes[0])
    peers = _peers(network)
    apart = {
        name: (
            peer.package,
            [
                agreement(maps[name][k], peer.map(as_tensor(image), label))
                for k, label in enumerate(labels)
            ],
        )
        for name, peer in peers[1].items()
    }
    costs = _costs(network, methods, peers, image, effort, lambda done: report("costs", done))
    masks = _masks(boxes, effort.size)
    rows, quantus = [], []
    for method in methods:
        package, differences = apart.get(method.name, ("", [0.0]))
        heat = maps[method.name]
        blurred = gaussian_filter(np.maximum(heat, 0), (0, effort.blur, effort.blur))
        figures = {
            "mass": flaxvgg.relevance_mass_accuracy(heat, boxes),
            "rank": flaxvgg.relevance_rank_accuracy(heat, boxes),
            "sparseness": flaxvgg.sparseness(heat),
        }
        theirs = figures_of_quantus(peers[0], heat, masks)
        quantus += [float(np.abs(figures[name] - theirs[name]).max()) for name in figures]
        rows.append(
            {
                "method": method.name,
                "on_object": flaxvgg.pointing_game(blurred, boxes),
                **{name: _mean(values) for name, values in figures.items()},
                "similar": [
                    round(float(np.nanmean(x)), 3) for x in tested.absolute_spearman[method.name]
                ],
                "passes": costs[method.name, 1, ""],
                "passes_of_eight": costs[method.name, _several(network), ""],
                "peer": package,
                "apart": max(differences),
                "passes_of_peer": costs.get((method.name, 1, package)) if package else None,
            }
        )
    areas = [
        (right - left) * (bottom - top) / effort.size**2 for ((left, top, right, bottom),) in boxes
    ]
    results = {
        "weights": model.provenance.source,
        "arch": model.config.arch,
        "effort": dataclasses.asdict(effort),
        "objects": [item.name for item in OBJECTS],
        "scenes": len(found.boxes),
        "pairs": len(boxes),
        "chance": round(float(np.mean(areas)), 3),
        "randomised": list(tested.layers),
        "quantus": max(quantus),
        "apart_on": machine()["processor"],
        "methods": rows,
    }
    return results, shown, (tested, found.pixels[: effort.randomised])


def _maps(
    model: VGG, methods: Sequence[Method], found: Scenes, report: Callable[[float], None]
) -> tuple[dict[str, Float[np.ndarray, "pairs h w"]], list[Shown]]:
    """Every method's map of every object in every scene, pair by pair."""
    objects = np.array([list(boxes) for boxes in found.boxes], np.int32)
    maps: dict[str, np.ndarray] = {}
    for i, method in enumerate(methods):
        each = []
        for pixels, classes in zip(found.pixels, objects, strict=True):
            image = flaxvgg.normalise(pixels[None], model.preprocessing)
            each.append(np.asarray(method.maps(model, image, classes[None])[0]))
        maps[method.name] = np.concatenate(each)
        report((i + 1) / len(methods))
    shown = [
        Shown(found.pixels[i], item, box, {name: of[2 * i + k] for name, of in maps.items()})
        for i, boxes in enumerate(found.boxes[:2])
        for k, (item, box) in enumerate(boxes.items())
    ]
    return maps, shown


def randomisation(
    model: VGG,
    methods: Sequence[Method],
    found: Scenes,
    effort: Effort,
    report: Callable[[float], None],
) -> Randomisation:
    """Maps of the first object of some scenes while layer after layer becomes random."""
    count = effort.randomised
    images = flaxvgg.normalise(found.pixels[:count], model.preprocessing)
    classes = np.array([list(boxes)[:1] for boxes in found.boxes[:count]], np.int32)
    done = 0
    layers = [layer.name for layer in model.config.layers if layer.kind in ("linear", "conv")][::-1]
    chosen = [*layers[:3], *layers[3::3]]

    def of(method: Method) -> Callable[[VGG], np.ndarray]:
        def maps(changed: VGG) -> np.ndarray:
            nonlocal done
            done += 1
            report(done / (len(methods) * (1 + len(chosen))))
            return np.asarray(method.maps(changed, images, classes)[:, 0])

        return maps

    explainers = {method.name: of(method) for method in methods}
    key = jax.random.key(effort.seed)
    return flaxvgg.parameter_randomisation(model, explainers, key=key, layers=chosen)


def _peers(model: VGG) -> tuple[torch.nn.Module, dict[str, Peer]]:
    recipe = model.preprocessing
    box = flaxvgg.normalise(np.array([0, 255], np.uint8).repeat(3).reshape(2, 1, 1, 3), recipe)
    low, high = np.asarray(box).reshape(2, 3)
    network = torch_network(model)
    return network, peers_of(network, (low, high))


def _several(model: VGG) -> int:
    return min(8, model.config.num_classes)


def _costs(
    model: VGG,
    methods: Sequence[Method],
    peers: tuple[torch.nn.Module, dict[str, Peer]],
    image: np.ndarray,
    effort: Effort,
    report: Callable[[float], None],
) -> dict[tuple[str, int, str], list[float]]:
    """Each tool's own forward passes for one image: by method, classes and package."""
    x, theirs = jnp.asarray(image), as_tensor(image)
    network, known = peers

    def forward() -> object:
        return jax.block_until_ready(_logits(model, x))

    def their_forward() -> object:
        with torch.no_grad():
            return network(theirs)

    cases = [
        Case(
            method.name,
            classes,
            "",
            lambda maps=method.maps, classes=classes: jax.block_until_ready(
                maps(model, x, np.arange(classes, dtype=np.int32)[None])
            ),
            forward,
        )
        for method in methods
        for classes in (1, _several(model))
    ]
    cases += [
        Case(name, 1, peer.package, lambda peer=peer: peer.map(theirs, 0), their_forward)
        for name, peer in known.items()
    ]
    measured = measure(cases, effort.rounds, report)
    return {(x.case.method, x.case.classes, x.case.tool): x.passes() for x in measured}


@jax.jit
def _logits(model: VGG, images: jax.Array) -> jax.Array:
    return model(images)


def _masks(
    boxes: Sequence[Sequence[tuple[int, int, int, int]]], size: int
) -> Bool[np.ndarray, "pairs h w"]:
    """Each pair's one box as a mask."""
    masks = np.zeros((len(boxes), size, size), bool)
    for mask, ((left, top, right, bottom),) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def _mean(values: np.ndarray) -> float:
    return round(float(np.nanmean(values)), 3)
