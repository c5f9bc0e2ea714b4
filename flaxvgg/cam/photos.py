"""Photos in, class activation maps out: what is explained, and one photo after the other."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from flaxvgg.cam.explanation import Explanation, Flag
from flaxvgg.cam.formulas import FEATURE_METHODS
from flaxvgg.cam.methods import ALIASES, METHODS, explain
from flaxvgg.cam.names import find_class, find_name
from flaxvgg.cam.network import as_scores
from flaxvgg.cam.options import needs_options
from flaxvgg.files.foreign import plain
from flaxvgg.images.loading import ImageError, load_pixels, normalise
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.network.prepared import prepare
from flaxvgg.watching import Watcher

# What is said of a map that is no map to trust.
FLAG_WORDS = {
    Flag.NOT_FINITE: "not finite",
    Flag.ZERO: "zero everywhere",
    Flag.CONSTANT: "the same everywhere",
    Flag.NEGATIVE: "positive nowhere",
}
_WHOLE_NETWORK = ("full_grad", "fully_convolutional")  # methods that take no layer
_MOST_CLASSES = 20  # in one picture
_CONCEPTS = "deep_feature_factorisation"  # whose maps are of no class, and as many as concepts
# Methods that are not among "all", but go by their names alone: these take thousands of passes.
_BY_NAME = ("is_cam",)
# What the progress bar counts. Score-CAM masks the image with each of the 512 channels of relu5_3,
# after two passes without, IS-CAM in ten strengths; a backward pass takes as long as two forward.
_PASSES = {"score_cam": 514, "is_cam": 5122}
_OTHER_PASSES = 3


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is explained in every photo, and how.

    `classes` are the classes, or how many of each photo's best ones; `layers` are the layers whose
    maps are joined, None for the one that a method takes by itself. `size` is (H, W).
    """

    methods: tuple[str, ...]
    classes: tuple[int, ...] | int
    layers: tuple[str, ...] | None
    convention: str
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PhotoMap:
    """One map in a few words.

    `label` is the class index, None for weights without classes; `score` its logit. `peak` is the
    pixel (x, y) where the heat map is highest, in the photo as the network sees it; None for a heat
    map with nothing to see. `flag` is the raw map's: not every method cuts off what is negative.
    """

    photo: Path
    method: str
    label: int | None
    name: str
    score: float
    flag: Flag
    peak: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class ExplainedPhoto:
    """A photo as the network was given it, and its maps for K classes.

    By method: `layers` whose maps they are, none for the whole network; `heatmaps` in [0, 1], of
    the photo's size, each on a scale of its own, and `shared` on one for all classes; `maps` in
    words. `raw` holds the signed maps at the layers' own size, by method, or by method and layer
    where there are several. `logits` are those of all classes, empty for weights without any.
    """

    photo: Path
    pixels: UInt8[np.ndarray, "h w 3"]
    layers: dict[str, tuple[str, ...]]
    raw: dict[str, Float[np.ndarray, "k _ _"]]
    heatmaps: dict[str, Float[np.ndarray, "k h w"]]
    shared: dict[str, Float[np.ndarray, "k h w"]]
    maps: dict[str, list[PhotoMap]]
    logits: Float[np.ndarray, " c"]


def parse_methods(text: str | None) -> tuple[str, ...] | None:
    """Methods of a text such as "grad_cam,LayerCAM"; None for "all" of them, or for no text: ().

    Raises ValueError for an unknown one, with the choices.
    """
    names = text.split(",") if text else []
    found = dict.fromkeys(find_name(name, ("all", *METHODS), ALIASES) for name in names)
    return None if "all" in found else tuple(found)


def parse_classes(text: str, count: int, names: Sequence[str]) -> tuple[int, ...] | int:
    """Classes of a text: indices or names, comma-separated; or k for "top{k}".

    `count` is the number of classes, `names` are their names, empty where they are not known.
    Raises ValueError for a class that there is none of, and for more than a picture holds.
    """
    top = text.removeprefix("top")
    if top != text and top.isdecimal() and int(top):
        found = min(int(top), count)
    else:
        found = tuple(dict.fromkeys(_class(part.strip(), count, names) for part in text.split(",")))
    many = found if isinstance(found, int) else len(found)
    if many > _MOST_CLASSES:
        raise ValueError(f"{many} classes in one picture: choose {_MOST_CLASSES} at most")
    return found


