"""The objects of an image in one cell of a table, as the Hugging Face hub has them.

    {"bbox": [[x, y, w, h], ...], "category": [3, ...]}        or, with other words for the class,
    [{"bbox": [x, y, w, h], "category": 3}, ...]

A box is its left upper corner and its size, in pixels of the file. It is rounded outwards to whole
pixels; one without any width or height is left out, as COCO has some.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flaxvgg.images.table_files import BOX, TableFile

OBJECTS = "objects"
_CLASSES = ("category", "categories", "category_id", "label", "labels", "class", "class_id")
_ROUNDING = 1e-3  # pixels: sides are in float32, and a corner is a sum of two


def objects_column(schema: Any) -> str | None:
    """The column of objects by the types of all: the one called so, or the only one with boxes."""
    from pyarrow import types

    found = []
    for field in schema:
        kind = field.type
        while types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
        if types.is_struct(kind) and "bbox" in {x.name for x in kind}:
            found.append(field.name)
    named = [name for name in found if name.lower() == OBJECTS]
    return named[0] if named else found[0] if len(found) == 1 else None


def told_of_classes(told: Any) -> Any:
    """What is told of the classes of objects, of what `datasets` tells of their column."""
    if isinstance(told, Mapping) and "_type" in told:
        told = told.get("feature")
    if isinstance(told, list) and told:
        told = told[0]
    if not isinstance(told, Mapping):
        return None
    return next((told[name] for name in _CLASSES if name in told), None)


def a_line_each(table: TableFile) -> TableFile:
    """The table with a line for each object, and one for an image without any.

    The same for a table that has no objects.
    """
    if OBJECTS not in table.columns:
        return table
    names = table.columns["image"] if table.inside is None else table.inside.names
    labels = next((table.columns[x] for x in ("labels", "label") if x in table.columns), None)
    lines: list[tuple[Any, ...]] = []
    for i, cell in enumerate(table.columns[OBJECTS]):
        given = list(_objects(cell)) or [(None, (None,) * 4)]
        own = None if labels is None else labels[i]
        lines += [
            (names[i], own if label is None else label, *box, table.lines[i])
            for label, box in given
        ]
    image, label, *corners, places = zip(*lines, strict=True) if lines else ((),) * 7
    columns = {"image": image, "label": label, **dict(zip(BOX, corners, strict=True))}
    return dataclasses.replace(table, columns=columns, lines=places)


def _objects(cell: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The class of each object, and its box: left, top, right, bottom."""
    if isinstance(cell, Mapping):
        label = next((cell[name] for name in _CLASSES if name in cell), None)
        boxes = cell.get("bbox") or []
        pairs = zip(label or [None] * len(boxes), boxes, strict=False)
    else:
        found = [x for x in cell or () if isinstance(x, Mapping)]
        pairs = ((next((x[n] for n in _CLASSES if n in x), None), x.get("bbox")) for x in found)
    for label, box in pairs:
        corners = _corners(box)
        if corners is not None:
            yield label, corners


def _corners(box: Any) -> tuple[Any, ...] | None:
    """The box as our tables have it; None for one without width or height; what it is otherwise."""
    sides = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else [box]
    numbers = [x for x in sides if isinstance(x, int | float) and math.isfinite(x)]
    if len(sides) != 4 or len(numbers) != 4:
        return tuple(map(str, (*sides, "?", "?", "?")[:4]))  # which is said to be no box
    left, top, width, height = numbers
    if width <= 0 or height <= 0:
        return None
    low = (max(0, math.floor(x + _ROUNDING)) for x in (left, top))
    high = (math.ceil(x - _ROUNDING) for x in (left + width, top + height))
    return (*low, *high)
