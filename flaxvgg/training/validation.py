"""How well a model does on the validation images, by which the best of a run is chosen."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from flaxvgg.evaluation.classification import (
    accuracy,
    confusion_matrix,
    mean_average_precision,
)
from flaxvgg.images.batches import map_photos
from flaxvgg.images.datasets import LabelledImages
from flaxvgg.network.model import VGG, run_layers
from flaxvgg.network.processes import gathered, own_part
from flaxvgg.training.frozen import FeaturesOf, last_frozen
from flaxvgg.training.losses import LOSSES
from flaxvgg.watching import Watcher

_BATCH = 8


def scores_of(
    model: VGG,
    images: LabelledImages,
    size: tuple[int, int],
    watch: Watcher,
    features: FeaturesOf | None = None,
) -> Float[np.ndarray, "n k"]:
    """The scores of all images, in float32; of several processes each computes its part.

    Where there are `features` of the images, by their numbers, the head's alone are computed.
    """
    scores = np.zeros((0, images.labels.shape[1]), np.float32)
    own = own_part(len(images))
    if own and features is not None:
        scores = _scores_by_features(model, features(own), own, watch)
    elif own:
        photos = [images.paths[row] for row in own]
        scores = map_photos(_scores, model, photos, size, "validating", watch)
    parts = [np.frombuffer(x, np.float32) for x in gathered(scores.tobytes())]
    return np.concatenate(parts).reshape(-1, scores.shape[1])


def measures(
    scores: Float[np.ndarray, "n k"], images: LabelledImages, loss: str
) -> dict[str, float]:
    """A row's columns: the loss, the metric, and, where every image is of one class, the accuracy.

    The metric is the mean average precision, with the loss "softmax" the accuracy.
    """
    labels = images.labels
    found = {
        "validation_loss": float(LOSSES[loss](jnp.asarray(scores), jnp.asarray(labels))),
        "validation_metric": mean_average_precision(scores, labels),
    }
    if has_one_class_each(images):
        found["validation_accuracy"] = accuracy(scores, labels)
    if loss == "softmax":
        found["validation_metric"] = found["validation_accuracy"]
    return found


def has_one_class_each(images: LabelledImages) -> bool:
    """Whether every image is of exactly one class, as in a folder for each class."""
    return bool((images.labels.sum(axis=1) == 1).all())


def metric_name(loss: str) -> str:
    """What the validation metric of a run with this loss is called."""
    return "accuracy" if loss == "softmax" else "mAP"


def line(row: Mapping[str, float | int], epochs: int, loss: str) -> str:
    """An epoch in a line."""
    told = (
        f"epoch {row['epoch']:3} of {epochs}   loss {row['loss']:.4f}   "
        f"validation loss {row['validation_loss']:.4f}   "
        f"{metric_name(loss)} {row['validation_metric']:.3f}"
    )
    if loss != "softmax" and "validation_accuracy" in row:
        told += f"   accuracy {row['validation_accuracy']:.3f}"
    return told


def say_absent(validation: LabelledImages, metric: str, watch: Watcher) -> None:
    """Say which classes no validation image has."""
    counts = zip(validation.classes, validation.labels.sum(0), strict=True)
    names = [name for name, count in counts if not count]
    if names:
        watch.warn(
            f"no validation image is of class {', '.join(names)}: the {metric} does not tell how "
            "well it is found; add images of it"
        )


def confusion_csv(scores: Float[np.ndarray, "n k"], images: LabelledImages) -> bytes:
    """A table with a row for each class and a column for each that its images were taken for."""
    counts = confusion_matrix(scores, images.labels)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", *images.classes, "recall"])
    for name, row in zip(images.classes, counts, strict=True):
        total = row.sum()
        recall = f"{row[images.classes.index(name)] / total:.4f}" if total else ""
        writer.writerow([name, *row.tolist(), recall])
    return text.getvalue().encode()


def _scores_by_features(
    model: VGG, features: Iterator[np.ndarray], own: range, watch: Watcher
) -> Float[np.ndarray, "n k"]:
    found = []
    rows = watch.each(features, "validating", len(own))
    while some := list(itertools.islice(rows, _BATCH)):
        # The last batch is filled up, so that one compiled program serves all.
        filled = np.stack(some + some[-1:] * (_BATCH - len(some)))
        found.append(np.asarray(_of_head(model, filled))[: len(some)])
    return np.concatenate(found)


@jax.jit
def _of_head(model: VGG, features: Shaped[Array, "n ..."]) -> Float[Array, "n k"]:
    output, layer = model.config.head_output.name, last_frozen(model.config)
    stacks = model.conv_stack, model.head
    return run_layers(stacks, features, {output}, after=layer)[output].astype(jnp.float32)


@jax.jit
def _scores(model: VGG, images: Float[Array, "n h w 3"]) -> Float[Array, "n k"]:
    return model(images).astype(jnp.float32)
