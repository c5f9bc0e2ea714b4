"""Pairs of images as a source: each item is a reference and the photo that is compared with it."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flaxvgg.images.fingerprint import UNKNOWN, content_of
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.perceptual.photos import Pair
from flaxvgg.streaming.source import Item, Source


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """N pairs: as a source it is that of the photos, `references` is another of N images.

    Pixels of an item are (2, H, W, 3), the reference first; its content is that of both files.
    """

    references: Source = dataclasses.field(kw_only=True)

    def read(self, row: int, size: tuple[int, int] | None, recipe: Preprocessing) -> Item:
        """Both images at `size` = (H, W), or at their own for None, where that must be one size."""
        reference = self.references.read(row, size, recipe)
        photo = super().read(row, size, recipe)
        problem = photo.problem
        if reference.problem:
            problem = f"its reference: {reference.problem}"
        elif not problem and photo.pixels.shape != reference.pixels.shape:
            sizes = ("{}x{}".format(*item.pixels.shape[:2]) for item in (photo, reference))
            problem = "it has {} pixels, and its reference {}: give a --size".format(*sizes)
        content = _of_both(reference.content, photo.content)
        if problem:
            pixels = np.zeros((0, 0, 3), np.uint8)
            return Item(row, pixels, (0, 0), None, problem, content)
        pixels = np.stack([reference.pixels, photo.pixels])
        return photo._replace(pixels=pixels, content=content)

    def content(self, row: int) -> int:
        """The content of both files as they are now."""
        return _of_both(self.references.content(row), super().content(row))


def pairs_source(pairs: Sequence[Pair], root: Path) -> Pairs:
    """A source of pairs, none of them twice; paths are noted as they are from `root` on."""
    given = dict.fromkeys(pairs)
    references, photos = ([_below(root, pair[i]) for pair in given] for i in (0, 1))
    names = [f"{photo} beside {known}" for known, photo in zip(references, photos, strict=True)]
    texts = {"reference": references, "photo": photos}
    beside = Source(references, references, root)
    return Pairs(photos, names, root, texts=texts, references=beside)


def _below(root: Path, path: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _of_both(first: int, second: int) -> int:
    if UNKNOWN in (first, second):
        return UNKNOWN
    return content_of(b"".join(x.to_bytes(8, "little") for x in (first, second)))
