"""Tables of images, labels and boxes, for training and streaming alike: CSV, or Parquet.

Columns: `image`, a path relative to the table's folder; `labels` or `label`, if there are any:
class names, several with semicolons between them (in Parquet a list as well), or class numbers;
`left`, `top`, `right`, `bottom`, if there are boxes: a line for each, in pixels of the file, the
last two exclusive. In Parquet, and in data sets of Hugging Face, all objects of an image may be in
one column instead (`flaxvgg.images.detections`), whose classes are its labels. Other columns are
left alone.

Numbers are class numbers: 3, "3" and 3.0 are the class 3, and its name is "3". An image whose cell
is empty, or -1, has no label. Names are numbered in alphabetical order.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flaxvgg.files.foreign import AnyPath
from flaxvgg.files.remote import open_file
from flaxvgg.images.detections import a_line_each
from flaxvgg.images.parquet_files import read_parquet
from flaxvgg.images.table_files import BOX, DatasetError, TableFile, read_csv

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two exclusive

MOST_CLASSES = 2**16  # where there is a column for each


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """N images, none of them twice, with what a table says of each.

    `images` are paths relative to the table's folder or, where they are `inside` the table, names;
    `inside` gives {"image": ...} by number.
    `labels` are the class numbers of each image, `boxes` the boxes of each class. `classes` are the
    classes' names, empty for numbers too large to be columns. `where` says where the table names an
    image for the first time.
    """

    images: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...] | None
    classes: tuple[str, ...]
    boxes: tuple[Mapping[int, tuple[Box, ...]], ...] | None
    where: Callable[[int], str]
    inside: Any = None


def read_label_table(*paths: Path) -> LabelTable:
    """The images that a table lists, or Parquet files that are shards of one.

    Whether they exist is seen when they are read. Raises DatasetError with everything that is wrong
    with the table.
    """
    path = paths[0]
    if len(paths) > 1:
        return label_table(f"{path} and {len(paths) - 1} more", read_parquet(*paths))
    table = read_parquet(path) if _is_parquet(path) else read_csv(path)
    if table.inside is None:
        table = dataclasses.replace(table, columns={**table.columns, "image": _paths(path, table)})
    return label_table(path, table)


def _is_parquet(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(4) == b"PAR1" or path.suffix.lower() == ".parquet"


def label_table(source: AnyPath, table: TableFile) -> LabelTable:
    """What a table says of its images; `source` is its name in what is wrong.

    Raises DatasetError with everything that is wrong with it.
    """
    table = a_line_each(table)
    given = table.columns.get("image") or (table.inside.names if table.inside else ())
    problems = [] if given else ["no images in it: one line for each"]
    problems += [f"{table.where(i)}: no image" for i, name in enumerate(given) if not name]
    with_boxes = [name for name in BOX if name in table.columns]
    if with_boxes and len(with_boxes) < len(BOX):
        problems.append(f"a box has left, top, right and bottom, and not {', '.join(with_boxes)}")
    first: dict[str, int] = {}
    for i, name in enumerate(given):
        if name and name in first and not with_boxes:
            problems.append(f"{table.where(i)}: {name} for the second time")
        first.setdefault(name, i)
    if problems:
        raise DatasetError(source, problems)
    rows = {name: row for row, name in enumerate(first)}
    row_of = [rows[name] for name in given]
    numbers, classes = _numbered(source, table)
    labels = None
    if numbers is not None:
        by_row: list[dict[int, None]] = [{} for _ in rows]
        for row, found in zip(row_of, numbers, strict=True):
            by_row[row] |= dict.fromkeys(found)
        labels = tuple(map(tuple, by_row))
    boxes = _boxes(source, table, row_of, numbers, len(rows)) if with_boxes else None
    firsts = list(first.values())
    names = tuple(first)
    return LabelTable(
        names, labels, classes, boxes, lambda row: table.where(firsts[row]), table.inside
    )


def _paths(path: Path, table: TableFile) -> list[str]:
    """The image column as paths of this system: a table may come from Windows."""
    root = os.path.dirname(path.absolute())

    def as_path(name: Any) -> str:
        name = "" if name is None else str(name)
        odd = "\\" in name or name != name.strip()
        if odd and not os.path.lexists(os.path.join(root, name)):
            return name.strip().replace("\\", "/")
        return name

    return [as_path(name) for name in table.columns["image"]]


def _numbered(
    source: AnyPath, table: TableFile
) -> tuple[list[tuple[int, ...]] | None, tuple[str, ...]]:
    """The class numbers of every line, and the classes' names."""
    column = next((table.columns[x] for x in ("labels", "label") if x in table.columns), None)
    if column is None:
        return None, ()
    found = [_parts(value) for value in column]
    distinct = {x for labels in found for x in labels}
    number_of = {x: number for x in distinct if (number := _number(x)) is not None}
    if len(number_of) < len(distinct):
        names = sorted({str(label) for label in distinct})
        numbers = {name: i for i, name in enumerate(names)}
        return [tuple(numbers[str(x)] for x in labels) for labels in found], tuple(names)
    problems = []
    for label, number in number_of.items():
        if number != int(number):
            problems.append(f"class {label}: a class is a name, or a whole number")
        elif number < -1:
            problems.append(f"class {label}: class numbers count from 0, and -1 is for no class")
        elif number >= 2**31:
            problems.append(too_large(label))
    if problems:
        raise DatasetError(source, sorted(problems))
    whole = {label: int(number) for label, number in number_of.items()}
    largest = max(whole.values(), default=-1)
    names = table.classes or tuple(map(str, range(largest + 1 if largest < MOST_CLASSES else 0)))
    if table.classes and largest >= len(names):
        raise DatasetError(source, [f"class {largest}: the table names {len(names)} classes"])
    return [tuple(whole[x] for x in labels if whole[x] >= 0) for labels in found], names


