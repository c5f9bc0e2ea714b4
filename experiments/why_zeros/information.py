"""(g) A zero says nothing: what a linear classifier reads in features with zeros and without."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from experiments.why_zeros import pictures
from experiments.why_zeros.subject import Subject, in_batches
from experiments.why_zeros.text import Table, percent
from flaxvgg.images.loading import open_image
from flaxvgg.network.model import VGG
from flaxvgg.ops.pooling import max_pool_2x2

CLAIM = "A zero is lost information"
METHOD = (
    "Logistic regression on pool5 (2x2x512) of 64x64 images, five folds, 20 training images a "
    "class. Digits: scikit-learn's, enlarged, under noise. Crops: which of 16 pictures is a grey, "
    "noisy crop from, tested on a strip of each picture that was not trained on. What ReLU removed "
    "are the negative values, with 0 in place of the others. Differences are taken fold by fold."
)

SIZE = 64  # pixels of an image
FOLDS = 5
TRAINING = 20  # images of each class
_NOISE = 90  # levels of 255, so that no task is solved

PIXELS = "the pixels themselves"
BEFORE = "before ReLU (signed)"
FEATURES = "features (after ReLU)"
BINARY = "zero or not (1 bit each)"
NEGATIVE = "only what ReLU removed"
TOP_5 = "the largest 5 %"
TOP_1 = "the largest 1 %"


@dataclasses.dataclass(frozen=True)
class Task:
    """Images (N, SIZE, SIZE, 3), their classes (N,), and the fold (N,) each is tested in."""

    name: str
    pixels: np.ndarray
    labels: np.ndarray
    folds: np.ndarray


def digits_task(count: int) -> Task:
    """Handwritten digits, enlarged and noisy; a fold is a run of neighbours in the data set.

    The same hand wrote neighbours, so that no fold is tested on a writer it was trained on, but at
    its ends.
    """
    digits, labels = load_digits(return_X_y=True)
    small = (digits[:count].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    enlarged = [Image.fromarray(d).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for d in small]
    grey = np.stack([np.asarray(image) for image in enlarged])
    return Task("digits", _noisy(grey), labels[:count], np.arange(count) * FOLDS // count)


def crops_task(rows: int) -> Task:
    """Which picture is a crop from? Grey, noisy, all of the same brightness and contrast.

    Pictures are cut into five vertical strips, one for each fold, and strips into crops that do not
    overlap: what is tested was never seen in training, not a pixel of it.
    """
    crops, labels, folds = [], [], []
    for label, path in enumerate(pictures.sources()):
        image = open_image(path).convert("L")
        scale = SIZE * FOLDS / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        grey = np.asarray(image, np.float64)
        strip = image.width // FOLDS
        for fold in range(FOLDS):
            for row in range(rows):
                left, top = fold * strip + (strip - SIZE) // 2, row * SIZE
                crop = grey[top : top + SIZE, left : left + SIZE]
                contrast = (crop - crop.mean()) / max(crop.std(), 1)
                crops.append(np.clip(128 + 50 * contrast, 0, 255).astype(np.uint8))
                labels.append(label)
                folds.append(fold)
    return Task("crops of pictures", _noisy(np.stack(crops)), np.array(labels), np.array(folds))


def _noisy(grey: np.ndarray) -> np.ndarray:
    """Grey images (N, H, W) as (N, H, W, 3), with the same noise in all channels."""
    noise = np.random.default_rng(0).normal(0, _NOISE, grey.shape)
    return np.repeat(np.clip(grey + noise, 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@partial(jax.jit, static_argnames="layer")
def _pooled_conv(model: VGG, images: jax.Array, layer: str) -> jax.Array:
    # Pooling and ReLU commute: ReLU of this is pool5, and its negative part is what ReLU removed.
    return max_pool_2x2(model.activations(images, [layer])[layer])


def largest(features: np.ndarray, fraction: float) -> np.ndarray:
    """Features (N, D) with all but that fraction of each image, the largest, set to zero."""
    keep = max(round(fraction * features.shape[1]), 1)
    least = np.partition(features, -keep, axis=1)[:, -keep, None]
    return np.where(features >= least, features, 0)


REPRESENTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    BEFORE: lambda z: z,
    FEATURES: lambda z: np.maximum(z, 0),
    BINARY: lambda z: (z > 0).astype(np.float32),
    NEGATIVE: lambda z: np.minimum(z, 0),
    TOP_5: lambda z: largest(np.maximum(z, 0), 0.05),
    TOP_1: lambda z: largest(np.maximum(z, 0), 0.01),
}


@threadpool_limits.wrap(limits=1)  # matrices this small take 15 times as long in two threads
def accuracy(task: Task, vectors: np.ndarray) -> np.ndarray:
    """The accuracy (FOLDS,) of logistic regression on vectors (N, D), fold by fold.

    Trained on TRAINING images of each class of the other folds; every dimension is scaled to unit
    variance, and all together to a mean square of one, so that one penalty suits all
    representations (between C = 1 and 1000 accuracies change by less than their spread).
    """
    found = []
    for fold in range(FOLDS):
        rng = np.random.default_rng(fold)
        others = rng.permutation(np.flatnonzero(task.folds != fold))
        training = np.concatenate(
            [others[task.labels[others] == label][:TRAINING] for label in np.unique(task.labels)]
        )
        test = np.flatnonzero(task.folds == fold)
        scaler = StandardScaler().fit(vectors[training])
        x, x_test = scaler.transform(vectors[training]), scaler.transform(vectors[test])
        # The penalised optimum lies in the span of the training images: turning to their own axes
        # changes nothing, and leaves as many dimensions as images.
        _, scales, axes = np.linalg.svd(x, full_matrices=False)
        axes = axes.T / np.sqrt(np.square(scales).sum() / len(x))
        classifier = LogisticRegression(C=10, max_iter=1000)
        classifier.fit(x @ axes, task.labels[training])
        found.append(classifier.score(x_test @ axes, task.labels[test]))
    return np.array(found)


def measure(subject: Subject) -> dict:
    """Accuracy of each representation of pool5 on two tasks, and its distance to the features'."""
    tasks = []
    for task in (digits_task(subject.effort.digits), crops_task(subject.effort.rows)):
        pooled_conv = partial(_pooled_conv, layer=subject.last_conv)
        z = np.asarray(in_batches(pooled_conv, subject.model, task.pixels)).reshape(
            len(task.pixels), -1
        )
        small = task.pixels[:, ::4, ::4, 0].reshape(len(z), -1)
        vectors = {name: make(z) for name, make in REPRESENTATIONS.items()}
        accuracies = {name: accuracy(task, x) for name, x in (vectors | {PIXELS: small}).items()}
        tasks.append(
            {
                "task": task.name,
                "images": len(z),
                "classes": len(np.unique(task.labels)),
                "zeros": float((vectors[FEATURES] == 0).mean()),
                "representations": [
                    {
                        "representation": name,
                        "accuracy": found.tolist(),
                        "mean": float(found.mean()),
                        "sd": float(found.std(ddof=1)),
                        # Fold by fold, so that hard folds cancel.
                        "more": float((found - accuracies[FEATURES]).mean()),
                        "more_sd": float((found - accuracies[FEATURES]).std(ddof=1)),
                    }
                    for name, found in accuracies.items()
                ],
            }
        )
    return {"training": TRAINING, "folds": FOLDS, "tasks": tasks}


