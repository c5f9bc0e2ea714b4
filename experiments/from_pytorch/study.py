"""What is measured: addresses, layouts, classifiers on both sides' features, and speed."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

import flaxvgg
from experiments.composed.objects import OBJECTS
from experiments.composed.scenes import Scenes, held_out_scenes, training_scenes
from experiments.from_pytorch import batches, classifiers, exchange, networks
from experiments.from_pytorch.batches import Normalised, Pixels, Sample
from experiments.from_pytorch.networks import Features
from experiments.timing import compete
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING

Report = Callable[[float], None]
DLPACK = "uint8, by DLPack, to flaxvgg"
LAST = "float, channels last, by DLPack, to flaxvgg"
PLAIN = "float, contiguous, by DLPack, to flaxvgg"
TORCH = "float, contiguous, to PyTorch"
MEMORY = "uint8, already in memory, to flaxvgg"
GAP, POOL5 = "GAP", "pool5, flattened"


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is run: scenes of `size` pixels, and `timed` of them in each of `rounds` rounds."""

    size: int = 224
    training: int = 264
    tests: int = 88
    batch: int = 8
    workers: int = 2
    timed: int = 32
    rounds: int = 7
    seconds: float = 120.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Files:
    """Scenes as JPEG files, and which objects are in each."""

    paths: Sequence[Path]
    labels: np.ndarray


def write(scenes: Scenes, folder: Path) -> Files:
    """Scenes as files, as a data set lies on a disk."""
    paths = []
    for i, pixels in enumerate(scenes.pixels):
        paths.append(folder / f"{i:04}.jpg")
        Image.fromarray(pixels).save(paths[-1], quality=95)
    return Files(paths, scenes.labels)


def transform_of(model: VGG) -> Callable[[Image.Image], torch.Tensor]:
    """What a user of PyTorch puts before the same weights."""
    recipe = model.preprocessing
    make = batches.kerass if recipe.name == "keras" else batches.torchvisions
    return make(recipe.mean, recipe.std)