def _class(text: str, count: int, names: Sequence[str]) -> int:
    if not text.isdecimal():
        return find_class(text, names, count)
    if int(text) < count:
        return int(text)
    raise ValueError(f"no class {text}: the weights have classes 0 to {count - 1}")


def methods_for(config: VGGConfig, with_layer: bool = False) -> tuple[str, ...]:
    """The methods that "all" means for a network, or those of them that take a layer.

    Without those that show no classes, that are random and would need a key, or that take thousands
    of passes.
    """
    kinds = {layer.kind for layer in config.head}
    without = {_CONCEPTS, *_BY_NAME, *filter(needs_options, METHODS)}
    if with_layer:
        without |= set(_WHOLE_NETWORK)
    if not config.head:
        without |= set(METHODS) - set(FEATURE_METHODS)
    if "global_avg_pool" not in kinds or with_layer:
        without.add("cam")
    if "fc6" not in config.layer_names:
        without.add("fully_convolutional")
    return tuple(method for method in METHODS if method not in without)


def plan_maps(
    model: VGG,
    methods: tuple[str, ...] | None,
    classes: str,
    layers: tuple[str, ...] | None,
    convention: str,
    size: tuple[int, int],
) -> Plan:
    """What is to be explained, checked against the model before any photo is looked at.

    `methods` and `classes` are as `parse_methods` gives and `parse_classes` takes them. Raises
    ValueError for what this model has not: classes, layers, a map at that layer.
    """
    config = model.config
    if methods is None:
        methods = methods_for(config, with_layer=layers is not None)
    elif not methods:
        methods = ("grad_cam",) if config.head else ("eigen_cam",)
    if _CONCEPTS in methods:
        raise ValueError(
            f"{_CONCEPTS} finds concepts, and these pictures show classes: use flaxvgg.explain"
        )
    needy = [method for method in methods if method not in FEATURE_METHODS]
    if needy and not config.head:
        raise ValueError(
            f"{needy[0]} explains a class, and this model has none: {config.no_head_because}. Use "
            "--method eigen_cam, weights with a classifier, or flaxvgg.with_gap and train its head"
        )
    chosen = parse_classes(classes, config.num_classes, model.classes) if config.head else 1
    plan = Plan(methods, chosen, layers, convention, size)
    count = chosen if isinstance(chosen, int) else len(chosen)
    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    wanted = jax.ShapeDtypeStruct((1, count), np.int32) if config.head else None
    for method in methods:  # traced only: Score-CAM is not to run before another's layer is wrong
        jax.eval_shape(partial(_raw_maps, plan=plan, method=method), model, image, wanted)
    return plan


def explain_photos(
    model: VGG,
    photos: Sequence[Path],
    plan: Plan,
    problems: list[str],
    watch: Watcher = Watcher(),
) -> Iterator[ExplainedPhoto]:
    """Each photo with its maps, as soon as they are there.

    One program for each method serves all photos. Photos that cannot be read are left out and noted
    in `problems`. `watch` runs what takes long, and is told of each map.
    """
    passes = [_PASSES.get(method, _OTHER_PASSES) for method in plan.methods]
    with watch.bar("", len(photos) * sum(passes)) as bar:
        model = prepare(model, plan.size)
        watched = _watched(model, bar.advance)
        scored = jax.jit(scores_of)
        for i, photo in enumerate(photos):
            done = i * sum(passes)
            bar.show(done, what=shown(photo))
            try:
                pixels = load_pixels(photo, plan.size, model.preprocessing)
            except ImageError as error:
                problems += error.problems
                continue
            images = normalise(pixels[None], model.preprocessing)
            logits = watch.run(partial(scored, model, images)) if model.config.head else None
            classes: Array | np.ndarray | None = None
            if isinstance(plan.classes, tuple):
                classes = np.array([plan.classes])
            elif logits is not None:
                classes = top_classes(logits, plan.classes)
            layers, raw, heatmaps, shared, maps = {}, {}, {}, {}, {}
            for method, cost in zip(plan.methods, passes, strict=True):
                bar.show(done, what=f"{method} of {shown(photo)}")
                network = watched if method in _PASSES else model
                found = watch.run(partial(_look, network, images, classes, plan, method))
                layers[method] = found.explanation.layers
                raw |= _raw(found.explanation)
                heatmaps[method], shared[method] = found.heatmaps, found.shared
                maps[method] = _describe(photo, found, model.classes)
                done += cost
            bar.show(done)
            told = np.zeros(0, np.float32) if logits is None else np.asarray(logits[0])
            yield ExplainedPhoto(photo, pixels, layers, raw, heatmaps, shared, maps, told)


