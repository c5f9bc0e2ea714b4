"""The picture of explained photos: their maps, method by method and class by class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from flaxvgg.cam.explanation import Explanation, Flag
from flaxvgg.cam.photos import FLAG_WORDS, ExplainedPhoto, probabilities, shown
from flaxvgg.network.model import AnyArray
from flaxvgg.plotting.figures import check_drawing, overlay, same_images
from flaxvgg.plotting.grid import Panel, Row, Words, grid_figure, images_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Whether the maps of a photo's classes share a scale, or each has its own.
Scale = Literal["photo", "map"]
Activation = Literal["softmax", "sigmoid"]
_TOLD = {
    "photo": "the maps of one method and photo share a scale, from their lowest to their highest "
    "value",
    "map": "each map from its own lowest to its own highest value: not to be compared",
}


def cam_figure(
    explained: ExplainedPhoto,
    title: str,
    scale: Scale = "photo",
    activation: Activation = "softmax",
) -> "Figure":
    """A row for each method and a column for each class, beside the photo.

    The classes of a method share a `scale`, or each map has its own. The line is half way, the ring
    at the peak. A map that is not to be trusted is marked. `activation` is that of the
    probabilities.
    """
    heat = explained.shared if scale == "photo" else explained.heatmaps
    rows = []
    for method, maps in explained.maps.items():
        panels = [
            Panel(
                one if found.peak else np.zeros_like(one),
                found.peak,
                FLAG_WORDS[found.flag] if found.flag != Flag.FINE else "",
            )
            for one, found in zip(heat[method], maps, strict=True)
        ]
        layers = ", ".join(explained.layers[method]) or "whole network"
        rows.append(Row(method, layers, panels))
    # The scores of enlarged windows are not the network's.
    usual = [maps for name, maps in explained.maps.items() if name != "fully_convolutional"]
    found = (usual or list(explained.maps.values()))[0]
    labels = [-1 if one.label is None else one.label for one in found]
    chances = chances_of(explained.logits, np.array(labels), activation)
    columns = [
        f"{one.name or 'no class'}\n{told_score(one.score, chance)}".strip()
        for one, chance in zip(found, chances, strict=True)
    ]
    note = f"{_TOLD[scale]}; line: half way, ring: the peak"
    return grid_figure(
        explained.pixels,
        rows,
        columns,
        Words(shown(explained.photo), title, note, ("lowest", "", "highest")),
    )


def explanation_figure(
    explanation: Explanation,
    images: AnyArray,
    names: Sequence[str] = (),
    *,
    logits: AnyArray | None = None,
    activation: Activation = "softmax",
    scale: Scale = "photo",
) -> "Figure":
    """A row for each image and a column for each class, beside the images.

    `images` (N, H, W, 3) are pixels of 8 bits, or what the network was given, which is stretched
    from its lowest value to its highest. `names` are those of all classes, as in `model.classes`.
    With the `logits` (N, C) of all classes their probabilities are told, by the `activation`. The
    classes of an image share a `scale`, or each map has its own.
    Raises ValueError for images of another number or size than were explained.
    """
    count = explanation.classes.shape[0]
    pictures = same_images(images, (count, *explanation.image_size))
    heat = explanation.heatmaps(explanation.image_size, shared=scale == "photo")
    flags, labels, scores = map(
        np.asarray, (explanation.flags, explanation.classes, explanation.scores)
    )
    titles = []
    for i in range(count):
        chances = chances_of(
            None if logits is None else np.asarray(logits)[i], labels[i], activation
        )
        told = []
        for label, score, flag, chance in zip(labels[i], scores[i], flags[i], chances, strict=True):
            name = names[label] if names and label >= 0 else f"class {label}" if label >= 0 else ""
            warning = f" ({FLAG_WORDS[flag]})" if flag != Flag.FINE else ""
            below = told_score(float(score), chance).replace("\n", ", ")
            told.append(f"{name}{warning}\n{below}")
        titles.append(told)
    layers = ", ".join(explanation.layers) or "whole network"
    title = f"{explanation.method} at {layers}: {_TOLD[scale]}"
    return images_figure(pictures, np.asarray(heat), titles, title)


def chances_of(
    logits: Float[np.ndarray, " c"] | None,
    labels: np.ndarray,
    activation: Activation,
) -> Float[np.ndarray, " k"]:
    """The probabilities of the classes `labels` (K,), NaN where they are not known."""
    if logits is None or not len(logits):
        return np.full(len(labels), np.nan)
    chances = probabilities(logits, activation)
    return np.where(labels >= 0, chances[labels], np.nan)


def explanation_overlay(
    explanation: Explanation, images: Shaped[AnyArray, "n h w 3"]
) -> UInt8[np.ndarray, "n k h w 3"]:
    """The heat maps over their images, as pixels; what is not finite is cold.

    Takes and raises what `explanation_figure` does, and ValueError where matplotlib is missing.
    """
    check_drawing()
    pictures = same_images(images, (len(explanation.classes), *explanation.image_size))
    heat = np.nan_to_num(np.asarray(explanation.heatmaps(explanation.image_size), np.float32))
    drawn = [
        [overlay(picture, one) for one in of_image]
        for picture, of_image in zip(pictures, heat, strict=True)
    ]
    return (255 * np.clip(drawn, 0, 1)).round().astype(np.uint8).reshape(*heat.shape, 3)


def told_score(score: float, chance: float) -> str:
    """A logit and its probability in two lines, as far as they are known."""
    lines = [f"logit {score:.3g}"] if np.isfinite(score) else []
    lines += [f"probability {100 * chance:.3g} %"] if np.isfinite(chance) else []
    return "\n".join(lines)
