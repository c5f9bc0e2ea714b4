"""Images with labels: one folder for each class, a table, or Pascal VOC as it is published."""

import collections
import dataclasses
import difflib
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxvgg.files.addresses import address
from flaxvgg.files.foreign import AnyPath
from flaxvgg.images.finding import class_folders, images_below, tell_passed_over, unreachable
from flaxvgg.images.inside import Inside
from flaxvgg.images.label_tables import MOST_CLASSES, Box, LabelTable, read_label_table, too_large
from flaxvgg.images.table_files import DatasetError as DatasetError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """N image files, which of the K classes are in each (N, K), and where, if that is known.

    A path may be an image inside a file too (`flaxvgg.images.inside`). `labels` is 1 for a class
    that is in the image, else 0. `boxes` has for each image the boxes of each class, in pixels of
    the file, or is None; `sizes` the (height, width) that the annotation of each image gives, None
    where it gives none (`flaxvgg.images.orientation` for photos that were stored turned).

    >>> paths = tuple(flaxvgg.find_images("photos"))
    >>> len(flaxvgg.LabelledImages(paths, np.ones((1, 1), np.float32), ("dog",)))
    1
    """

    paths: tuple[Path | Inside, ...]
    labels: Float[np.ndarray, "n k"]
    classes: tuple[str, ...]
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...] | None = None
    sizes: tuple[tuple[int, int] | None, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, rows: np.ndarray) -> "LabelledImages":
        """Some of the images, by their numbers."""
        boxes = None if self.boxes is None else tuple(self.boxes[i] for i in rows)
        sizes = None if self.sizes is None else tuple(self.sizes[i] for i in rows)
        paths = tuple(self.paths[i] for i in rows)
        labels = self.labels[rows]
        return dataclasses.replace(self, paths=paths, labels=labels, boxes=boxes, sizes=sizes)

    def without_gaps(self) -> "LabelledImages":
        """Where classes are numbers, such as 1 to 102: only those that an image has."""
        used = np.flatnonzero(self.labels.any(axis=0))
        if self.boxes is not None or self.classes != tuple(map(str, range(len(self.classes)))):
            return self
        classes = tuple(self.classes[i] for i in used)
        return dataclasses.replace(self, labels=self.labels[:, used], classes=classes)

    def split(self, part: float, seed: int = 0) -> tuple["LabelledImages", "LabelledImages"]:
        """The rest, and a random `part` of the images, in (0, 1), drawn class by class.

        Images with the same labels are drawn from alike, and each group of two or more gives at
        least one to either side. Raises ValueError where one of the two would be empty.
        """
        if not 0 < part < 1:
            raise ValueError(f"the part to hold out must be between 0 and 1, not {part}")
        random = np.random.default_rng(seed)
        groups = np.unique(self.labels, axis=0, return_inverse=True)[1].ravel()
        chosen = np.zeros(len(self), bool)
        for group in range(groups.max(initial=-1) + 1):
            members = random.permutation(np.flatnonzero(groups == group))
            count = int(np.clip(round(part * len(members)), 1, len(members) - 1))
            chosen[members[: count if len(members) > 1 else 0]] = True
        if not chosen.any():
            raise ValueError("too few images to hold any out: name a folder or file to test on")
        return self.of(np.flatnonzero(~chosen)), self.of(np.flatnonzero(chosen))