def shown(photo: Path) -> str:
    """A file's name as it can be printed."""
    return plain(photo.name)


def best_classes(model: VGG, images: Float[Array, "n h w 3"], count: int) -> Int[Array, "n k"]:
    """The classes (N, K) of the highest logits of each image, best first."""
    return top_classes(scores_of(model, images), count)


def probabilities(
    logits: Float[np.ndarray, "... c"], activation: Literal["softmax", "sigmoid"]
) -> Float[np.ndarray, "... c"]:
    """Probabilities of logits; "sigmoid" is for several labels. NaN beside an infinite logit."""
    logits = np.asarray(logits, np.float64)
    if activation == "sigmoid":
        return 0.5 * (1 + np.tanh(logits / 2))
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)


def scores_of(model: VGG, images: Float[Array, "n h w 3"]) -> Float[Array, "n c"]:
    """Logits (N, C) in float32; those of a fully-convolutional head are averaged over space."""
    return as_scores(model(images))


def top_classes(scores: Float[Array, "n c"], count: int) -> Int[Array, "n k"]:
    return jax.lax.top_k(scores, count)[1]


def _explain(
    model: VGG, images: Array, classes: Array | np.ndarray | None, plan: Plan, method: str
) -> Explanation:
    return explain(model, images, classes, method, plan.layers, plan.convention)


def _raw_maps(model: VGG, images: Array, classes: Array | None, plan: Plan, method: str):
    return _explain(model, images, classes, plan, method).layer_maps


class _Look(NamedTuple):
    """The maps of one image: heat maps (K, H, W) and flags (K,) are NumPy's."""

    explanation: Explanation
    heatmaps: np.ndarray
    shared: np.ndarray
    flags: np.ndarray


def _look(
    model: VGG, images: Array, classes: Array | np.ndarray | None, plan: Plan, method: str
) -> _Look:
    explanation = _explain(model, images, classes, plan, method)
    return _Look(explanation, *(np.asarray(x[0]) for x in _heat(explanation)))


@jax.jit
def _heat(explanation: Explanation) -> tuple[Array, Array, Int[Array, "n k"]]:
    size = explanation.image_size
    return explanation.heatmaps(size), explanation.heatmaps(size, shared=True), explanation.flags


def _raw(explanation: Explanation) -> dict[str, np.ndarray]:
    method, layers = explanation.method, explanation.layers
    keys = [f"{method} {layer}" for layer in layers] if len(layers) > 1 else [method]
    maps = [np.asarray(maps[0]) for maps in explanation.layer_maps]
    return dict(zip(keys, maps, strict=True))


def _describe(photo: Path, found: _Look, names: Sequence[str]) -> list[PhotoMap]:
    classes, scores = (
        np.asarray(x[0]) for x in (found.explanation.classes, found.explanation.scores)
    )
    maps = []
    for label, score, flag, heat in zip(classes, scores, found.flags, found.heatmaps, strict=True):
        y, x = np.unravel_index(heat.argmax(), heat.shape)
        seen = flag != Flag.NOT_FINITE and heat.max() > heat.min()
        maps.append(
            PhotoMap(
                photo,
                found.explanation.method,
                label=None if label < 0 else int(label),
                name="" if label < 0 else names[label] if names else f"class {label}",
                score=float(score),
                flag=Flag(int(flag)),
                peak=(int(x), int(y)) if seen else None,
            )
        )
    return maps


def _watched(model: VGG, advance: Callable[[int], None]) -> VGG:
    """The same model, which says how many images go into every forward pass.

    Score-CAM is one program that runs for minutes; this is how its progress is known.
    """
    model = nnx.clone(model)
    conv = model.conv_stack.conv1_1
    product = conv.conv_general_dilated

    def told(x: Array, *args, **kwargs) -> Array:
        jax.debug.callback(partial(advance, x.shape[0]))
        return product(x, *args, **kwargs)

    conv.conv_general_dilated = told
    return model
