"""Images of Parquet files in any order, as training takes them."""

import os
import tempfile
import threading
import weakref
from typing import Any

from flaxvgg.files.foreign import AnyPath
from flaxvgg.images.parquet_files import ImagesInside


class Spooled:
    """Images of Parquet files in any order, each group of rows read once.

    A group is read as a whole: for one image after the other, in a random order, that would be once
    for each. So its images go into a temporary file, uncompressed, from which they are read; it is
    gone when they are. (TMPDIR says where it lies; it becomes as large as all images are.)
    """

    def __init__(self, images: ImagesInside):
        self._images = images
        self._places: dict[int, tuple[int, int] | AnyPath] = {}
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed when this is gone)
        weakref.finalize(self, self._file.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._images,)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row not in self._places:
            with self._lock:  # one thread reads a group, and the others wait for it
                if row not in self._places:
                    self._spool(row)
        place = self._places[row]
        if not isinstance(place, tuple):
            return {"image": place}
        start, size = place
        with self._lock:
            self._file.seek(start)
            return {"image": self._file.read(size)}

    def _spool(self, row: int) -> None:
        for number in self._images.group_of(row):
            image = self._images[number]["image"]
            if isinstance(image, bytes):
                start = self._file.seek(0, os.SEEK_END)
                self._file.write(image)
                self._places[number] = start, len(image)
            else:
                self._places[number] = image
