"""Lists of images in a table: CSV, or Parquet.

Columns: `image`, a path relative to the table's folder; `label` or `labels`, if there are any:
class names, several with semicolons between them (in Parquet a list as well), or class numbers;
`left`, `top`, `right`, `bottom`, if there are boxes: a line for each, in pixels of the file, the
last two exclusive. Other columns are left alone.
"""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from flaxvgg.datasets import Box, DatasetError

_BOX = ("left", "top", "right", "bottom")
_MOST_CLASSES = 2**16  # a column for each, where images have several


@dataclasses.dataclass(frozen=True)
class Manifest:
    """N images, none of them twice, with what the table says of each; see `Source`."""

    images: tuple[str, ...]
    labels: Int[np.ndarray, " n"] | Bool[np.ndarray, "n k"] | None
    classes: tuple[str, ...]
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...] | None


def read_manifest(path: Path) -> Manifest:
    """The images that a table lists. Whether they exist is seen when they are read.

    Raises DatasetError with everything that is wrong with the table.
    """
    columns = (_parquet if path.suffix.lower() == ".parquet" else _csv)(path)
    if "image" not in columns:
        raise DatasetError(path, ["its first line must name the columns, `image` among them"])
    given = [str(x) if x is not None else "" for x in columns["image"]]
    problems = [] if given else ["no images in it: one line for each"]
    problems += [f"line {i}: no image" for i, name in enumerate(given, 2) if not name]
    problems += [
        f"line {i}: {name!r} is no path" for i, name in enumerate(given, 2) if "\0" in name
    ]
    with_boxes = [name for name in _BOX if name in columns]
    if with_boxes and len(with_boxes) < len(_BOX):
        problems.append(f"a box has left, top, right and bottom, and not {', '.join(with_boxes)}")
    images = tuple(dict.fromkeys(given))
    if len(images) < len(given) and not with_boxes:
        seen: set[str] = set()
        for line, name in enumerate(given, 2):
            if name in seen:
                problems.append(f"line {line}: {name} for the second time")
            seen.add(name)
    if problems:
        raise DatasetError(path, problems)
    label = next((columns[name] for name in ("labels", "label") if name in columns), None)
    numbers, classes = _numbered(path, label)
    rows = {name: i for i, name in enumerate(images)}
    row_of = [rows[name] for name in given]
    labels = None if numbers is None else _labels(path, row_of, numbers, len(images), classes)
    boxes = _boxes(path, columns, row_of, numbers, len(images)) if with_boxes else None
    return Manifest(images, labels, classes, boxes)


def _csv(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            names = [name for name in reader.fieldnames or () if name in _COLUMNS]
            columns: dict[str, list[Any]] = {name: [] for name in names}
            for row in reader:
                for name in names:
                    columns[name].append(row[name])
            return columns
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(path, [f"no CSV file: {error}"]) from None


def _parquet(path: Path) -> dict[str, list[Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = [name for name in file.schema_arrow.names if name in _COLUMNS]
            return file.read(columns=names).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(path, [f"no Parquet file: {str(error).splitlines()[0]}"]) from None


_COLUMNS = {"image", "label", "labels", *_BOX}


def _numbered(
    path: Path, column: list[Any] | None
) -> tuple[list[tuple[int, ...]] | None, tuple[str, ...]]:
    """The class numbers of every line, and the classes' names; none where they are numbers."""
    if column is None:
        return None, ()
    found = [_parts(value) for value in column]
    given = {label for labels in found for label in labels}
    if all(isinstance(label, int) or label.isdecimal() for label in given):
        return [tuple(map(int, labels)) for labels in found], ()
    if any(isinstance(label, int) for label in given):
        raise DatasetError(path, ["labels are all names, or all numbers"])
    classes = tuple(sorted(given))
    numbers = {name: i for i, name in enumerate(classes)}
    return [tuple(numbers[label] for label in labels) for labels in found], classes


def _parts(value: Any) -> list[Any]:
    """One line's labels: texts, or whole numbers from 0."""
    match value:
        case None:
            return []
        case str():
            return [part.strip() for part in value.split(";") if part.strip()]
        case list():
            return [label for item in value for label in _parts(item)]
        case int() if value >= 0:
            return [int(value)]
        case _:
            return [str(value)]


def _labels(
    path: Path,
    row_of: list[int],
    numbers: list[tuple[int, ...]],
    count: int,
    classes: tuple[str, ...],
) -> np.ndarray:
    """(N,) where every image has one label, else (N, K)."""
    by_row: list[dict[int, None]] = [{} for _ in range(count)]
    for row, found in zip(row_of, numbers, strict=True):
        by_row[row] |= dict.fromkeys(found)
    largest = max((label for found in by_row for label in found), default=-1)
    if largest >= _MOST_CLASSES:
        raise DatasetError(path, [f"class {largest}: numbers are to be below {_MOST_CLASSES}"])
    if all(len(found) == 1 for found in by_row):
        return np.array([next(iter(found)) for found in by_row], np.int32)
    several = np.zeros((count, len(classes) or largest + 1), bool)
    for row, found in zip(several, by_row, strict=True):
        row[list(found)] = True
    return several


def _boxes(
    path: Path,
    columns: Mapping[str, list[Any]],
    row_of: list[int],
    numbers: list[tuple[int, ...]] | None,
    count: int,
) -> tuple[dict[int, tuple[Box, ...]], ...]:
    boxes: list[dict[int, tuple[Box, ...]]] = [{} for _ in range(count)]
    problems = []
    for i, row in enumerate(row_of):
        corners = tuple(columns[name][i] for name in _BOX)
        if all(corner in (None, "") for corner in corners):
            continue
        try:
            left, top, right, bottom = (int(corner) for corner in corners)
        except (TypeError, ValueError):
            problems.append(f"line {i + 2}: a box is four whole numbers, not {corners}")
            continue
        labels = numbers[i] if numbers is not None else ()
        if not (0 <= left < right and 0 <= top < bottom):
            problems.append(f"line {i + 2}: the box {left, top, right, bottom} is empty")
        elif len(labels) != 1:
            problems.append(f"line {i + 2}: a box needs one label")
        else:
            label = labels[0]
            boxes[row][label] = (*boxes[row].get(label, ()), (left, top, right, bottom))
    if problems:
        raise DatasetError(path, problems)
    return tuple(boxes)
