"""Lists of images in a table: CSV, or Parquet, as `flaxvgg.images.label_tables` reads it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from flaxvgg.images.label_tables import (
    MOST_CLASSES,
    Box,
    read_label_table,
    too_large,
)
from flaxvgg.images.table_files import DatasetError, ImagesInside


@dataclasses.dataclass(frozen=True)
class Manifest:
    """N images, none of them twice, with what the table says of each; see `Source`.

    Where the images are `inside` the table, `images` are their names.
    """

    images: tuple[str, ...]
    labels: Int[np.ndarray, " n"] | Bool[np.ndarray, "n k"] | None
    classes: tuple[str, ...]
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...] | None
    inside: ImagesInside | None = None


def read_manifest(path: Path) -> Manifest:
    """The images that a table lists. Whether they exist is seen when they are read.

    Raises DatasetError with everything that is wrong with the table.
    """
    table = read_label_table(path)
    labels = None
    if table.labels is not None:
        labels = labels_of(path, table.labels, len(table.classes))
    return Manifest(table.images, labels, table.classes, table.boxes, table.inside)


def labels_of(path: Path, given: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Each image's class numbers as (N,) where every image has one, else as (N, count).

    Raises DatasetError for class numbers that are too large to be columns.
    """
    if all(len(found) == 1 for found in given):
        return np.array([number for (number,) in given], np.int32)
    largest = max((number for found in given for number in found), default=-1)
    if largest >= MOST_CLASSES:
        raise DatasetError(path, [too_large(largest)])
    several = np.zeros((len(given), count), bool)
    for row, found in zip(several, given, strict=True):
        row[list(found)] = True
    return several
