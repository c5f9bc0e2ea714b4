"""Images in ArrayRecord files, by number, through Grain: those of TFDS, or of anybody's.

A record is a `tf.train.Example`, whose features a `features.json` beside the files describes
(`flaxvgg.images.tfds`), or has the names `image` and `label`; or it is an image file as it is.
"""

import bisect
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from flaxvgg.images.examples import read_example
from flaxvgg.images.finding import ImageError
from flaxvgg.images.label_tables import Box
from flaxvgg.images.table_files import DatasetError
from flaxvgg.images.tfds import Description, description_in


class ArrayRecords:
    """The images of ArrayRecord files that are shards of one set, in this order.

    An element is {"image": bytes}, and with classes {"image": bytes, "label": ...}: a class number,
    -1 for none, or, where an image may have several, a list with an entry for each class. `names`
    are unique: numbers, behind the name of their file where there are several. `boxes` has for each
    image those of each class, in pixels, or is None. ImageError where a record is damaged.
    """

    def __init__(self, paths: Sequence[Path]):
        self._files = [_open(path) for path in paths]
        self._paths = paths
        self._starts = [0, *itertools.accumulate(map(len, self._files))]
        if not len(self):
            raise DatasetError(paths[0], ["no images in it"])
        several = len(paths) > 1
        self.names = [
            f"{path.name}/{i}" if several else str(i)
            for path, file in zip(paths, self._files, strict=True)
            for i in range(len(file))
        ]
        if len(set(self.names)) < len(self.names):
            raise DatasetError(paths[0], ["a shard twice, or two of one name: rename one"])
        self._told = description_in(paths[0].absolute().parent) or self._guess()
        self.classes = self._told.classes if self._told else ()
        self.boxes = _Boxes(self) if self._told and self._told.box else None

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, row: int) -> dict[str, Any]:
        told = self._told
        if told is None:
            return {"image": self._record(row)}
        example = self._example(row)
        data = example.get(told.image, [b""])
        element = {"image": data[0] if data and isinstance(data[0], bytes) else b""}
        numbers = self._numbers(example)
        if numbers is None:
            return element
        if not told.several:
            return element | {"label": numbers[0] if numbers else -1}
        return element | {"label": [number in numbers for number in range(len(self.classes))]}

    @property
    def label_shape(self) -> tuple[int, ...] | None:
        """() for one class an image, (K,) for any of K classes, None for no labels."""
        if self._told is None or not (self._told.label or self._told.box_label):
            return None
        return (len(self.classes),) if self._told.several else ()

    def labels(self) -> list[tuple[int, ...]] | None:
        """The class numbers of every image, for which all records are read; None without any.

        A damaged record has none: that it is damaged is seen when its image is read.
        """
        if self._told is None:
            return None
        found = [self._numbers(self._example_or_none(row)) for row in range(len(self))]
        return None if all(x is None for x in found) else [x or () for x in found]

    def boxes_of(self, row: int) -> dict[int, tuple[Box, ...]]:
        """The boxes of an image; none where its record is damaged."""
        told, found = self._told, {}
        example = self._example_or_none(row)
        if told is None or not example:
            return found
        corners, labels = example.get(told.box, []), example.get(told.box_label, [])
        difficult = example.get(told.difficult) or [0] * len(labels)
        try:
            with Image.open(io.BytesIO(example[told.image][0])) as image:
                width, height = image.size
        except (OSError, ValueError, LookupError, TypeError, Image.DecompressionBombError):
            return found  # which is said when it is read
        for i, (label, left_out) in enumerate(zip(labels, difficult, strict=False)):
            sides = corners[4 * i : 4 * i + 4]
            if left_out or len(sides) < 4 or not all(map(math.isfinite, sides)):
                continue
            top, left, bottom, right = sides
            box = (left * width, top * height, right * width, bottom * height)
            whole = tuple(round(side) for side in box)
            if whole[0] < whole[2] and whole[1] < whole[3]:
                found[label] = (*found.get(label, ()), whole)
        return found

    def _numbers(self, example: Mapping[str, Sequence[Any]]) -> tuple[int, ...] | None:
        """The classes of an image: those that are noted, or those of its boxes."""
        told = self._told
        key = told.label or told.box_label if told else ""
        given = example.get(key) if key else None
        if given is None:
            return None
        return tuple(dict.fromkeys(x for x in given if isinstance(x, int) and x >= 0))

    def _guess(self) -> Description | None:
        """How records are to be read that nothing describes, by the first; None: as images."""
        first = self._record(0)
        try:
            example = read_example(first)
        except ValueError:
            return None
        keys = [x for x in ("image", "image/encoded") if x in example]
        labels = [x for x in ("label", "image/class/label") if x in example]
        return Description(keys[0], labels[0] if labels else "") if keys else None

    def _example_or_none(self, row: int) -> dict[str, list[Any]]:
        try:
            return self._example(row)
        except ImageError:
            return {}

    def _example(self, row: int) -> dict[str, list[Any]]:
        try:
            return read_example(self._record(row))
        except ValueError as error:
            raise self._damaged(row, error) from error

    def _record(self, row: int) -> bytes:
        number = bisect.bisect_right(self._starts, row) - 1
        try:
            return self._files[number][row - self._starts[number]]
        except RuntimeError as error:
            raise self._damaged(row, error) from error

    def _damaged(self, row: int, error: Exception) -> ImageError:
        number = bisect.bisect_right(self._starts, row) - 1
        where = f"record {row - self._starts[number]} of {self._paths[number].name}"
        return ImageError(f"{where} is damaged ({_reason(error)}): get it again")


class _Boxes(Sequence[Mapping[int, tuple[Box, ...]]]):
    """The boxes of each image, read when they are asked for."""

    def __init__(self, records: ArrayRecords):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, row: Any) -> Any:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._records.boxes_of(row)


def _open(path: Path) -> Any:
    """Raises DatasetError for what is no ArrayRecord file, and for a damaged one."""
    import grain

    try:
        with path.open("rb"):  # what the system says of it comes first
            pass
        return grain.sources.ArrayRecordDataSource(str(path))
    except OSError as error:
        raise DatasetError(path, [error.strerror or str(error)]) from None
    except (RuntimeError, ValueError) as error:
        line = f"no ArrayRecord file, or a damaged one ({_reason(error)}): get it again"
        raise DatasetError(path, [line]) from None


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or ["it ends too soon"])[0]