def too_large(label: Any) -> str:
    """The line for a class number that no array has room for."""
    return (
        f"class {label}: numbers are to be below {MOST_CLASSES}; if these are names, put a letter "
        "in front"
    )


def _parts(value: Any) -> list[Any]:
    """One line's labels: texts, or numbers."""
    match value:
        case None:
            return []
        case str():
            return [part.strip() for part in value.split(";") if part.strip()]
        case list():
            return [label for item in value for label in _parts(item)]
        case float() if math.isnan(value):
            return []
        case bool():
            return [str(value)]
        case int() | float():
            return [value]
        case _:
            return [str(value)]


def _number(label: Any) -> int | float | None:
    """The number that a label is, None for a name."""
    if isinstance(label, int | float):
        return label if math.isfinite(label) else None
    try:
        # Not "1_000", "1e3" or "infinity", which Python takes for numbers.
        return float(label) if set(label) <= set("+-.0123456789") else None
    except ValueError:
        return None


def _boxes(
    source: AnyPath,
    table: TableFile,
    row_of: list[int],
    numbers: list[tuple[int, ...]] | None,
    count: int,
) -> tuple[dict[int, tuple[Box, ...]], ...]:
    boxes: list[dict[int, tuple[Box, ...]]] = [{} for _ in range(count)]
    problems = []
    for i, row in enumerate(row_of):
        corners = tuple(table.columns[name][i] for name in BOX)
        if all(corner in (None, "") or corner != corner for corner in corners):
            continue
        try:
            left, top, right, bottom = (_whole(corner) for corner in corners)
        except (TypeError, ValueError, OverflowError):
            problems.append(f"{table.where(i)}: a box is four whole numbers, not {corners}")
            continue
        labels = numbers[i] if numbers is not None else ()
        if not (0 <= left < right and 0 <= top < bottom):
            problems.append(f"{table.where(i)}: the box {left, top, right, bottom} is empty")
        elif len(labels) != 1:
            problems.append(f"{table.where(i)}: a box needs one label")
        else:
            label = labels[0]
            boxes[row][label] = (*boxes[row].get(label, ()), (left, top, right, bottom))
    if problems:
        raise DatasetError(source, problems)
    return tuple(boxes)


def _whole(value: Any) -> int:
    """The whole number that a cell holds: pandas writes 3 as 3.0 where other cells are empty."""
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(number)
