"""Images with labels: one folder for each class, a CSV file, or Pascal VOC as it is published."""

import collections
import csv
import dataclasses
import difflib
import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from flaxvgg.file_names import AnyPath
from flaxvgg.finding import class_folders, images_below, tell_passed_over, unreachable

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


class DatasetError(ValueError):
    """A data set that cannot be used as it is; `problems` has one line for each."""

    def __init__(self, source: AnyPath, problems: Sequence[str]):
        self.problems = list(problems)
        shown = self.problems[:10]
        if len(self.problems) > len(shown):
            shown.append(f"and {len(self.problems) - len(shown)} more")
        many = f"{len(self.problems)} problems\n  " + "\n  ".join(shown)
        super().__init__(f"{source}: {shown[0] if len(self.problems) == 1 else many}")


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """N image files, which of the K classes are in each (N, K), and where, if that is known.

    `labels` is 1 for a class that is in the image, else 0. `boxes` has for each image the boxes of
    each class, in pixels of the file, or is None.
    """

    paths: tuple[Path, ...]
    labels: Float[np.ndarray, "n k"]
    classes: tuple[str, ...]
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, rows: np.ndarray) -> "LabelledImages":
        """Some of the images, by their numbers."""
        boxes = None if self.boxes is None else tuple(self.boxes[i] for i in rows)
        paths = tuple(self.paths[i] for i in rows)
        return dataclasses.replace(self, paths=paths, labels=self.labels[rows], boxes=boxes)

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


def read_labelled(path: AnyPath, classes: Sequence[str] | None = None) -> LabelledImages:
    """The images of a folder with one folder for each class, of a CSV file, or of Pascal VOC.

    A folder that has `Annotations` and `JPEGImages` is Pascal VOC's (its trainval images), another
    folder is `image_folder`'s, a file is `label_file`'s. With `classes`, labels are numbered by
    them. Raises DatasetError.
    """
    path = Path(path)
    if path.is_file():
        return label_file(path, classes)
    if (path / "Annotations").is_dir() and (path / "JPEGImages").is_dir():
        found = pascal_voc(path)
        if classes is not None and tuple(classes) != found.classes:
            raise DatasetError(path, ["Pascal VOC's 20 classes are not those of the other images"])
        return found
    return image_folder(path, classes)


def image_folder(path: AnyPath, classes: Sequence[str] | None = None) -> LabelledImages:
    """Images in one folder for each class, at any depth below it; the folders name the classes.

    Classes are in alphabetical order, or those given. Raises DatasetError where there are no
    folders, for a folder without images, and for one that is none of the given classes.
    """
    path = Path(path)
    if not path.is_dir():
        raise DatasetError(path, ["no such folder or file: check the path"])
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
    """Images and their labels in a CSV file with the columns `image` and `labels`.

    An image is a path relative to the file; its labels are class names with semicolons between
    them, or nothing at all. Classes are in alphabetical order, or those given. Raises DatasetError
    with every image that is missing or named twice, and for labels that are none of the classes.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            if not {"image", "labels"} <= set(reader.fieldnames or ()):
                header = ", ".join(reader.fieldnames or ()) or "nothing"
                raise DatasetError(path, [f"the first line must be image,labels, not {header}"])
            if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
                raise DatasetError(path, ["the first line has a column twice"])
            table = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(path, [f"no CSV file: {error}"]) from None
    if not table:
        raise DatasetError(path, ["no images in it: one line for each"])
    problems = [
        f"line {line}: more columns than in the first line; between labels there are semicolons"
        for line, row in enumerate(table, start=2)
        if "" in row
    ]
    if problems:
        raise DatasetError(path, problems)
    rows = [(str(row["image"] or ""), str(row["labels"] or "")) for row in table]
    found = {name: [x.strip() for x in labels.split(";") if x.strip()] for name, labels in rows}
    names = tuple(classes or sorted({label for labels in found.values() for label in labels}))
    problems = [] if names else ["no labels in it: at least one image needs one"]
    seen: set[str] = set()
    for line, (name, _) in enumerate(rows, start=2):
        if name in seen:
            problems.append(f"line {line}: {name} for the second time")
        elif not os.path.isfile(path.parent / name):  # False also for what can be no name
            problems.append(f"line {line}: {name} is missing")
        seen.add(name)
        unknown = [label for label in found[name] if label not in names]
        problems += [f"line {line}: {_unknown_class(label, names)}" for label in unknown]
    if problems:
        raise DatasetError(path, problems)
    labels = np.zeros((len(found), len(names)), np.float32)
    for row, present in zip(labels, found.values(), strict=True):
        row[[names.index(label) for label in present]] = 1
    return LabelledImages(tuple(path.parent / name for name in found), labels, names)


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
    problems, paths, boxes = [], [], []
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
                boxes.append(_voc_boxes(annotation))
            except (ET.ParseError, LookupError, ValueError, OverflowError) as error:
                problems.append(f"{os.path.relpath(annotation, path)}: {error}")
    if not names:
        problems.append(f"{names_file.relative_to(path)} is empty")
    if problems:
        raise DatasetError(path, problems)
    labels = np.zeros((len(paths), len(VOC_CLASSES)), np.float32)
    for row, found in zip(labels, boxes, strict=True):
        row[list(found)] = 1
    return LabelledImages(tuple(paths), labels, VOC_CLASSES, tuple(boxes))


def _voc_boxes(annotation: Path) -> dict[int, tuple[Box, ...]]:
    found: dict[int, tuple[Box, ...]] = {}
    for item in ET.parse(annotation).getroot().iter("object"):
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
