"""Images behind addresses: fetched when they are opened, and known by their versions before.

Of a file on this machine the content is a digest of its bytes (`images.fingerprint`). To compare a
data set of another machine in that way would be to fetch it again: here it is a digest of length
and ETag of the object (of its time where there is no ETag), and of the place within it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any

from flaxvgg.files.remote import GoneError, Object, Version, objects_below
from flaxvgg.images.finding import SUFFIXES, ImageError, is_hidden
from flaxvgg.images.fingerprint import UNKNOWN, content_of


@dataclasses.dataclass(frozen=True)
class Deferred:
    """An image that is an object, or lies in one at a `part`, from where `inside` reads it."""

    source: Object
    part: str = ""
    inside: Callable[[], bytes] | None = None

    def content(self) -> int:
        """The content of the image as it is now; UNKNOWN where there is none. May ask the server.

        Raises RemoteError.
        """
        try:
            return self._content(self.source.pinned().version)
        except GoneError:
            return UNKNOWN

    def fetch(self) -> tuple[bytes, int]:
        """The bytes of the image file, and their content.

        Raises ImageError where there is none, or it is another one by now, and RemoteError.
        """
        try:
            if self.inside is None:
                data, version = self.source.fetch()
            else:
                data, version = self.inside(), self.source.version
        except GoneError as error:
            raise ImageError(str(error).removeprefix(f"{self.source.url}: ")) from None
        return data, self._content(version)

    def _content(self, version: Version | None) -> int:
        return content_of(f"{version} {self.part}".encode())


class Objects:
    """Images that are objects, by number; an element is {"image": `Deferred`}."""

    def __init__(self, objects: Sequence[Object]):
        self._objects = objects

    def __len__(self) -> int:
        return len(self._objects)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"image": Deferred(self._objects[row])}


def images_below_address(url: str) -> tuple[list[str], Objects]:
    """The images below an address by their suffix, and their names from there on; none hidden.

    Raises ImageError where there are none, or only the annotations of Pascal VOC beside them.
    """
    listed = objects_below(url)
    found = [(name, x) for name, x in listed if _is_image(name)]
    folders = {name.partition("/")[0] for name, _ in listed}
    if {"Annotations", "JPEGImages"} <= folders:
        raise ImageError(
            f"{url}: Pascal VOC's folder is read from this machine: copy it, or name its JPEGImages"
        )
    if not found:
        suffixes = " ".join(sorted(SUFFIXES))
        raise ImageError(f"{url}: no image below this address ({suffixes}): check it")
    return [name for name, _ in found], Objects([x for _, x in found])


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(map(is_hidden, path.parts))
