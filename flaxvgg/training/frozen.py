"""Convolutions that are not trained: what the head gets of an image is computed once, and kept."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Shaped, UInt8

from flaxvgg.files.replacing import sweep
from flaxvgg.images.datasets import LabelledImages
from flaxvgg.images.loading import load_pixels, normalise
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, run_layers
from flaxvgg.network.prepared import prepare
from flaxvgg.network.processes import is_first, meet, told_by_first, total
from flaxvgg.network.sharding import data_mesh, place, shard_batch
from flaxvgg.training.data import reading
from flaxvgg.training.feature_files import FeatureFiles
from flaxvgg.training.settings import Run
from flaxvgg.watching import Watcher

_FOLDER = "features"
_PURPOSE = {"train": "training", "validation": "validation"}
_PART_OF_FREE = 0.5  # of the free bytes on the disk: what features may take


def last_frozen(config: VGGConfig) -> str:
    """The layer whose outputs a head is trained on: its mean over space, where it begins with one.

    >>> config = flaxvgg.VGGConfig.gap("vgg16", num_classes=20)
    >>> flaxvgg.training.frozen.last_frozen(config)
    'flatten'
    """
    fixed = itertools.takewhile(lambda x: x.kind in ("global_avg_pool", "flatten"), config.head)
    return (*config.conv_stack, *fixed)[-1].name


class Backbone:
    """Frozen convolutions on a mesh: from pixels to the outputs of `last_frozen`.

    Every device runs the program of one, and on a CPU an image's features do not depend on the
    batch that it is in.
    """

    def __init__(self, model: VGG, size: tuple[int, int], mesh: Mesh):
        self.mesh, self.recipe = mesh, model.preprocessing
        self._model = place(prepare(model, size), mesh)
        split = PartitionSpec(mesh.axis_names)
        specs = (PartitionSpec(), split)
        program = jax.shard_map(
            _features, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False
        )
        self._run = jax.jit(program)

    def __call__(self, pixels: UInt8[Array, "n h w 3"]) -> Shaped[Array, "n ..."]:
        """The features of a batch that lies across the mesh (`flaxvgg.shard_batch`)."""
        return self._run(self._model, normalise(pixels, self.recipe))


def _features(model: VGG, images: Array) -> Array:
    layer = last_frozen(model.config)
    return run_layers((model.conv_stack, model.head), images, {layer})[layer]


@dataclasses.dataclass(frozen=True)
class Features:
    """Where a run has the features of its images: in files, or of each batch by `backbone`.

    All are None where the convolutions are trained.
    """

    train: FeatureFiles | None = None
    validation: FeatureFiles | None = None
    backbone: Backbone | None = None  # of batches of pixels, where `train` is None


def compute_features(
    model: VGG,
    run: Run,
    images: LabelledImages,
    validation: LabelledImages,
    data: Mapping[str, Any],
    out: Path,
    mesh: Mesh,
    stop: Callable[[], bool],
    watch: Watcher,
) -> Features | None:
    """The features of a run's images, in `out`/features; None where `stop` said so before the end.

    What is there already is taken, what is not is computed. Of several processes each computes some
    of the files, and reads all of them. Images that crops and mirrors change are left out, and all
    of them where the features would take more than half of what is free on the disk. `data` says
    what they are made of. Raises WriteError where a file cannot be written.
    """
    folder, random = out / _FOLDER, run.data.random
    arithmetic = [run.model.dtype, run.model.precision]
    made = {**data, "config": model.config.to_json(), "size": run.data.size, "in": arithmetic}
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    row = _row(model, run.data.size)
    wanted = {} if random else {"train": images}
    wanted["validation"] = validation
    kept = {name: FeatureFiles(folder, name, key, len(x), row) for name, x in wanted.items()}
    todo = _todo(kept, folder, out, watch)
    size = sum(len(files) * files.image_bytes for files in kept.values())
    if todo is None:
        watch.say(
            f"the frozen convolutions run in every epoch: their features would take {_told(size)}, "
            f"more than half of what is free where {out} is"
        )
        return Features(backbone=Backbone(model, run.data.size, mesh))
    counts = " and ".join(f"{len(files)} for {_PURPOSE[name]}" for name, files in kept.items())
    if random:
        watch.say(
            "the frozen convolutions run in every epoch on the images to train on, which "
            f"{' and '.join(random)} changes each time (flip = false and crop = 1: once)"
        )
    watch.say(f"features of images are kept in {folder}: {counts}, {_told(size)}")
    backbone = Backbone(model, run.data.size, data_mesh(mesh.local_devices))
    batch = run.data.batch // jax.process_count()
    for name, files in kept.items():
        if not _compute(files, todo[name], wanted[name], backbone, batch, run, stop, watch):
            return None
    meet("flaxvgg: features are kept")
    every_batch = Backbone(model, run.data.size, mesh) if random else None
    return Features(**kept, backbone=every_batch)


def _row(model: VGG, size: tuple[int, int]) -> jax.ShapeDtypeStruct:
    """The features of one image."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    found = jax.eval_shape(_features, model, image)
    return jax.ShapeDtypeStruct(found.shape[1:], found.dtype)


def _todo(
    kept: Mapping[str, FeatureFiles], folder: Path, out: Path, watch: Watcher
) -> dict[str, list[int]] | None:
    """The files that have to be made, as the first process sees it; None where there is no room."""
    found = ""
    if is_first():
        sweep(folder)
        todo = {}
        for name, files in kept.items():
            todo[name], damaged = files.missing()
            for number in damaged:
                watch.warn(f"{files.path(number)} is damaged: its features are computed anew")
        more = sum(
            len(files.rows(number)) * files.image_bytes
            for name, files in kept.items()
            for number in todo[name]
        )
        free = shutil.disk_usage(out).free
        found = json.dumps(todo if more <= _PART_OF_FREE * free else None)
    return json.loads(told_by_first(found))


def _compute(
    files: FeatureFiles,
    todo: list[int],
    images: LabelledImages,
    backbone: Backbone,
    batch: int,
    run: Run,
    stop: Callable[[], bool],
    watch: Watcher,
) -> bool:
    """Make files, of several processes one each at a time; False where `stop` said so."""
    parts, recipe = jax.process_count(), backbone.recipe
    mine = todo[jax.process_index() :: parts]

    def rows(number: int) -> list[int]:
        """A file's images, the last ones repeated, so that they are whole batches."""
        found = list(files.rows(number))
        return found + found[-1:] * (-len(found) % batch)

    order = [image for number in mine for image in rows(number)]

    def load(i: int) -> np.ndarray:
        return load_pixels(images.paths[order[i]], run.data.size, recipe)

    dataset = grain.MapDataset.range(len(order)).map(load).batch(batch)
    batches: Iterator[np.ndarray] = reading(dataset) if order else iter(())
    with watch.bar("features", len(order)) as bar:
        for first in range(0, len(todo), parts):
            together = todo[first : first + parts]
            own = together[jax.process_index() :][:1]
            found = []
            for step in range(max(len(rows(number)) // batch for number in together)):
                if total(stop()):
                    return False
                if own and step < len(rows(own[0])) // batch:
                    pixels = shard_batch(next(batches), backbone.mesh)
                    found.append(np.asarray(backbone(pixels)))
                    bar.advance(batch)
            for number in own:
                files.write(number, np.concatenate(found)[: len(files.rows(number))])
    return True


def _told(count: int) -> str:
    """So many bytes, in words."""
    power = min(len(str(count)) - 1, 9) // 3
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"
