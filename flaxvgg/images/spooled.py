"""Images of Parquet files, and of addresses, in any order, as training takes them: each read once.

They go into a temporary file, uncompressed, from which they are read; it is gone when they are.
(TMPDIR says where it lies; it becomes as large as all images are.)
"""

import os
import tempfile
import threading
import weakref
from typing import Any

from flaxvgg.files.foreign import AnyPath
from flaxvgg.images.objects import Deferred
from flaxvgg.images.parquet_files import ImagesInside

_Place = tuple[int, int] | AnyPath


class _Spool:
    """A temporary file, and where in it each image lies that is there; or the path of one."""

    def __init__(self) -> None:
        self.places: dict[int, _Place] = {}
        self._lock = threading.Lock()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed when this is gone)
        weakref.finalize(self, self._file.close)

    def put(self, number: int, image: Any) -> None:
        """Take in the bytes of an image, or its path."""
        if not isinstance(image, bytes):
            self.places[number] = image
            return
        with self._lock:
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(image)
        self.places[number] = start, len(image)

    def get(self, number: int) -> dict[str, Any]:
        """What was taken in."""
        place = self.places[number]
        if not isinstance(place, tuple):
            return {"image": place}
        with self._lock:
            self._file.seek(place[0])
            return {"image": self._file.read(place[1])}


class Fetched:
    """Images behind addresses: objects, or members of archives. Many may be waited for at once."""

    def __init__(self, images: Any):
        self._images, self._spool = images, _Spool()

    def __reduce__(self) -> tuple[Any, ...]:  # another process has a temporary file of its own
        return type(self), (self._images,)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if row not in self._spool.places:
            self._take(row)
        return self._spool.get(row)

    def _take(self, row: int) -> None:
        self._spool.put(row, _image(self._images[row]))


class Spooled(Fetched):
    """Images of Parquet files. A group of rows is read as a whole: not once for each image."""

    def __init__(self, images: ImagesInside):
        super().__init__(images)
        self._lock = threading.Lock()

    def _take(self, row: int) -> None:
        with self._lock:  # one thread reads a group, and the others wait for it
            if row not in self._spool.places:
                for number in self._images.group_of(row):
                    super()._take(number)


def _image(element: dict[str, Any]) -> Any:
    """The bytes or the path of an image. Raises ImageError where there is none, and RemoteError."""
    image = element["image"]
    return image.fetch()[0] if isinstance(image, Deferred) else image
