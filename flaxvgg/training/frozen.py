"""Convolutions that are not trained: what the head gets of an image is computed once, and kept."""

import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Shaped, UInt8

from flaxvgg.files.replacing import sweep
from flaxvgg.images.datasets import LabelledImages
from flaxvgg.images.inside import Inside
from flaxvgg.images.loading import load_pixels, normalise
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG, run_layers
from flaxvgg.network.prepared import prepare
from flaxvgg.network.processes import is_first, meet, told_by_first, total
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.network.sharding import data_mesh, place, shard_batch
from flaxvgg.training.data import reading
from flaxvgg.training.feature_files import FeatureFiles
from flaxvgg.training.settings import Run
from flaxvgg.watching import Watcher

_FOLDER = "features"
_ASKED = 8  # images after which somebody is asked whether to stop
_PART_OF_FREE = 0.5  # of the free bytes on the disk: what features may take

Photo = tuple[Path | Inside, bool]  # and whether it is mirrored
# The features of images, one by one, by their numbers.
FeaturesOf = Callable[[range], Iterator[np.ndarray]]


def last_frozen(config: VGGConfig) -> str:
    """The layer whose outputs a head is trained on: its mean over space, where it begins with one.

    >>> from flaxvgg.training.frozen import last_frozen
    >>> last_frozen(flaxvgg.VGGConfig.gap("vgg16", num_classes=20))
    'flatten'
    """
    fixed = itertools.takewhile(lambda x: x.kind in ("global_avg_pool", "flatten"), config.head)
    return (*config.conv_stack, *fixed)[-1].name


def _pixels(
    photo: Photo, size: tuple[int, int], recipe: Preprocessing
) -> UInt8[np.ndarray, "h w 3"]:
    path, is_mirrored = photo
    pixels = load_pixels(path, size, recipe)
    return pixels[:, ::-1].copy() if is_mirrored else pixels


class Backbone:
    """Frozen convolutions on a mesh: from images to the outputs of `last_frozen`.

    Every device runs the program of one. On a CPU an image's features do not depend on what else is
    in its batch.
    """

    def __init__(self, model: VGG, size: tuple[int, int], mesh: Mesh):
        self._recipe, self._size, self._mesh = model.preprocessing, size, mesh
        self._model = place(prepare(model, size), mesh)
        split = PartitionSpec(mesh.axis_names)
        specs = {"in_specs": (PartitionSpec(), split), "out_specs": split}
        self._run = jax.jit(jax.shard_map(_features, mesh=mesh, **specs, check_vma=False))

    def __call__(self, pixels: UInt8[Array, "n h w 3"]) -> Shaped[Array, "n ..."]:
        """The features of a batch that lies across the mesh (`flaxvgg.shard_batch`)."""
        return self._run(self._model, normalise(pixels, self._recipe))

    def of_photos(self, photos: Sequence[Photo], batch: int, decoders: int) -> Iterator[np.ndarray]:
        """The features of each photo, computed so many at once, on devices of this process."""
        # The last batch is filled up, so that one compiled program serves all.
        filled = [*photos, *list(photos[-1:]) * (-len(photos) % batch)]
        load = partial(_pixels, size=self._size, recipe=self._recipe)
        dataset = grain.MapDataset.source(filled).map(load).batch(batch)
        rows = (
            row
            for pixels in (reading(dataset, decoders) if filled else ())
            for row in np.asarray(self(shard_batch(pixels, self._mesh)))
        )
        return itertools.islice(rows, len(photos))


def _features(model: VGG, images: Float[Array, "n h w 3"]) -> Float[Array, "n ..."]:
    layer = last_frozen(model.config)
    return run_layers((model.conv_stack, model.head), images, {layer})[layer]


@dataclasses.dataclass(frozen=True)
class Features:
    """Where a run has the features of its images; all are None where convolutions are trained.

    `train` are files; without them `backbone` makes the features of each batch. `validation` gives
    those of images, one by one.
    """

    train: FeatureFiles | None = None
    validation: FeaturesOf | None = None
    backbone: Backbone | None = None


