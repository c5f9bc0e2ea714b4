"""Lists of images in a table: CSV, or Parquet, as `flaxvgg.images.label_tables` reads it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from flaxvgg.files.foreign import AnyPath
from flaxvgg.images.hugging_face import DatasetImages
from flaxvgg.images.label_tables import (
    MOST_CLASSES,
    Box,
    LabelTable,
    read_label_table,
    too_large,
)
from flaxvgg.images.parquet_files import ImagesInside
from flaxvgg.images.table_files import DatasetError


@dataclasses.dataclass(frozen=True)
class Manifest:
    """N images, none of them twice, with what the table says of each; see `Source`.

    Where the images are `inside` the table, `images` are their names.
    """

    images: tuple[str, ...]
    labels: Int[np.ndarray, " n"] | Bool[np.ndarray, "n k"] | None
    classes: tuple[str, ...]
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...] | None
    inside: ImagesInside | DatasetImages | None = None


def read_manifest(*paths: Path) -> Manifest:
    """The images that a table lists, or Parquet files that are shards of one.

    Whether they exist is seen when they are read. Raises DatasetError with everything that is wrong
    with the table.
    """
    return manifest_of(paths[0], read_label_table(*paths))


def manifest_of(source: AnyPath, table: LabelTable) -> Manifest:
    """What a table says, with labels as arrays. Raises DatasetError as `labels_of` does."""
    labels = None
    if table.labels is not None:
        labels = labels_of(source, table.labels, len(table.classes))
    return Manifest(table.images, labels, table.classes, table.boxes, table.inside)


def labels_of(source: AnyPath, given: Sequence[Sequence[int]], count: int) -> np.ndarray:
    """Each image's class numbers as (N,) where every image has one, else as (N, count).

    Raises DatasetError for class numbers that are too large to be columns.
    """
    if all(len(found) == 1 for found in given):
        return np.array([number for (number,) in given], np.int32)
    largest = max((number for found in given for number in found), default=-1)
    if largest >= MOST_CLASSES:
        raise DatasetError(source, [too_large(largest)])
    several = np.zeros((len(given), count), bool)
    for row, found in zip(several, given, strict=True):
        row[list(found)] = True
    return several
