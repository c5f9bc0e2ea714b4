"""Where weights come from, and what they expect to be fed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


class WeightsError(ValueError):
    """Weights cannot be had or read; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an 8-bit image becomes the network's input.

    Pixels are divided by `divisor`, put in the order `channels`, and normalised as
    (x - mean) / std; `mean` and `std` are in that order and on that scale. With `fit` "crop" the
    image is scaled to cover the target enlarged by 256/224 and its centre is cut out; with
    "stretch" it is resized to the target, whatever its shape.
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisor: float = 255.0
    channels: Literal["RGB", "BGR"] = "RGB"
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bilinear", "nearest"] = "bilinear"


PREPROCESSING = {
    recipe.name: recipe
    for recipe in (
        # torchvision's ImageClassification preset.
        Preprocessing("torchvision", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        # torchvision's VGG16 IMAGENET1K_FEATURES: Caffe's means on RGB, no division by a deviation.
        Preprocessing(
            "features", mean=(0.48235, 0.45882, 0.40784), std=(1 / 255, 1 / 255, 1 / 255)
        ),
        # keras.applications.vgg16.preprocess_input after keras.utils.load_img(target_size=...).
        Preprocessing(
            "keras",
            mean=(103.939, 116.779, 123.68),
            std=(1.0, 1.0, 1.0),
            divisor=1.0,
            channels="BGR",
            fit="stretch",
            interpolation="nearest",
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What is known of a model's weights; it travels with them into every checkpoint.

    `source` is a file name or the name of published weights, `sha256` the digest of the file that
    was read ("" for weights that come from no file), `classes` the class names in the order of the
    logits (empty where unknown), and `versions` the packages that did the conversion.
    """

    source: str = "random initialisation"
    sha256: str = ""
    preprocessing: Preprocessing = PREPROCESSING["torchvision"]
    classes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `from_json` makes an equal record."""
        return dataclasses.asdict(self) | {"versions": dict(self.versions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Provenance":
        """The record that `to_json` wrote."""
        recipe = dict(value["preprocessing"])
        recipe |= {"mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])}
        return cls(
            source=value["source"],
            sha256=value["sha256"],
            preprocessing=Preprocessing(**recipe),
            classes=tuple(value["classes"]),
            versions=tuple(value["versions"].items()),
        )