class Study:
    """One model on both sides, and its data."""

    def __init__(self, model: VGG, effort: Effort, folder: Path):
        self.model, self.effort = model, effort
        self.network = networks.torch_convolutions(model)
        self.files = {}
        for part, compose, count in (
            ("training", training_scenes, effort.training),
            ("test", held_out_scenes, effort.tests),
        ):
            (folder / part).mkdir()
            scenes = compose(count, effort.seed, effort.size)
            self.files[part] = write(scenes, folder / part)

    def pixels(self, part: str, count: int | None = None) -> DataLoader[Sample]:
        """A loader of uint8 batches (N, H, W, 3)."""
        files, effort = self.files[part], self.effort
        dataset = Pixels(files.paths[:count], files.labels)
        return batches.loader(dataset, effort.batch, effort.workers)

    def normalised(
        self, part: str, count: int | None = None, *, last: bool = False
    ) -> DataLoader[Sample]:
        """A loader of float batches (N, 3, H, W), channels last in memory or contiguous."""
        files, effort = self.files[part], self.effort
        dataset = Normalised(files.paths[:count], files.labels, transform_of(self.model))
        collate = batches.channels_last if last else None
        return batches.loader(dataset, effort.batch, effort.workers, collate)

    def normalisations(self) -> dict[str, int]:
        """Values of a batch that `normalise` and torchvision's transforms round differently."""
        files, found = self.files["test"], {}
        paths, labels = files.paths[: self.effort.batch], files.labels
        ((pixels, _),) = batches.loader(Pixels(paths, labels), len(paths), 0)
        for name, make in (("torchvision", batches.torchvisions), ("keras", batches.kerass)):
            recipe = PREPROCESSING[name]
            dataset = Normalised(paths, labels, make(recipe.mean, recipe.std))
            ((theirs, _),) = batches.loader(dataset, len(paths), 0)
            ours = np.asarray(flaxvgg.normalise(exchange.to_jax(pixels), recipe))
            bits = (x.view(np.uint32) for x in (ours, theirs.permute(0, 2, 3, 1).numpy()))
            found[name] = int(np.not_equal(*bits).sum())
        return found

    def answers(self) -> dict[str, Any]:
        """Classifiers on both sides' features: figures, and answers that differ."""
        training, first = networks.our_features(self.model, self.pixels("training"))
        test, second = networks.our_features(self.model, self.pixels("test"))
        shared = networks.Shared(*map(sum, zip(first, second, strict=True)))
        theirs = [
            networks.their_features(self.network, self.normalised(part)) for part in self.files
        ]
        probes = [
            classifiers.by_autograd(*_tensors(*pair)) for pair in ((training, test), tuple(theirs))
        ]
        rows = [_row("PyTorch's autograd", GAP, test.labels, *probes)]
        for kind, pick in ((GAP, lambda x: x.gap), (POOL5, lambda x: x.pool5)):
            fitted = [
                classifiers.by_scikit_learn(
                    np.asarray(pick(one)), one.labels, np.asarray(pick(other))
                )
                for one, other in ((training, test), tuple(theirs))
            ]
            rows.append(_row("scikit-learn", kind, test.labels, *fitted))
        return {
            "shared": shared._asdict(),
            "features": {
                GAP: _difference(test.gap, theirs[1].gap),
                POOL5: _difference(test.pool5, theirs[1].pool5),
            },
            "rows": rows,
        }

    def speed(self, report: Report) -> dict[str, Any]:
        """Seconds of every round, of every way from the files to the means of pool5."""
        effort = self.effort
        ours, theirs = networks.passes(self.model, self.network)
        loaders = {
            DLPACK: (self.pixels("training", effort.timed), ours),
            LAST: (self.normalised("training", effort.timed, last=True), ours),
            PLAIN: (self.normalised("training", effort.timed), ours),
            TORCH: (self.normalised("training", effort.timed), theirs),
        }
        held = [(pixels.clone(), labels) for pixels, labels in loaders[DLPACK][0]]
        ways = loaders | {MEMORY: (held, ours)}
        calls = {
            name: (lambda source=source, run=run: [run(batch) for batch, _ in source])
            for name, (source, run) in ways.items()
        }
        timed = compete(calls, effort.rounds, effort.seconds, report)
        return {name: list(found.rounds) for name, found in timed.items()}

    def copying(self) -> dict[str, float]:
        """Median milliseconds of handing over a float batch, and of bringing it into our order."""
        effort = self.effort
        plain = torch.zeros(effort.batch, 3, effort.size, effort.size)
        array = exchange.to_jax(plain.permute(0, 2, 3, 1))
        reorder = jax.jit(jnp.positive)  # nothing but the copy to the order of the axes
        calls = {
            "hand_over": lambda: exchange.to_jax(plain.permute(0, 2, 3, 1)),
            "reorder": lambda: jax.block_until_ready(reorder(array)),
        }
        timed = compete(calls, 15, 10.0, lambda done: None)
        return {name: 1e3 * statistics.median(found.rounds) for name, found in timed.items()}


def _tensors(training: Features, test: Features) -> Iterator[torch.Tensor]:
    """GAP vectors and labels for PyTorch; flaxvgg's stay where they are."""
    for x in (training.gap, training.labels, test.gap):
        yield exchange.to_torch(x) if isinstance(x, jax.Array) else torch.from_numpy(x)


def _row(tool: str, kind: str, labels: np.ndarray, ours, theirs) -> dict[str, Any]:
    return {
        "tool": tool,
        "features": kind,
        "flaxvgg": ours.figures(labels),
        "PyTorch": theirs.figures(labels),
        "answers": int(ours.yes.size),
        "differ": int((ours.yes != theirs.yes).sum()),
        "scores": [np.round(x.scores.ravel(), 4).tolist() for x in (ours, theirs)],
    }


def _difference(ours: Any, theirs: Any) -> float:
    """The root mean square of the difference, relative to that of the features."""
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def study(model: VGG, effort: Effort, report: Report) -> dict[str, Any]:
    """A JSON value with every number."""
    with tempfile.TemporaryDirectory() as folder:
        found = Study(model, effort, Path(folder))
        example = next(iter(found.normalised("test", effort.batch)))[0]
        return {
            "weights": model.provenance.source,
            "arch": model.config.arch,
            "classes": [item.name for item in OBJECTS],
            "effort": dataclasses.asdict(effort),
            "layouts": [case._asdict() for case in exchange.layouts(example)],
            "hazards": [case._asdict() for case in exchange.hazards()],
            "rounded_differently": found.normalisations(),
            "answers": found.answers(),
            "copying": found.copying(),
            "speed": found.speed(report),
        }
