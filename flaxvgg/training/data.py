"""The batches of a run through Grain: the same ones in the same order, from any step on."""

import dataclasses
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flaxvgg.images.ahead import ahead
from flaxvgg.images.datasets import LabelledImages
from flaxvgg.images.inside import Inside
from flaxvgg.images.loading import ImageError, fit_image, open_image
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.training.feature_files import FeatureFiles
from flaxvgg.training.settings import Data

_RATIO = 3 / 4  # the narrowest crop, as in torchvision's RandomResizedCrop
_AHEAD = 4  # batches that are read before they are asked for, at least: a thread reads a whole one


def batches(
    images: LabelledImages,
    data: Data,
    recipe: Preprocessing,
    *,
    epochs: int,
    seed: int,
    part: int = 0,
    parts: int = 1,
    features: FeatureFiles | None = None,
) -> grain.MapDataset:
    """All batches of a run, by number: {"pixels": (N, H, W, 3) in 8 bits, "labels": (N, K)}.

    Where the `features` of the images are kept, with `flip` those of the mirrored ones behind them,
    these (N, ...) take the place of the pixels. Each epoch is shuffled anew; a last batch that is
    not full is left out. With `parts`, the number of processes, `part` is the one whose images are
    wanted: only these are read, the same as in one process, and the parts of a batch one behind the
    other are the batch. Raises ValueError for fewer images than a batch, and for a batch that
    cannot be divided so.
    """
    if not 0 <= part < parts or data.batch % parts:
        raise ValueError(
            f"part {part} of {parts} of batch = {data.batch}: parts count from 0, and the batch is "
            "a multiple of their number"
        )
    if len(images) < data.batch:
        raise ValueError(
            f"{len(images)} images to train on, fewer than a batch: lower batch = {data.batch}"
        )

    source = grain.MapDataset.range(len(images)).seed(seed).shuffle()
    # Batches within an epoch, so that each has the same number of them.
    whole = len(images) // data.batch * data.batch
    seen = (
        source.slice(slice(whole)).repeat(epochs).random_map(_Load(images, data, recipe, features))
    )
    of_part = _OfPart(seen, data.batch, part, data.batch // parts)
    return grain.MapDataset.range(len(seen) // parts).map(of_part).batch(of_part.own)


# Not functions within `batches`: these could not be given to other processes.
@dataclasses.dataclass(frozen=True)
class _Load:
    images: LabelledImages
    data: Data
    recipe: Preprocessing
    features: FeatureFiles | None

    def __call__(self, index: int, random: np.random.Generator) -> dict[str, Any]:
        labels = self.images.labels[index]
        if self.features is not None:
            row = index + len(self.images) * _is_mirrored(self.data, random)
            return {"features": self.features[row], "labels": labels}
        pixels = _read(self.images.paths[index], self.data, self.recipe, random)
        return {"pixels": pixels, "labels": labels}


@dataclasses.dataclass(frozen=True)
class _OfPart:
    seen: grain.MapDataset
    batch: int
    part: int
    own: int

    def __call__(self, index: int) -> dict[str, Any]:
        batch, place = divmod(index, self.own)
        return self.seen[batch * self.batch + self.part * self.own + place]


class reading(Iterator[Any]):
    """Batches, read in threads, or in so many processes besides (`decoders`), to the same bits.

    The state is the number of the next one; a run may go on with another number of processes.
    """

    def __init__(self, dataset: grain.MapDataset, decoders: int = 0):
        self._dataset, self._decoders, self._next = dataset, decoders, 0
        self._items: Generator[Any, None, None] | None = None

    def __next__(self) -> Any:
        if self._items is None:
            rest = self._dataset[self._next :]
            threads = os.cpu_count() or 1
            buffer = max(_AHEAD, threads)
            self._items = ahead(
                rest.__getitem__,
                len(rest),
                threads=threads,
                buffer=buffer,
                decoders=self._decoders,
            )
        item = next(self._items)
        self._next += 1
        return item

    def get_state(self) -> dict[str, int]:
        """Where it is, as Grain says it."""
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Go there."""
        self.close()
        self._next = state["next_index"]

    def close(self) -> None:
        """End what reads."""
        if self._items is not None:
            self._items.close()
        self._items = None


def check_photo(path: Path | Inside, data: Data, recipe: Preprocessing) -> None:
    """Raise ImageError for an image that cannot be trained on."""
    _read(path, data, recipe, np.random.default_rng(0))


def _read(
    path: Path | Inside, data: Data, recipe: Preprocessing, random: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    image = open_image(path)
    try:
        return _seen(image, data, recipe, random)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def _seen(
    image: Image.Image, data: Data, recipe: Preprocessing, random: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image as it is trained on, this time."""
    if data.crop < 1:
        part = _crop(image, data.crop, random)
        pixels = np.asarray(image.resize(data.size[::-1], Image.Resampling.BILINEAR, part))
    else:
        pixels = fit_image(image, data.size, recipe)
    return pixels[:, ::-1].copy() if _is_mirrored(data, random) else pixels


def _is_mirrored(data: Data, random: np.random.Generator) -> bool:
    return data.flip and random.random() < 0.5


def _crop(
    image: Image.Image, least: float, random: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of the image: left, top, right, bottom."""
    area = random.uniform(least, 1) * image.width * image.height
    ratio = np.exp(random.uniform(np.log(_RATIO), -np.log(_RATIO)))
    width = min(image.width, np.sqrt(area * ratio))
    height = min(image.height, np.sqrt(area / ratio))
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    return left, top, left + width, top + height
