"""Images of a `datasets.Dataset` of Hugging Face, as it has them: bytes of files, and not decoded.

`datasets` itself is not needed: a data set gives its rows as tables of Arrow.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxvgg.images.detections import OBJECTS, objects_column
from flaxvgg.images.parquet_files import (
    classes_of,
    holds_images,
    image_in,
    known_columns,
    unique_names,
)
from flaxvgg.images.table_files import DatasetError, TableFile

SOURCE = "the data set"  # its name in what is wrong with it
_ROWS = 100  # of a shuffled data set these are copied, with their images
_NEEDED = ("features", "select_columns", "with_format", "__getitem__")


class DatasetImages:
    """The images of a data set's rows, by number; an element is {"image": ...}: bytes, or a path.

    `names` are unique: the paths beside the images, or numbers.
    """

    def __init__(self, rows: Any, column: str, names: list[str]):
        self._rows, self._column, self.names = rows, column, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> dict[str, Any]:
        cell = self._rows[row].column(self._column)[0].as_py()
        return {"image": image_in(cell, Path.cwd())}


def read_dataset(dataset: Any) -> TableFile:
    """A data set as a table, with the images inside: those of the column `image`, or the only ones.

    Of the images only their names are read. Raises DatasetError for what is no data set with
    numbered rows, and for one without images.
    """
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(str, dataset))
        raise DatasetError(SOURCE, [f"it has splits, and one goes at a time: choose of {splits}"])
    if not all(hasattr(dataset, name) for name in _NEEDED) or not hasattr(dataset, "__len__"):
        kind = type(dataset).__name__
        cure = "load it without streaming=True" if "Iterable" in kind else "pass a datasets.Dataset"
        raise DatasetError(SOURCE, [f"{kind} has no rows by number: {cure}"])
    told = dataset.features.to_dict()
    columns = known_columns(SOURCE, list(told), told)
    columns |= {OBJECTS: name} if (name := objects_column(dataset.features.arrow_schema)) else {}
    image = columns.pop("image")
    images = dataset.select_columns([image]).with_format("arrow")
    kind = images[:1].schema.field(image).type if len(dataset) else None
    if kind is not None and not holds_images(SOURCE, image, kind):
        raise DatasetError(SOURCE, [f"the column {image} holds paths, and no images: cast it"])
    classes = classes_of(columns, told)
    cells: dict[str, Sequence[Any]] = {}
    if columns:
        found = dataset.select_columns(list(columns.values())).with_format("arrow")[:]
        cells = {known: found.column(name).to_pylist() for known, name in columns.items()}
    inside = DatasetImages(images, image, unique_names(_paths(images, image)))
    return TableFile(cells, range(len(dataset)), "row", classes, inside)


def _paths(images: Any, column: str) -> list[Any]:
    """The paths beside the images. Of a data set that was not shuffled, their bytes stay unread."""
    found: list[Any] = []
    for start in range(0, len(images), _ROWS):
        for cells in images[start : start + _ROWS].column(column).chunks:
            fields = {field.name for field in cells.type} if hasattr(cells, "field") else set()
            named = "path" in fields
            found += cells.field("path").to_pylist() if named else [None] * len(cells)
    return found
