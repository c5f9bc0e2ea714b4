"""A folder of results: checked before the work begins, and every file in it whole."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from flaxvgg.files import remote
from flaxvgg.files.addresses import address
from flaxvgg.files.foreign import plain
from flaxvgg.files.replacing import (
    cannot_be_written,
    followed,
    kind_of,
    sweep,
    write_atomically,
)


def check_folder(out: Path) -> None:
    """Raise ValueError, before any work is done, where `out` can be no folder of results."""
    try:
        existing = next(path for path in (out, *out.absolute().parents) if kind_of(followed(path)))
    except OSError as error:
        raise ValueError(cannot_be_written(out, error)) from None
    if not existing.is_dir():
        raise ValueError(f"{existing} is a file: choose a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} cannot be written to: choose another folder")
    if existing == out:
        sweep(out)


class Names:
    """Names of files that are made of photos, in one folder: each fits, and no two are the same.

    `names(photo)` is the photo's own with another suffix, such as `.png`. What is no character to
    look at becomes `_`; a name that is too long is cut, with a digest of the whole; and photos of
    two folders that are called alike get numbers.
    """

    def __init__(self, suffix: str = ""):
        self._suffix = suffix
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def __call__(self, photo: Path) -> str:
        stem = "".join("_" if plain(x) != x else x for x in photo.stem)
        if len(stem.encode()) > _LONGEST - len(self._suffix):
            digest = hashlib.sha256(os.fsencode(photo.stem)).hexdigest()[:8]
            stem = f"{stem.encode()[: _LONGEST - 60].decode(errors='ignore')}-{digest}"
        name, count = stem, self._counts.get(stem, 1)
        while self._same(name) in self._taken:
            count += 1
            name = f"{stem}-{count}"
        self._counts[stem] = count
        self._taken.add(self._same(name))
        return name + self._suffix

    @staticmethod
    def _same(name: str) -> str:
        """Equal for names that some file system takes for one."""
        return unicodedata.normalize("NFC", name).casefold()


_LONGEST = 240  # bytes: file systems allow 255, and a number may follow


def check_apart(out: Path, photos: Iterable[Path]) -> None:
    """Raise ValueError where a photo is in `out` itself, since its picture might replace it."""
    for photo in photos:
        if photo.resolve().parent == out.resolve():
            raise ValueError(f"{photo} is in {out}, where pictures will be: choose another folder")


def make_folder(out: Path) -> None:
    """Make a folder and those above it, also behind a symbolic link. Raises ValueError."""
    try:
        followed(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(cannot_be_written(out, error)) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, all or nothing, and the folders above it, or an object.

    Raises ValueError, and for an address RemoteError.
    """
    if url := address(path):
        remote.write(url, data)
        return
    make_folder(path.parent)

    def write(target: Path) -> None:
        target.write_bytes(data)

    write_atomically(path.absolute(), write)