def is_pascal_voc(folder: Path) -> bool:
    """Whether a folder has Pascal VOC's layout, and not one folder for each class."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def image_folder(path: AnyPath, classes: Sequence[str] | None = None) -> LabelledImages:
    """Images in one folder for each class, at any depth below it; the folders name the classes.

    Classes are in alphabetical order, or those given. Raises DatasetError where there are no
    folders, for a folder without images, and for one that is none of the given classes.
    """
    path = Path(path)
    if not path.is_dir():
        cure = "copy it to this machine" if address(path) else "check the path"
        raise DatasetError(path, [f"no such folder or file: {cure}"])
    try:
        folders = class_folders(path)
    except OSError as error:
        raise DatasetError(path, [unreachable(error)]) from None
    if not folders:
        raise DatasetError(path, ["no folders in it: put the images of each class into one"])
    names = tuple(classes) if classes is not None else tuple(p.name for p in folders)
    paths: list[Path] = []
    numbers: list[int] = []
    problems = []
    passed: collections.Counter[str] = collections.Counter()
    for folder in folders:
        if folder.name not in names:
            problems.append(_unknown_class(folder.name, names))
            continue
        found = images_below(folder)
        problems += found.problems
        if not found.paths and not found.problems:
            problems.append(f"class {folder.name} is empty: no image in {folder}")
        paths += found.paths
        numbers += [names.index(folder.name)] * len(found.paths)
        passed += found.passed
    tell_passed_over(path, passed)
    if problems:
        raise DatasetError(path, problems)
    return LabelledImages(tuple(paths), np.eye(len(names), dtype=np.float32)[numbers], names)


def label_file(path: AnyPath, classes: Sequence[str] | None = None) -> LabelledImages:
    """Images and their labels in a CSV or Parquet file with the columns `image` and `labels`.

    An image is a path relative to the file; its labels are class names with semicolons between
    them, class numbers, or nothing at all (`flaxvgg.images.label_tables`). Classes are in
    alphabetical order, the numbers up to the largest, or those given. Raises DatasetError with
    every image that is missing or named twice, and for labels that are none of the classes.
    """
    path = Path(path)
    table = read_label_table(path)
    if table.inside is not None:
        raise DatasetError(path, ["its images are inside it: see flaxvgg.images.labelled"])
    missing = [  # not a file, also where that can be no name
        f"{table.where(i)}: {image} is missing"
        for i, image in enumerate(table.images)
        if not os.path.isfile(path.parent / image)
    ]
    return of_table(path, table, tuple(path.parent / x for x in table.images), classes, missing)


def of_table(
    path: AnyPath,
    table: LabelTable,
    photos: tuple[Path | Inside, ...],
    classes: Sequence[str] | None = None,
    problems: Sequence[str] = (),
) -> LabelledImages:
    """The images of a table with its labels, numbered by `classes` where these are given.

    Raises DatasetError with the `problems`, and for labels that are none of the classes.
    """
    problems = list(problems)
    if table.labels is None:
        raise DatasetError(path, ["no column `labels` in it"])
    if not any(table.labels):
        raise DatasetError(path, ["no labels in it: at least one image needs one"])
    largest = max(number for found in table.labels for number in found)
    if largest >= MOST_CLASSES:
        raise DatasetError(path, [too_large(largest)])
    names = tuple(classes or table.classes)
    columns = {name: i for i, name in enumerate(names)}
    labels = np.zeros((len(table.images), len(names)), np.float32)
    for i, found in enumerate(table.labels):
        for name in (table.classes[number] for number in found):
            if name in columns:
                labels[i, columns[name]] = 1
            else:
                problems.append(f"{table.where(i)}: {_unknown_class(name, names)}")
    if problems:
        raise DatasetError(path, problems)
    return LabelledImages(photos, labels, names)


def pascal_voc(path: AnyPath, split: str = "trainval") -> LabelledImages:
    """Pascal VOC in its published layout: `VOCdevkit/VOC2007` or another year's folder.

    `split` is a list of image names in `ImageSets/Main`: train, val, trainval or test. Labels and
    boxes leave out objects marked as difficult, as VOC's evaluation does. Raises DatasetError with
    everything that is missing or broken. (Everingham et al. 2010, doi:10.1007/s11263-009-0275-4)
    """
    path = Path(path)
    names_file = path / "ImageSets" / "Main" / f"{split}.txt"
    if not names_file.is_file():
        raise DatasetError(path, [f"no {names_file.relative_to(path)}: is it VOCdevkit/VOC2007?"])
    try:
        names = names_file.read_text("utf-8").split()
    except UnicodeDecodeError as error:
        raise DatasetError(path, [f"{names_file.relative_to(path)} is no text: {error}"]) from None
    problems, paths, boxes, sizes = [], [], [], []
    for name in names:
        image, annotation = (
            path / "JPEGImages" / f"{name}.jpg",
            path / "Annotations" / f"{name}.xml",
        )
        missing = [os.path.relpath(x, path) for x in (image, annotation) if not os.path.isfile(x)]
        problems += [f"{x} is missing" for x in missing]
        if not missing:
            paths.append(image)
            try:
                root = ET.parse(annotation).getroot()
                boxes.append(_voc_boxes(root))
                sizes.append(_voc_size(root))
            except (ET.ParseError, LookupError, ValueError, OverflowError) as error:
                problems.append(f"{os.path.relpath(annotation, path)}: {error}")
    if not names:
        problems.append(f"{names_file.relative_to(path)} is empty")
    if problems:
        raise DatasetError(path, problems)
    labels = np.zeros((len(paths), len(VOC_CLASSES)), np.float32)
    for row, found in zip(labels, boxes, strict=True):
        row[list(found)] = 1
    return LabelledImages(tuple(paths), labels, VOC_CLASSES, tuple(boxes), tuple(sizes))


def _voc_size(annotation: ET.Element) -> tuple[int, int] | None:
    height, width = (annotation.findtext(f"size/{x}", "").strip() for x in ("height", "width"))
    return (int(height), int(width)) if height.isdecimal() and width.isdecimal() else None


def _voc_boxes(annotation: ET.Element) -> dict[int, tuple[Box, ...]]:
    found: dict[int, tuple[Box, ...]] = {}
    for item in annotation.iter("object"):
        if item.findtext("difficult", "0").strip() == "1":
            continue
        name = item.findtext("name", "").strip()
        if name not in VOC_CLASSES:
            raise ValueError(_unknown_class(name, VOC_CLASSES))
        corners = (item.findtext(f"bndbox/{x}") for x in ("xmin", "ymin", "xmax", "ymax"))
        left, top, right, bottom = (round(float(x or "nan")) for x in corners)
        if left > right or top > bottom:
            raise ValueError(f"the box {left, top, right, bottom} is empty")
        # VOC counts pixels from 1, and its right and bottom belong to the box.
        number = VOC_CLASSES.index(name)
        found[number] = (*found.get(number, ()), (left - 1, top - 1, right, bottom))
    return found


def _unknown_class(name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(classes[:20])}"
    return f"{name!r} is none of the classes: {hint}"