def compute_features(
    model: VGG,
    run: Run,
    images: LabelledImages,
    validation: LabelledImages,
    data: Mapping[str, Any],
    out: Path,
    mesh: Mesh,
    decoders: int,
    stop: Callable[[], bool],
    watch: Watcher,
) -> Features | None:
    """The features of a run's images, in `out`/features; None where `stop` said so before the end.

    What is there already is taken, what is not is computed. Of several processes each computes some
    of the files, and reads all of them. With `flip`, images to train on are followed by all of them
    mirrored. Where crops are random these are left out, and everything where the features would
    take more than half of what is free on the disk. `data` says what they are made of. Raises
    WriteError where a file cannot be written.
    """
    folder, crops, flips = out / _FOLDER, run.data.crop < 1, run.data.flip
    arithmetic = [run.model.dtype, run.model.precision]
    made = {**data, "config": model.config.to_json(), "size": run.data.size, "in": arithmetic}
    key = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()
    row = _row(model, run.data.size)
    seen = [
        (path, is_mirrored) for is_mirrored in (False, True)[: 1 + flips] for path in images.paths
    ]
    wanted: dict[str, list[Photo]] = {} if crops else {"training": seen}
    wanted["validation"] = [(path, False) for path in validation.paths]
    kept = {name: FeatureFiles(folder, name, key, len(x), row) for name, x in wanted.items()}
    todo = _todo(kept, folder, out, watch)
    of_process = Backbone(model, run.data.size, data_mesh(mesh.local_devices))
    batch = run.data.batch // jax.process_count()
    of_photos = partial(of_process.of_photos, batch=batch, decoders=decoders)
    every_batch = Backbone(model, run.data.size, mesh) if crops or todo is None else None
    size = _told(sum(len(files) * files.image_bytes for files in kept.values()))
    if todo is None:
        watch.say(
            f"the frozen convolutions run in every epoch: their features would take {size}, more "
            f"than half of what is free where {out} is"
        )
        photos = wanted["validation"]
        return Features(None, lambda own: of_photos([photos[i] for i in own]), every_batch)
    if crops:
        watch.say(
            "the frozen convolutions run in every epoch on the images to train on, of which each "
            "time another part is seen (crop = 1: once)"
        )
    what = {"training": "training, as they are and mirrored,"} if flips else {}
    counts = " and ".join(f"{len(kept[name])} for {what.get(name, name)}" for name in sorted(kept))
    watch.say(f"features of images are kept in {folder}: {counts}, {size}")
    for name, files in kept.items():
        if not _compute(files, todo[name], wanted[name], of_photos, stop, watch):
            return None
    meet("flaxvgg: features are kept")
    return Features(kept.get("training"), partial(map, kept["validation"].__getitem__), every_batch)


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
    photos: Sequence[Photo],
    of_photos: Callable[[Sequence[Photo]], Iterator[np.ndarray]],
    stop: Callable[[], bool],
    watch: Watcher,
) -> bool:
    """Make files, of several processes one each at a time; False where `stop` said so."""
    process, parts = jax.process_index(), jax.process_count()
    order = [image for number in todo[process::parts] for image in files.rows(number)]
    features = of_photos([photos[image] for image in order])
    with watch.bar("features", len(order)) as bar:
        for first in range(0, len(todo), parts):
            together = todo[first : first + parts]
            own = together[process : process + 1]
            found: list[np.ndarray] = []
            for _ in range(0, max(len(files.rows(number)) for number in together), _ASKED):
                if total(stop()):
                    return False
                left = sum(len(files.rows(number)) for number in own) - len(found)
                some = list(itertools.islice(features, min(_ASKED, left)))
                found += some
                bar.advance(len(some))
            for number in own:
                files.write(number, np.stack(found))
    return True


def _told(count: int) -> str:
    """So many bytes, in words."""
    power = min(len(str(count)) - 1, 9) // 3
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"
