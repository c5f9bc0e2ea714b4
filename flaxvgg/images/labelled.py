"""Images to train on, wherever they are: in folders, tables, archives, or shards."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flaxvgg.files.addresses import address, below, folder_of
from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.remote import Object
from flaxvgg.images.archives import Archives
from flaxvgg.images.array_records import ArrayRecords
from flaxvgg.images.datasets import (
    DatasetError,
    LabelledImages,
    image_folder,
    is_pascal_voc,
    label_file,
    of_table,
    pascal_voc,
)
from flaxvgg.images.finding import (
    TABLES,
    ImageError,
    by_folder,
    class_folders,
    is_archive,
    is_array_record,
)
from flaxvgg.images.inside import Inside
from flaxvgg.images.label_tables import MOST_CLASSES, LabelTable, read_label_table
from flaxvgg.images.objects import Objects, images_below_address
from flaxvgg.images.parquet_files import ImagesInside
from flaxvgg.images.shards import shards_below, written_out
from flaxvgg.images.spooled import Fetched, Spooled


def read_labelled(path: AnyPath, classes: Sequence[str] | None = None) -> LabelledImages:
    """The images of a data set with their labels, numbered by `classes` where these are given.

    A folder that has `Annotations` and `JPEGImages` is Pascal VOC's (its trainval images), another
    folder `image_folder`'s, or, without folders in it, one of shards. A file is a table
    (`label_file`), or has the images inside it, as `flaxvgg.streaming.find_source` reads them:
    Parquet, an archive, ArrayRecord files of TFDS; or it is a pattern of several
    (`train-*.parquet`, `train-{000..146}.tar`). Each but Pascal VOC's folder and ArrayRecord files
    may be an address, and a table may list addresses: such images are fetched when they are first
    opened, once. Raises DatasetError; for addresses also ImageError, GoneError and RemoteError.
    """
    path = Path(path)
    if address(path):
        return _behind_address(path, classes)
    if is_pascal_voc(path):
        found = pascal_voc(path)
        if classes is not None and tuple(classes) != found.classes:
            raise DatasetError(path, ["Pascal VOC's 20 classes are not those of the other images"])
        return found
    shards = shards_below(path) if path.is_dir() and not _has_classes(path) else written_out([path])
    if not shards or (shards == [path] and path.is_dir()):
        return image_folder(path, classes)
    return _inside(path, shards, classes)


def _behind_address(path: Path, classes: Sequence[str] | None) -> LabelledImages:
    if is_array_record(path):
        raise DatasetError(path, ["ArrayRecord files are read from this machine: copy them here"])
    if is_archive(path) or path.suffix.lower() in TABLES:
        return _inside(path, written_out([path]), classes)
    try:
        names, images = images_below_address(str(address(path)))
    except ImageError:
        shards = shards_below(path)
        if not shards:
            raise
        return _inside(path, shards, classes)
    numbers, found = by_folder(names)
    if numbers is None:
        raise DatasetError(path, ["images in no folder: put those of each class into one"])
    labels = tuple((number,) for number in numbers)
    table = LabelTable(tuple(names), labels, found, None, lambda row: names[row], None)
    return of_table(path, table, _photos(Fetched(images), names), classes)


def _photos(holds: Any, names: Iterable[str]) -> tuple[Inside, ...]:
    return tuple(Inside(holds, i, name) for i, name in enumerate(names))


def _has_classes(folder: Path) -> bool:
    """Whether what is in a folder are classes: TFDS's folders, and the hub's, have files beside."""
    try:
        return bool(class_folders(folder)) and not shards_below(folder)
    except OSError:  # which is said of its classes
        return True


def _inside(path: Path, shards: Sequence[Path], classes: Sequence[str] | None) -> LabelledImages:
    """The images inside files, or those that a table lists."""
    if any(map(is_array_record, shards)):
        records = ArrayRecords(shards)
        table = _table(records, records.labels(), records.classes)
    elif any(map(is_archive, shards)):
        archives = Archives(shards)
        table = _table(archives, *archives.classes())
    else:
        missing = [x for x in shards if not address(x) and not os.path.isfile(x)]
        if missing:
            raise DatasetError(missing[0], ["no such folder or file: check the path"])
        table = read_label_table(*shards)
    if table.inside is None:
        return _listed(path, table, classes)
    holds = table.inside
    if isinstance(holds, ImagesInside):
        holds = Spooled(holds)
    elif address(shards[0]):
        holds = Fetched(holds)
    return of_table(path, table, _photos(holds, table.images), classes)


def _listed(path: Path, table: LabelTable, classes: Sequence[str] | None) -> LabelledImages:
    """The images that a table lists, on this machine or behind addresses."""
    urls = [below(folder_of(path), name) for name in table.images]
    if not any(urls):
        return label_file(path, classes)
    holds = Fetched(Objects([Object(url or "") for url in urls]))
    photos = zip(_photos(holds, table.images), urls, strict=True)
    found = tuple(photo if url else path.parent / photo.name for photo, url in photos)
    return of_table(path, table, found, classes)


def _table(
    inside: Archives | ArrayRecords,
    labels: Sequence[tuple[int, ...]] | None,
    classes: tuple[str, ...],
) -> LabelTable:
    """Images with their class numbers as a table."""
    if labels is not None:
        largest = max((number for found in labels for number in found), default=-1)
        classes = classes or tuple(map(str, range(min(largest + 1, MOST_CLASSES))))
        labels = tuple(labels)
    names = tuple(inside.names)
    return LabelTable(names, labels, classes, None, lambda row: names[row], inside)
