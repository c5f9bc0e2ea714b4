"""Where weights come from, and what they expect to be fed."""

import dataclasses
import math
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

    >>> flaxvgg.PREPROCESSING["keras"].formula
    'BGR - (103.939, 116.779, 123.68)'
    """

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisor: float = 255.0
    channels: Literal["RGB", "BGR"] = "RGB"
    fit: Literal["crop", "stretch"] = "crop"
    interpolation: Literal["bilinear", "nearest"] = "bilinear"

    @property
    def formula(self) -> str:
        """What is computed, in short: `(RGB / 255 - (0.5, 0.5, 0.5)) / (0.25, 0.25, 0.25)`."""
        mean, std = ([float(f"{x:.6g}") for x in values] for values in (self.mean, self.std))
        text = self.channels if self.divisor == 1 else f"{self.channels} / {self.divisor:g}"
        if any(mean):
            text += f" - {_shown(mean)}"
        if set(std) != {1.0}:
            text = f"({text}) / {_shown(std)}" if " " in text else f"{text} / {_shown(std)}"
        return text


def _shown(values: list[float]) -> str:
    same = len(set(values)) == 1
    return f"{values[0]:g}" if same else f"({', '.join(f'{value:g}' for value in values)})"


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
        # What torchvision's ToTensor gives, and Keras's pixels: no recipe at all, but a range.
        Preprocessing("unit", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        Preprocessing(
            "pixels",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            divisor=1.0,
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
    logits (empty where unknown), `versions` the packages that did the conversion, and `notes` what
    was left out or changed when they were read, a line each. `guess` says why `preprocessing` is
    only assumed ("" where the weights' publisher or file tells it).

    >>> flaxvgg.Provenance(source="run 7").noting("the classifier was left out").notes
    ('the classifier was left out',)
    """

    source: str = "random initialisation"
    sha256: str = ""
    preprocessing: Preprocessing = PREPROCESSING["torchvision"]
    classes: tuple[str, ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    guess: str = ""

    def noting(self, *notes: str) -> "Provenance":
        """The same with more notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `from_json` makes an equal record."""
        return dataclasses.asdict(self) | {"versions": dict(self.versions)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Provenance":
        """The record that `to_json` wrote. Raises ValueError for one of other types."""
        _check(value)
        recipe = dict(value["preprocessing"])
        recipe |= {"mean": tuple(recipe["mean"]), "std": tuple(recipe["std"])}
        return cls(
            source=value["source"],
            sha256=value["sha256"],
            preprocessing=Preprocessing(**recipe),
            classes=tuple(value["classes"]),
            versions=tuple(value["versions"].items()),
            notes=tuple(map(str, value.get("notes", ()))),  # older checkpoints do not say
            guess=str(value.get("guess", "")),
        )


def _check(value: Mapping[str, Any]) -> None:
    """Raise ValueError, or KeyError, where a record says what nothing can use."""
    recipe, versions = value["preprocessing"], value["versions"]
    texts = {name: value[name] for name in ("source", "sha256")}
    texts |= {"preprocessing.name": recipe["name"]}
    texts |= {"classes": "".join(value["classes"]), "versions": "".join(versions.values())}
    wrong = [name for name, text in texts.items() if not isinstance(text, str)]
    for name in ("mean", "std"):
        numbers = recipe[name]
        if len(numbers) != 3 or not all(_is_finite(x) for x in numbers):
            wrong.append(f"preprocessing.{name}")
    if not _is_finite(recipe["divisor"]) or not recipe["divisor"] or 0 in recipe["std"]:
        wrong.append("preprocessing.divisor, std")
    choices = {"channels": ("RGB", "BGR"), "fit": ("crop", "stretch")}
    choices |= {"interpolation": ("bilinear", "nearest")}
    wrong += [f"preprocessing.{name}" for name in choices if recipe[name] not in choices[name]]
    if wrong:
        raise ValueError(f"the provenance has a wrong {wrong[0]}")


def _is_finite(x: object) -> bool:
    return isinstance(x, (int, float)) and math.isfinite(x)
