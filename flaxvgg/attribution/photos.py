"""Photos in, attributions out, one photo after the other: what `flaxvgg attribute` does."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8

from flaxvgg.attribution.attribution import Attribution
from flaxvgg.attribution.composites import composite_name
from flaxvgg.attribution.methods import ATTRIBUTIONS, attribute, option_names
from flaxvgg.cam.names import find_name
from flaxvgg.cam.photos import parse_classes, scores_of, shown, top_classes
from flaxvgg.images.loading import ImageError, load_pixels, normalise
from flaxvgg.network.model import VGG
from flaxvgg.watching import Watcher


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is attributed in every photo, and how.

    `methods` has what each row of a picture is called, the name of its method and its options.
    `classes` are the classes, or how many of each photo's best ones; `size` is (H, W).
    """

    methods: dict[str, tuple[str, dict[str, Any]]]
    classes: tuple[int, ...] | int
    size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class AttributedPhoto:
    """A photo as the network was given it, and its attributions to K classes.

    `labels` are the classes and `scores` their logits (K,), `logits` those of all classes; `maps`
    are the sums over colours (K, H, W), signed, by the names of `Plan.methods`.
    """

    photo: Path
    pixels: UInt8[np.ndarray, "h w 3"]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[float, ...]
    logits: Float[np.ndarray, " c"]
    maps: dict[str, Float[np.ndarray, "k h w"]]


def plan_attributions(
    model: VGG,
    methods: Sequence[str],
    classes: str,
    size: tuple[int, int],
    *,
    composites: Sequence[str] = (),
    samples: int | None = None,
    seed: int = 0,
) -> Plan:
    """What is to be attributed, checked against the model before any photo is looked at.

    A method that goes by composites gives a row for each of them; `samples` and `seed` are those of
    methods that draw. Raises ValueError for what this model, or no method of those, has.
    """
    config = model.config
    if not config.head:
        raise ValueError(
            f"an attribution explains a class, and this model has none: {config.no_head_because}. "
            "Use weights with a classifier, or flaxvgg.with_gap and train its head"
        )
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    given = {"composite": bool(composites), "samples": samples is not None}
    for method in methods:
        known = option_names(method)
        drawn = {"key": jax.random.key(seed)} if "key" in known else {}
        if samples is not None and "samples" in known:
            drawn["samples"] = samples
        if composites and "composite" in known:
            for composite in composites:
                rows[f"{method} {composite}"] = method, drawn | {"composite": composite}
        else:
            rows[method] = method, drawn
    for option, is_given in given.items():
        if is_given and not any(option in option_names(method) for method in methods):
            raise ValueError(f"--{option} is of no use to {', '.join(methods)}")
    image = jax.ShapeDtypeStruct((1, *size, 3), np.float32)
    for method, options in rows.values():  # traced only: none is to fail after another has run
        jax.eval_shape(partial(_values, method=method, options=options), model, image)
    return Plan(rows, parse_classes(classes, config.num_classes, model.classes), size)


def _values(model: VGG, images: Array, method: str, options: dict[str, Any]) -> Array:
    return attribute(model, images, None, method, **options).values


def parse_methods(text: str) -> tuple[str, ...]:
    """Methods of a text such as "lrp,saliency", or "all". Raises ValueError for an unknown one."""
    if text == "all":
        return ATTRIBUTIONS
    names = [find_name(name, ATTRIBUTIONS) for name in text.split(",")]
    return tuple(dict.fromkeys(names))


def parse_composites(text: str | None) -> tuple[str, ...]:
    """Composites of a text such as "epsilon_plus,epsilon_gamma_box". Raises ValueError likewise."""
    return tuple(dict.fromkeys(map(composite_name, text.split(",")))) if text else ()


def attribute_photos(
    model: VGG,
    photos: Sequence[Path],
    plan: Plan,
    problems: list[str],
    watch: Watcher = Watcher(),
) -> Iterator[AttributedPhoto]:
    """Each photo with its attributions, as soon as they are there.

    One program for each method serves all photos. Photos that cannot be read are left out and noted
    in `problems`. `watch` runs what takes long, and is told of each method.
    """
    scored = jax.jit(scores_of)
    with watch.bar("", len(photos) * len(plan.methods)) as bar:
        for i, photo in enumerate(photos):
            try:
                pixels = load_pixels(photo, plan.size, model.preprocessing)
            except ImageError as error:
                problems += error.problems
                continue
            images = normalise(pixels[None], model.preprocessing)
            scores = watch.run(partial(scored, model, images))
            if isinstance(plan.classes, tuple):
                labels = np.array([plan.classes])
            else:
                labels = top_classes(scores, plan.classes)
            found: dict[str, Attribution] = {}
            for done, (row, (method, options)) in enumerate(plan.methods.items()):
                bar.show(i * len(plan.methods) + done, what=f"{row} of {shown(photo)}")
                call = partial(attribute, model, images, labels, method, **options)
                found[row] = watch.run(call)
            bar.show((i + 1) * len(plan.methods))
            classes = tuple(int(x) for x in np.asarray(labels)[0])
            yield AttributedPhoto(
                photo,
                pixels,
                classes,
                tuple(model.classes[x] if model.classes else f"class {x}" for x in classes),
                tuple(float(scores[0, x]) for x in classes),
                np.asarray(scores[0]),
                {row: np.asarray(x.values[0]).sum(axis=-1) for row, x in found.items()},
            )