def verdict(found: dict) -> str:
    """One sentence."""
    tasks = [
        {row["representation"]: row for row in task["representations"]} for task in found["tasks"]
    ]

    def both(name: str) -> str:
        return " and ".join(percent(task[name]["mean"]) for task in tasks)

    def points(name: str) -> str:
        return " and ".join(f"{100 * task[name]['more']:+.1f}" for task in tasks)

    bits = all(task[BINARY]["mean"] > 0.9 * task[FEATURES]["mean"] for task in tasks)
    removed = all(task[BEFORE]["more"] > 0 for task in tasks)
    return (
        f"{'False, a zero does say something' if bits else 'True'}: knowing only which features "
        f"are zero a linear classifier reaches {both(BINARY)} ({found['tasks'][0]['task']}, "
        f"{found['tasks'][1]['task']}), with the features themselves {both(FEATURES)}, with their "
        f"largest 5 % {both(TOP_5)}; but how negative a zero was "
        f"{'is lost, and would help' if removed else 'would not help'} "
        f"({points(BEFORE)} points with the signed values before ReLU)."
    )


def table(found: dict) -> Table:
    """One row a representation."""
    tasks = found["tasks"]
    header = ["what the classifier sees"]
    for task in tasks:
        what = f"{task['task']} ({task['images']} images, {task['classes']} classes)"
        header += [f"{what}: accuracy", "more than the features, points"]
    rows = []
    for i, row in enumerate(tasks[0]["representations"]):
        cells = [row["representation"]]
        for task in tasks:
            same = task["representations"][i]
            cells += [
                f"{percent(same['mean'])} ± {100 * same['sd']:.1f}",
                f"{100 * same['more']:+.1f} ± {100 * same['more_sd']:.1f}",
            ]
        rows.append(cells)
    return header, rows
